"""The files of a checkpoint that several ranks wrote: each rank but the first has one of its own. Torch-free.

Rule of this file: `tensors.pt` is what rank 0 has, complete in itself; the file of another rank has what it does not
share with rank 0. So whoever wants the weights alone looks at no such file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NAME = re.compile(r"rank-([1-9]\d{0,5})\.pt")


def name_of_rank(rank: int) -> str:
    """The name of the file of this rank, from 1."""
    return f"rank-{rank}.pt"


def is_rank_file(name: str) -> bool:
    """Whether a file of this name is that of a rank."""
    return _NAME.fullmatch(name) is not None


def ranks_of(files: Iterable[str]) -> int:
    """How many ranks wrote a checkpoint with these files.

    >>> ranks_of(["state.json", "tensors.pt"]), ranks_of(["rank-1.pt", "rank-2.pt", "tensors.pt"])
    (1, 3)

    Raises:
        ValueError: one of them is missing.
    """
    numbers = sorted(int(found[1]) for name in files if (found := _NAME.fullmatch(name)))
    if numbers != [*range(1, len(numbers) + 1)]:
        raise ValueError(f"there are files of the ranks {numbers}, and one is missing")
    return len(numbers) + 1
