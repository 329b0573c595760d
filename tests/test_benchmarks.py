"""What is timed is the work that it is said to be, here very small."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import joining
import sizes
import uses
import work
from transfusion.data.transforms import with_uses
from transfusion.generate.state import Request


@pytest.mark.parametrize("workload", ["uniform", "ragged", "decode", "draw"])
def test_our_side_runs(workload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "EVALUATIONS", 2)
    job = work.ours(workload, 2, "64x1", "fp32", tokens=4)
    job.call()
    assert job.amount > 0 and job.flops > 0 and job.parameters > 64 * 64


def test_counts_of_the_documents() -> None:
    uniform, ragged = work.documents("uniform"), work.documents("ragged")
    assert work.num_tokens(uniform) == 8 * (32 + 256)
    assert work.attention_pairs(uniform) == 8 * (32 * 33 / 2 + 256 * 32 + 256 * 256)
    texts = [part.numel() for doc in ragged for part in doc if not part.is_floating_point()]
    assert len(ragged) == 16 and min(texts) == 16 and max(texts) == 512
    assert sum(len(doc) == 2 for doc in ragged) == 8 and {doc[1].shape[-1] for doc in ragged if len(doc) == 2} == {4, 8, 16}


def test_captions_of_sized_digits_say_their_sizes() -> None:
    found = sizes.documents()
    assert len(found) == 2 * 1437
    shapes = set()
    for one in found[:300]:
        high, wide = one.media[0].tensor().shape[1:]
        assert f"{wide} wide and {high} high" in one.text and (high, wide) == sizes.drawn_size(
            "train", *map(int, one.name[6:].split("."))
        )
        shapes.add((high, wide))
    assert len(shapes) == 16
    assert sizes.run("x", 1).model.modalities[0].slots((20, 8)) == (5, 2)


@pytest.mark.parametrize("work", ["text", "pictures"])
def test_joining_documents_are_the_same_work_as_fixed_ones(work: str) -> None:
    kinds = {
        kind: [next(coming) for _ in range(1000)]
        for kind in ("staggered", "mixed")
        for coming in [joining.requests(work, kind)]
    }

    def length(request: Request) -> int:
        return request.max_tokens if work == "text" else request.sampler.num_steps

    assert {length(r) for r in kinds["staggered"][64:]} == {joining.LENGTH[work]}
    first = [length(r) for r in kinds["staggered"][:64]]
    assert sorted(first) == first and max(first) == joining.LENGTH[work]
    mean = sum(map(length, kinds["mixed"])) / 1000
    assert abs(mean / joining.LENGTH[work] - 1) < 0.05


def test_documents_of_the_three_kinds() -> None:
    digits = uses.read_digits(held_out=True)
    for number in range(3):
        read, again = uses.document(digits, "read", number), uses.document(digits, "again", number)
        assert [type(s).__name__ for s in read.segments] == ["Media", "Text"] * 3
        assert [item.use for item in with_uses(read).media] == ["both"] * 3
        labels = {int(digits.labels[(digits.images == item.tensor()).flatten(1).all(1)][0]) for item in again.media}
        assert {uses.NAMES[label] for label in labels} == {again.name}
