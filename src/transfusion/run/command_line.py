"""The words of a command line <-> a configuration.

`--section.name VALUE` sets a field, `--section.kind NAME` chooses among kinds, beside whose own settings it may stand
(`--sampler.kind heun --sampler.num-steps 50`). `parse` reads any configuration, `parse_run` a run with its presets;
`command_line` is the inverse.
"""

import dataclasses
import shlex
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from transfusion import config
from transfusion.config import ConfigError, nearest
from transfusion.data.transforms import DocumentTransform
from transfusion.run.presets import PAPER_SIZES, PRESETS, preset, transformer, trunk
from transfusion.run.record import Run, flat

T = TypeVar("T")
HELP = {"-h", "--help"}
CROP = 1.125
"""What --augment crop fits images to, over their size."""


def parse_run(default: Run, arguments: Sequence[str], program: str, *, budget: bool = False) -> Run:
    """A recipe's run with the dials and the settings of a command line. Prints the help and exits if asked to.

    What is said later in this list wins: preset, budget, size, depth, settings.

    Args:
        budget: the help names a budget, whose choices (`run/choice.py`) are in `default` already.

    Raises:
        ConfigError: an unknown preset, size, setting or kind, or a wrong value; the message names the nearest.
    """
    run, rest = default, list(arguments)
    name, rest = take("preset", rest)
    size, rest = take("size", rest)
    depth, rest = take("depth", rest)
    augment, rest = take("augment", rest)
    if size is not None:
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, transformer=transformer(size)))
    if depth is not None:
        network = trunk(_whole("depth", depth), run.model.transformer)
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, transformer=network))
    if augment is not None:
        run = dataclasses.replace(run, transform=_augmented(run.transform, augment))
    notes = ["  --budget 20m               time; what is not set is chosen for it"] if budget else []
    notes += [
        f"  --preset {{{','.join(PRESETS)}}}",
        f"  --size {{{','.join(PAPER_SIZES)}}}",
        "  --depth INT                the network's layers, with the width for them",
        "  --augment flip,crop        mirror images and cut windows out (transform.flip, transform.crop)",
    ]
    if name is None:
        return _checked(parse(run, rest, program, notes), augment)
    # a preset depends on the run's steps, network and start, which the settings after it may change; they win over the preset
    found = parse(preset(name, run), rest, program, notes)
    model = dataclasses.replace(run.model, transformer=found.model.transformer)
    run = dataclasses.replace(run, trainer=found.trainer, model=model, init=found.init)
    chosen = preset(name, run)
    if augment is not None:
        chosen = dataclasses.replace(chosen, transform=_augmented(chosen.transform, augment))
    return _checked(parse(chosen, rest, program, notes), augment)


def _checked(run: Run, augment: str | None) -> Run:
    """The run. Raises ConfigError where a setting takes back what `augment` asks for."""
    asked = _augmented(DocumentTransform(), augment or "")
    for name, wanted, is_on in (
        ("flip", asked.flip, run.transform.flip),
        ("crop", asked.crop > 1, run.transform.crop > 1),
    ):
        if wanted and not is_on:
            raise ConfigError(f"--augment {augment} and --transform.{name} contradict each other: leave one out")
    return run


def _whole(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"--{name} must be a whole number, not {value!r}") from None


def _augmented(transform: DocumentTransform, words: str) -> DocumentTransform:
    """The transform with the augmentations that "flip,crop" names."""
    known = {"flip": {"flip": True}, "crop": {"crop": CROP}}
    changes: dict[str, Any] = {}
    for word in filter(None, (word.strip() for word in words.split(","))):
        if word not in known:
            raise ConfigError(f"augment: no {word!r}{nearest(word, known)}")
        changes |= known[word]
    return dataclasses.replace(transform, **changes)


def parse_preset(presets: Mapping[str, Callable[[], T]], arguments: Sequence[str], program: str) -> tuple[str, T]:
    """The name of the preset that `--preset` names, or of the first, and its configuration with the settings of a command line.
    Prints the help and exits if asked to. Raises ConfigError: an unknown preset, or as `parse`."""
    name, rest = take("preset", list(arguments))
    name = next(iter(presets)) if name is None else name
    if name not in presets:
        raise ConfigError(f"no preset {name!r}{nearest(name, presets)}")
    return name, parse(presets[name](), rest, program, [f"  --preset {{{','.join(presets)}}}"])


def command_line(run: Run, default: Run) -> str:
    """The command that makes a run: its recipe, and every setting that differs from the recipe's `default`."""
    return shlex.join(["transfusion", "train", run.recipe, *changes(run, default)])


def changes(chosen: object, default: object) -> list[str]:
    """The words of a command line that make a configuration out of its default, `out` left out."""
    usual, now = flat(config.to_plain(default)), flat(config.to_plain(chosen))
    # where the kind differs, all its settings are printed: those shared with the default's kind may differ in their defaults
    tagged = [name for name in now if name.endswith(".kind") and name not in names(chosen)]
    other_kinds = tuple(name.removesuffix("kind") for name in tagged if usual.get(name) != now[name])
    words: list[str] = []
    for name, value in now.items():
        if name != "out" and (name not in usual or usual[name] != value or name.startswith(other_kinds)):
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return words


def split_positional(
    arguments: Sequence[str], missing: str, usage: str | None, *, most: int | None = None
) -> tuple[list[str], list[str]]:
    """The words before the first option, `most` of them at most, and the rest. A call for help prints `usage` first.

    Raises:
        ConfigError: with the message `missing`: there are none, and no help is asked for.
    """
    count = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    count = count if most is None else min(count, most)
    if HELP & set(arguments):
        print((usage or "").strip() + "\n")
    elif not count:
        raise ConfigError(missing)
    return list(arguments[:count]), list(arguments[count:])


def parse(default: T, arguments: Sequence[str], program: str, notes: Sequence[str] = ()) -> T:
    """A configuration with the settings of a command line. Prints the help and exits if asked to.

    Args:
        notes: lines of help before the choices of kinds.

    Raises:
        ConfigError: an unknown setting or kind, or a wrong value; the message names the nearest.
    """
    import tyro

    default, rest = choose_kinds(default, arguments)
    known = [*names(default), *(f"{name}.kind" for name in choices(default))]
    for word in rest:
        if word.startswith("--") and flag(word) not in (*known, "help"):
            raise ConfigError(f"no setting {flag(word)!r}{nearest(flag(word), known)}")
    if HELP & set(rest):
        kinds = [f"  --{name}.kind {{{','.join(kinds)}}}" for name, kinds in choices(default).items() if len(kinds) > 1]
        if notes or kinds:
            print("\n".join(["choices:", *notes, *kinds, ""]))
    try:
        return tyro.cli(
            type(default),
            args=rest,
            default=default,
            prog=program,
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff, tyro.conf.SuppressFixed),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


def flag(word: str) -> str:
    """The setting that a word names: --trainer.log-every=5 is trainer.log_every."""
    return word.removeprefix("--").partition("=")[0].replace("-", "_")


def names(value: Any, prefix: str = "") -> list[str]:
    """Dotted names of all settings of a configuration."""
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return [name for i, item in enumerate(value) for name in names(item, f"{prefix}.{i}")]
    if not dataclasses.is_dataclass(value):
        return [prefix]
    fields = dataclasses.fields(value)
    return [name for f in fields for name in names(getattr(value, f.name), f"{prefix}.{f.name}" if prefix else f.name)]


def choices(value: Any, prefix: str = "") -> dict[str, dict[str, type]]:
    """Dotted name -> tag -> class, of every choice among kinds; of a tuple of them, each entry and the next one to append."""
    result: dict[str, dict[str, type]] = {}
    for field, kind in config.hints(type(value)).items():
        inner, name = getattr(value, field), f"{prefix}.{field}" if prefix else field
        if kinds := config.choices(kind):
            result[name] = kinds
        if isinstance(inner, tuple) and (kinds := config.choices(typing.get_args(kind)[0])):
            result |= {f"{name}.{i}": kinds for i in range(len(inner) + 1)}
        if dataclasses.is_dataclass(inner):
            result |= choices(inner, name)
    return result


def choose_kinds(default: T, arguments: Sequence[str]) -> tuple[T, list[str]]:
    """The configuration with the kinds that `--section.kind NAME` chooses, and the other words.

    Raises:
        ConfigError: an unknown choice or kind.
    """
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if not (word.startswith("--") and flag(word).endswith(".kind")) or flag(word) in names(default):
            rest.append(word)
            continue
        _, equals, tag = word.partition("=")
        tag = tag if equals else next(words, "")
        if not tag:
            raise ConfigError(f"{word} needs a value")
        name = flag(word).removesuffix(".kind")
        known = choices(default)
        if name not in known:
            raise ConfigError(f"no choice {name!r}{nearest(name, known)}")
        if tag not in known[name]:
            raise ConfigError(f"{name}.kind: no {tag!r}{nearest(tag, known[name])}")
        default = _replace_at(default, name.split("."), known[name][tag])
    return default, rest


def take(name: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of --name, and the arguments without it. Raises ConfigError: it has no value, or is given twice."""
    places = [i for i, word in enumerate(arguments) if word.startswith("--") and flag(word) == name]
    if not places:
        return None, arguments
    if len(places) > 1:
        raise ConfigError(f"--{name} is given twice: leave one out")
    first, after = places[0], places[0] + 1
    if "=" in arguments[first]:
        return arguments[first].partition("=")[2], arguments[:first] + arguments[after:]
    if after == len(arguments):
        raise ConfigError(f"--{name} needs a value")
    return arguments[after], arguments[:first] + arguments[after + 1 :]


def _replace_at(value: Any, path: list[str], kind: type) -> Any:
    """The configuration with another kind at a path; settings that were set, and that both kinds have, are kept."""
    if isinstance(value, tuple):
        index = int(path[0])
        entry = _converted(value[index], kind) if index < len(value) else kind()
        return (*value[:index], entry, *value[index + 1 :])
    inner = getattr(value, path[0])
    new = _replace_at(inner, path[1:], kind) if len(path) > 1 else _converted(inner, kind)
    return dataclasses.replace(value, **{path[0]: new})


def _converted(value: Any, kind: type) -> Any:
    """A configuration as another kind: defaults of the new kind, but for fields of both that are not at the old default."""
    if type(value) is kind:
        return value
    before, after = config.hints(type(value)), config.hints(kind)
    usual = {f.name: _default(f) for f in dataclasses.fields(value)}
    shared = {name: getattr(value, name) for name in before if name in after and before[name] == after[name]}
    try:
        return kind(**{name: inner for name, inner in shared.items() if inner != usual[name]})
    except ValueError as error:
        raise ConfigError(f"{getattr(kind, 'kind', kind.__name__)}: {error}") from error


def _default(field: dataclasses.Field) -> Any:
    factory: Callable[[], Any] | Any = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()
