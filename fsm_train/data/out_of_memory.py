"""Whether an error says that memory ran out, and how what is no longer needed is freed."""

from __future__ import annotations

import gc

import torch

_SAID = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is torch's OutOfMemoryError, or what a library or the CPU's allocator raises instead.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory")), is_out_of_memory(ValueError())
    (True, False)
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words.lower() in str(error).lower() for words in _SAID)


def free_memory() -> None:
    """Give back what torch's allocators hold and nothing uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
