"""The kinds of patchers, and the patcher of each modality: configurations in, checked modules out."""

from collections.abc import Sequence
from typing import TypeAlias

from transfusion.codec.custom_patcher import CustomModules, CustomPatcher
from transfusion.codec.custom_patcher import CustomPatcherConfig as CustomPatcherConfig
from transfusion.codec.linear_patcher import LinearPatcherConfig as LinearPatcherConfig
from transfusion.codec.patcher import Patcher, check_slots
from transfusion.codec.unet_patcher import UNetPatcherConfig as UNetPatcherConfig
from transfusion.modality import Modality

PatcherConfig: TypeAlias = LinearPatcherConfig | UNetPatcherConfig | CustomPatcherConfig


def choose(
    patcher: PatcherConfig, patchers: Sequence[PatcherConfig], modalities: Sequence[Modality], modules: CustomModules
) -> tuple[PatcherConfig, ...]:
    """The configuration of each modality: the user's modules, else its own patcher, else `patcher`.

    Raises:
        ValueError: more patchers than modalities, or modules for an unknown modality.
    """
    names = [modality.name for modality in modalities]
    if len(patchers) > len(names):
        raise ValueError(f"{len(patchers)} patchers for {len(names)} modalities ({', '.join(names)}): give at most one each")
    if unknown := [name for name in modules if name not in names]:
        raise ValueError(f"modules for {unknown[0]!r}, which is no modality of this model: there are {', '.join(names)}")
    chosen: list[PatcherConfig] = [*patchers, *[patcher] * (len(names) - len(patchers))]
    for i, name in enumerate(names):
        if name in modules:
            encoder, decoder = modules[name]
            chosen[i] = CustomPatcherConfig(type(encoder).__name__, type(decoder).__name__, chosen[i].time_features)
    return tuple(chosen)


def build(config: PatcherConfig, modality: Modality, width: int, eps: float, modules: CustomModules) -> Patcher:
    """The patcher of a modality, checked by a dry run.

    Raises:
        ValueError: its slots or its output have other shapes than the modality declares, or it mixes items.
    """
    if isinstance(config, CustomPatcherConfig) and modality.name in modules:
        patcher = CustomPatcher(config, modality, width, *modules[modality.name])
    else:
        patcher = config.build(modality, width, eps)
    check_slots(patcher, modality, width)
    if isinstance(patcher, CustomPatcher):
        patcher.check_items()
    return patcher
