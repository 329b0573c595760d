"""Records come back from their files, and tables come from records."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from transfusion.config import ConfigError
from transfusion.evaluation import results
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.record import Record

ROOT = Path(__file__).parent.parent.parent
RECORD = Record(
    suite="draw",
    metrics={
        "agreement": Estimate.proportion(19, 20),
        "frechet_pixels_real": Estimate(0.4, None, None, 1437),
        "clip_score": Estimate.mean([30.0] * 20, seed=0),
    },
    missing={"fid": "no weights", "kid": "no weights", "recall": "too few"},
    weights="0123456789ab",
    classifiers={"classifier": "ba9876543210"},
    seed=3,
    settings={"sampler": {"kind": "euler", "num_steps": 3}, "guidance": {"text": 2.0}, "dtype": "float32"},
    command="transfusion evaluate x",
)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    assert Record.load(RECORD.save(tmp_path)) == RECORD
    assert RECORD.missing_by_reason() == {"no weights": "fid, kid", "too few": "recall"}
    (tmp_path / "draw.json").write_text(json.dumps({"suite": "draw"}))
    with pytest.raises(ValueError, match=r"draw\.json is no record"):
        Record.load(tmp_path / "draw.json")


def test_tables_come_from_records(tmp_path: Path) -> None:
    RECORD.save(tmp_path / "one" / "records")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{results.OPEN}\nold\n{results.CLOSE}\nafter\n")
    results.Results(out=str(tmp_path / "results.md"), readme=str(readme)).write([tmp_path])
    assert "| one | " in readme.read_text() and "old" not in readme.read_text() and "after" in readme.read_text()
    text = (tmp_path / "results.md").read_text()
    assert RECORD.weights in text and "`transfusion evaluate x`" in text and "classifier `ba9876543210`" in text
    assert f"| agreement | {RECORD.metrics['agreement'].value:.3f} |" in text and "(all samples are equal)" in text
    assert "euler (num_steps 3), guidance (text 2), float32" in text and "Not measured: fid, kid (no weights)." in text
    with pytest.raises(ValueError, match="no records below"):
        results.Results().write([tmp_path / "two"])


def test_numbers_of_different_classifiers_are_kept_apart() -> None:
    """Runs of different classifiers are marked, records of one run refused."""
    other = replace(RECORD, classifiers={"classifier": "c" * 12})
    read = replace(RECORD, suite="read", classifiers={})
    table = results.summary({"one": [RECORD, read], "two": [other]})
    assert "| classifier |" in table and "| `ba9876543210` |" in table and f"| `{'c' * 12}` |" in table
    assert "only between rows of one classifier" in table
    assert "only between" not in results.summary({"one": [RECORD], "two": [RECORD], "three": [read]})
    with pytest.raises(ConfigError, match=r"records of one were judged by different classifiers \(ba9876543210, cccc"):
        results.summary({"one": [RECORD, replace(other, suite="draw-held-out-paraphrases")]})


def test_published_tables_are_those_of_the_records() -> None:
    """`make results` was run after the last change of a record."""
    runs = results.find([ROOT / "docs" / "records"])
    assert runs and (ROOT / "docs" / "results.md").read_text() == results.tables(runs)
    readme = (ROOT / "README.md").read_text()
    assert readme == results.within(readme, runs) and results.OPEN in readme


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": []},
        {"metrics": {"a": []}},
        {"metrics": {"a": {"value": [], "low": None, "high": None, "count": 1}}},
        {"metrics": {"a": {"value": 1.0, "low": "x", "high": None, "count": 1}}},
        {"metrics": {"a": {"value": 1.0, "low": None, "high": None, "count": [1]}}},
        {"missing": 1},
        {"missing": {"a": []}},
        {"classifiers": "x"},
        {"settings": []},
        {"suite": 1},
        {"weights": None},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_record_of_other_types_is_named(tmp_path: Path, change: dict) -> None:
    plain = {"suite": "draw", "metrics": {}, "missing": {}, "weights": "a", "classifiers": {}, "seed": 0, "settings": {}}
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "draw.json").write_text(json.dumps(plain | change))
    with pytest.raises(ValueError, match=r"draw\.json is no record of an evaluation"):
        results.Results(str(tmp_path / "out.md")).write([tmp_path])
