"""COCO on an imitation of ten images: prompts, references of a split, missing files, and the suite."""

import json
from pathlib import Path

import pytest

from small import model, png
from transfusion.data.document import Document, Media, Text
from transfusion.data.media import Fit
from transfusion.evaluation.coco import read_prompts, read_references, score
from transfusion.evaluation.suite import EvalContext, caption

FIT = Fit((4, 4), 1)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    names = [f"COCO_val2014_{i:012d}.jpg" for i in range(10)]
    for i, name in enumerate(names):
        png(tmp_path / "val2014" / name, i)
    captions = {
        "images": [{"id": 100 + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"image_id": 100 + i % 10, "id": i, "caption": f" image {i % 10}, said {i // 10}\n"} for i in range(50)
        ],
    }
    split = {
        "images": [
            {
                "filepath": "val2014",
                "filename": name,
                "split": "test" if i < 4 else "val",
                "sentences": [{"raw": f"image {i}, said {j}"} for j in range(5)],
            }
            for i, name in enumerate(names)
        ]
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2014.json").write_text(json.dumps(captions))
    (tmp_path / "dataset_coco.json").write_text(json.dumps(split))
    return tmp_path


def number(document: Document) -> int:
    return int(Path(document.name).stem[-4:])


def test_prompts_are_drawn_by_the_seed_each_with_its_image(coco: Path) -> None:
    prompts = read_prompts(coco, FIT, 50)
    assert len({p.text for p in prompts}) == 50
    for prompt in prompts:
        assert isinstance(prompt.segments[0], Text) and prompt.media[0].tensor().shape == (1, 4, 4)
        assert prompt.text.startswith(f"image {number(prompt)}, said ")
    captions = [p.text for p in prompts]
    assert [p.text for p in read_prompts(coco, FIT, 7)] == captions[:7] != [p.text for p in read_prompts(coco, FIT, 7, seed=1)]


def test_captions_may_lie_in_the_folder_itself(coco: Path) -> None:
    (coco / "annotations" / "captions_val2014.json").rename(coco / "captions_val2014.json")
    assert len(read_prompts(coco, FIT, 3)) == 3


def test_karpathy_split(coco: Path) -> None:
    references = read_references(coco, FIT)
    assert [number(r) for r in references] == [0, 1, 2, 3] and isinstance(references[0].segments[0], Media)
    assert [caption(references[1], j) for j in range(5)] == [f"image 1, said {j}" for j in range(5)]
    assert len(read_references(coco, FIT, "val")) == 6


def test_prompts_are_drawn_and_references_captioned(coco: Path) -> None:
    documents = [*read_prompts(coco, FIT, 3), *read_references(coco, FIT)]
    result = score(model(), documents, EvalContext())
    assert result.record.suite == "coco" and result.record.metrics["cider"].count == 4
    assert "--inception" in result.record.missing["fid"] and len(result.documents) == 7
    with pytest.raises(ValueError, match="no captions"):
        score(model(), documents[3:], EvalContext())


def test_missing_and_malformed_files_are_named(coco: Path) -> None:
    with pytest.raises(ValueError, match="50 captions: ask for 1 to 50"):
        read_prompts(coco, FIT, 51)
    with pytest.raises(ValueError, match="no split 'restval'; it has test, val"):
        read_references(coco, FIT, "restval")
    (coco / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    for call in (lambda: read_prompts(coco, FIT, 50), lambda: read_references(coco, FIT)):
        with pytest.raises(ValueError, match=r"COCO_val2014_000000000002.jpg, and 0 more .* val2014.zip"):
            call()
    (coco / "dataset_coco.json").write_text('{"images": [{}]}')
    with pytest.raises(ValueError, match=r"not Karpathy's split.*'split'"):
        read_references(coco, FIT)
    (coco / "dataset_coco.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_references(coco, FIT)
    (coco / "dataset_coco.json").unlink()
    with pytest.raises(ValueError, match=r'no dataset_coco.json in .*it holds \{"images"'):
        read_references(coco, FIT)
    (coco / "annotations" / "captions_val2014.json").write_text("[]")
    with pytest.raises(ValueError, match="is not COCO's"):
        read_prompts(coco, FIT, 1)
    with pytest.raises(ValueError, match=r"no captions_val2014.json in .*annotations"):
        read_prompts(coco / "nowhere", FIT, 1)


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/secret.png"])
def test_annotations_name_no_image_outside(coco: Path, name: str) -> None:
    plain = {"images": [{"id": 1, "file_name": name}], "annotations": [{"image_id": 1, "caption": "a"}]}
    (coco / "annotations" / "captions_val2014.json").write_text(json.dumps(plain))
    plain = {"images": [{"split": "test", "filepath": "val2014", "filename": name, "sentences": [{"raw": "a"}]}]}
    (coco / "dataset_coco.json").write_text(json.dumps(plain))
    for call in (lambda: read_prompts(coco, FIT, 1), lambda: read_references(coco, FIT)):
        with pytest.raises(ValueError, match=r"secret\.png lies outside"):
            call()
