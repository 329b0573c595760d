"""What a measurement says: a value, its interval, how many samples it stands on; and records of suites, kept as JSON."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Proportion:
    """A share of successes with its 95 % interval (Wilson 1927)."""

    successes: int
    count: int

    @property
    def value(self) -> float:
        """successes / count"""
        return self.successes / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval at 95 %."""
        z, n, p = 1.959964, self.count, self.value
        centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))

    def plain(self, name: str) -> dict[str, float | int | list[float]]:
        """For a report: the value, its interval and its count."""
        return {name: self.value, f"{name}_interval": list(self.interval), f"{name}_count": self.count}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f}  [{low:.3f}, {high:.3f}]  of {self.count}"


@dataclass(frozen=True)
class Metric:
    """One number of a record: its value, its 95 % interval where there is one, and how many samples it stands on."""

    value: float
    count: int
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, share: Proportion) -> "Metric":
        """Of a share."""
        return cls(share.value, share.count, *share.interval)

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" ({short(self.low)} to {short(self.high)})"
        return f"{short(self.value)}{interval}"


def short(value: float) -> str:
    """Three decimals, or four digits of what is larger than 10."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


@dataclass(frozen=True)
class Record:
    """What a suite found, with all that is needed to find it again.

    Args:
        suite: its name.
        metrics: by name.
        missing: metrics that were asked for, or are usual, and could not be measured; each with what to do about it.
        weights: digest of the model's weights.
        judges: digests of the classifiers and feature extractors that judged, by name.
        seed: names all chance.
        settings: sampler, guidance and precision.
        command: what was typed.
    """

    suite: str
    metrics: dict[str, Metric]
    missing: dict[str, str]
    weights: str
    judges: dict[str, str]
    seed: int
    settings: dict[str, Any]
    command: str = ""

    def save(self, folder: Path) -> Path:
        """Write `SUITE.json` into a folder, which is made if need be. Where another measurement stands there already, a digest
        of this one's command and weights is added to the name."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.suite}.json"
        if path.exists():
            kept = Record.load(path)
            if (kept.command, kept.weights) != (self.command, self.weights):
                name = hashlib.sha256(f"{self.command} {self.weights}".encode()).hexdigest()[:6]
                path = folder / f"{self.suite}-{name}.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Read one. Raises ValueError, naming the file, if it is no record."""
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**plain, "metrics": {name: Metric(**one) for name, one in plain["metrics"].items()}})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no record of an evaluation ({error})") from error
