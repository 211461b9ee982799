"""Averages of the weights over the training, which often generalise better than the last ones.

An average is updated only after a step that was applied. The model has it during each validation and
at the end of the training. A training that is extended continues from the model's own weights.

One average of a run does so. Others are kept beside the model, and are there by their names: `ema(…, validate=False)`.
"""

from __future__ import annotations

from typing import Literal

from ..core.callback import Callback, on
from ..core.checks import check_bool, check_choice, check_count, check_number
from ..core.commands import FinishAverage, KeepAverage, UpdateAverage, UseAverage
from ..core.phase import Phase
from ..core.state import State
from ..core.transition import Transition
from .players import player_factory

_KEPT_BESIDE = (KeepAverage, UpdateAverage)
_COMMANDS = (*_KEPT_BESIDE, UseAverage, FinishAverage)


@player_factory
def ema(
    decay: float = 0.999,
    *,
    buffers: Literal["copy", "average"] = "copy",
    every: int = 1,
    start: int = 0,
    warmup: bool = False,
    initial: bool = False,
    validate: bool = True,
    player: str | None = None,
    name: str = "ema",
) -> Callback[int]:
    """Keep an exponential moving average of the weights, validate with it, and end with it.

    After each applied step (STEP_END): average = decay * average + (1 - decay) * weights; the first
    update copies the weights. The model has the average from VALID_BEGIN to VALID_END (or SUSPEND),
    and from TRAIN_END on; before the first update it has its own weights there. Averages and buffers are those of
    torch.optim.swa_utils.AveragedModel, but that weights in half precision are averaged in float32, where small
    updates are not lost, and rounded when they are used. The parameters of a loss that is a module are averaged too.

    Several averages go side by side if one of them validates: `ema(0.9999)` and
    `ema(0.99, name="fast", validate=False)`. All are saved, resumed and kept by `restore_best`;
    `with weights(work, "fast"):` gives the model one of them for a while.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> ema(0.99, every=10, start=100)(at(Phase.STEP_END, step=110, stepped=1.0)).commands
    (UpdateAverage(name='ema', decay=None),)

    Args:
        decay: how much of the average stays at each update.
        buffers: "copy" gives the average the buffers of the model, such as the statistics of batch norm, as they are at
            an update; "average" averages those of floating point as it does the weights, and copies the others.
        every: steps from one update to the next.
        start: the step of the first update, counted as `state.step` is: start=100 copies the weights that 100 applied
            steps made. With 0 the first update is after `every` steps.
        warmup: whether the decay of update n, from 0, is at most (1 + n) / (10 + n), so that a young average soon
            forgets the first weights: as tf.train.ExponentialMovingAverage with num_updates, torch_ema, and
            diffusers' EMAModel without its use_ema_warmup, which is another formula.
        initial: whether the average begins with the weights before the first step, copied at TRAIN_BEGIN, so that the
            first step is averaged already: as timm's ModelEma, target networks, and the teachers of MoCo and BYOL.
        validate: whether the model has the average in validations and at the end. If not, it has its own weights there.
        player: in a training with turns, the player that it is for; None for all.
        name: of the callback, and of its average. "own" and "model" are what the weights without it are called.

    Raises:
        ValueError: a setting is no such value.
    """
    _check_name(name)
    check_number("decay", decay, lambda x: 0 <= x < 1, "it is a number from 0 to below 1")
    check_choice("buffers", buffers, ("copy", "average"))
    check_count("every", every, least=1)
    check_count("start", start)
    check_bool("warmup", warmup)
    check_bool("initial", initial)
    check_bool("validate", validate)
    begins = (Phase.TRAIN_BEGIN,) if initial else ()
    exchanges = (Phase.VALID_BEGIN, Phase.VALID_END, Phase.SUSPEND, Phase.TRAIN_END) if validate else ()

    @on(
        *(Phase.SETUP, *begins, Phase.STEP_END, *exchanges),
        memory=0,
        needs={"stepped"},
        commands=_COMMANDS if validate else _KEPT_BESIDE,
    )
    def ema(state: State, updates: int) -> Transition | None:
        match state.phase:
            case Phase.SETUP:
                return Transition(commands=(KeepAverage(name, decay, buffers),))
            case Phase.TRAIN_BEGIN:  # comes again in a training that is extended
                return None if updates else Transition(commands=(UpdateAverage(name),), memory=1)
            case Phase.STEP_END:
                after_start = state.step - start
                if not state.facts["stepped"] or after_start < 0 or after_start % every:
                    return None
                update = UpdateAverage(name, min(decay, (1 + updates) / (10 + updates)) if warmup else None)
                return Transition(commands=(update,), memory=updates + 1)
        return _exchange(state, name, updates, batch_norm=False)

    return ema


@player_factory
def swa(start_epoch: int, *, player: str | None = None, name: str = "swa") -> Callback[int]:
    """Average the weights at the end of each epoch from `start_epoch` on, and end with that average.

    Updated when the batches of an epoch are over (VALID_BEGIN, or EPOCH_END without a validation).
    At TRAIN_END the model has the average, with batch-norm statistics computed again from the training
    data, except for batch norms in eval mode. Izmailov et al., "Averaging Weights Leads to Wider Optima and
    Better Generalization" (2018);
    as in torch.optim.swa_utils. Combine it with a constant or cyclic learning rate.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> swa(start_epoch=2)(at(Phase.EPOCH_END, epoch=3)).commands
    (UpdateAverage(name='swa', decay=None),)

    Args:
        start_epoch: the first epoch, from 0, whose weights are averaged.
        player: in a training with turns, the player that it is for; None for all.
        name: of the callback, and of its average.
    """
    _check_name(name)
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


def _check_name(name: str) -> None:
    """Refuse a name by which something else is meant where an average is named.

    Raises:
        ValueError: with another name to write.
    """
    if name in ("own", "model"):
        raise ValueError(f"name={name!r}: so the model's own weights are called; write name='average', or another name")


def _exchange(state: State, name: str, updates: int, *, batch_norm: bool) -> Transition | None:
    """Use the average in a validation, and for good at the end; do nothing before its first update."""
    if not updates:
        return None
    if state.phase is Phase.TRAIN_END:
        return Transition(commands=(FinishAverage(name, batch_norm),))
    return Transition(commands=(UseAverage(name, on=state.phase is Phase.VALID_BEGIN),))
