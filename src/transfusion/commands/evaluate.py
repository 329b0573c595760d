"""transfusion evaluate RUN --suite draw read [--data PATH] [--samples N] ...

Runs suites on what a run's model has never seen, and keeps a record of each in `RUN/records/`. Where one suite fails, the
others still run, and the command ends with exit code 1.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from transfusion import config, rng
from transfusion.api import Transfusion
from transfusion.config import ConfigError
from transfusion.data.document import Document, Media, Text
from transfusion.data.media import Fit, Picture
from transfusion.data.sources.read import read as read_data
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler, Sampler
from transfusion.evaluation import coco, digest, draw, edit, read, scenes, text
from transfusion.evaluation.classifier import ConvolutionalClassifier
from transfusion.evaluation.image_grid import sheet
from transfusion.evaluation.record import Record, short
from transfusion.evaluation.suite import EvalContext, SuiteResult
from transfusion.modality import is_image
from transfusion.model_folder import read_settings
from transfusion.recipes import CLASSES
from transfusion.recipes.classes import progress
from transfusion.recipes.run import LogFn, Run
from transfusion.train.device import Device, Dtype, pick_device, pick_dtype

Suite = Literal["text", "draw", "read", "edit", "scenes", "coco"]
RECORDS, SHEETS = "records", "sheets"
DRAWN = 5000
"""Pictures that are drawn unless a number is given: what Fréchet distances need to settle."""


@dataclass(frozen=True)
class Evaluate:
    """What to measure.

    Args:
        suite: text, draw, read, edit, scenes, coco.
        data: held-out data (default: the held-out part of what the run was trained on); for text also a .txt file, each
            of whose paragraphs, between empty lines, is a document.
        samples: documents to measure on, drawn by the seed (0: 5,000 pictures to draw, all there are to read; coco 30,000).
        judge: folder of a judge; a recipe with classes fits its own otherwise.
        names: of the classes, where captions name them and neither recipe nor judge knows them.
        questions: JSONL of questions with choices, for text.
        inception: file with Inception's weights, for FID and KID.
        clip: folder with a CLIP model, for the CLIP score.
        seed: names all chance.
        device: where to compute.
        dtype: fp32, bf16 under autocast, or what this machine does best.
        sampler, guidance: how pictures are drawn (default: as the run says).
    """

    suite: tuple[Suite, ...] = ()
    data: str = ""
    samples: int = 0
    judge: str = ""
    names: tuple[str, ...] = ()
    questions: str = ""
    inception: str = ""
    clip: str = ""
    seed: int = 0
    device: Device = "auto"
    dtype: Dtype = "auto"
    sampler: Sampler = field(default_factory=Euler)
    guidance: Guidance = Guidance()


def defaults(folder: str) -> Evaluate:
    """What a run's own settings say."""
    if not folder:
        return Evaluate()
    settings = read_settings(folder)
    return Evaluate(sampler=settings.sampler, guidance=settings.guidance)


def run_recipe(folder: str, options: Evaluate, log: LogFn, command: str = "") -> int:
    """Run the suites; the exit code comes back: 1 if one of them failed.

    Raises:
        ConfigError: no suite is named.
        ValueError: the run cannot be read.
    """
    if not options.suite:
        raise ConfigError("name one suite or more: --suite draw read")
    device = pick_device(options.device)
    model = Transfusion.from_pretrained(folder, device=device).eval()
    model.config = replace(model.config, sampler=options.sampler, guidance=options.guidance)
    failed = 0
    how = EvalContext(
        seed=options.seed,
        dtype=pick_dtype(options.dtype, device),
        names=options.names,
        inception=options.inception,
        clip=options.clip,
        command=command,
    )
    for name in dict.fromkeys(options.suite):
        try:
            for suite_result in _suite(name, folder, options, model, how):
                kept = suite_result.record.save(Path(folder) / RECORDS)
                _look(suite_result, Path(folder) / SHEETS, log)
                show(suite_result.record)
                log(f"record: {kept}")
        except Exception as error:  # whatever ends one suite, the others still run
            failed += 1
            log(f"{name} could not be measured: {error or type(error).__name__}")
    return 1 if failed else 0


def _suite(name: Suite, folder: str, options: Evaluate, model: Transfusion, how: EvalContext) -> Iterator[SuiteResult]:
    judge = ConvolutionalClassifier.load(options.judge) if options.judge else None
    with progress(name) as each:
        how = replace(how, progress=each, judge=judge, names=options.names or (judge.names if judge else ()))
        if name == "scenes":
            count = options.samples or 100
            scored = scenes.score(model, count=count, seed=how.seed, dtype=how.dtype, progress=how.progress)
            yield scenes.suite_result(model, scored, how)
        elif name == "coco":
            yield from _coco(model, options, how)
        elif name == "text":
            questions = text.read_questions(options.questions) if options.questions else ()
            documents = [] if questions and not options.data else _texts(folder, options, model)
            yield text.score(model, documents, replace(how, samples=options.samples or len(documents) or 1), questions)
        else:
            documents, how = _held_out(folder, options, how, model, judged=name == "draw")
            if not documents:
                raise ValueError("the held-out part is empty: give data with --data")
            samples = options.samples or (DRAWN if name == "draw" else len(documents))
            yield {"draw": draw, "read": read, "edit": edit}[name].score(model, documents, replace(how, samples=samples))


def _run(folder: str) -> Run | None:
    """The run that a folder holds; None for a model alone."""
    for kept in (Path(folder) / "run.yaml", Path(folder).parent / "run.yaml"):
        if kept.exists():
            with suppress(ConfigError):
                return config.from_yaml(Run, kept.read_text(encoding="utf-8"))
    return None


def _texts(folder: str, options: Evaluate, model: Transfusion) -> list[Document]:
    """Held-out text."""
    if Path(options.data).suffix == ".txt":
        try:
            content = Path(options.data).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read {options.data}: {error}") from error
        return [Document((Text(part),)) for part in content.split("\n\n") if part.strip()]
    run = _run(folder)
    if not options.data and run is not None and run.recipe in CLASSES:
        raise ValueError(f"all captions of {run.recipe} are trained on: give held-out text with --data (.txt, .jsonl)")
    return _read(run, options, model)[0]


def _held_out(
    folder: str, options: Evaluate, how: EvalContext, model: Transfusion, *, judged: bool
) -> tuple[list[Document], EvalContext]:
    """Documents that the run was not trained on, in an order drawn by the seed, and what is known of them."""
    run = _run(folder)
    recipe = CLASSES[run.recipe](replace(run, out=folder)) if run is not None and run.recipe in CLASSES else None
    if recipe is not None:
        if how.names and how.names != recipe.names:
            raise ValueError(
                f"the judge (or --names) knows {', '.join(how.names)}; the captions' classes are {', '.join(recipe.names)}: "
                "fit one of these classes, in this order, with transfusion train judge"
            )
        how = replace(how, names=recipe.names)
        if judged:
            how = replace(how, judge=how.judge or recipe.judge(), trained=recipe.trained()[0])
    if recipe is not None and not options.data:
        documents = recipe.readable()
        if judged:
            pictures, labels = recipe.held_out()
            how = replace(how, real=pictures, real_classes=labels)
    else:
        documents, trained = _read(run, options, model)
        notes: dict[str, str | int] = {
            "data": f"{rng.key('data', *(' '.join(digest.of_content(one)) for one in documents)):x}"[:12]
        }
        if recipe is not None:
            trained = list(recipe.documents())
        if trained:
            seen = {content for one in trained for content in digest.of_content(one)}
            again = sum(any(content in seen for content in digest.of_content(one)) for one in documents)
            if again > 0.05 * len(documents):
                raise ValueError(
                    f"the run was trained on {again} of the {len(documents)} documents in {options.data or 'its data'}, which "
                    "names no held-out part: give documents that it has never seen with --data"
                )
            notes["trained_on"] = again
        how = replace(how, notes=notes)
        if judged and how.trained is None and trained:
            how = replace(how, trained=_pictures(trained))
    order = rng.generator(rng.key("evaluate", how.seed)).permutation(len(documents))
    return [documents[i] for i in order], how


def _read(run: Run | None, options: Evaluate, model: Transfusion) -> tuple[list[Document], list[Document]]:
    """What is to be measured on, and what the run was trained on as far as that is known."""
    data = options.data or (run.data if run else "")
    if not data:
        raise ValueError("this folder says nothing of its data: give held-out documents with --data")
    fit = Fit.of(model.config.model.modalities) or Fit((1, 1))
    trained: list[Document] = []
    if run is not None and run.data and run.recipe not in CLASSES:
        with suppress(ValueError):  # it may have been moved since
            trained = list(read_data(run.data, fit))
    return list(read_data(data, fit, train=False)), trained


def _pictures(documents: Sequence[Document], most: int = 10_000) -> Tensor | None:
    found = [one.media[-1].tensor() for one in documents[:most] if one.media]
    return torch.stack(found) if found and all(one.shape == found[0].shape for one in found) else None


def _coco(model: Transfusion, options: Evaluate, how: EvalContext) -> Iterator[SuiteResult]:
    """The paper's protocol: FID and CLIP score on prompts of the validation captions, CIDEr on Karpathy's test pictures.

    FID compares with at most 10,000 of the prompts' own pictures, each once; the paper's count is 30,000.
    """
    if not options.data:
        raise ValueError("coco needs --data PATH: the folder with MS-COCO's annotations and pictures")
    fit = Fit.of(model.config.model.modalities)
    if fit is None:
        raise ValueError("this model has no modality of pictures")
    asked, references = coco.prompts(options.data, options.samples or 30_000, options.seed), coco.karpathy(options.data)
    documents = [Document((Text(one.caption), Media(Picture(one.image, fit, one.image.name)))) for one in asked]
    once = list({one.image: document for one, document in zip(asked, documents, strict=True)}.values())
    drawn = draw.score(model, documents, replace(how, samples=len(documents), real=_pictures(once)))
    yield replace(drawn, record=replace(drawn.record, suite="coco-draw"))
    found = [
        Document((Text(one.captions[0], paraphrases=one.captions[1:]), Media(Picture(one.image, fit, one.image.name))))
        for one in references
    ]
    told = read.score(model, found, replace(how, samples=min(options.samples or len(found), len(found)), names=()))
    yield replace(told, record=replace(told.record, suite="coco-read"))


def _look(suite_result: SuiteResult, folder: Path, log: LogFn, most: int = 50) -> None:
    """A sheet of a suite's first pictures, with captions and seeds."""
    shown = [
        (one.media[-1].tensor(), one.text, str(seed))
        for one, seed in zip(suite_result.documents, suite_result.seeds, strict=True)
        if one.media and is_image(one.media[-1].tensor().shape)
    ]
    shown = shown[:: max(len(shown) // most, 1)][:most]
    if shown:
        pictures, captions, seeds = zip(*shown, strict=True)
        path = folder / f"{suite_result.record.suite}.png"
        sheet(pictures, captions, path, labels=seeds)
        log(f"pictures: {path}")


def show(record: Record) -> None:
    """A record as a table."""
    table = Table("metric", "value", "95 % interval", "of", title=record.suite)
    for name, one in record.metrics.items():
        interval = "" if one.low is None or one.high is None else f"{short(one.low)} to {short(one.high)}"
        table.add_row(name, short(one.value), interval, f"{one.count:,}")
    console = Console()
    console.print(table)
    reasons = dict.fromkeys(record.missing.values())
    for reason in reasons:
        names = ", ".join(name for name, why in record.missing.items() if why == reason)
        console.print(f"{names}: not measured ({reason})", highlight=False, markup=False, soft_wrap=True)
