"""`transfusion train pictures`: look at the data, measure the machine, choose what is not set, and say so before the training.

The choices are kept in `choices.json` in the run's folder: the same line again goes on with them.
"""

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transfusion import config
from transfusion.codec.autoencoder import Autoencoder
from transfusion.commands.autoencoder import step_seconds, train_autoencoder
from transfusion.config import ConfigError
from transfusion.data.document import Document, Media
from transfusion.data.media import DecodedImage, EncodedImage, Fit
from transfusion.data.survey import Survey, survey
from transfusion.files import read_json, read_text, write_text
from transfusion.run import choice
from transfusion.run.adopt import adopt_autoencoder, adopt_init
from transfusion.run.autoencoder import AutoencoderRun, small
from transfusion.run.choice import Choices, Finish, spoken
from transfusion.run.command_line import flag, parse_run, take
from transfusion.run.latents import NONE, open_autoencoder
from transfusion.run.recipe import Recipe
from transfusion.run.record import Run
from transfusion.train.log import METRICS, LogFn

FILE, AUTOENCODER = "choices.json", "autoencoder"
TRIED, WARM, TRIED_ON = 6, 2, 4000
"""Steps by which a run's speed is measured, those of them that are left out, and documents, about."""
LEAST_STEPS, MOST_STEPS = 200, 5000
"""Of an autoencoder."""
SMALL, BY_HEART, FEW = 1000, 100, 10
"""Pictures below which a set is small; times that each is seen: by heart from the second on, below the third too few for
captions."""

Train = Callable[[Run, Sequence[Document]], None]
"""Trains a run on documents, silently."""


@dataclass(frozen=True)
class Kept:
    """What the file holds.

    Args:
        data: what was chosen for.
        budget: the same; empty where steps were given.
        choices: of the run.
        autoencoder_steps: of the autoencoder that is trained first (0: none).
        autoencoder_side: pixels along a side of its pictures.
        step_seconds: seconds of a step of the run, as measured.
        passes: times that each picture is seen.
    """

    data: str
    budget: str
    choices: Choices = Choices()
    autoencoder_steps: int = 0
    autoencoder_side: int = 0
    step_seconds: float = 0.0
    passes: float = 0.0

    def save(self, folder: Path) -> None:
        """Into a run's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Kept | None":
        """From a run's folder; None where there are none. Raises ConfigError for a damaged file."""
        if not (folder / FILE).exists():
            return None
        try:
            plain = dict(read_json(folder / FILE))
            return cls(choices=Choices(**plain.pop("choices")), **plain)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"cannot read {folder / FILE} ({error}): remove it, or choose another --out") from error


def choose(recipe: Recipe, arguments: Sequence[str], program: str, train: Train, log: LogFn) -> Run:
    """The run of a command line, with choices for what it does not set.

    Args:
        train: trains a run, to measure its steps.

    Raises:
        ConfigError: settings that contradict each other, or a folder whose choices were made for another time or other data.
        ValueError: the data can't be read, or has no pictures.
    """
    budget, words = take("budget", list(arguments))
    explicit = {flag(word) for word in words if word.startswith("--")}
    default = recipe.run()
    run = parse_run(default, words, program, budget=True)
    if budget is not None and "trainer.steps" in explicit:
        raise ConfigError("--budget and --trainer.steps both say how long to train: leave one out")
    if not run.data:
        return run
    adopt_init(run, default.model)  # a setting that contradicts it is refused before any work
    default = _as_init(default, run)

    def finish(choices: Choices) -> Run:
        return adopt_autoencoder(parse_run(choices.apply(default), words, program, budget=True))

    if budget is None and "trainer.steps" not in explicit:
        budget = choice.DEFAULT_BUDGET
    duration = None if budget is None else choice.seconds(budget)
    kept = Kept.load(run.folder) or Kept(run.data, budget or "")
    if (kept.data, kept.budget) != (run.data, budget or ""):
        if (run.folder / "checkpoints").exists():
            made = f"--data {kept.data}" + (f" --budget {kept.budget}" if kept.budget else "")
            raise ConfigError(f"the choices in {run.folder} were made for {made}: repeat that line, or choose another --out")
        kept = Kept(run.data, budget or "")
    if kept.choices == Choices():
        documents = recipe.split(run, log)[0]
        kept = _Chooser(finish, documents, explicit, train, log).choose(run, kept, duration)
    else:
        log(f"as chosen before, see {run.folder / FILE}")
        if kept.autoencoder_steps:
            _train_autoencoder(run, kept, log)
    return finish(kept.choices)


def _as_init(default: Run, run: Run) -> Run:
    """The recipe's run with the network of the run that `init` names; as it is where that is no run."""
    for record in (Path(run.init) / "run.yaml", Path(run.init).parent / "run.yaml"):
        if run.init and record.exists():
            try:
                earlier = config.from_yaml(Run, read_text(record))
            except (OSError, ValueError):
                return default
            return replace(default, model=earlier.model, packing=earlier.packing)
    return default


def _fitted(document: Document, fit: Fit | None) -> Document:
    """The document with its images at another size."""
    if fit is None:
        return document
    segments = [
        replace(s, values=replace(s.values, fit=fit))
        if isinstance(s, Media) and isinstance(s.values, EncodedImage | DecodedImage)
        else s
        for s in document.segments
    ]
    return replace(document, segments=tuple(segments))


def _train_autoencoder(run: Run, kept: Kept, log: LogFn) -> Autoencoder:
    """Train the autoencoder of a run, or go on with it, or read it where it is finished."""
    settings = _autoencoder_run(run, kept)
    if (settings.folder / "model").exists():
        found = open_autoencoder(replace(run, autoencoder=str(settings.folder / "model")))[1]
        assert found is not None
        return found
    log(f"first an autoencoder, {kept.autoencoder_steps:,} steps, into {settings.folder}: reconstructions in its samples/")
    return train_autoencoder(settings, log)


def _autoencoder_run(run: Run, kept: Kept) -> AutoencoderRun:
    settings, steps = small("vae"), kept.autoencoder_steps
    channels = kept.choices.channels or 3
    convolutions = replace(settings.model.convolutions, channels=channels)
    return replace(
        settings,
        data=run.data,
        out=str(run.folder / AUTOENCODER),
        seed=run.seed,
        device=run.device,
        dtype=run.dtype,
        images=replace(settings.images, side=kept.autoencoder_side, flip=False),
        model=replace(settings.model, convolutions=convolutions),
        trainer=replace(settings.trainer, steps=steps, sample_every=max(steps // 4, 1), ema_decay=1 - max(5 / steps, 1e-3)),
        optimizer=replace(settings.optimizer, warmup=min(100, steps // 5)),
        checkpoint=replace(settings.checkpoint, every=max(steps // 8, 1)),
        report=replace(settings.report, images=200),
    )


@dataclass(frozen=True)
class _Chooser:
    """What choosing needs at every step.

    Args:
        finish: gives the run of choices, with the user's own settings.
        documents: to train on.
        explicit: names of the user's own settings.
    """

    finish: Finish
    documents: Sequence[Document]
    explicit: set[str]
    train: Train
    log: LogFn

    def choose(self, run: Run, kept: Kept, duration: float | None) -> Kept:
        """Choose, keep it, and say so."""
        pictures = any(isinstance(m.values, EncodedImage | DecodedImage) for d in self.documents for m in d.media)
        found = survey(self.documents, run.tokenizer) if pictures else None
        for line in found.lines() if found else ():
            self.log(line)
        if found is None or run.init:  # latents, or weights, whose form is given
            choices, autoencoder = Choices(), None
        elif duration is None:
            autoencoder = open_autoencoder(run)[1]
            sizes = choice.rung(found, choice.USUAL, autoencoder)
            choices = choice.pace(sizes, found, self.finish, 0.0, autoencoder)
        else:
            tried = choice.pace(choice.rung(found, choice.LADDER[1], None), found, self.finish, 0.0, None)
            rate = self._rate(tried)[0]
            kept, autoencoder = self._autoencoder(run, kept, found, duration)
            share = choice.AUTOENCODER_SHARE if kept.autoencoder_steps else 0.0
            choices = self._sizes(found, rate, (1 - share) * duration, autoencoder, kept)
            duration *= 1 - share
        if duration is not None:
            seconds = self._rate(choices)[1]
            choices = choice.timed(choices, self.finish, seconds, duration)
            kept = replace(kept, step_seconds=seconds)
        chosen = self.finish(choices)
        kept = replace(kept, choices=choices)
        if found is not None:
            kept = replace(kept, passes=choice.pictures_seen(chosen, found, autoencoder) / found.pictures)
        kept.save(chosen.folder)
        self._say(kept, chosen, found)
        return kept

    def _autoencoder(self, run: Run, kept: Kept, found: Survey, duration: float) -> tuple[Kept, Autoencoder | None]:
        """The autoencoder that is given, or one that is trained first, or none."""
        if not kept.autoencoder_steps:
            if not choice.wants_autoencoder(run, found, duration, self.explicit):
                return kept, open_autoencoder(run)[1]
            side = choice.resolution(found, 8, latents=True)
            channels = Choices(channels=3 if found.colour else 1)
            kept = replace(kept, autoencoder_steps=1000, autoencoder_side=side)
            each = step_seconds(_autoencoder_run(run, replace(kept, choices=channels)))
            steps = min(max(int(choice.AUTOENCODER_SHARE * duration / each), LEAST_STEPS), MOST_STEPS)
            kept = replace(kept, autoencoder_steps=steps)
            kept.save(run.folder)
            self.log(
                f"it will take about {spoken(duration)} in all: first an autoencoder, {spoken(steps * each)} ({steps:,} steps "
                f"of {each:.2f} s), then a network on its latents"
            )
        channels = Choices(channels=3 if found.colour else 1)
        return kept, _train_autoencoder(run, replace(kept, choices=channels), self.log)

    def _sizes(self, found: Survey, rate: float, duration: float, autoencoder: Autoencoder | None, kept: Kept) -> Choices:
        """Sizes for a time; chosen again where what was chosen is not as fast as what was measured: small networks are slower
        for their size."""
        folder = None if not kept.autoencoder_steps else str(self.finish(Choices()).folder / AUTOENCODER / "model")
        choices = Choices()
        for _ in range(3):
            total = rate * choice.SHARE * duration
            choices = choice.sizes(found, self.finish, total, autoencoder, folder)
            choices = choice.pace(choices, found, self.finish, total, autoencoder)
            measured = self._rate(choices)[0]
            if 0.75 < measured / rate < 1.33:
                break
            rate = measured
        return choices

    def _rate(self, choices: Choices) -> tuple[float, float]:
        """FLOPs a second of training, and seconds of a step: the middle of a few steps, on this machine and these documents."""
        run = self.finish(choices)
        with tempfile.TemporaryDirectory() as folder:
            trainer = replace(run.trainer, steps=TRIED, sample_every=0, log_every=TRIED + 1)
            optimizer = replace(run.optimizer, warmup=1)
            trial = replace(run, out=folder, trainer=trainer, optimizer=optimizer)
            some = self.documents[:: max(len(self.documents) // TRIED_ON, 1)]
            self.train(trial, [_fitted(document, Fit.of(run.model.modalities)) for document in some])
            lines = (Path(folder) / METRICS).read_text(encoding="utf-8").splitlines()
            steps = [record for record in map(json.loads, lines) if "seconds" in record][WARM:]
        each = statistics.median(step["seconds"] for step in steps)
        return statistics.median(step["flops"] for step in steps) / each, each

    def _say(self, kept: Kept, run: Run, found: Survey | None) -> None:
        """Each choice, with the option that changes it, and the time that all will take."""
        image, network = next((m for m in run.model.modalities if m.is_image), None), run.model.transformer
        lines: list[tuple[str, str]] = []
        denoised = run.model.kind == "transfusion"
        if image is not None and found is not None:
            height, width = image.shape
            grid = " x ".join(str(count) for count in image.slots(image.shape))
            lines.append((f"pictures of {height} x {width} pixels, {grid} slots", "--model.modalities.0.shape, .patch"))
            coded = f"{'latents' if denoised else 'codes'} of an autoencoder"
            learned = "pixels" if run.autoencoder in ("", NONE) else coded
            lines.append((f"learned as {learned}", "--autoencoder FOLDER"))
        lines += [
            (f"a network of width {network.width}, {network.depth} layers", "--depth"),
            *([(f"patches: {run.model.patcher.kind}", "--model.patcher.kind")] if denoised else []),
            (f"learning rate {run.optimizer.lr:g}, {run.optimizer.kind}", "--optimizer.lr"),
            (f"{run.packing.rows} rows of {run.packing.row_length} tokens a step", "--packing.rows, --packing.row-length"),
            (f"{run.trainer.steps:,} steps", "--trainer.steps, --budget"),
        ]
        width = max(len(text) for text, _ in lines)
        for text, option in lines:
            self.log(f"  {text:<{width}}   {option}")
        if kept.step_seconds:
            each = kept.step_seconds
            measuring = (1 - choice.SHARE) * run.trainer.steps * each / choice.SHARE
            total = run.trainer.steps * each + measuring
            self.log(
                f"it will take about {spoken(total)}: steps of {each:.2f} s, {spoken(measuring)} for sheets and measurements"
            )
        if image is not None and found is not None and found.sides.median < min(image.shape):
            self.log(
                f"note: most pictures are smaller than that, {found.sides} pixels along their shorter side: they are enlarged"
            )
        if found is not None and found.names_sides and run.transform.flip:
            self.log(f"{found.names_sides:.0%} of the captions speak of sides or letters: their pictures are not mirrored")
        if found is not None:
            self.log(_passes(kept.passes, found))


def _passes(passes: float, found: Survey) -> str:
    line = f"each picture is seen about {passes:,.0f} times" if passes >= 2 else f"{passes:.0%} of the pictures are seen"
    if found.pictures < SMALL and passes >= BY_HEART:
        return f"{line}: a set of {found.pictures} is learned by heart; more pictures, or less time, for new ones"
    if not found.is_uncaptioned and passes * found.pictures < FEW * found.captions:
        return f"{line}: too seldom for captions to be learned well; more time helps (--budget)"
    return line
