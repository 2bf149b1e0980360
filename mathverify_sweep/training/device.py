"""The device that an engine works on: which it is, and what its memory says."""

from __future__ import annotations

import gc
import os
import resource
from functools import cache

import torch

from mathverify_sweep.errors import ModelError


def find(name: str) -> torch.device:
    """The device of that name: "cpu", or "cuda:0" with a single GPU visible. Refuses all others."""
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"the device must be cpu or cuda:0, got {name}")
    if device.type == "cuda" and (torch.cuda.device_count() != 1 or device.index not in (None, 0)):
        raise ModelError(
            f"an engine must see one GPU, its cuda:0; it sees {torch.cuda.device_count()} and was given {name}. "
            "Set CUDA_VISIBLE_DEVICES to that GPU"
        )
    if device.type == "cpu":
        return device
    # Read when CUDA starts: passes are of all sizes, and pieces of fixed places would not fit the next one.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    return torch.device("cuda", 0)


@cache
def is_hopper(device: torch.device) -> bool:
    """Whether it is of the kind of GPU that the kernels written here have been tried on: H100, H200."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


def is_out_of_memory(error: BaseException) -> bool:
    """PyTorch's own class for it, and the words of CUDA, cuBLAS and the CPU's allocator."""
    words = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    is_worded_so = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return isinstance(error, torch.OutOfMemoryError) or is_worded_so


def reset_peak_memory(device: torch.device) -> None:
    """From here on `peak_memory` counts, where the device can count anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes since the last reset on a GPU; on a CPU of the process so far, which is all that the system counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def total_memory(device: torch.device) -> int:
    """Bytes of a GPU, whoever uses them; on a CPU of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_memory(device: torch.device) -> None:
    """A GPU's, now: the trainer and its optimizer refer to each other, so only the collector frees them."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
