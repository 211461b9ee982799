"""A trial of Optuna: its verdict is a fact, and to stop is a decision, so a replay needs no study.

    from fsm_train.callbacks import stop_pruned
    from fsm_train.tuning import result, verdict

    def objective(trial):
        work = Supervised(…, sensors={"pruned": verdict(trial, "valid_loss")})
        return result(run(start(work, epochs=20), [stop_pruned()]), "valid_loss")

Rule of this file: a trial is what has `report(value, step)` and `should_prune()`. Optuna itself is imported only to
raise its TrialPruned.
"""

from __future__ import annotations

from typing import Any, Protocol

from .callbacks.monitoring import check_monitor, measured_at
from .core.arguments import check_state, kind_of
from .core.phase import Phase
from .core.reductions import Sensor
from .core.state import State


class Trial(Protocol):
    """What is used of an `optuna.Trial`."""

    def report(self, value: float, step: int) -> None: ...
    def should_prune(self) -> bool: ...


def verdict(trial: Trial | None, monitor: str = "valid_loss") -> Sensor:
    """Whether a trial should be pruned, 1 or 0: a sensor, to be given to a workload as sensors={"pruned": …}.

    When an epoch ends, it reports the metric to the trial, with the number of epochs as its step, and asks the pruner.
    An epoch in which the metric was not measured is not reported.

    >>> from fsm_train.callbacks import stop_pruned
    >>> from fsm_train.testing import simulate
    >>> class Impatient:
    ...     def report(self, value, step):
    ...         self.value = value
    ...     def should_prune(self):
    ...         return self.value > 0.8
    >>> final = simulate([stop_pruned()], valid_loss=[0.7, 0.9, 0.1], pruned=verdict(Impatient()))
    >>> final.epoch, final.reason
    (2, 'stop_pruned: the pruner gave up this trial')

    Args:
        trial: an `optuna.Trial`; None on all ranks but one, whose verdict is then that of all.
        monitor: the metric to report.

    Raises:
        TypeError: `trial` has no `report` and `should_prune`, and is not None.
        LookupError: in a run, there is no such metric.
    """
    check_monitor(monitor)
    if isinstance(trial, type) or (
        trial is not None and not (hasattr(trial, "report") and hasattr(trial, "should_prune"))
    ):
        raise TypeError(f"trial is {kind_of(trial)}: give what Optuna gives to an objective, or None")

    def pruned(measured: Any) -> float:
        state: State = measured if isinstance(measured, State) else measured.state
        of_validation = measured_at(monitor) is Phase.VALID_END and state.has_valid
        in_this_epoch = state.validated_at > state.iteration - state.batch
        if trial is None or (of_validation and not in_this_epoch):
            return 0.0
        if monitor not in state.metrics:
            there_are = ", ".join(state.metrics) or "none"
            raise LookupError(f"there is no metric {monitor!r} to report to the trial: there are {there_are}")
        trial.report(state.metrics[monitor], state.epoch)
        return float(trial.should_prune())

    return Sensor(pruned, reduction="max")


def result(final: State, monitor: str = "valid_loss", *, name: str = "stop_pruned") -> float:
    """The metric of a training that has ended, for an objective to return.

    Args:
        final: what `run` returned.
        monitor: the metric.
        name: of the callback that stops a pruned trial.

    Raises:
        optuna.TrialPruned: the pruner gave up this trial. The study notes it as pruned, with what was reported.
        KeyboardInterrupt: the training was suspended, so it has no result, and the study is to end too.
        LookupError: there is no such metric.
        ModuleNotFoundError: it was given up, and Optuna is not installed.
    """
    check_state(final, "result")
    if final.phase is Phase.SUSPENDED:
        raise KeyboardInterrupt(final.reason)
    if final.memory.get(name):
        raise _pruned(final.reason)
    if monitor not in final.metrics:
        there_are = ", ".join(final.metrics) or "none"
        raise LookupError(f"the training ended without {monitor!r}: there are {there_are}")
    return final.metrics[monitor]


def _pruned(reason: str) -> Exception:
    try:
        from optuna import TrialPruned
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the pruner gave up this trial ({reason}), and to say so takes optuna: pip install 'fsm-train[optuna]'",
            name=error.name,
        ) from error
    return TrialPruned(reason)
