"""Batches of images: keyed cuts and mirrors, positions that resume, images that cannot be read, data without captions."""

from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from small import folder, png
from transfusion.data.images import ImagePosition, ImagesConfig, ImageStream, images, read_images, titles
from transfusion.data.loader import TooManyUnreadable
from transfusion.data.media import DecodedImage, EncodedImage, Fit
from transfusion.data.sources.read import read

FIT = Fit((8, 8), 3)


def squares(count: int, side: int = 12) -> list[DecodedImage]:
    return [DecodedImage(np.random.default_rng(i).integers(0, 255, (side, side, 3), np.uint8)) for i in range(count)]


def stream(count: int = 7, parts: int = 1, **words: object) -> ImageStream:
    config = ImagesConfig(**{"side": 8, "batch_size": 4, "crop": 1.5, **words})  # type: ignore[arg-type]
    return ImageStream(squares(count), [str(i) for i in range(count)], config, channels=3, seed=3, parts=parts)


def test_an_epoch_has_each_image_once() -> None:
    names = [name for (batch,) in islice(stream().batches(), 7) for name in batch.names]
    assert all(sorted(names[i : i + 7]) == [*"0123456"] for i in (0, 7, 14, 21)) and names[:7] != names[7:14]


def test_any_position_resumes_the_stream() -> None:
    steps = list(islice(stream().batches(), 6))
    for i, ((before,), (after,)) in enumerate(pairwise(steps)):
        (again,) = next(stream().batches(before.state))
        assert torch.equal(again.items, after.items) and again.keys == after.keys and again.state == after.state, i
    assert steps[0][0].state == ImagePosition(0, 4)


def test_parts_are_the_same_images() -> None:
    (whole,), halves = next(stream().batches()), next(stream(parts=2).batches())
    assert torch.equal(whole.items, torch.cat([half.items for half in halves]))
    assert {half.state for half in halves} == {whole.state}
    with pytest.raises(ValueError, match="must be a multiple"):
        stream(parts=3)


def test_windows_and_mirrors_are_drawn_by_image_and_epoch() -> None:
    """Each cut is a window of the fitted image or of its mirror, and both occur."""
    made, mirrored, places = stream(1, batch_size=40), 0, set()
    (batch,) = next(made.batches())
    whole = DecodedImage(made.images[0].pixels, Fit((12, 12), 3)).load()  # type: ignore[union-attr]
    windows = {(t, x): whole[:, t : t + 8, x : x + 8] for t in range(5) for x in range(5)}
    for item in batch.items:
        found = [
            (place, flip)
            for place, w in windows.items()
            for flip in (False, True)
            if torch.equal(w.flip(-1) if flip else w, item)
        ]
        assert len(found) == 1
        mirrored, places = mirrored + found[0][1], places | {found[0][0]}
    assert 8 < mirrored < 32 and len(places) > 12
    (plain,) = next(stream(1, crop=1.0, flip=False).batches())
    assert torch.equal(plain.items[0], plain.items[1])


def test_unreadable_images_are_left_out_and_told(tmp_path: Path) -> None:
    bad = EncodedImage(tmp_path / "none.png", FIT, "none.png")
    config = ImagesConfig(side=8, batch_size=50)
    made = ImageStream([*squares(49), bad], [str(i) for i in range(50)], config, channels=3, seed=0)
    first, second = (step[0] for step in islice(made.batches(), 2))
    assert len(first.items) == len(second.items) == 49 and len(first.keys) == 49
    assert first.unreadable == ("none.png: no such file",) and not second.unreadable and list(made.failed) == [49]
    with pytest.raises(TooManyUnreadable, match="2 of 2 images cannot be read"):
        next(ImageStream([bad, bad], ["a", "b"], config, channels=3, seed=0).batches())


def test_folders_without_captions(tmp_path: Path) -> None:
    for i in range(30):
        png(tmp_path / f"{i}.png")
    train, held_out, note = read_images(str(tmp_path), FIT)
    assert len(train) + len(held_out) == 30 and 0 < len(held_out) < 10 and not train.unreadable
    assert "has no held-out split" in note and {d.name for d in train}.isdisjoint(d.name for d in held_out)
    found, names = images(train)
    assert len(found) == len(names) == len(train) and found[0].load().shape == (3, 8, 8)


def test_tables_without_captions(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    png(tmp_path / "a.png")
    for name, count in (("train", 4), ("validation", 2)):
        rows = [{"bytes": (tmp_path / "a.png").read_bytes(), "path": None}] * count
        pq.write_table(pa.table({"image": rows}), tmp_path / f"{name}.parquet")
    train, held_out, note = read_images(str(tmp_path), FIT)
    assert (len(train), len(held_out), note) == (4, 2, "")
    assert titles(held_out) == ["row 0", "row 1"]
    for texts in (["a cat", "  "], [["a cat", "one cat"], []], [b"a cat", b"\xff"]):
        pq.write_table(pa.table({"image": rows, "caption": texts}), tmp_path / "validation.parquet")
        train, held_out, _ = read_images(str(tmp_path), FIT)
        assert titles(held_out) == ["a cat", "row 1"] and titles(train)[3] == "row 3", "texts that cannot be read are none"
    for metadata, found in ((b'{"info": 3}', ["row 0", "row 1"]), (b"{}", ["7", "8"])):
        table = pa.table({"image": rows, "label": [7, 8]}).replace_schema_metadata({b"huggingface": metadata})
        pq.write_table(table, tmp_path / "validation.parquet")
        assert titles(read_images(str(tmp_path), FIT)[1]) == found


def test_captions_are_titles_and_nothing_that_is_trained_on(tmp_path: Path) -> None:
    folder(tmp_path / "data", 30)
    (tmp_path / "data" / "001.txt").write_bytes(b"\xff")
    (tmp_path / "data" / "002.txt").unlink()
    (tmp_path / "data" / "lines.jsonl").write_text('{"image": "003.png"}\n{"text": "hm", "image": "004.png"}\n' * 20)
    train, held_out, _ = read_images(str(tmp_path / "data"), FIT)
    assert not any(document.text for document in train) and len(train) + len(held_out) == 30
    documents = {d.name: d for d in read(tmp_path / "data", FIT, captions=None)}
    assert titles([documents[f"00{i}.png"] for i in range(4)]) == ["caption 0", "001.png", "002.png", "caption 3"]
    lines = read(tmp_path / "data" / "lines.jsonl", FIT)
    assert titles(lines)[:2] == ["line 1", "hm"]
    train, held_out, _ = read_images(str(tmp_path / "data" / "lines.jsonl"), FIT)
    assert all(len(d.segments) == 1 for d in train) and set(titles(held_out)) > {"hm"}


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the path of a folder or file with --data"):
        read_images("", FIT)
    with pytest.raises(ValueError, match="no data at"):
        read_images(str(tmp_path / "none"), FIT)
    with pytest.raises(ValueError, match="has no images to hold out"):
        read_images(str(folder(tmp_path / "few", 1)), FIT)
    for words, message in (({"side": 0}, "side must be"), ({"crop": 0.5}, "crop is"), ({"batch_size": 0}, "batch-size")):
        with pytest.raises(ValueError, match=message):
            ImagesConfig(**words)  # type: ignore[arg-type]
