"""Which of several processes this one is.

Rule of this file: it is found from a process group that is there, or from the environment that torchrun sets.
"""

from __future__ import annotations

import os

import torch.distributed as dist


def launched_ranks() -> int:
    """How many processes torchrun says that it started; 0 if it started none."""
    there = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return int(os.environ["WORLD_SIZE"]) if there else 0


def own_rank() -> tuple[int, int]:
    """The number of this process, and how many there are: (0, 1) of one that is alone.

    >>> own_rank()
    (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    ranks = launched_ranks()
    return (int(os.environ["RANK"]), ranks) if ranks > 1 else (0, 1)
