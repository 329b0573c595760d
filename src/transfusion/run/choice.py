"""The settings of a run on someone's own pictures, chosen from what the pictures are like and from the time that there is.

What a model learns of captions depends on how often it sees them, so the rule is: the largest network and the finest grid at
which every caption is still seen `PASSES` times and every picture `SEEN` times. Captions that are used come before sharpness.

    compute of the budget   seconds * FLOPs a second, as measured on this machine with this data
    pictures to be seen     max(PASSES * captions, SEEN * pictures, LEAST)
    compute a picture       the quotient; the last row of `LADDER` that costs no more is taken

Where `PASSES` comes from (emoji on latents, 64 slots, 6 layers; LOG.md): the own caption of training pictures is preferred for
0.94 of them after 3.4 passes, 0.97 after 6.8, 0.99 after 10, and how much worse another caption is grows fourfold meanwhile.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias, TypeVar

import torch

from transfusion import distributed
from transfusion.codec.autoencoder import Autoencoder
from transfusion.config import ConfigError
from transfusion.data.document import Document
from transfusion.data.loader import Loader, PackingConfig
from transfusion.data.survey import Survey
from transfusion.data.vocabulary import Vocabulary
from transfusion.diffusion.sampler import Heun
from transfusion.modality import IMAGE, Modality
from transfusion.model.flops import FlopCounter
from transfusion.model.network import ModelConfig, Network
from transfusion.run.latents import on_latents
from transfusion.run.presets import trunk
from transfusion.run.record import ReportConfig, Run
from transfusion.train.optimizer import MuonConfig, OptimizerConfig
from transfusion.train.trainer import CheckpointConfig, TrainerConfig

PASSES, SEEN, LEAST = 12, 6, 20_000
"""Times that each caption and each picture is seen at least, and the pictures that are seen in all."""
UPDATES = 2500
"""Optimizer steps that are aimed at: small steps teach more than large ones as long as there are few."""
LEAST_TOKENS, MOST_TOKENS = 8, 2**17
"""Tokens of a step: at least so many times the width, or Muon's iterations cost as much as the step itself; and at most."""
MIN_STEPS = 20
MUON = 25
"""FLOPs of Muon's iterations for each weight, over the width: five of them, of three products of matrices."""
PACKED, MOST_EPOCHS = 500, 8
"""Documents that are packed to find out how many rows an epoch takes, at least, in so many epochs at most."""
IDS = 1000
"""Of the vocabulary, roughly, for what a step costs."""
AROUND = 4
"""Tokens around a picture and its text: beginnings and ends."""
ROW = 256
"""Rows are multiples of so many tokens, and two of them at least."""
SHARE = 0.85
"""Of the budget for steps; the rest is for sheets and for measurements at the end."""
AUTOENCODER_BUDGET, AUTOENCODER_SHARE, AUTOENCODER_PICTURES = 15 * 60, 0.2, 300
"""Seconds from which on an autoencoder is trained first, its share of the budget, and the pictures that it needs."""
DEFAULT_BUDGET = "20m"
SHEETS, SHEETS_SHARE, END_SHARE = 100.0, 0.25, 0.1
"""Seconds between sheets, and the shares of the time that they take at most, and the drawings at the end."""
PROMPTS, LEAST_DRAWN, READ = 20, 10, 200
"""Pictures of a sheet; those that are drawn at the end, at least; those that are captioned, or measured caption by caption."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True)
class Rung:
    """A grid of slots, side x side of them, and the depth of a network."""

    grid: int
    depth: int


LADDER = (Rung(4, 3), Rung(8, 3), Rung(8, 4), Rung(8, 6), Rung(8, 8), Rung(16, 8), Rung(16, 12), Rung(16, 16), Rung(16, 24))
"""From cheap to dear."""
USUAL = Rung(8, 6)
"""Where nothing is said of the time."""


@dataclass(frozen=True)
class Choices:
    """What is chosen for a run; None: nothing, the recipe's own stays.

    Args:
        side: pixels along a side of the pictures.
        grid: slots along a side.
        channels: 1 (grey) or 3 (colour).
        depth: of the network, see `trunk`.
        row_length: tokens of a row, and of the context.
        rows: rows of a step.
        lr: learning rate.
        warmup, steps, sample_every, checkpoint_every: steps.
        autoencoder: folder of the autoencoder.
        report_images: pictures that are drawn at the end.
    """

    side: int | None = None
    grid: int | None = None
    channels: int | None = None
    depth: int | None = None
    row_length: int | None = None
    rows: int | None = None
    lr: float | None = None
    warmup: int | None = None
    steps: int | None = None
    sample_every: int | None = None
    checkpoint_every: int | None = None
    autoencoder: str | None = None
    report_images: int | None = None

    def apply(self, run: Run) -> Run:
        """A recipe's run with the choices."""
        model = run.model
        if self.side and self.grid and self.channels:
            extents = (self.side,) * 2, (self.side // self.grid,) * 2
            image = Modality(IMAGE, channels=self.channels, shape=extents[0], patch=extents[1])
            model = replace(model, modalities=(image,))
        if self.depth:
            model = replace(model, transformer=trunk(self.depth, model.transformer))
        if self.row_length:
            model = replace(model, context_length=self.row_length)
        run = replace(run, model=model, autoencoder=self.autoencoder or run.autoencoder)
        return replace(
            run,
            packing=_with(run.packing, row_length=self.row_length, rows=self.rows),
            optimizer=_with(run.optimizer, lr=self.lr, warmup=self.warmup),
            trainer=_with(run.trainer, steps=self.steps, sample_every=self.sample_every),
            checkpoint=_with(run.checkpoint, every=self.checkpoint_every),
            report=_with(run.report, images=self.report_images),
        )


T = TypeVar("T", PackingConfig, OptimizerConfig, TrainerConfig, CheckpointConfig, ReportConfig)
Finish: TypeAlias = Callable[[Choices], Run]


def _with(value: T, **changes: object) -> T:
    """The value with those changes that are not None."""
    return replace(value, **{name: change for name, change in changes.items() if change is not None})


def seconds(budget: str) -> float:
    """The seconds of "90s", "20m", "1.5h" or "2d". Raises ConfigError for anything else."""
    number, unit = budget[:-1], budget[-1:].lower()
    try:
        found = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        found = math.nan
    if not 0 < found < math.inf:
        raise ConfigError(f"--budget {budget!r} is no time: write 90s, 20m, 1.5h or 2d")
    return found


def spoken(duration: float) -> str:
    """A time as people say it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if duration >= 2 * size:
            return f"{duration / size:.{0 if duration >= 10 * size else 1}f} {unit}"
    return f"{duration:.0f} s"


def resolution(survey: Survey, grid: int, *, latents: bool) -> int:
    """Pixels along a side: no more than the pictures have, nor than patches of 8 pixels (16 on latents) can hold."""
    own = next((side for side, most in ((32, 40), (64, 96)) if survey.sides.median <= most), 128)
    return min(own, grid * (16 if latents else 8))


def picture_cost(run: Run, survey: Survey, autoencoder: Autoencoder | None) -> tuple[float, int]:
    """FLOPs of training on a picture with the usual caption, and its tokens and slots."""
    run = on_latents(run, autoencoder)
    image, tokens = run.model.modalities[0], survey.tokens.median
    length = tokens + math.prod(image.slots(image.shape)) + AROUND
    counter = _counter(run.model, IDS + image.codes)
    targets = length if image.codes else tokens + 3
    items = [] if image.codes else [(0, image.slots(image.shape))]  # codes are tokens
    return counter.document(length, targets, items).computed, length


def demand(survey: Survey) -> int:
    """Pictures that are to be seen in a run at least, each as often as it comes."""
    captions = 0 if survey.is_uncaptioned else survey.captions
    return max(PASSES * captions, SEEN * survey.pictures, LEAST)


def wants_autoencoder(run: Run, survey: Survey, budget: float, explicit: Collection[str]) -> bool:
    """Whether an autoencoder is worth its training: there is time, there are pictures for it, and nothing that was set says
    otherwise."""
    varied = run.transform.flip or run.transform.crop > 1  # which latents cannot be
    fixed = {"autoencoder", "init"} & set(explicit) or varied or run.model.kind != "transfusion"
    return not fixed and budget >= AUTOENCODER_BUDGET and survey.pictures >= AUTOENCODER_PICTURES and survey.sides.median > 40


def sizes(survey: Survey, finish: Finish, total: float, autoencoder: Autoencoder | None, folder: str | None = None) -> Choices:
    """Grid, resolution and network that a number of FLOPs is enough for.

    Args:
        finish: gives the run of choices, with the user's own settings.
        folder: of the autoencoder, where it is a choice too.
    """
    affordable, best = total / demand(survey), rung(survey, LADDER[0], autoencoder, folder)
    for higher in LADDER[1:]:
        found = rung(survey, higher, autoencoder, folder)
        if picture_cost(finish(found), survey, autoencoder)[0] > affordable:
            break
        best = found
    return best


def rung(survey: Survey, rung: Rung, autoencoder: Autoencoder | None, folder: str | None = None) -> Choices:
    """The choices of one rung."""
    channels = (3 if survey.colour else 1) if autoencoder is None else autoencoder.channels
    side = resolution(survey, rung.grid, latents=autoencoder is not None)
    return Choices(side=side, grid=rung.grid, channels=channels, depth=rung.depth, autoencoder=folder)


@lru_cache(maxsize=64)
def _counter(model: ModelConfig, ids: int) -> FlopCounter:
    """Of a network without weights."""
    with torch.device("meta"):
        return FlopCounter(Network(model, ids))


def step_cost(run: Run, survey: Survey, autoencoder: Autoencoder | None) -> float:
    """FLOPs of a step, of rows that are full of the usual picture and caption, without the optimizer."""
    flops, length = picture_cost(run, survey, autoencoder)
    return flops * run.packing.rows * run.packing.row_length / length


def optimizer_cost(run: Run) -> float:
    """FLOPs of an optimizer step, about: those of Muon's iterations, which take no account of rows."""
    network = run.model.transformer
    weights = 12 * network.width**2 * network.depth
    return MUON * network.width * weights if isinstance(run.optimizer, MuonConfig) else 0.0


def passes(run: Run, documents: Sequence[Document]) -> float:
    """Times that a run sees each document: the rows of its steps over those of an epoch, which are packed here as the loader
    packs them. Of large data a window is packed.

    Raises:
        ValueError: documents that do not fit in a row.
    """
    some = documents[:: math.ceil(len(documents) / run.packing.window)]
    vocabulary = Vocabulary(run.tokenizer.build([document.text for document in some]), run.model.modalities)
    is_coded = run.model.kind == "chameleon"  # codes stand once
    loader = Loader(
        some,
        transform=replace(run.transform, dual=0.0) if is_coded else run.transform,
        packing=run.packing,
        vocabulary=vocabulary,
        coordinates=run.model.coordinates,
        seed=run.seed,
    )
    epochs = min(max(PACKED // len(some), 1), MOST_EPOCHS)
    rows = sum(loader.num_rows(epoch) for epoch in range(epochs)) / epochs * len(documents) / len(some)
    return run.trainer.steps * run.packing.rows / rows


def pace(choices: Choices, survey: Survey, finish: Finish, total: float, autoencoder: Autoencoder | None) -> Choices:
    """The choices with rows that hold the longest document, about 2,500 steps of the FLOPs, and a rate for the width."""
    run = finish(choices)
    flops, length = picture_cost(run, survey, autoencoder)
    item = length - survey.tokens.median
    longest = survey.tokens.most + survey.items.most * item
    row = max(2 * ROW, ROW * math.ceil(longest / ROW))
    width = run.model.transformer.width
    tokens = min(max(total / flops * length / UPDATES, LEAST_TOKENS * width), MOST_TOKENS)
    lr = round(run.optimizer.lr * math.sqrt(256 / width), 6) if isinstance(run.optimizer, MuonConfig) and width > 256 else None
    processes = distributed.processes()
    return replace(choices, row_length=row, rows=max(round(tokens / row / processes), 1) * processes, lr=lr)


def drawing_cost(run: Run, survey: Survey, autoencoder: Autoencoder | None) -> float:
    """FLOPs of drawing a picture: a forward pass, a third of what training on it costs, for every evaluation of every branch of
    the guided sum. Codes are drawn one by one, all in one pass."""
    steps = 1 if run.model.kind == "chameleon" else run.sampler.num_steps * (2 if isinstance(run.sampler, Heun) else 1)
    branches = len(run.guidance.branches(has_text=not survey.is_uncaptioned, has_media=False))
    return picture_cost(run, survey, autoencoder)[0] / 3 * steps * branches


@dataclass(frozen=True)
class Extra:
    """Seconds of what is not a step.

    Args:
        sheet: of a sheet on the way, with the measurement of captions beside it.
        drawn: of a picture that is drawn at the end.
        read: of the captions and measurements at the end.
    """

    sheet: float = 0.0
    drawn: float = 0.0
    read: float = 0.0

    @classmethod
    def of(cls, run: Run, survey: Survey, autoencoder: Autoencoder | None, rate: float) -> "Extra":
        """Of a run, on a machine that trains at a rate of FLOPs a second."""
        drawn = drawing_cost(run, survey, autoencoder) / rate
        looked = picture_cost(run, survey, autoencoder)[0] / 3 / rate
        preference = 0.0 if survey.is_uncaptioned else 4 * min(READ, survey.pictures) * looked
        return cls(PROMPTS * drawn + preference, drawn, preference + READ * looked)

    def total(self, run: Run, pictures: int, step_seconds: float) -> float:
        """Of a whole run: what its sheets and its end cost, and no less than the usual share."""
        every, steps = run.trainer.sample_every, run.trainer.steps
        sheets = (steps - 1) // every if every else 0
        drawn = min(run.report.images, pictures) * self.drawn
        return max(sheets * self.sheet + drawn + self.read, (1 - SHARE) / SHARE * steps * step_seconds)


def timed(
    choices: Choices, finish: Finish, step_seconds: float, budget: float | None, extra: Extra = Extra(), pictures: int = 0
) -> Choices:
    """The choices with the steps that a time allows, a sheet every 100 seconds and a checkpoint every minute; fewer sheets, and
    fewer drawings at the end, where they are dear.

    Args:
        budget: seconds; None: the steps are given.
        extra: what is not a step.
        pictures: number of them: no more are drawn at the end.
    """
    run = finish(choices)
    drawn, images = min(run.report.images, pictures), None
    if budget is None:
        steps = run.trainer.steps
        budget = steps * step_seconds / SHARE
    else:
        if drawn * extra.drawn > END_SHARE * budget:
            images = min(drawn, max(int(END_SHARE * budget / extra.drawn), LEAST_DRAWN))
            drawn = min(finish(replace(choices, report_images=images)).report.images, pictures)
        steps = 0
    between = max(SHEETS, 2 * extra.sheet)
    most = int(SHEETS_SHARE * budget / extra.sheet) if extra.sheet else math.inf
    sheets = min(max(SHARE * budget / between, 3), most)
    left = budget - drawn * extra.drawn - extra.read - sheets * extra.sheet
    steps = steps or max(int(min(SHARE * budget, left) / step_seconds), MIN_STEPS)
    usual = min(round(between / step_seconds), steps // 4)
    return replace(
        choices,
        steps=steps,
        warmup=min(run.optimizer.warmup, steps // 10),
        sample_every=max(usual, math.ceil(steps / (most + 1)), 1),
        checkpoint_every=max(min(round(60 / step_seconds), steps), 1),
        report_images=images,
    )
