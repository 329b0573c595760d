"""Coders: raw items (pixels, samples) <-> latents, by two modules of the user that are used and never trained."""

import torch
from torch import Tensor, nn

from transfusion.nn.ema import eval_mode


class Coders(nn.Module):
    """An encoder and a decoder that are used, not trained: no gradient for their parameters, and eval mode while they run.
    Afterwards they are as they were: their `requires_grad` and their mode are not changed. Unlike an
    `Autoencoder` (`codec/autoencoder.py`) they state neither channels nor reduction, and latents are learned as they come.

    Args:
        encoder: [item, *raw] -> [item, *latents]; None: items are latents already.
        decoder: [item, *latents] -> [item, *raw]; None: latents are returned unchanged.

    Raises:
        ValueError: an encoder or decoder that is no module.
    """

    def __init__(self, encoder: nn.Module | None, decoder: nn.Module | None) -> None:
        super().__init__()
        for module in (encoder, decoder):
            if module is not None and not isinstance(module, nn.Module):
                raise ValueError(f"an encoder or decoder is a torch.nn.Module, not {module!r}")
        self.encoder, self.decoder = encoder, decoder

    def train(self, mode: bool = True) -> "Coders":
        """No effect: the two modules keep their own mode."""
        return self

    @torch.no_grad()
    def encode(self, items: Tensor) -> Tensor:
        """Latents of raw items of one shape; no gradient."""
        if self.encoder is None:
            return items
        with eval_mode(self.encoder):
            return self.encoder(self._like_weights(items))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Raw items of latents of one shape; no gradient."""
        return self.reconstruct(latents)

    def reconstruct(self, latents: Tensor) -> Tensor:
        """As `decode`, with a gradient (the reconstruction loss takes that of the latents alone)."""
        if self.decoder is None:
            return latents
        with eval_mode(self.decoder):
            return self.decoder(self._like_weights(latents))

    def _like_weights(self, x: Tensor) -> Tensor:
        """On the device and in the precision of the weights."""
        weight = next(self.parameters(), None)
        return x if weight is None else x.to(weight)
