"""The recipe on scenes, small: from its command to its report; nothing that is held out is trained on."""

import json
from pathlib import Path

import pytest
from PIL import Image
from test_recipes import SHORT, command

from transfusion.data.sources.scenes import KINDS, NOVEL, combined, is_held_out
from transfusion.recipes import scenes


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "COUNTS", dict.fromkeys(KINDS, 20))


def test_train_scenes_reports_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    command(f"train scenes {SHORT} --out run --report.images 22 --sampler.num-steps 2 --trainer.sample-every 2")
    report = json.loads(Path("run/report.json").read_text())
    for name in (*KINDS, *(f"{kind}_held_out" for kind in NOVEL)):
        low, high = report[f"{name}_interval"]
        assert 0 <= low <= report[name] <= high <= 1 and report[f"{name}_count"] == 2
    assert report["checker_true"] >= 0.95 and report["checker_changed"] >= 0.95
    assert {"text_loss", "media_loss", "seconds", "parameters", "seed"} <= report.keys()
    for file in ("run/samples.png", "run/samples/step-00000002.png"):
        with Image.open(file) as sheet:
            assert sheet.size[0] > 700
    assert "position held out" in capfd.readouterr().out


def test_documents_are_without_what_is_held_out() -> None:
    documents = scenes.documents()
    assert len(documents) == 120 == len({d.name for d in documents})
    for document in documents:
        picture = document.media[0].values
        assert isinstance(picture, scenes.LazyScene) and picture.load().shape == picture.shape
        assert document.text == picture.scene.captions[0]
        assert not [c for c in combined(picture.scene) if is_held_out(*c)]
