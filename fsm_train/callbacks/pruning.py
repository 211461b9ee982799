"""What a pruner says of a trial of hyper-parameters, as a decision."""

from __future__ import annotations

from ..core.callback import Callback, on, strict_factory
from ..core.phase import Flag, Phase
from ..core.state import State
from ..core.transition import Transition


@strict_factory
def stop_pruned(fact: str = "pruned", *, name: str = "stop_pruned") -> Callback[bool]:
    """Stop the training when the pruner has given up its trial.

    At EPOCH_END. Its memory is whether it did. The fact is that of a sensor, `fsm_train.tuning.verdict(trial)`, so that
    a replay of the log knows it.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> stop_pruned()(at(Phase.EPOCH_END, pruned=1.0), False).reason
    'the pruner gave up this trial'

    Args:
        fact: the name of that sensor.

    Raises:
        TypeError: `fact` is no name.
    """
    if not isinstance(fact, str):
        raise TypeError(f'fact={fact!r}: give the name of the sensor, such as "pruned"')

    @on(Phase.EPOCH_END, needs={fact}, memory=False, raises=Flag.STOP_TRAINING)
    def stop_pruned(state: State, pruned: bool) -> Transition | None:
        if not state.facts[fact] or Flag.STOP_TRAINING in state.flags:
            return None
        return Transition(flags=Flag.STOP_TRAINING, memory=True, reason="the pruner gave up this trial")

    return stop_pruned
