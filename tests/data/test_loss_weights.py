# pyright: reportArgumentType=false
"""Loss weights by token and by item, items that are only context or private, and noise set by the caller."""

import math

import pytest
import torch
import torch.nn.functional as F

from small import FREE, IMAGE, drawn, model, picture
from transfusion.api import Transfusion
from transfusion.data.batch import Batch
from transfusion.data.document import CLEAN, Document, Media, Text
from transfusion.nn.attention import AttentionMetadata


def targets(m: Transfusion, batch: Batch) -> torch.Tensor:
    """Cross-entropy of every target, in the order of `loss_index`."""
    with torch.no_grad():
        media = m.network.add_noise(batch)
        place = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
        h, _ = m.network.hidden(batch.tokens, batch.positions, media, metadata=place)
        return F.cross_entropy(m.network.head(h[batch.loss_index]), batch.targets.flatten()[batch.loss_index], reduction="none")


def test_weights_multiply_the_nats_of_their_tokens() -> None:
    """ids 5 6 7 with weights 2, 0 and 0.5: the one of weight 0 is no target; the image's BEGIN and EOS keep weight 1."""
    m = model(double=True)
    plain = m.batch([[Text((5, 6, 7)), Media(picture(1))]])
    weighted = m.batch([[Text((5, 6, 7), weight=(2.0, 0.0, 0.5)), Media(picture(1))]])
    assert plain.target_weights is None and weighted.target_weights is not None
    assert weighted.target_weights.tolist() == [2.0, 0.5, 1.0, 1.0]
    assert weighted.targets.flatten()[weighted.loss_index].tolist() == [5, 7, m.vocabulary.begin("image"), m.vocabulary.eos]
    text = m(weighted).text
    expected = (targets(m, plain)[[0, 2, 3, 4]] * torch.tensor([2.0, 0.5, 1.0, 1.0])).sum()
    assert text.count == 4 and (text.sum - expected).abs() < 1e-9


def test_one_number_weighs_a_whole_text() -> None:
    m = model(double=True)
    nats = targets(m, m.batch([["abc"]]))
    double = m(m.batch([[Text("abc", weight=2.0)]])).text
    assert double.count == 4 and (double.sum - 2 * nats[:3].sum() - nats[3]).abs() < 1e-9
    context, silent = (m.batch([[Text("ab", **off), "c"]]) for off in ({"weight": 0.0}, {"loss": False}))
    assert context.target_weights is None and torch.equal(context.targets, silent.targets)
    assert m.batch([[Text("ab", loss=False, weight=2.0), "c"]]).target_weights is None


def test_weighted_documents_are_packed_as_alone() -> None:
    m = model(double=True)
    one, other = [Text((1, 2, 3), weight=(0.5, 3.0, 1.0)), Media(picture(1))], ["plain text"]
    together = m(m.batch([one, other]))
    apart = [m(m.batch([one])), m(m.batch([other]))]
    assert together.text.count == sum(a.text.count for a in apart)
    assert (together.text.sum - sum(a.text.sum for a in apart)).abs() < 1e-9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Text((1, 2), weight=(1.0,)), "1 weights for 2 token ids"),
        (lambda: Text("ab", weight=(1.0, 2.0)), "need content of token ids"),
        (lambda: Text("ab", weight=-1.0), "0 .context only. or more, not -1"),
        (lambda: Text((1,), weight=(math.nan,)), "not nan"),
        (lambda: Text("ab", weight="a"), "not 'a'"),
        (lambda: Media(picture(1), weight=math.inf), "not inf"),
        (lambda: Media(picture(1), noise=torch.zeros(4, 4)), r"noise of shape \(4, 4\) must have"),
        (lambda: Media(None, noise=torch.zeros(4, 4)), "must have the shape of the item's values, None"),
        (lambda: Media(picture(1), noise=torch.full((1, 4, 4), math.nan)), "must be finite"),
        (lambda: Media(picture(1), noise=torch.zeros(1, 4, 4, dtype=torch.int64)), "must be finite floating-point"),
    ],
)
def test_weights_and_noise_that_cannot_be_are_refused(make, message: str, unchecked) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_item_of_weight_zero_is_clean_context() -> None:
    """It stands as in a prompt, is read, and takes no loss; with a time of its own it is noised, as it would be with a loss."""
    m = model(double=True)

    def losses(weight: float, times: tuple[float, float]):
        return m(m.batch([[Media(picture(1), weight=weight, times=times), "what it shows"]]))

    silent, clean = losses(0.0, (0.0, 1.0)), losses(1.0, CLEAN)
    assert silent.media.count == 0 and silent.media.sum == 0 and torch.equal(silent.text.sum, clean.text.sum)
    noised, loud = losses(0.0, (0.6, 0.6)), losses(1.0, (0.6, 0.6))
    assert noised.media.count == 0 and loud.media.count == 1 and torch.equal(noised.text.sum, loud.text.sum)
    assert (noised.text.sum - clean.text.sum).abs() > 1e-3


def test_nothing_outside_a_private_item_sees_it() -> None:
    m = model(double=True)

    def of(seed: int, private: bool) -> tuple[torch.Tensor, torch.Tensor]:
        document = Document((Text("a "), Media(picture(seed), private=private), Text("and b"), Media(picture(9))))
        losses = m(m.batch([document]))
        return losses.text.sum, losses.media.sum

    hidden, seen = [of(seed, True) for seed in (1, 2)], [of(seed, False) for seed in (1, 2)]
    assert torch.equal(hidden[0][0], hidden[1][0]) and (seen[0][0] - seen[1][0]).abs() > 1e-3
    assert (hidden[0][1] - hidden[1][1]).abs() > 1e-3  # the item itself takes its loss


def test_given_noise_and_time_are_what_the_item_gets() -> None:
    m = model(double=True)
    noise = picture(30)
    batch = m.batch([["a", Media(picture(1), times=(0.25, 0.25), noise=noise), Media(picture(2))]])
    (group,), (media,) = batch.media, m.network.add_noise(batch)
    eps = media.noise
    assert eps is not None
    assert group.noises is not None and group.noises[1] is None
    assert torch.equal(eps[0], noise) and media.times[0] == 0.25
    assert torch.allclose(media.latents[0], 0.75 * picture(1) + 0.25 * noise)
    plain = m.batch([["a", drawn(1), Media(picture(2))]])
    assert plain.media[0].noises is None
    (other,) = m.network.add_noise(plain)
    assert other.noise is not None and torch.equal(other.noise[1], eps[1])  # the other's is drawn by its key, as ever


def test_given_noise_belongs_to_the_noised_copy_and_to_its_grid() -> None:
    m = model(FREE, double=True)
    item = Media(picture(1, 1, 8, 2), times=(0.5, 0.5), noise=picture(3, 1, 8, 2), use="both")
    batch = m.batch([[Media(picture(2)), item, "x"]])
    noised = m.network.add_noise(batch)
    by_grid = {group.grid: (group, n) for group, n in zip(batch.media, noised, strict=True)}
    group, mixed = by_grid[(4, 1)]
    assert mixed.noise is not None and torch.equal(mixed.noise[0], picture(3, 1, 8, 2)) and mixed.times.tolist() == [0.5, 0.0]
    assert torch.equal(mixed.latents[1], group.values[1]) and by_grid[(2, 2)][0].noises is None


def test_weights_scale_items() -> None:
    m = model(IMAGE, double=True)
    one, three = (m(m.batch([[Media(picture(1), weight=w), Media(picture(2))]])).media for w in (1.0, 3.0))
    alone = m(m.batch([[Media(picture(1)), Media(picture(2), weight=0.0)]])).media
    assert three.count == one.count == 2 and alone.count == 1
    assert (three.sum - one.sum - 2 * alone.sum).abs() < 1e-6
