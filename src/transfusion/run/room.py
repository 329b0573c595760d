"""Whether the items of a run have room in its rows and in its context, found out before it is trained.

    BOS  a caption of 8 tokens  [sizes]  BEGIN  slot .. slot  END  EOS

A row that holds less trains on nothing; a context that holds less can train, since rows may be longer, but never draw or read.
"""

import math
from collections.abc import Iterable, Mapping

from transfusion.codec.autoencoder import Autoencoder
from transfusion.config import ConfigError
from transfusion.data.document import Document
from transfusion.data.latents import AnyLatents
from transfusion.modality import Modality
from transfusion.run.latents import autoencoders_of, on_latents
from transfusion.run.record import Run

CAPTION = 8
"""Tokens of a short caption."""
STEP = 128
"""The lengths that are proposed are multiples of it."""


def check_room(run: Run, documents: Iterable[Document], autoencoder: Autoencoder | None = None) -> None:
    """Raise ConfigError, with the options that help, where an item of a modality's default size, or of the largest that the
    documents hold where sizes vary, has no room with a short caption."""
    codecs = autoencoders_of(run, autoencoder)
    learned = on_latents(run, autoencoder)
    items = {m.name: m for m in run.model.modalities}
    largest = _largest(documents, learned.model.modalities, codecs)
    for modality in learned.model.modalities:
        sizes = {modality.shape, largest.get(modality.name, modality.shape)}
        slots = max(math.prod(modality.slots(size)) for size in sizes)
        needed = CAPTION + slots + len(modality.shape) * modality.varies + 4
        if needed <= min(run.packing.row_length, run.model.context_length):
            continue
        lengths = (max(STEP * math.ceil(needed / STEP), given) for given in (run.packing.row_length, run.model.context_length))
        options = "--packing.row-length {} --model.context-length {}".format(*lengths)
        raise ConfigError(
            f"an item of {modality.name} ({_size(items[modality.name])}) takes {slots:,} slots, {needed:,} tokens with a short "
            f"caption; a row has {run.packing.row_length:,}, and the context {run.model.context_length:,}: give {options}, or "
            "take smaller items"
        )


def _largest(
    documents: Iterable[Document], modalities: Iterable[Modality], codecs: Mapping[str, Autoencoder]
) -> dict[str, tuple[int, ...]]:
    """By the name of a modality whose sizes vary, the size of its item with most slots, as it is learned. Sizes that it forbids
    are left out: the loader names their documents."""
    varying = {modality.name: modality for modality in modalities if modality.varies}
    found: dict[str, tuple[int, tuple[int, ...]]] = {}
    for media in (media for document in documents for media in document.media) if varying else ():
        if media.modality not in varying or media.values is None:
            continue
        size = tuple(media.values.shape[1:])
        try:
            if media.modality in codecs and not isinstance(media.values, AnyLatents):
                size = codecs[media.modality].latent_shape(size)[1:]
            slots = math.prod(varying[media.modality].slots(size))
        except ValueError:
            continue
        found[media.modality] = max(found.get(media.modality, (0, ())), (slots, size))
    return {name: size for name, (_, size) in found.items()}


def _size(modality: Modality) -> str:
    """The largest size of its items, as people write it."""
    size = " x ".join(map(str, modality.largest or modality.shape))
    return f"{'up to ' * modality.varies}{size}{' samples' if modality.rate else ''}"
