"""`transfusion train pictures`: look at the data, measure the machine, choose what is not set, and say so before the training.

The choices are kept in `choices.json` in the run's folder: the same line again goes on with them. Where that file is gone and
the run has begun, it goes on as its `run.yaml` says.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from transfusion import config
from transfusion.codec.autoencoder import Autoencoder
from transfusion.commands.autoencoder import step_seconds, train_autoencoder
from transfusion.commands.measuring import Measuring, Speed, Train, fitted
from transfusion.config import ConfigError
from transfusion.data.document import Document
from transfusion.data.media import DecodedImage, EncodedImage, Fit
from transfusion.data.survey import Survey, counted, survey
from transfusion.files import read_json, read_text, write_text
from transfusion.model.pretrained import is_language_model
from transfusion.model.transfer import check_transformers
from transfusion.model_folder import read_settings
from transfusion.run import choice
from transfusion.run.adopt import adopt_autoencoder, adopt_init
from transfusion.run.autoencoder import AutoencoderRun, small
from transfusion.run.choice import Choices, Extra, Finish, spoken
from transfusion.run.command_line import flag, parse_run, take
from transfusion.run.latents import NONE, open_autoencoder
from transfusion.run.recipe import Recipe
from transfusion.run.record import Run, check_warmup, keep_record
from transfusion.train.checkpoint import has_some
from transfusion.train.log import LogFn

FILE, AUTOENCODER = "choices.json", "autoencoder"
MEASURED_SHARE, MEASURED_SECONDS = 0.15, 20.0
"""Of a budget that the measuring takes, and seconds where there is none; a step or two in any case."""
FIRST_RATE = 5e10
"""FLOPs a second that are taken to be there before any are measured: one core's."""
LEAST_STEPS, MOST_STEPS = 200, 5000
"""Of an autoencoder."""
SMALL, BY_HEART, FEW = 1000, 100, 10
"""Pictures below which a set is small; times that each is seen: by heart from the second on, below the third too few for
captions."""


@dataclass(frozen=True)
class Kept:
    """What the file holds.

    Args:
        data: what was chosen for.
        budget: the same; empty where steps were given.
        settings: the same: the other options of the line, each with its values.
        choices: of the run.
        autoencoder_steps: of the autoencoder that is trained first (0: none).
        autoencoder_side: pixels along a side of its pictures.
        autoencoder_step_seconds: seconds of a step of it, as measured.
        step_seconds: seconds of a step of the run, as measured.
        passes: times that each picture is seen.
    """

    data: str
    budget: str
    settings: tuple[str, ...] = ()
    choices: Choices = Choices()
    autoencoder_steps: int = 0
    autoencoder_side: int = 0
    autoencoder_step_seconds: float = 0.0
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
            settings = tuple(plain.pop("settings", ()))
            return cls(choices=Choices(**plain.pop("choices")), settings=settings, **plain)
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
    run = parse_run(default, words, program, budget=True)
    _check_init(run)

    def finish(choices: Choices) -> Run:
        return adopt_autoencoder(parse_run(choices.apply(default), words, program, budget=True))

    if budget is None and "trainer.steps" not in explicit:
        budget = choice.DEFAULT_BUDGET
    asked = Kept(run.data, budget or "", _settings(words))
    duration = None if budget is None else choice.seconds(budget)
    kept = _earlier(run.folder, asked)
    if kept is not None:
        log(f"as chosen before, see {run.folder / FILE}")
    elif (recorded := _recorded(run.folder)) is not None:
        log(f"as recorded in {run.folder / 'run.yaml'}")
        return adopt_autoencoder(parse_run(replace(recorded, out=run.out), words, program, budget=True))
    else:
        if (run.folder / "model").exists():
            keep_record(run)  # which refuses a run without its checkpoints
        documents = recipe.split(run, log)[0]
        kept = _Chooser(finish, documents, explicit, train, log).choose(run, asked, duration)
    if kept.autoencoder_steps:
        _train_autoencoder(run, kept, log)
    return finish(kept.choices)


def _settings(words: Sequence[str]) -> tuple[str, ...]:
    """Each option of a line with its values, in one order; without those that say where data and run are."""
    options: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            options.append([flag(name), *([value] if equals else [])])
        elif options:
            options[-1].append(word)
    return tuple(sorted(" ".join(option) for option in options if option[0] not in ("data", "out")))


def _has_begun(folder: Path) -> bool:
    return has_some(folder / "checkpoints")


def _earlier(folder: Path, asked: Kept) -> Kept | None:
    """The choices of an earlier line that this one goes on with; None where it is to choose. Raises ConfigError: a run that has
    begun was chosen for other data, or another time."""
    kept = Kept.load(folder)
    if kept is None:
        return None
    is_same = (kept.data, kept.budget) == (asked.data, asked.budget)
    if not is_same and (_has_begun(folder) or _begun_autoencoder(folder) is not None):
        made = f"--data {kept.data}" + (f" --budget {kept.budget}" if kept.budget else "")
        raise ConfigError(f"the choices in {folder} were made for {made}: repeat that line, or choose another --out")
    if _has_begun(folder) or (is_same and kept.settings == asked.settings):
        return kept  # where the run has begun, other settings are compared with run.yaml
    return None


def _recorded(folder: Path) -> Run | None:
    """The run that has begun in a folder, as its record says; None where none has. Raises ConfigError for a record of another
    version."""
    record = folder / "run.yaml"
    if not (_has_begun(folder) and record.exists()):
        return None
    try:
        return config.from_yaml(Run, read_text(record))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{record} has settings of another version ({error}): resume it with that version, or choose another --out"
        ) from error


def _begun_autoencoder(folder: Path) -> AutoencoderRun | None:
    """The autoencoder whose training a run's folder has begun; None where there is none."""
    record = folder / AUTOENCODER / "run.yaml"
    if not (_has_begun(folder / AUTOENCODER) and record.exists()):
        return None
    try:
        return config.from_yaml(AutoencoderRun, read_text(record))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {record} ({error}): choose another --out") from error


def _check_init(run: Run) -> None:
    """Raise ConfigError where the weights that a run starts from do not fit its network."""
    if not run.init or is_language_model(run.init):
        return
    settings = read_settings(run.init)
    if settings.language is None:
        try:
            check_transformers(run.model.transformer, settings.model.transformer)
        except ValueError as error:
            raise ConfigError(f"--init {run.init}: {error}") from error


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


def _train_autoencoder(run: Run, kept: Kept, log: LogFn) -> Autoencoder:
    """Train the autoencoder of a run, or go on with it, or read it where it is finished."""
    settings = _autoencoder_run(run, kept)
    if (settings.folder / "model").exists():
        found = open_autoencoder(replace(run, autoencoder=str(settings.folder / "model")))[1]
        assert found is not None
        return found
    steps = counted(kept.autoencoder_steps, "step")
    log(f"first an autoencoder, {steps}, into {settings.folder}: reconstructions in its samples/")
    return train_autoencoder(settings, log)


def _autoencoder_run(run: Run, kept: Kept) -> AutoencoderRun:
    settings, steps = small("vae"), kept.autoencoder_steps
    channels, each = kept.choices.channels or 3, kept.autoencoder_step_seconds
    between = max(min(round(choice.SHEETS / each) if each else steps, steps // 4), 1)
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
        trainer=replace(settings.trainer, steps=steps, sample_every=between, ema_decay=1 - max(5 / steps, 1e-3)),
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
        """Choose, say so, and keep it."""
        began = time.monotonic()
        has_pictures = any(isinstance(m.values, EncodedImage | DecodedImage) for d in self.documents for m in d.media)
        found = survey(self.documents, run.tokenizer) if has_pictures else None
        for line in found.lines() if found else ():
            self.log(line)
        most = MEASURED_SECONDS if duration is None else MEASURED_SHARE * duration
        measuring = Measuring(self.finish, self.documents, self.train, most)
        measuring.spent = time.monotonic() - began
        self.log(f"measuring the speed of this machine, about {spoken(max(most - measuring.spent, 1))} at most")
        if found is None or run.init:  # latents, or weights, whose form is given
            choices, autoencoder = Choices(), open_autoencoder(self.finish(Choices()))[1]
            speed = measuring.speed(choices, found, autoencoder, FIRST_RATE)
        elif duration is None:
            autoencoder = open_autoencoder(run)[1]
            choices = choice.pace(choice.rung(found, choice.USUAL, autoencoder), found, self.finish, 0.0, autoencoder)
            speed = measuring.speed(choices, found, autoencoder, FIRST_RATE)
        else:
            kept, autoencoder = self._autoencoder(run, kept, found, duration, measuring)
            duration -= kept.autoencoder_steps * kept.autoencoder_step_seconds
            tried = choice.pace(choice.rung(found, choice.LADDER[1], None), found, self.finish, 0.0, None)
            rate = measuring.speed(tried, found, None, FIRST_RATE).rate
            choices, speed = self._sizes(found, rate, duration, autoencoder, kept, measuring)
        extra = Extra() if found is None else Extra.of(self.finish(choices), found, autoencoder, speed.rate)
        left = None if duration is None else max(duration - measuring.spent, 0)
        pictures = 0 if found is None else found.pictures
        choices = choice.timed(choices, self.finish, speed.step_seconds, left, extra, pictures)
        chosen = self.finish(choices)
        check_warmup(chosen)
        kept = replace(kept, choices=choices, step_seconds=speed.step_seconds)
        if found is not None:
            fit = Fit.of(chosen.model.modalities)
            kept = replace(kept, passes=choice.passes(chosen, [fitted(document, fit) for document in self.documents]))
        rest = extra.total(chosen, pictures, speed.step_seconds)
        self._say(kept, chosen, found, rest, measuring.spent)
        kept.save(chosen.folder)
        return kept

    def _autoencoder(
        self, run: Run, kept: Kept, found: Survey, duration: float, measuring: Measuring
    ) -> tuple[Kept, Autoencoder | None]:
        """The autoencoder that is given, or one that is trained first, here as it begins, or none."""
        if not choice.wants_autoencoder(run, found, duration, self.explicit):
            return kept, open_autoencoder(run)[1]
        begun = _begun_autoencoder(run.folder)
        if begun is not None and begun.data != run.data:
            raise ConfigError(f"the autoencoder in {run.folder / AUTOENCODER} learned {begun.data}: choose another --out")
        side = choice.resolution(found, 8, latents=True) if begun is None else begun.images.side
        channels = Choices(channels=3 if found.colour else 1)
        kept = replace(kept, choices=channels, autoencoder_steps=1000, autoencoder_side=side)
        if begun is not None:
            kept = replace(kept, autoencoder_steps=begun.trainer.steps)
        if (run.folder / AUTOENCODER / "model").exists():
            return kept, _train_autoencoder(run, kept, self.log)  # it is finished, and read
        began = time.monotonic()
        each = step_seconds(_autoencoder_run(run, kept))
        measuring.spent += time.monotonic() - began
        if begun is None:
            steps = min(max(int(choice.AUTOENCODER_SHARE * duration / each), LEAST_STEPS), MOST_STEPS)
            kept = replace(kept, autoencoder_steps=steps)
        kept = replace(kept, autoencoder_step_seconds=each)
        with torch.random.fork_rng(devices=[]):
            return kept, _autoencoder_run(run, kept).model.build()

    def _sizes(
        self,
        found: Survey,
        rate: float,
        duration: float,
        autoencoder: Autoencoder | None,
        kept: Kept,
        measuring: Measuring,
    ) -> tuple[Choices, Speed]:
        """Sizes for a time, and their speed; chosen again where what was chosen is not as fast as what was measured: small
        networks are slower for their size."""
        folder = None if not kept.autoencoder_steps else str(self.finish(Choices()).folder / AUTOENCODER / "model")

        def sized(rate: float) -> Choices:
            total = rate * choice.SHARE * max(duration - measuring.spent, 0)
            choices = choice.sizes(found, self.finish, total, autoencoder, folder)
            return choice.pace(choices, found, self.finish, total, autoencoder)

        choices = sized(rate)
        for _ in range(3):
            if measuring.is_over:
                break
            speed = measuring.speed(choices, found, autoencoder, rate)
            if 0.75 < speed.rate / rate < 1.33:
                return choices, speed
            rate = speed.rate
            choices = sized(rate)
        return choices, Speed(rate, choice.step_cost(self.finish(choices), found, autoencoder) / rate)

    def _say(self, kept: Kept, run: Run, found: Survey | None, rest: float, measured: float) -> None:
        """Each choice, with the option that changes it, and the time that all will take.

        Args:
            rest: seconds of what is not a step.
            measured: seconds that have gone into measuring.
        """
        image, network = next((m for m in run.model.modalities if m.is_image), None), run.model.transformer
        lines: list[tuple[str, str]] = []
        denoised = run.model.kind == "transfusion"
        if image is not None and found is not None:
            height, width = image.shape
            grid = " x ".join(str(count) for count in image.slots(image.shape))
            colour = "in colour" if image.channels == 3 else "in grey"
            lines.append(
                (
                    f"pictures of {height} x {width} pixels, {grid} slots, {colour}",
                    "--model.modalities.0.shape, .channels, .patch",
                )
            )
            coded = f"{'latents' if denoised else 'codes'} of an autoencoder"
            learned = "pixels" if run.autoencoder in ("", NONE) else coded
            options = "--autoencoder FOLDER"
            if kept.autoencoder_steps:
                learned += f", trained first, {counted(kept.autoencoder_steps, 'step')}"
                options += f", or {NONE} for pixels"
            lines.append((f"learned as {learned}", options))
        lines += [
            (f"a network of width {network.width}, {counted(network.depth, 'layer')}", "--depth"),
            *([(f"patches: {run.model.patcher.kind}", "--model.patcher.kind")] if denoised else []),
            (f"learning rate {run.optimizer.lr:g}, {run.optimizer.kind}", "--optimizer.lr"),
            (
                f"{counted(run.packing.rows, 'row')} of {run.packing.row_length} tokens a step",
                "--packing.rows, --packing.row-length",
            ),
            (f"{counted(run.trainer.steps, 'step')}", "--trainer.steps, --budget"),
        ]
        if kept.choices.report_images is not None:
            lines.append((f"{counted(run.report.images, 'drawing')} at the end", "--report.images"))
        width = max(len(text) for text, _ in lines)
        for text, option in lines:
            self.log(f"  {text:<{width}}   {option}")
        first = kept.autoencoder_steps * kept.autoencoder_step_seconds
        total = first + run.trainer.steps * kept.step_seconds + rest
        before = f"{spoken(first)} for the autoencoder, then " if first else ""
        self.log(
            f"it will take about {spoken(total)}: {before}steps of {kept.step_seconds:.2f} s, {spoken(rest)} for sheets and "
            f"measurements at the end; measuring the machine took {spoken(measured)}"
        )
        if run.trainer.steps == choice.MIN_STEPS and kept.budget and total > 1.5 * choice.seconds(kept.budget):
            self.log(f"note: that is more than --budget {kept.budget}: this network is too slow for it, see --depth")
        if image is not None and found is not None and found.sides.median < min(image.shape):
            self.log(
                f"note: most pictures are smaller than that, {found.sides} pixels along their shorter side: they are enlarged"
            )
        if found is not None and found.names_sides and run.transform.flip:
            self.log(f"{found.names_sides:.0%} of the captions speak of sides or letters: their pictures are not mirrored")
        if found is not None:
            self.log(_passes(kept.passes, found))


def _passes(passes: float, found: Survey) -> str:
    """How often pictures are seen, and what that means."""
    if passes < 0.95:
        line = f"{passes:.0%} of the pictures are seen"
    else:
        times = f"{passes:,.0f}" if passes >= 10 else f"{passes:.1f}".removesuffix(".0")
        line = f"each picture is seen about {'once' if times == '1' else f'{times} times'}"
    if found.pictures < SMALL and passes >= BY_HEART:
        return f"{line}: a set of {found.pictures} is learned by heart; more pictures, or less time, for new ones"
    if not found.is_uncaptioned and passes * found.documents < FEW * found.captions:
        return f"{line}: too seldom for captions to be learned well; more time helps (--budget)"
    return line
