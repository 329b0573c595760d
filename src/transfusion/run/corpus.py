"""What a run is trained on, kept in its folder (`corpus.json`): a run that is resumed notices that its data changed."""

import json
from collections.abc import Sequence
from pathlib import Path

from transfusion.config import ConfigError
from transfusion.data.corpus import files_digest, learning_digest, media_digest, media_files, status_digest, text_digest
from transfusion.data.document import Document
from transfusion.files import read_json, write_text

CORPUS = "corpus.json"


def keep_corpus(folder: Path, corpus: Sequence[Document], *, instead: str) -> None:
    """Record in a run's folder which documents it is trained on; a resumed run must have the same.

    Args:
        instead: what else than giving the original data can be done, for the message.

    Raises:
        ConfigError: no documents, or other documents than the run began with: their number, texts, or media.
    """
    if not len(corpus):
        raise ConfigError("nothing to train on: the data holds no documents")
    files = media_files(corpus)
    now = {
        "documents": len(corpus),
        "digest": text_digest(corpus),
        "learning": learning_digest(corpus),
        "media": media_digest(corpus),
        "status": status_digest(files),
    }
    recorded, then, counted = folder / CORPUS, {}, 0
    if recorded.exists() and (folder / "checkpoints").exists():
        try:
            then = dict(read_json(recorded))
            counted = int(then["documents"])
        except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise ConfigError(f"cannot read {recorded} ({error}): restore it, or choose another --out") from error
    # files of another time or place may still hold the same: only then are all read again
    unchanged = "files" in then and then.get("status") == now["status"]
    now["files"] = then["files"] if unchanged else files_digest(files)
    compared = ("documents", "digest", "learning", "media", "files")
    differ = [name for name in compared if name in then and then[name] != now[name]]
    if differ:
        what = f"{counted:,} documents then, {len(corpus):,} now"
        said = {
            "documents": what,
            "digest": f"{what}, with other names or texts",
            "learning": "the same texts, with other uses, losses, weights or paraphrases",
        }
        what = said.get(differ[0], "the same texts, other media")
        raise ConfigError(f"the data has changed since {folder} began ({what}): resume with the original data, or {instead}")
    if then != now:
        write_text(recorded, json.dumps(now) + "\n")
