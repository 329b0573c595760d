"""Tables of records: `transfusion results FOLDER ... --out docs/results.md --readme README.md`.

What a document says of results comes from records and from nowhere else: a part of it between `<!-- results -->` and
`<!-- /results -->` is written anew, never by hand.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transfusion.config import ConfigError
from transfusion.evaluation.record import Metric, Record

Runs = Mapping[str, Sequence[Record]]
"""Name of a run -> its records."""
OPEN, CLOSE = "<!-- results -->", "<!-- /results -->"
SUMMARY = {
    "drawn as the caption says": ("draw", "agreement"),
    "new wordings": ("draw-new-wordings", "agreement"),
    "read right": ("read", "accuracy"),
    "Fréchet, judge's features": ("draw", "frechet_classifier"),
    "Fréchet, pixels": ("draw", "frechet_pixels"),
    "nearest training picture": ("draw", "nearest_training"),
    "judge on real pictures": ("draw", "judge"),
}
"""Columns of the short table: suite and metric of each."""


@dataclass(frozen=True)
class Results:
    """Where tables go.

    Args:
        out: file with a table for each run.
        readme: file whose part between the marks becomes the short table.
    """

    out: str = "results.md"
    readme: str = ""

    def write(self, folders: Sequence[str | Path]) -> list[Path]:
        """Write the tables of all records below some folders; the written files come back.

        Raises:
            ConfigError: there are no records, or the readme has no marks.
            ValueError: a file among them is no record.
        """
        runs = find(folders)
        if not runs:
            raise ConfigError(f"no records below {', '.join(map(str, folders))}: make some with transfusion evaluate")
        written = [Path(self.out)]
        if self.readme:
            path = Path(self.readme)
            text = path.read_text(encoding="utf-8")
            if OPEN not in text or CLOSE not in text:
                raise ConfigError(f"{path} has no lines {OPEN} and {CLOSE} to put the table between")
            path.write_text(within(text, runs), encoding="utf-8")
            written.append(path)
        written[0].parent.mkdir(parents=True, exist_ok=True)
        written[0].write_text(tables(runs), encoding="utf-8")
        return written


def find(folders: Sequence[str | Path]) -> dict[str, list[Record]]:
    """Records below folders, by the run that they belong to: FOLDER/RUN/[records/]SUITE.json."""
    found: dict[str, list[Record]] = {}
    read: set[Path] = set()
    for folder in map(Path, folders):
        for path in sorted(folder.rglob("*.json")):
            if (path.parent.name != "records" and folder.name != "records") or path.resolve() in read:
                continue
            read.add(path.resolve())
            home = path.parent.parent if path.parent.name == "records" else path.parent
            name = (
                home.relative_to(folder).as_posix() if home.is_relative_to(folder) and home != folder else home.resolve().name
            )
            found.setdefault(name, []).append(Record.load(path))
    return found


def within(text: str, runs: Runs) -> str:
    """A document with the short table between its marks."""
    return re.sub(f"{OPEN}.*?{CLOSE}", lambda _: f"{OPEN}\n{summary(runs)}\n{CLOSE}", text, flags=re.S)


def summary(runs: Runs) -> str:
    """The short table: a row for each run, a column for each metric that any has."""
    rows: dict[str, dict[str, Metric]] = {}
    for name, records in runs.items():
        by = {record.suite: record for record in records}
        rows[name] = {
            title: by[suite].metrics[metric]
            for title, (suite, metric) in SUMMARY.items()
            if suite in by and metric in by[suite].metrics
        }
    titles = [title for title in SUMMARY if any(title in row for row in rows.values())]
    lines = [f"| run | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[t]} of {row[t].count:,}" if t in row else "" for t in titles) + " |")
    return "\n".join(lines)


def tables(runs: Runs) -> str:
    """A section for each run, with all that its records say."""
    lines = ["# Results", "", "Written by `transfusion results` from the records beside it; intervals are 95 %.", ""]
    for name, records in runs.items():
        lines += [f"## {name}", ""]
        for record in records:
            judges = "".join(f", {what} `{digest}`" for what, digest in record.judges.items())
            lines += [
                f"### {record.suite}",
                "",
                f"`{record.command}`, seed {record.seed}, weights `{record.weights}`{judges}, {_settings(record.settings)}",
                "",
                "| metric | value | 95 % interval | of |",
                "|---|---|---|---|",
            ]
            for metric, one in record.metrics.items():
                value, _, interval = str(one).partition(" ")
                lines.append(f"| {metric} | {value} | {interval.strip('()')} | {one.count:,} |")
            reasons = dict.fromkeys(record.missing.values())
            said = ((", ".join(name for name, why in record.missing.items() if why == one), one) for one in reasons)
            lines += ["", *(f"Not measured: {names} ({reason}).  " for names, reason in said), ""]
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _settings(settings: Mapping[str, object]) -> str:
    def said(value: object) -> str:
        if isinstance(value, Mapping):
            inner = ", ".join(f"{k} {said(v)}" for k, v in value.items() if k != "kind")
            return f"{value.get('kind', '')} ({inner})".strip()
        return f"{value:g}" if isinstance(value, float) else str(value)

    return ", ".join(said(value) if name != "guidance" else f"guidance {said(value)}" for name, value in settings.items())
