"""Freezing parameters, for fine-tuning."""

from __future__ import annotations

from ..core.callback import Callback, on
from ..core.checks import check_bool, check_count
from ..core.commands import Freeze, Unfreeze
from ..core.phase import Phase
from ..core.state import State
from ..core.transition import Transition
from .players import player_factory


@player_factory
def freeze(
    pattern: str,
    *,
    until_epoch: int | None = None,
    train_bn: bool = True,
    player: str | None = None,
    name: str | None = None,
) -> Callback[None]:
    """Freeze the parameters whose names match `pattern`, for the whole training or until an epoch begins.

    Frozen at SETUP, unfrozen at EPOCH_BEGIN. Frozen parameters have no gradient, so weight decay and
    momentum do not change them either. Several of these callbacks unfreeze gradually: a parameter is
    frozen as long as any pattern that matches it is. A parameter that modules share has several names, and is
    frozen under each of them, which is logged; so is a parameter that cannot be trained after `until_epoch`,
    since the optimizer does not have it or since it required no gradient before.

    Batch-norm statistics are not parameters: they change, unless `train_bn` is False, or the batch norm was put
    in eval mode before the training began. What was in eval mode then stays so.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> freeze("encoder.*", until_epoch=2)(at(Phase.EPOCH_BEGIN, epoch=2)).commands
    (Unfreeze(pattern='encoder.*'),)

    Args:
        pattern: of names in model.named_parameters(), with * and ? as in file names.
        until_epoch: the first epoch, from 0, in which they are trained.
        train_bn: False keeps the statistics of batch norms whose parameters are all frozen: they are in eval
            mode as long.
        player: in a training with turns, the player that it is for; None for all.
        name: of the callback; by default "freeze " and the pattern.
    """
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"pattern={pattern!r}: give a pattern of parameter names, such as 'encoder.*'")
    if until_epoch is not None:
        check_count("until_epoch", until_epoch, least=1)
    check_bool("train_bn", train_bn)
    phases = (Phase.SETUP,) if until_epoch is None else (Phase.SETUP, Phase.EPOCH_BEGIN)

    @on(*phases, name=f"freeze {pattern}", commands={Freeze, Unfreeze}, reads={"epoch"})
    def freeze(state: State) -> Transition | None:
        if state.phase is Phase.EPOCH_BEGIN:
            return Transition(commands=(Unfreeze(pattern),)) if state.epoch == until_epoch else None
        if until_epoch is not None and state.epoch >= until_epoch:
            return None
        return Transition(commands=(Freeze(pattern, train_bn, until_epoch is not None),))

    return freeze
