"""The kinds of patchers: noisy latents and their time -> slot vectors, and the trunk's answer -> a prediction."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from transfusion.codec.linear import LinearPatcher as LinearPatcher
from transfusion.codec.modules import Modules, ModulesPatching
from transfusion.codec.modules import ModulesPatcher as ModulesPatcher
from transfusion.codec.patching import Patching, check
from transfusion.codec.unet import UNetPatcher as UNetPatcher
from transfusion.modality import Modality

Patcher: TypeAlias = LinearPatcher | UNetPatcher | ModulesPatcher


def choose(
    patcher: Patcher, patchers: Sequence[Patcher], modalities: Sequence[Modality], modules: Modules
) -> tuple[Patcher, ...]:
    """The patcher of each modality: the user's modules, where there are any; else its own; else `patcher`.

    Raises:
        ValueError: more patchers than modalities, or modules for a modality that is not there.
    """
    names = [modality.name for modality in modalities]
    if len(patchers) > len(names):
        raise ValueError(f"{len(patchers)} patchers for {len(names)} modalities ({', '.join(names)}): give at most one each")
    if unknown := [name for name in modules if name not in names]:
        raise ValueError(f"modules for {unknown[0]!r}, which is no modality of this model: there are {', '.join(names)}")
    found: list[Patcher] = [*patchers, *[patcher] * (len(names) - len(patchers))]
    for i, name in enumerate(names):
        if name in modules:
            encoder, decoder = modules[name]
            options, kept = ModulesPatcher(type(encoder).__name__, type(decoder).__name__), found[i]
            found[i] = replace(options, features=kept.features)
    return tuple(found)


def build(options: Patcher, modality: Modality, width: int, eps: float, modules: Modules) -> Patching:
    """The patcher of a modality, after a dry run.

    Raises:
        ValueError: it does not give the slots that the modality says, or not the latents' shape back, or mixes items.
    """
    if isinstance(options, ModulesPatcher) and modality.name in modules:
        patching = ModulesPatching(options, modality, width, *modules[modality.name])
    else:
        patching = options.build(modality, width, eps)
    check(patching, modality, width)
    if isinstance(patching, ModulesPatching):
        patching.check_items()
    return patching
