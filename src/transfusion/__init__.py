"""Transfusion: one transformer that reads and writes documents of text and images (arXiv 2408.11039)."""

from transfusion.api import Transfusion as Transfusion
from transfusion.codec.patchers import CustomPatcherConfig as CustomPatcherConfig
from transfusion.codec.patchers import LinearPatcherConfig as LinearPatcherConfig
from transfusion.codec.patchers import UNetPatcherConfig as UNetPatcherConfig
from transfusion.compat.lists import Item as Item
from transfusion.compat.lists import print_modality_sample as print_modality_sample
from transfusion.compat.training import Breakdown as Breakdown
from transfusion.compat.training import create_dataloader as create_dataloader
from transfusion.data.document import Document as Document
from transfusion.data.document import Media as Media
from transfusion.data.document import Text as Text
from transfusion.data.vocabulary import BPE as BPE
from transfusion.data.vocabulary import Bytes as Bytes
from transfusion.data.vocabulary import TokenizerFile as TokenizerFile
from transfusion.data.vocabulary import Vocabulary as Vocabulary
from transfusion.diffusion.guidance import Guidance as Guidance
from transfusion.diffusion.process import Diffusion as Diffusion
from transfusion.diffusion.sampler import DDIM as DDIM
from transfusion.diffusion.sampler import DDPM as DDPM
from transfusion.diffusion.sampler import Euler as Euler
from transfusion.diffusion.sampler import Heun as Heun
from transfusion.generate.engine import Engine as Engine
from transfusion.generate.logits import Greedy as Greedy
from transfusion.generate.logits import Sample as Sample
from transfusion.generate.state import Request as Request
from transfusion.modality import Modality as Modality
from transfusion.model.network import ModelConfig as ModelConfig
from transfusion.model_folder import TransfusionConfig as TransfusionConfig
from transfusion.nn.config import TransformerConfig as TransformerConfig
from transfusion.train.optimizer import AdamWConfig as AdamWConfig
from transfusion.train.optimizer import MuonConfig as MuonConfig

__all__ = [  # so that `from transfusion import *` brings no room along (`nn` would hide torch's)
    "BPE",
    "DDIM",
    "DDPM",
    "AdamWConfig",
    "Breakdown",
    "Bytes",
    "CustomPatcherConfig",
    "Diffusion",
    "Document",
    "Engine",
    "Euler",
    "Greedy",
    "Guidance",
    "Heun",
    "Item",
    "LinearPatcherConfig",
    "Media",
    "Modality",
    "ModelConfig",
    "MuonConfig",
    "Request",
    "Sample",
    "Text",
    "TokenizerFile",
    "TransformerConfig",
    "Transfusion",
    "TransfusionConfig",
    "UNetPatcherConfig",
    "Vocabulary",
    "create_dataloader",
    "print_modality_sample",
]
