"""Recipes of text: what is trained on and what is held out, the measure of running text, and bad data refused before training."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from command import SHORT, command
from small import model, vocabulary, write_idx
from transfusion.data.document import Document, Text
from transfusion.data.media import Fit
from transfusion.data.sources.illustrated import LEAST
from transfusion.data.sources.read import read, read_texts
from transfusion.data.sources.texts import pieces, read_plain, windows
from transfusion.data.tokenize import max_length
from transfusion.data.transforms import with_uses
from transfusion.evaluation import running_text
from transfusion.evaluation.suite import EvalContext
from transfusion.evaluation.text import text_nats
from transfusion.recipes import find, shakespeare
from transfusion.recipes.books_text import HELD_OUT_TITLES

LINES = "".join(f"{number}: to be, or not to be\n" for number in range(400))


def test_no_window_reaches_into_the_last_tenth(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text(LINES)
    trained, held_out = read_plain(tmp_path)
    assert trained + held_out == LINES and len(held_out) == len(LINES) // 10
    found = windows(trained, 100, 30)
    assert {len(d.text) for d in found} == {100} and all(d.text in trained for d in found)
    assert [d.text for d in found[:2]] == [trained[:100], trained[30:130]] and found[-1].text == trained[-100:]
    assert not any(held_out[:20] in d.text for d in found)


def test_each_token_is_measured_once_behind_the_text_before_it() -> None:
    network, ids = model(context_length=18), list(range(40))
    for given in (1, 8):
        pieces = running_text.windows(ids, 16, given)
        texts = [piece.segments[0] for piece in pieces]
        assert all(isinstance(t, Text) and isinstance(t.weight, tuple) and len(t.content) <= 16 for t in texts)
        measured = [token for t in texts for token, weight in zip(t.content, t.weight, strict=True) if weight]  # type: ignore[arg-type]
        assert measured == ids
        assert sum(count for _, count in text_nats(network, pieces, EvalContext(), add_eos=False)) == 40
    (whole,) = text_nats(network, [Document((Text(tuple(ids[:12])),))], EvalContext(), add_eos=False)
    first, second = text_nats(network, running_text.windows(ids[:12], 8, 4), EvalContext(), add_eos=False)
    (alone,) = text_nats(network, [Document((Text(tuple(ids[:8])),))], EvalContext(), add_eos=False)
    assert first == pytest.approx(alone, rel=1e-5) and whole[1] == first[1] + second[1]


def test_nats_are_those_of_tokens_characters_and_bytes() -> None:
    text = "to be é " * 20
    metrics = running_text.score(model(context_length=34), [text], EvalContext(samples=100), prompt="to").record.metrics
    nats = metrics["nats_per_token"].value * len(text.encode())
    assert metrics["nats_per_character"].value == pytest.approx(nats / len(text))
    assert metrics["bits_per_byte"].value == pytest.approx(nats / math.log(2) / len(text.encode()))
    assert metrics["nats_per_token"].count == len(running_text.windows(range(len(text.encode())), 32, 16))
    with pytest.raises(ValueError, match="no text"):
        running_text.score(model(), [""], EvalContext())


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    recipe = find("shakespeare")

    def refused(path: Path | str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            recipe.documents(replace(recipe.run(), data=str(path)), lambda line: None)

    refused("", "needs --data PATH")
    refused(tmp_path, "no text at .*input.txt")
    for name, content, message in (
        ("a.png", b"\x89PNG", "no plain text: give a .txt file"),
        ("empty.txt", b" \n", "is empty"),
        ("latin.txt", "é".encode("latin-1") * 2000, "is not UTF-8"),
        ("nul.txt", b"a\0" * 2000, "NUL"),
        ("short.txt", b"to be", "too few"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, message)


def write_tables(folder: Path, texts: dict[str, list[str | None]], **columns: list[str]) -> None:
    for split, cells in texts.items():
        pq.write_table(pa.table({"text": cells} | columns), folder / f"{split}.parquet")


def test_chapters_are_cut_and_held_out_titles_are_left_out(tmp_path: Path) -> None:
    text = "\n\n".join(f"{number} {LINES[: 40 * number]}" for number in range(1, 40))
    found = pieces(text, 300)
    assert "".join(found) == text and max(map(len, found)) <= 300 and min(map(len, found[:-1])) > 150
    assert pieces("a" * 700, 300) == ["a" * 300, "a" * 300, "a" * 100] and pieces("", 300) == []
    titles = [HELD_OUT_TITLES[0], "Dracula"]
    write_tables(tmp_path, {"train": [text, text], "validation": ["a", "b"]}, title=titles, chapter=["I", "II"])
    recipe = find("books_text")
    documents = recipe.documents(replace(recipe.run(), data=str(tmp_path)), lambda line: None)
    assert "".join(d.text for d in documents) == text and documents[0].name == "Dracula: II: 0"


def test_tables_without_text_are_refused(tmp_path: Path) -> None:
    recipe = find("books_text")

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            recipe.documents(replace(recipe.run(), data=str(tmp_path)), lambda line: None)

    refused("needs a table to train on and one to measure on")
    write_tables(tmp_path, {"train": [None, "a"], "validation": ["a", "b"]})
    refused("1 of 2 documents cannot be read")
    pq.write_table(pa.table({"image": [b"a"]}), tmp_path / "train.parquet")
    refused("needs a column text; it has")


def write_books(folder: Path) -> None:
    """Two books, one of them held out: chapters of a long text, a picture, a text and two pictures."""
    cells = []
    for number in range(4):
        file = io.BytesIO()
        Image.new("RGB", (20, 30), (60 * number, 0, 0)).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": f"{number}.png"})
    pq.write_table(pa.table({"image": cells, "text": ["a"] * 4}), folder / "pairs_train.parquet")
    parts = [LINES[:4000], 0, "a rabbit", 1, 2]
    segments = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": f"{p}.png"} for p in parts]
    titles = ("Flatland", HELD_OUT_TITLES[0])
    lines = [json.dumps({"title": t, "author": "", "chapter": "I", "segments": segments}) for t in titles]
    (folder / "docs.jsonl").write_text("\n".join(lines))


def test_chapters_are_cut_at_the_borders_of_segments_and_books_held_out_whole(tmp_path: Path) -> None:
    write_books(tmp_path)
    recipe = find("books")
    run = replace(recipe.run(), data=str(tmp_path))
    for documents, title in (
        (recipe.documents(run, lambda line: None), "Flatland"),
        (recipe.held_out_documents(run), HELD_OUT_TITLES[0]),
    ):
        assert all(d.name.startswith(title) for d in documents) and len(documents) > 1
        assert "".join(d.text for d in documents) == f"{LINES[:4000].strip()}\n\na rabbit\n\n"
        reds = [media.tensor()[0, 0, 0].item() for d in documents for media in d.media]
        assert reds == pytest.approx([-1, 60 / 127.5 - 1, 120 / 127.5 - 1])
        tokens = [max_length(with_uses(d), vocabulary(*run.model.modalities), {}) for d in documents]
        assert max(len(d.text) / LEAST + 130 * len(d.media) for d in documents) <= 1024 and max(tokens) > 700


def test_illustrated_books_of_another_form_are_refused(tmp_path: Path) -> None:
    recipe = find("books")

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            recipe.documents(replace(recipe.run(), data=str(tmp_path)), lambda line: None)

    refused("no illustrated books at")
    write_books(tmp_path)
    lines = (tmp_path / "docs.jsonl").read_text()
    for wrong, message in (
        (lines.replace("0.png", "9.png"), "an image of a table pairs.*9.png"),
        (lines.replace('"chapter"', '"part"'), "KeyError"),
        (lines.replace("Flatland", HELD_OUT_TITLES[0]), "needs chapters of"),
    ):
        (tmp_path / "docs.jsonl").write_text(wrong)
        refused(message)


@pytest.mark.slow
def test_books_begin_with_a_text_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_books(tmp_path)
    Path("texts").mkdir()
    write_tables(Path("texts"), {"train": [LINES], "validation": [LINES[:4000]]})
    assert command(f"train books_text --data texts --out text {SHORT} --report.images 0") == 0
    quick = "--report.images 6 --sampler.num-steps 2"
    assert command(f"train books --data . --init text --out run {SHORT} {quick}") == 0
    report = json.loads(Path("run/report.json").read_text())
    assert report["denoising"] > 0 and report["nats_per_token_behind_pictures"] > 0
    assert report["nats_per_token_of_init"] > 0 and report["nats_per_token"] != report["nats_per_token_of_init"]
    assert Path("run/drawn/outputs.jsonl").exists()


def test_text_and_pictures_are_documents_of_their_own(tmp_path: Path) -> None:
    write_idx(tmp_path, 20)
    (tmp_path / "input.txt").write_text(LINES)
    recipe = find("shakespeare_pictures")
    run = replace(recipe.run(), data=str(tmp_path))
    documents = recipe.documents(run, lambda line: None)
    texts = [d for d in documents if not d.media]
    assert len(documents) == len(texts) + 20 and len(recipe.held_out_documents(run)) == 20
    assert [d.text for d in texts] == [d.text for d in shakespeare.documents(run, lambda line: None)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shakespeare", "shakespeare_pictures", "books_text"])
def test_from_a_text_to_the_report(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    write_idx(Path("data"), 20)
    Path("data/input.txt").write_text(LINES)
    if name == "books_text":
        write_tables(Path("data"), {"train": [LINES], "validation": [LINES[:4000]]})
    quick = "--report.images 6 --sampler.num-steps 2"
    assert command(f"train {name} --data data --out run {SHORT} {quick}") == 0
    report = json.loads(Path("run/report.json").read_text())
    assert report["nats_per_character_count"] == 6 and 0.1 < report["nats_per_character"] <= report["nats_per_token"]
    prompt = "Once upon a time" if name == "books_text" else "ROMEO:"
    assert prompt in capfd.readouterr().out and len(Path("run/drawn/outputs.jsonl").read_text().splitlines()) >= 4
    assert Path("run/samples.png").exists() == (name == "shakespeare_pictures")
    assert command("evaluate run --suite task --samples 3 --sampler.num-steps 2") == 0
    assert command("generate run --prompt ROMEO: --out texts --max-tokens 5") == 0


def test_tables_of_another_shape_are_said_to_be(tmp_path: Path) -> None:
    texts = {"text": ["a word"] * 4}
    pq.write_table(pa.table(texts | {"audio": [b"sound"] * 4}), tmp_path / "spoken.parquet")
    assert read_texts(tmp_path / "spoken.parquet").notes == [
        "spoken.parquet: its texts alone are learned, not its column audio"
    ]
    pq.write_table(pa.table(texts), tmp_path / "texts.parquet")
    with pytest.raises(ValueError, match=r"needs a column image.*: transfusion train books_text learns texts"):
        read(tmp_path / "texts.parquet", Fit((8, 8)))
    pq.write_table(pa.table({"source_image": [b""], "target_image": [b""]}), tmp_path / "edits.parquet")
    with pytest.raises(ValueError, match="transfusion train emoji_edit learns edits"):
        read(tmp_path / "edits.parquet", Fit((8, 8)))
