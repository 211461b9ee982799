"""Laws of rounds: what is written down as a loop does what the walk does path by path, wherever it is left or fails."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any
from unittest import mock

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm_train import Command, Scripted, Sink, State, on, rounds, run, start
from fsm_train.core import rounds as written
from fsm_train.core.callback import Callback
from fsm_train.core.errors import CallbackError, ConflictError
from fsm_train.core.failing import whole_state
from fsm_train.core.phase import CONSULTED, TURN_PHASES, Flag, Operation, Phase
from fsm_train.core.rounds import SOURCE
from fsm_train.core.state import Draft
from fsm_train.core.table import WITHOUT_TURNS
from fsm_train.core.transition import Transition
from fsm_train.core.values import EMPTY
from property_tests import strategies as our

INSIDE = tuple(phase for phase in CONSULTED if phase in TURN_PHASES)
SETTLED = frozenset({**WITHOUT_TURNS}.items())


class Keeping(our.Recording):
    """Keeps the states that it is given with commands."""

    def carry_out(self, command: Command, state: State) -> None:
        super().carry_out(command, state)
        self.told.append(state)


class Whole(Keeping):
    """Does what it is told to fuse in one call."""

    def fused(self, operations: tuple[Operation, ...]) -> Callable[[], object] | None:
        if len(operations) < 2 or self.informed & {*operations}:
            return None

        def at_once() -> object:
            outcome: object = None
            for self.doing in operations:
                answer = getattr(self, self.doing.value)()
                outcome = answer if self.doing is Operation.STEP else outcome
            self.doing = None
            return outcome

        return at_once


@attrs.frozen
class World:
    """How batches weigh, which steps are held back, what breaks when, and whether operations are given the state."""

    sizes: tuple[float, ...] = (2, 1)
    stepped: tuple[bool, ...] = (True,)
    interrupt_after: int = -1
    break_after: int = -1
    max_steps: int | None = None
    valid_batches: int | None = None
    informed: bool = False
    whole: bool = False

    def workload(self) -> Keeping:
        kind = Whole if self.whole else Keeping
        validation = {} if self.valid_batches is None else {"valid_batches": self.valid_batches, "valid_loss": 0.5}
        work = kind(
            batches=5,
            batch_size=lambda state: self.sizes[state.iteration % len(self.sizes)],
            loss=(lambda state: 0.5 + state.step) if self.informed else 0.5,
            stepped=lambda state: self.stepped[state.iteration % len(self.stepped)],
            hyper=our.HYPER,
            **validation,
        )
        work.interrupt_after, work.break_after = self.interrupt_after, self.break_after
        return work


worlds = st.builds(
    World,
    sizes=st.lists(st.sampled_from([2, 1, 0.1, 0]), min_size=1, max_size=4).map(tuple),
    stepped=st.sampled_from([(True,), (True, False)]),
    interrupt_after=st.integers(-1, 80) | st.just(-1),
    break_after=st.integers(-1, 80) | st.just(-1),
    max_steps=st.sampled_from([None, None, 1, 3, 7]),
    valid_batches=st.sampled_from([None, 2]),
    informed=st.booleans(),
    whole=st.booleans(),
)


@contextmanager
def in_rounds(yes: bool) -> Iterator[None]:
    """With rounds from the first batch, or without any."""
    with mock.patch.object(rounds, "NEEDED", 0 if yes else math.inf):
        yield


class Seeing(Sink):
    """Notes all that it is told."""

    def __init__(self, at: Sequence[Phase]) -> None:
        self.at, self.seen = tuple(at), []
        self.needs = {"loss"} if Phase.LOSS_END in at else set()

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        self.seen.append((state, dict(answers)))


def trained(
    world: World, callbacks: Sequence[Callback[Any]], *, yes: bool, sink_at: Sequence[Phase] = ()
) -> tuple[object, ...]:
    """All that can be seen of this training, and of the one after it if it was suspended."""
    sink = Seeing(sink_at)
    work, failures, ends = world.workload(), [], []

    @on(Phase.TEARDOWN)
    def torn_down(state: State) -> None:
        if (failure := state.failure) is not None:
            seen = (failure.phase, failure.doing, failure.deciding, failure.pending, failure.state, failure.commands)
            failures.append((*seen, failure.boundary and attrs.astuple(failure.boundary, recurse=False)))

    with in_rounds(yes), mock.patch.object(signal, "raise_signal"):  # one that comes too late ends this process else
        try:
            state = run(start(work, epochs=3, max_steps=world.max_steps), [*callbacks, torn_down], sinks=[sink])
            ends.append(state)
            if state.phase is Phase.SUSPENDED:
                ends.append(run(state, [*callbacks, torn_down], sinks=[sink]))
        except (OSError, CallbackError, ConflictError) as error:
            ends.append((type(error), str(error), getattr(error, "__notes__", ())))
    return ends, failures, work.told, sink.seen


def keeper(name: str, phases: Sequence[Phase], what: str, kept: list[Any], every: int) -> Callback[None]:
    """A callback that keeps the states that it is given now and then, or their values, against all advice."""

    @on(*phases, name=name)
    def keep(state: State) -> None:
        if len(kept) < 40 and state.iteration % every == 0:
            kept.append({"state": state, "values": vars(state), "method": state.random}[what])

    return keep


def values(kept: object) -> dict[str, object]:
    """What somebody who kept this sees."""
    state = getattr(kept, "__self__", kept)
    return {**(state if isinstance(state, dict) else vars(state)), "workload": None}


@given(worlds, st.data())
def test_rounds_do_what_the_walk_does(world: World, data: st.DataObject) -> None:
    """The same operations, commands, last states, errors and failures, whatever callbacks ask for, and wherever."""
    named = our.NAMES[: data.draw(st.integers(0, 3))]
    has_valid = world.valid_batches is not None
    callbacks = [
        data.draw(
            our.callbacks(name, INSIDE, has_valid=has_valid) | our.callbacks(name, has_valid=has_valid)
            if data.draw(st.booleans())
            else our.declaring(name, has_valid=has_valid)
        )
        for name in named
    ]
    if data.draw(st.booleans()):  # the others remember something with each answer
        telling = Transition(commands=(our.Do(9),))
        callbacks.append(on(data.draw(st.sampled_from(INSIDE)), name="telling")(lambda state: telling))
    sink_at = data.draw(st.just([]) | st.lists(st.sampled_from(INSIDE), unique=True))
    phases = data.draw(st.lists(st.sampled_from(INSIDE), min_size=1, unique=True))
    what, every = data.draw(st.sampled_from(["state", "values", "method"])), data.draw(st.integers(1, 4))
    kept: tuple[list[Any], list[Any]] = [], []
    seen = [
        trained(world, [*callbacks, keeper("keeper", phases, what, kept[yes], every)], yes=bool(yes), sink_at=sink_at)
        for yes in (0, 1)
    ]
    assert seen[0] == seen[1]
    assert [*map(values, kept[0])] == [*map(values, kept[1])]


PLAN: Any = start(Scripted(), epochs=2, max_steps=3).plan


@given(
    st.sampled_from(sorted(SOURCE, key=lambda each: each.__name__)),
    st.builds(
        lambda **fields: start(Scripted(), epochs=2).draft().__class__(Phase.BATCH_END, **fields),
        plan=st.sampled_from([PLAN, start(Scripted(), epochs=2).plan]),
        pending=st.integers(0, 3),
        step=st.integers(0, 4),
        fetched=st.sampled_from([0, 2, 0.5]),
        exhausted=st.booleans(),
        samples=st.sampled_from([0, 1.5]),
        hyper=st.sampled_from([EMPTY, {"lr": 0.1}]),
    ),
    st.sampled_from([None, 0, 1, 2.5, True, False, "odd"]),
)
def test_text_does_what_its_function_does(function: Any, at: Draft, outcome: object) -> None:
    """Each effect and each predicate that is written down."""
    other = at.state(at.phase, at.flags, at.facts).draft()
    if function.__annotations__["return"] == "bool":
        assert eval(SOURCE[function], {"at": other}) == function(at)
    else:
        function(at, outcome)
        exec(SOURCE[function], {"at": other, "outcome": outcome})
    assert attrs.astuple(at, recurse=False) == attrs.astuple(other, recurse=False)


# --------------------------------------------------------------------------------------- planted bugs


def changed(found: str, by: str) -> Callable[[Any], Any]:
    """`code` of rounds in which this text is another."""

    def code(self: written.Round) -> Any:
        assert found in self.text
        return compile(self.text.replace(found, by), "changed", "exec")

    return code


def what_a_keeper_sees(yes: bool, **world: Any) -> tuple[object, ...]:
    kept: list[Any] = []

    @on(Phase.LOSS_END, Phase.STEP_END)
    def answering(state: State, memory: int = 0) -> Transition | None:
        flags = (
            Flag.SKIP_STEP | Flag.SKIP_ZERO if state.iteration % 3 == 1 and state.phase is Phase.LOSS_END else Flag(0)
        )
        return Transition(flags=flags, memory=memory + 1) if state.iteration % 2 else None

    callbacks = [answering, keeper("keeper", INSIDE, "state", kept, 2)]
    return trained(World(**world), callbacks, yes=yes), [values(each) for each in kept]


@pytest.mark.parametrize(
    ("found", "by", "world"),
    [
        ("getrefcount(state) != alone or getrefcount(values) != shared", "False", {}),
        ("at.pending += 1", "at.pending += 2", {"break_after": 60}),
        ("at.step += 1", "pass", {}),
        ("if at.fetched == 0:", "if False:", {"sizes": (2, 0)}),
        ("cursor.note_boundary()", "pass", {"break_after": 60}),
        ("if at.iteration >= until or work.interrupt is not None:", "if False:", {"interrupt_after": 31}),
        ("cursor.flags = at.flags = FLAGS\n", "pass\n", {}),
        ("failed(cursor, doing, state, error)", "pass", {"break_after": 60}),
        ("answers, before, acted = [], None, True", "before, acted = None, True", {}),
    ],
)
def test_planted_bugs_are_noticed(found: str, by: str, world: Mapping[str, Any], monkeypatch: Any) -> None:
    """Each of these changes what a training does, or what somebody sees of it, and the law notices."""
    right = what_a_keeper_sees(False, **world)
    assert what_a_keeper_sees(True, **world) == right
    monkeypatch.setattr(written.Round, "code", property(changed(found, by)))
    try:
        wrong: object = what_a_keeper_sees(True, **world)
    except Exception as error:  # as which a bug may show too
        wrong = error
    assert wrong != right


# --------------------------------------------------------------------------------------- a signal at any moment


def ticking(self: written.Round) -> CodeType:
    """`code` of rounds that call `tick` of the workload where a signal can come: at each call, and where they go on."""
    lines = self.text.split("\n")
    begin, end = lines.index("        while True:") + 1, lines.index("    except BaseException as error:")
    for i in reversed(range(begin, end)):
        line = lines[i].lstrip()
        if "(" in line or line == "continue":
            lines.insert(i, " " * (len(lines[i]) - len(line)) + "work.tick()")
    return compile("\n".join(lines), "ticking", "exec")


class Ticking(our.Recording):
    """Is interrupted at one of these moments."""

    def __init__(self, interrupted_at: int) -> None:
        super().__init__(batches=4, batch_size=2)
        self.ticks, self.interrupted_at = 0, interrupted_at

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks == self.interrupted_at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("reads", [None, ()])
@pytest.mark.parametrize("phases", [[Phase.LOSS_END], [Phase.STEP_BEGIN, Phase.BATCH_END]])
def test_a_signal_counts_no_batch_twice(phases: list[Phase], reads: Any, monkeypatch: Any) -> None:
    """Where the training resumes after it, there are no more batches than steps, and at most one is trained again."""
    monkeypatch.setattr(written.Round, "code", property(ticking))
    monkeypatch.setattr(rounds, "NEEDED", 0)
    whole: list[State] = []

    @on(Phase.TEARDOWN)
    def torn_down(state: State) -> None:
        if state.failure is not None:
            whole.append(whole_state(state)[0])

    looking = on(*phases, name="looking", reads=reads)(lambda state: None)
    for tick in itertools.count(1):
        work = Ticking(tick)
        try:
            run(start(work, epochs=1), [looking, torn_down])
        except KeyboardInterrupt:
            steps = work.done.count(Operation.STEP)
            assert whole[-1].iteration in (steps - 1, steps)
            assert whole[-1].samples in (2 * steps - 2, 2 * steps)
        else:
            break
    assert len(whole) > 30
