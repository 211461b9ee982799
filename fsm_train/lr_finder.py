"""The learning-rate range test: raise the rate at each step, and suggest the one at which the loss falls fastest."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from .core.arguments import check_state, takes_by_name
from .core.callback import Callback, on
from .core.checks import check_count, check_number
from .core.phase import Flag, Phase
from .core.representation import html_table, properties
from .core.state import Plan, State, check_hyper
from .core.transition import Transition
from .core.under_way import refuse_if_in_use
from .interpreter import run_to_its_end

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BETA = 0.98  # the decay of the moving average of the losses
FEW = 10  # of fewer losses it is unknown how much they vary from batch to batch
DIVERGED = 4.0  # the test ends above this multiple of the best smoothed loss


@attrs.frozen(repr=False)
class LrFound:
    """The result of `find_lr`: a loss for each rate that was tried.

    Attributes:
        rates: the learning rates, in ascending order.
        losses: the loss of the batch that was trained with each rate.
        smoothed: the exponential moving average of the losses at each rate, with its bias corrected.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]

    @property
    def suggestion(self) -> float:
        """The rate at which the smoothed loss falls fastest over log(rate), before its lowest point.

        How fast it falls is seen over a twentieth of the rates to either side. The first tenth of them is left out, as
        fastai does, unless the lowest point is there: so few losses are averaged then that most of it is chance.

        Raises:
            ValueError: fewer than three rates were tried, or the loss fell with none of them, or by no more
                than it varies from batch to batch.
        """
        if why := self._no_suggestion():
            raise ValueError(why)
        lowest = self.smoothed.index(min(self.smoothed))
        side = max(1, min(len(self.rates) // 20, lowest // 2))
        first = len(self.rates) // 10
        first = side if first < side or first > lowest - side else first
        middles = range(first, max(lowest - side, first) + 1)
        return self.rates[min(middles, key=lambda i: self.smoothed[i + side] - self.smoothed[i - side])]

    def _no_suggestion(self) -> str | None:
        """Why these losses suggest no rate; None if they do."""
        if len(self.rates) < 3:
            return f"{len(self.rates)} rates are too few to suggest one: begin lower, or take more steps"
        lowest = self.smoothed.index(min(self.smoothed))
        tried = f"from {self.rates[0]:.2g} to {self.rates[-1]:.2g}"
        if lowest == 0:
            return (
                f"the smoothed loss fell with no rate {tried}, so none is suggested: begin lower (low=…), or see "
                "whether the model learns at all"
            )
        if len(self.losses) >= FEW and _fall(self.losses[: lowest + 1]) <= 2 * _standard_error(self.losses, lowest + 1):
            return (
                f"the loss fell by no more than it varies from batch to batch, with rates {tried}, so none is "
                "suggested: take more steps or larger batches, begin lower (low=…), or look at the plot"
            )
        return None

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the losses over the rates, with the suggestion if there is one; needs matplotlib (the extra: plot).

        Where single losses leave the range of the smoothed ones, as they do when the training diverges, they are
        cut off: else they would hide where the smoothed loss fell.

        Args:
            ax: where to plot; by default the axes of a new figure.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from .plots import new_axes

        axis = new_axes("LrFound.plot")[0] if ax is None else ax
        axis.plot(self.rates, self.losses, alpha=0.3, label="loss")
        axis.plot(self.rates, self.smoothed, label="smoothed")
        if not self._no_suggestion():
            axis.axvline(self.suggestion, color="C2", linestyle=":", label=f"suggestion {self.suggestion:.2g}")
        axis.set(xscale="log", xlabel="learning rate", ylabel="loss")
        if (low := min(self.smoothed, default=0.0)) < (high := max(self.smoothed, default=0.0)):
            axis.set_ylim(low - (high - low) / 2, high + (high - low) / 4)
        axis.legend()
        return axis

    def __repr__(self) -> str:
        return properties("LrFound", self._parts())

    def _repr_html_(self) -> str:
        from .core.drawing import drawing  # which is of no use but in a notebook

        rates = [math.log(max(rate, sys.float_info.min)) for rate in self.rates]
        mark = None if self._no_suggestion() else math.log(self.suggestion)
        curves = drawing(rates, [self.losses, self.smoothed], size=(320, 120), mark=mark)
        rows: list[tuple[str, str]] = [*self._parts(), ("losses over log(rate)", curves)]
        return html_table("LrFound", rows if self.rates else self._parts())

    def _parts(self) -> list[tuple[str, str]]:
        if not self.rates:
            return [("rates", "none was tried")]
        lowest = self.smoothed.index(min(self.smoothed))
        suggestion = "none" if self._no_suggestion() else f"{self.suggestion:.3g}"
        return [
            ("suggestion", suggestion),
            ("rates", f"{len(self.rates)} from {self.rates[0]:.3g} to {self.rates[-1]:.3g}"),
            ("lowest smoothed loss", f"{self.smoothed[lowest]:.4g} at {self.rates[lowest]:.3g}"),
        ]


def _fall(losses: Sequence[float]) -> float:
    """How much lower the mean of the second half is than that of the first."""
    half = len(losses) // 2
    return statistics.fmean(losses[:half]) - statistics.fmean(losses[-half:])


def _standard_error(losses: Sequence[float], count: int) -> float:
    """The standard error of `_fall` over `count` losses that only vary from batch to batch.

    The variation is that of second differences, to which a trend adds little. Their median is that of the
    absolute value of a normal variable with sqrt(6) times its standard deviation; a loss that diverges at
    the end does not move it.
    """
    bends = [abs(a - 2 * b + c) for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    deviation = statistics.median(bends) / (0.6745 * math.sqrt(6))
    return deviation * math.sqrt(2 / (count // 2))


@attrs.frozen
class RangeTest:
    """The rates that were tried so far; the fields are those of `LrFound`.

    Attributes:
        average: the moving average of the losses, with its bias.
    """

    rates: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    smoothed: tuple[float, ...] = ()
    average: float = 0.0


def lr_range_test(low: float, high: float, steps: int, diverged: float | None = DIVERGED) -> Callback[RangeTest]:
    """Raise the learning rate exponentially from `low` to `high`, one step each, until the loss diverges."""

    @on(
        *(Phase.SETUP, Phase.EPOCH_BEGIN, Phase.STEP_BEGIN),
        memory=RangeTest(),
        needs={"loss"},
        raises=Flag.SKIP_VALID | Flag.SKIP_STEP | Flag.STOP_EPOCH | Flag.STOP_TRAINING,
        sets={"lr"},
        commands=(),
    )
    def lr_range_test(state: State, test: RangeTest) -> Transition:
        if state.phase is Phase.SETUP:
            return Transition(hyper={"lr": low})
        if state.phase is Phase.EPOCH_BEGIN:
            return Transition(flags=Flag.SKIP_VALID)
        tried = len(test.rates)
        rate = low * (high / low) ** (tried / max(steps - 1, 1))
        loss = state.facts["loss"]
        average = BETA * test.average + (1 - BETA) * loss
        smoothed = average / (1 - BETA ** (tried + 1))
        extended = RangeTest((*test.rates, rate), (*test.losses, loss), (*test.smoothed, smoothed), average)
        best = min(extended.smoothed)
        # With a best loss below zero, the limit is as many times its size above it.
        limit = math.inf if diverged is None else best + (diverged - 1) * abs(best)
        if not math.isfinite(loss) or smoothed > limit:
            stop = Flag.STOP_TRAINING | Flag.STOP_EPOCH | Flag.SKIP_STEP
            return Transition(flags=stop, memory=test, reason=f"the loss diverged at {rate:.2g}")
        return Transition(hyper={"lr": rate}, memory=extended)

    return lr_range_test


@takes_by_name
def find_lr(
    state: State, *, low: float = 1e-7, high: float = 10.0, steps: int = 100, diverged: float | None = DIVERGED
) -> LrFound:
    """Try learning rates on a training that has not begun, and restore the training to its state before.

    The rate rises exponentially from `low` to `high` over `steps` optimizer steps, until the smoothed
    loss is four times the best one. `find_lr(state).suggestion` is a rate to train with, and `plot()` shows why.
    Afterwards model, optimizer, generators and loaders are as they were, also when something is raised. Smith,
    "Cyclical Learning Rates for Training Neural Networks" (2017); the constants are those of fastai.

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
        low: the first rate.
        high: the last rate.
        steps: the number of rates, from 3.
        diverged: at which multiple of the best smoothed loss the test ends. None tries all the rates; a loss that is
            not finite ends it all the same.

    Raises:
        TypeError: a rate is no number.
        ValueError: the rates, steps or multiple make no sense, or the state is not one that `start` returned.
        WorkloadError: a run of this workload is under way.
        KeyboardInterrupt: the test was interrupted, by Ctrl-C or SIGTERM. Inside of a run it ends first, and that
            run is suspended.
    """
    check_state(state, "find_lr")
    low, high = _rate("low", low), _rate("high", high)
    if not 0 < low < high:
        raise ValueError(f"low={low!r}, high={high!r}: rates are positive, and high is higher")
    check_count("steps", steps, least=3)
    if diverged is not None:
        check_number("diverged", diverged, lambda x: x > 1, "it is a multiple of the best loss, above 1, or None")
    if state.phase is not Phase.READY or state.workload is None:
        raise ValueError(
            f"find_lr begins with the state of start(workload, …), and this one was taken at {state.phase.value}: "
            "write find_lr(start(work, epochs=1))"
        )
    refuse_if_in_use(state.workload)
    snapshot = state.workload.snapshot()
    trial: Any = attrs.evolve(state, plan=Plan(max_steps=steps, seed=state.plan.seed))
    try:
        final = run_to_its_end(trial, [lr_range_test(low, high, steps, diverged)])
        if final.phase is Phase.SUSPENDED:
            raise KeyboardInterrupt(final.reason)
    finally:
        state.workload.put_back(snapshot)
    test = final.memory["lr_range_test"]
    assert isinstance(test, RangeTest)
    return LrFound(test.rates, test.losses, test.smoothed)


def _rate(setting: str, value: object) -> float:
    rate = check_hyper(setting, value)
    if isinstance(rate, tuple):
        raise TypeError(f"{setting}={value!r}: it is one rate for all parameter groups")
    return rate
