"""COCO's folder, on an imitation of ten pictures: what is drawn, what comes in which split, what is said of what is missing."""

import json
from pathlib import Path

import pytest

from small import png
from transfusion.evaluation.coco import karpathy, prompts


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    names = [f"COCO_val2014_{i:012d}.jpg" for i in range(10)]
    for i, name in enumerate(names):
        png(tmp_path / "val2014" / name, i)
    captions = {
        "images": [{"id": 100 + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"image_id": 100 + i % 10, "id": i, "caption": f" picture {i % 10}, said {i // 10}\n"} for i in range(50)
        ],
    }
    split = {
        "images": [
            {
                "filepath": "val2014",
                "filename": name,
                "split": "test" if i < 4 else "val",
                "sentences": [{"raw": f"picture {i}, said {j}"} for j in range(5)],
            }
            for i, name in enumerate(names)
        ]
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2014.json").write_text(json.dumps(captions))
    (tmp_path / "dataset_coco.json").write_text(json.dumps(split))
    return tmp_path


def test_prompts_are_drawn_by_the_seed_each_with_its_picture(coco: Path) -> None:
    all_of_them = prompts(coco, 50)
    assert len({p.caption for p in all_of_them}) == 50
    for image, caption in all_of_them:
        assert image.exists() and caption.startswith(f"picture {int(image.stem[-4:])}, said ")
    assert prompts(coco, 7) == all_of_them[:7] != prompts(coco, 7, seed=1)


def test_captions_may_lie_in_the_folder_itself(coco: Path) -> None:
    (coco / "annotations" / "captions_val2014.json").rename(coco / "captions_val2014.json")
    assert len(prompts(coco, 3)) == 3


def test_karpathy_split(coco: Path) -> None:
    found = karpathy(coco)
    assert [int(r.image.stem[-4:]) for r in found] == [0, 1, 2, 3]
    assert found[1].captions == tuple(f"picture 1, said {j}" for j in range(5))
    assert len(karpathy(coco, "val")) == 6


def test_what_is_missing_is_named(coco: Path) -> None:
    with pytest.raises(ValueError, match="50 captions: ask for 1 to 50"):
        prompts(coco, 51)
    with pytest.raises(ValueError, match="no part 'restval'; there are test, val"):
        karpathy(coco, "restval")
    (coco / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    for call in (lambda: prompts(coco, 50), lambda: karpathy(coco)):
        with pytest.raises(ValueError, match=r"COCO_val2014_000000000002.jpg, and 0 more .* val2014.zip"):
            call()
    (coco / "dataset_coco.json").write_text('{"images": [{}]}')
    with pytest.raises(ValueError, match=r"not Karpathy's split.*'split'"):
        karpathy(coco)
    (coco / "dataset_coco.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        karpathy(coco)
    (coco / "dataset_coco.json").unlink()
    with pytest.raises(ValueError, match=r'no dataset_coco.json in .*it holds \{"images"'):
        karpathy(coco)
    (coco / "annotations" / "captions_val2014.json").write_text("[]")
    with pytest.raises(ValueError, match="is not COCO's"):
        prompts(coco, 1)
    with pytest.raises(ValueError, match=r"no captions_val2014.json in .*annotations"):
        prompts(coco / "nowhere", 1)
