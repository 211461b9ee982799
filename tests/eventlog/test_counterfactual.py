"""What if: exact where a log can know, and nothing else anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsm_train import (
    Callback,
    CallbackError,
    ConflictError,
    Flag,
    LogError,
    Phase,
    Plan,
    Scripted,
    State,
    Transition,
    extend,
    on,
    run,
    start,
    sweep,
    what_if,
)
from fsm_train.callbacks import accumulate, clip_grad_norm, early_stopping, restore_best, schedule, stop_at
from fsm_train.commands import KeepWeights
from fsm_train.core.commands import StepScheduler, UseScheduler
from fsm_train.schedules import absolute

from .log_files import forged, index, library, lines_of, logged, workload


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Eight epochs with early stopping, patience 3: it stopped after the last."""
    logged(tmp_path / "run.jsonl", epochs=20)
    return tmp_path / "run.jsonl"


def test_a_smaller_patience_is_answered_exactly(log: Path) -> None:
    """When it would have stopped, on what evidence, and what the best was until then."""
    answer = what_if(log, [early_stopping(patience=2)])

    assert (answer.verdict, answer.stopped_at) == ("exact", 4)
    assert answer.why == "early_stopping: valid_loss has not improved on 2.0 for 2 validations"
    assert answer.best is not None
    assert (answer.best.monitor, answer.best.value, answer.best.epoch) == ("valid_loss", 2.0, 2)
    assert lines_of(log)[answer.line - 1]["event"] == "valid_end"
    assert lines_of(log)[answer.line - 1]["epoch"] == 3
    assert (answer.state.epoch, len(answer.state.history)) == (4, 4)


def test_the_same_setting_ends_as_it_was_recorded(log: Path) -> None:
    """That is exact too."""
    answer = what_if(log, [early_stopping(patience=3)])

    assert (answer.verdict, answer.stopped_at) == ("exact", 8)
    assert answer.why == "early_stopping: valid_loss has not improved on 1.0 for 3 validations"


def test_a_larger_patience_is_censored(log: Path) -> None:
    """It would not have stopped where the log ends; what comes after nobody knows."""
    answer = what_if(log, [early_stopping(patience=4)])

    assert (answer.verdict, answer.stopped_at) == ("censored", None)
    assert answer.why == "not by epoch 8, where the recorded training ended; unknown after"
    assert answer.best is not None
    assert answer.best.epoch == 5


def test_a_callback_that_is_left_out_is_censored_where_it_stopped(log: Path) -> None:
    """`without` takes a recorded callback out."""
    assert what_if(log, [], without=["early_stopping"]).verdict == "censored"
    with pytest.raises(LookupError, match="no callback nobody to leave out: there are accumulate, clip_grad_norm"):
        what_if(log, [], without=["nobody"])


def test_a_new_callback_is_asked_in_addition(log: Path) -> None:
    """The recorded ones stay as they were."""
    answer = what_if(log, [stop_at("valid_loss", 1.0)])

    assert (answer.verdict, answer.stopped_at, answer.why) == (
        "exact",
        5,
        "stop_at: valid_loss is 1.0, the target was 1.0",
    )


def test_a_stop_within_an_epoch_says_where(log: Path) -> None:
    """The epoch under way is not counted, and what would have closed it is not known."""

    @on(Phase.BATCH_END)
    def enough(state: State) -> Transition | None:
        return Transition(flags=Flag.STOP_TRAINING, reason="10") if state.iteration == 10 else None

    answer = what_if(log, [enough])

    assert (answer.verdict, answer.stopped_at, answer.why) == ("exact", 2, "enough: 10, at batch_end of batch 2")
    assert answer.state.iteration == 10


def test_the_best_is_by_the_mode_of_who_monitors(tmp_path: Path) -> None:
    """Larger is better where the callback says so; values that are not finite are never the best."""
    path = tmp_path / "run.jsonl"
    accuracies = [0.1, 0.9, float("nan"), 0.5]
    run(start(Scripted(valid_accuracy=accuracies), epochs=4), log=path)

    best = what_if(path, [early_stopping("valid_accuracy", mode="max", on_nonfinite="wait")]).best
    assert best is not None
    assert (best.value, best.epoch) == (0.9, 2)
    assert (plain := what_if(path, []).best) is not None
    assert plain.monitor == "train_loss"


@on(Phase.EPOCH_BEGIN)
def _skips_valid(state: State) -> Transition | None:
    return Transition(flags=Flag.SKIP_VALID) if state.epoch == 2 else None


REFUSED: list[tuple[Callback[Any], str, int]] = [
    (clip_grad_norm(2.0), 'commands .*"max_norm":2.0.* and not .*"max_norm":1.0', 0),
    (accumulate(3), "would have given the commands", 0),
    (schedule(lr=absolute(0.3)), 'would have set {"lr":0.3}, and not', 0),
    (_skips_valid, "would have raised SKIP_VALID, and not none", 2),
]


@pytest.mark.parametrize(("callback", "sentence", "epoch"), REFUSED, ids=[c.name for c, *_ in REFUSED])
def test_what_would_have_changed_the_training_is_refused(
    callback: Callback[Any], sentence: str, epoch: int, log: Path
) -> None:
    """From the first line that is no longer valid, which is named, and why."""
    answer = what_if(log, [callback])

    assert (answer.verdict, answer.stopped_at, answer.best) == ("refused", None, None)
    assert lines_of(log)[answer.line - 1]["epoch"] == epoch
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(answer.why)


def test_what_changes_nothing_is_not_refused(log: Path) -> None:
    """Setting a rate to what it is, or keeping a copy of the weights, changes no training."""

    @on(Phase.EPOCH_BEGIN)
    def same_rate(state: State) -> Transition:
        return Transition(hyper=dict(state.hyper))

    assert what_if(log, [same_rate]).verdict == "exact"
    assert what_if(log, [restore_best()]).verdict in ("exact", "refused")


def test_a_fact_that_was_never_recorded_is_refused(log: Path) -> None:
    """Whether it would have been missing, or is read with .get, or nobody measures it: the fact is named."""

    def needing(name: str, phase: Phase) -> Callback[Any]:
        def decide(state: State, memory: object) -> Transition | None:
            return Transition(flags=Flag.STOP_TRAINING) if state.facts.get(name, 0.0) > 100 else None

        return Callback("needy", (phase,), decide, needs={name})

    for name, phase in (("loss", Phase.LOSS_END), ("grad_norm", Phase.STEP_BEGIN), ("tokens", Phase.BATCH_END)):
        answer = what_if(log, [needing(name, phase)])
        assert answer.verdict == "refused"
        assert f"'needy' needs the fact '{name}'" in answer.why
        assert "which was not recorded" in answer.why


def test_a_fact_that_was_recorded_is_there(tmp_path: Path) -> None:
    """Also for another callback; and where it was asked for and could not be known, it is missing as it was then."""

    @on(Phase.BATCH_BEGIN)
    def skip_some(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_BATCH) if state.iteration == 2 else None

    @on(Phase.BATCH_END, needs={"loss"})
    def looks(state: State) -> None:
        """Asks for the loss."""

    @on(Phase.BATCH_END, needs={"loss"})
    def small_enough(state: State) -> Transition | None:
        return Transition(flags=Flag.STOP_TRAINING) if state.facts.get("loss", 1.0) < 0.2 else None

    path = tmp_path / "run.jsonl"
    logged(path, [skip_some, looks])

    answer = what_if(path, [small_enough])
    assert (answer.verdict, answer.state.iteration) == ("exact", 6)


def test_a_callback_that_raises_is_an_error(log: Path) -> None:
    """It is no answer that nobody knows: it is a mistake of whoever asks."""
    with pytest.raises(CallbackError, match="there is no metric 'nonsense' to monitor"):
        what_if(log, [early_stopping("nonsense", mode="min")])


def test_a_conflict_with_a_recorded_callback_is_an_error(log: Path) -> None:
    """Two callbacks set the rate to different values, and one of them is in the log."""
    other = schedule(lr=absolute(7.0), name="other")

    with pytest.raises(ConflictError, match="'other' sets lr to 7.0 and 'schedule' to"):
        what_if(log, [other])


@pytest.mark.parametrize(
    ("cut", "sentence"),
    [(0, "is where the log ends"), (1, "is where the log ends")],
)
def test_a_log_without_its_end_is_censored(cut: int, sentence: str, log: Path) -> None:
    """A training that was killed would still be running."""
    forged(log, lambda lines: lines.__delitem__(slice(index(lines, "epoch_end", 3) + cut, None)))

    answer = what_if(log, [early_stopping(patience=9)])

    assert answer.verdict == "censored"
    assert answer.why == f"not by epoch {2 + cut}, where the recorded training {sentence}; unknown after"


def test_a_suspended_training_is_censored_until_it_is_gone_on_with(tmp_path: Path) -> None:
    """Several calls of run are one training."""
    path, work = tmp_path / "run.jsonl", workload()

    @on(Phase.EPOCH_END, memory=0)
    def pause(state: State, times: int) -> Transition | None:
        return Transition(flags=Flag.SUSPEND, memory=1) if state.epoch == 2 and not times else None

    state = run(start(work, epochs=8), [pause], log=path)
    assert what_if(path, [early_stopping(patience=2)]).why.startswith(
        "not by epoch 2, where the recorded training was suspended"
    )
    run(state, [pause], log=path)

    assert what_if(path, [early_stopping(patience=2)]).stopped_at == 4


def test_a_failed_training_is_censored(tmp_path: Path) -> None:
    """Where it failed, a training with another setting might have failed as well, or not."""

    @on(Phase.BATCH_END)
    def fails(state: State) -> None:
        if state.iteration == 10:
            raise RuntimeError("oops")

    with pytest.raises(CallbackError):
        logged(tmp_path / "run.jsonl", [fails])

    answer = what_if(tmp_path / "run.jsonl", [early_stopping()])
    assert (answer.verdict, "unknown after" in answer.why) == ("censored", True)


def test_a_stop_at_the_end_of_the_plan_makes_no_difference(tmp_path: Path) -> None:
    """A training that was stopped after its last epoch would have ended there anyway."""
    path = tmp_path / "run.jsonl"
    logged(path, [stop_at("valid_loss", 1.0)], epochs=5)

    answer = what_if(path, [], without=["stop_at"])

    assert (answer.verdict, answer.stopped_at, answer.why) == ("exact", 5, "it ends with its plan fulfilled")


def test_an_extended_training_is_gone_through_to_its_end(tmp_path: Path) -> None:
    """The first call of run ended with its plan, the second went on."""
    path, work = tmp_path / "run.jsonl", workload()
    run(extend(run(start(work, epochs=3), log=path), epochs=5), log=path)

    assert what_if(path, [early_stopping(patience=3)]).stopped_at == 8
    assert what_if(path, []).stopped_at == 8


def test_schedulers_of_torch_are_taken_as_they_were(tmp_path: Path) -> None:
    """What a command did to the hyper-parameters stands in the log."""

    class Scheduled(Scripted):
        rate = 0.1

        def carry_out(self, command: Any, state: State) -> None:
            if isinstance(command, StepScheduler):
                self.set_hyper({"lr": state.hyper["lr"] * 0.5})  # type: ignore[operator]

    @on(Phase.SETUP, Phase.EPOCH_END)
    def scheduler(state: State) -> Transition:
        if state.phase is Phase.SETUP:
            return Transition(commands=(UseScheduler("s", print),))
        return Transition(commands=(StepScheduler("s"), KeepWeights("w")))

    path = tmp_path / "run.jsonl"
    final = run(start(Scheduled(valid_loss=[3.0, 2.0, 2.5, 2.4, 2.3]), epochs=5), [scheduler], log=path)
    assert final.hyper == {"lr": 0.1 * 0.5**5}

    answer = what_if(path, [early_stopping(patience=2)])

    assert (answer.verdict, answer.stopped_at) == ("exact", 4)
    assert answer.state.hyper == {"lr": 0.1 * 0.5**4}


def test_a_sweep_is_a_table(log: Path) -> None:
    """A row for each combination of settings, and a print that can be read."""
    table = sweep(log, early_stopping, patience=range(1, 5), min_delta=[0.0])

    assert [(row["patience"], answer.verdict) for row, answer in table] == [
        (1, "exact"),
        (2, "exact"),
        (3, "exact"),
        (4, "censored"),
    ]
    assert len(table) == 4
    first, second, *_ = str(table).splitlines()
    assert first.split() == ["patience", "min_delta", "verdict", "stopped", "at", "best", "why"]
    assert second.startswith("1         0.0        exact     epoch 3")


def test_a_sweep_of_nothing_is_empty(log: Path) -> None:
    """No values, no rows."""
    table = sweep(log, early_stopping, patience=[])

    assert (len(table), str(table).split()) == (0, ["verdict", "stopped", "at", "best", "why"])


def test_a_log_that_is_damaged_is_no_answer(log: Path) -> None:
    """Neither in an answer of a callback that is not asked, nor anywhere else."""
    forged(log, lambda lines: lines[index(lines, "loss_end", 3)]["answers"]["accumulate"].update(flags="FLY"))

    with pytest.raises(LogError, match="its answers is .*FLY.*, and not of the form that a log has"):
        what_if(log, [early_stopping(patience=2)])


def test_an_answer_that_is_no_number_is_no_answer(log: Path) -> None:
    """So with the answers of others, which are taken as they stand in the log."""
    forged(log, lambda lines: lines[index(lines, "valid_end", 2)]["answers"].update(early_stopping=3))

    with pytest.raises(LogError, match="its answers is {'early_stopping': 3}, and not of the form that a log has"):
        what_if(log, [early_stopping(patience=2)])


def test_a_log_from_the_middle_of_a_training_can_be_asked(tmp_path: Path) -> None:
    """The memory that a callback had then is in the header."""
    work = workload()
    state = run(start(work, epochs=2), library())
    run(extend(state, epochs=6), library(), log=tmp_path / "run.jsonl")

    assert what_if(tmp_path / "run.jsonl", [early_stopping(patience=2)]).stopped_at == 4


def test_max_steps_end_a_training_too(tmp_path: Path) -> None:
    """A plan in steps that is fulfilled is an end that is known."""
    path = tmp_path / "run.jsonl"
    final = run(start(workload(), max_steps=10), log=path)

    assert final.plan == Plan(max_steps=10)
    assert what_if(path, [early_stopping(patience=8)]).stopped_at == final.epoch
