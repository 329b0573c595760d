"""Configuration: frozen dataclasses <-> plain data (YAML, JSON), lossless.

A field whose type is a union of dataclasses is a tagged choice: its plain form has `kind`, the tag of the class, beside its
fields. Unknown names and wrong types raise an error that suggests the nearest valid name.
"""

import dataclasses
import difflib
import hashlib
import json
import reprlib
import types
import typing
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """An invalid configuration; the message names the field and what is valid."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A suggestion to end an error with: '; did you mean X?', or all the known names."""
    known = list(known)
    close = difflib.get_close_matches(name[:80], known, n=1, cutoff=0.5)  # quadratic in its length
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def short(plain: Any) -> str:
    """A value for a message, cut off where it is long or deep."""
    return _SHORT.repr(plain)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@cache
def hints(cls: type) -> dict[str, Any]:
    """Types of a dataclass's fields, by name."""
    resolved = typing.get_type_hints(cls)
    return {f.name: resolved[f.name] for f in dataclasses.fields(cls)}


def choices(kind: Any) -> dict[str, type]:
    """Tag -> class of a union of tagged dataclasses, or of such a class alone; empty for any other type, or one with a field
    `kind`. Protocols in the union
    are left out: they stand for objects made in Python, which have no plain form."""
    members = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    members = tuple(m for m in members if not getattr(m, "_is_protocol", False))
    if not members:
        return {}
    if all(dataclasses.is_dataclass(m) and hasattr(m, "kind") and "kind" not in hints(m) for m in members):
        return {typing.cast(Any, m).kind: typing.cast(type, m) for m in members}
    return {}


def to_plain(value: Any) -> Any:
    """A configuration as dicts, lists and scalars. Raises ConfigError for an object without a plain form."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tag = {"kind": value.kind} if hasattr(value, "kind") and "kind" not in hints(type(value)) else {}  # type: ignore[attr-defined]
        return tag | {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str | int | float | dict | types.NoneType):
        raise ConfigError(f"a {type(value).__name__} made in Python cannot be written into a configuration: {value!r}")
    return value


def from_plain(kind: type[T], plain: Any, where: str = "") -> T:
    """The configuration of plain data; missing fields keep their defaults. Raises ConfigError: an unknown field or kind, or a
    value of the wrong type."""
    return typing.cast(T, _read(kind, plain, where))


def _read(kind: Any, plain: Any, where: str) -> Any:
    if tagged := choices(kind):
        if not isinstance(plain, dict):
            raise ConfigError(f"{where}: must be a mapping with a kind, not {short(plain)}")
        tag = plain.get("kind", next(iter(tagged)))
        if not isinstance(tag, str) or tag not in tagged:
            raise ConfigError(f"{where}.kind: no {short(tag)}{nearest(tag if isinstance(tag, str) else '', tagged)}")
        return _dataclass(tagged[tag], {k: v for k, v in plain.items() if k != "kind"}, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(plain, dict):
            raise ConfigError(f"{where or 'configuration'}: must be a mapping, not {short(plain)}")
        return _dataclass(typing.cast(type, kind), plain, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for member in args:
            try:
                return _read(member, plain, where)
            except ConfigError:
                continue
        raise ConfigError(f"{where}: {short(plain)} is none of {', '.join(_name(a) for a in args)}")
    if origin is typing.Literal:
        if plain not in args:
            raise ConfigError(f"{where}: no {short(plain)}{nearest(plain if isinstance(plain, str) else '', map(str, args))}")
        return plain
    if origin is tuple:
        if not isinstance(plain, list | tuple):
            raise ConfigError(f"{where}: must be a list, not {short(plain)}")
        types_ = args[:1] * len(plain) if args[-1:] == (Ellipsis,) else args
        if len(types_) != len(plain):
            raise ConfigError(f"{where}: needs {len(types_)} values, has {len(plain)}")
        return tuple(_read(t, p, f"{where}[{i}]") for i, (t, p) in enumerate(zip(types_, plain, strict=True)))
    if kind is types.NoneType:
        if plain is not None:
            raise ConfigError(f"{where}: must be null, not {short(plain)}")
        return None
    if kind is float and isinstance(plain, int) and not isinstance(plain, bool):
        try:
            return float(plain)
        except OverflowError:
            raise ConfigError(f"{where}: {short(plain)} is too large") from None
    if kind is Path and isinstance(plain, str):
        return Path(plain)
    if not isinstance(plain, kind) or (kind is int and isinstance(plain, bool)):
        raise ConfigError(f"{where}: must be {_name(kind)}, not {short(plain)}")
    return plain


def _name(kind: Any) -> str:
    return "null" if kind is types.NoneType else getattr(kind, "__name__", str(kind))


def _dataclass(cls: type, plain: dict[str, Any], where: str) -> Any:
    known = hints(cls)
    prefix = f"{where}." if where else ""
    for name in plain:
        if name not in known:
            raise ConfigError(f"{prefix}{str(name)[:80]}: no such setting{nearest(str(name), known)}")
    try:
        return cls(**{name: _read(known[name], value, prefix + name) for name, value in plain.items()})
    except ConfigError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{where or cls.__name__}: {error}") from error


def to_yaml(value: Any) -> str:
    """A configuration as YAML, fields in the order of the class."""
    return yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True, width=100)


class _Loader(yaml.SafeLoader):
    """Plain data without aliases: a few lines of aliases of aliases stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name); write its value out")
        return super().compose_node(parent, index)


def from_yaml(kind: type[T], text: str) -> T:
    """The configuration of a YAML text. Raises ConfigError."""
    try:
        plain = yaml.load(text, _Loader)
    except RecursionError:
        raise ConfigError("not YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: numbers and dates that are none
        raise ConfigError(f"not YAML: {error}") from error
    return from_plain(kind, plain or {})


def digest(value: Any) -> str:
    """The first 12 hex digits of a configuration's SHA-256."""
    return hashlib.sha256(json.dumps(to_plain(value), sort_keys=True).encode()).hexdigest()[:12]
