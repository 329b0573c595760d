"""JSONL, a document a line, with media files beside it -> documents. `data.outputs` writes this form.

    {"segments": [{"text": "a cat"}, {"image": "a.png"}, {"text": "why?", "loss": false}, {"sound": "a.wav", "use": "read"}]}
    {"image": "a.png", "text": "a cat"}

An item's key is the name of its modality; what training makes of it is its `use`: draw, read, both or context (`Media.use`; by
default it can be drawn and read). An image is an image file, a sound a WAV file, and either, like any item, may be an array
Float[channels, *size] in a .npy file. Paths are relative to the JSONL file and may not leave its folder, neither by `..` nor by
a link. A line or a segment with anything else in it is refused: what is not understood is not left out silently.
"""

import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, get_args

from transfusion.data.corpus import Corpus, check_text, is_blank
from transfusion.data.document import Document, Media, Segment, Text, Use
from transfusion.data.media import ArrayFile, EncodedImage, Fit
from transfusion.data.sound import EncodedSound
from transfusion.files import inside, open_file, parse_json
from transfusion.modality import IMAGE

MAX_LINE = 8 * 2**20
"""Bytes of a line at most."""
FORM = (
    f'{{"text": "..."}}, {{"text": "...", "loss": false}}, {{"{IMAGE}": "a.png"}}, {{SOUND: "a.wav"}} or {{MODALITY: "a.npy"}} '
    '(an item may say its "use")'
)


def read_jsonl(path: Path, fit: Fit) -> Corpus:
    """The documents of a JSONL file; `fit` gives the form of their images and sounds. Raises OSError if it cannot be read."""
    corpus = Corpus()
    for name, line in read_lines(path):
        try:
            found = parse_line(line, path.parent, fit, name)
            if is_blank(found.text) and any(isinstance(segment, Text) for segment in found.segments):
                raise ValueError(f"{name}: its text is empty: leave it out, or write some")
            corpus.documents.append(found)
        except ValueError as error:
            corpus.unreadable.append(str(error))
    return corpus


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a JSONL file that are not empty, without a byte order mark, each with its name FILE:NUMBER. Of one that is
    too long only the beginning. Raises OSError as `open_file`."""
    with open_file(path) as file:
        for number, line in enumerate(_lines(file), 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield f"{path.name}:{number}", line


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE + 1):
        yield line
        while len(line) > MAX_LINE and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE + 1)


def parse_line(line: bytes, folder: Path, fit: Fit, name: str) -> Document:
    """One JSONL line as a document. Raises ValueError, naming the line, if it has another form."""
    try:
        if len(line) > MAX_LINE:
            raise ValueError(f"longer than {MAX_LINE:,} bytes: cut it into several documents")
        return Document(tuple(_segments(line.decode("utf-8"), folder, fit, name)), name=name)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: not JSON: {error}") from error
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error


def _segments(line: str, folder: Path, fit: Fit, name: str) -> list[Segment]:
    record = parse_json(line)
    if not isinstance(record, dict):
        raise ValueError(f"a line holds an object, not {type(record).__name__}")
    segments, kinds = record.get("segments"), ("text", IMAGE, *(sound.modality for sound in fit.sounds))
    if segments is None:
        segments = [{kind: record[kind]} for kind in kinds if kind in record]
    if not isinstance(segments, list) or not segments:
        raise ValueError('no segments; write {"segments": [{"text": "..."}, {"image": "a.png"}]}')
    if unknown := record.keys() - ({"segments"} if "segments" in record else {*kinds}):
        raise ValueError(
            f"a line holds segments, or {' and '.join(kinds)}, not {min(unknown)!r} too: leave it out, or make it a segment"
        )
    read = [_segment(segment, folder, fit, name) for segment in segments]
    check_text(Document(tuple(read)).text)  # together
    return read


def _segment(record: object, folder: Path, fit: Fit, name: str) -> Segment:
    fault = f"a segment is {FORM}, not {reprlib.repr(record)}"
    if not isinstance(record, dict):
        raise ValueError(fault)
    if "text" in record:
        text, loss = record["text"], record.get("loss", True)
        if not isinstance(text, str) or not isinstance(loss, bool) or record.keys() - {"text", "loss"}:
            raise ValueError(fault)
        return Text(text, loss=loss)
    use = record.get("use")
    modality, path = next(((key, value) for key, value in record.items() if key != "use"), ("", None))
    is_array, sound = isinstance(path, str) and path.endswith(".npy"), fit.sound(modality)
    if isinstance(path, str) and path.lower().endswith(".wav") and sound is None:
        raise ValueError(f"{path[:200]}: a sound, and the model has no modality {reprlib.repr(modality)} of sounds")
    is_read = is_array or modality == IMAGE or sound is not None
    if record.keys() - {"use", modality} or not isinstance(path, str) or not is_read:
        raise ValueError(fault)
    try:
        file = inside(folder / path, folder)
    except ValueError as error:
        raise ValueError(f"{path[:200]}: {error}") from error
    label = f"{name}: {path[:200]}"
    if "use" in record and use not in get_args(Use):
        raise ValueError(f"{path[:200]}: its use is draw, read, both or context, not {reprlib.repr(use)}")
    if is_array:
        return Media(ArrayFile.open(file, label), modality, use=use)
    item = EncodedImage(file, fit, label).checked() if sound is None else EncodedSound.open(file, sound, label)
    return Media(item, modality, use=use)
