"""Transfusion.torch's interface over this library's transformer: its usage block runs with only the import changed.

    from transfusion.compat.transfusion_torch import LLaMA, Transfussion

`config.py` reads a config object with its attribute names, `model.py` holds the network and generation, `diffusion.py` patches,
noise and DDPM steps. What holds and what differs: docs/compat.md.
"""

from transfusion.compat.transfusion_torch.config import FashionMNIST_config as FashionMNIST_config
from transfusion.compat.transfusion_torch.config import MNIST_config as MNIST_config
from transfusion.compat.transfusion_torch.diffusion import DiffusionUtils as DiffusionUtils
from transfusion.compat.transfusion_torch.diffusion import PatchOps as PatchOps
from transfusion.compat.transfusion_torch.model import CosineDecayWithWarmup as CosineDecayWithWarmup
from transfusion.compat.transfusion_torch.model import LLaMA as LLaMA
from transfusion.compat.transfusion_torch.model import Transfussion as Transfussion
