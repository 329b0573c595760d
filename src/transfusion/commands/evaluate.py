"""Measure a model on held-out data.

usage: transfusion evaluate RUN --suite draw read ... [--data PATH] [--samples N] [--name VALUE ...]

Writes a record of each suite to RUN/records and grids of images to RUN/grids. If a suite fails, the others still run, and the
exit code is 1.
"""

import shlex
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from transfusion import config, rng
from transfusion.api import Transfusion
from transfusion.commands.report import alternating_context, print_table
from transfusion.config import ConfigError
from transfusion.data.document import Document, Text
from transfusion.data.media import Fit
from transfusion.data.sources.latents import is_latents, refuse_latents
from transfusion.data.sources.read import has_held_out
from transfusion.data.sources.read import read as read_data
from transfusion.data.sources.scenes import held_out_scenes
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler, Sampler
from transfusion.evaluation import alternating, coco, digest, draw, edit, read, scenes, text
from transfusion.evaluation.chance import no_better_than_chance
from transfusion.evaluation.classifier import ConvolutionalClassifier
from transfusion.evaluation.features import ClipScore, InceptionFeatures
from transfusion.evaluation.image_grid import image_grid
from transfusion.evaluation.nearest import spaces
from transfusion.evaluation.questions import read_questions
from transfusion.evaluation.suite import EvalContext, SuiteResult, items_of, stack_images
from transfusion.files import read_text
from transfusion.model_folder import read_settings
from transfusion.recipes import RECIPES, find
from transfusion.run.command_line import parse, split_positional
from transfusion.run.judge import fitted_classifier
from transfusion.run.recipe import AlternatingTask, ClassTask, SuiteTask
from transfusion.run.record import MAX_SAMPLES, Run
from transfusion.train.device import Device, Dtype, pick_device, pick_dtype
from transfusion.train.log import LogFn, progress

Suite = Literal["text", "draw", "read", "edit", "scenes", "coco", "alternating", "task"]
SUITES = {"text": text, "draw": draw, "read": read, "edit": edit, "scenes": scenes, "coco": coco, "alternating": alternating}
RECORDS, GRIDS = "records", "grids"
NUM_DRAWN = 5000
"""Images to draw by default: enough for a stable Fréchet distance."""
NUM_WRITTEN = 1000
"""Documents of labels and images to write, and of a recipe's own measure, by default."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Suites, held-out data and sampling.

    Args:
        suite: what to measure; task: what only the run's own recipe measures.
        data: held-out data (default: the held-out split of the run's data); for text also a .txt file, in which empty lines
            separate documents.
        samples: documents to measure, a random subset (0: 5,000 images to draw, all documents to read; coco 30,000).
        classifier: folder of a classifier (default: fitted anew where the recipe's captions name classes).
        names: names of the classes in captions, where neither recipe nor classifier knows them.
        questions: JSONL of questions with choices, for text.
        inception: file with Inception's weights, for FID and KID.
        clip: folder with a CLIP model, for the CLIP score.
        features: file of torchvision's MobileNetV2, for the nearest image.
        seed: random seed.
        device: auto takes cuda, else mps, else cpu.
        dtype: fp32, or bf16 under autocast; auto takes bf16 where the device is faster with it.
        sampler: sampler for media (default: the run's).
        guidance: guidance scales (default: the run's).
    """

    suite: tuple[Suite, ...] = ()
    data: str = ""
    samples: int = 0
    classifier: str = ""
    names: tuple[str, ...] = ()
    questions: str = ""
    inception: str = ""
    clip: str = ""
    features: str = ""
    seed: int = 0
    device: Device = "auto"
    dtype: Dtype = "auto"
    sampler: Sampler = field(default_factory=Euler)
    guidance: Guidance = Guidance()

    def __post_init__(self) -> None:
        if not 0 <= self.samples <= MAX_SAMPLES:
            raise ValueError(f"samples must be 0 (the default number) to {MAX_SAMPLES:,}, not {self.samples}")


def run(arguments: list[str], log: LogFn) -> int:
    """The command; 1 if a suite failed.

    Raises:
        ConfigError: no suite is named.
        ValueError: the run, or a classifier, feature extractor or file of questions that is named, can't be read.
    """
    missing = "evaluate needs a run or model folder: transfusion evaluate RUN --suite draw read"
    folders, rest = split_positional(arguments, missing, __doc__, most=1)
    default = EvaluateOptions()
    if folders:
        saved = read_settings(folders[0])
        default = replace(default, sampler=saved.sampler, guidance=saved.guidance)
    options = parse(default, rest, "transfusion evaluate RUN")
    if not options.suite:
        raise ConfigError("name one suite or more: --suite draw read")
    (folder,) = folders
    _check_files(options)
    _run(folder)
    device = pick_device(options.device)
    model = Transfusion.from_pretrained(folder, device=device).eval()
    model.config = replace(model.config, sampler=options.sampler, guidance=options.guidance)
    failed = 0
    context = EvalContext(
        seed=options.seed,
        dtype=pick_dtype(options.dtype, device),
        inception=options.inception,
        clip=options.clip,
        features=options.features,
        command=shlex.join(["transfusion", "evaluate", *arguments]),
    )
    for name in dict.fromkeys(options.suite):
        try:
            documents, prepared = _prepare(name, folder, options, model, context, log)
            with progress(name) as each:
                prepared = replace(prepared, progress=each)
                result = (
                    SUITES[name].score(model, documents, prepared) if name in SUITES else _own(folder, options, model, prepared)
                )
            path = result.record.save(Path(folder) / RECORDS)
            _write_grid(result, Path(folder) / GRIDS, log)
            print_table(result.record.suite, result.record.metrics)
            classes = len(result.class_names or prepared.class_names)
            for remark in no_better_than_chance(result.record.metrics, classes, items_of(model)):
                log(remark)
            for reason, names in result.record.missing_by_reason().items():
                log(f"{names}: not measured ({reason})")
            for kind, judge in result.record.classifiers.items():
                log(f"{kind}: {judge}")
            log(f"record: {path}")
        except Exception as error:  # the other suites still run
            failed += 1
            log(f"{name} could not be measured: {error or type(error).__name__}")
    return 1 if failed else 0


def _check_files(options: EvaluateOptions) -> None:
    """Read what the options name, before any work. Raises ValueError."""
    if options.classifier:
        ConvolutionalClassifier.load(options.classifier)
    if options.inception:
        InceptionFeatures(options.inception)
    if options.clip:
        ClipScore(options.clip)
    spaces(options.features)
    if options.questions:
        read_questions(options.questions)


def _prepare(
    name: Suite, folder: str, options: EvaluateOptions, model: Transfusion, context: EvalContext, log: LogFn
) -> tuple[list[Document], EvalContext]:
    """A suite's documents, and the context with all that the suite needs."""
    classifier = ConvolutionalClassifier.load(options.classifier) if options.classifier else None
    names = options.names or (classifier.names if classifier else ())
    context = replace(context, classifier=classifier, class_names=names)
    samples = options.samples
    if name == "scenes":
        documents = held_out_scenes(samples or 100, options.seed)
        samples = len(documents)
    elif name == "alternating":
        run = _run(folder)
        task = find(run.recipe).task if run is not None and run.recipe in RECIPES else None
        if run is None or not isinstance(task, AlternatingTask):
            raise ValueError("alternating measures runs of labels and images in turn: transfusion train alternating")
        run = replace(run, out=folder, data=options.data or run.data)
        context = alternating_context(
            run, task.classes, classifier or fitted_classifier(run, task.classes.names, task.classes.fit_classifier), context
        )
        documents, samples = [], samples or NUM_WRITTEN
    elif name == "task":
        documents, samples = [], samples or NUM_WRITTEN
    elif name == "coco":
        documents = _coco(model, options)
        samples = len(documents)
    elif name == "text":
        context = replace(context, questions=read_questions(options.questions) if options.questions else ())
        documents = [] if context.questions and not options.data else _texts(folder, options, model, log)
    else:
        documents, context = _held_out(folder, options, context, model, log, drawing=name == "draw")
        if not documents:
            raise ValueError("the held-out split is empty: give data with --data")
        samples = samples or (NUM_DRAWN if name == "draw" else 0)
    return documents, replace(context, samples=samples or len(documents) or 1)


def _run(folder: str) -> Run | None:
    """The run that a folder holds; None for a model alone. Raises ValueError: its run.yaml cannot be read, so it is not known
    what it was trained on."""
    for kept in (Path(folder) / "run.yaml", Path(folder).parent / "run.yaml"):
        if kept.exists():
            try:
                return config.from_yaml(Run, read_text(kept))
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{kept} cannot be read ({error}), so it is not known what was trained on: restore it, or remove it "
                    "to measure the model alone"
                ) from error
    return None


def _task(run: Run | None) -> ClassTask | None:
    """The task of a run whose captions name classes."""
    task = find(run.recipe).task if run is not None and run.recipe in RECIPES else None
    return task if isinstance(task, ClassTask) else None


def _own(folder: str, options: EvaluateOptions, model: Transfusion, context: EvalContext) -> SuiteResult:
    """The measure of the recipe of a run. Raises ValueError: it has none, or would not read the data."""
    run = _run(folder)
    recipe = find(run.recipe) if run is not None and run.recipe in RECIPES else None
    if run is None or recipe is None or not isinstance(recipe.task, SuiteTask):
        raise ValueError("this run's recipe has no measure of its own: name others, such as --suite draw read")
    run = replace(run, out=folder, data=options.data or run.data)
    recipe.check_data(run)
    return recipe.task.score(run, model, context)


def _texts(folder: str, options: EvaluateOptions, model: Transfusion, log: LogFn) -> list[Document]:
    """Held-out text."""
    if Path(options.data).suffix == ".txt":
        try:
            content = read_text(Path(options.data))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read {options.data}: {error}") from error
        return [Document((Text(paragraph),)) for paragraph in content.split("\n\n") if paragraph.strip()]
    run = _run(folder)
    if not options.data and run is not None and _task(run):
        raise ValueError(f"all captions of {run.recipe} are trained on: give held-out text with --data (.txt, .jsonl)")
    return _read(run, options, model, log)[0]


def _held_out(
    folder: str, options: EvaluateOptions, context: EvalContext, model: Transfusion, log: LogFn, *, drawing: bool
) -> tuple[list[Document], EvalContext]:
    """Documents that the run was not trained on, in an order drawn by the seed, and what is known of them."""
    run = _run(folder)
    task = _task(run)
    if run is not None and task is not None:
        run = replace(run, out=folder)
        if context.class_names and context.class_names != task.names:
            raise ValueError(
                f"the classifier (or --names) has {', '.join(context.class_names)}; the captions name {', '.join(task.names)}: "
                "fit one of these classes, in this order, with transfusion train classifier"
            )
        context = replace(context, class_names=task.names)
        if drawing:
            classifier = context.classifier or fitted_classifier(run, task.names, task.fit_classifier)
            context = replace(context, classifier=classifier, trained=task.images(run, False)[0])
    if run is not None and task is not None and not options.data:
        documents = task.held_out_documents(run)
        if drawing:
            images, labels = task.images(run, True)
            context = replace(context, real=images, real_classes=labels)
    else:
        documents, trained = _read(run, options, model, log)
        notes: dict[str, str | int] = {
            "data": f"{rng.key('data', *(' '.join(digest.of_content(document)) for document in documents)):x}"[:12]
        }
        if run is not None and task is not None:
            trained = list(find(run.recipe).documents(run, lambda line: None))
        if trained:
            seen = {content for document in trained for content in digest.of_content(document)}
            again = sum(any(content in seen for content in digest.of_content(document)) for document in documents)
            if again > 0.05 * len(documents):
                raise ValueError(
                    f"the run was trained on {again} of the {len(documents)} documents in {options.data or 'its data'}, which "
                    "has no held-out split: give documents that it was not trained on with --data"
                )
            notes["trained_on"] = again
        context = replace(context, notes=notes)
        if drawing and context.trained is None and trained:
            context = replace(context, trained=stack_images(trained))
    order = rng.generator(rng.key("evaluate", context.seed)).permutation(len(documents))
    return [documents[i] for i in order], context


def _read(run: Run | None, options: EvaluateOptions, model: Transfusion, log: LogFn) -> tuple[list[Document], list[Document]]:
    """Documents to measure on, and those that the run was trained on, as far as they can still be read."""
    data = options.data or (run.data if run else "")
    if not data:
        raise ValueError("this folder has no record of its data: give held-out documents with --data")
    refuse_latents(data, "evaluation")
    fit = Fit.of(model.item_modalities) or Fit((1, 1))
    if run is not None and run.held_out and data == run.data and not has_held_out(data):
        kept, held_out = find(run.recipe).split(run, log)
        if held_out:
            return list(held_out), list(kept)
    trained: list[Document] = []
    if run is not None and run.data and _task(run) is None and not is_latents(Path(run.data)):
        with suppress(ValueError):  # they may have been moved since
            trained = list(read_data(run.data, fit))
    return list(read_data(data, fit, train=False).report(log)), trained


def _coco(model: Transfusion, options: EvaluateOptions) -> list[Document]:
    """Prompts of the validation captions, then Karpathy's test images."""
    if not options.data:
        raise ValueError("coco needs --data PATH: the folder with MS-COCO's annotations and pictures")
    fit = Fit.of(model.item_modalities)
    if fit is None or not any(modality.is_image for modality in model.item_modalities):
        raise ValueError("this model has no modality of pictures")
    prompts = coco.read_prompts(options.data, fit, options.samples or coco.NUM_PROMPTS, options.seed)
    references = coco.read_references(options.data, fit)
    return prompts + references[: options.samples or len(references)]


def _write_grid(result: SuiteResult, folder: Path, log: LogFn, most: int = 50) -> None:
    """A grid of a suite's images, every n-th of many, with captions, indices of the prompts and verdicts."""
    shown = result.grid
    shown = shown[:: max(len(shown) // most, 1)][:most]
    if shown:
        images, captions, labels = zip(*shown, strict=True)
        path = folder / f"{result.record.suite}.png"
        image_grid(images, captions, path, labels=labels)
        log(f"images: {path}")
