"""Laws of the tools that callbacks are tested with: what the strategies draw, and the two ways of walking the table."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
from hypothesis import Phase as HypothesisPhase
from hypothesis import find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy

from fsm_train import Callback, ClipGradNorm, Command, Flag, Plan, State, Transition, WeighLoss, iterate, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, early_stopping, reduce_on_plateau, skip_nonfinite
from fsm_train.core.phase import CONSULTED, FINAL, Phase
from fsm_train.core.table import READABLE
from fsm_train.core.workload import Workload
from fsm_train.testing import MachineModel, Trace, simulate
from fsm_train.testing import strategies as our
from fsm_train.testing.consultation import same_response
from fsm_train.testing.differences import fingerprint, same
from fsm_train.testing.json_memory import through_json
from fsm_train.testing.training import ScriptedTraining, Training, consultations_of
from fsm_train.worlds.scripted import Scripted

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
MEMORIES: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda parts: st.lists(parts, max_size=3).map(tuple),
    max_leaves=6,
)


@given(our.plans())
def test_plans_end(plan: Plan) -> None:
    """Every plan has an end, and a training by it reaches that."""
    final = simulate([], batches=2, epochs=plan.epochs, max_steps=plan.max_steps, seed=plan.seed)

    assert final.phase is Phase.DONE
    assert final.epoch == plan.epochs or final.step == plan.max_steps


@given(st.sampled_from(CONSULTED), st.data())
def test_states_fit_together(phase: Phase, data: st.DataObject) -> None:
    """A made-up state is at its phase, its counters fit together, and it has the facts that are known there."""
    state = data.draw(our.states(phase=phase))

    assert state.phase is phase
    assert state.batch <= state.iteration
    assert state.step <= state.iteration + (phase is Phase.STEP_END and not state.batches_over)
    assert state.pending <= state.iteration - state.step + 1
    assert len(state.history) == state.epoch
    of_leftover = state.batches_over and phase in (Phase.STEP_BEGIN, Phase.STEP_END)  # it has no batch of its own
    assert ("loss" in state.facts) == (phase in (*_LOSS, Phase.VALID_BATCH_END) and not of_leftover)


_LOSS = (Phase.LOSS_END, Phase.BACKWARD_END, Phase.STEP_BEGIN, Phase.STEP_END, Phase.BATCH_END)


@given(st.data())
def test_reachable_states_are_reached(data: st.DataObject) -> None:
    """A reachable state is one of a simulated training, so the machine can go on from it."""
    state = data.draw(our.reachable_states([accumulate(2)]))

    assert state.phase not in FINAL
    assert state.pending <= 2
    assert "accumulate" in state.memory


def test_reachable_states_can_be_at_one_phase() -> None:
    """With a phase, only trainings that come by it are drawn."""
    some = our.reachable_states([], phase=Phase.VALID_END)
    state = find(some, lambda state: True, settings=settings(max_examples=30, database=None))

    assert (state.phase, state.epoch) == (Phase.VALID_END, 0)


@given(st.sampled_from(CONSULTED), st.data())
def test_transitions_are_accepted(phase: Phase, data: st.DataObject) -> None:
    """What is drawn for a phase can be said there."""
    answer = data.draw(our.transitions(phase))

    assert all(phase in READABLE[flag] for flag in answer.flags)
    assert Flag.SUSPEND not in answer.flags
    assert answer.hyper.keys() <= {"lr"}


def test_transitions_can_be_narrowed() -> None:
    """Without hyper-parameters, commands or memory nothing of the kind is said; VALIDATE only when asked for."""
    plain = our.transitions(hyper=(), commands=st.nothing(), memory=False)
    with pytest.raises(NoSuchExample):
        find(plain, lambda answer: bool(answer.hyper or answer.commands or isinstance(answer.memory, int)))

    asked = our.transitions(Phase.BATCH_END, asked_for=Flag.VALIDATE)
    assert find(asked, lambda answer: Flag.VALIDATE in answer.flags) == Transition(flags=Flag.VALIDATE)


@given(our.callbacks(), our.plans())
def test_callbacks_get_along(some: Sequence[Callback[Any]], plan: Plan) -> None:
    """Callbacks that were drawn together train together, and in another order too.

    They may skip every step, so that steps alone are no end.
    """
    trainings = [
        simulate(order, batches=2, valid_loss=1.0, epochs=plan.epochs or 2, max_steps=plan.max_steps)
        for order in (some, some[::-1])
    ]

    assert trainings[0].hyper == trainings[1].hyper
    assert trainings[0].step == trainings[1].step
    assert len({callback.name for callback in some}) == len(some)


@pytest.mark.parametrize(
    ("kind", "looks_so"),
    [
        ("rising", lambda curve: all(a < b for a, b in itertools.pairwise(curve))),
        ("falling", lambda curve: all(a > b for a, b in itertools.pairwise(curve))),
        ("plateau", lambda curve: len(set(curve[3:])) <= 1),
        ("noisy", lambda curve: all(map(math.isfinite, curve))),
        ("nan", lambda curve: any(map(math.isnan, curve))),
        ("ties", lambda curve: set(curve) <= {1.0, 2.0}),
    ],
)
def test_curves_look_as_they_are_called(kind: our.Curve, looks_so: Callable[[list[float]], bool]) -> None:
    """Each kind of curve is that kind."""

    @given(our.metric_curves(kinds=[kind], min_size=2, max_size=5))
    def check(curve: list[float]) -> None:
        assert 2 <= len(curve) <= 5
        assert looks_so(curve)

    check()


@given(our.traces())
def test_traces_are_of_whole_trainings(trace: Trace) -> None:
    """A trace begins with the workload's preparation, ends at DONE, and is what the same training gives again."""
    assert trace.operations[0] == "prepare"
    assert trace.final.phase is Phase.DONE
    assert str(trace).startswith("→ prepare\nsetup ")


@pytest.mark.parametrize(
    ("strategy", "condition", "smallest"),
    [
        (our.metric_curves(), lambda curve: len(curve) > 2 and curve[2] > curve[1], [0, 0.5, 1.0]),
        (our.callbacks(), lambda some: len(some) == 2, ["first", "second"]),
        (our.trainings(), lambda training: training.forced_flags, ((0, Flag.SKIP_STEP | Flag.SKIP_ZERO),)),
        (our.reachable_states([]), lambda state: state.epoch == 1, (1, 3)),
    ],
)
def test_strategies_shrink(strategy: SearchStrategy[Any], condition: Callable[[Any], bool], smallest: Any) -> None:
    """The smallest example is one that a person would have written."""
    quick = settings(
        max_examples=500, database=None, derandomize=True, phases=(HypothesisPhase.generate, HypothesisPhase.shrink)
    )
    found = find(strategy, condition, settings=quick)

    if isinstance(found, Training):
        assert (found.forced_flags, found.epochs, found.batches) == (smallest, 1, 1)
    elif isinstance(found, State):
        assert (found.epoch, max(3, found.iteration)) == smallest
    elif smallest == ["first", "second"]:
        assert [callback.name for callback in found] == smallest
        assert all(len(callback.at) == 1 for callback in found)
    else:
        assert found == smallest


@given(MEMORIES)
def test_memories_come_back_from_json(memory: object) -> None:
    """Whatever may be remembered comes back to the last bit."""
    assert same(through_json(memory), memory)


@given(MEMORIES, MEMORIES)
def test_fingerprints_tell_apart(a: object, b: object) -> None:
    """Two values with one fingerprint look the same."""
    assert (fingerprint(a) == fingerprint(b)) == (repr(a) == repr(b))


@given(our.trainings(metrics=["valid_loss"], facts=["grad_norm", "stepped", "elapsed", "tokens"]))
def test_worlds_depend_on_the_counters_alone(training: Training) -> None:
    """However often the world is suspended or looked at, it measures the same: or comparing would mean nothing."""
    watched = Callback("watch", CONSULTED, lambda state, _: None, needs=frozenset({"elapsed", "tokens"}))
    hyper = {"lr": 0.1}
    alone = [
        (c.state.phase, c.state.facts, c.state.metrics)
        for c in consultations_of(watched, training, hyper=hyper)
        if c.state.phase not in (Phase.SETUP, Phase.SUSPEND, Phase.TEARDOWN, *_VALIDATION)
    ]
    apart = [
        (c.state.phase, c.state.facts, c.state.metrics)
        for c in consultations_of(watched, training, hyper=hyper, interrupt=True)
        if c.state.phase not in (Phase.SETUP, Phase.SUSPEND, Phase.TEARDOWN, *_VALIDATION)
    ]

    assert same(tuple(alone), tuple(apart))


_VALIDATION = (Phase.VALID_BEGIN, Phase.VALID_BATCH_BEGIN, Phase.VALID_BATCH_END)


@given(our.trainings(), st.integers(1, 3))
def test_early_stopping_is_examined_as_it_runs(training: Training, patience: int) -> None:
    """The consultations of an examination are those of a run in the same world."""
    callback = early_stopping(patience=patience, on_nonfinite="wait")
    seen = consultations_of(callback, attrs.evolve(training, forced_flags=()), hyper={"lr": 0.1}, observe=True)
    world = ScriptedTraining(attrs.evolve(training, forced_flags=()), {"lr": 0.1})
    states = list(iterate(start(world, epochs=training.epochs, seed=training.seed), [callback]))[:-1]

    assert [c.state.epoch for c in seen] == [state.epoch for state in states]
    assert all(same_response(c.response, c.observations.second_response) for c in seen)


# ------------------------------------------------------------------ the interpreter and the fold


class ScriptedModel(MachineModel):
    """The scripted workload, with the commands and two callbacks of the library."""

    def commands(self) -> SearchStrategy[Command]:
        return st.builds(ClipGradNorm, st.just(1.0)) | st.builds(WeighLoss, st.sampled_from([0.5, 1.0]))

    def callbacks(self) -> Sequence[Callback[Any]]:
        return (accumulate(2), reduce_on_plateau(patience=0), early_stopping(patience=3), skip_nonfinite())

    def workload(self) -> Workload:
        return Scripted(batches=3, valid_batches=2, valid_loss=lambda state: 1.0 + state.epoch, grad_norm=2.0)

    def check(self, state: State) -> None:
        assert state.pending <= 3


class BareModel(MachineModel):
    """Nobody but the callback whose answers are drawn, and no validation."""

    def workload(self) -> Workload:
        return Scripted(batches=2)


class TurnsModel(MachineModel):
    """Players that take turns, with validations in between."""

    def callbacks(self) -> Sequence[Callback[Any]]:
        return (accumulate(2), clip_grad_norm(1.0, player="G"))

    def workload(self) -> Workload:
        return Scripted(batches=3, valid_batches=2, valid_loss=1.0, players={"G": 2, "D": 1, "E": 1})

    def check(self, state: State) -> None:
        assert sum(state.players.steps) == state.step


for model in (ScriptedModel, BareModel, TurnsModel):
    model.TestCase.settings = settings(max_examples=150 if THOROUGH else 25, stateful_step_count=30, deadline=None)
TestScriptedModel = ScriptedModel.TestCase
TestBareModel = BareModel.TestCase
TestTurnsModel = TurnsModel.TestCase


class Forgets(Scripted):
    """Says that it sets hyper-parameters."""

    def __init__(self) -> None:
        super().__init__(batches=2)

    def set_hyper(self, changes: Any) -> None:
        """Forgotten."""


def test_model_finds_a_workload_that_forgets() -> None:
    """A workload that does not do what it is told is found, with the steps that lead there."""

    class Forgetful(MachineModel):
        def workload(self) -> Workload:
            return Forgets()

    with pytest.raises(AssertionError, match="hyper-parameters were not set"):
        _try(Forgetful)


_NO_SHRINKING = (HypothesisPhase.generate,)


def _try(model: type[MachineModel]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        model, settings=settings(max_examples=200, deadline=None, database=None, derandomize=True, phases=_NO_SHRINKING)
    )


@pytest.mark.parametrize(
    ("name", "broken", "sentence"),
    [
        ("advance", lambda advance: lambda *args: _lowered(advance(*args)), "differ at"),
        ("decide", lambda decide: lambda *args: _silent(decide(*args)), "differ at|were carried out"),
    ],
)
def test_model_finds_a_machine_that_errs(
    name: str, broken: Callable[..., Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If fold and interpreter disagreed about the machine, it would be found."""
    from fsm_train.testing import model

    monkeypatch.setattr(model, name, broken(getattr(model, name)))

    with pytest.raises(AssertionError, match=sentence):
        _try(ScriptedModel)


def _lowered(state: State) -> State:
    return attrs.evolve(state, flags=state.flags & ~Flag.STOP_TRAINING)


def _silent(decided: tuple[State, Any]) -> tuple[State, Any]:
    return attrs.evolve(decided[0], reason=""), decided[1]


def test_run_is_the_last_of_iterate() -> None:
    """The model drives `iterate`, and `run` is its last state."""
    assert run(start(Scripted(), epochs=1)) == list(iterate(start(Scripted(), epochs=1)))[-1]
