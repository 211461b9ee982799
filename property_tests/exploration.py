"""Walks of the whole table: every flag at every phase, every outcome of every operation.

What a guard and an effect see is a `Situation`: the counters, and beside them what an observer has
`Seen` who knows nothing of the table's effects and counts for itself. The flags are kept apart as a
number, since no operation reads them; so a step between two situations is worked out only once, and
half a million states take seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

import attrs

from fsm_train.core.phase import FINAL, Flag, Junction, Operation, Phase, Place
from fsm_train.core.state import COUNTERS, Draft, Plan
from fsm_train.core.table import READABLE, TABLE, Edge, Effect, Outcome, effects, falling
from fsm_train.core.turns import Players

BATCH_SIZE, VALID_BATCH_SIZE = 2, 5
BRACKETS = {
    Phase.TRAIN_BEGIN: ([()], "train"),
    Phase.EPOCH_BEGIN: ([("train",)], "epoch"),
    Phase.BATCH_BEGIN: ([("train", "epoch")], "batch"),
    Phase.VALID_BEGIN: ([("train", "epoch"), ("train",)], "valid"),
    Phase.VALID_BATCH_BEGIN: ([("train", "epoch", "valid"), ("train", "valid")], "valid_batch"),
}
"""What may be open where a bracket opens, and its name."""
CLOSES = {
    Phase.TRAIN_END: "train",
    Phase.EPOCH_END: "epoch",
    Phase.BATCH_END: "batch",
    Phase.VALID_END: "valid",
    Phase.VALID_BATCH_END: "valid_batch",
}


@attrs.frozen
class Machine:
    """The table and what crossing an edge does; any of them can be replaced by a broken one."""

    table: tuple[Edge, ...] = TABLE
    falling: Callable[[Edge], Flag] = falling
    effects: Callable[[Edge], Iterable[tuple[Operation | None, Effect | None]]] = effects

    def rows(self, place: Place) -> tuple[Edge, ...]:
        return tuple(edge for edge in self.table if edge.source is place)


@attrs.frozen
class Bounds:
    """How far to explore; without `valid_batches` there is no validation data."""

    epochs: int = 2
    batches: int = 2
    valid_batches: int = 0
    max_steps: int | None = None
    weightless: bool = False  # whether a batch can count 0
    players: tuple[int, ...] = ()  # of each, at each so-many-th batch it plays


class Seen(NamedTuple):
    """What an observer saw happen."""

    open: tuple[str, ...] = ()  # the brackets
    epochs: int = 0
    batches: int = 0  # of this epoch
    iterations: int = 0
    samples: int = 0
    steps: int = 0
    window: int = 0  # backward passes since the last step or zero
    fetched: int = 0  # training batches of this epoch
    valid_fetched: int = 0  # batches of this validation
    fresh: bool = False  # validated, with no batch and no step since
    size: int = 0  # of the batch that was fetched last
    undecided: bool = False  # a batch went forward, and is neither trained nor discarded yet
    players: tuple[int, ...] = ()  # those of the bounds
    playing: int = -1  # whose turn was the last in this epoch
    to_come: tuple[int, ...] = ()  # who else has a turn at the batch under way
    windows: tuple[int, ...] = ()  # of each, the window while another one plays
    taken: tuple[int, ...] = ()  # of each, its steps
    shared: int = 0  # the size of the batch under way, which a validation between two turns does not change


@attrs.frozen(eq=False)
class Situation:
    at: Draft
    seen: Seen


@attrs.frozen(eq=False)
class Move:
    """An edge crossed in a situation, with what its operations answered."""

    edge: Edge
    before: Situation
    outcomes: tuple[Outcome, ...]
    after: Situation
    place: Place


# What guards read and effects write, but for the metrics, of which there are none here.
_key = attrgetter(*COUNTERS, "batches_over", "resume_at", "error", "fetched", "exhausted", "players")
_PLACES: tuple[Place, ...] = (*Phase, *Junction)
_PLACE_NUMBER = {place: number for number, place in enumerate(_PLACES)}
_FLAG_BITS = len(Flag)
_ALL = (1 << _FLAG_BITS) - 1
State = tuple[Place, int, Situation]


class Exploration:
    """Everything that can happen within the bounds.

    Attributes:
        states: how many there are, told apart by place, flags and situation.
        moves: every edge in every situation in which some state crosses it.
        suspended: the states at SUSPENDED.
    """

    def __init__(self, bounds: Bounds, machine: Machine | None = None, *, early: bool = False) -> None:
        self.bounds = bounds
        self.early = early
        self.machine = machine or Machine()
        self.rows = {place: self.machine.rows(place) for place in _PLACES}
        self._fall = {edge: self.machine.falling(edge).value for edge in self.machine.table}
        self._effects = {edge: tuple(self.machine.effects(edge)) for edge in self.machine.table}
        self._guarded: dict[tuple[Place, int], list[tuple[Edge, tuple[Callable[[Draft], bool], ...]]]] = {}
        self._moves: dict[tuple[int, int], tuple[Move, ...]] = {}
        self._situations: list[Situation] = []
        self._numbers: dict[object, int] = {}
        plan = Plan(bounds.epochs, bounds.max_steps)
        players = Players.of({f"player {i}": every for i, every in enumerate(bounds.players)})
        none = (0,) * len(bounds.players)
        self.first = self._situation(
            Draft(Phase.READY, plan, has_valid=bounds.valid_batches > 0, players=players),
            Seen(players=bounds.players, windows=none, taken=none),
        )
        self._explored = self._explore()
        self.states = len(self._explored)
        self.moves = [move for moves in self._moves.values() for move in moves]
        self.suspended = [state for state in self if state[0] is Phase.SUSPENDED]

    def __iter__(self) -> Iterator[State]:
        return map(self._decoded, self._explored)

    def cross(self, state: State) -> Iterator[tuple[Move, State]]:
        """The moves from a state, one for each thing that its operations may answer, and where they lead."""
        place, flags, situation = state
        edge = self.choose(place, flags, situation)
        for move in self._crossings(edge, situation):
            yield move, (move.place, flags & ~self._fall[edge] | edge.raises.value, move.after)

    def choose(self, place: Place, flags: int, situation: Situation) -> Edge:
        """The first row whose guard holds, by this module's own reading of the table."""
        rows = self._guarded.get((place, flags))
        if rows is None:
            rows = self._guarded[place, flags] = [
                (edge, tuple(term for term in edge.guard if not isinstance(term, Flag)))
                for edge in self.rows[place]
                if all(term.value & flags for term in edge.guard if isinstance(term, Flag))
            ]
        return next(edge for edge, predicates in rows if all(predicate(situation.at) for predicate in predicates))

    def can_raise(self, place: Place) -> tuple[Flag, ...]:
        """The flags that callbacks raise here."""
        allowed = (flag for flag, phases in READABLE.items() if place in phases)
        next_read = self._reads(place).union(*(self._reads(edge.target) for edge in self.rows[place]))
        return tuple(
            flag
            for flag in allowed
            if (self.early or flag in next_read) and (self.first.at.has_valid or flag is not Flag.VALIDATE)
        )

    def _reads(self, place: Place) -> set[Flag]:
        return {flag for edge in self.rows[place] for term in edge.guard if isinstance(term, Flag) for flag in term}

    def resumed(self, state: State) -> State:
        """A state at SUSPENDED, as another call takes it up."""
        _, flags, situation = state
        return Phase.READY, flags & ~Flag.SUSPEND.value, situation

    def _explore(self) -> set[int]:
        raisable = {place: [flag.value for flag in self.can_raise(place)] for place in _PLACES}
        explored = {self._encoded((Phase.READY, 0, self.first))}
        ahead = list(explored)
        failed: set[int] = set()  # the situations in which something was let fail
        while ahead:
            number = ahead.pop()
            state = self._decoded(number)
            place, _, situation = state
            onward = [number | bit for bit in raisable[place]]
            if place is Phase.SUSPENDED:
                onward.append(self._encoded(self.resumed(state)))
            elif place is Phase.DONE:
                onward.append(self._encoded((Phase.READY, 0, situation)))  # another call of run with its last state
            elif place not in FINAL:
                onward += [self._encoded(after) for _, after in self.cross(state)]
                if id(situation) not in failed:
                    failed.add(id(situation))
                    onward.append(self._encoded((Phase.TEARDOWN, 0, self._failed(situation))))
            new = {state for state in onward if state not in explored}
            explored |= new
            ahead.extend(new)
        return explored

    def _crossings(self, edge: Edge, before: Situation) -> tuple[Move, ...]:
        key = (id(edge), id(before))
        if key not in self._moves:
            self._moves[key] = tuple(self._crossing(edge, before, ()))
        return self._moves[key]

    def _crossing(self, edge: Edge, before: Situation, answers: tuple[Outcome, ...]) -> Iterator[Move]:
        """The edge crossed with these answers to its operations, and with all that may follow them."""
        at, seen = copy.copy(before.at), before.seen
        left = iter(answers)
        for operation, effect in self._effects[edge]:
            answer: Outcome = None
            if operation:
                answer = next(left, self)
                if answer is self:
                    for possible in self._answers(operation, seen):
                        yield from self._crossing(edge, before, (*answers, possible))
                    return
                seen = _seeing(seen, operation, answer)
            if effect:
                effect(at, answer)
        place = edge.target
        if place is Junction.RESUMED:
            assert before.at.resume_at is not None
            place = before.at.resume_at
        else:
            seen = _arriving(seen, place)
        assert seen.epochs <= self.bounds.epochs, "more epochs than planned, so perhaps without end"
        assert seen.batches <= self.bounds.batches, "more batches than there are, so perhaps without end"
        assert len(seen.open) == len({*seen.open}), "a bracket was opened again"
        yield Move(edge, before, answers, self._situation(at, seen), place)

    def _answers(self, operation: Operation, seen: Seen) -> tuple[Outcome, ...]:
        match operation:
            case Operation.FETCH:
                return self._sizes(BATCH_SIZE) if seen.fetched < self.bounds.batches else (None,)
            case Operation.FETCH_VALID:
                return self._sizes(VALID_BATCH_SIZE) if seen.valid_fetched < self.bounds.valid_batches else (None,)
            case Operation.STEP:
                return (True, False)
        return (None,)

    def _sizes(self, size: int) -> tuple[Outcome, ...]:
        return (size, 0) if self.bounds.weightless else (size,)

    def _failed(self, situation: Situation) -> Situation:
        return self._situation(attrs.evolve(situation.at, error="boom"), situation.seen)

    def _situation(self, at: Draft, seen: Seen) -> Situation:
        number = self._numbers.setdefault((_key(at), seen), len(self._situations))
        if number == len(self._situations):
            self._situations.append(Situation(at, seen))
            self._numbers[id(self._situations[number])] = number
        return self._situations[number]

    def _encoded(self, state: State) -> int:
        place, flags, situation = state
        return (self._numbers[id(situation)] * len(_PLACES) + _PLACE_NUMBER[place]) << _FLAG_BITS | flags

    def _decoded(self, number: int) -> State:
        situation, place = divmod(number >> _FLAG_BITS, len(_PLACES))
        return _PLACES[place], number & _ALL, self._situations[situation]


def _seeing(seen: Seen, operation: Operation, answer: Outcome) -> Seen:
    match operation:
        case Operation.OPEN:
            return seen._replace(fetched=0)
        case Operation.FETCH if answer is not None:
            to_come = tuple(i for i, every in enumerate(seen.players) if seen.iterations % every == every - 1)
            return seen._replace(fetched=seen.fetched + 1, size=answer, undecided=False, to_come=to_come, shared=answer)
        case Operation.OPEN_VALID:
            return seen._replace(valid_fetched=0)
        case Operation.FETCH_VALID if answer is not None:
            return seen._replace(valid_fetched=seen.valid_fetched + 1)
        case Operation.FORWARD:
            return seen._replace(undecided=True)
        case Operation.DISCARD:
            return seen._replace(undecided=False)
        case Operation.BACKWARD:
            return seen._replace(window=seen.window + 1, undecided=False)
        case Operation.STEP:
            taken = tuple(n + (bool(answer) and i == seen.playing) for i, n in enumerate(seen.taken))
            return seen._replace(
                window=0, steps=seen.steps + bool(answer), taken=taken, fresh=seen.fresh and not answer
            )
        case Operation.ZERO:
            return seen._replace(window=0)
        case Operation.ABANDON:
            return seen._replace(open=seen.open[:-1])
    return seen


def _arriving(seen: Seen, place: Place) -> Seen:
    if place in BRACKETS:
        seen = seen._replace(open=(*seen.open, BRACKETS[place][1]))
    elif place in CLOSES:
        seen = seen._replace(open=seen.open[:-1])
    match place:
        case Phase.EPOCH_BEGIN | Junction.NO_EPOCH:
            return seen._replace(batches=0, playing=-1)
        case Junction.NEXT_TURN:
            windows = tuple(seen.window if i == seen.playing else window for i, window in enumerate(seen.windows))
            playing = seen.to_come[0] if seen.to_come else next((i for i, n in enumerate(windows) if n), seen.playing)
            others = tuple(0 if i == playing else window for i, window in enumerate(windows))
            return seen._replace(
                playing=playing, to_come=seen.to_come[1:], window=windows[playing], windows=others, size=seen.shared
            )
        case Phase.BATCH_END | Junction.BATCHES_OVER if seen.to_come:
            return seen._replace(fresh=False) if place is Phase.BATCH_END else _batch_over(seen)
        case Phase.BATCH_END:
            return _batch_over(seen)
        case Phase.VALID_END:
            return seen._replace(fresh=True)
        case Phase.EPOCH_END:
            return seen._replace(epochs=seen.epochs + 1, playing=-1)
    return seen


def _batch_over(seen: Seen) -> Seen:
    return seen._replace(
        batches=seen.batches + 1,
        iterations=seen.iterations + 1,
        samples=seen.samples + (seen.shared if seen.players else seen.size),
        fresh=False,
        to_come=(),
    )
