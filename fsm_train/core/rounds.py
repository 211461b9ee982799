"""Rounds: the way from one batch to the next, written down as the loop that one would write by hand.

Which way the machine goes from the end of a batch to the end of the next follows from the table, from who looks where,
and from a few values that are asked on the way. So the way can be a function without a lookup: its text is made of
the table for one set of looks, and compiled once in a process, as attrs makes methods.

Rule of this file: pure. What is written down does what `Cursor.walk` does path by path. Where the table leads
elsewhere, or somebody asks for something that is not foreseen, it returns the place where the machine stands.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from types import CodeType

import attrs

from .effects import AFTER, ON_ENTRY, Effect
from .fuse import Path, known_paths
from .guards import batches_over, exhausted, steps_reached, weighs_nothing
from .phase import Flag, Junction, Operation, Phase, Place
from .table import Predicate, Term

Tail = tuple[Phase, Flag]
"""A place, and the flags that callbacks have raised there."""

Ways = Mapping[Tail, tuple[tuple[Path, ...], ...]]
"""From the end of a batch, and from each tail, to the end of the next batch: at each place its paths."""

START: Tail = (Phase.BATCH_END, Flag.NONE)


@attrs.frozen
class Look:
    """How a place is looked at.

    Attributes:
        remember: for each callback, in order, whether it has a memory.
        keeps: whether what they decide is kept.
        only_asks: whether there is nothing to do but to ask them: no sink to tell, no fact to measure.
    """

    remember: tuple[bool, ...]
    keeps: bool = False
    only_asks: bool = True


@attrs.frozen
class Doing:
    """What is under way at some point of a round: an operation, a decision, or neither.

    Attributes:
        path: the path that is walked.
        operation: the operation of it; None where it arrives.
        place: where callbacks are asked, or what they asked for is done.
        asked: the index of the callback that is asked.
    """

    path: Path | None = None
    operation: Operation | None = None
    place: Phase | None = None
    asked: int | None = None


@attrs.frozen
class Round:
    """A round as text, and what the names in it stand for.

    Attributes:
        text: a function `go_around(cursor, at, until)`, which goes around until it returns a place.
        doing: what is under way, by the number that the text has for it.
        operations: by name, those that one function of the workload does.
        flags: by name, those that may be raised.
        looks: the places that are looked at, with the flags that are raised on arriving there.
    """

    text: str
    doing: tuple[Doing, ...]
    operations: Mapping[str, tuple[Operation, ...]]
    flags: Mapping[str, Flag]
    looks: Set[Tail]

    @functools.cached_property
    def name(self) -> str:
        """What a traceback calls the text: another name for each."""
        return f"<round {zlib.crc32(self.text.encode()):08x} of fsm_train>"

    @functools.cached_property
    def code(self) -> CodeType:
        return compile(self.text, self.name, "exec")


def ways(watched: frozenset[Place], settled: frozenset[tuple[Term, bool]], tails: Set[Tail]) -> Ways:
    """The way around, and that from each tail; their places are those of a batch."""
    in_order = sorted(tails, key=lambda tail: (tail[0].value, tail[1].value))
    return {tail: tuple(_way(*tail, watched, settled)) for tail in (START, *in_order)}


def _way(
    place: Place, flags: Flag, watched: frozenset[Place], settled: frozenset[tuple[Term, bool]]
) -> Iterator[tuple[Path, ...]]:
    """From here, and on where no guard before the last row of a place holds: those are asked on the way."""
    while True:
        yield (paths := known_paths(place, flags, watched, settled))
        place, flags = paths[-1].target, paths[-1].flags
        if place is Phase.BATCH_END:
            return


@functools.lru_cache(maxsize=256)
def round_of(
    watched: frozenset[Place],
    settled: frozenset[tuple[Term, bool]],
    looks: frozenset[tuple[Phase, Look]],
    fused: frozenset[tuple[Operation, ...]],
    tails: frozenset[Tail] = frozenset(),
) -> Round:
    """The round for these looks, in a training without players.

    Args:
        watched: the places where somebody looks.
        settled: what the plan and the workload settle, as `settled_in_run` gives it.
        looks: how the callbacks are asked at those of these places that a round passes.
        fused: sequences of operations that one function of the workload does.
        tails: what is foreseen that callbacks raise.
    """
    return _Writer(ways(watched, settled, tails), watched, settled, dict(looks), fused).round()


SOURCE: Mapping[Effect | Predicate, str] = {
    AFTER[Operation.FETCH]: """\
at.exhausted = outcome is None
if isinstance(outcome, (int, float)):
    at.fetched = outcome""",
    AFTER[Operation.BACKWARD]: "at.pending += 1",
    AFTER[Operation.STEP]: """\
at.pending = 0
if outcome:
    at.step += 1
    at.step_hyper = at.hyper""",
    AFTER[Operation.ZERO]: "at.pending = 0",
    ON_ENTRY[Phase.BATCH_END]: """\
at.batch += 1
at.iteration += 1
at.samples += at.fetched""",
    batches_over: "at.batches_over",
    exhausted: "at.exhausted",
    weighs_nothing: "at.fetched == 0",
    steps_reached: "at.plan.max_steps is not None and at.step >= at.plan.max_steps",
}
"""The effects and predicates of a batch, as text that does the same where there are no players and batches to come."""


class _Writer:
    """Writes a round line by line."""

    def __init__(
        self,
        found: Ways,
        watched: frozenset[Place],
        settled: frozenset[tuple[Term, bool]],
        looks: Mapping[Phase, Look],
        fused: Set[tuple[Operation, ...]],
    ) -> None:
        self.ways, self.looks, self.fused = found, looks, fused
        self.watched, self.settled = watched, settled
        self.lines: list[str] = []
        self.doing = [Doing()]
        self.operations: dict[str, tuple[Operation, ...]] = {}
        self.flags: dict[str, Flag] = {}
        self.looked: set[Tail] = set()

    def round(self) -> Round:
        self.write(0, "def go_around(cursor, at, until):")
        self.write(1, "work, doing, answers, acted, noted = cursor.work, 0, [], True, None")
        self.show(1)
        self.write(1, "try:")
        self.write(2, "while True:")
        self.write(3, "if at.iteration >= until or work.interrupt is not None:")
        self.write(4, "return BATCH_END")
        self.way(START, 3)
        self.write(1, "except BaseException as error:")
        self.write(2, "at.show()")  # what is held of the last state stays as it was
        self.write(2, "failed(cursor, doing, state, error)")
        self.write(2, "raise")
        text = "\n".join(self.lines) + "\n"
        return Round(text, tuple(self.doing), self.operations, self.flags, frozenset(self.looked))

    def write(self, depth: int, line: str) -> None:
        self.lines.append("    " * depth + line)

    def show(self, depth: int) -> None:
        """Show a state, and count who refers to it. A debugger may refer to each, so they are counted each time."""
        self.write(depth, "state, values = at.show()")
        self.write(depth, "alone, shared = getrefcount(state), getrefcount(values)")

    def now_doing(self, depth: int, doing: Doing) -> None:
        self.write(depth, f"doing = {len(self.doing)}")
        self.doing.append(doing)

    def way(self, tail: Tail, depth: int) -> None:
        """From a tail to the end of the next batch, and around again."""
        place: Place = tail[0]
        flags = tail[1]
        for paths in self.ways[tail]:
            for path in paths[:-1]:
                self.write(depth, f"if {' and '.join(SOURCE[term] for term in path.predicates)}:")
                self.write(depth + 1, f"return {place.name}")
            path = paths[-1]
            if place is Phase.BATCH_END:
                self.write(depth, "if acted or at.pending != noted:")
                self.write(depth + 1, "cursor.note_boundary()")
                self.write(depth + 1, f"acted, noted = cursor.flags is not {self.raised(Flag.NONE)}, at.pending")
            self.walk(path, depth)
            self.write(depth, "doing = 0")
            if path.last_phase is not None:
                self.write(depth, f"at.phase = {path.last_phase.name}")
            if path.flags is not flags or place is Phase.BATCH_END:
                self.write(depth, f"cursor.flags = at.flags = {self.raised(path.flags)}")
            place, flags = path.target, path.flags
            self.write(depth, f"cursor.place = {place.name}")
            if place is Junction.FETCHED and self.looks:
                self.write(depth, "facts = batch_size_alone(at.fetched)")
            if isinstance(place, Phase) and place in self.looks:
                self.look(place, flags, depth)
        self.write(depth, "continue" if self.goes_on(flags) else "return BATCH_END")

    def goes_on(self, flags: Flag) -> bool:
        """Whether a batch that ends with these flags is followed by the next as one without flags is."""
        return _onward(known_paths(Phase.BATCH_END, flags, self.watched, self.settled)) == _onward(self.ways[START][0])

    def walk(self, path: Path, depth: int) -> None:
        """The operations of a path and what they do to the state, and what arriving does."""
        if path.operations in self.fused:
            self.operate(path.operations, path, depth)
            for _, effect in path.moves:
                self.effect(effect, depth)
            return
        for operation, effect in path.moves:
            if operation is None:
                self.now_doing(depth, Doing(path))
            else:
                self.operate((operation,), path, depth)
            self.effect(effect, depth)

    def operate(self, operations: tuple[Operation, ...], path: Path, depth: int) -> None:
        name = "_".join(operation.value for operation in operations)
        self.operations[name] = operations
        self.now_doing(depth, Doing(path, operations[0]))
        self.write(depth, f"outcome = {name}()")

    def effect(self, effect: Effect | None, depth: int) -> None:
        for line in SOURCE[effect].split("\n") if effect is not None else ():
            self.write(depth, line)

    def raised(self, flags: Flag) -> str:
        """The name of these flags."""
        name = "_".join(["FLAGS", *(str(flag.name) for flag in flags)]) if flags else "NO_FLAGS"
        self.flags[name] = flags
        return name

    def look(self, place: Phase, flags: Flag, depth: int) -> None:
        """Ask the callbacks of a place, do what they ask for, and go on as they ask if that is foreseen."""
        self.looked.add((place, flags))
        look = self.looks[place]
        if not look.only_asks:
            self.now_doing(depth, Doing(place=place))
            self.write(depth, f"cursor.watched = watched_{place.name}")
            self.write(depth, "cursor.look()")
            if look.remember:
                self.write(depth, "acted = True")
        elif look.keeps:
            self.now_doing(depth, Doing(place=place))
            self.write(depth, "at.facts = facts")
            self.write(depth, f"kept = kept_{place.name}_{flags.value}.get(compared_{place.name}(at))")
            self.write(depth, "if kept is not None and (kept.all_memories is at.memory or kept.holds(at.memory)):")
            self.write(depth + 1, "if kept.acts:")
            self.write(depth + 2, f"cursor.act_again(kept, watched_{place.name})")
            self.write(depth + 2, "acted = True")
            self.write(depth, "else:")
            self.ask(place, look, depth + 1)
        else:
            self.write(depth, "at.facts = facts")
            self.ask(place, look, depth)
        self.write(depth, "doing = 0")
        self.write(depth, f"if cursor.flags is not {self.raised(flags)}:")
        self.write(depth + 1, "at.flags = cursor.flags")
        for tail in self.ways:
            if tail[0] is place and tail[1] is not flags and flags in tail[1]:  # none falls where callbacks are asked
                self.write(depth + 1, f"if at.flags is {self.raised(tail[1])}:")
                self.way(tail, depth + 2)
        self.write(depth + 1, f"return {place.name}")

    def ask(self, place: Phase, look: Look, depth: int) -> None:
        """As `Cursor.look` does, but for the state: it shares its values with `at` until somebody keeps it."""
        name = place.name
        for i, remembers in enumerate(look.remember):
            self.now_doing(depth, Doing(place=place, asked=i))
            memory = f", at.memory.get(name_{name}_{i}, memory_{name}_{i})" if remembers else ""
            self.write(depth, f"answer = ask_{name}_{i}(state{memory})")
            self.write(depth, "if answer is not None and answer is not NOTHING:")
            self.now_doing(depth + 1, Doing(place=place))
            self.write(depth + 1, f"answers.append(accepted(callback_{name}_{i}, answer, state))")
            self.write(depth + 1, "answer = None")  # its commands may hold much, and are carried out soon
        self.now_doing(depth, Doing(place=place))
        self.write(depth, "if getrefcount(state) != alone or getrefcount(values) != shared or getweakrefcount(state):")
        self.show(depth + 1)
        self.write(depth, "if answers:")
        if look.keeps:
            self.write(depth + 1, "before = state")
            self.show(depth + 1)
            self.write(depth + 1, f"cursor.keep(watched_{name}, before, answers, cursor.act_on(before, answers))")
            self.write(depth + 1, "answers, before, acted = [], None, True")
            self.write(depth, "else:")
            self.write(depth + 1, f"cursor.keep(watched_{name}, state, answers, NOTHING_MERGED)")
        else:
            self.write(depth + 1, "cursor.act_on(state, answers)")
            self.write(depth + 1, "answers, acted = [], True")


def _onward(paths: Sequence[Path]) -> list[object]:
    """What is asked and done on leaving a place, whatever flags fall there."""
    last = paths[-1]
    return [[path.predicates for path in paths], last.moves, last.flags, last.target]
