"""The callback `diagnosing`: what it says, when, and that it says nothing else."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from math import nan
from pathlib import Path
from typing import Any

import attrs
import pytest
from rich.console import Console

from fsm_train import Phase, Sink, State, Transition, diagnose, run, start
from fsm_train.callbacks import accumulate, diagnosing, early_stopping, record, reduce_on_plateau
from fsm_train.core.transition import UNCHANGED
from fsm_train.eventlog import Line, read_log, replay
from fsm_train.eventlog.render import line_as_text
from fsm_train.sinks import progress
from fsm_train.testing import at, drive, simulate
from fsm_train.worlds.scripted import Scripted
from tests.diagnosis.made_up import healthy
from tests.how_long import of_all


class Listener(Sink):
    """Keeps what the callback says, with the epoch."""

    at = (Phase.EPOCH_END,)

    def __init__(self) -> None:
        self.said: list[tuple[int, str]] = []

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        reasons = answers["diagnosing"].reason.split(" | ")
        self.said += [(state.epoch, reason.partition(" (")[0]) for reason in reasons if reason]


def said(**script: Any) -> list[tuple[int, str]]:
    """What the callback says in a simulated training: epochs and illnesses."""
    listener = Listener()
    simulate([diagnosing(), *script.pop("callbacks", [])], sinks=[listener], **script)
    return listener.said


FALLING = [2.0 * 0.8**i for i in range(40)]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ({"train_loss": [2.3] * 40}, [(5, "loss does not fall")]),
        ({"train_loss": [2.0, 1.0, nan, 1.0, nan, 0.5]}, [(3, "not finite")]),
        ({"train_loss": [*FALLING[:12], 3.0, *FALLING[12:20]]}, [(15, "spikes")]),
        ({"train_loss": FALLING, "valid_loss": [2.1 + 0.2 * i for i in range(40)]}, None),
        ({"train_loss": FALLING, "valid_loss": [*FALLING[:4], *[1.1 + 0.2 * i for i in range(36)]]}, None),
        ({"train_loss": FALLING[:9], "hyper": {"lr": 0.0}}, [(4, "rate at zero")]),
        ({"train_loss": FALLING[:9], "stepped": 0.0}, [(1, "steps held back")]),
        ({"train_loss": FALLING[:9], "batches": 3, "callbacks": [accumulate(3)]}, []),
        ({"train_loss": FALLING, "valid_loss": FALLING}, []),
        ({"epochs": 9, "loss": 1.0, "players": {"D": 1, "G": 1}}, []),
        ({"epochs": 9, "hyper": {"momentum": 0.9}, "train_loss": FALLING[:9]}, []),
    ],
)
def test_each_illness_is_said_once(script: dict[str, Any], expected: list[tuple[int, str]] | None) -> None:
    """As soon as it can be seen."""
    found = said(**script)

    if expected is None:
        assert [illness for _, illness in found] in (["validation worse from the start"], ["overfitting"])
        assert found[0][0] in (5, 7, 10)
    else:
        assert found == expected


@pytest.mark.parametrize(("first", "found"), [(2.3, ["loss does not fall"]), (160.0, [])], ids=["explodes", "learns"])
def test_what_explodes_in_the_first_epoch_is_told_from_what_learns_in_it_by_the_log(
    first: float, found: list[str], tmp_path: Path
) -> None:
    """The curves of epochs are the same: only the loss of the first batch says where an untrained model was."""
    of_epochs = [42.0] + [2.3 + 0.01 * (-1) ** i for i in range(11)]
    of_batches = [first, 162.3 - first, 3.0, 2.7] + [2.3 + 0.02 * (-1) ** i for i in range(44)]
    log = tmp_path / "run.jsonl"
    work = Scripted(batches=4, loss=of_batches, train_loss=of_epochs)
    final = run(start(work, epochs=12), [diagnosing(), record("loss")], log=log)

    assert final.memory["diagnosing"].said == ()
    assert [finding.illness for finding in diagnose(log)] == found


def test_it_says_and_does_nothing_else() -> None:
    """No flag, no number, no command, whatever it finds."""
    states = [at(Phase.EPOCH_END, epoch=n, history=[{"train_loss": nan}] * n, train_loss=nan) for n in range(1, 9)]
    answers = drive(diagnosing(), states)

    assert answers == [Transition(memory=answer.memory, reason=answer.reason) for answer in answers]
    assert answers[0].reason.startswith("not finite (certain): train_loss is nan in epoch 1")
    assert [bool(answer.reason) for answer in answers] == [True] + [False] * 7


def test_its_memory_does_not_grow() -> None:
    """Nor does the work of an epoch: long curves are looked at thinned."""
    loss = [1.0 / (1 + i) for i in range(1500)]
    states = [at(Phase.EPOCH_END, epoch=n, step=n, history=[{"train_loss": x} for x in loss[:n]]) for n in (1, 1500)]

    first, last = (diagnosing()(state) for state in states)

    assert first is not None
    assert last is not None
    assert attrs.asdict(last.memory)["said"] == ()  # type: ignore[arg-type]
    assert first.memory is not UNCHANGED


@pytest.mark.long
def test_false_alarms_are_rare() -> None:
    """At most 1 of 50 healthy trainings that are drawn at random is ever said to be ill on the way."""
    drawn = (healthy(random.Random(seed)) for seed in range(of_all(1_000, few=60)))
    short = [curves for curves in drawn if len(curves["train_loss"]) <= 100]

    assert sum(bool(said(**curves)) for curves in short) <= len(short) / 50


def test_what_it_says_stands_in_log_and_progress(tmp_path: Path) -> None:
    """The log has the reason, which is replayed; progress shows it below the row of the epoch."""
    shown = io.StringIO()
    path = tmp_path / "run.jsonl"
    work = Scripted(batches=2, train_loss=[2.3] * 6)
    final = run(start(work, epochs=6), [diagnosing()], log=path, sinks=[progress(console=Console(file=shown))])

    assert replay(path).ok
    line = next(line for line in read_log(path) if isinstance(line, Line) and line.epoch == 5)
    finding = "diagnosing: loss does not fall (possible): train_loss stays at about 2.3 until epoch 5"
    assert finding in line_as_text(line)
    assert final.reason == ""
    rows = " ".join(shown.getvalue().split())
    assert "epoch 5/6 train_loss 2.300 lr 0.1" in rows
    assert finding in rows


def test_progress_shows_what_other_callbacks_say() -> None:
    """A rate that is lowered says why; what stops a training is in the last line alone."""
    shown = io.StringIO()
    work = Scripted(batches=2, loss=1.0, valid_loss=[1.0] * 9, train_mae=1.0)
    callbacks = [reduce_on_plateau("train_mae", patience=1), early_stopping("train_mae", patience=4)]
    run(start(work, epochs=9), callbacks, sinks=[progress(console=Console(file=shown, width=200))])

    lines = shown.getvalue().splitlines()
    assert [line for line in lines if line.startswith("reduce_on_plateau: train_mae has not improved")]
    assert [line for line in lines if "early_stopping" in line] == lines[-1:]
