"""Transfusion: one transformer that reads and writes documents of text and images (arXiv 2408.11039).

Public names are imported on first use (PEP 562): `import transfusion`, and so the command's help, loads no torch.
"""
# ruff: noqa: I001  (one line a module)

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transfusion.api import Transfusion as Transfusion
    from transfusion.codec.patchers import (
        CustomPatcherConfig as CustomPatcherConfig,
        LinearPatcherConfig as LinearPatcherConfig,
    )
    from transfusion.codec.patchers import UNetPatcherConfig as UNetPatcherConfig
    from transfusion.data.document import Document as Document, Media as Media, Text as Text
    from transfusion.data.vocabulary import BPE as BPE, Bytes as Bytes, TokenizerFile as TokenizerFile, Vocabulary as Vocabulary
    from transfusion.diffusion.guidance import Guidance as Guidance
    from transfusion.diffusion.process import Diffusion as Diffusion
    from transfusion.diffusion.sampler import DDIM as DDIM, DDPM as DDPM, Euler as Euler, Heun as Heun
    from transfusion.generate.engine import Engine as Engine
    from transfusion.generate.logits import Greedy as Greedy, Sample as Sample
    from transfusion.generate.state import Request as Request
    from transfusion.modality import Modality as Modality
    from transfusion.model.network import ModelConfig as ModelConfig
    from transfusion.model_folder import TransfusionConfig as TransfusionConfig
    from transfusion.nn.config import TransformerConfig as TransformerConfig
    from transfusion.train.optimizer import AdamWConfig as AdamWConfig, MuonConfig as MuonConfig

_MODULES = {
    "api": ("Transfusion",),
    "codec.patchers": ("CustomPatcherConfig", "LinearPatcherConfig", "UNetPatcherConfig"),
    "data.document": ("Document", "Media", "Text"),
    "data.vocabulary": ("BPE", "Bytes", "TokenizerFile", "Vocabulary"),
    "diffusion.guidance": ("Guidance",),
    "diffusion.process": ("Diffusion",),
    "diffusion.sampler": ("DDIM", "DDPM", "Euler", "Heun"),
    "generate.engine": ("Engine",),
    "generate.logits": ("Greedy", "Sample"),
    "generate.state": ("Request",),
    "modality": ("Modality",),
    "model.network": ("ModelConfig",),
    "model_folder": ("TransfusionConfig",),
    "nn.config": ("TransformerConfig",),
    "train.optimizer": ("AdamWConfig", "MuonConfig"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

# A star brings the public names and no room (`nn` would hide torch's). Type checkers read the imports above.
__all__ = list(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


if not TYPE_CHECKING:  # a checker reads the imports above and reports any other name

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'transfusion' has no attribute {name!r}", name=name)
        value = globals()[name] = getattr(import_module(f"transfusion.{_MODULE_OF[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
