"""Records in, Markdown tables out: `transfusion results FOLDER ... --out docs/results.md --readme README.md`.

The text of a document between `<!-- results -->` and `<!-- /results -->` is generated from records, never edited by hand.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transfusion.config import ConfigError
from transfusion.evaluation.estimate import Estimate, short
from transfusion.evaluation.record import Record
from transfusion.files import write_text

Runs = Mapping[str, Sequence[Record]]
"""Name of a run -> its records."""
OPEN, CLOSE = "<!-- results -->", "<!-- /results -->"
SUMMARY: dict[str, tuple[str, ...]] = {
    "agreement": ("draw:agreement", "speech:agreement"),
    "agreement, held-out paraphrases": ("draw-held-out-paraphrases:agreement",),
    "scenes wholly right": ("scenes:all",),
    "scenes, held-out combinations": ("scenes:all_held_out",),
    "caption preference": ("draw:caption_preference", "speech:caption_preference"),
    "reading accuracy": ("read:accuracy", "speech:reading_accuracy"),
    "Fréchet, classifier features": ("draw:frechet_classifier", "speech:frechet_classifier"),
    "Fréchet, pixels": ("draw:frechet_pixels",),
    "brightness": ("draw:brightness",),
    "patch frequency": ("draw:patch_frequency",),
    "patch borders": ("draw:patch_borders",),
    "nearest training image": ("draw:nearest_training", "speech:nearest_training"),
    "classifier accuracy": ("draw:classifier_accuracy", "speech:classifier_accuracy"),
}
"""Title of each column of the short table -> its SUITE:METRIC, the first that a run has."""


@dataclass(frozen=True)
class Results:
    """Files that get tables.

    Args:
        out: file for a table of each run.
        readme: file for the short table, between its marks.
    """

    out: str = "results.md"
    readme: str = ""

    def write(self, folders: Sequence[str | Path]) -> list[Path]:
        """Write the tables of all records below the folders. Returns the files.

        Raises:
            ConfigError: no records, or a readme without marks.
            ValueError: a file among the records is none.
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
            write_text(path, within(text, runs))
            written.append(path)
        written[0].parent.mkdir(parents=True, exist_ok=True)
        write_text(written[0], tables(runs))
        return written


def find(folders: Sequence[str | Path]) -> dict[str, list[Record]]:
    """Records below folders by their run: FOLDER/RUN/[records/]SUITE.json."""
    runs: dict[str, list[Record]] = {}
    seen: set[Path] = set()
    for folder in map(Path, folders):
        for path in sorted(folder.rglob("*.json")):
            if (path.parent.name != "records" and folder.name != "records") or path.resolve() in seen:
                continue
            seen.add(path.resolve())
            home = path.parent.parent if path.parent.name == "records" else path.parent
            inside = home.is_relative_to(folder) and home != folder
            name = home.relative_to(folder).as_posix() if inside else home.resolve().name
            runs.setdefault(name, []).append(Record.load(path))
    return runs


def within(text: str, runs: Runs) -> str:
    """The text with the short table between its marks."""
    return re.sub(f"{OPEN}.*?{CLOSE}", lambda _: f"{OPEN}\n{summary(runs)}\n{CLOSE}", text, flags=re.S)


def summary(runs: Runs) -> str:
    """The short table: a row for each run, a column for each metric that any has, and the digest of the classifier that judged.

    Raises:
        ConfigError: a run has records of two classifiers, whose numbers do not belong in one row.
    """
    rows: dict[str, dict[str, Estimate]] = {}
    judges: dict[str, str] = {}
    for name, records in runs.items():
        metrics = {f"{record.suite}:{metric}": estimate for record in records for metric, estimate in record.metrics.items()}
        columns = {title: [of for of in wanted if of in metrics] for title, wanted in SUMMARY.items()}
        rows[name] = {title: metrics[found[0]] for title, found in columns.items() if found}
        suites = {of.partition(":")[0] for wanted in SUMMARY.values() for of in wanted}
        found = sorted({r.classifiers["classifier"] for r in records if r.suite in suites and "classifier" in r.classifiers})
        if len(found) > 1:
            raise ConfigError(
                f"the records of {name} were judged by different classifiers ({', '.join(found)}), so their numbers cannot be "
                "compared: measure all with one (transfusion evaluate --classifier FOLDER), and remove those of the others"
            )
        judges[name] = f"`{found[0]}`" if found else ""
    titles = [title for title in SUMMARY if any(title in row for row in rows.values())]
    lines = [f"| run | {' | '.join(titles)} | classifier |", "|---" * (len(titles) + 2) + "|"]
    for name, row in rows.items():
        if not row:
            continue
        cells = [f"{row[t]} of {row[t].count:,}" if t in row else "" for t in titles]
        lines.append(f"| {' | '.join([name, *cells, judges[name]])} |")
    if len(set(judges.values()) - {""}) > 1:
        lines += ["", "Agreement, Fréchet distances and classifier accuracy compare only between rows of one classifier."]
    return "\n".join(lines)


def tables(runs: Runs) -> str:
    """A section for each run with all its records."""
    lines = ["# Results", "", "Written by `transfusion results` from the records beside it; intervals are 95 %.", ""]
    for name, records in runs.items():
        lines += [f"## {name}", ""]
        for record in records:
            classifiers = "".join(f", {kind} `{digest}`" for kind, digest in record.classifiers.items())
            settings = _settings(record.settings)
            lines += [
                f"### {record.suite}",
                "",
                f"`{record.command}`, seed {record.seed}, weights `{record.weights}`{classifiers}, {settings}",
                "",
                "| metric | value | 95 % interval | samples |",
                "|---|---|---|---|",
            ]
            for metric, estimate in record.metrics.items():
                interval = estimate.interval + (f" ({estimate.note})" if estimate.note else "")
                lines.append(f"| {metric} | {short(estimate.value)} | {interval} | {estimate.count:,} |")
            missing = record.missing_by_reason().items()
            lines += ["", *(f"Not measured: {names} ({reason}).  " for reason, names in missing), ""]
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _settings(settings: Mapping[str, object]) -> str:
    def text(value: object) -> str:
        if isinstance(value, Mapping):
            fields = ", ".join(f"{k} {text(v)}" for k, v in value.items() if k != "kind")
            return f"{value.get('kind', '')} ({fields})".strip()
        return f"{value:g}" if isinstance(value, float) else str(value)

    return ", ".join(text(value) if name != "guidance" else f"guidance {text(value)}" for name, value in settings.items())
