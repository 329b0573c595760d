"""The command `transfusion`.

Settings are options --section.name value; a choice between kinds by its tag, --sampler.kind heun, beside its own settings,
--sampler.num-steps 50. Mistakes end with exit code 2 and name what would be right; failures of a run with 1.
"""

import dataclasses
import shlex
import sys
import typing
from collections.abc import Sequence
from typing import Any

from transfusion import config
from transfusion.config import ConfigError, nearest

COMMANDS = {
    "quickstart": "train on handwritten digits, draw and read them, report (about 3 minutes)",
    "train": "train a recipe (or judge): transfusion train RECIPE [--data PATH] [--out DIR] [--section.name value ...]",
    "generate": "continue prompts: transfusion generate RUN --prompt TEXT | --prompts FILE.jsonl [--out DIR]",
    "evaluate": "measure a run: transfusion evaluate RUN --suite draw read ... [--data PATH] [--samples N]",
    "results": "tables of records: transfusion results FOLDER ... [--out FILE.md] [--readme README.md]",
    "plot": "draw the curves of runs: transfusion plot RUN ... [--metric NAME ...] [--out FILE.png]",
    "config": "print the whole configuration of a recipe: transfusion config RECIPE [--section.name value ...]",
    "doctor": "say what this machine offers",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process with its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
    except ConfigError as error:
        print(f"transfusion: {error}", file=sys.stderr)
        code = 2
    except (ValueError, OSError, RuntimeError) as error:
        print(f"transfusion: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("transfusion: stopped; the same line goes on from the last checkpoint", file=sys.stderr)
        code = 130
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    command, rest = arguments[0], arguments[1:]
    if command == "--version":
        from importlib.metadata import version

        print(version("transfusion-kit"))
        return 0
    if command not in COMMANDS:
        raise ConfigError(f"no command {command!r}{nearest(command, COMMANDS)}")
    commands = {"quickstart": _quickstart, "train": _train, "generate": _generate, "plot": _plot, "config": _config}
    return {**commands, "evaluate": _evaluate, "results": _results, "doctor": _doctor}[command](rest)


def _help() -> str:
    from transfusion.recipes import RECIPES

    lines = [
        "usage: transfusion COMMAND ...",
        "",
        "One transformer that reads and writes documents of text and pictures.",
        "",
    ]
    lines += [f"  {name:<11} {text}" for name, text in COMMANDS.items()]
    lines += ["", "recipes:"] + [f"  {name:<11} {recipe.summary}" for name, recipe in RECIPES.items()]
    lines += ["", "transfusion COMMAND --help says more. Start with: transfusion quickstart"]
    return "\n".join(lines)


def _quickstart(rest: list[str]) -> int:
    out = [] if any(_flag(word) == "out" for word in rest) else ["--out", "quickstart"]
    return _carry_out("digits", [*out, *rest], "transfusion quickstart")


def _train(rest: list[str]) -> int:
    name, rest = _recipe_name("train", rest)
    if name == "judge":
        from transfusion.commands import classifier

        classifier.run_recipe(settings(classifier.ClassifierRun(), rest, "transfusion train judge"), _say)
        return 0
    return _carry_out(name, rest, f"transfusion train {name}")


def _carry_out(name: str, rest: list[str], program: str) -> int:
    from transfusion.recipes import find

    find(name).run_recipe(_resolved(name, rest, program), _say)
    return 0


def _config(rest: list[str]) -> int:
    name, rest = _recipe_name("config", rest)
    print(config.to_yaml(_resolved(name, rest, f"transfusion config {name}")), end="")
    return 0


def _resolved(name: str, rest: list[str], program: str) -> Any:
    """A recipe's run under the preset, the size and the settings of a command line."""
    from transfusion.recipes import find
    from transfusion.recipes.presets import PAPER_SIZES, PRESETS, preset, transformer

    run = find(name).run()
    chosen, rest = _taken("preset", rest)
    if chosen is not None:
        run = preset(chosen, run)
    size, rest = _taken("size", rest)
    if size is not None:
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, transformer=transformer(size)))
    return settings(run, rest, program, notes=[f"  --preset {{{','.join(PRESETS)}}}", f"  --size {{{','.join(PAPER_SIZES)}}}"])


def _taken(name: str, rest: list[str]) -> tuple[str | None, list[str]]:
    """The value of --name, taken out of the arguments."""
    for i, word in enumerate(rest):
        if word.startswith("--") and _flag(word) == name:
            if "=" in word:
                return word.partition("=")[2], rest[:i] + rest[i + 1 :]
            if i + 1 == len(rest):
                raise ConfigError(f"--{name} needs a value")
            return rest[i + 1], rest[:i] + rest[i + 2 :]
    return None, rest


def _recipe_name(command: str, rest: list[str]) -> tuple[str, list[str]]:
    from transfusion.recipes import RECIPES

    if rest and not rest[0].startswith("-"):
        return rest[0], rest[1:]
    if rest and rest[0] in ("-h", "--help"):
        print(f"usage: transfusion {command} RECIPE [--section.name value ...]\n\nrecipes: {', '.join(RECIPES)}")
        print(f"\nall settings of one: transfusion {command} digits --help")
        sys.exit(0)
    raise ConfigError(f"{command} needs a recipe: {', '.join(RECIPES)}")


def _doctor(rest: list[str]) -> int:
    from transfusion.train.device import describe

    if set(rest) & {"-h", "--help"}:
        print("usage: transfusion doctor\n\nSays what this machine offers: processor, accelerators, precision, versions.")
        return 0
    if rest:
        raise ConfigError(f"doctor takes no arguments, not {rest[0]!r}")
    for name, text in describe().items():
        print(f"{name:<10} {text}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _generate(rest: list[str]) -> int:
    from transfusion.commands.generate import Generate, defaults, run_recipe

    folder = rest[0] if rest and not rest[0].startswith("-") else ""
    if not folder and not {"-h", "--help"} & set(rest):
        raise ConfigError("generate needs a run or model folder: transfusion generate RUN --prompt TEXT")
    options: Generate = settings(defaults(folder), rest[1:] if folder else rest, "transfusion generate RUN")
    run_recipe(folder, options, _say)
    return 0


def _evaluate(rest: list[str]) -> int:
    from transfusion.commands.evaluate import Evaluate, defaults, run_recipe

    folder = rest[0] if rest and not rest[0].startswith("-") else ""
    if not folder and not {"-h", "--help"} & set(rest):
        raise ConfigError("evaluate needs a run or model folder: transfusion evaluate RUN --suite draw read")
    options: Evaluate = settings(defaults(folder), rest[1:] if folder else rest, "transfusion evaluate RUN")
    return run_recipe(folder, options, _say, shlex.join(["transfusion", "evaluate", *rest]))


def _results(rest: list[str]) -> int:
    from transfusion.evaluation.results import Results

    count = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    if not count and not {"-h", "--help"} & set(rest):
        raise ConfigError("results needs folders with records first: transfusion results runs [--out FILE.md]")
    results: Results = settings(Results(), rest[count:], "transfusion results FOLDER ...")
    for path in results.write(rest[:count]):
        _say(f"tables: {path}")
    return 0


def _plot(rest: list[str]) -> int:
    from transfusion.evaluation.curves import Plot

    count = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    if not count and not {"-h", "--help"} & set(rest):
        raise ConfigError("plot needs run folders first: transfusion plot RUN ... [--metric NAME ...] [--out FILE.png]")
    plot: Plot = settings(Plot(), rest[count:], "transfusion plot RUN ...")
    _say(f"curves: {plot.draw(rest[:count])}")
    return 0


# ---- settings from the command line -------------------------------------------------------------------------------------


def settings(default: Any, arguments: Sequence[str], program: str, notes: Sequence[str] = ()) -> Any:
    """A configuration with overrides from the command line. Help is printed where it is asked for.

    Raises:
        ConfigError: an unknown name (the nearest is given), kind or value.
    """
    import tyro

    default, rest = _choose_kinds(default, list(arguments))
    known = [*_names(default), *(f"{where}.kind" for where in _tagged(default))]
    for word in rest:
        name = _flag(word)
        if word.startswith("--") and name not in (*known, "help"):
            raise ConfigError(f"no setting {name!r}{nearest(name, known)}")
    if "--help" in rest or "-h" in rest:
        print("\n".join(["choices:", *notes, *_kinds_help(default), ""]))
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


def _flag(word: str) -> str:
    return word.removeprefix("--").partition("=")[0].replace("-", "_")


def _names(value: Any, where: str = "") -> list[str]:
    """Dotted names of all settings below a configuration."""
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return [name for i, one in enumerate(value) for name in _names(one, f"{where}.{i}")]
    if not dataclasses.is_dataclass(value):
        return [where]
    fields = dataclasses.fields(value)
    return [name for f in fields for name in _names(getattr(value, f.name), f"{where}.{f.name}" if where else f.name)]


def _tagged(value: Any, where: str = "") -> dict[str, dict[str, type]]:
    """Dotted name -> tag -> class, of every choice between kinds; of a list of them, each entry and the one that may come
    next."""
    found: dict[str, dict[str, type]] = {}
    for name, kind in config.hints(type(value)).items():
        inner, at = getattr(value, name), f"{where}.{name}" if where else name
        if options := config.choices(kind):
            found[at] = options
        if isinstance(inner, tuple) and (options := config.choices(typing.get_args(kind)[0])):
            found |= {f"{at}.{i}": options for i in range(len(inner) + 1)}
        if dataclasses.is_dataclass(inner):
            found |= _tagged(inner, at)
    return found


def _choose_kinds(default: Any, arguments: list[str]) -> tuple[Any, list[str]]:
    """Take --x.kind words out of the arguments, and put those kinds, with their own defaults, into the configuration."""
    rest, position = [], 0
    while position < len(arguments):
        word = arguments[position]
        position += 1
        if not (word.startswith("--") and _flag(word).endswith(".kind")):
            rest.append(word)
            continue
        _, equals, tag = word.partition("=")
        if not equals:
            if position == len(arguments):
                raise ConfigError(f"{word} needs a value")
            tag, position = arguments[position], position + 1
        where = _flag(word).removesuffix(".kind")
        options = _tagged(default)
        if where not in options:
            raise ConfigError(f"no choice {where!r}{nearest(where, options)}")
        if tag not in options[where]:
            raise ConfigError(f"{where}.kind: no {tag!r}{nearest(tag, options[where])}")
        default = _replaced(default, where.split("."), options[where][tag])
    return default, rest


def _replaced(value: Any, path: list[str], kind: type) -> Any:
    """The configuration with another kind at a path; what was set, and both kinds have, is kept."""
    if isinstance(value, tuple):  # of kinds: the entry of a number, or the next one
        index = int(path[0])
        entry = _turned(value[index], kind) if index < len(value) else kind()
        return (*value[:index], entry, *value[index + 1 :])
    inner = getattr(value, path[0])
    if len(path) > 1:
        return dataclasses.replace(value, **{path[0]: _replaced(inner, path[1:], kind)})
    return dataclasses.replace(value, **{path[0]: _turned(inner, kind)})


def _turned(one: Any, kind: type) -> Any:
    """One of several kinds as another kind: with that one's defaults, but for what both have and was set."""
    if type(one) is kind:
        return one
    before, after = config.hints(type(one)), config.hints(kind)
    usual = {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory() for f in dataclasses.fields(one)
    }
    kept = {name: getattr(one, name) for name in before if name in after and before[name] == after[name]}
    try:
        return kind(**{name: value for name, value in kept.items() if value != usual[name]})
    except ValueError as error:
        raise ConfigError(f"{getattr(kind, 'kind', kind.__name__)}: {error}") from error


def _kinds_help(default: Any) -> list[str]:
    return [f"  --{where}.kind {{{','.join(options)}}}" for where, options in _tagged(default).items() if len(options) > 1]


if __name__ == "__main__":
    main()
