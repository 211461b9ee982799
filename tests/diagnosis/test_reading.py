"""What is read from a log, and the page that `diagnose` prints."""

from __future__ import annotations

from math import inf, nan
from pathlib import Path
from typing import Any

import attrs
import pytest

from fsm_train import EventLog, Flag, LogError, Phase, State, Transition, diagnose, extend, on, run, start
from fsm_train.callbacks import accumulate, early_stopping, record, schedule, skip_nonfinite
from fsm_train.diagnosis import Evidence, Finding
from fsm_train.diagnosis.reading import MOST_NAMES, LogWatch, observe
from fsm_train.diagnosis.stops import still_improves, stopped_too_early
from fsm_train.eventlog import read_log
from fsm_train.schedules import cosine
from fsm_train.worlds.scripted import Scripted

from ..cli.logs import only_a_header


def trained(path: Path, callbacks: Any = (), epochs: int = 8, log: Any = None, **script: Any) -> State:
    work = Scripted(**{"batches": 4, "loss": lambda state: 2.0 / (1 + state.iteration), **script})
    return run(start(work, epochs=epochs, seed=0), callbacks, log=log or path)


def illnesses(path: Path) -> list[str]:
    return [finding.illness for finding in diagnose(path)]


def test_rates_are_those_of_the_steps(tmp_path: Path) -> None:
    """A rate that is zero after the last step is of no step, and a schedule by steps is counted by steps."""
    path = tmp_path / "run.jsonl"
    trained(path, [schedule(lr=cosine(32))])
    assert observe(path).zero_rate.times == 0

    trained(path, [schedule(lr=cosine(8))], epochs=8)
    zero = observe(path).zero_rate
    assert (zero.times, zero.of, zero.first and zero.first.epoch) == (24, 32, 3)
    assert illnesses(path) == ["rate at zero"]


@pytest.mark.parametrize(
    ("hyper", "times"), [({"lr": (0.0, 0.1)}, 0), ({"lr": (0.0, 0.0)}, 32), ({"momentum": 0.9}, None)]
)
def test_one_group_with_a_rate_is_enough(hyper: dict[str, Any], times: int | None, tmp_path: Path) -> None:
    """Of several parameter groups the highest rate counts, as where all but a head are frozen."""
    trained(tmp_path / "run.jsonl", hyper=hyper)
    zero = observe(tmp_path / "run.jsonl").zero_rate

    assert (zero.times, zero.of) == ((times, 32) if times is not None else (0, 0))


def test_a_rate_that_is_next_to_nothing_is_zero(tmp_path: Path) -> None:
    """A millionth of the highest rate moves nothing either."""
    path = tmp_path / "run.jsonl"

    @on(Phase.EPOCH_END)
    def lower(state: State) -> Transition:
        return Transition(hyper={"lr": 1e-9})

    trained(path, [lower])

    assert observe(path).zero_rate.times == 28


def test_steps_that_are_held_back_are_counted_by_when(tmp_path: Path) -> None:
    """At the beginning a scaler looks for its scale; in the second half it has found none."""
    path = tmp_path / "run.jsonl"
    trained(path, stepped=lambda state: float(state.iteration >= 5))
    held = observe(path).held_back
    assert (held.times, held.of, held.late) == (5, 32, 0)
    assert illnesses(path) == ["steps held back"]  # the whole first epoch had none

    trained(path, stepped=lambda state: float(state.iteration % 4 > 0))
    held = observe(path).held_back
    assert (held.times, held.of, held.late) == (8, 32, 4)
    assert illnesses(path) == ["steps held back"]


def test_an_epoch_without_batches_needs_no_step(tmp_path: Path) -> None:
    """Nothing was held back there."""

    @on(Phase.EPOCH_BEGIN)
    def stop_every_second(state: State) -> Transition:
        return Transition(flags=Flag.STOP_EPOCH if state.epoch % 2 else Flag.NONE)

    trained(tmp_path / "run.jsonl", [stop_every_second])

    assert (observe(tmp_path / "run.jsonl").stepless.times, observe(tmp_path / "run.jsonl").stepless.of) == (0, 4)


def test_windows_of_accumulation_hold_nothing_back(tmp_path: Path) -> None:
    """One step for four batches is what was asked for."""
    trained(tmp_path / "run.jsonl", [accumulate(4)])

    assert illnesses(tmp_path / "run.jsonl") == []


def test_the_first_batch_is_that_of_an_untrained_model(tmp_path: Path) -> None:
    """Its loss is known where losses of batches were recorded from the first on, at whatever phase."""
    path = tmp_path / "run.jsonl"
    trained(path, [record("loss")])
    training = observe(path)
    assert (training.untrained and training.untrained.value, len(training.facts["loss"])) == (2.0, 32)

    trained(path, [record("loss", every=3)])
    assert observe(path).untrained is None

    trained(path, [record("loss"), skip_nonfinite(gradients=False)])  # LOSS_END and BATCH_END: each loss once
    training = observe(path)
    assert (training.untrained and training.untrained.value, len(training.facts["loss"])) == (2.0, 32)


def test_losses_of_validation_batches_are_no_losses_of_training(tmp_path: Path) -> None:
    """They are in the metrics of the validation."""
    path = tmp_path / "run.jsonl"
    log = EventLog(path, phases=[Phase.VALID_BATCH_END], facts=["loss", "elapsed"])
    trained(path, log=log, valid_loss=[1.0] * 8)

    assert observe(path).facts == {}


def test_a_gradient_that_the_scaler_catches_is_no_illness(tmp_path: Path) -> None:
    """Where the step after it was held back; otherwise it went into the weights."""
    path = tmp_path / "run.jsonl"

    def norm(state: State) -> float:
        return inf if state.iteration == 5 else 1.0

    trained(path, [record("grad_norm")], grad_norm=norm, stepped=lambda state: float(state.iteration != 5))
    assert observe(path).nonfinite == {}

    trained(path, [record("grad_norm")], grad_norm=norm)
    assert {name: point.epoch for name, point in observe(path).nonfinite.items()} == {"grad_norm": 2}
    assert illnesses(path) == ["not finite"]


def test_a_log_that_ends_with_such_a_gradient_has_it(tmp_path: Path) -> None:
    """What became of it is not known."""
    path = tmp_path / "run.jsonl"
    trained(path, [record("grad_norm")], grad_norm=lambda state: inf if state.iteration == 5 else 1.0)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: next(i for i, line in enumerate(lines, 1) if '"$float":"inf"' in line)]))

    assert list(observe(path).nonfinite) == ["grad_norm"]


def test_nan_is_found_in_metrics_facts_and_validations(tmp_path: Path) -> None:
    """The first of each, with its line."""
    path = tmp_path / "run.jsonl"
    trained(
        path,
        [record("loss")],
        loss=lambda state: nan if state.iteration == 6 else 1.0,
        valid_loss=[1.0, 1.0, -inf, *[1.0] * 5],
    )
    nonfinite = observe(path).nonfinite

    assert {name: point.epoch for name, point in nonfinite.items()} == {"loss": 2, "train_loss": 2, "valid_loss": 3}
    lines = path.read_text().splitlines()
    assert all(f'"{name}"' in lines[(point.line or 0) - 1] for name, point in nonfinite.items())


def test_epochs_that_only_a_header_has_are_seen(tmp_path: Path) -> None:
    """Of a training whose first part was logged elsewhere."""
    work = Scripted(batches=2, loss=1.0, train_loss=[2.3] * 12)
    first = run(start(work, epochs=6), log=tmp_path / "first.jsonl")
    run(extend(first, epochs=6), log=tmp_path / "second.jsonl")

    assert [epoch.epoch for epoch in observe(tmp_path / "second.jsonl").epochs] == list(range(1, 13))
    assert illnesses(tmp_path / "second.jsonl") == ["loss does not fall"]


def test_times_come_from_the_fact(tmp_path: Path) -> None:
    """EventLog(path, facts={"elapsed"}) is enough."""
    path = tmp_path / "run.jsonl"
    log = EventLog(path, facts={"elapsed"})
    trained(path, log=log, epochs=20, elapsed=lambda state: 4.0 * state.epoch + 0.5 * state.epoch**2)

    assert illnesses(path) == ["epochs cost more and more"]


def test_losses_of_players_need_not_fall(tmp_path: Path) -> None:
    """What each does is told apart by its name."""
    path = tmp_path / "run.jsonl"
    trained(path, [record("loss")], players={"D": 1, "G": 1}, loss=1.0)
    training = observe(path)

    assert (training.has_turns, sorted(training.facts)) == (True, ["loss of D", "loss of G"])
    assert illnesses(path) == []
    assert diagnose(path).not_judged["loss does not fall"] == "losses of players that take turns need not fall"


def test_memory_is_bounded(tmp_path: Path) -> None:
    """However many epochs there are, and however many names a log has."""
    path = tmp_path / "run.jsonl"
    trained(path, [record("loss")], epochs=1000, batches=1)
    assert len(observe(path).epochs) == 126
    assert len(observe(path).facts["loss"]) == 1000

    header, *lines = read_log(path)
    watch = LogWatch()
    watch.see_header(header)  # type: ignore[arg-type]
    many = {f"{i}_loss": 1.0 for i in range(2 * MOST_NAMES)}
    for line in lines[:9]:
        watch.see(attrs.evolve(line, metrics=many, facts=many))  # type: ignore[arg-type]
        watch.see(attrs.evolve(line, metrics=dict.fromkeys(many, nan), facts={}))  # type: ignore[arg-type]
    training = watch.observations()
    assert (len(training.nonfinite), len(training.facts), len(watch._spikes)) == (MOST_NAMES, MOST_NAMES, MOST_NAMES)

    watch = LogWatch()
    for line in lines[:9]:
        watch.see(attrs.evolve(line, facts=dict.fromkeys(many, nan)))  # type: ignore[arg-type]
    assert len(watch.observations().nonfinite) == MOST_NAMES


def test_a_log_without_a_call_of_run_is_refused(tmp_path: Path) -> None:
    """And one of which only a header was written has nothing to be judged."""
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(LogError, match="there is no log in this file"):
        diagnose(tmp_path / "empty.jsonl")

    only_a_header(tmp_path / "run.jsonl")
    diagnosis = diagnose(tmp_path / "run.jsonl")
    assert diagnosis.findings == ()
    assert "rate at zero (there are fewer than 4 steps with a learning rate)" in str(diagnosis)


def test_text_from_a_log_is_escaped() -> None:
    """A name in it cannot move the cursor."""
    finding = Finding("spikes", "possible", "\x1b[2J jumps", (Evidence("\x1b[2J", 1.0, 1),), "look")

    assert "\x1b" not in str(finding) + finding.sentence


# ------------------------------------------------------------------- a stop that comes too early

SLOW = [9.0, 8.8, 8.3, 8.2, 7.6, 7.5, 7.1, 6.6, 6.4, 6.3, 5.8, 5.9, 5.4, 5.3, 5.0]


def test_a_stop_that_another_patience_would_have_spared(tmp_path: Path) -> None:
    """The finding says with which patience, as `what_if` answers, and which line stopped it."""
    path = tmp_path / "run.jsonl"
    trained(path, [early_stopping(patience=1)], epochs=40, valid_loss=[*SLOW, *[5.0] * 40])

    (finding,) = diagnose(path)
    assert (finding.illness, finding.certainty) == ("stopped too early", "likely")
    assert "stops after epoch 12 with patience=1" in finding.what
    assert "with patience=2 the training would still be running" in finding.what
    assert '"flags":"STOP_TRAINING"' in path.read_text().splitlines()[(finding.evidence[-1].line or 0) - 1]


def test_a_metric_that_is_better_when_larger_is_judged_too(tmp_path: Path) -> None:
    """Upside down."""
    path = tmp_path / "run.jsonl"
    stopping = early_stopping("valid_accuracy", patience=1)
    trained(path, [stopping], epochs=40, valid_accuracy=[1 - loss / 10 for loss in SLOW])

    assert illnesses(path) == ["stopped too early"]


@pytest.mark.parametrize("change", [{"monitor": None}, {"patience": "x"}, {"patience": {"$enum": "x"}}, {"more": 1}])
def test_settings_that_are_none_are_an_error_of_the_log(change: dict[str, Any], tmp_path: Path) -> None:
    """As in a log that was made up; one without a setting was logged by an earlier version, and has the default."""
    path = tmp_path / "run.jsonl"
    trained(path, [early_stopping(patience=1)], epochs=40, valid_loss=[*SLOW, *[5.0] * 40])
    training = observe(path)
    assert training.stop is not None
    line, spec = training.stop

    with pytest.raises(LogError, match=f"line {line}: the settings of 'early_stopping', which stopped it, are none"):
        stopped_too_early(path, attrs.evolve(training, stop=(line, {**spec, "params": {**spec["params"], **change}})))
    fewer = {name: value for name, value in spec["params"].items() if name != "mode"}
    assert stopped_too_early(path, attrs.evolve(training, stop=(line, {**spec, "params": fewer}))) is not None


@pytest.mark.parametrize(
    ("losses", "patience"),
    [
        ([10.0, 8.0, 6.0, 4.0, 3.0, 3.0, 3.1, 3.0, 2.9, 3.0, 3.1, 3.0], 3),  # a plateau
        ([10.0, 8.0, 6.0, 4.0, 3.0, 2.5, 2.4, 2.6, 3.0, 3.5, 4.0, 4.5], 5),  # overfitting
        ([5.0, 4.0, 3.0, 3.1], 1),  # too few to say
        ([*SLOW[:11], nan], 1),
    ],
)
def test_a_stop_for_good_reason_is_none(losses: list[float], patience: int) -> None:
    """Where nothing improved any more, or it is not known."""
    assert not still_improves(losses, patience)


def test_only_a_stop_by_patience_is_judged(tmp_path: Path) -> None:
    """Not one by another callback, nor the end of the plan, also where a larger patience changes nothing."""
    path = tmp_path / "run.jsonl"

    @on(Phase.EPOCH_END)
    def early_stopping_of_mine(state: State) -> Transition | None:
        return Transition(flags=Flag.STOP_TRAINING) if state.epoch == 12 else None

    trained(path, [early_stopping_of_mine], epochs=40, valid_loss=SLOW)
    assert illnesses(path) == []
    trained(path, [early_stopping(patience=9)], epochs=12, valid_loss=SLOW)
    assert illnesses(path) == []
    trained(path, [early_stopping(patience=1)], epochs=12, valid_loss=SLOW)  # the plan ends there too
    assert stopped_too_early(path, observe(path)) is None


def test_what_was_continued_since_is_no_stop(tmp_path: Path) -> None:
    """The last call of `run` counts."""
    path = tmp_path / "run.jsonl"
    work = Scripted(batches=2, loss=1.0, train_loss=[*SLOW, *SLOW], valid_loss=[*SLOW, *SLOW])
    stopped = run(start(work, epochs=12), [early_stopping(patience=1)], log=path)
    run(extend(attrs.evolve(stopped, memory={}), epochs=2), log=path)

    assert stopped_too_early(path, observe(path)) is None
