"""The epoch under way, as a sink remembers it: its number, and the hyper-parameters of its steps.

Rule of this file: all of it follows from the states at which a call of `run` and an epoch begin and end.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from ..core.phase import Phase
from ..core.state import Hyper, State


@attrs.frozen
class CurrentEpoch:
    """The epoch under way, or the one before it between two epochs.

    Attributes:
        index: of the epoch under way; None between two epochs.
        steps_before: the optimizer steps before it; -1 if it began in an earlier call of `run`, which may have taken
            some of its steps.
        hyper: the hyper-parameters when it began, or when this call of `run` did.
    """

    index: int | None
    steps_before: int
    hyper: Mapping[str, Hyper]

    @classmethod
    def at_start(cls, state: State) -> CurrentEpoch:
        """That of the state with which a call of `run` begins."""
        in_epoch = state.resume_at not in (None, Phase.EPOCH_END)
        return cls(state.epoch if in_epoch else None, -1 if in_epoch else state.step, state.hyper)

    def after(self, state: State) -> CurrentEpoch:
        """That after the phase of this state."""
        if state.phase is Phase.EPOCH_BEGIN:
            return CurrentEpoch(state.epoch, state.step, state.hyper)
        return attrs.evolve(self, index=None) if state.phase is Phase.EPOCH_END else self

    def hyper_used(self, state: State) -> Mapping[str, Hyper]:
        """Those of the last step of the epoch that ends with this state; of one without a step those it began with."""
        return {**self.hyper, **state.step_hyper} if state.step > self.steps_before else self.hyper
