"""The record of a suite: its estimates and all that repeats them, kept as JSON."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transfusion.config import from_plain
from transfusion.evaluation.estimate import Estimate
from transfusion.files import read_json, write_text


@dataclass(frozen=True)
class Record:
    """The estimates of a suite, and how they were measured.

    Args:
        suite: its name.
        metrics: estimates by name.
        missing: metrics that could not be measured, each with what to do about it.
        weights: digest of the model's weights.
        classifiers: digests of the classifiers and feature extractors, by name.
        seed: random seed.
        settings: sampler (of models that denoise), guidance and precision.
        command: the command line.
    """

    suite: str
    metrics: dict[str, Estimate]
    missing: dict[str, str]
    weights: str
    classifiers: dict[str, str]
    seed: int
    settings: dict[str, Any]
    command: str = ""

    def save(self, folder: Path) -> Path:
        """Write `SUITE.json` into a folder, which is made if need be. Beside a record of another command or other weights, the
        name gets a digest of this one's."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.suite}.json"
        if path.exists():
            existing = Record.load(path)
            if (existing.command, existing.weights) != (self.command, self.weights):
                name = hashlib.sha256(f"{self.command} {self.weights}".encode()).hexdigest()[:6]
                path = folder / f"{self.suite}-{name}.json"
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Read a record. Raises ValueError, naming the file, if it is none."""
        try:
            plain = read_json(path)
            metrics = {name: from_plain(Estimate, fields, name) for name, fields in plain["metrics"].items()}
            record = cls(**{**plain, "metrics": metrics})
            words = (record.suite, record.weights, record.command, *record.missing.values(), *record.classifiers.values())
            if not all(isinstance(word, str) for word in words) or not isinstance(record.settings, dict):
                raise TypeError("suite, weights, command, missing and classifiers are text, settings are named")
            return record
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no record of an evaluation ({error})") from error

    def missing_by_reason(self) -> dict[str, str]:
        """Why metrics are missing -> the names of all that miss for this reason."""
        reasons = dict.fromkeys(self.missing.values())
        return {why: ", ".join(name for name, reason in self.missing.items() if reason == why) for why in reasons}
