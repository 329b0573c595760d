"""transfusion generate, from the command to the folder of documents and images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command import SHORT, command
from small import model, png


def test_own_pictures_from_training_to_answers(capfd) -> None:
    for i in range(24):
        png(Path(f"data/{i}.png"), i, size=(20, 16))
        Path(f"data/{i}.txt").write_text(f"picture number {i % 3}")
    small = "--model.modalities.0.shape 16 16 --model.modalities.0.patch 4 4"
    assert command(f"train pictures --data data --out run {SHORT} {small} --trainer.sample-every 3") == 0
    assert Path("run/samples/step-00000003.png").exists()
    lines = [
        {"segments": [{"text": "picture number 1"}]},
        {"segments": [{"image": "data/0.png"}]},
        {"segments": [{"text": "picture"}]},
    ]
    Path("prompts.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert command("generate run --prompts prompts.jsonl --out answers --max-tokens 5 --sampler.num-steps 2 --max-items 1") == 0
    answers = [json.loads(line)["segments"] for line in Path("answers/outputs.jsonl").read_text().splitlines()]
    assert [next(iter(a[0])) for a in answers] == ["text", "image", "text"]
    assert answers[0][0]["text"] == "picture number 1" and "image" in answers[0][1]
    with Image.open(Path("answers") / answers[0][1]["image"]) as drawn:
        assert np.asarray(drawn).shape == (16, 16, 3)
    assert command("generate run --prompt picture --count 3 --out more --sampler.kind ddim --sampler.num-steps 2") == 0
    assert len(Path("more/outputs.jsonl").read_text().splitlines()) == 3 and Path("more/grid.png").exists()
    first = Path("more/outputs.jsonl").read_bytes(), Path("more/00000-1.png").read_bytes()
    assert command("generate run --prompt picture --count 3 --out more --sampler.kind ddim --sampler.num-steps 2") == 0
    assert first == (Path("more/outputs.jsonl").read_bytes(), Path("more/00000-1.png").read_bytes())
    assert command("generate run --prompt= --out nothing --max-tokens 3 --sampler.num-steps 2") == 0
    capfd.readouterr()


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds no prompts"), ("nonsense", "not JSON"), ('{"segments": [{"image": "no.png"}]}', "no such file")],
)
def test_prompts_that_cannot_be_read_are_named(capfd, content: str, message: str) -> None:
    model().save_pretrained("m")
    Path("p.jsonl").write_text(content)
    assert command("generate m --prompts p.jsonl") == 1
    assert message in capfd.readouterr().err


def test_answers_that_were_there_stay_when_new_ones_fail(capfd) -> None:
    """Also where the prompts are the earlier answers themselves."""
    model(context_length=40).save_pretrained("m")
    assert command("generate m --prompt ab --out answers --max-tokens 1 --sampler.num-steps 1") == 0
    kept = Path("answers/outputs.jsonl").read_text()
    assert command(f"generate m --prompt {'too_long_' * 20} --out answers") == 1
    assert "context" in capfd.readouterr().err
    assert Path("answers/outputs.jsonl").read_text() == kept and not list(Path("answers").glob("*.tmp*"))
    assert command("generate m --prompts answers/outputs.jsonl --out answers --mode text --max-tokens 1") == 0
    assert len(Path("answers/outputs.jsonl").read_text().splitlines()) == 1
