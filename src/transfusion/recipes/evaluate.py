"""transfusion evaluate RUN --suite draw read [--data PATH] [--samples N] ...

Runs suites on what a run's model has never seen, and keeps a record of each in `RUN/records/`. Where one suite fails, the
others still run, and the command ends with exit code 1.
"""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from transfusion import config
from transfusion.api import Transfusion, read_settings
from transfusion.config import ConfigError
from transfusion.data.document import Document, Media, Text
from transfusion.data.media import Fit, Picture
from transfusion.data.readers import read as read_data
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler, Sampler
from transfusion.evaluation import coco, draw, edit, read, scenes, text
from transfusion.evaluation.judge import ConvolutionalJudge
from transfusion.evaluation.record import Record, short
from transfusion.evaluation.sheet import sheet
from transfusion.evaluation.suite import How, Outcome
from transfusion.recipes import CLASSES
from transfusion.recipes.classes import progress
from transfusion.recipes.run import Run, Say
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
        data: held-out data (default: the held-out part of what the run was trained on).
        samples: documents to measure on (0: 5,000 pictures to draw, all there are to read; coco 30,000).
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


def carry_out(folder: str, options: Evaluate, say: Say, command: str = "") -> int:
    """Run the suites; the exit code comes back: 1 if one of them failed.

    Raises:
        ConfigError: no suite is named.
        ValueError: the run cannot be read.
    """
    if not options.suite:
        raise ConfigError("name one suite or more: --suite draw read")
    device = pick_device(options.device)
    model = Transfusion.from_pretrained(folder, device=device).eval()
    model.settings = replace(model.settings, sampler=options.sampler, guidance=options.guidance)
    failed = 0
    for name in dict.fromkeys(options.suite):
        try:
            outcomes = _suite(name, folder, options, model, How(dtype=pick_dtype(options.dtype, device), command=command))
        except (ValueError, OSError) as error:
            failed += 1
            say(f"{name} could not be measured: {error}")
            continue
        for outcome in outcomes:
            kept = outcome.record.save(Path(folder) / RECORDS)
            _look(outcome, Path(folder) / SHEETS, say)
            show(outcome.record)
            say(f"record: {kept}")
    return 1 if failed else 0


def _suite(name: Suite, folder: str, options: Evaluate, model: Transfusion, how: How) -> list[Outcome]:
    run = _run(folder)
    how = replace(how, seed=options.seed, inception=options.inception, clip=options.clip, names=options.names)
    with progress(name) as each:
        how = replace(how, progress=each)
        if name == "scenes":
            count = options.samples or 100
            scored = scenes.score(model, count=count, seed=how.seed, dtype=how.dtype, progress=how.progress)
            return [scenes.outcome(model, scored, how)]
        if name == "coco":
            return _coco(model, options, how)
        documents, how = _held_out(run, folder, options, how, model, words=name == "text")
        if options.judge:
            judge = ConvolutionalJudge.load(options.judge)
            how = replace(how, judge=judge, names=options.names or how.names or judge.names)
            if how.names != judge.names:
                raise ValueError(
                    f"the judge in {options.judge} knows {', '.join(judge.names)}; the captions' classes are "
                    f"{', '.join(how.names)}: fit one of these classes, in this order, with transfusion train judge"
                )
        if name == "text":
            questions = text.read_questions(options.questions) if options.questions else ()
            return [text.score(model, documents, replace(how, samples=options.samples or len(documents) or 1), questions)]
        if not documents:
            raise ValueError("the held-out part is empty: give data with --data")
        if name == "draw":
            return [draw.score(model, documents, replace(how, samples=options.samples or DRAWN))]
        score = read.score if name == "read" else edit.score
        return [score(model, documents, replace(how, samples=options.samples or len(documents)))]


def _run(folder: str) -> Run | None:
    """The run that a folder holds; None for a model alone."""
    for kept in (Path(folder) / "run.yaml", Path(folder).parent / "run.yaml"):
        if kept.exists():
            with suppress(ConfigError):
                return config.from_yaml(Run, kept.read_text(encoding="utf-8"))
    return None


def _held_out(
    run: Run | None, folder: str, options: Evaluate, how: How, model: Transfusion, words: bool
) -> tuple[list[Document], How]:
    """Documents that the run was not trained on, and what is known of them."""
    if words and options.questions and not options.data:
        return [], how
    if words and options.data and Path(options.data).suffix == ".txt":
        try:
            content = Path(options.data).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read {options.data}: {error}") from error
        return [Document((Text(part),)) for part in content.split("\n\n") if part.strip()], how
    if run is not None and run.recipe in CLASSES:
        recipe = CLASSES[run.recipe](replace(run, data=options.data or run.data, out=folder))
        if not words:
            known = recipe.how(1, how.dtype)
            how = replace(known, **{name: getattr(how, name) for name in ("seed", "inception", "clip", "command", "progress")})
        return recipe.readable(), how
    data = options.data or (run.data if run else "")
    if not data:
        raise ValueError("this folder says nothing of its data: give held-out documents with --data")
    image = next((m for m in model.settings.model.modalities if len(m.shape) == 2 and m.channels in (1, 3)), None)
    fit = Fit((image.shape[0], image.shape[1]), image.channels) if image else Fit((1, 1))
    held_out = list(read_data(data, fit, train=False))
    if run is not None and run.data and Path(data).resolve() == Path(run.data).resolve():
        trained = {one.name for one in read_data(data, fit)}
        if any(one.name in trained for one in held_out):
            raise ValueError(
                f"{data} names no held-out part, and the run was trained on all of it: give documents that it has never seen "
                "with --data"
            )
    return held_out, how


def _coco(model: Transfusion, options: Evaluate, how: How) -> list[Outcome]:
    """The paper's protocol: FID and CLIP score on prompts of the validation captions, CIDEr on Karpathy's test pictures."""
    if not options.data:
        raise ValueError("coco needs --data PATH: the folder with MS-COCO's annotations and pictures")
    image = next((m for m in model.settings.model.modalities if len(m.shape) == 2 and m.channels in (1, 3)), None)
    if image is None:
        raise ValueError("this model has no modality of pictures")
    fit = Fit((image.shape[0], image.shape[1]), image.channels)
    asked = coco.prompts(options.data, options.samples or 30_000, options.seed)
    documents = [Document((Text(one.caption), Media(Picture(one.image, fit, one.image.name)))) for one in asked]
    drawn = draw.score(model, documents, replace(how, samples=len(documents)))
    found = [
        Document((Text(one.captions[0], wordings=one.captions[1:]), Media(Picture(one.image, fit, one.image.name))))
        for one in coco.karpathy(options.data)
    ]
    told = read.score(model, found, replace(how, samples=min(options.samples or len(found), len(found))))
    return [replace(one, record=replace(one.record, suite=f"coco-{one.record.suite}")) for one in (drawn, told)]


def _look(outcome: Outcome, folder: Path, say: Say, most: int = 50) -> None:
    """A sheet of a suite's first pictures, with captions and seeds."""
    shown = [
        (one.media[-1].tensor(), one.text, str(seed))
        for one, seed in zip(outcome.documents, outcome.seeds, strict=True)
        if one.media and one.media[-1].tensor().ndim == 3
    ]
    shown = shown[:: max(len(shown) // most, 1)][:most]
    if shown:
        pictures, captions, seeds = zip(*shown, strict=True)
        path = folder / f"{outcome.record.suite}.png"
        sheet(pictures, captions, path, labels=seeds)
        say(f"pictures: {path}")


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
