"""The tools that tests of callbacks are written with."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from fsm_train import CallbackError, Flag, Operation, Phase, Scripted, State, Transition, WorkloadError, on, run, start
from fsm_train.callbacks import early_stopping
from fsm_train.testing import SimulatedError, Trace, at, drive, simulate


def test_scripts_are_values_sequences_or_functions() -> None:
    """A value is always the same, a sequence goes item by item, a function is asked with the state."""
    final = simulate(
        [],
        epochs=2,
        batches=lambda state: 2 + state.epoch,
        batch_size=[1, 2, 3, 4, 5],
        loss=lambda state: state.hyper["lr"] * state.iteration,
        train_speed=5.0,
        valid_loss=[2.0, 1.0],
    )

    assert (final.iteration, final.samples) == (5, 15)
    assert final.history[0] == {"train_loss": pytest.approx(0.2 / 3), "train_speed": 5.0, "valid_loss": 2.0}


def test_sequence_that_runs_out_is_an_error() -> None:
    """It is not repeated; the sentence says how long it was and when more was asked for."""
    with pytest.raises(WorkloadError, match="the script of valid_loss has 2 values, but .* of epoch 2: give more"):
        simulate([], epochs=3, valid_loss=[1.0, 2.0])


@pytest.mark.parametrize("script", ["abc", {"a": 1}, None])
def test_other_scripts_are_refused(script: Any) -> None:
    """What is no number, sequence or function is refused when it is given."""
    with pytest.raises(TypeError, match="loss=.*: give a number, a sequence of numbers, or a function"):
        Scripted(loss=script)


def test_epochs_follow_from_the_curves() -> None:
    """Without a plan there are as many epochs as the shortest curve has values."""
    assert simulate([], valid_loss=[1.0] * 4, train_loss=[1.0] * 3).epoch == 3
    assert simulate([], valid_loss=1.0).epoch == 1


def test_facts_of_a_script_are_measured_like_others() -> None:
    """Other names are facts, standard ones or sensors; a step that is held back does not count."""
    seen: list[dict[str, float]] = []

    @on(Phase.STEP_BEGIN, Phase.STEP_END, needs={"grad_norm", "stepped", "tokens", "elapsed", "loss"})
    def look(state: State) -> None:
        seen.append(dict(state.facts))

    final = simulate([look], batches=1, loss=0.5, grad_norm=[3.0], tokens=7.0, stepped=[0.0], elapsed=2.5)

    assert seen == [
        {"batch_size": 32, "loss": 0.5, "grad_norm": 3.0, "tokens": 7.0, "elapsed": 2.5},
        {"batch_size": 32, "loss": 0.5, "stepped": 0.0, "tokens": 7.0, "elapsed": 2.5},
    ]
    assert (final.step, final.elapsed) == (0, 2.5)


def test_skipped_batch_has_no_loss() -> None:
    """The loss of a batch that was skipped is missing, not the one of the batch before."""
    from fsm_train import Flag

    losses: list[float | None] = []

    @on(Phase.BATCH_BEGIN, Phase.BATCH_END, needs={"loss"})
    def skip(state: State) -> Transition | None:
        if state.phase is Phase.BATCH_END:
            losses.append(state.facts.get("loss"))
            return None
        return Transition(flags=Flag.SKIP_BATCH) if state.batch == 1 else None

    simulate([skip], batches=3, loss=0.5)

    assert losses == [0.5, None, 0.5]


def test_at_puts_names_where_they_belong() -> None:
    """Fields go to the state, metrics, hyper-parameters and facts each to their mapping."""
    state = at(Phase.STEP_BEGIN, step=3, loss=0.5, valid_loss=1.0, lr=0.2, memory={"x": 1})

    assert (state.phase, state.step, state.facts["loss"], state.facts["batch_size"]) == (Phase.STEP_BEGIN, 3, 0.5, 32)
    assert (state.metrics, state.hyper, state.memory) == ({"valid_loss": 1.0}, {"lr": 0.2}, {"x": 1})


def test_drive_threads_the_memory() -> None:
    """Each answer is given with the memory that the one before it left."""

    @on(Phase.BATCH_END, memory=0, every=2)
    def count(state: State, seen: int) -> Transition | None:
        return Transition(memory=seen + 1) if state.batch < 9 else None

    answers = drive(count, [at(Phase.BATCH_END, iteration=i, batch=i) for i in (1, 2, 3, 4, 10)])

    assert answers == [Transition(), Transition(memory=1), Transition(), Transition(memory=2), Transition()]


def test_drive_refuses_phases_without_a_consultation() -> None:
    """A state at another phase is a mistake in the test."""
    with pytest.raises(ValueError, match="'early_stopping' is not consulted at batch_end, only at valid_end"):
        drive(early_stopping(), [at(Phase.BATCH_END)])


def test_drive_reports_errors_as_a_run_does() -> None:
    """What a callback does wrong is told in the same words as in a run."""
    with pytest.raises(CallbackError, match="no metric 'valid_loss'"):
        drive(early_stopping(), [at(Phase.VALID_END, has_valid=False)])


def test_callbacks_can_be_called() -> None:
    """A callback is a function of a state, with its memory from the state, from the call, or its initial one."""
    callback = early_stopping(patience=1)
    bad = at(Phase.VALID_END, valid_loss=2.0)

    assert callback(bad) == Transition(memory=callback(bad).memory)  # type: ignore[union-attr]
    assert callback(bad, callback(bad).memory).reason  # type: ignore[union-attr, arg-type]
    assert callback(at(Phase.VALID_END, valid_loss=2.0, memory={"early_stopping": callback(bad).memory})).reason  # type: ignore[union-attr]


def test_scripted_trainings_can_be_suspended() -> None:
    """A script goes on where it was."""
    from fsm_train import Flag

    @on(Phase.BATCH_END, every=2)
    def suspend(state: State) -> Transition:
        return Transition(flags=Flag.SUSPEND)

    suspended = run(start(Scripted(batches=3, loss=[1.0, 2.0, 3.0]), epochs=1), [suspend])

    assert run(suspended).metrics == {"train_loss": 2.0}


def test_simulation_is_quick() -> None:
    """A thousand epochs of ten batches with five callbacks need no coffee."""
    callbacks = [early_stopping(patience=10**6, name=f"stop_{i}") for i in range(5)]
    began = time.process_time()

    final = simulate(callbacks, epochs=1000, batches=10, valid_loss=lambda state: 1.0)

    assert final.iteration == 10_000
    assert time.process_time() - began < 20  # a second on a quiet machine; this only finds the absurd


def test_testing_needs_no_torch() -> None:
    """A whole simulated training runs where torch cannot be imported."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from fsm_train.callbacks import early_stopping\n"
        "from fsm_train.testing import simulate\n"
        "print(simulate([early_stopping(patience=1)], valid_loss=[1.0, 1.1]).epoch)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"


def test_simulation_ends_where_it_is_told_to() -> None:
    """With until= the state of that moment is returned, after the answers of its phase."""
    state = simulate([early_stopping(patience=1)], valid_loss=[2.0, 1.0, 1.5], until=lambda state: state.epoch == 2)

    assert (state.phase, state.epoch, state.memory["early_stopping"].value) == (Phase.EPOCH_END, 2, 1.0)  # type: ignore[attr-defined]


def test_simulation_ends_at_a_phase() -> None:
    """A phase means the first time that it is reached."""
    assert simulate([], batches=3, until=Phase.STEP_END).step == 1


@pytest.mark.parametrize("phase", [Phase.TRAIN_END, Phase.TEARDOWN])
def test_simulation_that_is_interrupted_too_late_ends(phase: Phase) -> None:
    """The last state says that a signal came, as that of `run` does."""
    final = simulate([], interrupt_at=phase)

    assert final.phase is Phase.DONE
    assert final.notes == ("a signal came when this call of run was ending, too late to change anything",)


def test_interrupted_simulation_goes_on() -> None:
    """With interrupt_at= the suspended state is returned, and `run` goes on with it as if nothing had been."""
    curve = {"loss": [1.0, 2.0, 3.0, 4.0]}
    suspended = simulate([], batches=4, interrupt_at=lambda state: state.iteration == 2, **curve)

    assert (suspended.phase, suspended.batch, suspended.reason) == (Phase.SUSPENDED, 2, "interrupted by a signal")
    assert run(suspended).history == simulate([], batches=4, **curve).history


@pytest.mark.parametrize("where", [Operation.STEP, Phase.STEP_BEGIN, lambda state: state.pending == 1])
def test_failing_simulation_is_torn_down(where: Any) -> None:
    """With fail_at= an error is raised there, the training is torn down, and the trace has its last state."""
    trace = Trace()
    with pytest.raises(SimulatedError, match="as planned") as caught:
        simulate([], batches=2, fail_at=where, trace=trace)

    assert "Raised" in caught.value.__notes__[0]
    assert (trace.final.phase, trace.final.step, trace.operations[-1]) == (Phase.FAILED, 0, "finish")


@pytest.mark.parametrize("planned", ["until", "interrupt_at", "fail_at"])
def test_what_never_happens_is_no_success(planned: str) -> None:
    """A plan that never comes true is a mistake in the test, and said."""
    never: Any = {planned: lambda state: state.epoch == 7}
    with pytest.raises(AssertionError, match=f"{planned}=.* never came true: the training ended at done of epoch 1"):
        simulate([], batches=2, **never)


def test_what_is_planned_for_one_phase_all_happens() -> None:
    """An interrupt comes in and the state of that very moment is returned."""
    state = simulate([], batches=2, interrupt_at=Phase.BATCH_END, until=Phase.SUSPEND)

    assert (state.phase, state.batch) == (Phase.SUSPEND, 1)


@on(Phase.STEP_BEGIN)
def no_step(state: State) -> Transition:
    """Let the machine make no step, ever."""
    return Transition(flags=Flag.SKIP_STEP)


def test_a_training_that_never_ends_is_no_test_that_hangs() -> None:
    """A plan of steps alone, of which every one is skipped, is found."""
    with pytest.raises(AssertionError, match=r"max_steps=3 is never reached: 1,000 epochs in a row made no step"):
        simulate([no_step], max_steps=3)

    assert simulate([no_step], epochs=2, max_steps=3).step == 0


def test_signals_are_for_the_one_who_runs_the_tests() -> None:
    """Ctrl-C ends the test, and not, unnoticed, the training in it."""

    def interrupted(state: State) -> float:
        signal.raise_signal(signal.SIGINT)
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        simulate([], loss=interrupted, epochs=1)
