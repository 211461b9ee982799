"""Ranks that read the same data, each of them all of it.

Rule of this file: a workload says by a number what it reads whole (`whole_data`); what that means is judged here, from
the numbers of all ranks, so each comes to the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import attrs

from ..core.errors import WorkloadError
from .meeting import Meeting

_logger = logging.getLogger("fsm_train")


def is_same(whole: Sequence[float]) -> bool:
    """Whether several ranks read the same data whole, by the number of each.

    >>> is_same([7.0, 7.0]), is_same([7.0, 8.0]), is_same([0.0, 0.0]), is_same([7.0])
    (True, False, False, False)
    """
    return len(whole) > 1 and whole[0] != 0.0 and len(set(whole)) == 1


@attrs.define
class SameData:
    """Says once that all ranks evaluate the same validation data, and refuses the same training data.

    Attributes:
        said: whether it was said.
    """

    said: bool = False

    def look(self, whole: Sequence[Sequence[float]], meeting: Meeting) -> None:
        """Judge what each rank reads whole: a number for the training data, and one for the validation data.

        Raises:
            WorkloadError: all train with the same data. Then there is no meeting any more, since all ranks raise.
        """
        ranks = len(whole)
        train, valid = zip(*whole, strict=True)
        if is_same(train):
            meeting.lost = True
            raise WorkloadError(
                f"each of the {ranks} ranks reads all of the training data, and the same: every sample would be "
                f"trained with {ranks} times. Give each rank its share: Supervised(model, optimizer, loss_fn, "
                "sharded(loader), …)"
            )
        if is_same(valid) and not self.said:
            self.said = True
            _logger.warning(
                "each of the %d ranks evaluates all of the validation data: valid=sharded(loader) is as exact, and "
                "takes less time",
                ranks,
            )
