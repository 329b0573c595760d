"""Packing and loading: nothing lost, nothing repeated, and every stream a pure function of seed and position."""

from collections import Counter
from itertools import islice, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from small import IMAGE, picture, vocabulary
from transfusion.data.batch import Batch, Position
from transfusion.data.document import Document, Media, MediaError, Text
from transfusion.data.loader import Loader, PackingConfig, TooManyUnreadable, prefetch
from transfusion.data.packing import fill, pack
from transfusion.data.tokenize import Coordinates, max_length, tokenize_document
from transfusion.data.transforms import ConditionDropout, DocumentTransform


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 64), max_size=200), st.integers(0, 100))
def test_packing_keeps_every_document_whole_and_once(lengths: list[int], key: int) -> None:
    rows = pack(lengths, 64, key)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    assert rows == pack(lengths, 64, key)


def test_packing_wastes_little() -> None:
    lengths = [int(x) for x in torch.randint(5, 60, (2000,), generator=torch.Generator().manual_seed(0))]
    rows = pack(lengths, 128, 0)
    assert sum(lengths) / (len(rows) * 128) > 0.97
    with pytest.raises(ValueError, match="takes 65 tokens"):
        pack([65], 64, 0)


def corpus(count: int = 37) -> list[Document]:
    return [Document((Text("x" * (i % 9 + 1)), Media(picture(i))), name=str(i)) for i in range(count)]


def loader(documents: list[Document] | None = None, **kw) -> Loader:
    kw = {"packing": PackingConfig(row_length=48, rows=2, window=16), "transform": DocumentTransform(0.3), "seed": 5} | kw
    return Loader(documents or corpus(), vocabulary=vocabulary(IMAGE), coordinates=Coordinates(), **kw)


def equal(a: Batch, b: Batch) -> bool:
    rows = ("tokens", "targets", "positions", "documents", "spans", "private")
    return (
        all(torch.equal(getattr(a, n), getattr(b, n)) for n in rows)
        and a.state == b.state
        and all(torch.equal(g.values, h.values) and torch.equal(g.keys, h.keys) for g, h in zip(a.media, b.media, strict=True))
    )


def test_an_epoch_has_every_document_once() -> None:
    """At every step, across windows and the end of the epoch too, where rows of both may share a step."""
    counts = Counter({document.name: 0 for document in corpus()})
    position = Position()
    for (batch,) in islice(loader().batches(), 40):
        counts.update(batch.names)
        position = batch.state
        assert max(counts.values()) - min(counts.values()) <= 1
    assert position.epoch >= 2 and min(counts.values()) >= position.epoch


def test_resuming_thrice_gives_the_same_stream() -> None:
    straight = [b for (b,) in islice(loader().batches(), 24)]
    resumed: list[Batch] = []
    position = Position()
    while len(resumed) < 24:  # every 7 steps a new loader, from the state alone: mid-window, mid-epoch and across epochs
        resumed += [b for (b,) in islice(loader().batches(position), 7)]
        position = resumed[-1].state
    assert straight[-1].state.epoch >= 2
    assert all(equal(a, b) for a, b in zip(straight, resumed, strict=False))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(1, 12), st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 40))
def test_a_row_is_filled_as_far_as_any_choice_allows(counts: dict[int, int], room: int) -> None:
    chosen = fill(counts, room)
    assert all(0 < n <= counts[length] for length, n in chosen.items())
    every = (
        sum(n * length for n, length in zip(one, counts, strict=True))
        for one in product(*(range(n + 1) for n in counts.values()))
    )
    assert sum(n * length for length, n in chosen.items()) == max(total for total in every if total <= room)


def test_ranks_and_parts_take_their_rows_of_one_plan() -> None:
    packing = PackingConfig(row_length=48, rows=4, window=16)
    whole = [b for (b,) in islice(loader(packing=packing).batches(), 6)]
    for world, parts in ((2, 1), (1, 2)):
        streams = [loader(packing=packing, rank=r, world=world, parts=parts) for r in range(world)]
        for step, batches in enumerate(islice(zip(*(s.batches() for s in streams), strict=True), 6)):
            pieces = [b for part in batches for b in part]
            assert torch.equal(torch.cat([b.tokens for b in pieces]), whole[step].tokens)
            assert [n for b in pieces for n in b.names] == list(whole[step].names)
            assert sorted(k for b in pieces for g in b.media for k in g.keys.tolist()) == sorted(
                whole[step].media[0].keys.tolist()
            )
    with pytest.raises(ValueError, match="multiple of processes"):
        loader(world=3)


def test_draws_depend_on_the_sample_and_not_on_its_row() -> None:
    """The same document gets the same noise key, order and paraphrase however it is packed."""

    def by_name(packing: PackingConfig) -> dict[str, tuple[int, ...]]:
        found = {}
        for (batch,) in islice(loader(packing=packing).batches(), 100):
            if batch.state.epoch > 0:
                break
            for name, key in zip(batch.names, batch.media[0].keys.tolist(), strict=True):
                found[name] = key
        return found

    one, other = by_name(PackingConfig(48, 2, 16)), by_name(PackingConfig(96, 1, 64))
    shared = one.keys() & other.keys()
    assert len(shared) > 25 and all(one[n] == other[n] for n in shared)


class Broken:
    shape = (1, 4, 4)

    def load(self) -> torch.Tensor:
        raise MediaError("pictures/7.png: truncated")


def test_an_image_that_fails_when_decoded_is_left_out_and_named() -> None:
    documents = [*corpus(99), Document((Text("bad"), Media(Broken())), name="bad")]
    found = [b for (b,) in islice(loader(documents, packing=PackingConfig(48, 8, 128)).batches(), 6)]
    assert "bad" not in [n for b in found for n in b.names]
    assert any("pictures/7.png" in line for b in found for line in b.unreadable)


def test_too_many_unreadable_stop_the_run() -> None:
    documents = [*corpus(20), *(Document((Text("bad"), Media(Broken()))) for _ in range(10))]
    with pytest.raises(TooManyUnreadable, match=r"pictures/7\.png"):
        list(islice(loader(documents).batches(), 50))


def test_the_share_holds_for_a_small_corpus_too_once_all_was_seen() -> None:
    documents = [*corpus(17), *(Document((Text("bad"), Media(Broken())), name=f"bad {i}") for i in range(3))]
    with pytest.raises(TooManyUnreadable, match="3 of 20"):
        list(islice(loader(documents).batches(), 50))
    passing = loader([*corpus(59), Document((Text("bad"), Media(Broken())), name="one of sixty")])
    lines = [line for (b,) in islice(passing.batches(), 30) for line in b.unreadable]
    assert lines == ["one of sixty: pictures/7.png: truncated"] and len(passing.failed) == 1  # reported once, not each epoch


def test_a_document_longer_than_a_row_is_named() -> None:
    """Before the first step, whatever paraphrase the first epochs draw."""
    long = Document((Text("x", paraphrases=("x" * 64,)),), name="long")
    with pytest.raises(ValueError, match="document long takes 66 tokens"):
        loader([*corpus(10), long])
    (line,) = loader([*corpus(500), long]).left_out
    assert line.startswith("document long takes 66 tokens")


def test_the_longest_paraphrase_gives_the_length() -> None:
    v = vocabulary(IMAGE)
    for one in corpus(12):
        assert max_length(one, v, {}) == len(tokenize_document(one, v, Coordinates()))
    assert max_length(Document((Text("ab", paraphrases=("a", "abcd")), Text((1, 2)))), v, {}) == 8


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Loader(
            [],
            transform=DocumentTransform(),
            packing=PackingConfig(),
            vocabulary=vocabulary(IMAGE),
            coordinates=Coordinates(),
            seed=0,
        )


def test_paraphrases_are_drawn_anew_each_epoch() -> None:
    transform = DocumentTransform(0.0, condition_dropout=ConditionDropout(0.0))
    one = Document((Text("a", paraphrases=("b", "c")), Media(picture(0))))
    drawn = Counter(transform(one, 0, epoch, 0).text for epoch in range(1500))
    assert set(drawn) == {"a", "b", "c"} and min(drawn.values()) > 450


@pytest.mark.parametrize("bad", [{"image_first": 1.5}, {"image_first_noise": -0.1}, {"dual": 2.0}])
def test_shares_out_of_range(bad: dict) -> None:
    with pytest.raises(ValueError):
        DocumentTransform(**bad)
    with pytest.raises(ValueError, match="condition dropout"):
        ConditionDropout(0.6, 0.3, 0.3)


def test_batches_ahead_are_the_same_and_errors_arrive() -> None:
    """What is made in a thread is what would have been made without; it is made one ahead, and its errors come through."""
    made = []

    def stream():
        for i in range(5):
            made.append(i)
            yield i
        raise MediaError("broken")

    coming = prefetch(stream())
    assert next(coming) == 0
    assert [next(coming) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(MediaError, match="broken"):
        next(coming)
    assert made == [0, 1, 2, 3, 4]
    straight = [b.names for (b,) in islice(loader().batches(), 6)]
    assert [b.names for (b,) in islice(prefetch(loader().batches()), 6)] == straight
