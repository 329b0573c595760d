"""Sources of every format, and every accident with them: missing, empty, unreadable, too large, not UTF-8, outside."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from small import folder, png, write_idx
from transfusion.data.document import Media, MediaError, Text
from transfusion.data.media import EncodedImage, Fit, from_bytes, to_image
from transfusion.data.sources.parquet import read_parquet
from transfusion.data.sources.read import has_held_out, idx_arrays, read, read_idx

FIT = Fit((8, 8), 3)


def test_a_folder_of_images_with_captions(tmp_path: Path) -> None:
    corpus = read(folder(tmp_path, 3), FIT)
    assert [d.text for d in corpus.documents] == ["caption 0", "caption 1", "caption 2"]
    values = corpus.documents[0].media[0].tensor()
    assert values.shape == (3, 8, 8) and values.min() >= -1 and values.max() <= 1 and values.std() > 0.1


def test_folders_name_their_images(tmp_path: Path) -> None:
    png(tmp_path / "red_cat" / "a.png")
    png(tmp_path / "dog" / "b.jpg")
    assert {d.text for d in read(tmp_path, FIT).documents} == {"red cat", "dog"}


def test_jsonl_in_both_forms(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    lines = [
        {"segments": [{"text": "one"}, {"image": "a.png"}, {"text": "two", "loss": False}]},
        {"image": "a.png", "text": "plain"},
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    first, second = read(tmp_path, FIT).documents
    assert [type(s) for s in first.segments] == [Text, Media, Text] and not first.segments[2].loss  # type: ignore[union-attr]
    assert second.text == "plain" and len(second.media) == 1


def test_parquet_with_captions_and_with_labels(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    png(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    image = pa.array([{"bytes": data, "path": "a"}] * 2)
    pq.write_table(pa.table({"image": image, "text": ["x", "y"]}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"image": image, "text": ["v", "w"]}), tmp_path / "validation.parquet")
    assert [d.text for d in read(tmp_path, FIT).documents] == ["x", "y"]
    assert [d.text for d in read(tmp_path, FIT, train=False).documents] == ["v", "w"]
    names = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}}).encode()}
    labelled = pa.table({"image": image, "label": [1, 0]}).replace_schema_metadata(names)
    pq.write_table(labelled, tmp_path / "labelled.parquet")
    found = read_parquet([tmp_path / "labelled.parquet"], FIT, lambda name: (f"a {name}",)).documents
    assert [d.text for d in found] == ["a dog", "a cat"] and found[0].media[0].tensor().shape == (3, 8, 8)
    pq.write_table(pa.table({"image_of": image}), tmp_path / "odd.parquet")
    with pytest.raises(ValueError, match="needs a column image"):
        read_parquet([tmp_path / "odd.parquet"], FIT)


def test_parquet_cells_that_say_nothing_or_something_else(tmp_path: Path) -> None:
    """Counted and named, a row at a time; lists of captions are paraphrases; bytes are decoded; classes need a name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    png(tmp_path / "a.png", 1)
    data = (tmp_path / "a.png").read_bytes()

    def table(name: str, **columns: pa.Array) -> Path:
        count = len(next(iter(columns.values())))
        pq.write_table(pa.table({"image": pa.array([data] * count), **columns}), tmp_path / name)
        return tmp_path / name

    corpus = read_parquet([table("bytes.parquet", text=pa.array([b"a cat", b"\xff", None, b" "]))], FIT)
    assert [d.text for d in corpus.documents] == ["a cat"]
    assert ["not UTF-8" in corpus.unreadable[0], *("empty caption" in u for u in corpus.unreadable[1:])] == [True] * 3
    broken = pa.Array.from_buffers(pa.string(), 2, [None, *pa.array([b"ok", b"\xff"]).buffers()[1:]])
    corpus = read_parquet([table("text.parquet", text=broken)], FIT)
    assert [d.text for d in corpus.documents] == ["ok"] and corpus.unreadable == ["text.parquet:1: its caption is not UTF-8"]
    (one,) = read_parquet([table("list.parquet", caption=pa.array([["a cat", "a kitten"]]))], FIT).documents
    assert isinstance(one.segments[0], Text) and one.segments[0].paraphrases == ("a kitten",)
    assert read_parquet([table("plain.parquet", label=pa.array([0, 3]))], FIT).documents[0].text == "0"
    info = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
    labels = pa.table({"image": pa.array([data] * 4), "label": pa.array([1, -1, 2, None])})
    pq.write_table(labels.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "named.parquet")
    corpus = read_parquet([tmp_path / "named.parquet"], FIT)
    assert [d.text for d in corpus.documents] == ["dog"] and len(corpus.unreadable) == 3
    assert "label -1 has no name" in corpus.unreadable[0]


def test_hugging_faces_folder_and_its_parts(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    png(tmp_path / "a.png", 1)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for name, caption in (("train-00000-of-00001", "seen"), ("test-00000-of-00001", "held out"), ("latest", "seen too")):
        pq.write_table(pa.table({"image": [data], "text": [caption]}), tmp_path / "hub" / "data" / f"{name}.parquet")
    assert sorted(d.text for d in read(tmp_path / "hub", FIT)) == ["seen", "seen too"]
    assert [d.text for d in read(tmp_path / "hub", FIT, train=False)] == ["held out"]
    assert has_held_out(tmp_path / "hub") and not has_held_out(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    write_idx(tmp_path / "idx")
    assert has_held_out(tmp_path / "idx") and not has_held_out(folder(tmp_path / "images", 1))


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(tmp_path: Path, zipped: bool) -> None:
    write_idx(tmp_path, zipped=zipped)
    corpus = read(tmp_path, FIT, lambda label: (f"class {label}", f"a {label}"))
    assert len(corpus) == 5 and corpus.documents[3].text == "class 3"
    assert isinstance(corpus.documents[3].segments[0], Text) and corpus.documents[3].segments[0].paraphrases == ("a 3",)
    pixels, _ = idx_arrays(tmp_path, train=True)
    assert corpus.documents[0].media[0].tensor().shape == FIT.shape
    own = read_idx(tmp_path).documents[0].media[0]
    assert (np.asarray(to_image(own.tensor())) == pixels[0]).all()


@pytest.mark.parametrize("damage", ["missing", "short", "other format", "zip"])
def test_damaged_idx_files_are_named(tmp_path: Path, damage: str) -> None:
    write_idx(tmp_path, zipped=damage == "zip")
    file = tmp_path / ("train-images-idx3-ubyte" + ".gz" * (damage == "zip"))
    if damage == "missing":
        file.unlink()
    elif damage == "other format":
        file.write_bytes(b"\x00\x00\x09\x03" + file.read_bytes()[4:])
    else:
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
        read_idx(tmp_path)


# ---- accidents ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["nowhere", "empty", "file.txt"])
def test_nothing_to_read(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ValueError, match=path):
        read(tmp_path / path, FIT)


def damage(path: Path, kind: str) -> None:
    image, caption = path / "007.png", path / "007.txt"
    if kind == "not an image":
        image.write_bytes(b"this is text")
    elif kind == "empty file":
        image.write_bytes(b"")
    elif kind == "bomb":
        Image.new("1", (10_000, 10_000)).save(image)
    elif kind == "gif":
        Image.new("L", (4, 4)).save(image, format="GIF")
    elif kind == "no caption":
        caption.unlink()
    elif kind == "empty caption":
        caption.write_text("  \n")
    elif kind == "latin-1 caption":
        caption.write_bytes("ein schöner Tag".encode("latin-1"))


@pytest.mark.parametrize(
    "kind", ["not an image", "empty file", "bomb", "gif", "no caption", "empty caption", "latin-1 caption"]
)
def test_an_unreadable_document_is_left_out_counted_and_named(tmp_path: Path, kind: str) -> None:
    damage(folder(tmp_path), kind)
    corpus = read(tmp_path, FIT)
    assert len(corpus) == 29 and len(corpus.unreadable) == 1 and "007" in corpus.unreadable[0]


def test_above_five_percent_reading_stops(tmp_path: Path) -> None:
    folder(tmp_path)
    for i in (1, 2):
        (tmp_path / f"00{i}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="2 of 30 documents cannot be read"):
        read(tmp_path, FIT)


def test_a_truncated_image_is_found_when_it_is_decoded(tmp_path: Path) -> None:
    png(tmp_path / "a.png", size=(64, 64))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"a\.png"):
        EncodedImage(tmp_path / "a.png", FIT, "a.png").load()


@pytest.mark.parametrize("escape", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_a_line_may_not_leave_its_folder(tmp_path: Path, escape: str) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    png(tmp_path / "secret.png")
    (inside / "captions.jsonl").write_text(json.dumps({"segments": [{"image": escape}]}))
    with pytest.raises(ValueError, match="outside"):
        read(inside, FIT)


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[1]",
        '{"segments": []}',
        '{"segments": [{"video": "x"}]}',
        '{"segments": ["a"]}',
        "{}",
        b"\xff\xfe{}",
        '{"segments": [{"image": "a.png", "use": "show"}]}',
        '{"segments": [{"image": "a.png", "use": null}]}',
    ],
)
def test_lines_that_are_no_documents(tmp_path: Path, line: str | bytes) -> None:
    file = tmp_path / "d.jsonl"
    file.write_bytes(line if isinstance(line, bytes) else line.encode())
    with pytest.raises(ValueError, match=r"d\.jsonl:1"):
        read(file, FIT)


def test_fit_cuts_the_centre_and_lays_transparency_on_white() -> None:
    wide = Image.new("RGB", (40, 10), "red")
    wide.paste("blue", (15, 0, 25, 10))
    assert Fit((10, 10))(wide)[2].mean() > 0.9
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (FIT(clear) == 1).all()
    assert Fit((8, 8), 1)(wide).shape == (1, 8, 8)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        Fit((8, 8), 2)


def test_pixels_there_and_back() -> None:
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    assert (np.asarray(to_image(from_bytes(pixels))) == pixels).all()
    with pytest.raises(ValueError, match="an image is"):
        to_image(torch.zeros(2, 4, 4))


def test_texts_where_pictures_are_wanted_name_their_recipes(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("Once upon a time.")
    for path in (tmp_path / "input.txt", tmp_path):
        with pytest.raises(ValueError, match=r"input\.txt.*transfusion train shakespeare .*books_text"):
            read(path, FIT)
