"""Transfusion: one transformer that reads and writes documents of text and images (arXiv 2408.11039)."""

from transfusion.api import Transfusion as Transfusion
from transfusion.codec.patcher import LinearPatcher as LinearPatcher
from transfusion.codec.patcher import ModulesPatcher as ModulesPatcher
from transfusion.codec.patcher import UNetPatcher as UNetPatcher
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
from transfusion.folder import Settings as Settings
from transfusion.generate.engine import Engine as Engine
from transfusion.generate.logits import Greedy as Greedy
from transfusion.generate.logits import Sample as Sample
from transfusion.generate.state import Request as Request
from transfusion.modality import Modality as Modality
from transfusion.model.transfusion import Model as Model
from transfusion.nn.trunk import Trunk as Trunk
from transfusion.quick.losses import Breakdown as Breakdown
from transfusion.quick.losses import create_dataloader as create_dataloader
from transfusion.quick.parts import Item as Item
from transfusion.quick.parts import print_modality_sample as print_modality_sample
from transfusion.train.muon import Muon as Muon
from transfusion.train.optim import Optim as Optim

__all__ = [  # so that `from transfusion import *` brings no room along (`nn` would hide torch's)
    "BPE",
    "DDIM",
    "DDPM",
    "Breakdown",
    "Bytes",
    "Diffusion",
    "Document",
    "Engine",
    "Euler",
    "Greedy",
    "Guidance",
    "Heun",
    "Item",
    "LinearPatcher",
    "Media",
    "Modality",
    "Model",
    "ModulesPatcher",
    "Muon",
    "Optim",
    "Request",
    "Sample",
    "Settings",
    "Text",
    "TokenizerFile",
    "Transfusion",
    "Trunk",
    "UNetPatcher",
    "Vocabulary",
    "create_dataloader",
    "print_modality_sample",
]
