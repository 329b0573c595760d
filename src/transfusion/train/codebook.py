"""How a codebook learns beside its encoder: statistics of use, updates by moving averages, and dead codes that are revived.

By gradient, the codebook loss draws each code to the vectors that chose it. By moving averages (van den Oord et al. 2017, arXiv
1711.00937, A.1) a code is the mean of the vectors that chose it in the last steps, and has no gradient. Either way a code that
is hardly chosen is replaced by a vector of the current step, drawn in proportion to its squared distance from the nearest code.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from transfusion import distributed, rng
from transfusion.codec.vq import Codebook

MAX_CANDIDATES = 65_536
"""Vectors of a step that dead codes may become."""


@dataclass(frozen=True)
class CodebookConfig:
    """Learning of the codebook.

    Args:
        update: gradient, or ema (moving averages).
        decay: of the moving averages, a step.
        dead: a code is dead where it is chosen less than so many times as often as the mean of all codes.
        revive_every: steps between revivals (0: none); the first is after the first step.
        revive_until: share of the run after which no code is revived.
    """

    update: Literal["gradient", "ema"] = "gradient"
    decay: float = 0.99
    dead: float = 0.03
    revive_every: int = 100
    revive_until: float = 0.8

    def __post_init__(self) -> None:
        if not (0 <= self.decay < 1 and 0 <= self.dead < 1 and 0 <= self.revive_until <= 1):
            raise ValueError(
                f"decay and dead must be in [0, 1) and revive-until in [0, 1], not {self.decay}, {self.dead}, "
                f"{self.revive_until}"
            )
        if self.revive_every < 0:
            raise ValueError(f"revive-every must be 0 (never) or more steps, not {self.revive_every}")


class CodebookLearner(nn.Module):
    """Statistics of a codebook, as buffers that a checkpoint keeps: how often each code is chosen a step, and the sum of the
    vectors that chose it, both as moving averages."""

    counts: Tensor
    sums: Tensor

    def __init__(self, codebook: Codebook, config: CodebookConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("counts", torch.zeros(len(codebook.weight)))
        self.register_buffer("sums", torch.zeros(codebook.weight.shape))
        self._step, self._seen = -1, list[tuple[Tensor, Tensor]]()

    def observe(self, vectors: Float[Tensor, "vector channels"], ids: Int[Tensor, " vector"], *, step: int) -> None:
        """Vectors of a micro-batch of a step, and the codes that they chose."""
        if step != self._step:  # a step that was skipped has left its own
            self._step, self._seen = step, []
        self._seen.append((vectors.detach().float(), ids))

    @torch.no_grad()
    def end_step(self, codebook: Codebook, *, step: int, steps: int, seed: int) -> tuple[dict[str, float], Tensor]:
        """Update the codebook after a step, counted from 0, of so many. Returns numbers for the log (`codes_used`, the share of
        codes that are not dead, and `perplexity`, e to the entropy of their frequencies, both over the last 1 / (1 - decay)
        steps) and which codes were revived, Bool[code]."""
        vectors, ids = (distributed.gathered(torch.cat(parts)) for parts in zip(*self._seen, strict=True))
        self._seen = []
        weight, config = codebook.weight, self.config
        counts = torch.bincount(ids, minlength=len(weight)).to(self.counts)
        sums = torch.zeros_like(self.sums).index_add_(0, ids, vectors)
        share = 1 - min(config.decay, (1 + step) / (10 + step))
        self.counts.lerp_(counts, share)
        self.sums.lerp_(sums, share)
        chosen = self.counts > 0
        if config.update == "ema":
            weight[chosen] = (self.sums[chosen] / self.counts[chosen, None]).to(weight)
        dead = self.counts <= config.dead * self.counts.mean()
        revived = torch.zeros_like(dead)
        if config.revive_every and step % config.revive_every == 0 and (step == 0 or step < config.revive_until * steps):
            revived = self._revive(codebook, dead | (step == 0), vectors, ids, rng.key(seed, step, "revive"))
        frequencies = self.counts / self.counts.sum()
        entropy = -(frequencies * frequencies.clamp_min(1e-12).log()).sum()
        return {"codes_used": 1 - float(dead.float().mean()), "perplexity": float(entropy.exp())}, revived

    def _revive(self, codebook: Codebook, dead: Tensor, vectors: Tensor, ids: Tensor, key: int) -> Tensor:
        """Replace dead codes by vectors, as many as differ from all codes; returns which."""
        generator, revived = rng.generator(key), torch.zeros_like(dead)
        if len(vectors) > MAX_CANDIDATES:
            some = torch.from_numpy(generator.choice(len(vectors), MAX_CANDIDATES, replace=False)).to(ids.device)
            vectors, ids = vectors[some], ids[some]
        distances = (vectors - codebook.weight[ids].float()).square().sum(1).double().cpu().numpy()
        chosen = dead.nonzero().squeeze(1)[: np.count_nonzero(distances)]
        if len(chosen) and np.isfinite(distances).all():
            drawn = generator.choice(len(vectors), len(chosen), replace=False, p=distances / distances.sum())
            fresh = vectors[torch.from_numpy(drawn).to(ids.device)]
            codebook.weight[chosen] = fresh.to(codebook.weight)
            # a revived code counts as an average one until it is measured
            self.counts[chosen] = self.counts.mean()
            self.sums[chosen] = fresh * self.counts[chosen, None]
            revived[chosen] = True
        return revived
