"""The schedulers of torch, for those that `fsm_train.schedules` does not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from ..core.callback import Callback, on
from ..core.checks import check_choice
from ..core.commands import StepScheduler, UseScheduler
from ..core.phase import Phase
from ..core.state import State
from ..core.transition import Transition
from .monitoring import check_monitor, checked, checked_at
from .players import player_factory


@player_factory
def torch_scheduler(
    make: Callable[[Any], Any] | Mapping[str, Callable[[Any], Any]],
    *,
    by: Literal["step", "epoch"] = "step",
    monitor: str | None = None,
    player: str | None = None,
    name: str = "torch_scheduler",
) -> Callback[None]:
    """Set the hyper-parameters by one of torch's own schedulers.

    Made at SETUP, stepped after each applied step (STEP_END) or each epoch (EPOCH_END); with a monitor,
    after each measurement of it: a `valid_…` at VALID_END, in the middle of an epoch as well. The values that
    it sets are read from the optimizer afterwards, since no pure function can compute them. Prefer
    `schedule` for what `fsm_train.schedules` has.

    A training has one at most: two would set the same rates, and the result would depend on which comes
    first. Make several one by torch's ChainedScheduler or SequentialLR.

    When a run begins, and in `describe`, a scheduler whose length torch knows (`total_steps` of OneCycleLR, `T_max` of
    CosineAnnealingLR, …) and that ends long before or after the plan is said, as that of `schedule` is.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> plateau = torch_scheduler(lambda optimizer: ..., by="epoch", monitor="valid_loss")
    >>> plateau(at(Phase.VALID_END, valid_loss=2.0)).commands
    (StepScheduler(name='torch_scheduler', metric=2.0),)

    Args:
        make: makes the scheduler of the optimizer: lambda optimizer: MultiplicativeLR(optimizer, …). To compare its
            length with the plan it is also called with a copy of the optimizer; it is to have no other effect. Of
            several optimizers a mapping by their names, {"muon": lambda optimizer: …}, makes one scheduler each.
        by: "step" or "epoch".
        monitor: the metric that is passed to the scheduler's `step`, as ReduceLROnPlateau needs it; only
            by epoch. An epoch without a measurement is no step.
        player: in a training with turns, the player that it is for; None for all.
        name: of the callback, and of its scheduler.
    """
    makes: dict[str | None, Callable[[Any], Any]] = dict(make.items()) if isinstance(make, Mapping) else {None: make}
    if not makes or not all(map(callable, makes.values())):
        raise TypeError(
            f"make={make!r}: give a function that makes a scheduler of the optimizer; of several optimizers one each, "
            "by name"
        )
    check_choice("by", by, ("step", "epoch"))
    if monitor is not None:
        check_monitor(monitor)
        if by != "epoch":
            raise ValueError(f"monitor={monitor!r}: a step measures no metric, so pass by='epoch'")
    named = {of: name if of is None else f"{name}.{of}" for of in makes}
    phases = (Phase.STEP_END,) if by == "step" else checked_at(monitor or "")

    @on(
        *(Phase.SETUP, *phases),
        needs={"stepped"} if by == "step" else (),
        commands={UseScheduler, StepScheduler},
        monitors=() if monitor is None else {monitor},
    )
    def torch_scheduler(state: State) -> Transition | None:
        if state.phase is Phase.SETUP:
            return Transition(commands=tuple(UseScheduler(named[of], makes[of], of) for of in makes))
        if by == "step" and not state.facts["stepped"]:
            return None
        value = None if monitor is None else checked(state, monitor)
        if monitor is not None and value is None:
            return None
        return Transition(commands=tuple(StepScheduler(each, value) for each in named.values()))

    return torch_scheduler
