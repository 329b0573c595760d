"""MS-COCO from a local folder, under the paper's protocol (Zhou et al. 2024, arXiv 2408.11039, 4.1): prompts for FID and CLIP
score, and Karpathy's split for CIDEr.

    FOLDER/annotations/captions_val2014.json    (or FOLDER/captions_val2014.json; from annotations_trainval2014.zip)
    FOLDER/dataset_coco.json                    (Karpathy and Fei-Fei 2015, arXiv 1412.2306; from caption_datasets.zip)
    FOLDER/val2014/COCO_val2014_000000000042.jpg ...
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from transfusion import rng

CAPTIONS = "captions_val2014.json"
KARPATHY = "dataset_coco.json"
Split = Literal["train", "restval", "val", "test"]


class Prompt(NamedTuple):
    """A caption to draw, and the real picture that it was written for."""

    image: Path
    caption: str


class Reference(NamedTuple):
    """A picture to caption, and what people wrote about it: five captions, for a few pictures six or seven."""

    image: Path
    captions: tuple[str, ...]


def prompts(folder: str | Path, count: int = 30_000, seed: int = 0) -> list[Prompt]:
    """Captions of the validation pictures, drawn without return by the seed; the first n of a larger draw are the draw of n.

    Raises:
        ValueError: the captions or some pictures are missing or of another form, or there are fewer captions than asked for.
    """
    folder = Path(folder)
    file, record = _read(folder, CAPTIONS, '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}')
    try:
        names = {image["id"]: image["file_name"] for image in record["images"]}
        found = [Prompt(folder / "val2014" / names[a["image_id"]], a["caption"].strip()) for a in record["annotations"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not COCO's ({error!r}): take it from annotations_trainval2014.zip") from error
    if not 0 < count <= len(found):
        raise ValueError(f"{file} has {len(found):,} captions: ask for 1 to {len(found):,} prompts, not {count:,}")
    order = rng.generator(rng.key("coco", "prompts", seed)).permutation(len(found))
    picked = [found[i] for i in order[:count]]
    _present(one.image for one in picked)
    return picked


def karpathy(folder: str | Path, split: Split = "test") -> list[Reference]:
    """The pictures of a part of Karpathy's split, in its order, with their references (test: 5,000 pictures).

    Raises:
        ValueError: the split or some pictures are missing or of another form, or the part is empty.
    """
    folder = Path(folder)
    form = '{"images": [{"split", "filepath", "filename", "sentences": [{"raw"}]}]}'
    file, record = _read(folder, KARPATHY, form)
    try:
        found = [
            Reference(folder / one["filepath"] / one["filename"], tuple(s["raw"].strip() for s in one["sentences"]))
            for one in record["images"]
            if one["split"] == split
        ]
        parts = sorted({one["split"] for one in record["images"]})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not Karpathy's split of COCO ({error!r}): take it from caption_datasets.zip") from error
    if not found:
        raise ValueError(f"{file} has no part {split!r}; there are {', '.join(parts) or 'no pictures at all'}")
    _present(one.image for one in found)
    return found


def _read(folder: Path, name: str, form: str) -> tuple[Path, Any]:
    file = next((f for f in (folder / "annotations" / name, folder / name) if f.is_file()), None)
    if file is None:
        raise ValueError(f"no {name} in {folder} or {folder / 'annotations'}: put it there; it holds {form}")
    try:
        return file, json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): it should hold {form}") from error


def _present(images: Iterable[Path]) -> None:
    missing = sorted({image for image in images if not image.is_file()})
    if missing:
        raise ValueError(
            f"no picture {missing[0]}, and {len(missing) - 1:,} more are missing: unpack COCO's {missing[0].parent.name}.zip "
            f"into {missing[0].parent.parent}"
        )
