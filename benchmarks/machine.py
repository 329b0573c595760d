"""What this machine can do at most, measured: the yardstick of every other number."""

import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch


def describe() -> str:
    """The machine in one line."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cpu = Path("/proc/cpuinfo")
    text = cpu.read_text() if cpu.exists() else ""
    named = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    unit = next((unit for unit in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if unit in text), "no AVX")
    name = next(named, platform.machine())
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {unit}, torch {torch.__version__}"


def seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Median time of a call, after one for warming up."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return median(times[1:])


def device() -> torch.device:
    """Where the benchmark runs."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def memory() -> int:
    """Most bytes that this process has held so far: on the GPU, or else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # not ru_maxrss, which begins at what the parent process held
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def peak(dtype: torch.dtype) -> float:
    """FLOP/s of a large matmul: the best of three sizes."""
    best = 0.0
    for n in (1024, 2048, 4096) if device().type == "cpu" else (4096, 8192, 16384):
        a, b = (torch.randn(n, n, device=device()).to(dtype) for _ in range(2))
        best = max(best, 2 * n**3 / seconds(lambda a=a, b=b: a @ b))
    return best


def bandwidth(dtype: torch.dtype = torch.float32) -> float:
    """Bytes/s at which matrices are read by matrix-vector products that no cache holds."""
    weights = [torch.randn(8192, 8192, device=device()).to(dtype) for _ in range(4)]
    x = torch.randn(1, 8192, device=device()).to(dtype)
    return sum(w.numel() * w.element_size() for w in weights) / seconds(lambda: [x @ w.T for w in weights])
