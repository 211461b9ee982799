"""Finding a learning rate: raise it from step to step, and look where the loss falls fastest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs

from .core.callback import Callback, on
from .core.phase import Flag, Phase
from .core.representation import html_table, properties
from .core.state import Plan, State, check_hyper
from .core.transition import Transition
from .interpreter import run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BETA = 0.98  # of the smoothed loss
DIVERGED = 4.0  # times the best smoothed loss; with one below zero, as far above it


@attrs.frozen(repr=False)
class LrFound:
    """What was found: a loss for each rate that was tried.

    Attributes:
        rates: the learning rates, rising.
        losses: the loss of the batch that was trained with each.
        smoothed: the exponential moving averages of the losses, corrected for their beginning.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]

    @property
    def suggestion(self) -> float:
        """The rate at which the smoothed loss falls fastest, per factor of the rate, before its lowest point.

        Raises:
            ValueError: fewer than three rates were tried.
        """
        if len(self.rates) < 3:
            raise ValueError(f"{len(self.rates)} rates are too few to suggest one: begin lower, or take more steps")
        lowest = self.smoothed.index(min(self.smoothed))
        middles = range(1, max(lowest, 2))
        return self.rates[min(middles, key=lambda i: self.smoothed[i + 1] - self.smoothed[i - 1])]

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the losses over the rates, with the suggestion; needs matplotlib."""
        if axes is None:
            import matplotlib.pyplot as plt

            axes = plt.figure().add_subplot()
        axes.plot(self.rates, self.losses, alpha=0.3, label="loss")
        axes.plot(self.rates, self.smoothed, label="smoothed")
        axes.axvline(self.suggestion, linestyle=":", label=f"suggestion {self.suggestion:.2g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.legend()
        return axes

    def __repr__(self) -> str:
        return properties("LrFound", self._parts())

    def _repr_html_(self) -> str:
        return html_table("LrFound", self._parts())

    def _parts(self) -> list[tuple[str, str]]:
        if not self.rates:
            return [("rates", "none was tried")]
        lowest = self.smoothed.index(min(self.smoothed))
        suggestion = f"{self.suggestion:.3g}" if len(self.rates) > 2 else "none, of fewer than 3 rates"
        return [
            ("suggestion", suggestion),
            ("rates", f"{len(self.rates)} from {self.rates[0]:.3g} to {self.rates[-1]:.3g}"),
            ("lowest smoothed loss", f"{self.smoothed[lowest]:.4g} at {self.rates[lowest]:.3g}"),
        ]


@attrs.frozen
class Sweep:
    """The rates tried so far, and what came of them."""

    rates: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    smoothed: tuple[float, ...] = ()
    average: float = 0.0  # before it is corrected


def lr_sweep(low: float, high: float, steps: int) -> Callback[Sweep]:
    """Raise the learning rate exponentially from `low` to `high`, one step each, until the loss diverges."""

    @on(
        *(Phase.SETUP, Phase.EPOCH_BEGIN, Phase.STEP_BEGIN),
        memory=Sweep(),
        needs={"loss"},
        raises=Flag.SKIP_VALID | Flag.SKIP_STEP | Flag.STOP_EPOCH | Flag.STOP_TRAINING,
        sets={"lr"},
        commands=(),
    )
    def lr_sweep(state: State, sweep: Sweep) -> Transition:
        if state.phase is Phase.SETUP:
            return Transition(hyper={"lr": low})
        if state.phase is Phase.EPOCH_BEGIN:
            return Transition(flags=Flag.SKIP_VALID)
        tried = len(sweep.rates)
        rate = low * (high / low) ** (tried / max(steps - 1, 1))
        loss = state.facts["loss"]
        average = BETA * sweep.average + (1 - BETA) * loss
        smoothed = average / (1 - BETA ** (tried + 1))
        seen = Sweep((*sweep.rates, rate), (*sweep.losses, loss), (*sweep.smoothed, smoothed), average)
        best = min(seen.smoothed)
        if not math.isfinite(loss) or smoothed > best + (DIVERGED - 1) * abs(best):
            stop = Flag.STOP_TRAINING | Flag.STOP_EPOCH | Flag.SKIP_STEP
            return Transition(flags=stop, memory=sweep, reason=f"the loss diverged at {rate:.2g}")
        return Transition(hyper={"lr": rate}, memory=seen)

    return lr_sweep


def find_lr(state: State, *, low: float = 1e-7, high: float = 10.0, steps: int = 100) -> LrFound:
    """Try out learning rates on a training that has not begun, and leave no trace.

    The rate rises exponentially from `low` to `high` over `steps` optimizer steps, until the smoothed
    loss is four times the best one. Model, optimizer, generators and loaders are afterwards as
    before, also when something is raised. Smith, "Cyclical Learning Rates for Training Neural
    Networks" (2017); the constants are those of fastai.

    >>> import torch
    >>> from fsm_train import Supervised, start
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> batches = [(torch.ones(4, 3), torch.zeros(4, 1))] * 10
    >>> work = Supervised(model, optimizer, torch.nn.MSELoss(), batches)
    >>> found = find_lr(start(work, epochs=1), steps=20)
    >>> len(found.rates) <= 20
    True

    Args:
        state: from `start`.
        low: the rate to begin with.
        high: the rate to end with.
        steps: how many rates to try.

    Raises:
        ValueError: the numbers make no sense, or the state is not one that a training begins with.
        KeyboardInterrupt: it was interrupted, by Ctrl-C or SIGTERM.
    """
    for setting, value in (("low", low), ("high", high)):
        check_hyper(setting, value)
    if not 0 < low < high:
        raise ValueError(f"low={low!r}, high={high!r}: rates are positive, and high is higher")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 3:
        raise ValueError(f"steps={steps!r}: it is a whole number from 3")
    if state.phase is not Phase.READY or state.workload is None:
        raise ValueError("find_lr begins with the state of start(workload, …)")
    snapshot = state.workload.snapshot()
    trial: Any = attrs.evolve(state, plan=Plan(max_steps=steps, seed=state.plan.seed))
    try:
        final = run(trial, [lr_sweep(low, high, steps)])
        if final.phase is Phase.SUSPENDED:
            raise KeyboardInterrupt(final.reason)
    finally:
        state.workload.put_back(snapshot)
    sweep = final.memory["lr_sweep"]
    assert isinstance(sweep, Sweep)
    return LrFound(sweep.rates, sweep.losses, sweep.smoothed)
