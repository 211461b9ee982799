"""Some of many: indices at equal distances."""

from __future__ import annotations

from collections.abc import Sequence


def spread(count: int, most: int) -> Sequence[int]:
    """Of the indices below `count` all, or of more than `most` so many at equal distances, with the first and the last.

    >>> list(spread(3, 5)), list(spread(9, 3))
    ([0, 1, 2], [0, 4, 8])

    Args:
        count: how many indices there are.
        most: how many are wanted at most, from 2.
    """
    return range(count) if count <= most else [at * (count - 1) // (most - 1) for at in range(most)]
