"""MS-COCO under the paper's protocol (Zhou et al. 2024, arXiv 2408.11039, 4.1): FID and CLIP score of images drawn from
captions of the validation set, CIDEr of captions of Karpathy's test images. A folder in, documents out, for `score`.

    FOLDER/annotations/captions_val2014.json    (or FOLDER/captions_val2014.json; from annotations_trainval2014.zip)
    FOLDER/dataset_coco.json                    (Karpathy and Fei-Fei 2015, arXiv 1412.2306; from caption_datasets.zip)
    FOLDER/val2014/COCO_val2014_000000000042.jpg ...
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from transfusion import rng
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.data.media import EncodedImage, Fit
from transfusion.evaluation import draw, read
from transfusion.evaluation.suite import EvalContext, SuiteResult, make_record, stack_images
from transfusion.files import read_json

CAPTIONS = "captions_val2014.json"
KARPATHY = "dataset_coco.json"
NUM_PROMPTS = 30_000
"""Prompts of the paper's protocol."""
Split = Literal["train", "restval", "val", "test"]


def score(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> SuiteResult:
    """Draw from documents that begin with their caption (`read_prompts`), caption those that begin with their image
    (`read_references`). FID compares with at most 10,000 of the prompts' own images, each once.

    Raises:
        ValueError: no documents of either form.
    """
    prompts = [document for document in documents if document.segments and isinstance(document.segments[0], Text)]
    references = [document for document in documents if document.segments and isinstance(document.segments[0], Media)]
    real = stack_images(list({document.name: document for document in prompts}.values()))
    drawing = replace(context, suite="coco-draw", samples=max(len(prompts), 1), real=real)
    drawn = draw.score(model, prompts, drawing)
    reading = replace(context, suite="coco-read", samples=max(len(references), 1), class_names=())
    captioned = read.score(model, references, reading)
    metrics, missing = drawn.record.metrics | captioned.record.metrics, drawn.record.missing | captioned.record.missing
    record = make_record("coco", model, context, metrics, missing, drawn.record.classifiers)
    return SuiteResult(record, drawn.documents + captioned.documents)


def read_prompts(folder: str | Path, fit: Fit, count: int = NUM_PROMPTS, seed: int = 0) -> list[Document]:
    """Captions of the validation set, each before its image, drawn without replacement; the first n of a larger draw are the
    draw of n.

    Raises:
        ValueError: captions or images are missing or have another form, or there are fewer than `count`.
    """
    folder = Path(folder)
    file, content = _read(folder, CAPTIONS, '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}')
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions = [(folder / "val2014" / names[a["image_id"]], a["caption"].strip()) for a in content["annotations"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not COCO's ({error!r}): take it from annotations_trainval2014.zip") from error
    if not 0 < count <= len(captions):
        raise ValueError(f"{file} has {len(captions):,} captions: ask for 1 to {len(captions):,} prompts, not {count:,}")
    order = rng.generator(rng.key("coco", "prompts", seed)).permutation(len(captions))
    picked = [captions[i] for i in order[:count]]
    _check_files((image for image, _ in picked), folder)
    return [
        Document((Text(caption), Media(EncodedImage(image, fit, image.name))), name=str(image)) for image, caption in picked
    ]


def read_references(folder: str | Path, fit: Fit, split: Split = "test") -> list[Document]:
    """Images of Karpathy's split in its order (test: 5,000), each before its captions: five, for a few images more.

    Raises:
        ValueError: the file or images are missing or have another form, or the split is empty.
    """
    folder = Path(folder)
    file, content = _read(folder, KARPATHY, '{"images": [{"split", "filepath", "filename", "sentences": [{"raw"}]}]}')
    try:
        references = [
            (folder / image["filepath"] / image["filename"], [sentence["raw"].strip() for sentence in image["sentences"]])
            for image in content["images"]
            if image["split"] == split
        ]
        splits = sorted({image["split"] for image in content["images"]})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not Karpathy's split of COCO ({error!r}): take it from caption_datasets.zip") from error
    if not references:
        raise ValueError(f"{file} has no split {split!r}; it has {', '.join(splits) or 'no images at all'}")
    _check_files((image for image, _ in references), folder)
    return [
        Document((Media(EncodedImage(image, fit, image.name)), Text(first, paraphrases=tuple(others))), name=str(image))
        for image, (first, *others) in references
    ]


def _read(folder: Path, name: str, form: str) -> tuple[Path, Any]:
    file = next((f for f in (folder / "annotations" / name, folder / name) if f.is_file()), None)
    if file is None:
        raise ValueError(f"no {name} in {folder} or {folder / 'annotations'}: put it there; it holds {form}")
    try:
        return file, read_json(file, 2**30)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not JSON ({error}): it should hold {form}") from error


def _check_files(images: Iterable[Path], folder: Path) -> None:
    distinct = sorted(set(images))
    if outside := [image for image in distinct if not image.is_relative_to(folder) or ".." in image.relative_to(folder).parts]:
        raise ValueError(f"the image {outside[0]} lies outside {folder}: take the annotations from COCO")
    if missing := [image for image in distinct if not image.is_file()]:
        first, others = missing[0], f"{len(missing) - 1:,} more are missing"
        raise ValueError(f"no image {first}, and {others}: unpack COCO's {first.parent.name}.zip into {first.parent.parent}")
