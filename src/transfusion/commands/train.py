"""Train a recipe, an autoencoder or a classifier of images.

usage: transfusion train RECIPE [--data PATH] [--out FOLDER] [--preset NAME] [--size NAME] [--section.name VALUE ...]
       transfusion train vae|vq --data PATH [--out FOLDER] [--preset NAME] [--section.name VALUE ...]
       transfusion train classifier [--data PATH] [--out FOLDER] [--name VALUE ...]

The same command again resumes the run. `transfusion train RECIPE --help` lists all settings.
"""

import contextlib
import io
import shlex
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from transfusion import distributed, rng
from transfusion.api import Transfusion
from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.codes import Codes
from transfusion.codec.latent_corpus import LatentCorpus
from transfusion.codec.mel import Mel
from transfusion.commands import autoencoder, classifier
from transfusion.commands.choosing import choose
from transfusion.commands.hooks import preference, samples, with_room
from transfusion.commands.report import report
from transfusion.config import ConfigError
from transfusion.data.document import Document, Text
from transfusion.data.document import document as as_document
from transfusion.data.learned import LearnedDocuments
from transfusion.data.loader import Loader
from transfusion.data.media import DecodedImage, EncodedImage
from transfusion.data.outputs import OUTPUTS, write_documents
from transfusion.data.vocabulary import TokenizerFile, Vocabulary
from transfusion.evaluation.nearest import spaces
from transfusion.files import locked
from transfusion.model import lora
from transfusion.model.pretrained import is_language_model
from transfusion.model_folder import Budget, TransfusionConfig
from transfusion.recipes import RECIPES, find
from transfusion.run.adopt import adopt_init
from transfusion.run.command_line import parse_run, split_positional
from transfusion.run.corpus import keep_corpus
from transfusion.run.judge import kept_classifier
from transfusion.run.latents import autoencoders_of, on_latents, open_autoencoder
from transfusion.run.recipe import AlternatingTask, ClassTask, Prompt, SuiteTask
from transfusion.run.record import Run, check_warmup, keep_record
from transfusion.run.room import check_room
from transfusion.train.device import memory, pick_device, pick_dtype
from transfusion.train.log import LogFn, ignored, printable, training_costs
from transfusion.train.objective import TransfusionObjective
from transfusion.train.stopping import Stopped
from transfusion.train.trainer import Hook, Optimization, Trainer

TOKENIZER, PROMPTS = "tokenizer.json", "prompts"
LINE = 100
"""Characters of a prompt that a line shows."""


def run(arguments: list[str], log: LogFn) -> int:
    """The command."""
    if arguments[:1] == ["classifier"]:
        return classifier.run(arguments[1:], log)
    if arguments[:1] == ["vae"] or arguments[:1] == ["vq"]:
        return autoencoder.run("vae" if arguments[0] == "vae" else "vq", arguments[1:], log)
    names, rest = recipe_words("train", arguments, __doc__)
    if not names:
        return 0
    recipe, program = find(names[0]), f"transfusion train {names[0]}"
    with distributed.joined() as world:
        log = log if world.is_main else ignored
        if not recipe.chooses:
            return train_recipe(parse_run(recipe.run(), rest, program), log)
        return train_recipe(distributed.from_main(lambda: choose(recipe, rest, program, _silently, log)), log)


def _silently(run: Run, documents: Sequence[Document], autoencoder: Autoencoder | None, hook: Hook) -> None:
    """Train without a word: the run is a trial of a few steps, of which nothing is kept."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            train(run, documents, [], ignored, autoencoder=autoencoder, hooks=[hook])
    except Stopped:
        raise KeyboardInterrupt from None


def recipe_settings(command: str, arguments: list[str], usage: str | None) -> Run | None:
    """The run of `COMMAND RECIPE [--section.name VALUE ...]`; None after the usage, where only help was asked for."""
    names, rest = recipe_words(command, arguments, usage)
    return parse_run(find(names[0]).run(), rest, f"transfusion {command} {names[0]}") if names else None


def recipe_words(command: str, arguments: list[str], usage: str | None) -> tuple[list[str], list[str]]:
    """The recipe's name in `COMMAND RECIPE ...` and the other words; no name after the usage, where only help was asked for."""
    names, rest = split_positional(arguments, f"{command} needs a recipe: {', '.join(RECIPES)}", usage, most=1)
    if not names:
        width = max(map(len, RECIPES))
        print("recipes:\n" + "\n".join(f"  {name:<{width}}  {summary}" for name, summary in RECIPES.items()))
    return names, rest


def train_recipe(run: Run, log: LogFn) -> int:
    """Train a recipe's run, then measure its task and write the report. Raises InUse: another process works in its folder."""
    began = time.monotonic()
    recipe = find(run.recipe)
    recipe.check_data(run)
    if isinstance(recipe.task, ClassTask | AlternatingTask):
        classes = recipe.task if isinstance(recipe.task, ClassTask) else recipe.task.classes
        kept_classifier(run, classes.names)  # one that cannot judge is refused before the training
    spaces(run.report.features)
    run, autoencoder = open_autoencoder(run)  # one that does not fit is refused before the data is read
    documents, held_out = recipe.split(run, log)
    if isinstance(recipe.task, SuiteTask):
        recipe.task.check(run, documents)
    prompts = recipe.prompts(documents)
    model = train(run, documents, prompts, log, held_out=held_out, autoencoder=autoencoder)
    if not distributed.world().is_main:
        return 0
    with locked(run.folder):
        report(run, recipe, model, log, training=time.monotonic() - began, documents=documents, held_out=held_out)
    if prompts:
        out = f"{run.model.modalities[0].name}s" if run.model.modalities else "texts"
        words = ["transfusion", "generate", str(run.folder), *_asked(run, model, prompts), "--out", out]
        log(f"next: {shlex.join(words)}")
    return 0


def _asked(run: Run, model: Transfusion, prompts: Sequence[Prompt]) -> list[str]:
    """The words that ask for the last prompt, or where it is long for the shortest, cut off where that is long too; where
    prompts have items, for all, which are written into the run's folder."""
    last = prompts[-1]
    if isinstance(last, str):
        texts = [prompt for prompt in prompts if isinstance(prompt, str) and prompt]
        asked = last if len(last) <= LINE else textwrap.shorten(min(texts, key=len), LINE, placeholder="")
        return ["--prompt", printable(asked or last[:LINE])]
    folder = run.folder / PROMPTS
    write_documents([model.codecs.decoded(as_document(prompt)) for prompt in prompts], folder, model.item_modalities)
    return ["--prompts", str(folder / OUTPUTS)]


def train(
    run: Run,
    corpus: Sequence[Document],
    prompts: Sequence[Prompt],
    log: LogFn,
    *,
    held_out: Sequence[Document] = (),
    autoencoder: Autoencoder | None = None,
    hooks: Sequence[Hook] = (),
) -> Transfusion:
    """Train a run, from its newest checkpoint if it has one. Returns the model with averaged weights, saved in `model/`.

    Args:
        prompts: of the samples of the first modality, generated every `trainer.sample_every` steps.
        held_out: documents that are not trained on, for caption preference, which is measured as often and at the end; without
            them it is measured on the corpus.
        autoencoder: one made in Python, instead of that of `run.autoencoder`; the same resumes the run.
        hooks: called on the way beside those of samples and measurements.

    Raises:
        ConfigError: settings contradict each other, or the folder holds another run; an autoencoder that does not fit the run.
        InUse: another process works in the folder.
        ValueError: no checkpoint is usable, the data cannot be packed, or holds latents of another autoencoder.
        OSError: the folder can't be written.
        Diverged: losses are not finite for `trainer.patience` steps.
        Stopped: SIGTERM or Ctrl-C came; the run is saved.
    """
    if run.init:
        own = run.model.coordinates
        run = adopt_init(run, find(run.recipe).run().model)
        if run.model.coordinates != own:
            log(f"coordinates of order {run.model.coordinates.order}, those of {run.init}")
    run, autoencoder = open_autoencoder(run, autoencoder)
    _check_augmentation(run, corpus, autoencoder)
    here = distributed.world()
    _check(run, here.size)
    check_room(run, corpus, autoencoder)
    with locked(run.folder) if here.is_main else contextlib.nullcontext():
        return _train(run, corpus, prompts, log, held_out, autoencoder, hooks)


def _train(
    run: Run,
    corpus: Sequence[Document],
    prompts: Sequence[Prompt],
    log: LogFn,
    held_out: Sequence[Document],
    autoencoder: Autoencoder | None,
    hooks: Sequence[Hook],
) -> Transfusion:
    """`train`, with checked settings, in a folder that is held."""
    here = distributed.world()

    def prepare() -> None:
        keep_record(run)
        if not (run.folder / "checkpoints").exists():
            (run.folder / TOKENIZER).unlink(missing_ok=True)  # an earlier attempt's, of other texts
        keep_corpus(run.folder, corpus, instead="start from its weights with --init and another --out")

    def start() -> Transfusion:
        model = build(run, corpus, log, autoencoder)
        if here.is_main:
            model.vocabulary.save(run.folder / TOKENIZER)
        return model

    distributed.from_main(prepare)
    model = distributed.main_first(start)
    device = pick_device(run.device)
    dtype = pick_dtype(run.dtype, device)
    log(f"on {device.type} in {'bf16' if dtype == torch.bfloat16 else 'fp32'}, into {run.folder}")
    if autoencoder is not None:
        what = "codes" if isinstance(autoencoder, Codes) else "latents"
        log(f"pictures are learned as {what} of autoencoder {autoencoder.digest} ({run.autoencoder or 'given in Python'})")
        if what == "latents" and autoencoder.bound is None:
            log(
                "note: the scale and the range of its latents were never measured, so they may not be learned well, and DDPM, "
                "whose estimates are then not bounded, may draw noise: transfusion data measure writes it with both"
            )
    for codec in model.codecs.autoencoders.values():
        if isinstance(codec, Mel):
            log(f"sounds are learned as {codec.mel}")
    model.codecs.to(device)
    loader = Loader(
        LatentCorpus(corpus, model.codecs),
        transform=run.transform,
        packing=run.packing,
        vocabulary=model.vocabulary,
        coordinates=run.model.coordinates,
        seed=run.seed,
        rank=here.rank,
        world=here.size,
        parts=run.trainer.accumulate,
    )
    for line in loader.left_out:
        log(f"left out: {line}")
    if loader.num_single:
        log(
            f"note: {loader.num_single:,} documents have items that are drawn and read but no room in a row for two copies of "
            f"them: they stand once, and what follows is learned from noised items; more room: --packing.row-length"
        )
    prompts = with_room(model, prompts, log)
    hooks = [*hooks, *([samples(run, model, prompts, dtype)] if prompts and run.model.modalities else [])]
    if measure := preference(run, model, corpus, held_out, dtype):
        hooks.append(Hook(measure, run.trainer.sample_every, at_end=True))
    objective = TransfusionObjective(
        model,
        media_weight=run.model.media_weight,
        needs_ema_teacher=run.model.auxiliary.needs_ema_teacher,
        decoders=model.codecs.decoders if run.model.auxiliary.reconstruction else None,
    )
    trainer = Trainer(
        objective,
        loader,
        optimizers=[Optimization(model, run.optimizer)],
        config=run.trainer,
        checkpoint_config=run.checkpoint,
        folder=run.folder,
        digest=run.digest,
        device=device,
        dtype=dtype,
        hooks=hooks,
    )
    if trainer.resume(log):
        log(f"resuming from step {trainer.step}")
    trainer.run()
    trainer.average()
    if not here.is_main:
        return model
    _log_costs(run, log)
    if run.lora.rank:
        lora.save(model.network, run.folder / "adapter")
        lora.merge(model.network)
    model.learned = LearnedDocuments.of(
        corpus, run.transform, seed=run.seed, prompts=[prompt for prompt in prompts if isinstance(prompt, str)]
    )
    model.eval().save_pretrained(run.folder / "model")
    return model


def _log_costs(run: Run, log: LogFn) -> None:
    """FLOPs of the whole training, of a token and of a document."""
    if not (costs := training_costs(run.folder)):
        return
    computed, paper = costs["flops"], costs["flops_6nd"]
    each = ", ".join(
        f"{computed / max(costs[name], 1):.3g} ({paper / max(costs[name], 1):.3g}) a {name.removesuffix('s')}"
        for name in ("tokens", "documents")
    )
    log(f"FLOPs of training, computed (and as 6 N D): {computed:.3g} ({paper:.3g}); {each}")


def build(run: Run, corpus: Sequence[Document], log: LogFn, autoencoder: Autoencoder | None = None) -> Transfusion:
    """The model of a run on its device, with new weights or those of `init`, whose config it has adopted (`adopt_init`).

    Raises:
        ConfigError: `init` brings a tokenizer, and the run names another.
        ValueError: `init` can't be read, or its weights do not fit.
    """
    if run.init and isinstance(run.tokenizer, TokenizerFile):
        raise ConfigError("--init brings its own tokenizer: leave out --tokenizer, or --init")
    codecs = autoencoders_of(run, autoencoder)
    run = on_latents(run, autoencoder)
    settings = TransfusionConfig(run.model, run.transform.condition_dropout, run.sampler, run.guidance)
    if run.init and is_language_model(run.init):
        model = Transfusion.from_language_model(
            run.init,
            modality_weights=run.model.transformer.modality_weights,
            context_length=run.model.context_length,
            config=settings,
            autoencoder=codecs,
            seed=run.seed,
        )
        sizes = model.config.model.transformer
        log(
            f"starting from the language model {run.init}: width {sizes.width}, depth {sizes.depth}, {sizes.num_heads} heads, "
            f"modality weights {sizes.modality_weights}"
        )
    else:
        model = _build_own(run, settings, corpus, log, codecs)
    if run.lora.rank:
        lora.add(model.network, run.lora, seed=run.seed)
        trained = sum(p.numel() for p in model.network.parameters() if p.requires_grad)
        log(f"LoRA of rank {run.lora.rank}: {trained:,} parameters are trained, all others frozen")
    log(f"{model.network.num_parameters:,} parameters, {len(model.vocabulary)} ids, {len(corpus):,} documents")
    return model.to(pick_device(run.device))


def _build_own(
    run: Run, settings: TransfusionConfig, corpus: Sequence[Document], log: LogFn, codecs: Mapping[str, Autoencoder]
) -> Transfusion:
    """The model of a run: new, or from a model folder."""
    saved = run.folder / TOKENIZER
    source = Transfusion.from_pretrained(run.init) if run.init else None
    language = source.config.language if source is not None else None
    settings = replace(settings, language=language)
    if saved.exists():
        vocabulary = Vocabulary.load(saved, run.model.modalities, language)
    elif source is not None:
        vocabulary = Vocabulary(source.vocabulary.tokenizer, run.model.modalities, language)
    else:
        vocabulary = Vocabulary(run.tokenizer.build(_texts(corpus)), run.model.modalities)
    sizes = "the settings of --model ask for more weights than this machine's memory holds"
    with torch.random.fork_rng(devices=[]), Budget(memory() // 4, sizes):
        torch.manual_seed(rng.key(run.seed, "weights"))
        model = Transfusion(settings, vocabulary, autoencoder=codecs)
    start = "scratch" if source is None else f"{run.init}: {model.init_from(source)}"
    if not (run.folder / "checkpoints").is_dir():
        log(f"starting from {start}")
        if source is not None and source.codecs.digests != model.codecs.digests:
            log(
                f"note: {run.init} learned latents of other autoencoders than this run does: its patchers start from theirs, "
                "its codes from codes of other meaning"
            )
    return model


def _check(run: Run, processes: int) -> None:
    """Raise ConfigError for settings that contradict each other, before any work."""
    parts = run.trainer.accumulate
    if run.packing.rows % (parts * processes):
        times = f" times {processes} processes" if processes > 1 else ""
        raise ConfigError(f"packing.rows ({run.packing.rows}) must be a multiple of trainer.accumulate ({parts}){times}")
    if run.lora.rank and run.optimizer.language_lr_scale != 1.0:
        raise ConfigError(
            "LoRA freezes the language model's weights, so their learning rate has no effect: leave out --lora.rank "
            f"{run.lora.rank} or --optimizer.language-lr-scale {run.optimizer.language_lr_scale:g}"
        )
    pick_device(run.device)
    check_warmup(run)


def _check_augmentation(run: Run, corpus: Sequence[Document], autoencoder: Autoencoder | None) -> None:
    """Raise ConfigError where images are to be varied and none would be."""
    if not run.transform.flip and run.transform.crop == 1:
        return
    options = "--augment (--transform.flip, --transform.crop)"
    if autoencoder is not None:
        raise ConfigError(
            f"{options} varies pixels, and this run learns latents: leave it out, or encode views of each picture once with "
            "transfusion data encode --crops N --flips True"
        )
    if not any(isinstance(m.values, EncodedImage | DecodedImage) for document in corpus for m in document.media):
        raise ConfigError(f"{options} varies images of files, and these documents hold none: leave it out")


def _texts(corpus: Sequence[Document]) -> list[str]:
    """Every text of a corpus once, paraphrases included, for the tokenizer to learn from."""
    texts: dict[str, None] = {}
    for document in corpus:
        for segment in document.segments:
            if isinstance(segment, Text):
                texts.update(dict.fromkeys(t for t in (segment.content, *segment.paraphrases) if isinstance(t, str)))
    return list(texts)
