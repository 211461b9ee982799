"""Laws of decisions that are kept: who declares what it reads is asked less often, and nothing else changes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsm_train import Plan, Scripted, Supervised, cursor, rounds, run, start, watch
from fsm_train.callbacks import accumulate, clip_grad_norm, clip_grad_value, during, freeze, limit, record, schedule
from fsm_train.callbacks import weight_penalty as penalty
from fsm_train.core import reads
from fsm_train.core.callback import Callback
from fsm_train.core.phase import Phase
from fsm_train.core.reads import MOST
from fsm_train.core.state import State
from fsm_train.core.transition import Transition
from property_tests import strategies as our
from tests.diabetes_training import batches, net, sgd
from tests.models import same_weights

LIBRARY: dict[str, Callable[[], Callback[Any]]] = {
    "accumulate": lambda: accumulate(3),
    "accumulate from an epoch on": lambda: accumulate({0: 1, 1: 2}, name="later"),
    "accumulate and drop": lambda: accumulate(2, drop_last=True, name="drop"),
    "accumulate in a window": lambda: during(accumulate(2, name="window"), epochs=(1, 2)),
    "clip": lambda: clip_grad_norm(0.5),
    "clip in a window": lambda: during(clip_grad_norm(0.1, name="late"), epochs=(1, None)),
    "clip values": lambda: clip_grad_value(0.1),
    "penalty": lambda: penalty(l2=0.01),
    "freeze": lambda: freeze("0.*", until_epoch=2),
    "record": lambda: record("batch_size"),
    "limit": lambda: limit(batches=3),
    "schedule": lambda: schedule(lr=lambda step: 1 / (1 + step)),
}
ONE_OF = {"accumulate", "accumulate from an epoch on", "accumulate and drop"}
"""Two of these are refused."""

SIZES = (8, 8, 5, 6)


def undeclared(callbacks: list[Callback[Any]]) -> list[Callback[Any]]:
    """The same callbacks, of which it is not known what they read."""
    return [attrs.evolve(callback, reads=None) for callback in callbacks]


@given(our.worlds(), our.plans(), st.data())
def test_kept_decisions_are_those_that_would_be_made(world: our.World, plan: Any, data: st.DataObject) -> None:
    """With and without the declaration: the same is done in the same order, and the last state is the same."""
    has_valid = world.valid_batches is not None
    drawn = [data.draw(our.declaring(name, has_valid=has_valid)) for name in our.NAMES[: data.draw(st.integers(1, 3))]]
    declared, asked = our.Training(world, plan, ()).start(), our.Training(world, plan, ()).start()
    assert run(declared, drawn) == run(asked, undeclared(drawn))
    assert declared.workload.told == asked.workload.told


@given(st.sets(st.sampled_from(sorted(LIBRARY)), max_size=5).filter(lambda names: len(names & ONE_OF) < 2))
def test_library_trains_the_same_weights_and_writes_the_same_log(names: set[str]) -> None:
    """Whatever of it is used, with and without declarations, a log, and compiled loops: equal bits and equal bytes."""
    callbacks = [LIBRARY[name]() for name in sorted(names)]
    found = [
        trained(chosen, logged=logged, compiled=compiled)
        for chosen in (callbacks, undeclared(callbacks))
        for logged in (True, False)
        for compiled in (True, False)
    ]
    for final, model, log in found[1:]:
        assert final == found[0][0]
        assert same_weights(model, found[0][1])
        assert log in (None, found[0][2])


def trained(
    callbacks: list[Callback[Any]], *, logged: bool, compiled: bool
) -> tuple[State, torch.nn.Module, bytes | None]:
    """The last state, the model, and the bytes of the log."""
    torch.manual_seed(0)
    model = net()
    work = Supervised(model, sgd(model), torch.nn.MSELoss(), batches(*SIZES))
    needed = 0 if compiled else 10**6
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(rounds, "NEEDED", needed):
        path = Path(folder) / "run.jsonl"
        final = run(start(work, epochs=3, seed=1), callbacks, log=path if logged else None)
        return final, model, path.read_bytes() if logged else None


# ------------------------------------------------------------------------------------ it is kept


def asked_by(callback_reads: set[str] | None, batches: int = 12, epochs: int = 2) -> int:
    """How often a callback at BATCH_END is asked, that declares this."""
    asked = []
    callback = Callback("a", (Phase.BATCH_END,), lambda state, memory: asked.append(1), reads=callback_reads)
    run(start(Scripted(batches=batches), epochs=epochs), [callback])
    return len(asked)


def test_who_declares_is_asked_once_for_each_combination() -> None:
    """Once where nothing is read, once an epoch where that is read, and each time where nothing is declared."""
    assert [asked_by(reads) for reads in (set(), {"epoch"}, {"pending", "flags"}, None)] == [1, 2, 1, 24]


def test_kept_decisions_are_bounded() -> None:
    """With more combinations than are kept, those before are forgotten, and each is asked about once more."""
    epochs = MOST + 5
    assert asked_by({"epoch"}, batches=2, epochs=epochs) == epochs


def remembers(state: State, memory: Any) -> Transition:
    return Transition(memory=memory + 1)


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (watch, "compared_by", lambda callbacks: lambda at: None),
        (reads.KeptDecision, "holds", lambda kept, memory: True),
        (cursor, "kept_decision", lambda state, *given: reads.KeptDecision({}, state, state.flags, {}, ())),
    ],
    ids=["nothing compared", "memories not compared", "flags, memories and commands lost"],
)
def test_broken_keeping_is_caught(owner: Any, name: str, broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these mistakes changes what a training does."""

    def lasts(epochs: int) -> tuple[State, list[object]]:
        counting = Callback("a", (Phase.EPOCH_BEGIN,), remembers, memory=0, reads=())
        begun = our.Training(our.World(batches=(5, 4)), Plan(epochs=epochs), ()).start()
        final = run(begun, [accumulate(2), counting])
        return final, begun.workload.told

    right = lasts(3)
    monkeypatch.setattr(owner, name, broken)
    assert lasts(3) != right
