"""Recipes that compose their data, actions and clips: what is held out, what real items are worth to their checkers, a run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from command import SHORT, command
from small import model
from transfusion.data.media import to_image
from transfusion.data.sources import actions, clips
from transfusion.data.sources.actions import COLOURS, POINTS, LazyPath
from transfusion.data.sources.clips import CLIP, DIRECTIONS, LazyClip
from transfusion.evaluation import actions as measure_actions
from transfusion.evaluation.clips import see, strip
from transfusion.evaluation.scenes import scene_classifier
from transfusion.evaluation.suite import EvalContext
from transfusion.recipes import find
from transfusion.run.recipe import SuiteTask


def test_a_mark_is_never_trained_on_where_it_is_held_out() -> None:
    trained = actions.documents(150, "train")
    assert len({d.name for d in trained}) == 150
    for held_out, documents in ((False, trained), (True, actions.documents(30, "score", 0, held_out=True))):
        for document in documents:
            lazy = document.media[-1].values
            assert isinstance(lazy, LazyPath)
            new = [c for c, place in lazy.task.marks.items() if actions.is_held_out(c, actions._cell(place))]
            assert new == ([lazy.task.named] if held_out else [])
            path = lazy.load()
            assert path.shape == lazy.shape == (2, POINTS) and lazy.task.reached(path) == lazy.task.named
            assert lazy.task.reached(path.flip(-1)) is None  # it begins on no mark
            assert lazy.task.named in document.text
    assert 0 < sum(actions.is_held_out(c, cell) for c in COLOURS for cell in range(36)) < 40


def test_paths_are_counted_by_where_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = actions.documents(6, "score", 0) + actions.documents(4, "score", 1, held_out=True)
    answers = []
    for i, document in enumerate(documents):
        *given, path = document.segments
        values = path.tensor().flip(-1) if i in (0, 9) else path.tensor()  # type: ignore[union-attr]
        answers.append(replace(document, segments=(*given, replace(path, values=values))))  # type: ignore[type-var]
    monkeypatch.setattr(measure_actions, "generate", lambda *a, **k: answers)
    result = measure_actions.score(model(), documents, EvalContext(samples=10))
    m = result.record.metrics
    assert m["right"].value == pytest.approx(5 / 6) and m["right_held_out"].value == 0.75
    assert m["starts"].value == 0.8 and m["bends"].value > 0
    assert result.verdicts[0] == result.verdicts[9] == "wrong" and result.verdicts[1] == "right"
    picture = result.shown[1][0]
    assert picture.shape == (3, 72, 72) and picture.max() == 1 and picture.min() == -1
    with pytest.raises(ValueError, match="an instruction, a picture and a path"):
        measure_actions.score(model(), clips.held_out_documents(2, 0), EvalContext(samples=2))


def test_the_checker_sees_digit_and_direction_of_clips() -> None:
    pairs = [c for c in clips.PAIRS if clips.is_held_out(*c)]
    assert pairs and {d.media[0].values.direction for d in clips.trained_documents(80)} == set(DIRECTIONS)  # type: ignore
    for document in clips.trained_documents(60):
        clip = document.media[0].values
        assert isinstance(clip, LazyClip) and (clip.digit, clip.direction) not in pairs
        assert clip.load().shape == clip.shape and document.media[0].modality == CLIP
    documents = clips.held_out_documents(80, 0)
    wanted = [(d.media[0].values.digit, d.media[0].values.direction) for d in documents]  # type: ignore[union-attr]
    shown = torch.stack([d.media[0].tensor() for d in documents])
    seen = see(shown, scene_classifier())
    assert sum(a == b for a, b in zip(seen, wanted, strict=True)) >= 76
    back = see(shown.flip(2), scene_classifier())
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    assert all(direction == opposite[asked] for (_, direction), (_, asked) in zip(back, wanted, strict=True))
    assert [direction for _, direction in see(shown[:, :, :1].expand(-1, -1, 4, -1, -1), scene_classifier())] == [None] * 80
    assert strip(shown[0]).shape == (1, 34, 34)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["actions", "clips"])
def test_from_nothing_to_the_record(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"transfusion.recipes.{name}.TRAINED", 60)
    assert isinstance(find(name).task, SuiteTask)
    assert command(f"train {name} --out run {SHORT} --report.images 12 --sampler.num-steps 2") == 0
    report = json.loads(Path("run/report.json").read_text())
    assert 0 <= report["right"] <= 1 and Path("run/samples.png").exists()
    assert len(Path("run/drawn/outputs.jsonl").read_text().splitlines()) == 12
    assert command("evaluate run --suite task --samples 8 --device cpu --sampler.num-steps 2") == 0
    (path,) = set(Path("run/records").glob(f"{name}*.json")) - {Path(f"run/records/{name}.json")}
    record = json.loads(path.read_text())
    assert sum(record["metrics"][n]["count"] for n in ("right", "right_held_out")) == 8
    Path("run/run.yaml").unlink()
    capfd.readouterr()
    assert command("evaluate run --suite task --device cpu") == 1
    assert "no measure of its own" in capfd.readouterr().out


def test_actions_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    lines = []
    for i, document in enumerate(actions.documents(12, "own")):
        image, path = document.media
        to_image(image.tensor()).save(f"own/{i}.png")
        np.save(f"own/{i}.npy", path.tensor().numpy())
        given = {"image": f"{i}.png", "use": "context"}
        lines.append(json.dumps({"segments": [{"text": document.text, "loss": False}, given, {"path": f"{i}.npy"}]}))
    Path("own/captions.jsonl").write_text("\n".join(lines))
    assert command(f"train actions --data own --out run {SHORT} --report.images 8 --sampler.num-steps 2") == 0
    report = json.loads(Path("run/report.json").read_text())
    assert report["path_error"] > 0 and report["end_error_count"] == 8
    # other data than the run's is measured where it is given, and refused where the recipe has its own
    assert command("evaluate run --suite task --data nowhere --device cpu") == 1
    assert "nowhere" in capfd.readouterr().out
    Path("pictures").mkdir()
    Path("pictures/a.txt").write_text("a")
    to_image(torch.zeros(3, 24, 24)).save("pictures/a.png")
    capfd.readouterr()
    assert command(f"train actions --data pictures --out no {SHORT}") == 2
    assert "holds no item 'path'" in capfd.readouterr().err and not Path("no/checkpoints").exists()
