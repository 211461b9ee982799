"""A rerun ends where there is nothing more to compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsm_train import Phase, Scripted, State, Transition, on, replay, run, start, what_if
from fsm_train.callbacks import early_stopping

from .log_files import forged, index


def test_nothing_is_decided_after_the_first_difference(tmp_path: Path) -> None:
    """No callback is consulted but at TEARDOWN, where each training that is left is."""
    path, consulted = tmp_path / "run.jsonl", []

    @on(Phase.BATCH_END, Phase.TEARDOWN, memory=0)
    def count(state: State, before: int) -> Transition:
        consulted.append(state.phase)
        return Transition(memory=before + 1)

    run(start(Scripted(batches=50), epochs=1), [count], log=path)
    forged(path, lambda lines: lines[index(lines, "batch_end", 7)]["answers"]["count"].update(memory=0))
    consulted.clear()

    divergence = replay(path, [count]).divergence

    assert divergence is not None
    assert (divergence.iteration, divergence.recorded, divergence.decided) == (7, {"memory": 0}, {"memory": 7})
    assert consulted == [Phase.BATCH_END] * 7 + [Phase.TEARDOWN]


def test_ctrl_c_ends_a_replay(tmp_path: Path) -> None:
    """It is not taken for a signal of the recorded training."""
    path = tmp_path / "run.jsonl"
    run(start(Scripted(batches=5, valid_loss=1.0), epochs=2), [early_stopping()], log=path)

    @on(Phase.BATCH_END)
    def interrupted(state: State) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        what_if(path, [interrupted])
