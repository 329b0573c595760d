"""What comes from anywhere: links, pipes, bombs, text that is none. Each item is left out, counted and named; nothing hangs,
nothing is read from outside, and nothing that was written is left out without a word."""

import gzip
import io
import json
import os
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from small import folder, png, write_idx
from transfusion.data.corpus import caption
from transfusion.data.document import Document, Media, MediaError, Text
from transfusion.data.loader import Loader, PackingConfig
from transfusion.data.media import ArrayFile, EncodedImage, Fit
from transfusion.data.sources.jsonl import MAX_LINE, read_jsonl
from transfusion.data.sources.parquet import read_parquet
from transfusion.data.sources.read import idx_arrays, read
from transfusion.data.tokenize import Coordinates
from transfusion.data.transforms import DocumentTransform
from transfusion.data.vocabulary import BPE, Bytes, Vocabulary
from transfusion.modality import Modality

FIT = Fit((8, 8), 3)


def one_left_out(path: Path, name: str) -> str:
    """The line for the one of 30 documents that cannot be read."""
    corpus = read(path, FIT)
    assert len(corpus) == 29 and len(corpus.unreadable) == 1 and name in corpus.unreadable[0]
    return corpus.unreadable[0]


# ---- links --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["caption", "image", "deep caption", "chain", "through a linked folder"])
def test_links_out_of_a_folder_are_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "secret.txt").write_text("root:x:0:0")
    png(tmp_path / "secret.png")
    path = folder(tmp_path / "data")
    kind = ".png" if what == "image" else ".txt"
    file, target = path / f"007{kind}", tmp_path / f"secret{kind}"
    if what == "deep caption":
        (path / "a" / "b").mkdir(parents=True)
        for name in ("007.png", "007.txt"):
            (path / name).rename(path / "a" / "b" / name)
        file = path / "a" / "b" / "007.txt"
    elif what == "chain":
        (path / "second.link").symlink_to(target)
        target = path / "second.link"
    elif what == "through a linked folder":
        (path / "linked").symlink_to(tmp_path)
        target = path / "linked" / "secret.txt"
    file.unlink()
    file.symlink_to(target)
    corpus = read(path, FIT)
    assert len(corpus) == 29 and not any("root" in d.text for d in corpus)
    assert any("007" in line and "outside" in line for line in corpus.unreadable)


def test_links_inside_a_folder_are_followed(tmp_path: Path) -> None:
    path = folder(tmp_path / "data")
    (path / "007.txt").unlink()
    (path / "007.txt").symlink_to("008.txt")
    assert read(path, FIT).documents[7].text == "caption 8"
    (tmp_path / "link").symlink_to(path)
    assert len(read(tmp_path / "link", FIT)) == 30


def test_a_linked_folder_is_named_and_not_followed(tmp_path: Path) -> None:
    path = folder(tmp_path / "data")
    folder(tmp_path / "other", 3)
    (path / "more").symlink_to(tmp_path / "other")
    (path / "self").symlink_to(path)
    corpus = read(path, FIT)
    assert len(corpus) == 30
    assert sorted(line.partition(":")[0] for line in corpus.notes) == ["more", "self"]


@pytest.mark.parametrize("form", ["image", "npy", "folder"])
def test_jsonl_follows_no_link_out(tmp_path: Path, form: str) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    png(tmp_path / "secret.png")
    np.save(tmp_path / "secret.npy", np.zeros((3, 8, 8), np.float32))
    name = {"image": "a.png", "npy": "a.npy", "folder": "out/secret.png"}[form]
    (inside / ("out" if form == "folder" else name)).symlink_to(
        tmp_path if form == "folder" else tmp_path / f"secret{Path(name).suffix}"
    )
    (inside / "captions.jsonl").write_text(json.dumps({"segments": [{"image": name}]}))
    with pytest.raises(ValueError, match="outside"):
        read(inside, FIT)


def test_found_files_of_other_formats_are_no_links_out_either(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [b""], "text": ["secret"]}), tmp_path / "secret.parquet")
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}')
    write_idx(tmp_path / "idx")
    for name, target in (("data/a.parquet", "secret.parquet"), ("captions.jsonl", "secret.jsonl")):
        home = tmp_path / f"with {Path(name).suffix}"
        (home / name).parent.mkdir(parents=True)
        (home / name).symlink_to(tmp_path / target)
        with pytest.raises(ValueError, match=r"is a link: it lies outside.*copy it there"):
            read(home, FIT)
    home = tmp_path / "linked idx"
    home.mkdir()
    for file in (tmp_path / "idx").iterdir():
        (home / file.name).symlink_to(file)
    with pytest.raises(ValueError, match="outside"):
        read(home, FIT)


def test_the_links_of_the_hubs_cache_are_its_own(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "datasets--a--b" / "snapshots" / "0f", tmp_path / "datasets--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text('{"text": "kept"}')
    (snapshot / "captions.jsonl").symlink_to("../../blobs/1")
    assert [d.text for d in read(snapshot, FIT)] == ["kept"]
    (snapshot / "captions.jsonl").unlink()
    (snapshot / "captions.jsonl").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="outside"):
        read(snapshot, FIT)


# ---- what is no file, and what does not end --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".txt"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "loop", "nowhere", "locked"])
def test_pipes_sockets_devices_folders_and_loops(
    tmp_path: Path, suffix: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder(tmp_path) / f"007{suffix}"
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(file.name)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "nowhere":
        file.symlink_to("gone")
    else:
        file.write_bytes(b"x")
        if os.geteuid() == 0:
            pytest.skip("root reads everything")
        file.chmod(0)
    if kind == "folder" and suffix == ".png":  # a folder may have any name
        assert len(read(tmp_path, FIT)) == 29
    else:
        one_left_out(tmp_path, "007")


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.parquet", "a"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=r"a pipe, a socket|no reader"):
            read(tmp_path / name, FIT)
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(MediaError, match="a pipe, a socket"):
        ArrayFile.open(tmp_path / "a.npy", "a")


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"\x80\x04K\x01."])
def test_arrays_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(MediaError, match=r"^item"):
        ArrayFile.open(tmp_path / "a.npy", "item")


def test_an_array_may_be_no_larger_than_its_file(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 1000000000, 1000000000), }\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(MediaError, match=r"^item"):
        ArrayFile.open(tmp_path / "a.npy", "item")


def test_a_line_that_is_too_long_is_left_out(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {i}"}).encode() for i in range(30)]
    lines[7] = b'{"text": "' + b"x" * (MAX_LINE + 10) + b'"}'
    lines[8] = json.dumps({"text": "word " * 300_000}).encode()
    lines += [json.dumps({"text": f"more {i}"}).encode() for i in range(30)]
    (tmp_path / "d.jsonl").write_bytes(b"\n".join(lines))
    corpus = read(tmp_path / "d.jsonl", FIT)
    assert len(corpus) == 58 and [line.partition(": ")[0] for line in corpus.unreadable] == ["d.jsonl:8", "d.jsonl:9"]
    assert "longer than 8,388,608 bytes" in corpus.unreadable[0] and "1,500,000 characters" in corpus.unreadable[1]


def test_a_tokenizer_learns_from_long_words_in_pieces() -> None:
    word = "".join(chr(97 + i) for i in np.random.default_rng(0).integers(0, 26, 200_000))
    tokenizer = BPE(300).build([word, "a cat", " " * 100_000])  # 0.5 s; whole, 20 s
    assert tokenizer.decode(tokenizer.encode("a cat").ids) == "a cat"
    short = [f"the {word[i : i + 9]}" for i in range(200)]
    assert BPE(300).build(short).to_str() == BPE(300).build(iter(short)).to_str()


def test_documents_that_fit_no_row_are_left_out_and_named() -> None:
    vocabulary = Vocabulary(Bytes().build([]), (Modality("image", 1, (4, 4), (2, 2)),))

    def loader(corpus: list[Document]) -> Loader:
        return Loader(
            corpus,
            transform=DocumentTransform(image_first=0.0),
            packing=PackingConfig(row_length=64, rows=1),
            vocabulary=vocabulary,
            coordinates=Coordinates(),
            seed=0,
        )

    corpus = [Document((Text(f"text {i}"),), name=f"d{i}") for i in range(58)]
    corpus.insert(7, Document((Text("x" * 100),), name="long"))
    corpus.insert(9, Document((Media(torch.zeros(1, 8, 8)),), name="large"))
    found = loader(corpus)
    assert len(found.corpus) == 58 and [line.split()[1].strip(",") for line in found.left_out] == ["long", "large"]
    (batch,) = next(found.batches())
    assert set(batch.names) <= {f"d{i}" for i in range(58)}
    with pytest.raises(ValueError, match="document long takes 102 tokens, a row has 64: raise"):
        loader(corpus[:15])


# ---- idx ----------------------------------------------------------------------------------------------------------------


def idx(path: Path, shape: tuple[int, ...], data: bytes, *, pack: bool = False) -> None:
    write_idx(path)
    content = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + data
    (path / "train-images-idx3-ubyte").unlink()
    name = "train-images-idx3-ubyte" + ".gz" * pack
    (path / name).write_bytes(gzip.compress(content) if pack else content)


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        ((5, 0, 28), b"", "0 x 28 pixels are empty"),
        ((5, 28, 0), b"", "28 x 0 pixels are empty"),
        ((10**9, 28, 28), b"", "bytes are too many"),
        ((1, 2**31, 2**31), b"", "bytes are too many"),
        ((5, 2, 2), b"\0" * 19, "fewer than the 20 bytes"),
        ((5, 2, 2), b"\0" * 10_000_000, "more than the 20 bytes"),
        ((4, 2, 2), b"\0" * 16, "4 images but 5 labels"),
    ],
)
@pytest.mark.parametrize("pack", [False, True])
def test_idx_sizes(tmp_path: Path, shape: tuple[int, ...], data: bytes, message: str, pack: bool) -> None:
    idx(tmp_path, shape, data, pack=pack)
    with pytest.raises(ValueError, match=message):
        idx_arrays(tmp_path)


@pytest.mark.parametrize("at", [1, 12, 30, -6])
def test_damaged_gzip_is_named(tmp_path: Path, at: int) -> None:
    write_idx(tmp_path, zipped=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    data = bytearray(file.read_bytes())
    data[at] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
        idx_arrays(tmp_path)


# ---- pictures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_says(kind: str, orientation: int) -> None:
    upright = np.full((16, 24), 40, np.uint8)
    upright[:8, :12], upright[:8, 12:], upright[8:, :12] = 240, 160, 100
    stored = {  # as a camera stores it
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored)).convert("RGB").save(data, kind, exif=exif.tobytes(), quality=95)
    values = EncodedImage(data.getvalue(), Fit((16, 24), 1)).load()
    assert ((values[0] + 1) * 127.5 - torch.from_numpy(upright).float()).abs().mean() < 4


def test_a_damaged_exif_says_nothing() -> None:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\x12")
    assert EncodedImage(data.getvalue(), FIT).load()[0].mean() > 0.9


def deep_png(pixels: np.ndarray, kind: int, extra: bytes = b"") -> bytes:
    """A PNG of 16 bits, uint16 [height, width, channels]; kind 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    clear = chunk(b"tRNS", extra) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + header + clear + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kind", "depth"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_keep_their_greys(kind: int, depth: int, channels: int) -> None:
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8, 1)
    pixels = ramp.repeat(depth, 2)
    if kind in (4, 6):
        pixels[..., -1] = 65535
    values = EncodedImage(deep_png(pixels, kind), Fit((8, 8), channels)).load()
    assert (values - torch.from_numpy(ramp[..., 0] / 32767.5 - 1)).abs().max() < 1.1 / 127.5


def test_transparency_of_sixteen_bits_is_white() -> None:
    ramp = np.full((8, 8, 1), 20_000, np.uint16)
    ramp[:4] = 3_000
    grey = EncodedImage(deep_png(ramp, 0, struct.pack(">H", 3_000)), Fit((8, 8), 1)).load()
    assert (grey[:, :4] == 1).all() and (grey[:, 4:] < 0).all()
    colour = EncodedImage(deep_png(ramp.repeat(3, 2), 2, struct.pack(">HHH", *[3_000] * 3)), FIT).load()
    assert (colour[:, :4] == 1).all() and (colour[:, 4:] < 0).all()
    half = np.stack([np.zeros((8, 8)), np.full((8, 8), 32768)], 2).astype(np.uint16)
    assert EncodedImage(deep_png(half, 4), FIT).load().abs().max() < 0.02  # black at half opacity, on white


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_shows_the_same(mode: str) -> None:
    grey = Image.new("RGB", (8, 8), (102, 102, 102) if mode != "1" else "white").convert(mode)
    data = io.BytesIO()
    grey.save(data, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")
    values = EncodedImage(data.getvalue(), FIT).load()
    assert (values - (1 if mode == "1" else -0.2)).abs().max() < 0.03


def test_pixels_in_floating_point_are_refused() -> None:
    with pytest.raises(ValueError, match="no known range: save the image with 8 or 16 bits"):
        FIT(Image.new("F", (8, 8)))


# ---- captions and records -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"\xe2\x80\x8b\xe2\x80\x8d",  # spaces and joiners of width zero
        b"\xef\xbb\xbf \n",  # a byte order mark
        "\u2800\u3164\u00ad\ufe0f".encode(),
        b"a\0 \0c\0",  # UTF-16 without a mark
        "\ufeffa cat".encode("utf-16"),
        b"\xed\xa0\x80",  # half a surrogate pair
        b"x" * 1_100_000,
        b"x" * 5_000_000,
    ],
)
def test_captions_that_are_none(tmp_path: Path, content: bytes) -> None:
    (folder(tmp_path) / "007.txt").write_bytes(content)
    one_left_out(tmp_path, "007")


def test_captions_lose_what_shows_nothing_at_their_ends(tmp_path: Path) -> None:
    (folder(tmp_path, 1) / "000.txt").write_bytes("\ufeff\u200b a cat\u200d and\u00a0a dog \u2060\r\n".encode())
    assert read(tmp_path, FIT).documents[0].text == "a cat\u200d and\u00a0a dog"
    with pytest.raises(MediaError, match="half a surrogate pair"):
        caption("a \udc80")


def test_hidden_folders_and_files_are_not_seen(tmp_path: Path) -> None:
    png(tmp_path / "red_cat" / "a.png")
    png(tmp_path / "red_cat" / ".ipynb_checkpoints" / "a.png")
    (tmp_path / "red_cat" / "._a.png").write_bytes(b"\0\5\x16\7")
    png(tmp_path / ".git" / "b.png")
    png(tmp_path / "_" / "c.png")
    for i in range(30):
        png(tmp_path / "dog" / f"{i}.png", i)
    corpus = read(tmp_path, FIT)
    assert len(corpus) == 31 and {d.text for d in corpus} == {"red cat", "dog"}
    assert corpus.unreadable == ["_/c.png: its caption is empty"]


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    folder(tmp_path)
    for name in ("007.png", "007.txt"):  # a file may have any name
        (tmp_path / name).rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff" + name.encode()))
    assert len(read(tmp_path, FIT)) == 30
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    odd.mkdir()
    png(odd / "a.png")
    corpus = read(tmp_path, FIT)
    assert len(corpus) == 30 and "half a surrogate pair" in corpus.unreadable[0]


GOOD = '{"image": "a.png", "text": "a cat"}'


@pytest.mark.parametrize(
    "line",
    [
        '{"segments": [{"text": "a cat", "image": "a.png"}]}',
        '{"segments": [{"image": "a.png", "text": "a cat"}]}',
        '{"segments": [{"image": "a.png", "sound": "b.npy"}]}',
        '{"segments": [{"image": "a.png", "loss": true}]}',
        '{"segments": [{"text": "a", "loss": "false"}]}',
        '{"segments": [{"text": "a", "loss": 0}]}',
        '{"segments": [{"text": "a", "loss": null}]}',
        '{"segments": [{"text": "a", "Loss": false}]}',
        '{"segments": [{"text": null}]}',
        '{"segments": [{"text": ["a"]}]}',
        '{"segments": [{}]}',
        '{"segments": {"text": "a"}}',
        '{"segments": [{"text": "a"}], "image": "a.png"}',
        '{"segments": null, "text": "a", "image": "a.png"}',
        '{"image": "a.png", "caption": "a cat"}',
        '{"image": "a.png", "text": "a", "loss": false}',
        '{"image": "a.png", "text": "a", "text": "b"}',
        '{"image": {"path": "a.png"}, "text": "a"}',
        '{"image": "a.png", "text": "\\u200b"}',
        '{"segments": [{"image": "a.png"}, {"text": " "}]}',
        '{"text": "\\ud800"}',
        '{"text": "a\\u0000b"}',
        '{"image": "a\\u0000.png"}',
        '{"image": "\\ud800.png"}',
        '{"image": ""}',
        '{"image": "."}',
        '{"image": "' + "a" * 5000 + '.png"}',
        '{"image": "a.npy"}',
        "[" * 100_000,
        '{"text": ' + "[" * 100_000,
        '{"segments": [' + "[" * 900 + "]" * 900 + "]}",
        '{"a":' * 900 + "1" + "}" * 900,
        "NaN",
        "1" * 5000,
        '"text"',
    ],
    ids=lambda line: line[:60],
)
def test_a_line_with_anything_else_is_left_out_and_named(tmp_path: Path, line: str) -> None:
    png(tmp_path / "a.png")
    (tmp_path / "d.jsonl").write_text("\n".join([GOOD] * 20 + [line] + [GOOD] * 9))
    corpus = read(tmp_path / "d.jsonl", FIT)
    assert len(corpus) == 29 and len(corpus.unreadable) == 1 and corpus.unreadable[0].startswith("d.jsonl:21: ")
    assert len(corpus.unreadable[0]) < 1000


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b", "text": 1}')
    corpus = read_jsonl(tmp_path / "d.jsonl", FIT)
    assert [d.text for d in corpus] == ["a"] and "'text' stands twice" in corpus.unreadable[0]


# ---- Parquet ------------------------------------------------------------------------------------------------------------


def table(path: Path, count: int = 4, *, metadata: bytes | None = None, **columns: object) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    png(path.parent / "a.png")
    made = pa.table({"image": pa.array([(path.parent / "a.png").read_bytes()] * count, pa.binary()), **columns})
    pq.write_table(made if metadata is None else made.replace_schema_metadata({b"huggingface": metadata}), path)
    return path


@pytest.mark.parametrize("empty", ["no rows", "no bytes"])
def test_an_empty_table_beside_others_is_said_and_costs_nothing(tmp_path: Path, empty: str) -> None:
    table(tmp_path / "train-0.parquet", text=list("abcd"))
    if empty == "no rows":
        import pyarrow as pa

        table(tmp_path / "train-1.parquet", 0, text=pa.array([], pa.string()))
    else:
        (tmp_path / "train-1.parquet").write_bytes(b"")
    said: list[str] = []
    corpus = read(tmp_path, FIT).report(said.append)
    assert len(corpus) == 4 and not corpus.unreadable and len(said) == 1 and "train-1.parquet" in said[0]
    (tmp_path / "train-0.parquet").unlink()
    with pytest.raises(ValueError, match=r"no documents can be read:\n  train-1\.parquet"):
        read(tmp_path, FIT)


@pytest.mark.parametrize(
    "metadata",
    [
        b"[]",
        b"1",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"info": []}',
        b'{"info": {"features": [1]}}',
        b'{"info": {"features": {"label": "cat"}}}',
        b'{"info": {"features": {"label": {"names": "cat"}}}}',
        b'{"info": {"features": {"label": {"names": [0, 1]}}}}',
        b'{"info": {"features": {"label": {"names": {"0": "cat"}}}}}',
    ],
)
def test_metadata_of_another_form_is_refused(tmp_path: Path, metadata: bytes) -> None:
    path = table(tmp_path / "a.parquet", label=[0, 1, 0, 1], metadata=metadata)
    with pytest.raises(ValueError, match=r"cannot read .*a\.parquet"):
        read_parquet([path], FIT)


def test_empty_names_of_classes(tmp_path: Path) -> None:
    names = json.dumps({"info": {"features": {"label": {"names": ["cat", "\u200b"]}}}}).encode()
    corpus = read_parquet([table(tmp_path / "a.parquet", label=[0, 1, 0, 1], metadata=names)], FIT)
    assert [d.text for d in corpus] == ["cat", "cat"] and "empty caption" in corpus.unreadable[0]


@pytest.mark.parametrize("damage", ["half", "garbage", "tail"])
def test_a_damaged_table_is_named(tmp_path: Path, damage: str) -> None:
    path = table(tmp_path / "a.parquet", text=list("abcd"))
    data = path.read_bytes()
    path.write_bytes(
        {"half": data[: len(data) // 2], "garbage": b"\x80" * 100, "tail": data[:-8] + b"\xff\xff\xff\x7fPAR1"}[damage]
    )
    with pytest.raises(ValueError, match=r"cannot read .*a\.parquet"):
        read_parquet([path], FIT)
