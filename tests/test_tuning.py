"""Trials of Optuna: what is reported, who is pruned, and a replay without a study."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from fsm_train import Flag, Phase, Scripted, State, Transition, extend, on, replay, run, start
from fsm_train.callbacks import early_stopping, stop_after, stop_pruned
from fsm_train.testing import PerRank, check_callback, simulate
from fsm_train.tuning import result, verdict
from tests.diabetes_training import batches, workload

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Given:
    """A trial whose verdicts are given; it holds what was reported."""

    def __init__(self, *verdicts: bool) -> None:
        self.verdicts = list(verdicts)
        self.reported: list[tuple[float, int]] = []

    def report(self, value: float, step: int) -> None:
        self.reported.append((value, step))

    def should_prune(self) -> bool:
        return self.verdicts.pop(0) if self.verdicts else False


def test_each_epoch_is_reported_and_a_pruned_trial_stops() -> None:
    """With the number of epochs; what follows the verdict is not trained."""
    trial = Given(False, True)
    final = simulate([stop_pruned()], valid_loss=[3.0, 2.0, 1.0], pruned=verdict(trial))

    assert trial.reported == [(3.0, 1), (2.0, 2)]
    assert (final.epoch, final.reason) == (2, "stop_pruned: the pruner gave up this trial")
    with pytest.raises(optuna.TrialPruned):
        result(final)


def test_without_optuna_a_pruned_trial_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that is none is needed for it: a stand-in that only reports and prunes."""
    final = simulate([stop_pruned()], valid_loss=[3.0, 2.0], pruned=verdict(Given(True)))
    monkeypatch.setitem(sys.modules, "optuna", None)

    with pytest.raises(
        ModuleNotFoundError, match=r"gave up this trial .* takes optuna: pip install 'fsm-train\[optuna\]'"
    ):
        result(final)


def test_a_study_prunes_what_is_worse_than_the_median() -> None:
    """With a real pruner, and a real model; each trial has what was reported of it."""
    rates = (0.05, 0.1, 1e-6, 1e-7)

    def objective(trial: Any) -> float:
        work = workload(
            optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=rates[trial.number]),
            valid=batches(8, skip=30),
            sensors={"pruned": verdict(trial)},
        )
        return result(run(start(work, epochs=6, seed=0), [stop_pruned()]))

    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1))
    study.optimize(objective, n_trials=4)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert [len(trial.intermediate_values) for trial in study.trials[:2]] == [6, 6]
    assert all(len(trial.intermediate_values) < 6 for trial in study.trials[2:])
    assert study.best_trial.value == study.best_trial.intermediate_values[6]


def test_a_replay_needs_no_study(tmp_path: Path) -> None:
    """The verdict is in the log, as any fact."""
    log = tmp_path / "run.jsonl"
    run(start(Scripted(valid_loss=1.0, pruned=verdict(Given(False, True))), epochs=5), [stop_pruned()], log=log)

    again = replay(log)
    assert again.ok
    assert again.state.reason == "stop_pruned: the pruner gave up this trial"


def test_an_epoch_without_a_measurement_is_not_reported() -> None:
    """The metric of an earlier validation is no news; one of training is measured in each epoch."""

    @on(Phase.EPOCH_BEGIN)
    def each_second(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_VALID) if state.epoch % 2 == 0 else None

    trial, other = Given(), Given()
    for monitor, each in (("valid_loss", trial), ("train_loss", other)):
        simulate(
            [stop_pruned(), each_second],
            epochs=4,
            batches=2,
            loss=0.5,
            valid_loss=[3.0, 2.0],
            pruned=verdict(each, monitor),
        )
    assert trial.reported == [(3.0, 2), (2.0, 4)]
    assert other.reported == [(0.5, epoch) for epoch in (1, 2, 3, 4)]


def test_one_rank_asks_for_all() -> None:
    """The others have no trial, and stop with it."""
    trial = Given(False, True)
    pruned: Any = PerRank(verdict(trial), verdict(None))
    final = simulate([stop_pruned()], ranks=2, valid_loss=1.0, epochs=4, pruned=pruned)
    assert final.epoch == 2
    assert len(trial.reported) == 2


def test_result_is_the_metric_at_the_end() -> None:
    """Of a training that was not pruned, whatever else ended it."""
    values = [3.0, 2.0, 2.5, 2.6]
    trained = simulate([stop_pruned(), early_stopping(patience=2)], valid_loss=values, pruned=verdict(Given()))
    assert result(trained) == 2.6
    with pytest.raises(LookupError, match="without 'valid_accuracy': there are"):
        result(trained, "valid_accuracy")
    with pytest.raises(LookupError, match="no metric 'valid_f1' to report"):
        simulate([stop_pruned()], valid_loss=1.0, pruned=verdict(Given(), "valid_f1"))


def test_suspended_training_ends_the_study() -> None:
    """It has no result, and is no failure of the trial."""

    @on(Phase.EPOCH_END)
    def suspend(state: State) -> Transition:
        return Transition(flags=Flag.SUSPEND)

    suspended = run(start(Scripted(valid_loss=1.0), epochs=2), [suspend])
    assert suspended.phase is Phase.SUSPENDED
    with pytest.raises(KeyboardInterrupt):
        result(suspended)


def test_who_stopped_first_is_the_reason() -> None:
    """A verdict on a training that ends anyway prunes nothing."""
    final: State = simulate(
        [stop_after(steps=1), stop_pruned()], valid_loss=1.0, epochs=3, pruned=verdict(Given(True, True))
    )
    assert final.memory["stop_pruned"] is False
    assert result(final) == 1.0
    assert extend(final, epochs=1).plan.epochs


def test_it_is_a_good_callback() -> None:
    """And a sensor takes a trial, or None."""
    check_callback(stop_pruned(), examples=30)
    with pytest.raises(TypeError, match="trial is the class Given"):
        verdict(Given)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="trial is an int"):
        verdict(3)  # type: ignore[arg-type]


def test_the_fact_of_a_pruner_is_given_by_name() -> None:
    """And not as the sensor, nor in a list as the facts of others are."""
    with pytest.raises(TypeError, match=r"fact=\['pruned'\]: give the name of the sensor"):
        stop_pruned(["pruned"])  # type: ignore[arg-type]
