"""Device and dtype by name; "auto" takes the best of this machine."""

import ctypes
import os
import sys
from typing import Literal, TypeAlias

import torch

Device: TypeAlias = Literal["auto", "cuda", "mps", "cpu"]
Dtype: TypeAlias = Literal["auto", "fp32", "bf16"]


def pick_device(name: Device) -> torch.device:
    """A device. Raises ValueError for one that this machine does not have."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, usable in available.items() if usable))
    if name not in available:
        raise ValueError(f"no device {name!r}; choose auto, {', '.join(available)}")
    if not available[name]:
        raise ValueError(f"this machine has no {name}; --device auto takes the best that it has")
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster here than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def pick_dtype(name: Dtype, device: torch.device) -> torch.dtype:
    """fp32, or bf16 for autocast. Raises ValueError for another name."""
    if name == "auto":
        return torch.bfloat16 if has_bf16(device) else torch.float32
    if name not in ("fp32", "bf16"):
        raise ValueError(f"no dtype {name!r}; choose auto, fp32 or bf16")
    return torch.bfloat16 if name == "bf16" else torch.float32


def memory() -> int:
    """Bytes of this machine's memory; 2 ** 60 where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 2**60


def tune_malloc() -> bool:
    """Make malloc keep freed memory instead of returning it to the system; True if it could be set (Linux with glibc).

    Large CPU tensors otherwise get fresh pages, which the kernel zeroes first: a fifth of a training step of 16,384 tokens
    (LOG.md). The price: the process stays at its peak size.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, -1) and mallopt(top_pad, 64 << 20))


def describe() -> dict[str, str]:
    """Name -> description of versions, processor and accelerators, and of the device and dtype that `auto` takes."""
    lines = {"torch": torch.__version__, "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    cpu = torch.device("cpu")
    units = ["AMX"] * torch.cpu._is_amx_tile_supported() + ["AVX512-BF16"] * torch.cpu._is_avx512_bf16_supported()
    lines["cpu bf16"] = ", ".join(units) if has_bf16(cpu) else "no units: fp32 is used"
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            lines[f"cuda:{i}"] = f"{p.name}, {p.total_memory / 2**30:.0f} GiB"
    else:
        lines["cuda"] = "none"
    lines["mps"] = "yes" if torch.backends.mps.is_available() else "none"
    device = pick_device("auto")
    lines["auto"] = f"--device {device.type} --dtype {'bf16' if has_bf16(device) else 'fp32'}"
    return lines
