"""A run: everything that one line of command decides, and how it is carried out."""

import json
import shlex
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch

from transfusion import config, rng
from transfusion.api import Transfusion
from transfusion.config import ConfigError
from transfusion.data.document import Document, Text
from transfusion.data.loader import Loader, PackingConfig
from transfusion.data.transforms import DocumentTransform
from transfusion.data.vocabulary import BPE, Tokenizer, TokenizerFile, Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler, Sampler
from transfusion.evaluation.image_grid import sheet
from transfusion.modality import IMAGE
from transfusion.model import lora
from transfusion.model.lora import LoRAConfig
from transfusion.model.network import ModelConfig
from transfusion.model.pretrained import OVERRIDABLE_FIELDS, SIZE_FIELDS, LanguageModel, ModalityWeights, is_language_model
from transfusion.model_folder import TransfusionConfig, read_settings
from transfusion.nn.config import TransformerConfig
from transfusion.train.device import Device, Dtype, pick_device, pick_dtype
from transfusion.train.optimizer import AdamWConfig, OptimizerConfig
from transfusion.train.trainer import CheckpointConfig, Hook, Trainer, TrainerConfig

LogFn = Callable[[str], None]
TOKENIZER, CORPUS = "tokenizer.json", "corpus.json"


@dataclass(frozen=True)
class Report:
    """What is measured at the end.

    Args:
        pictures: pictures to draw from captions (0: none).
        readings: held-out pictures to read (0: all there are).
    """

    pictures: int = 500
    readings: int = 0


@dataclass(frozen=True)
class Run:
    """A whole run.

    Args:
        recipe: the recipe that it is a run of.
        data: path of the data, where the recipe needs one.
        out: the run's folder. The same line again goes on where it stopped.
        seed: names all chance.
        init: a run or model folder whose weights to start from; or a language model, its folder or OWNER/MODEL on the Hugging
            Face hub, whose trunk and tokenizer this run then has (`optimizer.language_lr_scale` 0 freezes it,
            `model.transformer.modality_weights`
            gives media weights of their own).
        device: where to compute.
        dtype: fp32, bf16 under autocast, or what this machine does best.
        tokenizer: text <-> ids.
        model: the network.
        transform: how documents are written for training.
        packing: shape of a batch.
        trainer: budget.
        lora: adapters on the trunk, which is then frozen; the run's folder has them in `adapter/`, merged in `model/`.
        optim: optimiser.
        checkpoint: checkpoints.
        sampler: how pictures are drawn, now and by default later.
        guidance: how strongly they follow their text.
        report: what is measured at the end.
    """

    recipe: str
    data: str = ""
    out: str = ""
    seed: int = 0
    init: str = ""
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
    report: Report = Report()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.out or f"runs/{self.recipe}")

    @property
    def digest(self) -> str:
        """Names what the run learns; display, output and checkpoints left out."""
        same = replace(
            self,
            out="",
            report=Report(),
            checkpoint=CheckpointConfig(),
            trainer=replace(self.trainer, log_every=1, sample_every=0),
        )
        return config.digest(same)


def prepare(run: Run, log: LogFn) -> None:
    """Check what can be checked before any work, and write `run.yaml`.

    Raises:
        ConfigError: settings that contradict each other.
        OSError: the folder can't be written.
    """
    if run.packing.rows % run.trainer.accumulate:
        raise ConfigError(
            f"packing.rows ({run.packing.rows}) must be a multiple of trainer.accumulate ({run.trainer.accumulate})"
        )
    if run.lora.rank and run.optimizer.language_lr_scale != 1.0:
        raise ConfigError(
            f"--lora.rank {run.lora.rank} freezes what came from a language model and puts adapters onto its matrices, which "
            f"--optimizer.language_lr_scale {run.optimizer.language_lr_scale:g} would neither slow nor keep: "
            "leave out one of the two"
        )
    pick_device(run.device)
    if run.optimizer.warmup >= run.trainer.steps:
        log(
            f"note: the warm-up ({run.optimizer.warmup} steps) is longer than the run ({run.trainer.steps}): "
            "see --optimizer.warmup"
        )
    run.folder.mkdir(parents=True, exist_ok=True)
    recorded = run.folder / "run.yaml"
    if recorded.exists() and (run.folder / "checkpoints").exists():
        kept = config.from_yaml(Run, recorded.read_text(encoding="utf-8"))
        if kept.digest != run.digest:
            raise ConfigError(
                f"{run.folder} holds another run ({differences(kept, run)}); type its own line again to go on with it, or "
                "choose another --out"
            )
    recorded.write_text(config.to_yaml(run), encoding="utf-8")


def resolved(run: Run) -> Run:
    """The run with the model that it will have: one that goes on from a language model, directly or by way of a run of ours,
    has that one's trunk. Of the trunk's settings, `weights`, `adaln` and `dropout` remain the run's own.

    Raises:
        ConfigError: settings that are not as in the recipe, and can't be had.
        ValueError: what it goes on from can't be read.
    """
    from transfusion.recipes import find

    if not run.init:
        return run
    model, usual = run.model, find(run.recipe).run().model
    if is_language_model(run.init):
        theirs = LanguageModel.open(run.init).model(
            model, modality_weights=model.transformer.modality_weights, context_length=model.context_length
        )
        _refuse(run, usual, theirs, SIZE_FIELDS)
        return replace(run, model=theirs)
    settings = read_settings(run.init)
    if settings.language is None:
        return run
    theirs = replace(model, transformer=settings.model.transformer, tie_embeddings=settings.model.tie_embeddings)
    own = {
        name: getattr(model.transformer, name)
        for name in OVERRIDABLE_FIELDS
        if getattr(model.transformer, name) != getattr(usual.transformer, name)
    }
    order, there, here = typing.get_args(ModalityWeights), theirs.transformer.modality_weights, own.get("modality_weights")
    if here is not None and order.index(here) < order.index(there):
        raise ConfigError(
            f"{run.init} has model.transformer.modality_weights {there}, of which {here} has no place for all: leave it out"
        )
    _refuse(run, usual, theirs, {f.name for f in fields(TransformerConfig)} - OVERRIDABLE_FIELDS)
    return replace(run, model=replace(theirs, transformer=replace(theirs.transformer, **own)))


def _refuse(run: Run, usual: ModelConfig, theirs: ModelConfig, names: set[str]) -> None:
    """Raise ConfigError for settings that are neither the recipe's own nor those that the model will have."""
    three = [_flat(config.to_plain(model)) for model in (run.model, usual, theirs)]
    known = ("tie_embeddings", *(f"transformer.{name}" for name in names - {"mlp_multiple_of"}))  # unused with `mlp_width`
    wrong = [
        f"--model.{name} {value} ({three[2].get(name)} there)"
        for name, value in three[0].items()
        if (name in known or name.startswith(tuple(f"{one}." for one in known)))
        and value not in (three[1].get(name), three[2].get(name))
    ]
    if wrong:
        raise ConfigError(f"the trunk comes from {run.init}, which cannot have {', '.join(wrong)}: leave these out, or --init")


def _flat(plain: object, where: str = "") -> dict[str, object]:
    """Dotted names of settings and their values."""
    if isinstance(plain, list) and plain and all(isinstance(one, dict) for one in plain):
        plain = {str(i): one for i, one in enumerate(plain)}
    if not isinstance(plain, dict):
        return {where: plain}
    return {k: v for key, value in plain.items() for k, v in _flat(value, f"{where}.{key}" if where else key).items()}


def differences(one: Run, other: Run) -> str:
    """The first settings in which two runs differ."""

    a, b = _flat(config.to_plain(one)), _flat(config.to_plain(other))
    found = [f"{k}: {a.get(k)} there, {b.get(k)} here" for k in {**a, **b} if a.get(k) != b.get(k) and k not in ("out",)]
    return "; ".join(found[:4]) + ("; ..." if len(found) > 4 else "")


def command_line(run: Run) -> str:
    """The command that says this run: its recipe, and all in which it differs from that."""
    from transfusion.recipes import find

    own, now = _flat(config.to_plain(find(run.recipe).run())), _flat(config.to_plain(run))
    other = tuple(k.removesuffix("kind") for k, v in now.items() if k.endswith(".kind") and own.get(k) != v)
    words = ["transfusion", "train", run.recipe]
    for name, value in now.items():  # of another kind all is said: what it keeps of the recipe's own is no matter then
        if name != "out" and (name not in own or own[name] != value or name.startswith(other)):
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def build(run: Run, corpus: Sequence[Document], log: LogFn) -> Transfusion:
    """The model of a run that is `resolved`, new or from `--init` weights, on its device."""
    if run.init and isinstance(run.tokenizer, TokenizerFile):
        raise ConfigError("--init brings its own tokenizer: leave out --tokenizer, or --init")
    settings = TransfusionConfig(run.model, run.transform.condition_dropout, run.sampler, run.guidance)
    if run.init and is_language_model(run.init):
        model = Transfusion.from_language_model(
            run.init,
            modality_weights=run.model.transformer.modality_weights,
            context_length=run.model.context_length,
            config=settings,
            seed=run.seed,
        )
        log(f"starting from the language model {run.init}, with its trunk: {trunk_in_words(model.config.model.transformer)}")
    else:
        model = _own(run, settings, corpus, log)
    if run.lora.rank:
        lora.add(model.network, run.lora, seed=run.seed)
        trained = sum(p.numel() for p in model.network.parameters() if p.requires_grad)
        log(f"adapters of rank {run.lora.rank}: {trained:,} parameters are trained, all others frozen")
    log(f"{model.network.num_parameters:,} parameters, {len(model.vocabulary)} ids, {len(corpus):,} documents")
    return model.to(pick_device(run.device))


def trunk_in_words(transformer: TransformerConfig) -> str:
    """Its sizes, for people."""
    sizes = f"width {transformer.width}, depth {transformer.depth}, {transformer.num_heads} heads"
    return f"{sizes}, weights {transformer.modality_weights}"


def _own(run: Run, settings: TransfusionConfig, corpus: Sequence[Document], log: LogFn) -> Transfusion:
    """The model of a run, new or from weights of a model of ours."""
    kept = run.folder / TOKENIZER
    source = Transfusion.from_pretrained(run.init) if run.init else None
    ids = source.config.language if source is not None else None
    settings = replace(settings, language=ids)
    if kept.exists():
        vocabulary = Vocabulary.load(kept, run.model.modalities, ids)
    elif source is not None:
        vocabulary = Vocabulary(source.vocabulary.tokenizer, run.model.modalities, ids)
    else:
        vocabulary = Vocabulary(run.tokenizer.build(_texts(corpus)), run.model.modalities)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(run.seed, "weights"))
        model = Transfusion(settings, vocabulary)
    if source is not None:
        taken = model.init_from(source)
        log(f"starting from {run.init}: {taken}")
    else:
        log("starting from scratch")
    return model


def same_corpus(run: Run, corpus: Sequence[Document]) -> None:
    """Note what a new run is trained on; a run that goes on must have the same.

    Raises:
        ConfigError: the data is not what the run began with.
    """
    if not len(corpus):
        raise ConfigError("there is nothing to train on: the data holds no documents")
    said = ((one.name, *(s.content if isinstance(s, Text) else s.modality for s in one.segments)) for one in corpus)
    now = {"documents": len(corpus), "digest": f"{rng.key(*(repr(one) for one in said)):x}"}
    noted = run.folder / CORPUS
    if noted.exists() and (run.folder / "checkpoints").exists():
        then = json.loads(noted.read_text(encoding="utf-8"))
        if then != now:
            raise ConfigError(
                f"the data has changed since {run.folder} began ({then['documents']:,} documents then, {now['documents']:,} "
                "now, or other texts): go on with the data as it was, or start from its weights with --init and another --out"
            )
    else:
        (run.folder / TOKENIZER).unlink(missing_ok=True)
    noted.write_text(json.dumps(now) + "\n", encoding="utf-8")


def _texts(corpus: Sequence[Document]) -> list[str]:
    found: dict[str, None] = {}
    for one in corpus:
        for segment in one.segments:
            if isinstance(segment, Text):
                found.update(dict.fromkeys(t for t in (segment.content, *segment.paraphrases) if isinstance(t, str)))
    return list(found)


def train(run: Run, corpus: Sequence[Document], prompts: Sequence[str], log: LogFn) -> Transfusion:
    """Train a run, from its newest checkpoint if it has one; the averaged weights are saved in `model/` and come back.

    Args:
        prompts: captions of the sample sheets that are drawn on the way.
        say: takes lines for the reader.
    """
    run = resolved(run)
    prepare(run, log)
    same_corpus(run, corpus)
    model = build(run, corpus, log)
    model.vocabulary.save(run.folder / TOKENIZER)
    device = pick_device(run.device)
    dtype = pick_dtype(run.dtype, device)
    log(f"on {device.type} in {'bf16' if dtype == torch.bfloat16 else 'fp32'}, into {run.folder}")
    loader = Loader(
        corpus,
        transform=run.transform,
        packing=run.packing,
        vocabulary=model.vocabulary,
        coordinates=run.model.coordinates,
        seed=run.seed,
        parts=run.trainer.accumulate,
    )

    def draw(step: int) -> None:
        documents = model.generate(list(prompts), force=IMAGE, seed=run.seed, dtype=dtype)
        pictures = [document.media[-1].tensor() for document in documents]
        sheet(pictures, list(prompts), run.folder / "samples" / f"step-{step:08d}.png")

    hooks: list[tuple[int, Hook]] = [(run.trainer.sample_every, draw)] if prompts and run.model.modalities else []
    trainer = Trainer(
        model,
        loader,
        config=run.trainer,
        optimizer=run.optimizer,
        checkpoint_config=run.checkpoint,
        media_weight=run.model.media_weight,
        folder=run.folder,
        digest=run.digest,
        device=device,
        dtype=dtype,
        hooks=hooks,
        needs_ema_teacher=run.model.auxiliary.needs_ema_teacher,
    )
    if trainer.resume(log):
        log(f"going on from step {trainer.step}")
    trainer.run()
    trainer.average()
    if run.lora.rank:
        lora.save(model.network, run.folder / "adapter")
        lora.merge(model.network)
    model.eval().save_pretrained(run.folder / "model")
    return model


def training_seconds(folder: Path) -> float:
    """What the steps of a run took, over all its starts."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line)["seconds"] for line in lines)


def last_losses(folder: Path, count: int = 50) -> dict[str, float]:
    """Mean text and media loss over the last steps that a run recorded."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-count:]
    records = [json.loads(line) for line in lines]
    if not records:
        return {}
    return {name: sum(r[name] for r in records) / len(records) for name in ("text_loss", "media_loss")}
