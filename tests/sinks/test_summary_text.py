"""The tables around a training, as text: each case of what they say, and that they fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from fsm_train import Callback, EventLog, Phase, State, factory, on
from fsm_train.callbacks import checkpoint, early_stopping, record, restore_best
from fsm_train.core.model_part import ModelPart
from fsm_train.core.values import EMPTY
from fsm_train.profiling import profiled
from fsm_train.sinks import csv, progress
from fsm_train.sinks.overview import Measurement, Overview, overview_of
from fsm_train.sinks.summary_text import MOST_PARTS, BestWithin, beginning, best_within, end
from fsm_train.testing import at, simulate

PARTS = (ModelPart("", "Net", 5, 5), ModelPart("body", "Sequential", 1_000_000, 0), ModelPart("head", "Linear", 10, 10))


def begun(parts: Any = (), width: int = 80, **overview: Any) -> list[str]:
    return [*beginning(parts, Overview(**overview), width)]


def ended(state: State, width: int = 80, within: Mapping[str, BestWithin] = EMPTY, **overview: Any) -> list[str]:
    return [*end(state, Overview(**overview), 2.0, width, within)]


def test_parts_have_their_parameters() -> None:
    """Those of the model itself too, and the sum of all."""
    assert begun(PARTS) == [
        "part                   parameters  trained",
        "(its own)  Net                  5        5",
        "body       Sequential   1,000,000        0",
        "head       Linear              10       10",
        "all                     1,000,015       15",
        "",
    ]


def test_a_model_of_one_part_has_no_table() -> None:
    """A line says all of it already."""
    assert begun(PARTS[:1]) == begun() == []


def test_of_many_parts_the_first_and_the_last_are_listed() -> None:
    """So that the tables fit a screen, whatever the model."""
    lines = begun([ModelPart(str(number), "Block", 1, 1) for number in range(100)])

    assert len(lines) == 1 + MOST_PARTS + 2
    assert lines[7] == "… 89 more …"
    assert lines[-2].split() == ["all", "100", "100"]


def test_parameters_without_a_size_are_told_apart() -> None:
    """A lazy layer is no empty one."""
    lines = begun([ModelPart("a", "LazyLinear", 0, 0, lazy=2), ModelPart("b", "Odd", 3, 3, lazy=1)])

    assert [line.split()[1:-1] for line in lines[1:4]] == [
        ["LazyLinear", "2", "lazy"],
        ["Odd", "3", "+", "1", "lazy"],
        ["3", "+", "3", "lazy"],
    ]


def test_who_looks_where() -> None:
    """Final phases are left out, since no training stops at them, and so is who looks at these alone."""
    watchers = {"a": (Phase.STEP_BEGIN, Phase.DONE), "b": (Phase.FAILED,), "c": (Phase.SETUP, Phase.EPOCH_END)}

    assert begun(watchers=watchers) == ["watched by  at", "a           step_begin", "c           setup, epoch_end", ""]
    assert begun(watchers={"b": (Phase.FAILED,)}) == []


def test_what_is_measured_for_whom_at_what_cost() -> None:
    """How often, where it is not each time; and what costs nothing says so."""
    measured = (
        *(Measurement("loss", "Progress", interval=0.5), Measurement("grad_norm", "record", every=50)),
        *(Measurement("depth", "mine", sensor=True), Measurement("elapsed", "stop_after")),
    )
    assert begun(measured=measured, width=100) == [
        "measured   each time it costs                               for",
        "loss       a number read from the device                    Progress, every 0.5s",
        "grad_norm  the norm of all gradients, read from the device  record, every 50",
        "depth      a call of your sensor                            mine",
        "elapsed    nothing                                          stop_after",
        "",
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_tables_fit(width: int) -> None:
    """What is too wide in the last column stands on further lines; no line is wider than the terminal."""
    watchers = {"a_callback_with_a_name": tuple(Phase)}
    parts = [ModelPart(f"a_part_with_a_long_name_{number}", "AKindWithALongName", 10**9, 10**9) for number in "ab"]
    lines = begun(parts, width, watchers=watchers, measured=[Measurement("grad_norm", f"w{i}" * 20) for i in range(3)])

    assert max(map(len, lines)) <= width
    assert max(map(len, begun(parts, 30, watchers=watchers))) <= 30
    assert all(phase.value in " ".join(lines) for phase in Phase if phase.value not in ("done", "suspended", "failed"))


def test_names_cannot_move_the_cursor() -> None:
    """They are shown with what is not printable written out, as in each command."""
    evil = "a\x1b[2J"
    lines = begun(
        [ModelPart(evil, "A", 1, 1)] * 2, watchers={evil: (Phase.SETUP,)}, measured=[Measurement(evil, evil)], width=100
    )
    lines += ended(simulate([], epochs=1), log=evil, folders=(evil,))

    assert sum(line.count("a\\x1b[2J") for line in lines) == 7
    assert "\x1b" not in "".join(lines)


# ------------------------------------------------------------------------------------- at the end


@pytest.fixture
def state() -> State:
    return simulate([], epochs=4, valid_loss=[1.0, 0.5, math.nan, 0.75], valid_accuracy=[0.1, 0.2, 0.9, 0.3])


def test_the_best_of_what_was_monitored(state: State) -> None:
    """With the epoch at whose end it was measured; a mode that was given counts more than the name."""
    assert ended(state, monitors={"valid_accuracy": "", "valid_loss": "max"}) == [
        "best         valid_accuracy 0.9, at the end of epoch 3 of 4",
        "             valid_loss 1, at the end of epoch 1 of 4",
    ]


def test_without_a_monitor_it_is_the_loss(state: State) -> None:
    """That of the validation, if there is one; a value that is not finite is never the best."""
    assert ended(state) == ["best         valid_loss 0.5, at the end of epoch 2 of 4"]
    assert ended(simulate([], epochs=1, loss=2.0)) == ["best         train_loss 2, at the end of epoch 1 of 1"]


def test_a_validation_within_an_epoch_may_be_the_best(state: State) -> None:
    """Where it is better than the end of each epoch, and where there is none."""
    better = {"valid_loss": BestWithin(0.25, epoch=2, step=40), "valid_accuracy": BestWithin(0.8, epoch=2, step=40)}

    assert ended(state, within=better, monitors={"valid_loss": "", "valid_accuracy": ""}) == [
        "best         valid_loss 0.25, after step 40, within epoch 3",
        "             valid_accuracy 0.9, at the end of epoch 3 of 4",
    ]
    assert ended(attrs.evolve(state, history=()), within=better) == [
        "best         valid_loss 0.25, after step 40, within epoch 3"
    ]


def test_the_best_within_an_epoch_is_kept() -> None:
    """Of each metric that is monitored the best one that is finite; the end of an epoch is in the history."""
    monitors = {"valid_accuracy": "", "valid_depth": ""}
    best: Mapping[str, BestWithin] = {}
    for step, accuracy in enumerate([math.nan, 0.5, 0.75, 0.25, math.inf], start=1):
        state = at(Phase.VALID_END, step=step, metrics={"valid_accuracy": accuracy, "valid_depth": 1.0})
        best = best_within(best, state, monitors)

    assert best == {"valid_accuracy": BestWithin(0.75, epoch=0, step=3)}
    last = at(Phase.VALID_END, step=9, metrics={"valid_accuracy": 1.0}, batches_over=True)
    assert best_within(best, last, monitors) is best


def test_what_has_no_best_is_left_out(state: State) -> None:
    """A metric whose name does not say which way is better, one that was never measured or never finite."""
    history = ({"valid_depth": 1.0, "valid_loss": math.nan},)
    odd = attrs.evolve(state, history=history)

    assert ended(odd, monitors={"valid_depth": "", "valid_loss": "", "valid_accuracy": ""}) == []
    assert ended(simulate([], epochs=0)) == []


def test_where_things_are(state: State) -> None:
    """In full, however long, since a path is copied; a resumed training says how long it took in all."""
    path = "/".join(["folder"] * 20)
    lines = ended(attrs.evolve(state, elapsed=3598.0, metrics={}), log=path, folders=("a", path))

    assert lines == [
        "time         2.0s in this call of run, 1h00m in all",
        f"log          {path}",
        "checkpoints  a",
        f"             {path}",
    ]


# ------------------------------------------------------------------------------------ the overview


def test_an_overview_is_what_callbacks_and_sinks_declare() -> None:
    """Facts only where they can be known; those that a checkpoint asks for itself are no one's concern."""
    callbacks = [
        record("grad_norm", "loss", "depth", every=5),
        checkpoint("saved", monitor="valid_accuracy"),
        early_stopping("valid_loss", mode="max"),
        restore_best("valid_loss"),
        on(Phase.EPOCH_END, monitors=["valid_depth"])(lambda state: None),
    ]
    log = EventLog("run.jsonl", facts=("stepped",))
    overview = overview_of(callbacks, [progress(), log], frozenset({"depth"}))

    assert overview.watchers["early_stopping"] == (Phase.VALID_END, Phase.EPOCH_END)
    assert overview.watchers["EventLog"][-3:] == (Phase.DONE, Phase.SUSPENDED, Phase.FAILED)
    assert overview.measured[:3] == (
        Measurement("depth", "record", sensor=True, every=5),
        Measurement("grad_norm", "record", every=5),
        Measurement("loss", "record", every=5),
    )
    assert {each.fact for each in overview.measured[3:]} <= {"loss"}
    assert (overview.log, overview.folders) == ("run.jsonl", ("saved",))
    assert overview.monitors == {"valid_accuracy": "max", "valid_loss": "max", "valid_depth": ""}


def test_an_overview_of_nothing_is_empty() -> None:
    """A log that goes to a logger has no path."""
    import structlog

    assert overview_of([], [EventLog(structlog.get_logger())], frozenset()).log == ""
    assert overview_of([], [], frozenset()) == Overview()


def test_a_file_of_another_recorder_is_no_log(tmp_path: Path) -> None:
    """Such as the trace of a profile."""
    others = [profiled(tmp_path / "trace.json")]

    assert overview_of([], others, frozenset()).log == ""
    assert overview_of([], [*others, EventLog("run.jsonl")], frozenset()).log == "run.jsonl"


def test_sinks_of_one_class_are_one_watcher() -> None:
    """It looks wherever one of them does."""
    tables = [csv("batches.csv", facts=["loss"]), csv("epochs.csv")]

    assert overview_of([], tables, frozenset()).watchers["CsvTable"] == tuple(
        phase for phase in Phase if phase in tables[0].at
    )


@pytest.mark.parametrize("mode", ["reduce", True, None, ["max"]])
def test_a_mode_of_another_kind_is_no_direction(mode: object) -> None:
    """A callback of one's own may have a setting of this name; then the name of the metric says what is better."""

    @factory
    def my_callback(mode: object = None) -> Callback[None]:
        return on(Phase.EPOCH_END, monitors=["valid_accuracy"])(lambda state: None)

    overview = overview_of([my_callback(mode)], [], frozenset())

    assert overview.monitors == {"valid_accuracy": ""}
