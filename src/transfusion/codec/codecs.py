"""The autoencoders of a model's modalities: documents as people have them -> documents of latents, and what is drawn back.

Every item passes alone, never in a batch: its latents depend on it and on nothing beside it, so those that are encoded once are
those that are encoded on the way, bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.codes import Codes
from transfusion.data.document import Document, LazyMedia, Media, MediaError
from transfusion.data.latents import AnyLatents, Decoded, Latents
from transfusion.modality import IMAGE, Modality

Autoencoders = Autoencoder | Mapping[str, Autoencoder]
"""One for the modality "image", or by the name of the modality."""


class Codecs:
    """Autoencoders by modality, frozen; a modality without one is learned as it is. Deep copies share them.

    Args:
        autoencoders: one for the modality "image", or by name; None: none.
        modalities: of the model; they state the form of latents.

    Raises:
        ValueError: an autoencoder of an unknown modality, or of other latents than its modality states.
    """

    def __init__(self, autoencoders: Autoencoders | None, modalities: Sequence[Modality]) -> None:
        by_name = {IMAGE: autoencoders} if isinstance(autoencoders, Autoencoder) else dict(autoencoders or {})
        self.modalities = {modality.name: modality for modality in modalities}
        for name, autoencoder in by_name.items():
            if name not in self.modalities:
                raise ValueError(f"an autoencoder for {name!r}, which is no modality: there are {', '.join(self.modalities)}")
            if not isinstance(autoencoder, Autoencoder):
                raise ValueError(
                    f"the autoencoder of {name!r} is a {type(autoencoder).__name__}: make it a subclass of Autoencoder"
                )
            codes = autoencoder.num_codes if isinstance(autoencoder, Codes) else 0
            if codes != self.modalities[name].codes:
                learned, given = (f"{n:,} codes" if n else "latents" for n in (self.modalities[name].codes, codes))
                raise ValueError(
                    f"the model learns {learned} of {name!r}, this autoencoder gives {given}: give the one that the model was "
                    "made for"
                )
            if autoencoder.latent_channels != self.modalities[name].channels:
                raise ValueError(
                    f"modality {name!r} has {self.modalities[name].channels} channels, its autoencoder's latents have "
                    f"{autoencoder.latent_channels}: the modality states the form of latents"
                )
            if autoencoder.rate not in (0, self.modalities[name].rate):
                raise ValueError(
                    f"modality {name!r} has sounds of {self.modalities[name].rate:,} samples a second, its codec takes "
                    f"{autoencoder.rate:,}: give both the same rate"
                )
        self.autoencoders = {name: autoencoder.freeze() for name, autoencoder in by_name.items()}
        self.digests = {name: autoencoder.digest for name, autoencoder in self.autoencoders.items()}

    def __deepcopy__(self, memo: object) -> "Codecs":
        return self

    def __bool__(self) -> bool:
        return bool(self.autoencoders)

    def to(self, device: torch.device) -> "Codecs":
        """Itself, with its autoencoders on a device."""
        for autoencoder in self.autoencoders.values():
            if autoencoder.latent_mean.device != device:
                autoencoder.to(device)
        return self

    # ---- items -> latents --------------------------------------------------------------------------------------------

    def encoded(self, document: Document, *, now: bool = False) -> Document:
        """The document with latents for its items; they are made when they are loaded, or `now`. Raises ValueError: latents of
        another autoencoder; if `now`, also an item that does not fit; MediaError: one that cannot be read."""
        segments = tuple(self.encoded_item(s, now=now) if isinstance(s, Media) else s for s in document.segments)
        return replace(document, segments=segments)

    def encoded_item(
        self, item: Media, *, now: bool = False, cached: Callable[[Callable[[], Tensor]], Tensor] = lambda make: make()
    ) -> Media:
        """See `encoded`. `cached` is called with the function that makes the latents, whenever they are needed."""
        autoencoder, digest = self.autoencoders.get(item.modality), self.digests.get(item.modality)
        values = item.values
        if isinstance(values, AnyLatents):
            if (digest or "") != values.digest:
                own = f"this model has autoencoder {digest}" if digest else f"this model learns {item.modality!r} without one"
                ids = "encode ids (transfusion data encode --ids True), or " if isinstance(autoencoder, Codes) else ""
                raise ValueError(
                    f"latents of autoencoder {values.digest or '(none)'}, but {own}: {ids}give the model that one "
                    f"(--autoencoder), or the items themselves"
                )
            return item
        if autoencoder is None or digest is None:
            return item
        if values is None:
            return item if item.size is None else replace(item, size=self.latent_size(item.modality, item.size))
        if item.noise is not None:
            raise ValueError("noise that an item brings is the noise of its latents: encode the item first, or leave it out")
        if isinstance(values, Decoded) and values.digest == digest:
            latents = Latents.of(values.latents, digest, item)
        else:
            make = _Encoding(autoencoder, values)
            latents = Latents(digest, make.shape, lambda: cached(make), item)
        if now:
            latents = Latents.of(replace(item, values=latents, mask=None).tensor(), digest, item)
        mask = None if item.mask is None else _mean_of_blocks(item.mask, autoencoder.reduction)
        return replace(item, values=latents, mask=mask)

    def latent_size(self, name: str, size: tuple[int, ...]) -> tuple[int, ...]:
        """The size in latents of an item of this size. Raises ValueError: it does not fit."""
        autoencoder = self.autoencoders.get(name)
        return tuple(size) if autoencoder is None else autoencoder.latent_shape(size)[1:]

    @property
    def item_modalities(self) -> tuple[Modality, ...]:
        """The modalities as items have them, before they are encoded: pixels, and a patch's extent in pixels."""
        return tuple(
            item_form(modality, self.autoencoders[name]) if name in self.autoencoders else modality
            for name, modality in self.modalities.items()
        )

    # ---- latents -> items --------------------------------------------------------------------------------------------

    def drawn(self, name: str, latents: Tensor) -> Media:
        """An item that was drawn: latents on the CPU, marked and with the item decoded beside them; or just the item, where the
        modality has no autoencoder."""
        autoencoder, digest = self.autoencoders.get(name), self.digests.get(name)
        if autoencoder is None or digest is None:
            return Media(latents.cpu(), name)
        return Media(Latents.of(latents.cpu(), digest, Media(self._decoded(name, latents), name)), name)

    def decoded(self, document: Document) -> Document:
        """The document with the items of its latents: those that were encoded, as they were; else decoded."""
        return replace(document, segments=tuple(self.item(s) if isinstance(s, Media) else s for s in document.segments))

    def item(self, media: Media) -> Media:
        """See `decoded`."""
        values = media.values
        if not isinstance(values, AnyLatents):
            return media
        if isinstance(values, Latents) and values.item is not None:
            return values.item
        return replace(media, values=self._decoded(media.modality, media.tensor()), mask=None)

    def _decoded(self, name: str, latents: Tensor) -> Decoded:
        return Decoded(self.pixels(name, latents).cpu(), latents.cpu(), self.digests[name])

    def pixels(self, name: str, latents: Tensor) -> Tensor:
        """An item, Float[channels, *size], of latents; the latents themselves where the modality has no autoencoder."""
        autoencoder = self.autoencoders.get(name)
        return latents if autoencoder is None else autoencoder.decode(latents[None])[0]

    @property
    def decoders(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """By modality, latents [item, channels, *size] -> items, with a gradient: for the reconstruction loss."""
        return {name: autoencoder.reconstruct for name, autoencoder in self.autoencoders.items()}


class _Encoding:
    """An item that is encoded when called."""

    def __init__(self, autoencoder: Autoencoder, values: Tensor | LazyMedia) -> None:
        self.autoencoder, self.values = autoencoder, values

    def shape(self) -> tuple[int, ...]:
        """(channels, *size) of its latents. Raises ValueError: it does not fit the autoencoder."""
        shape = tuple(self.values.shape)
        if not shape or shape[0] != self.autoencoder.channels:
            raise ValueError(
                f"an item of shape {shape} must be (channels, *size), with the {self.autoencoder.channels} channels of the "
                "autoencoder"
            )
        return self.autoencoder.latent_shape(shape[1:])

    def __call__(self) -> Tensor:
        item = Media(self.values).tensor()
        latents = self.autoencoder.encode(item[None])[0].cpu()
        if not torch.isfinite(latents).all():
            raise MediaError("its latents have NaN or infinity: check the autoencoder's weights")
        return latents


def item_form(modality: Modality, autoencoder: Autoencoder) -> Modality:
    """A modality of latents as the modality of their items."""

    def larger(extents: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(extent * autoencoder.reduction for extent in extents)

    largest = None if modality.largest is None else larger(modality.largest)
    form = {"shape": larger(modality.shape), "patch": larger(modality.patch), "largest": largest, "codes": 0}
    return replace(modality, channels=autoencoder.channels, **form)


def latent_form(modality: Modality, autoencoder: Autoencoder) -> Modality:
    """A modality of items as the modality of their latents: a patch stays as large as it was, in pixels, but one latent at
    least. Where latents are ids it is discrete, and a patch is one of them. Raises ValueError: channels, a size or a patch that
    does not fit the autoencoder."""
    if modality.channels != autoencoder.channels:
        raise ValueError(
            f"modality {modality.name!r} has {modality.channels} channels, its autoencoder takes {autoencoder.channels}: give "
            "the modality as many, or another autoencoder"
        )

    def smaller(extents: tuple[int, ...]) -> tuple[int, ...]:
        return autoencoder.latent_shape(extents)[1:]

    shape, r = smaller(modality.shape), autoencoder.reduction
    patch = tuple(max(extent, r) for extent in modality.patch)
    if any(extent % r for extent in patch):
        raise ValueError(
            f"modality {modality.name!r}: a patch of {modality.patch} must be a multiple of its autoencoder's reduction, {r}"
        )
    largest = None if modality.largest is None else smaller(modality.largest)
    form = {"shape": shape, "patch": smaller(patch), "largest": largest}
    if isinstance(autoencoder, Codes):
        form |= {"patch": (1,) * len(shape), "codes": autoencoder.num_codes}
    return replace(modality, channels=autoencoder.latent_channels, **form)


def _mean_of_blocks(mask: Tensor, reduction: int) -> Tensor:
    """The weights of latents: the mean over the elements that each stands for."""
    for axis in range(mask.ndim):
        mask = mask.float().unflatten(axis, (-1, reduction)).mean(axis + 1)
    return mask
