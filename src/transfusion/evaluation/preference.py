"""Are captions used? Pictures with their own captions and with others in; how often the own one denoises better out.

caption_preference          share of pictures whose own caption gives a lower denoising error than another picture's
caption_gap                 how much higher the error is under the other captions: mean(other) / mean(own) - 1
caption_preference_swapped  of scenes: the same against the own caption with its two things exchanged ("a three left of a seven"
                            for "a seven left of a three"); only captions that say where things stand, or in what colours

Each picture is noised once, at t = 0.8 (`TIMES`; 1 is noise), and denoised behind both captions, without guidance: the same
picture, the same noise, the same time. Its error is the training loss of an item, w(t) * mean squared error, with several times
their mean. An item of a discrete modality is not noised: its error is the cross-entropy of its codes, and what is measured says
so. The other caption has the same wording where there are several, and is no wording of the own one; for a scene it is that of
a scene of the same kind. An error tied counts half, so a model that ignores captions has 0.5: chance.

The loss alone does not show this: a network can lower it by removing noise better while its pictures follow the noise alone.
Measuring 200 pictures is one forward pass over 400 short documents: 0.6 seconds of one core on the quickstart's model, as
long as two of its training steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from transfusion import rng
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, MediaError, Text
from transfusion.data.sources.scenes import LazyScene, swap
from transfusion.data.tokenize import TokenSequence, tokenize_document
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.suite import caption
from transfusion.model.denoising import denoising_errors
from transfusion.nn.attention import AttentionMetadata
from transfusion.nn.ema import eval_mode

TIMES = (0.8,)
"""Times at which pictures are noised: little of a picture is left to see, so that its caption has something to tell."""
PICTURES = 200
"""Pictures that are measured, by default."""
CHANCE = 0.5
ENOUGH, WIDE = 30, 0.4
"""Pictures from which on a preference near chance tells that captions are not used, and the width of an interval from which on
it does not."""
MAX_TOKENS = 8192
"""Tokens of a forward pass, unless a pair has more."""


@dataclass(frozen=True, eq=False)
class CaptionPair:
    """A picture, its own caption and another."""

    picture: Media
    own: str
    other: str


def caption_preference(
    model: Transfusion,
    documents: Sequence[Document],
    *,
    samples: int = PICTURES,
    times: Sequence[float] = TIMES,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Estimate]:
    """`caption_preference` and `caption_gap` of a model on captioned pictures; with scenes among them also
    `caption_preference_swapped`.

    Args:
        documents: those of one picture (or item of another modality) and a caption count, in either order.
        samples: pictures to measure on, a random subset.
        times: where pictures are noised, each in (0, 1].

    Raises:
        ValueError: no two pictures with captions of different content, or errors that are not finite.
    """
    pairs = other_captions(documents, samples=samples, seed=seed)
    errors = caption_errors(model, pairs, times=times, seed=seed, dtype=dtype)
    note = error_measured(model, pairs, times=times)
    metrics = {"caption_preference": preference(errors, note), "caption_gap": _gap(errors, note, seed)}
    if swapped := swapped_captions(documents, samples=samples, seed=seed):
        errors = caption_errors(model, swapped, times=times, seed=seed, dtype=dtype)
        metrics["caption_preference_swapped"] = preference(errors, error_measured(model, swapped, times=times))
    return metrics


def other_captions(documents: Sequence[Document], *, samples: int = PICTURES, seed: int = 0) -> list[CaptionPair]:
    """Pairs of a caption and another picture's, drawn by the seed.

    Raises:
        ValueError: no two pictures with captions of different content.
    """
    chosen = _chosen(documents, samples, seed)
    wordings = [_wordings(document) for document in chosen]
    pairs = []
    for i, document in enumerate(chosen):
        for offset in range(1, len(chosen)):
            j = (i + offset) % len(chosen)
            if wordings[i].isdisjoint(wordings[j]) and _kind(document) == _kind(chosen[j]):
                pairs.append(CaptionPair(document.media[0], caption(document, i), caption(chosen[j], i)))
                break
    if not pairs:
        raise ValueError("caption preference needs two documents of one picture and a caption each, with different captions")
    return pairs


def swapped_captions(documents: Sequence[Document], *, samples: int = PICTURES, seed: int = 0) -> list[CaptionPair]:
    """Pairs of a scene's caption and the same with its two things exchanged; none where no caption states which thing is where,
    or in which colour."""
    pairs = []
    for document in _chosen(documents, samples, seed):
        values = document.media[0].values
        changed = swap(values.scene) if isinstance(values, LazyScene) else None
        if isinstance(values, LazyScene) and changed is not None and document.text in values.scene.captions:
            wording = values.scene.captions.index(document.text)
            pairs.append(CaptionPair(document.media[0], document.text, changed.captions[wording]))
    return pairs


@torch.no_grad()
def caption_errors(
    model: Transfusion,
    pairs: Sequence[CaptionPair],
    *,
    times: Sequence[float] = TIMES,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Float[np.ndarray, "pair 2"]:
    """The errors of each pair's picture behind its own caption and behind the other. Pictures that cannot be read,
    and pairs that do not fit the context, are left out.

    Raises:
        ValueError: no pair is left, or errors are not finite: the weights are.
    """
    errors: list[np.ndarray] = []
    group: list[TokenSequence] = []
    with eval_mode(model):
        for i, pair in enumerate(pairs):
            group += _sequences(model, pair, times, rng.key(seed, "preference", i))
            if group and (sum(map(len, group)) >= MAX_TOKENS or i + 1 == len(pairs)):
                errors.append(_batch_errors(model, group, dtype).reshape(-1, 2, len(times)).mean(-1))
                group = []
    if not errors:
        kinds = " or ".join(dict.fromkeys(pair.picture.modality for pair in pairs)) or "item"
        raise ValueError(f"caption preference: no {kinds} can be read and fits the model's context with its caption")
    result = np.concatenate(errors)
    if not np.isfinite(result).all():
        raise ValueError("caption preference: the errors are not finite; the weights have NaN or infinity")
    return result


def error_measured(model: Transfusion, pairs: Sequence[CaptionPair], *, times: Sequence[float] = TIMES) -> str:
    """Which error `caption_errors` measures, as the note of an estimate: at which times, or of codes."""
    discrete = {modality.name for modality in model.config.model.modalities if modality.codes}
    kinds = {pair.picture.modality in discrete for pair in pairs}
    notes = {False: f"at t = {', '.join(f'{t:g}' for t in times)}", True: "by the cross-entropy of codes"}
    return ", ".join(notes[kind] for kind in sorted(kinds))


def preference(errors: Float[np.ndarray, "pair 2"], note: str) -> Estimate:
    """The share of pairs whose first error is lower; ties count half. Wilson's interval.

    Args:
        note: see `error_measured`.
    """
    own, other = errors.T
    wins = float((own < other).sum()) + 0.5 * float((own == other).sum())
    return replace(Estimate.proportion(wins, len(errors)), note=note)


def advice(measured: Estimate, trained: Estimate | None = None, items: str = "pictures") -> str:
    """What a caption preference that cannot be told from chance means, and what to do; empty for any other. Of too few items it
    means nothing, which is said.

    Args:
        trained: the same on items that were trained on, where `measured` is of held-out ones.
        items: what they are called.
    """
    if measured.low is None or measured.low > CHANCE:
        return ""
    if _tells_nothing(measured):
        if trained is not None and not _tells_nothing(trained) and (words := advice(trained, items=f"trained {items}")):
            return words
        return (
            f"whether captions are used cannot be told: {measured.count} {items} are too few (caption preference {measured}; "
            f"chance {CHANCE}), at least {ENOUGH} are needed"
        )
    if trained is not None and trained.low is not None and trained.low > CHANCE:
        return (
            f"captions of held-out {items} are not used (caption preference {measured}; chance {CHANCE}), those of trained "
            f"ones are ({trained}): what is drawn does not follow new captions. Train on more {items} whose captions share "
            "words, or for fewer passes over them"
        )
    return (
        f"captions are not used: {items} are predicted no better behind their own caption than behind another's (caption "
        f"preference {measured}; chance {CHANCE}), so what is drawn does not follow its prompt, however low the loss. Check "
        f"that captions say what is in their {items}; train longer (more --trainer.steps); try --optimizer.kind muon, and, "
        f"where {items} are denoised, --model.patcher.kind linear in place of unet"
    )


def _tells_nothing(measured: Estimate) -> bool:
    """Whether a preference near chance is of too few items to mean that captions are not used."""
    low, high = (bound if bound is not None else end for bound, end in ((measured.low, 0.0), (measured.high, 1.0)))
    return measured.count < ENOUGH or high - low > WIDE


def _gap(errors: Float[np.ndarray, "pair 2"], note: str, seed: int) -> Estimate:
    own, other = errors.T
    ratio = Estimate.ratio(other - own, own, seed=seed)
    return replace(ratio, note="; ".join(words for words in (note, ratio.note) if words))


def _chosen(documents: Sequence[Document], samples: int, seed: int) -> list[Document]:
    """Documents of one item and a caption, a random subset in an order drawn by the seed."""
    chosen: list[Document] = []
    for i in rng.generator(rng.key(seed, "preference")).permutation(len(documents)):
        document = documents[int(i)]
        if len(document.media) == 1 and document.text:
            chosen.append(document)
            if len(chosen) == samples:
                break
    return chosen


def _wordings(document: Document) -> frozenset[str]:
    """A document's caption in every paraphrase."""
    values = document.media[0].values
    stated = values.scene.captions if isinstance(values, LazyScene) else ()
    count = max(1 + len(segment.paraphrases) for segment in document.segments if isinstance(segment, Text))
    return frozenset([caption(document, i) for i in range(count)]).union(stated)


def _kind(document: Document) -> str:
    values = document.media[0].values
    return values.scene.kind if isinstance(values, LazyScene) else ""


def _sequences(model: Transfusion, pair: CaptionPair, times: Sequence[float], key: int) -> list[TokenSequence]:
    """The pair's picture behind its own caption at each time, then behind the other; none where it can't be read or does not
    fit."""
    sequences = []
    try:
        item = model.codecs.to(model.device).encoded_item(pair.picture, now=True)
    except MediaError:
        return []
    for text in (pair.own, pair.other):
        for t in times:
            picture = Media(item.values, item.modality, times=(t, t))
            document = Document((Text(text), picture))
            sequence = tokenize_document(document, model.vocabulary, model.config.model.coordinates, add_eos=False)
            if len(sequence) > model.config.model.context_length:
                return []
            try:
                sequences.append(sequence.load(lambda item: key))
            except MediaError:
                return []
    return sequences


def _batch_errors(model: Transfusion, sequences: Sequence[TokenSequence], dtype: torch.dtype) -> Float[np.ndarray, " sequence"]:
    """The denoising error of the item of each sequence; of discrete items, the nats of all codes."""
    network, batch = model.network, model.collate(sequences)
    metadata = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
    noised = network.add_noise(batch)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        h, skips = network.hidden(batch.tokens, batch.positions, noised, metadata=metadata)
        predictions = network.predict(h, noised, skips)
        targets, owners = batch.targets.flatten(), batch.documents.flatten()
        coded = batch.loss_index[targets[batch.loss_index] >= network.first_code]
        nats = F.cross_entropy(network.head(h[coded]).float(), targets[coded], reduction="none").double()
    errors = torch.zeros(len(sequences), dtype=torch.float64).index_add(0, owners[coded].cpu(), nats.cpu()).numpy()
    for group, item, prediction in zip(batch.media, noised, predictions, strict=True):
        of_items = denoising_errors(network.config.diffusion, group, item, prediction)
        errors[batch.documents.flatten()[group.slots[:, 0]].cpu().numpy()] = of_items.double().cpu().numpy()
    return errors
