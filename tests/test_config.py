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
        ("recipe: x\ntrainer: {steps: 0}", "steps and accumulate must be at least 1"),
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
