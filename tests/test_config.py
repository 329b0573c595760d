"""Configurations from YAML: mistakes are named."""

import pytest

from transfusion import config
from transfusion.config import ConfigError
from transfusion.run.record import Run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: x\ntrian: {steps: 3}", "trian: no such setting; did you mean 'trainer'"),
        ("recipe: x\ntrainer: {step: 3}", r"trainer\.step: no such setting; did you mean 'steps'"),
        ("recipe: x\ntrainer: {steps: many}", r"trainer\.steps: must be int, not 'many'"),
        ("recipe: x\ntrainer: {steps: 0}", "steps, accumulate and patience must be at least 1"),
        ("recipe: x\nsampler: {kind: eulr}", r"sampler\.kind: no 'eulr'; did you mean 'euler'"),
        ("recipe: x\ndevice: tpu", "device: no 'tpu'"),
        ("recipe: x\nmodel: {modalities: [{shape: [5, 5]}]}", "multiple of the patch"),
        ("recipe: [", "not YAML"),
        ("data: x", "recipe"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.from_yaml(Run, text)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nrecipe: *b",
        "\n".join([f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 9 if i else ["x"] * 9) + "]" for i in range(40)]),
        "recipe: &r digits\nout: *r",
        "[" * 5000,
        "a: 9999-99-99",
        "recipe: " + "[" * 400 + "]" * 400,
        "? [a]\n: b",
        "recipe: !!python/object/apply:os.system [ls]",
        "\x00",
        "1: 2",
        "seed: " + "9" * 5000,
        "recipe: " + "x" * 10**5 + "\nfoo: 1",
    ],
    ids=lambda text: text[:30],
)
def test_yaml_that_stands_for_more_than_it_says(text: str) -> None:
    """Aliases of aliases, depth, objects: refused at once, with a short message."""
    with pytest.raises(ConfigError) as caught:
        config.from_yaml(Run, text)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("value", [10**400, [1] * 10**6, {"a": {"b": [1] * 10**5}}, "x" * 10**6])
def test_messages_stay_short(value: object) -> None:
    for plain in ({"optimizer": {"lr": value}}, {"optimizer": {"kind": value}}, {"seed": value if value != 10**400 else 1.5}):
        with pytest.raises(ConfigError) as caught:
            config.from_plain(Run, {"recipe": "digits"} | plain)
        assert len(str(caught.value)) < 1500
