"""A law of the page: the state that it shows at a line is the state that a replay has there."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given

from fsm_train import Callback, State, Transition, replay
from fsm_train.encoding import encode
from fsm_train.eventlog import replayer
from fsm_train.eventlog.lines import answers_of, line_of
from fsm_train.view.columns import shown
from fsm_train.view.packing import PHASES, packed_run
from tests.view.unpacking import ints, points, states

from .test_eventlog import fresh, random_workload, trained, trainings

Seen = tuple[State, Mapping[str, Transition]]


@contextlib.contextmanager
def witnessed() -> Iterator[list[Seen]]:
    """The states that a replay within it finds to agree with a line, and the answers to them."""
    seen: list[Seen] = []

    class Witness(replayer._Replay):
        def compare(self, state: State, answers: Mapping[str, Transition]) -> None:
            before = self.lines
            super().compare(state, answers)
            if self.lines > before:
                seen.append((state, answers))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replayer, "_Replay", Witness)
        yield seen


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@given(trainings())
def test_each_line_shows_the_replayed_state(folder: Path, training: tuple[list[Callback[Any]], int]) -> None:
    """Unpacked from the columns: counters, flags, hyper-parameters, metrics, memories, and what was said."""
    callbacks, seed = training
    path = fresh(folder)
    trained(path, callbacks, random_workload(seed))
    run = orjson.loads(orjson.dumps(packed_run(path).packed()))
    phases = [PHASES[int(code)] for code in ints(run["phases"])]
    said = {track["name"]: points(track) for track in run["said"]}

    with witnessed() as seen:
        assert replay(path, callbacks).ok

    rows = [(row, unpacked) for row, unpacked in enumerate(states(run)) if phases[row] != "ready"]
    for (row, unpacked), (state, answers) in zip(rows, seen, strict=True):
        line = shown(orjson.loads(orjson.dumps(line_of(state, answers_of(answers)))))
        assert phases[row] == state.phase.value
        assert unpacked["counters"] == {name: line[name] for name in unpacked["counters"]}
        assert unpacked["hyper"] == line["hyper"]
        assert unpacked["metrics"] == line["metrics"]
        assert unpacked["state"] == {"batches_over": False, "exhausted": False} | {
            name: line[name] for name in unpacked["state"] if name in line
        }
        assert unpacked["memory"] == {name: shown(encode(memory)) for name, memory in state.memory.items()}
        for name, answer in line.get("answers", {}).items():
            there = said.get(name, {}).get(row, {})
            hyper = {**{key: line["hyper"][key] for key in there.get("sets", ())}, **there.get("hyper", {})}
            assert hyper == answer.get("hyper", {})
            assert {key: there.get(key) for key in ("flags", "commands", "reason")} == {
                key: answer.get(key) for key in ("flags", "commands", "reason")
            }
