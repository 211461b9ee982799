"""Where lines stand by epoch and by time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsm_train import Scripted, run, start
from fsm_train.callbacks import record
from fsm_train.view.axes import PARTS, EpochAxis, TimeAxis
from fsm_train.view.packing import PHASES, packed_run

from ..eventlog.log_files import forged, logged
from .unpacking import ints


def on_axis(path: Path, name: str) -> list[float]:
    axis = packed_run(path).packed()["axes"][name]
    return [position / axis["parts"] for position in ints(axis["at"])]


def test_an_epoch_is_as_long_as_its_batches(tmp_path: Path) -> None:
    """A line within it stands at the share of the batches that are over, one between two epochs at a whole number."""
    path = tmp_path / "run.jsonl"
    logged(path, epochs=2)
    by_phase: dict[str, list[float]] = {}
    run_ = packed_run(path)
    for code, position in zip(ints(run_.packed()["phases"]), on_axis(path, "epoch"), strict=True):
        by_phase.setdefault(PHASES[int(code)], []).append(position)

    assert by_phase["loss_end"] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert by_phase["valid_end"] == by_phase["epoch_end"] == [1.0, 2.0]
    assert (by_phase["ready"], by_phase["done"]) == ([0.0], [2.0])


def test_an_epoch_that_did_not_end_is_as_long_as_it_was_to_be(tmp_path: Path) -> None:
    """As the header says, or as far as it came."""
    path = tmp_path / "run.jsonl"
    logged(path, epochs=1)
    forged(path, lambda lines: lines.__delitem__(slice(5, None)))
    assert on_axis(path, "epoch")[-1] == 0.25

    forged(path, lambda lines: lines[0]["start"].pop("batches_per_epoch"))
    assert on_axis(path, "epoch")[-1] == 1.0


def test_a_training_that_resumes_within_an_epoch_goes_on_there() -> None:
    """And one that continues after its end stands at a whole number; a failed line ends no epoch."""
    axis = EpochAxis()
    axis.begin({"epoch": 1, "batch": 2, "resume_at": "batch_end", "batches_per_epoch": 4})
    axis.see("epoch_end", {"epoch": 1, "batch": 3, "error": "x"})
    axis.begin({"epoch": 2, "batch": 4})

    assert [position / PARTS for position in axis.positions()] == [1.5, 1.75, 2.0]


def test_time_is_what_was_measured(tmp_path: Path) -> None:
    """The fact `elapsed`, where a callback needs it; lines without it have the time of the line before."""
    path = tmp_path / "run.jsonl"
    work = Scripted(batches=2, elapsed=lambda state: 1.5 * state.iteration)
    run(start(work, epochs=2), [record("elapsed")], log=path)
    times = on_axis(path, "time")

    assert (times[0], max(times), times == sorted(times)) == (0.0, 6.0, True)


@pytest.mark.parametrize(
    ("bound", "seconds"),
    [
        ([{}, {"timestamp": "2026-01-01T00:00:00Z"}, {"timestamp": "2026-01-01T00:00:02.5"}], [0.0, 0.0, 2.5]),
        ([{"time": 1e9}, {"time": 1e9 + 1}, {"time": "soon"}], [0.0, 1.0, 1.0]),
        ([{"time": 1e9}, {"time": [1]}, {"time": 1e300}], None),
        ([{}, {}, {}], None),
    ],
)
def test_a_clock_that_is_bound_to_the_lines_is_a_time(bound: list[dict[str, Any]], seconds: list[float] | None) -> None:
    """In seconds or as ISO 8601, from its first moment on; what is no moment, or stands still, is none."""
    axis = TimeAxis()
    for keys in bound:
        axis.see({}, keys)

    positions = axis.positions()
    assert (positions and [position / PARTS for position in positions]) == seconds
