"""The record of an autoencoder's run, and its presets: small ones of this project, and the paper's.

transfusion train vae --data PATH
transfusion train vq --data PATH --preset paper
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from transfusion import distributed
from transfusion.codec.convolutions import ConvolutionsConfig
from transfusion.codec.discriminator import DiscriminatorConfig
from transfusion.codec.similarity import num_scales
from transfusion.codec.vae import VAEConfig
from transfusion.codec.vq import VQConfig
from transfusion.config import ConfigError
from transfusion.data.images import ImagesConfig
from transfusion.run.record import check_warmup, learned_digest
from transfusion.train.autoencoding import LossesConfig
from transfusion.train.codebook import CodebookConfig
from transfusion.train.device import Device, Dtype
from transfusion.train.optimizer import AdamWConfig, MuonConfig, OptimizerConfig
from transfusion.train.trainer import CheckpointConfig, TrainerConfig

Kind: TypeAlias = Literal["vae", "vq"]

DISCRIMINATOR = AdamWConfig(lr=1e-4, min_lr=1e-4, warmup=0, beta1=0.5, beta2=0.9, weight_decay=0.0)
"""Adam with a constant rate, as Esser et al. 2020 (arXiv 2012.09841) have it."""


@dataclass(frozen=True)
class ReconstructionReport:
    """The measurements at the end of a run.

    Args:
        images: held-out images to measure with, at most; all are in memory together.
        classifier: folder of a classifier of images (`transfusion train classifier`) whose features Fréchet distances are taken
            in.
        inception: file with Inception's weights, for the same.
    """

    images: int = 1000
    classifier: str = ""
    inception: str = ""

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images must be at least 1, not {self.images}")


@dataclass(frozen=True)
class AutoencoderRun:
    """A training run of an autoencoder.

    Args:
        data: images: a folder, JSONL, Parquet or idx files; captions are not needed.
        out: folder of the run (default: runs/vae, runs/vq). The same command resumes the run in it.
        seed: random seed.
        device: auto takes cuda, else mps, else cpu.
        dtype: fp32, or bf16 under autocast; auto takes bf16 where the device is faster with it.
        images: size and augmentation.
        model: sizes of the autoencoder.
        losses: weights, and files of perceptual networks.
        discriminator: sizes.
        codebook: how the codebook of a VQ learns.
        trainer: number of steps, logging; `sample_every` is the steps between sheets of reconstructions.
        optimizer: optimizer and learning rate of the autoencoder.
        discriminator_optimizer: the discriminator's.
        checkpoint: checkpoints.
        report: measurements at the end.
    """

    data: str = ""
    out: str = ""
    seed: int = 0
    device: Device = "auto"
    dtype: Dtype = "auto"
    images: ImagesConfig = ImagesConfig()
    model: VAEConfig | VQConfig = VAEConfig()
    losses: LossesConfig = LossesConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    codebook: CodebookConfig = CodebookConfig()
    trainer: TrainerConfig = TrainerConfig()
    optimizer: OptimizerConfig = AdamWConfig()
    discriminator_optimizer: AdamWConfig = DISCRIMINATOR
    checkpoint: CheckpointConfig = CheckpointConfig()
    report: ReconstructionReport = ReconstructionReport()

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.out or f"runs/{self.model.kind}")

    @property
    def digest(self) -> str:
        """12 hex digits that name what the run learns: logging, output, checkpoints and report do not count."""
        return learned_digest(self, ReconstructionReport())

    def check(self, kind: Kind) -> None:
        """Raise ConfigError for settings that contradict each other or the command's kind, before any work."""
        if self.model.kind != kind:
            raise ConfigError(
                f"--model.kind {self.model.kind} is trained by its own command: transfusion train {self.model.kind}"
            )
        side, reduction = self.images.side, self.model.convolutions.reduction
        if side % reduction:
            raise ConfigError(
                f"images of {side} x {side} pixels do not fit an autoencoder of reduction {reduction}: set --images.side to a "
                f"multiple of {reduction}, or change --model.convolutions.patch or its widths"
            )
        parts, processes = self.trainer.accumulate, distributed.world().size
        if self.images.batch_size % (parts * processes):
            times = f" times {processes} processes" if processes > 1 else ""
            raise ConfigError(
                f"images.batch_size ({self.images.batch_size}) must be a multiple of trainer.accumulate ({parts}){times}"
            )
        check_warmup(self)
        for name in ("optimizer", "discriminator_optimizer"):
            if getattr(self, name).language_lr_scale != 1.0:
                raise ConfigError(
                    f"an autoencoder holds no language model: leave out --{name.replace('_', '-')}.language-lr-scale"
                )
        try:
            if self.losses.gan:
                self.discriminator.check(side)
            if self.losses.perceptual and not self.losses.network:
                num_scales(side)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def small(kind: Kind) -> AutoencoderRun:
    """For pictures of 32 to 128 pixels on a processor: reduction 4, all convolutions on the latents' grid, no
    discriminator. Muon and small batches are what teaches: in the same time 3 dB and 1.5 dB more than AdamW and twice the batch
    (LOG.md)."""
    convolutions = ConvolutionsConfig(patch=4, widths=(128,), blocks=2, groups=8)
    return AutoencoderRun(
        images=ImagesConfig(side=64, batch_size=16),
        model=VAEConfig(convolutions) if kind == "vae" else VQConfig(convolutions),
        losses=LossesConfig(perceptual=0.1, gan=0.0),
        codebook=CodebookConfig(update="ema"),
        trainer=TrainerConfig(steps=3000, sample_every=500),
        optimizer=MuonConfig(lr=3e-3, min_lr=1e-5, warmup=100, weight_decay=0.01),
    )


def paper(kind: Kind) -> AutoencoderRun:
    """Zhou et al. 2024, arXiv 2408.11039, 4.1 and appendix A: pictures of 256 pixels, reduction 8, 86M parameters of a VAE with
    8 latent channels, 1M steps; for a VQ 16,384 codes of 8 numbers.

    The network is that of Esser et al. 2020 (arXiv 2012.09841) with widths 128, 256, 512, 512, and two attention layers in each
    half, the number that comes to 86M. Batch and optimizer are not in the paper: Adam with a constant rate, as Esser et al.
    have it.
    """
    convolutions = ConvolutionsConfig(
        patch=1, widths=(128, 256, 512, 512), blocks=2, middle=2, attention=2, groups=32, shortcut=False
    )
    return AutoencoderRun(
        images=ImagesConfig(side=256, batch_size=32, crop=1.125),
        model=VAEConfig(convolutions) if kind == "vae" else VQConfig(convolutions, num_codes=16_384),
        trainer=TrainerConfig(steps=1_000_000, ema_decay=0.9999, sample_every=10_000),
        optimizer=AdamWConfig(lr=1e-4, min_lr=1e-4, warmup=1000, beta1=0.5, beta2=0.9, weight_decay=0.0),
        checkpoint=CheckpointConfig(every=5000),
    )


PRESETS = {"small": small, "paper": paper}
"""Name -> function of the kind; the first is the default."""
