"""Laws of the event log: it loses nothing, a replay of it never differs, and what-if is never wrong."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import attrs
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from fsm_train import (
    Callback,
    CallbackError,
    Flag,
    LogError,
    Phase,
    Recorded,
    Scripted,
    State,
    Transition,
    diff,
    extend,
    iterate,
    read_log,
    replay,
    start,
    what_if,
)
from fsm_train.callbacks import accumulate, early_stopping, reduce_on_plateau, stop_at
from fsm_train.commands import KeepWeights, RestoreWeights
from fsm_train.core.facts import KNOWN_AT
from fsm_train.core.phase import CONSULTED
from fsm_train.core.table import READABLE
from fsm_train.eventlog.entries import entries
from fsm_train.eventlog.render import as_text, summarize
from fsm_train.interpreter import run
from fsm_train.view.building import page
from fsm_train.view.packing import packed_run
from tests.eventlog.log_files import forged, library, logged


@attrs.frozen
class Seen:
    """A memory with a bit of everything that a memory can hold."""

    times: int = 0
    last: float = math.nan
    names: tuple[str, ...] = ()


def random_callback(seed: int, name: str, *, sets_lr: bool) -> Callback[Any]:
    """A callback that does something arbitrary, and always the same, in each state."""
    chance = Random(seed)
    phases = tuple(chance.sample(CONSULTED, chance.randint(1, 5)))
    facts = [fact for fact, known in KNOWN_AT.items() if known.intersection(phases)]
    needs = frozenset(chance.sample(sorted(facts), chance.randint(0, 1)))

    def decide(state: State, seen: Seen) -> Transition | None:
        told = sorted((fact, repr(value)) for fact, value in state.facts.items())
        chance = Random(f"{seed} {state.phase} {state.iteration} {state.epoch} {state.valid_batch} {told} {seen.times}")
        if chance.random() < 0.4:
            return None
        flags = Flag.NONE
        for flag in Flag:
            possible = state.phase in READABLE[flag] and (state.has_valid or flag is not Flag.VALIDATE)
            if possible and chance.random() < (0.02 if flag in (Flag.SUSPEND, Flag.STOP_TRAINING) else 0.15):
                flags |= flag
        last = state.facts.get("loss", state.metrics.get("valid_loss", math.inf))
        return Transition(
            flags=flags,
            hyper={"lr": chance.random()} if sets_lr and chance.random() < 0.5 else {},
            memory=Seen(seen.times + 1, last, (*seen.names[-2:], state.phase.value)),
            commands=(KeepWeights("w"), RestoreWeights(f"{name} {chance.random() < 0.5}"))[: chance.randint(0, 2)],
            reason=chance.choice(("", "no reason", "pâte à modeler \x1b[2J")),
        )

    return Callback(name, phases, decide, Seen(), needs, chance.choice((1, 1, 2, 3)), chance.randint(-1, 1))


def random_workload(seed: int) -> Scripted:
    """A workload that measures arbitrary things, holds steps back, and is interrupted now and then."""

    def measured(what: str, spread: Callable[[Random], float]) -> Callable[[State], float]:
        return lambda state: spread(Random(f"{seed} {what} {state.epoch} {state.iteration} {state.valid_batch}"))

    def loss(state: State) -> float:
        chance = Random(f"{seed} interrupted {state.iteration}")
        if chance.random() < 0.03:
            work.interrupt = chance.choice(("SIGTERM", "SIGINT"))
        return measured("loss", lambda chance: chance.choice((math.nan, math.inf, -0.0, chance.gauss(1, 1))))(state)

    valid: dict[str, Any] = {}
    if seed % 4:
        valid = {"valid_loss": measured("valid_loss", lambda chance: chance.choice((math.nan, chance.random())))}
    work = Scripted(
        batches=measured("batches", lambda chance: chance.randint(1, 6)),
        batch_size=measured("size", lambda chance: chance.choice((32, 32, 32, 7))),
        loss=loss,
        valid_batches=measured("valid_batches", lambda chance: chance.randint(1, 3)),
        stepped=measured("stepped", lambda chance: chance.random() < 0.8),
        grad_norm=measured("grad_norm", lambda chance: chance.expovariate(1)),
        **valid,
    )
    return work


def trained(path: Path, callbacks: list[Callback[Any]], work: Scripted, epochs: int = 3) -> State:
    """Train to the end, through all suspensions, and then for one epoch more."""
    state = start(work, epochs=epochs, seed=1)
    for _ in range(60):
        (state,) = deque(iterate(state, callbacks, log=path), maxlen=1)
        if state.phase is Phase.DONE:
            break
    if state.phase is Phase.DONE and Flag.STOP_TRAINING not in state.flags:
        (state,) = deque(iterate(extend(state, epochs=1), callbacks, log=path), maxlen=1)
    return state


@st.composite
def trainings(draw: st.DrawFn) -> tuple[list[Callback[Any]], int]:
    seeds = draw(st.lists(st.integers(0, 10**6), max_size=4, unique=True))
    callbacks = [random_callback(seed, f"c{i}", sets_lr=i == 0) for i, seed in enumerate(seeds)]
    return callbacks, draw(st.integers(0, 10**6))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def fresh(folder: Path, name: str = "run.jsonl") -> Path:
    path = folder / name
    path.unlink(missing_ok=True)
    return path


@given(trainings())
def test_an_unchanged_log_never_differs(folder: Path, training: tuple[list[Callback[Any]], int]) -> None:
    """Whatever callbacks did in whatever training, deciding again decides the same, to the same last state."""
    callbacks, seed = training
    path = fresh(folder)
    final = trained(path, callbacks, random_workload(seed))

    again = replay(path, callbacks)

    assert again.divergence is None
    assert again.ok
    assert again.lines == sum(entry.counts and entry.event != "header" for entry in entries(path))
    assert repr(again.state) == repr(attrs.evolve(final, workload=None))


@given(trainings())
def test_a_replay_writes_the_log_that_it_reads(folder: Path, training: tuple[list[Callback[Any]], int]) -> None:
    """The log of a replayed training is that of the training, byte for byte."""
    callbacks, seed = training
    path, again = fresh(folder), fresh(folder, "again.jsonl")
    trained(path, callbacks, random_workload(seed))
    recorded = Recorded(path)

    last = None
    while recorded.next_header is not None:
        (last,) = deque(iterate(recorded.start(last), callbacks, log=again), maxlen=1)

    assert again.read_bytes() == path.read_bytes()


@given(trainings())
def test_looking_on_changes_nothing_in_the_log(folder: Path, training: tuple[list[Callback[Any]], int]) -> None:
    """Fused and unfused runs, watched by others or not, have equal logs."""
    callbacks, seed = training
    path, watched = fresh(folder), fresh(folder, "watched.jsonl")
    deque(iterate(start(random_workload(seed), epochs=2), callbacks, log=path), maxlen=1)
    deque(iterate(start(random_workload(seed), epochs=2), callbacks, log=watched, at=CONSULTED), maxlen=1)

    assert path.read_bytes() == watched.read_bytes()
    assert diff(path, watched) is None


# ------------------------------------------------------------------------------------ what if

MONITORING = st.one_of(
    st.builds(early_stopping, patience=st.integers(0, 6), min_delta=st.sampled_from((0.0, 0.05))),
    st.builds(stop_at, st.just("valid_loss"), st.floats(0.1, 1.5)),
    st.builds(reduce_on_plateau, patience=st.integers(1, 6)),
)


def learning(seed: int) -> Scripted:
    """A training whose metrics depend on what was done to it: the rate, and how many steps there were."""
    done = {"steps": 0.0}

    class Learning(Scripted):
        def step(self, state: State | None = None) -> bool:
            done["steps"] += self._hyper["lr"]  # type: ignore[operator]
            return super().step(state)

    def valid_loss(state: State) -> float:
        noise = Random(f"{seed} {state.iteration}").gauss(0, 0.15)
        return 1.5 * math.exp(-done["steps"]) + 0.1 + abs(noise)

    return Learning(batches=4, valid_loss=valid_loss)


@settings(max_examples=200)
@given(seed=st.integers(0, 10**6), then=MONITORING, now=MONITORING, window=st.sampled_from((1, 2)))
def test_what_if_is_never_wrong(folder: Path, seed: int, then: Callback[Any], now: Callback[Any], window: int) -> None:
    """What is answered is what training again with the other callback gives; what can't be known is not answered."""
    others = [accumulate(window)]
    path = fresh(folder)
    run(start(learning(seed), epochs=10), [then, *others], log=path)

    answer = what_if(path, [now], without=[then.name] if then.name != now.name else [])

    event(f"answered: {answer.verdict}")  # the shares are shown by pytest --hypothesis-show-statistics
    really = run(start(learning(seed), epochs=10), [now, *others])
    if answer.verdict == "exact":
        assert answer.stopped_at == really.epoch
        assert answer.state.history == really.history
        assert (answer.state.step, answer.state.iteration) == (really.step, really.iteration)
        assert answer.state.reason == really.reason
    elif answer.verdict == "censored":
        assert really.epoch > answer.state.epoch
        assert really.history[: answer.state.epoch] == answer.state.history
    else:
        assert really.history[: answer.state.epoch] == answer.state.history


# ------------------------------------------------------------------------------------ reading

JSON = st.one_of(
    *(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3), st.just(2**63)),
    *(
        st.just([]),
        st.just({}),
        st.just([None]),
        st.just([[32, 1]]),
        st.just({"$float": "nan"}),
        st.just({"$": "Best"}),
    ),
)


@given(st.data())
def test_any_forgery_is_an_answer_or_a_sentence(folder: Path, data: st.DataObject) -> None:
    """Whatever is put in whatever place of a log, with digests that fit: no exception but that it is wrong."""
    path = fresh(folder)
    logged(path, library(), epochs=4)

    def change(lines: list[dict[str, Any]]) -> None:
        place: Any = data.draw(st.sampled_from(lines))
        while True:
            keys = [k for k in (place if isinstance(place, dict) else range(len(place))) if k not in ("digest", "seq")]
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.integers(0, 3)) == 0:
                place[key] = data.draw(JSON)
                return
            place = place[key]

    forged(path, change)
    for ask in (
        lambda: list(read_log(path)),
        lambda: replay(path),
        lambda: what_if(path, [early_stopping(patience=2)]),
        lambda: diff(path, path),
        lambda: as_text(summarize(path)),
        lambda: page({"runs": [packed_run(path).packed()]}, ""),
    ):
        with contextlib.suppress(LogError, CallbackError):
            ask()


@given(st.binary(max_size=400))
def test_random_bytes_are_refused_in_a_sentence(folder: Path, data: bytes) -> None:
    """A file of anything at all is an error that says so, and never another exception."""
    path = fresh(folder)
    path.write_bytes(data)

    with pytest.raises(LogError):
        list(read_log(path))
