"""The kinds of patchers: noisy latents and their time -> slot vectors, and the trunk's answer -> a prediction."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from transfusion.codec.custom_patcher import CustomModules, CustomPatcher
from transfusion.codec.custom_patcher import CustomPatcherConfig as CustomPatcherConfig
from transfusion.codec.linear_patcher import LinearPatcherConfig as LinearPatcherConfig
from transfusion.codec.patcher import Patcher, check
from transfusion.codec.unet_patcher import UNetPatcherConfig as UNetPatcherConfig
from transfusion.modality import Modality

PatcherConfig: TypeAlias = LinearPatcherConfig | UNetPatcherConfig | CustomPatcherConfig


def choose(
    patcher: PatcherConfig, patchers: Sequence[PatcherConfig], modalities: Sequence[Modality], modules: CustomModules
) -> tuple[PatcherConfig, ...]:
    """The patcher of each modality: the user's modules, where there are any; else its own; else `patcher`.

    Raises:
        ValueError: more patchers than modalities, or modules for a modality that is not there.
    """
    names = [modality.name for modality in modalities]
    if len(patchers) > len(names):
        raise ValueError(f"{len(patchers)} patchers for {len(names)} modalities ({', '.join(names)}): give at most one each")
    if unknown := [name for name in modules if name not in names]:
        raise ValueError(f"modules for {unknown[0]!r}, which is no modality of this model: there are {', '.join(names)}")
    found: list[PatcherConfig] = [*patchers, *[patcher] * (len(names) - len(patchers))]
    for i, name in enumerate(names):
        if name in modules:
            encoder, decoder = modules[name]
            options, kept = CustomPatcherConfig(type(encoder).__name__, type(decoder).__name__), found[i]
            found[i] = replace(options, features=kept.features)
    return tuple(found)


def build(options: PatcherConfig, modality: Modality, width: int, eps: float, modules: CustomModules) -> Patcher:
    """The patcher of a modality, after a dry run.

    Raises:
        ValueError: it does not give the slots that the modality says, or not the latents' shape back, or mixes items.
    """
    if isinstance(options, CustomPatcherConfig) and modality.name in modules:
        patcher_of = CustomPatcher(options, modality, width, *modules[modality.name])
    else:
        patcher_of = options.build(modality, width, eps)
    check(patcher_of, modality, width)
    if isinstance(patcher_of, CustomPatcher):
        patcher_of.check_items()
    return patcher_of
