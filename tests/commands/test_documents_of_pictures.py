"""`train pictures` on documents that are not a caption and a picture: edits, stories, one picture alone. What it says of them is
true, and what it draws and proposes has a form that was learned."""

import json
import shlex
import warnings
from pathlib import Path

import pytest

from command import SHORT, command
from small import png
from transfusion.cli import main
from transfusion.data.document import Document
from transfusion.data.learned import beginning
from transfusion.data.media import Fit
from transfusion.data.sources.read import read
from transfusion.recipes.pictures import prompts

TINY = f"{SHORT} --model.modalities.0.shape 8 8 --model.modalities.0.patch 4 4 --report.images 4 --sampler.num-steps 2"


def write(*documents: list) -> None:
    """As `data/captions.jsonl`, with a picture for every number."""
    for i in range(12):
        png(Path(f"data/{i}.png"), seed=i, size=(8, 8))
    Path("data/captions.jsonl").write_text("\n".join(json.dumps({"segments": segments}) for segments in documents))


def edits(count: int) -> list[list]:
    def edit(i: int) -> list:
        source, target = ({"image": f"{n % 12}.png"} for n in (i, i + 1))
        return [source | {"use": "context"}, {"text": f"make it {i}", "loss": False}, target]

    return [edit(i) for i in range(count)]


def told(capfd) -> str:
    return " ".join("".join(capfd.readouterr()).split())


def follow(said: str) -> int:
    """Run the line that stands behind `next:`, where nothing may be warned of."""
    words = shlex.split(said.split("next: transfusion ")[1].split(" --out")[0])
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("error")
        main([*words, "--out", "images", "--device", "cpu", "--sampler.num-steps", "2"])
    return int(ended.value.code or 0)


def test_beginnings_end_before_what_is_drawn() -> None:
    png(Path("data/a.png"))
    lines = [
        [{"image": "0.png", "use": "context"}, {"text": "redder"}, {"image": "1.png"}],
        [{"text": "first"}, {"image": "0.png"}, {"text": "then"}, {"image": "1.png"}],
        [{"text": "first"}, {"image": "2.png"}],
        [{"image": "0.png"}, {"text": "behind it"}],
        [{"image": "0.png", "use": "read"}, {"text": "read"}],
    ]
    write(*lines)
    documents = list(read("data", Fit((8, 8))))
    begun = [beginning(document) for document in documents]
    assert [len(b.segments) if b else None for b in begun] == [2, 1, 1, 0, None]
    edit, story = prompts(documents)
    assert isinstance(edit, Document) and edit.text == "redder" and len(edit.media) == 1 and story == "first"
    assert prompts(documents[3:4]) == [""] * 20 and prompts(documents[4:]) == []


def test_edits_are_drawn_from_their_sources_and_measured(capfd) -> None:
    write(*edits(12))
    assert command(f"train pictures --data data --out run {TINY} --trainer.sample-every 2") == 0
    said = told(capfd)
    assert "data: 24 pictures in 12 documents" in said and "have no" not in said
    assert "--prompts run/prompts/outputs.jsonl" in said and "edits nearer to their target" in said
    report = json.loads(Path("run/report.json").read_text())
    assert 0 <= report["edit_nearer"] <= 1 and "edit_nearer" in report["measured_on_training_documents"]
    assert Path("run/samples.png").exists() and Path("run/samples/step-00000002.png").exists()
    assert follow(said) == 0
    drawn = [json.loads(line) for line in Path("images/outputs.jsonl").read_text().splitlines()]
    assert len(drawn) == 12 and all([*map(len, d["segments"])] and "image" in d["segments"][2] for d in drawn)


def test_stories_are_drawn_from_their_first_texts(capfd) -> None:
    write(*([{"text": f"first {i}"}, {"image": f"{i}.png"}, {"text": " then"}, {"image": f"{11 - i}.png"}] for i in range(12)))
    assert command(f"train pictures --data data --out run {TINY} --trainer.sample-every 0") == 0
    said = told(capfd)
    assert "drawings are not measured: that needs two documents or more of one picture each" in said and "then'" not in said
    assert {"text_loss", "media_loss", "captions"} <= json.loads(Path("run/report.json").read_text()).keys()
    assert Path("run/samples.png").exists() and follow(said) == 0


def test_one_picture_has_a_report(capfd) -> None:
    write([{"text": "a cat"}, {"image": "0.png"}])
    assert command(f"train pictures --data data --out run {TINY} --trainer.sample-every 0") == 0
    assert "drawings are not measured" in told(capfd)
    assert Path("run/report.json").exists() and Path("run/samples.png").exists()


@pytest.mark.parametrize("images", [4, 0])
def test_pictures_alone_are_said_to_be(images: int, capfd) -> None:
    for i in range(12):
        png(Path(f"data/{i}.png"), seed=i, size=(8, 8))
    line = f"train pictures --data data --out run {TINY} --trainer.sample-every 0"
    assert command(line.replace("--report.images 4", f"--report.images {images}")) == 0
    said = told(capfd)
    assert "no captions were learned" in said
    if images:
        assert json.loads(Path("run/report.json").read_text())["captions"] == 0
    else:
        assert "no report: --report.images is 0" in said
