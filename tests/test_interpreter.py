"""The loop: what comes out of a run, what is consulted when, and what goes wrong in good order."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from fsm_train import (
    CallbackError,
    ConflictError,
    FactError,
    Flag,
    MetricError,
    Operation,
    Phase,
    Plan,
    Scripted,
    State,
    Transition,
    evaluate,
    extend,
    iterate,
    on,
    run,
    start,
)
from fsm_train.testing import at, simulate


def test_a_run_counts_what_it_did() -> None:
    """The last state says how many epochs, batches, steps and samples there were, and keeps the history."""
    final = simulate([], epochs=2, batches=3, loss=[6.0, 3.0, 3.0, 1.0, 2.0, 3.0], valid_loss=[2.0, 1.0])

    assert (final.phase, final.epoch, final.batch, final.iteration, final.step) == (Phase.DONE, 2, 3, 6, 6)
    assert (final.samples, final.pending, final.reason) == (192, 0, "")
    assert final.history == ({"train_loss": 4.0, "valid_loss": 2.0}, {"train_loss": 2.0, "valid_loss": 1.0})
    assert final.metrics == final.history[-1]


def test_max_steps_ends_the_training_in_the_middle_of_an_epoch() -> None:
    """The training ends with the step that the plan names, and the epoch is closed properly."""
    final = simulate([], max_steps=4, batches=3, valid_loss=1.0)

    assert (final.step, final.epoch, final.batch) == (4, 2, 1)
    assert len(final.history) == 2


def test_iterate_yields_watched_phases_and_the_last_state() -> None:
    """The state is yielded where a callback is consulted, where it was asked for, and at the end."""
    seen = list(iterate(start(Scripted(batches=2), epochs=1), [_silent], at=[Phase.EPOCH_END]))

    assert [state.phase.value for state in seen] == ["batch_end", "batch_end", "epoch_end", "done"]
    assert [state.batch for state in seen] == [1, 2, 2, 2]


@on(Phase.BATCH_END)
def _silent(state: State) -> None:
    return None


def test_last_state_is_yielded_once() -> None:
    """Whoever asks for the final phase too gets the one last state that there is."""
    seen = list(iterate(start(Scripted(), epochs=0), at=Phase))

    assert [state.phase.value for state in seen] == ["setup", "train_begin", "train_end", "teardown", "done"]


def test_metrics_of_a_validation_in_the_epoch_stay_to_its_end() -> None:
    """After a validation in the middle, an epoch that skips the one at its end has those metrics still."""

    @on(Phase.BATCH_END)
    def validate_after_the_first_batch(state: State) -> Transition | None:
        return Transition(flags=Flag.VALIDATE | Flag.SKIP_VALID) if state.batch == 1 else None

    final = simulate([validate_after_the_first_batch], epochs=2, batches=3, valid_loss=[2.0, 1.0])

    assert [metrics["valid_loss"] for metrics in final.history] == [2.0, 1.0]


def test_callbacks_cannot_reach_the_workload() -> None:
    """The workload is on the states that go in and come out, and taken off in between."""
    work = Scripted()
    *between, last = iterate(start(work, epochs=1), [_silent])

    assert last.workload is work
    assert all(state.workload is None for state in between)


def test_every_consults_at_multiples() -> None:
    """`every` counts batches at the phases of a batch, and epochs at those of an epoch."""
    batches: list[int] = []
    epochs: list[int] = []

    @on(Phase.BATCH_END, every=3)
    def each_third_batch(state: State) -> None:
        batches.append(state.iteration)

    @on(Phase.EPOCH_END, every=2)
    def each_second_epoch(state: State) -> None:
        epochs.append(state.epoch)

    simulate([each_third_batch, each_second_epoch], epochs=5, batches=2)

    assert (batches, epochs) == ([3, 6, 9], [2, 4])


def test_several_that_stop_are_all_named() -> None:
    """Two callbacks that stop in one phase are both in the reason, whatever their order."""
    stoppers = [_stopper("late"), _stopper("early")]

    forwards, backwards = simulate(stoppers).reason, simulate(stoppers[::-1]).reason

    assert forwards == backwards == "early: enough; late: enough"


def _stopper(name: str) -> Any:
    @on(Phase.EPOCH_END, name=name)
    def stop(state: State) -> Transition:
        return Transition(flags=Flag.STOP_TRAINING, reason="enough")

    return stop


# ---------------------------------------------------------------------------------- going on


def test_extend_goes_on_where_the_training_ended() -> None:
    """Counters, memories and history go on as they are."""

    @on(Phase.EPOCH_END, memory=0)
    def count(state: State, epochs: int) -> Transition:
        return Transition(memory=epochs + 1)

    work = Scripted(batches=2)
    first = run(start(work, epochs=2), [count])
    final = run(extend(first, epochs=3), [count])

    assert (final.epoch, final.iteration, final.memory["count"], len(final.history)) == (5, 10, 5, 5)


def test_early_stopped_training_can_be_extended() -> None:
    """STOP_TRAINING is over with the training that it ended."""
    work = Scripted()
    final = run(extend(run(start(work, epochs=3), [_stopper("stop")]), epochs=1))

    assert (final.epoch, final.reason) == (4, "")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "extend by what"),
        ({"max_steps": 5}, "all 2 epochs of the plan are done: extend with epochs= as well"),
    ],
)
def test_extending_by_nothing_is_refused(changes: Mapping[str, int], sentence: str) -> None:
    """A plan that would be fulfilled at once is an error, not a run that does nothing."""
    final = run(start(Scripted(), epochs=2))

    with pytest.raises(ValueError, match=sentence):
        extend(final, **changes)


def test_steps_can_be_extended_too() -> None:
    """A plan in steps that is done is refused without more of them, and goes on with them."""
    final = run(start(Scripted(), max_steps=4))

    with pytest.raises(ValueError, match="all 4 steps of the plan are done"):
        extend(final, epochs=1)
    assert run(extend(final, max_steps=3)).step == 7


def test_state_from_the_middle_of_a_run_is_refused() -> None:
    """A state that was yielded in between cannot be run or extended, and the sentence says which can."""
    work = Scripted()
    middle = next(iter(iterate(start(work, epochs=1), [_silent])))

    with pytest.raises(ValueError, match="only a training between two runs can be extended"):
        extend(middle, epochs=1)
    with pytest.raises(ValueError, match="taken at batch_end, in the middle of a run"):
        run(attrs.evolve(middle, workload=work))
    with pytest.raises(ValueError, match="has no workload"):
        run(middle)


@pytest.mark.parametrize("phase", [Phase.SETUP, Phase.BATCH_BEGIN, Phase.LOSS_END, Phase.BATCH_END, Phase.EPOCH_END])
def test_suspended_training_goes_on_where_it_was(phase: Phase) -> None:
    """Suspended once and run again, a training ends as if it had not been."""

    @on(phase, memory=0)
    def suspend_once(state: State, times: int) -> Transition | None:
        return Transition(flags=Flag.SUSPEND, memory=1) if times == 0 else None

    work = Scripted(batches=3, loss=[float(i) for i in range(6)], valid_loss=[1.0, 2.0])
    suspended = run(start(work, epochs=2), [suspend_once])
    final = run(suspended, [suspend_once])

    assert (suspended.phase, suspended.reason) == (Phase.SUSPENDED, "suspend_once")
    expected = simulate([], epochs=2, batches=3, loss=[float(i) for i in range(6)], valid_loss=[1.0, 2.0])
    assert attrs.evolve(final, memory={}) == attrs.evolve(expected, memory={})


def test_reason_of_a_stop_survives_a_suspension() -> None:
    """A training that was to stop, and was suspended before it could, still says why it stops."""

    @on(Phase.BATCH_END)
    def stop(state: State) -> Transition | None:
        flags = Flag.STOP_TRAINING | Flag.SUSPEND
        return Transition(flags=flags, reason="enough") if state.iteration == 1 else None

    suspended = run(start(Scripted(batches=3), epochs=3), [stop])
    final = run(suspended, [stop])

    assert (final.phase, final.epoch, final.iteration, final.reason) == (Phase.DONE, 1, 1, "stop: enough")


def test_training_suspended_in_validation_validates_anew() -> None:
    """A validation that was left is done as if it had not begun; the epoch ends once."""

    @on(Phase.VALID_BATCH_END, memory=0)
    def suspend_once(state: State, times: int) -> Transition | None:
        return Transition(flags=Flag.SUSPEND, memory=1) if times == 0 else None

    work = Scripted(batches=2, valid_batches=3, valid_loss=[1.0])
    suspended = run(start(work, epochs=1), [suspend_once])
    final = run(suspended, [suspend_once])

    assert suspended.history == ()
    assert final.history == ({"train_loss": 0.0, "valid_loss": 1.0},)


# -------------------------------------------------------------------------------- what goes wrong


def test_callback_that_raises_is_named() -> None:
    """The error says which callback, where and when, and comes from the original."""

    @on(Phase.LOSS_END)
    def careless(state: State) -> None:
        if state.iteration == 4:
            raise ZeroDivisionError("oops")

    with pytest.raises(CallbackError) as caught:
        simulate([_silent, careless], epochs=3, batches=3)

    error = caught.value
    assert str(error) == (
        "callback 'careless' at loss_end (epoch 1, batch 1, step 4): it raised ZeroDivisionError: oops"
    )
    assert (error.callback, error.phase, error.epoch, error.batch, error.step) == ("careless", Phase.LOSS_END, 1, 1, 4)
    assert isinstance(error.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({"stop": True}, r"'wrong' at epoch_end .* returned a dict, \{'stop': True\}: return a Transition"),
        (Flag.STOP_TRAINING, "returned a Flag"),
        (Transition(flags=Flag.SKIP_BACKWARD | Flag.STOP_EPOCH), "raised STOP_EPOCH, but nothing reads that any more"),
        (Transition(flags=Flag.VALIDATE), "raised VALIDATE, but there is no validation data"),
        (Transition(hyper={"momentum": 0.9}), "sets 'momentum', which is no hyper-parameter .* there are lr"),
        (Transition(hyper={"lr": (0.1, 0.2)}), "sets 'lr' to 2 values, but there are 1 parameter groups"),
        (Transition(memory=[1]), r"memory is a list \(\[1\]\), which is not an immutable value .* use a tuple"),
        (Transition(memory=(1, {"a": 2})), r"memory\[1\] is a dict"),
    ],
)
def test_impossible_answers_are_refused(answer: Any, sentence: str) -> None:
    """An answer that cannot be done is an error that names the callback and says what to write."""
    wrong = on(Phase.EPOCH_END, name="wrong")(lambda state: answer)

    with pytest.raises(CallbackError, match=sentence):
        simulate([wrong])


def test_flag_raised_too_late_says_when_it_would_not_be() -> None:
    """The sentence names the phases at which the flag would have been read."""

    @on(Phase.BATCH_END)
    def late(state: State) -> Transition:
        return Transition(flags=Flag.SKIP_BACKWARD)

    with pytest.raises(CallbackError, match="SKIP_BACKWARD, .* at one of: .*batch_begin, loss_begin, loss_end"):
        simulate([late])


def test_conflicts_name_both_writers() -> None:
    """Two different values for one hyper-parameter name both callbacks, the key, the values and the phase."""
    one = on(Phase.BATCH_BEGIN, name="one")(lambda state: Transition(hyper={"lr": 0.1}))
    two = on(Phase.BATCH_BEGIN, name="two")(lambda state: Transition(hyper={"lr": 0.2}))

    with pytest.raises(ConflictError, match=r"at batch_begin 'one' sets lr to 0.1 and 'two' to 0.2: leave one"):
        simulate([two, one])


def test_metric_that_is_not_there_says_which_are() -> None:
    """Reading a metric that was not measured names it, and those that were: a misspelt name is seen at once."""

    @on(Phase.EPOCH_END)
    def misspelt(state: State) -> Transition:
        return Transition(reason=str(state.metrics["valid_acuracy"]))

    sentence = "'misspelt' at epoch_end .* MetricError: there is no metric 'valid_acuracy' here: there are {}"
    with pytest.raises(CallbackError, match=sentence.format("train_loss, valid_accuracy")) as caught:
        simulate([misspelt], valid_accuracy=0.5)
    assert isinstance(caught.value.__cause__, MetricError)
    assert isinstance(caught.value.__cause__, KeyError), "it is caught as for any mapping"
    with pytest.raises(MetricError, match="here: there are none yet"):
        at(Phase.BATCH_END).metrics["valid_loss"]


def test_metrics_are_a_mapping_like_others() -> None:
    """They can be written to no more than others, have a default where one is asked for, and stay what they are."""
    state = at(Phase.EPOCH_END, valid_loss=0.5)

    assert state.metrics.get("valid_acuracy") is None
    assert "valid_acuracy" not in state.metrics
    assert attrs.evolve(state, epoch=2).metrics is state.metrics
    for same in (pickle.loads(pickle.dumps(state)), copy.deepcopy(state)):
        with pytest.raises(MetricError):
            same.metrics["valid_acuracy"]
    final = simulate([], valid_loss=1.0)
    for metrics in (final.metrics, *final.history):
        with pytest.raises(MetricError):
            metrics["valid_acuracy"]
    with pytest.raises(TypeError, match="a mapping was expected, not 3"):
        at(Phase.EPOCH_END, metrics=3)


def test_fact_that_was_not_asked_for_says_how_to_ask() -> None:
    """Reading a fact without `needs` names the callback, the phase, and what to write."""

    @on(Phase.LOSS_END)
    def greedy(state: State) -> Transition:
        return Transition(flags=Flag.SKIP_BACKWARD if state.facts["loss"] > 1 else Flag.NONE)

    with pytest.raises(CallbackError, match=r"'greedy' at loss_end .* 'loss' is not here.*needs=\{'loss'\}") as caught:
        simulate([greedy])
    assert isinstance(caught.value.__cause__, FactError)


@pytest.mark.parametrize(
    ("needs", "sentence"),
    [
        ({"loss"}, "callback 'early' needs the fact 'loss' at batch_begin, but it is known only at loss_end"),
        ({"tokens"}, "needs the fact 'tokens', which this workload does not measure: there are batch_size, elapsed"),
    ],
)
def test_facts_that_cannot_be_known_are_refused_when_the_run_starts(needs: set[str], sentence: str) -> None:
    """Nothing is trained when a callback needs what nobody can measure for it."""
    early = on(Phase.BATCH_BEGIN, name="early", needs=needs)(lambda state: None)

    with pytest.raises(ValueError, match=sentence):
        simulate([early])


def test_names_are_unique() -> None:
    """A second callback of the same name is refused, with the advice to pass name=."""
    with pytest.raises(ValueError, match=r"two callbacks are called 'stop'.* pass name="):
        simulate([_stopper("stop"), _stopper("stop")])


def test_something_that_is_no_callback_is_refused() -> None:
    """A factory that was not called is told apart from other things."""
    from fsm_train.callbacks import early_stopping

    with pytest.raises(TypeError, match="call it: it is a factory"):
        simulate([early_stopping])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="3 is no callback: decorate"):
        simulate([3])  # type: ignore[list-item]


class _Fails(Scripted):
    """Raises in one operation, and notes that it was finished."""

    def __init__(self, where: str, **values: Any) -> None:
        super().__init__(**values)
        self.finished: list[State] = []
        if where:
            setattr(self, where, self._fail)

    def _fail(self, *args: object) -> None:
        raise RuntimeError("broken")

    def finish(self, state: State) -> None:
        self.finished.append(state)


@pytest.mark.parametrize(
    "where", ["prepare", "open", "fetch", "forward", "step", "measure_valid", "measure", "carry_out"]
)
def test_teardown_is_consulted_in_every_case(where: str) -> None:
    """Whatever raised, TEARDOWN is consulted, the workload finishes, and the original error comes out."""
    torn_down: list[State] = []

    @on(Phase.TEARDOWN, Phase.STEP_BEGIN)
    def watch(state: State) -> Transition | None:
        from tests.unhandled_command import Shake

        if state.phase is Phase.TEARDOWN:
            torn_down.append(state)
            return None
        return Transition(commands=(Shake(),))

    work = _Fails(where, valid_loss=1.0)
    with pytest.raises(RuntimeError, match="broken") as caught:
        run(start(work, epochs=1), [watch])

    assert [state.error for state in torn_down] == ["RuntimeError: broken"]
    assert [state.error for state in work.finished] == ["RuntimeError: broken"]
    assert caught.value.__notes__[0].startswith(f"Raised {'at step_begin' if where == 'carry_out' else 'by ' + where}")


def test_trouble_while_tearing_down_is_noted() -> None:
    """A callback that fails at TEARDOWN does not hide what went wrong before."""

    @on(Phase.TEARDOWN)
    def clumsy(state: State) -> Transition:
        raise ValueError("and this")

    work = _Fails("step")
    with pytest.raises(RuntimeError, match="broken") as caught:
        run(start(work, epochs=1), [clumsy])

    assert "torn down: CallbackError: callback 'clumsy'" in caught.value.__notes__[1]
    assert len(work.finished) == 1


def test_trouble_at_teardown_alone_still_finishes() -> None:
    """A callback that fails at TEARDOWN is an error of the run, and the workload finishes all the same."""

    @on(Phase.TEARDOWN)
    def clumsy(state: State) -> Transition:
        raise ValueError("only this")

    work = _Fails("")
    with pytest.raises(CallbackError, match="only this"):
        run(start(work, epochs=1), [clumsy])
    assert len(work.finished) == 1


def test_failing_finish_is_not_repeated() -> None:
    """When the last operation itself fails, its error comes out, once."""
    work = _Fails("finish")

    with pytest.raises(RuntimeError, match="broken") as caught:
        run(start(work, epochs=1))
    assert len(caught.value.__notes__) == 1


def test_leaving_the_loop_early_tears_down() -> None:
    """Closing the generator of `iterate` consults TEARDOWN and finishes, as a failure does."""
    torn_down: list[Phase] = []

    @on(Phase.TEARDOWN, Phase.BATCH_END)
    def watch(state: State) -> None:
        torn_down.append(state.phase)

    work = _Fails("")
    steps = iterate(start(work, epochs=3), [watch])
    next(steps)
    steps.close()  # type: ignore[attr-defined]

    assert torn_down == [Phase.BATCH_END, Phase.TEARDOWN]
    assert len(work.finished) == 1


# --------------------------------------------------------------------------------------- records


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ({}, "a plan without an end: give epochs, max_steps or seconds"),
        ({"epochs": -1}, "epochs=-1: a training cannot have a negative number"),
        ({"epochs": 1.5}, "epochs is a whole number, not 1.5"),
        ({"max_steps": True}, "max_steps is a whole number, not True"),
        ({"epochs": 1, "seed": -1}, "seed=-1: a seed is a whole number from 0"),
    ],
)
def test_nonsense_plans_are_refused(plan: Mapping[str, Any], sentence: str) -> None:
    """A plan says what is wrong with it."""
    with pytest.raises((TypeError, ValueError), match=sentence):
        start(Scripted(), **plan)


def test_a_state_counts_from_zero() -> None:
    """A negative epoch is refused, by name."""
    with pytest.raises(ValueError, match="epoch=-1: a state counts from 0"):
        State(Phase.EPOCH_END, Plan(epochs=1), epoch=-1)


@pytest.mark.parametrize("field", ["metrics", "hyper", "memory", "facts"])
def test_mappings_in_a_state_cannot_be_written_to(field: str) -> None:
    """Writing to any mapping of a state is a TypeError, in whatever way it is tried."""
    mapping = getattr(simulate([_silent]), field)

    for write in (
        lambda: mapping.__setitem__("x", 1),
        lambda: mapping.update(x=1),
        lambda: mapping.pop("x", None),
        lambda: mapping.setdefault("x", 1),
        lambda: mapping.clear(),
        lambda: mapping.__ior__({"x": 1}),
    ):
        with pytest.raises(TypeError, match="immutable record"):
            write()


def test_states_can_be_compared_hashed_copied_and_pickled() -> None:
    """A state is a value."""
    state = attrs.evolve(simulate([_silent], valid_loss=1.0), workload=None)

    assert copy.deepcopy(state) == copy.copy(state) == pickle.loads(pickle.dumps(state)) == state
    assert hash(copy.deepcopy(state)) == hash(state)


def test_random_numbers_depend_on_the_state_alone() -> None:
    """The same state draws the same numbers; another name, seed or counter draws others."""
    state = State(Phase.BATCH_BEGIN, Plan(epochs=1, seed=3), iteration=5)
    draws = [
        state.random("mixup").random(),
        state.random("mixup").random(),
        state.random("noise").random(),
        attrs.evolve(state, iteration=6).random("mixup").random(),
        attrs.evolve(state, plan=Plan(epochs=1, seed=4)).random("mixup").random(),
    ]

    assert draws[0] == draws[1] == 0.9446596322372088
    assert len(set(draws)) == 4


# ------------------------------------------------------------------------------------- evaluate


def test_evaluate_returns_the_validation_metrics() -> None:
    """One validation, without a training."""
    assert evaluate(Scripted(valid_loss=[2.0], valid_accuracy=0.5)) == {"valid_loss": 2.0, "valid_accuracy": 0.5}
    work = Scripted(batches=2, valid_loss=0.5)  # of a workload with nothing to set aside, in the middle of a run too
    assert [evaluate(work) for _ in iterate(start(work, epochs=1), at=Phase.BATCH_END)] == [{"valid_loss": 0.5}] * 3


def test_evaluate_without_data_is_refused() -> None:
    """Nothing to validate on is an error that says what to give."""
    with pytest.raises(ValueError, match=r"no validation data: give the workload some \(valid=…\)"):
        evaluate(Scripted())


def test_evaluate_puts_things_back_when_it_fails() -> None:
    """An error in the middle of a validation abandons it properly."""

    class Breaks(Scripted):
        abandoned = False

        def evaluate(self, state: State | None = None) -> None:
            raise RuntimeError("broken")

        def abandon(self, state: State) -> None:
            self.abandoned = True

    work = Breaks(valid_loss=1.0)
    with pytest.raises(RuntimeError, match="broken"):
        evaluate(work)
    assert work.abandoned


def test_training_whose_way_out_fails_ends_all_the_same() -> None:
    """With the first error, and a note for each of the others."""

    class NoWay(Scripted):
        def fused(self, operations: tuple[Operation, ...]) -> None:
            raise ArithmeticError("there is no way")

    with pytest.raises(ArithmeticError, match="there is no way") as raised:
        run(start(NoWay(), epochs=1))
    assert any("while this training was torn down" in note for note in raised.value.__notes__)
    assert len(raised.value.__notes__) < 6
