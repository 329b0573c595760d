"""Autoencoders: raw items (pixels, samples) <-> latents, by two modules that are used and never trained."""

import torch
from torch import Tensor, nn

from transfusion.nn.eval_mode import eval_mode


class Autoencoder(nn.Module):
    """A pair of modules, frozen: their parameters take no gradient, and they run in eval mode whatever mode the model is in.

    Args:
        encoder: [item, *raw] -> [item, *latents]; None: items are latents already.
        decoder: the way back; None: latents come out as they are.
    """

    def __init__(self, encoder: nn.Module | None, decoder: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> "Autoencoder":
        """Leaves both modules in eval mode, so that no running statistics move."""
        super().train(False)
        return self

    @torch.no_grad()
    def encode(self, items: Tensor) -> Tensor:
        """Latents of raw items of one shape, without gradient."""
        if self.encoder is None:
            return items
        with eval_mode(self.encoder):
            return self.encoder(items)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Raw items of latents of one shape, without gradient."""
        return self.reconstruct(latents)

    def reconstruct(self, latents: Tensor) -> Tensor:
        """The same as `decode`, with a gradient for the latents (for a reconstruction loss)."""
        if self.decoder is None:
            return latents
        with eval_mode(self.decoder):
            return self.decoder(latents)
