"""Where a training is, and the one loop that takes it from place to place: pure and impure lines alternate.

measure → decide → do → record. Rule of this file: it decides nothing itself. Where to go is in the table, what to do
in the answers of the callbacks. From one batch to the next a round of `rounds.py` does what `walk` and `look` do, and
laps where nobody looks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import cast

from .bound_path import BoundPath
from .core.errors import CallbackError
from .core.failing import Boundary, Failure, advice_on, after_failure, where
from .core.fuse import known_paths, settled_in_run
from .core.laps import Lap, count_laps
from .core.merge import NOTHING_MERGED, Answer, Merged, consult, merged
from .core.phase import FINAL, Flag, Operation, Phase, Place
from .core.reads import MOST, KeptDecision, kept_decision
from .core.rhythm import Rhythm
from .core.runs import failed, interrupted
from .core.state import Draft, Hyper, State, hyper_read, replaced
from .core.table import LEAVES, ROWS, Outcome
from .core.transition import Command, Transition
from .core.turns import Players
from .core.under_way import hand_on
from .core.values import NO_FACTS, Facts, FrozenMap, batch_size_alone
from .core.workload import Workload
from .rounds import Rounds
from .watch import Watch, Watched


class Cursor:
    """Where a training is, and how it advances to the next watched place.

    Attributes:
        state: the last one that `look` made. The draft is newer.
        place, flags: where the machine stands, and what is raised. They are newer here than in the draft.
        draft: all else; its phase is the last one that was passed.
        watched: the observers of this place; None if there are none.
        doing: the operation that failed.
        passed: the last phase before it.
        deciding: whether it failed while callbacks were consulted, or what they asked for was done.
        boundary, commands: the last place where the training could have been left, and what was carried out since.
    """

    def __init__(self, state: State, work: Workload, watch: Watch, unwrapped: Workload) -> None:
        self.work = work
        self.read = work.read  # a proxy looks it up in the workload that it wraps, each time
        self.unwrapped = unwrapped
        self.watch = watch
        self.rhythm = None if state.players else watch.rhythm()  # with turns a batch is counted elsewhere too
        self.methods: dict[Operation, Callable[[], Outcome]] = {}
        self.layers: dict[frozenset[Place], tuple[dict[Place, dict[Flag, list[BoundPath]]], Rounds]] = {}
        self.settled = settled_in_run(state)
        self.use_layer(frozenset(watch.at) if self.rhythm is None else self.rhythm.places(state))
        self.state = state
        self.draft: Draft = state.draft()
        self.flags = state.flags
        self.doing: Operation | None = None
        self.passed: Phase | None = None
        self.deciding = False
        self.boundary: tuple[Mapping[str, object], Mapping[str, Hyper], str, Flag, int, bool, Players] | None = None
        self.commands: list[Command] = []
        self.stand_at(state.phase)

    def use_layer(self, places: frozenset[Place]) -> None:
        """Take paths that end at these places, where somebody observes."""
        layer = self.layers.get(places)
        if layer is None:
            rounds = Rounds(self.watch, places, self.settled, self.work, self.method)
            layer = self.layers[places] = {place: {} for place in ROWS}, rounds
        self.places = places
        self.paths_by_place, self.rounds = layer

    def stand_at(self, place: Place) -> None:
        self.place = place
        self.watched: Watched | None = self.watch.at.get(place)
        self.paths_here = self.paths_by_place[place]  # the paths from this place, by the flags that are raised

    def now(self, facts: Facts = NO_FACTS) -> State:
        """The state of this moment."""
        phase = self.place if isinstance(self.place, Phase) else self.draft.phase
        return replaced(self.draft, {"phase": phase, "flags": self.flags, "facts": facts})

    def take_over(self, state: State) -> None:
        """Continue from this state, which a pure function made of the one before."""
        self.state, self.flags, self.draft = state, state.flags, state.draft()

    def method(self, operation: Operation) -> Callable[[], Outcome]:
        """The workload's method for this operation, given the state if it wants it; looked up once in a run."""
        if operation is Operation.FINISH:
            return self.finish
        if operation not in self.methods:
            method: Callable[..., Outcome] = getattr(self.work, operation.value)
            informed = operation in self.work.informed
            self.methods[operation] = (lambda: method(self.now())) if informed else method
        return self.methods[operation]

    def finish(self) -> Outcome:
        """Finish; the hyper-parameters are the outcome, since the optimizer may have changed them itself."""
        self.work.finish(self.now())
        return hyper_read(self.draft.hyper, self.work.hyper())

    def paths(self) -> list[BoundPath]:
        """The paths from this place with these flags, kept for the next time."""
        found = known_paths(self.place, self.flags, self.places, self.settled)
        bound = self.paths_here[self.flags] = [BoundPath(path) for path in found]
        return bound

    def walk(self, stepwise: bool) -> bool:
        """Advance to the end; with `stepwise`, no further than to where a callback is consulted or `iterate` yields.

        Returns whether it came to such a place. It is one method, since calls and attributes are what a step costs.
        """
        work, draft, flags, paths_here = self.work, self.draft, self.flags, self.paths_here
        heeds_signals = self.place in LEAVES
        ends = self.place in FINAL
        while not ends:
            if heeds_signals and work.interrupt is not None:
                self.suspend(work.interrupt)
                draft, flags = self.draft, self.flags
            paths = paths_here.get(flags)
            if paths is None:
                paths = self.paths()
            for path in paths:  # the last one always holds
                if (predicate := path.predicate) is None or predicate(draft):
                    break
            resume_at = draft.resume_at
            if path.prepares:
                if not path.bound:
                    path.bind(self)
                if path.leaves_boundary:
                    self.note_boundary()
            if path.fetches_next and self.pass_batches(path, stepwise):
                flags, paths_here, watched = self.flags, self.paths_here, self.watched
                heeds_signals = self.place in LEAVES
            else:
                try:
                    for doing, do, effect in path.moves:  # noqa: B007  read where it raises
                        outcome = None if do is None else do()
                        if effect is not None:
                            effect(draft, outcome)
                except BaseException:
                    self.doing = work.doing or doing
                    self.passed = path.path.phase_before(self.doing) or draft.phase
                    raise
                if path.last_phase is not None:
                    draft.phase = path.last_phase
                # In the cursor too: what a command or a metric calls may ask where the training is.
                self.place, self.flags, self.paths_here = path.target, path.flags, path.next_paths
                flags, paths_here, watched = path.flags, path.next_paths, path.watched
                ends, heeds_signals = path.ends, path.heeds_signals
                if path.resumes:
                    assert resume_at is not None
                    self.stand_at(resume_at)
                    paths_here, watched = self.paths_here, None  # as if never left: no callback is consulted
                    heeds_signals = resume_at in LEAVES
                if path.counts and self.rhythm is not None:
                    if self.is_due_where_counted(self.rhythm) is False:
                        watched = None
                    paths_here = self.paths_here
            if watched is None:
                continue
            try:
                self.watched = watched
                looked = self.look()
            except BaseException:
                self.deciding = True
                raise
            flags = self.flags
            if looked and stepwise:
                return True
        return False

    def is_due_where_counted(self, rhythm: Rhythm) -> bool | None:
        """At a place where a batch or an epoch was counted: `Rhythm.is_due`. The paths are those until the next one."""
        self.use_layer(rhythm.places(self.draft))
        self.paths_here = self.paths_by_place[self.place]
        return rhythm.is_due(self.place, self.draft)

    def pass_batches(self, path: BoundPath, stepwise: bool) -> bool:
        """From the end of a batch take those that follow in laps or rounds. False, and nothing is done, without them.

        At the end of the last of them, `watched` are those who are due there now and then.
        """
        before, rhythm = self.draft.iteration, self.rhythm
        if path.laps is not None:
            self.take_laps(path, path.laps)
        elif stepwise or not self.go_around():
            return False
        ended = self.place is Phase.BATCH_END and self.draft.iteration > before
        due = rhythm is not None and ended and self.is_due_where_counted(rhythm)
        self.watched = self.watch.at[Phase.BATCH_END] if due else None
        return True

    def go_around(self) -> bool:
        """Go from the end of a batch to the next as a round does, until it returns. False if there is none."""
        go_around = self.rounds.next()
        if go_around is None:
            return False
        until = math.inf if self.rhythm is None else self.rhythm.same_until(self.draft)
        self.stand_at(go_around(self, self.draft, until))
        self.rounds.left(self.place, self.flags)
        return True

    def note_boundary(self) -> None:
        """Note what holds here, where the training can be left: a failure goes back to it."""
        draft = self.draft
        held = draft.memory, draft.hyper, draft.reason
        self.boundary = *held, self.flags, draft.pending, draft.batches_over, draft.players
        if self.commands:
            self.commands.clear()

    def take_laps(self, path: BoundPath, laps: Callable[[Lap], None]) -> None:
        """Take whole steps in a row, as long as the table leads from one to the next, until somebody is due."""
        draft = self.draft
        batches = None if self.rhythm is None else self.rhythm.batches_to_due(draft.iteration)
        steps = None if draft.plan.max_steps is None else draft.plan.max_steps - draft.step
        lap = Lap(draft.samples, steps=steps, batches=batches)
        try:
            laps(lap)
        except BaseException:
            count_laps(draft, lap)
            if lap.stepping:
                self.stand_at(path.target)
            under_way = path.step if lap.stepping and path.step else path.path
            self.doing = self.work.doing or under_way.operations[0]
            self.passed = under_way.phase_before(self.doing)
            raise
        count_laps(draft, lap)
        if lap.fetched_nothing:
            ((_, _, effect),) = path.moves
            assert effect is not None
            effect(draft, lap.ended_by)
            self.stand_at(path.target)

    def suspend(self, signal: str) -> None:
        """Act on a signal that asks to leave, here where the table lets a training leave."""
        self.take_over(interrupted(self.now(), signal))
        hand_on(self.unwrapped, signal)
        self.work.interrupt = None

    def look(self) -> bool:
        """At a watched place: measure, decide, do, record. Returns whether a callback was consulted."""
        watched = self.watched
        if watched is None:
            return False
        callbacks, sinks, needs = watched.due(self.draft) if watched.selective else watched.always
        if not (callbacks or sinks or watched.yields):
            return False
        given: Mapping[str, Transition]
        kept = None if needs else watched.decided_before(self.draft, self.flags)
        if kept is not None:
            if kept.acts:
                self.act_again(kept, watched)
            self.state = self.measured(needs)
            given = kept.answers
        else:
            self.state = before = self.measured(needs)
            answers = consult(callbacks, before)
            decision = NOTHING_MERGED
            if answers:
                decision = self.act_on(before, answers)
                self.state = self.draft.state(watched.place, self.flags, before.facts)
            self.keep(watched, before, answers, decision)
            given = {callback.name: answer for callback, answer in answers}
        for sink in sinks:
            sink.tell("see", self.state, given)
        return bool(callbacks) or watched.yields

    def keep(self, watched: Watched, state: State, answers: Sequence[Answer], decision: Merged) -> None:
        """Keep what the callbacks decided in this state, if they declare what they read and decide the same again."""
        if watched.compared is None or state.players:
            return
        kept = watched.kept.setdefault(state.flags, {})
        bind = functools.partial(self.work.bound, phase=watched.place)
        found = kept_decision(state, watched.callbacks, answers, decision, bind)
        if found is not None:
            if len(kept) >= MOST:
                kept.clear()
            kept[watched.compared(state)] = found

    def act_again(self, kept: KeptDecision, watched: Watched) -> None:
        """Do what was decided before in the same situation."""
        draft = self.draft
        self.flags = kept.flags
        if kept.added:
            draft.memory = FrozenMap({**draft.memory, **kept.added})
        for command, do in kept.commands:
            self.commands.append(command)
            if do is None:
                state = draft.state(watched.place, kept.flags, batch_size_alone(draft.fetched))
                self.work.carry_out(command, state)
            else:
                do()

    def act_on(self, state: State, answers: Sequence[Answer]) -> Merged:
        """Merge these answers to the state of this moment into the draft, and do what they ask for."""
        decision = changes, hyper, commands = merged(state, answers, self.watch.positions)
        if changes:
            self.draft.__dict__.update(changes)
            self.flags = self.draft.flags
        if hyper:
            self.work.set_hyper(hyper)
        now: State | None = None  # of its own, since who carries out a command may keep it; most of a batch need none
        for command in commands:
            self.commands.append(command)
            do = None if command.changes_hyper is not False else self.work.bound(command, state.phase)
            if do is not None:
                do()
                continue
            if now is None:
                now = replaced(state, changes)
            self.work.carry_out(command, now)
            if command.changes_hyper is not False:
                self.draft.hyper = hyper_read(now.hyper, self.work.hyper())
                now = replaced(now, {"hyper": self.draft.hyper})
        return decision

    def measured(self, needs: Set[str]) -> State:
        """The state of this moment, with the facts that observers need."""
        phase = cast("Phase", self.place)  # a junction has no observers
        if not needs:  # which is so where the training has ended: the last state has no facts, watched or not
            facts = NO_FACTS if phase in FINAL else batch_size_alone(self.draft.fetched)
            return self.draft.state(phase, self.flags, facts)
        state = self.draft.state(phase, self.flags, facts := Facts(batch_size=self.draft.fetched))
        # No one else has them yet, and a second state would cost a microsecond.
        dict.update(facts, self.read(needs, state))
        return state

    def fail(self, error: BaseException) -> None:
        """Leave in good order: tear down as the table says, and let the error say where it was."""
        if not isinstance(error, (CallbackError, GeneratorExit)):
            error.add_note(where(self.now(), self.doing, self.passed) + advice_on(error, self.doing))
        place: Place
        place, looks = after_failure(self.place, self.doing)
        self.take_over(failed(now := self.now(), error, self.failure(now)))
        tried: set[tuple[Place, bool]] = set()
        while (place, looks) not in tried:  # where the way out itself fails, there is no other
            tried.add((place, looks))
            self.stand_at(place)
            try:
                if looks:
                    self.look()
                self.walk(stepwise=False)
                return
            except Exception as another:
                error.add_note(f"And while this training was torn down: {type(another).__name__}: {another}")
                place, looks = after_failure(self.place, self.doing)

    def failure(self, now: State) -> Failure:
        """Where this failed."""
        boundary = Boundary(*self.boundary) if self.boundary else None
        phase = (self.passed if self.doing else None) or now.phase
        return Failure(phase, self.doing, self.deciding, now, boundary, tuple(self.commands))

    def drop_cached_paths(self) -> None:
        """Forget the paths: they reference the workload, and would keep the model alive."""
        self.methods.clear()
        for paths_by_place, rounds in self.layers.values():
            rounds.forget()
            for paths in paths_by_place.values():
                paths.clear()
