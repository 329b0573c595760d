"""The record of a run: all settings of a training command. Written to `run.yaml`; its digest names what the run learns."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from transfusion import config
from transfusion.codec.mel import Samples, SoundCodec
from transfusion.config import ConfigError
from transfusion.data.loader import PackingConfig
from transfusion.data.transforms import DocumentTransform
from transfusion.data.vocabulary import BPE, Tokenizer
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler, Sampler
from transfusion.files import keep_text, read_text
from transfusion.model.lora import LoRAConfig
from transfusion.model.network import ModelConfig
from transfusion.train.checkpoint import has_some
from transfusion.train.device import Device, Dtype
from transfusion.train.log import last_step
from transfusion.train.optimizer import AdamWConfig, OptimizerConfig
from transfusion.train.trainer import CheckpointConfig, TrainerConfig

MAX_SAMPLES = 1_000_000


@dataclass(frozen=True)
class ReportConfig:
    """The measurements at the end of a run.

    Args:
        images: images to generate from captions (0: none).
        readings: held-out images to caption (0: all).
        classifier: folder of the classifier that judges drawn images; where it holds none, one is fitted and kept there
            (default: `classifier/` in the run's folder). Give the runs that you compare the same.
        features: file of torchvision's MobileNetV2, in whose features recipes that look for the nearest image do so, beside
            pixels.
    """

    images: int = 500
    readings: int = 0
    classifier: str = ""
    features: str = ""

    def __post_init__(self) -> None:
        if not (0 <= self.images <= MAX_SAMPLES and 0 <= self.readings <= MAX_SAMPLES):
            raise ValueError(f"images and readings must be 0 to {MAX_SAMPLES:,}, not {self.images} and {self.readings}")


@dataclass(frozen=True)
class Run:
    """A training run.

    Args:
        recipe: name of the recipe.
        data: path of the data, for recipes that need one.
        out: folder of the run (default: runs/RECIPE). The same command resumes the run in it.
        seed: random seed.
        init: weights to start from: a run or model folder; or a language model, as a folder or hf://OWNER/MODEL on the Hugging
            Face hub, whose transformer and tokenizer the run adopts. `optimizer.language_lr_scale` 0 freezes a language
            model, `model.transformer.modality_weights` adds weights for media.
        autoencoder: pictures are learned as its latents: a folder that `transfusion train` or diffusers wrote, or
            hf://OWNER/MODEL[/SUBFOLDER] (default: that of the model in `init`, if it has one; none: pixels). The other settings
            stay those of pictures: sizes and patches in pixels.
        autoencoder_digest: of the autoencoder; recorded, and any other is refused (default: that of the one given).
        held_out: share of the documents, by a digest of their names, that is not trained on where the data has no split of its
            own; of 100 documents or more, and 1,000 of them at most.
        sound: what the sounds of modalities with a rate are learned as. Their other settings stay those of samples.
        device: auto takes cuda, else mps, else cpu.
        dtype: fp32, or bf16 under autocast; auto takes bf16 where the device is faster with it.
        tokenizer: text <-> ids.
        model: the network.
        transform: how a document becomes a training example.
        packing: shape of a batch.
        trainer: number of steps, logging.
        lora: low-rank adapters, saved in `adapter/` and merged in `model/`; all other weights of the transformer are frozen.
        optimizer: optimizer and learning rate.
        checkpoint: checkpoints.
        sampler: sampler for media; saved as the model's default.
        guidance: guidance scales; saved as the model's default.
        report: measurements at the end.
    """

    recipe: str
    data: str = ""
    out: str = ""
    seed: int = 0
    init: str = ""
    autoencoder: str = ""
    autoencoder_digest: str = ""
    held_out: float = 0.0
    sound: SoundCodec = Samples()
    device: Device = "auto"
    dtype: Dtype = "auto"
    tokenizer: Tokenizer = BPE()
    model: ModelConfig = field(default_factory=ModelConfig)
    transform: DocumentTransform = DocumentTransform()
    packing: PackingConfig = PackingConfig()
    trainer: TrainerConfig = TrainerConfig()
    lora: LoRAConfig = LoRAConfig()
    optimizer: OptimizerConfig = AdamWConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    sampler: Sampler = Euler()
    guidance: Guidance = Guidance()
    report: ReportConfig = ReportConfig()

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held-out is a share, 0 or more and less than 1, not {self.held_out}")

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.out or f"runs/{self.recipe}")

    @property
    def digest(self) -> str:
        """12 hex digits that name what the run learns: logging, output, checkpoints and report do not count."""
        named = replace(self, autoencoder="" if self.autoencoder_digest else self.autoencoder)
        return learned_digest(named, ReportConfig())


def flat(plain: object, prefix: str = "") -> dict[str, object]:
    """Dotted name -> value, of a configuration in its plain form (`config.to_plain`)."""
    if isinstance(plain, list) and plain and all(isinstance(item, dict) for item in plain):
        plain = {str(i): item for i, item in enumerate(plain)}
    if not isinstance(plain, dict):
        return {prefix: plain}
    return {k: v for key, value in plain.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()}


class Recorded(Protocol):
    """What `keep_record` keeps: a dataclass of settings, with fields `out` and `report` beside these."""

    @property
    def trainer(self) -> TrainerConfig: ...

    @property
    def optimizer(self) -> AdamWConfig: ...

    @property
    def checkpoint(self) -> CheckpointConfig: ...

    @property
    def folder(self) -> Path: ...

    @property
    def digest(self) -> str: ...


def learned_digest(run: Recorded, report: object) -> str:
    """12 hex digits of the settings of a run that its weights depend on: without its output, logs, checkpoints and report, in
    whose place `report` stands."""
    trainer = replace(run.trainer, log_every=1, sample_every=0)
    same = replace(run, out="", report=report, checkpoint=CheckpointConfig(), trainer=trainer)  # type: ignore[type-var]
    return config.digest(same)


def check_warmup(run: Recorded) -> None:
    """Raise ConfigError if the warm-up does not end within the run."""
    warmup, steps = run.optimizer.warmup, run.trainer.steps
    if warmup >= steps:
        raise ConfigError(
            f"the warm-up of {warmup} steps does not end within the run of {steps}, so the learning rate would never come to "
            f"its peak: set --optimizer.warmup to {steps * 16 // 1000} (the paper's share, 1.6 %), or --trainer.steps to more "
            f"than {warmup}"
        )


def keep_record(run: Recorded) -> None:
    """Write `run.yaml` into the folder of a run, which is made if need be.

    Raises:
        ConfigError: the folder holds checkpoints of another run, or its checkpoints are gone.
        OSError: the folder can't be read or written.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    recorded = run.folder / "run.yaml"
    remains = (run.folder / "model").exists() or last_step(run.folder) > run.checkpoint.every
    if remains and not has_some(run.folder / "checkpoints"):
        raise ConfigError(
            f"{run.folder} holds a run whose checkpoints/ are gone, and it would begin anew over what is there: restore them, "
            "choose another --out, or remove the folder"
        )
    if recorded.exists() and (run.folder / "checkpoints").exists():
        try:
            earlier = config.from_yaml(type(run), read_text(recorded))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{recorded} has settings of another version ({error}): resume it with that version, or choose another --out"
            ) from error
        if earlier.digest != run.digest:
            raise ConfigError(
                f"{run.folder} holds another run ({differences(earlier, run)}); repeat its own command to resume it, or choose "
                "another --out"
            )
    keep_text(recorded, config.to_yaml(run))


def differences(old: object, new: object) -> str:
    """The first settings in which two runs differ, the output folder left out."""
    a, b = flat(config.to_plain(old)), flat(config.to_plain(new))
    lines = [f"{k}: was {a.get(k)}, now {b.get(k)}" for k in {**a, **b} if a.get(k) != b.get(k) and k != "out"]
    return "; ".join(lines[:4]) + ("; ..." if len(lines) > 4 else "")
