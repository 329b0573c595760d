"""A folder of images, each with a text file of its name or in a folder that names it -> captioned images."""

from pathlib import Path

from transfusion.data.corpus import Captions, Corpus, captioned, unchanged
from transfusion.data.document import Media, MediaError
from transfusion.data.media import Fit, Picture, check_picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def read_folder(path: Path, fit: Fit, captions: Captions = unchanged) -> Corpus:
    """The images below a folder. The caption is the text file of the same name, or else the name of the image's own folder."""
    corpus = Corpus()
    for file in sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES):
        name = str(file.relative_to(path))
        try:
            beside = file.with_suffix(".txt")
            if beside.exists():
                text = beside.read_text(encoding="utf-8").strip()
            elif file.parent != path:
                text = file.parent.name.replace("_", " ")
            else:
                raise MediaError(f"{name}: no caption; write one to {beside.name}, or put the image in a folder named for it")
            if not text:
                raise MediaError(f"{name}: its caption {beside.name} is empty")
            check_picture(file, name)
            corpus.documents.append(captioned(captions(text), Media(Picture(file, fit, name)), name))
        except UnicodeDecodeError:
            corpus.unreadable.append(f"{name}: its caption is not UTF-8")
        except MediaError as error:
            corpus.unreadable.append(str(error))
    return corpus
