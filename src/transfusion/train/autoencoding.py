"""The objective of an autoencoder: pictures are encoded, decoded, and compared with themselves.

    L1 + perceptual + 0.2 identity + 0.5 GAN + 1e-6 KL, or codebook + 0.25 commitment

(Zhou et al. 2024, arXiv 2408.11039, appendix A). Every loss is a mean over pictures of a mean over pixels or vectors. The KL
divergence is each picture's nats over the number of its pixel values, so that it stands to L1 as two sums do (Rombach et al.
2022, arXiv 2112.10752). The GAN's weight is multiplied by |gradient of the reconstruction| / |gradient of the GAN| at the
decoder's last layer (Esser et al. 2020, arXiv 2012.09841, eq. 7), since its loss has no scale of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from transfusion import distributed, rng
from transfusion.codec.discriminator import Discriminator, DiscriminatorConfig, discriminator_loss, generator_loss
from transfusion.codec.perceptual import Identity, Lpips
from transfusion.codec.similarity import multi_scale_ssim
from transfusion.codec.vae import VAE
from transfusion.codec.vq import VQ
from transfusion.data.images import ImageBatch
from transfusion.model.losses import Mean, Term
from transfusion.nn.ema import EMA
from transfusion.train.codebook import CodebookConfig, CodebookLearner
from transfusion.train.objective import At, Objective

MOST_ADAPTIVE = 1e4
"""Upper bound of the factor on the GAN's weight."""


@dataclass(frozen=True)
class LossesConfig:
    """Weights of the losses, and the files of the networks that perceptual losses need.

    Args:
        l1: mean absolute difference of pixels.
        perceptual: LPIPS; without a network, 1 - multi-scale SSIM.
        identity: 1 - cosine of MoCo v2's vectors; needs its network.
        kl: of a VAE.
        codebook: of a codebook that learns by gradient.
        commitment: of the encoder to the codes that it chose.
        gan: of the discriminator (0: none).
        gan_start: step from which on there is a discriminator.
        network: torchvision's VGG-16 or MobileNetV2, a file.
        heads: LPIPS' heads for it, a file; without it all channels count alike.
        identity_network: MoCo v2, a file.
    """

    l1: float = 1.0
    perceptual: float = 1.0
    identity: float = 0.2
    kl: float = 1e-6
    codebook: float = 1.0
    commitment: float = 0.25
    gan: float = 0.5
    gan_start: int = 50_000
    network: str = ""
    heads: str = ""
    identity_network: str = ""

    def __post_init__(self) -> None:
        for name in ("l1", "perceptual", "identity", "kl", "codebook", "commitment", "gan"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is a weight, 0 or more, not {getattr(self, name)}")
        if not self.l1 and not self.perceptual:
            raise ValueError("l1 and perceptual are both 0: nothing would hold a picture to its original")
        if self.gan_start < 0:
            raise ValueError(f"gan-start is a step, 0 or more, not {self.gan_start}")
        if self.heads and not self.network:
            raise ValueError("heads are those of a network: give --losses.network too, a file of VGG-16")


@dataclass(frozen=True, eq=False)
class PerceptualNetworks:
    """The frozen networks of perceptual losses; None where there are none."""

    lpips: Lpips | None = None
    identity: Identity | None = None

    @classmethod
    def load(cls, config: LossesConfig, device: torch.device) -> "PerceptualNetworks":
        """Those of the configuration's files. Raises ValueError, naming the file and what it should hold."""
        lpips = Lpips(config.network, config.heads).to(device) if config.network and config.perceptual else None
        identity = Identity(config.identity_network).to(device) if config.identity_network and config.identity else None
        return cls(lpips, identity)

    def describe(self, config: LossesConfig) -> str:
        """What stands for the perceptual losses, for the log."""
        lines = []
        if config.perceptual and not self.lpips:
            lines.append("no network for LPIPS (--losses.network), so the perceptual loss is 1 - multi-scale SSIM")
        if config.identity and not self.identity:
            lines.append("no MoCo v2 (--losses.identity-network), so there is no identity loss")
        return "; ".join(lines)


class AutoencodingObjective(Objective[ImageBatch]):
    """Trains a VAE or VQ, and its discriminator.

    Args:
        model: the autoencoder.
        discriminator: its sizes; there is one where the GAN has a weight.
        codebook: how that of a VQ learns.
        networks: of perceptual losses.
        seed: keys what is drawn.
    """

    unit = "images"

    def __init__(
        self,
        model: VAE | VQ,
        losses: LossesConfig,
        *,
        discriminator: DiscriminatorConfig,
        codebook: CodebookConfig,
        networks: PerceptualNetworks,
        seed: int,
    ) -> None:
        super().__init__(model)
        self.losses, self.seed = losses, seed
        self.discriminator = Discriminator(discriminator, model.channels) if losses.gan else None
        self.learner = CodebookLearner(model.codebook, codebook) if isinstance(model, VQ) else None
        if isinstance(model, VQ) and codebook.update == "ema":
            model.codebook.requires_grad_(False)
        self._networks = networks  # no submodule: neither trained nor kept in checkpoints
        self._average: EMA | None = None

    @property
    def autoencoder(self) -> VAE | VQ:
        """The model."""
        assert isinstance(self.model, VAE | VQ)
        return self.model

    def averaged(self, ema: EMA) -> None:
        """The average of the weights, in which revived codes are replaced too."""
        self._average = ema

    def counts(self, batch: ImageBatch) -> Mapping[str, int]:
        """Every loss is a mean over pictures."""
        names = ("l1", "perceptual", "identity", "kl", "codebook", "commitment", "gan", "discriminator")
        return dict.fromkeys(names, len(batch.items))

    def size(self, batch: ImageBatch) -> int:
        """Pictures."""
        return len(batch.items)

    def loss(self, batch: ImageBatch, at: At) -> list[Term]:
        """The losses whose weight is above 0."""
        items = batch.items
        drawn, terms = self._through(items, batch.keys, at)
        drawn = drawn.float()
        terms += self._likeness(drawn, items)
        if self.discriminator is not None and at.step >= self.losses.gan_start:
            terms += self._adversarial(self.discriminator, drawn, items, terms)
        return [term for term in terms if term.weight]

    def _through(self, items: Tensor, keys: tuple[int, ...], at: At) -> tuple[Tensor, list[Term]]:
        """Pictures through the autoencoder, and the losses of what is between."""
        model, losses = self.autoencoder, self.losses
        if isinstance(model, VAE):
            posterior = model.posterior(items)
            shape = tuple(posterior.mean.shape[1:])
            noise = rng.normal([rng.key(key, "posterior") for key in keys], shape).to(items.device)
            nats = posterior.nats() / items[0].numel()
            return model.to_items(posterior.sample(noise)), [_term("kl", losses.kl, nats)]
        features = model.features(items)
        ids = model.nearest(features)
        codes = model.codes(ids)
        assert self.learner is not None
        self.learner.observe(features.movedim(1, -1).flatten(0, 2), ids.flatten(), step=at.step)
        by_gradient = losses.codebook if self.learner.config.update == "gradient" else 0.0
        drawn = model.decoder(features + (codes - features).detach())
        return drawn, [
            _term("codebook", by_gradient, (features.detach() - codes).square().flatten(1).mean(1)),
            _term("commitment", losses.commitment, (features - codes.detach()).square().flatten(1).mean(1)),
        ]

    def _likeness(self, drawn: Tensor, items: Tensor) -> list[Term]:
        losses, networks = self.losses, self._networks
        terms = [_term("l1", losses.l1, (drawn - items).abs().flatten(1).mean(1))]
        if losses.perceptual:
            distance = networks.lpips(drawn, items) if networks.lpips else 1 - multi_scale_ssim(drawn, items)
            terms.append(_term("perceptual", losses.perceptual, distance))
        if networks.identity:
            terms.append(_term("identity", losses.identity, networks.identity(drawn, items)))
        return terms

    def _adversarial(self, discriminator: Discriminator, drawn: Tensor, items: Tensor, terms: list[Term]) -> list[Term]:
        """The generator's loss, through a discriminator that gets no gradient from it, and the discriminator's own."""
        discriminator.requires_grad_(False)
        fooled = generator_loss(discriminator(drawn))
        discriminator.requires_grad_(True)
        own = discriminator_loss(discriminator(items), discriminator(drawn.detach()))
        likeness = sum(
            (t.weight * t.mean.value for t in terms if t.name in ("l1", "perceptual", "identity")), start=drawn.new_zeros(())
        )
        last = self.autoencoder.decoder.out.weight
        wanted, found = (
            distributed.summed(torch.autograd.grad(loss, last, retain_graph=True)[0]).norm()
            for loss in (likeness, fooled.mean())
        )
        factor = float((wanted / (found + 1e-4)).clamp(0, MOST_ADAPTIVE))
        return [_term("gan", self.losses.gan * factor, fooled), _term("discriminator", 1.0, own)]

    def end_step(self, at: At) -> Mapping[str, float]:
        """Update the codebook; its use and perplexity."""
        if self.learner is None or not isinstance(self.autoencoder, VQ):
            return {}
        codebook = self.autoencoder.codebook
        metrics, revived = self.learner.end_step(codebook, step=at.step, steps=at.steps, seed=self.seed)
        if self._average is not None and bool(revived.any()):
            self._average.shadows["codebook.weight"][revived] = codebook.weight.detach()[revived].float()
        return metrics


def _term(name: str, weight: float, values: Tensor) -> Term:
    return Term(name, weight, Mean(values.sum(), values.new_tensor(float(len(values)))))
