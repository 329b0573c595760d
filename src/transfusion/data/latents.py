"""Latents in documents: lazy items marked by the digest of the autoencoder that made them. All other media are items as people
have them (pixels, samples), also what a model draws.

    Latents          a `Media` of it holds latents, and is learned from by models of that autoencoder alone
      StoredLatents    in a file that `transfusion data encode` wrote
    Decoded          an item that was drawn as latents: it is the item, and keeps them
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transfusion.data.document import Media, MediaError


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents of an item, made when they are needed.

    Args:
        digest: of the autoencoder that made them.
        find_shape: gives (channels, *size); raises ValueError where there can be none.
        make: gives them, Float[channels, *size]; raises MediaError.
        item: the item that they are latents of, where it is known.
    """

    digest: str
    find_shape: Callable[[], tuple[int, ...]]
    make: Callable[[], Tensor]
    item: Media | None = None

    @classmethod
    def of(cls, latents: Tensor, digest: str, item: Media | None = None) -> "Latents":
        """Latents that are made."""
        return cls(digest, lambda: tuple(latents.shape), lambda: latents, item)

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *size)"""
        return self.find_shape()

    def load(self) -> Tensor:
        """Float[channels, *size]. Raises MediaError if they cannot be made or read."""
        return self.make()


@dataclass(frozen=True, eq=False)
class StoredLatents:
    """Latents in a safetensors file. Of one item there may be several, of other crops: each epoch learns from one of them.

    Args:
        file: the file.
        name: of the tensor in it, Float[item, channels, *size].
        rows: rows of the tensor with the views of this item.
        shape: (channels, *size)
        digest: of the autoencoder that made them; empty for items that have none, which stand there as they are.
    """

    file: Path
    name: str
    rows: tuple[int, ...]
    shape: tuple[int, ...]
    digest: str

    def view(self, index: int) -> "StoredLatents":
        """One view of it."""
        return replace(self, rows=(self.rows[index],))

    def load(self) -> Tensor:
        """The first view, Float32[channels, *size]. Raises MediaError, naming the file, if it cannot be read."""
        try:
            with safe_open(self.file, framework="pt") as file:
                latents = file.get_slice(self.name)[self.rows[0]]
        except (OSError, SafetensorError, IndexError) as error:
            raise MediaError(f"{self.file}: {error}") from error
        if tuple(latents.shape) != self.shape:
            raise MediaError(f"{self.file}: latents of shape {tuple(latents.shape)}, not {self.shape}")
        return latents.to(torch.float32)


@dataclass(frozen=True, eq=False)
class Decoded:
    """An item that was decoded from latents. A model of the same autoencoder reads the latents, any other encodes the item.

    Args:
        values: the item, Float[channels, *size].
        latents: what it was decoded from.
        digest: of the autoencoder.
    """

    values: Tensor
    latents: Tensor
    digest: str

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *size)"""
        return tuple(self.values.shape)

    def load(self) -> Tensor:
        """The item."""
        return self.values


AnyLatents = Latents | StoredLatents
