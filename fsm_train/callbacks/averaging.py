"""Averages of the weights over the training, which often generalise better than the last ones.

An average is updated only after a step that was applied. The model has it during each validation and
at the end of the training. A training that is extended continues from the model's own weights.
"""

from __future__ import annotations

from ..core.callback import Callback, on, strict_factory
from ..core.checks import check_count, check_number
from ..core.commands import FinishAverage, KeepAverage, UpdateAverage, UseAverage
from ..core.phase import Phase
from ..core.state import State
from ..core.transition import Transition

_COMMANDS = (KeepAverage, UpdateAverage, UseAverage, FinishAverage)


@strict_factory
def ema(decay: float = 0.999, *, name: str = "ema") -> Callback[int]:
    """Keep an exponential moving average of the weights, validate with it, and end with it.

    After each applied step (STEP_END): average = decay * average + (1 - decay) * weights; the first
    update copies the weights. The model has the average from VALID_BEGIN to VALID_END (or SUSPEND),
    and from TRAIN_END on. Averages and buffers are those of torch.optim.swa_utils.AveragedModel, but that weights
    in half precision are averaged in float32, where small updates are not lost, and rounded when they are used.
    The parameters of a loss that is a module are averaged too.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> ema(0.99)(at(Phase.STEP_END, stepped=1.0)).commands
    (UpdateAverage(name='ema'),)

    Args:
        decay: how much of the average stays at each step.
        name: of the callback, and of its average.
    """
    check_number("decay", decay, lambda x: 0 <= x < 1, "it is a number from 0 to below 1")

    @on(
        *(Phase.SETUP, Phase.STEP_END, Phase.VALID_BEGIN, Phase.VALID_END, Phase.SUSPEND, Phase.TRAIN_END),
        memory=0,
        needs={"stepped"},
        commands=_COMMANDS,
    )
    def ema(state: State, updates: int) -> Transition | None:
        match state.phase:
            case Phase.SETUP:
                return Transition(commands=(KeepAverage(name, decay),))
            case Phase.STEP_END:
                if state.facts["stepped"]:
                    return Transition(commands=(UpdateAverage(name),), memory=updates + 1)
                return None
        return _exchange(state, name, updates, batch_norm=False)

    return ema


@strict_factory
def swa(start_epoch: int, *, name: str = "swa") -> Callback[int]:
    """Average the weights at the end of each epoch from `start_epoch` on, and end with that average.

    Updated when the batches of an epoch are over (VALID_BEGIN, or EPOCH_END without a validation).
    At TRAIN_END the model has the average, with batch-norm statistics computed again from the training
    data, except for batch norms in eval mode. Izmailov et al., "Averaging Weights Leads to Wider Optima and
    Better Generalization" (2018);
    as in torch.optim.swa_utils. Combine it with a constant or cyclic learning rate.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> swa(start_epoch=2)(at(Phase.EPOCH_END, epoch=3)).commands
    (UpdateAverage(name='swa'),)

    Args:
        start_epoch: the first epoch, from 0, whose weights are averaged.
        name: of the callback, and of its average.
    """
    check_count("start_epoch", start_epoch)

    @on(
        *(Phase.SETUP, Phase.VALID_BEGIN, Phase.VALID_END, Phase.SUSPEND, Phase.EPOCH_END, Phase.TRAIN_END),
        memory=0,  # the number of finished epochs at the last update
        commands=_COMMANDS,
    )
    def swa(state: State, updated_at: int) -> Transition | None:
        epochs = state.epoch + (state.phase is Phase.VALID_BEGIN and state.batches_over)
        update = UpdateAverage(name)
        match state.phase:
            case Phase.SETUP:
                return Transition(commands=(KeepAverage(name),))
            case Phase.VALID_BEGIN if state.batches_over and epochs > max(start_epoch, updated_at):
                return Transition(commands=(update, UseAverage(name, on=True)), memory=epochs)
            case Phase.EPOCH_END:
                return Transition(commands=(update,), memory=epochs) if epochs > max(start_epoch, updated_at) else None
        return _exchange(state, name, updated_at, batch_norm=True)

    return swa


def _exchange(state: State, name: str, updates: int, *, batch_norm: bool) -> Transition | None:
    """Use the average in a validation, and for good at the end; do nothing before its first update."""
    if not updates:
        return None
    if state.phase is Phase.TRAIN_END:
        return Transition(commands=(FinishAverage(name, batch_norm),))
    return Transition(commands=(UseAverage(name, on=state.phase is Phase.VALID_BEGIN),))
