"""Documents written to a folder are read back by the JSONL source."""

from pathlib import Path

import pytest
import torch

from small import IMAGE, SOUND, VECTOR, picture
from transfusion.data.document import Document, Media, MediaError, Text
from transfusion.data.media import Fit
from transfusion.data.outputs import write_documents
from transfusion.data.sources.jsonl import read_jsonl
from transfusion.data.sources.read import read


def documents() -> list[Document]:
    grey = torch.linspace(-1, 1, 16).view(1, 4, 4)
    return [
        Document((Text("a cat, “näh”"), Media(grey), Text("why?", loss=False), Media(grey.expand(3, 4, 4).contiguous()))),
        Document((Text((1, 2)), Media(picture(1, 3, 6), SOUND.name), Media(picture(2, 5), VECTOR.name))),
        Document((Media(picture(3, 8, 4, 4), use="context"),)),
    ]


def test_written_documents_are_read_back(tmp_path: Path) -> None:
    written = documents()
    assert write_documents(iter(written), tmp_path / "out") == written
    corpus = read(tmp_path / "out" / "outputs.jsonl", Fit((4, 4)))
    assert not corpus.unreadable and len(corpus) == 3
    for wrote, back in zip(written, corpus, strict=True):
        assert [type(s) for s in back.segments] == [type(s) for s in wrote.segments]
        assert [s.loss for s in back.segments if isinstance(s, Text)] == [s.loss for s in wrote.segments if isinstance(s, Text)]
        assert [(m.modality, m.use) for m in back.media] == [(m.modality, m.use) for m in wrote.media]
    assert corpus[0].text == "a cat, “näh”why?" and corpus[1].text == "1 2"
    assert (corpus[0].media[1].tensor() - written[0].media[1].tensor()).abs().max() < 1 / 127  # 8 bits
    for wrote, back in zip(written[1].media + written[2].media, corpus[1].media + corpus[2].media, strict=True):
        assert torch.equal(back.tensor(), wrote.tensor())


def test_grey_and_colour_follow_the_fit(tmp_path: Path) -> None:
    write_documents(documents()[:1], tmp_path)
    assert Fit.of((SOUND, IMAGE)) == Fit((4, 4), 1) and Fit.of((SOUND, VECTOR)) is None
    (one,) = read_jsonl(tmp_path / "outputs.jsonl", Fit((4, 4), 1))
    assert [m.tensor().shape for m in one.media] == [(1, 4, 4), (1, 4, 4)]


def test_a_failure_on_the_way_leaves_the_earlier_documents(tmp_path: Path) -> None:
    write_documents(documents(), tmp_path)
    before = (tmp_path / "outputs.jsonl").read_text()

    def failing():
        yield documents()[0]
        raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        write_documents(failing(), tmp_path)
    assert (tmp_path / "outputs.jsonl").read_text() == before and not list(tmp_path.glob("*.tmp*"))
    with pytest.raises(ValueError, match="still to be generated"):
        write_documents([Document((Media(None),))], tmp_path)
    with pytest.raises(OSError):
        write_documents([], tmp_path / "outputs.jsonl")


@pytest.mark.parametrize("content", [b"", b"no array", None])
def test_arrays_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.npy").write_bytes(content)
    (tmp_path / "d.jsonl").write_text('{"segments": [{"sound": "a.npy"}]}')
    corpus = read_jsonl(tmp_path / "d.jsonl", Fit((4, 4)))
    assert len(corpus) == 0 and corpus.unreadable[0].startswith("d.jsonl:1: a.npy")
    assert issubclass(MediaError, ValueError)
