"""A table of comma-separated values, read back by the csv module."""

from __future__ import annotations

import csv as csv_format
import random
from math import isnan
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fsm_train import (
    Callback,
    CallbackError,
    Flag,
    Phase,
    Scripted,
    State,
    Supervised,
    Transition,
    extend,
    iterate,
    on,
    restore,
    run,
    start,
)
from fsm_train.callbacks import accumulate, checkpoint, schedule, validate_every
from fsm_train.cli import main
from fsm_train.schedules import linear
from fsm_train.sinks import csv
from fsm_train.testing import at
from tests.models import digits

from .tracked import SEEN, breaks, in_pieces, whole, workload

Rows = list[dict[str, str]]


def rows_of(path: Path) -> Rows:
    with path.open(newline="") as file:
        return list(csv_format.DictReader(file))


def test_rows_are_the_training(tmp_path: Path) -> None:
    """An epoch has its metrics and rates, a validation within one its metrics, a batch its facts, to the last bit."""
    final = whole(csv(tmp_path / "run.csv", **SEEN))
    rows = rows_of(tmp_path / "run.csv")
    epochs = [row for row in rows if row["phase"] == "epoch_end"]

    assert [*rows[0]] == [
        *(
            "phase",
            "epoch",
            "step",
            "iteration",
            "grad_norm",
            "loss",
            "valid_loss",
            "train_loss",
            "lr/0",
            "lr/1",
            "momentum",
        )
    ]
    assert [float(row["train_loss"]) for row in epochs] == [metrics["train_loss"] for metrics in final.history]
    assert [(row["epoch"], row["step"], row["valid_loss"]) for row in epochs] == [
        ("1", "4", "nan"),
        ("2", "8", "0.25"),
        ("3", "12", "0.2"),
    ]
    assert [(row["iteration"], row["valid_loss"]) for row in rows if row["phase"] == "valid_end"] == [
        ("3", "nan"),
        ("6", "0.25"),
        ("9", "inf"),
        ("12", "0.2"),
    ]
    assert [float(row["loss"]) for row in rows if row["phase"] == "batch_end"] == [1 / n for n in range(2, 13, 2)]
    assert [float(row["grad_norm"]) for row in rows if row["phase"] == "step_begin"] == [
        2.0 + n for n in range(0, 12, 2)
    ]
    assert [row["momentum"] for row in epochs] == ["0.87", "0.83", "0.79"]  # of the last step, not of the next one
    assert float(epochs[-1]["lr/1"]) == pytest.approx(2 * float(epochs[-1]["lr/0"]))


@pytest.mark.parametrize("batches", [3, 4, 5, 6, 8])
def test_a_resumed_training_has_the_rows_of_one_in_a_piece(batches: int, tmp_path: Path) -> None:
    """What came after the place where it resumes is superseded; the bytes are the same."""
    whole(csv(tmp_path / "whole.csv", **SEEN))
    in_pieces(lambda: csv(tmp_path / "pieces.csv", **SEEN), batches=batches)

    assert (tmp_path / "pieces.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize(
    ("place", "batches"),
    [(Phase.BATCH_END, 2), (Phase.VALID_END, 2), (Phase.BATCH_END, 3), (Phase.VALID_END, 3), (Phase.EPOCH_END, 3)],
)
def test_rows_of_where_it_resumes_are_there_once(place: Phase, batches: int, tmp_path: Path) -> None:
    """Within an epoch and at its end, where the last window is stepped after its batches."""

    @on(place)
    def suspend_once(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == batches else None

    def work() -> Scripted:
        return Scripted(batches=3, loss=0.5, grad_norm=1.0, valid_loss=lambda state: float(state.iteration))

    wanted = {"facts": ["loss", "grad_norm"], "every": 1}
    common = [accumulate(2), validate_every(steps=1)]
    run(start(work(), epochs=2), common, sinks=[csv(tmp_path / "whole.csv", **wanted)])
    state = run(start(work(), epochs=2), [*common, suspend_once], sinks=[csv(tmp_path / "pieces.csv", **wanted)])
    assert state.phase is Phase.SUSPENDED
    run(state, common, sinks=[csv(tmp_path / "pieces.csv", **wanted)])

    assert rows_of(tmp_path / "pieces.csv") == rows_of(tmp_path / "whole.csv")


def test_a_new_training_begins_the_table_anew(tmp_path: Path) -> None:
    """Its rows are not mixed with those of another."""
    path = tmp_path / "folder" / "run.csv"
    for _ in range(2):
        whole(csv(path, **SEEN))
    once = rows_of(path)
    whole(csv(path), epochs=1)

    assert len(once) == 19
    assert [(row["phase"], row["epoch"]) for row in rows_of(path)] == [("valid_end", "1"), ("epoch_end", "1")]


def test_a_row_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    """As a crash does it: the row is written again where the training resumes before it."""
    path = tmp_path / "run.csv"
    whole(csv(tmp_path / "whole.csv", **SEEN))
    cut: list[bytes] = []

    def sink_after_a_crash() -> object:
        if path.exists():
            cut.append(path.read_bytes())
            path.write_bytes(cut[-1] + b"epoch_end,2,8,8,,,0.2")
        return csv(path, **SEEN)

    in_pieces(sink_after_a_crash)  # type: ignore[arg-type]

    assert len(cut) == 2
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("content", ["name,age\nEve,40\n", "hello"])
def test_a_file_of_somebody_else_is_left_alone(content: str, tmp_path: Path) -> None:
    """The sink is switched off with a note, and the training continues."""
    path = tmp_path / "people.csv"
    path.write_text(content)

    with pytest.warns(RuntimeWarning, match="is no table that csv wrote"):
        final = whole(csv(path))

    assert final.epoch == 3
    assert "CsvTable raised ValueError" in final.notes[0]
    assert path.read_text() == content


def test_a_table_that_another_run_is_writing_is_left_alone(tmp_path: Path) -> None:
    """Rows of two trainings would be mixed. When that one has ended, another may write it."""
    path = tmp_path / "run.csv"
    running = iterate(start(workload(), epochs=2), sinks=[csv(path)], at=[Phase.EPOCH_END])
    next(running)
    before = path.read_bytes()

    with pytest.warns(RuntimeWarning, match=r"another run of this process is writing the table"):
        assert whole(csv(path)).epoch == 3
    assert path.read_bytes() == before
    for _ in running:
        pass
    assert not whole(csv(path)).notes
    assert [file.name for file in tmp_path.iterdir()] == ["run.csv"]


def test_a_table_stays_where_it_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the program goes to another folder, and a link stays a link."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "run.csv")
    monkeypatch.chdir(tmp_path)
    running = iterate(start(workload(), epochs=2), sinks=[csv("link.csv")], at=[Phase.SETUP])
    next(running)
    monkeypatch.chdir(tmp_path / "elsewhere")
    for _ in running:
        pass

    assert (tmp_path / "link.csv").is_symlink()
    assert len(rows_of(tmp_path / "run.csv")) == 2


def test_a_full_disk_leaves_the_table_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is put in place when all of it is written."""
    path = tmp_path / "run.csv"
    whole(csv(path), epochs=1)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(csv_format.DictWriter, "writeheader", full)
    with pytest.warns(RuntimeWarning, match="no space left"):
        whole(csv(path))

    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.csv"]


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    """Nothing is written into it."""
    with pytest.warns(RuntimeWarning, match="is no table that csv wrote"):
        assert whole(csv(tmp_path)).notes
    assert not [*tmp_path.iterdir()]


def test_an_empty_file_becomes_the_table(tmp_path: Path) -> None:
    """As mktemp makes one."""
    (tmp_path / "run.csv").touch()
    whole(csv(tmp_path / "run.csv"))

    assert len(rows_of(tmp_path / "run.csv")) == 7


def test_a_failed_training_leaves_whole_rows(tmp_path: Path) -> None:
    """Those until it failed."""
    with pytest.raises(CallbackError, match="out of luck"):
        whole(csv(tmp_path / "run.csv"), further=[breaks])

    assert [row["phase"] for row in rows_of(tmp_path / "run.csv")] == ["valid_end", "epoch_end"]


def test_turns_have_facts_of_each_player(tmp_path: Path) -> None:
    """A name begins with who played, as those of metrics do; rates of all optimizers are there."""
    work = Scripted(batches=2, players={"D": 1, "G": 2}, loss=lambda state: 1.0 if state.player == "D" else 2.0)
    run(start(work, epochs=1), sinks=[csv(tmp_path / "run.csv", facts=["loss"], every=1)])
    rows = rows_of(tmp_path / "run.csv")

    assert [(row["D_loss"], row["G_loss"]) for row in rows if row["phase"] == "batch_end"] == [
        ("1.0", ""),
        ("1.0", ""),
        ("", "2.0"),
    ]
    assert (rows[-1]["train_D_loss"], rows[-1]["D.lr"], rows[-1]["G.lr"]) == ("1.0", "0.1", "0.1")


def test_an_epoch_without_a_step_has_the_rate_of_its_beginning(tmp_path: Path) -> None:
    """Not that of a step before."""

    @on(Phase.EPOCH_BEGIN, Phase.BATCH_BEGIN)
    def skips_the_second(state: State) -> Transition | None:
        if state.phase is Phase.EPOCH_BEGIN:
            return Transition(hyper={"lr": 0.5 / (1 + state.epoch)})
        return Transition(flags=Flag.SKIP_BATCH) if state.epoch == 1 else None

    run(start(Scripted(), epochs=3), [skips_the_second], sinks=[csv(tmp_path / "run.csv")])
    run(start(Scripted(), epochs=3), [skips_the_second], log=tmp_path / "run.jsonl")

    assert [row["lr"] for row in rows_of(tmp_path / "run.csv")] == ["0.5", "0.25", "0.16666666666666666"]
    assert main(["export", str(tmp_path / "run.jsonl"), "csv", str(tmp_path / "made.csv")]) == 0
    assert (tmp_path / "made.csv").read_bytes() == (tmp_path / "run.csv").read_bytes()


def test_a_validation_before_the_first_epoch_is_of_none(tmp_path: Path) -> None:
    """It stands at step 0 of epoch 0."""
    work = Scripted(batches=2, valid_loss=lambda state: 1.0 - state.step / 10)
    run(start(work, epochs=1), [validate_every(steps=5, first=True)], sinks=[csv(tmp_path / "run.csv")])
    rows = rows_of(tmp_path / "run.csv")

    assert [(row["phase"], row["epoch"], row["step"], row["valid_loss"]) for row in rows] == [
        ("valid_end", "0", "0", "1.0"),
        ("epoch_end", "1", "2", "0.8"),
    ]


def test_a_metric_of_an_earlier_step_is_not_repeated(tmp_path: Path) -> None:
    """An epoch that ends without a validation has no number of one."""

    @on(Phase.TRAIN_BEGIN, Phase.BATCH_END)
    def only_in_the_middle(state: State) -> Transition | None:
        if state.iteration == 2:
            return Transition(flags=Flag.VALIDATE | Flag.SKIP_VALID)
        return None

    run(
        start(Scripted(batches=4, valid_loss=0.5), epochs=1),
        [only_in_the_middle],
        sinks=[csv(tmp_path / "run.csv")],
    )

    assert [(row["phase"], row["step"], row["valid_loss"]) for row in rows_of(tmp_path / "run.csv")] == [
        ("valid_end", "2", "0.5"),
        ("epoch_end", "4", ""),
    ]


def test_a_training_restored_from_a_checkpoint_goes_on_in_the_table(tmp_path: Path) -> None:
    """A real one, from an earlier checkpoint in the middle of an epoch, in new objects: the same bytes."""

    def trained(folder: str, *more: Callback[Any], resume: bool = False) -> State:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 16), nn.Dropout(0.1), nn.Linear(16, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        data = DataLoader(digits(64), batch_size=16, shuffle=True)
        work = Supervised(model, optimizer, nn.CrossEntropyLoss(), data, DataLoader(digits(32), batch_size=32))
        state = restore(tmp_path / folder, work) if resume else start(work, epochs=3, seed=0)
        saves = checkpoint(tmp_path / folder, every_epochs=None, every_steps=3)
        common = [schedule(lr=linear(1.0, 0.5, 6)), accumulate(3), validate_every(steps=1), saves]
        sink = csv(tmp_path / f"{folder}.csv", facts=["loss", "grad_norm"], every=1)
        return run(state, [*common, *more], sinks=[sink])

    @on(Phase.LOSS_END)
    def breaks_later(state: State) -> None:
        if state.iteration == 9:
            raise RuntimeError("out of luck")

    trained("whole")
    with pytest.raises(CallbackError):
        trained("pieces", breaks_later)
    beyond = [row["iteration"] for row in rows_of(tmp_path / "pieces.csv")]
    resumed = trained("pieces", resume=True)

    assert (beyond[-1], resumed.epoch) == ("9", 3)
    assert (tmp_path / "pieces.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_table_changes_nothing(tmp_path: Path) -> None:
    """A real model ends with the same weights and generators, to the last bit, also where losses are read."""

    def trained(*sinks: object) -> tuple[list[torch.Tensor], object]:
        torch.manual_seed(0)
        random.seed(0)
        model = nn.Sequential(nn.Linear(64, 16), nn.Dropout(0.1), nn.Linear(16, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        work = Supervised(model, optimizer, nn.CrossEntropyLoss(), DataLoader(digits(64), batch_size=16, shuffle=True))
        run(start(work, epochs=2, seed=0), sinks=sinks)  # type: ignore[arg-type]
        return [*model.parameters()], (random.getstate(), torch.get_rng_state().tolist())

    weights, generators = trained()
    watched, theirs = trained(csv(tmp_path / "run.csv", facts=["loss", "grad_norm"], every=1))

    assert all(map(torch.equal, weights, watched))
    assert generators == theirs
    assert not any(isnan(float(row["loss"] or 0)) for row in rows_of(tmp_path / "run.csv"))


@pytest.mark.parametrize(
    ("wrong", "error", "sentence"),
    [
        ({"path": 3}, TypeError, "path is an int, not a path: write csv('run.csv')"),
        ({"path": ""}, ValueError, "path='': nothing can have this path; give one such as 'run.csv'"),
        ({"facts": "loss"}, TypeError, "facts is a str: give a list of facts"),
        ({"every": 0}, ValueError, "every=0: it is a whole number from 1"),
        ({"hyper": "lr"}, TypeError, "hyper is a str: give a list of hyper"),
        ({"facts": [1]}, TypeError, "among facts is an int: give names"),
        ({"facts": ["loss", "step"]}, ValueError, "among facts is 'step', which each point has"),
        ({"hyper": ["epoch"]}, ValueError, "among hyper is 'epoch', which each point has"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, object], error: type[Exception], sentence: str) -> None:
    """At once, with what to write instead."""
    with pytest.raises(error) as caught:
        csv(**{"path": "run.csv", **wrong})  # type: ignore[arg-type]
    assert str(caught.value).startswith(sentence)


def test_hyper_parameter_that_is_not_there_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Else its column would be missing without a word; of several optimizers it may be that of one."""
    work = Scripted(hyper={"lr": 0.1, "G.momentum": 0.9})
    run(start(work, epochs=1), sinks=[csv(tmp_path / "run.csv", hyper=["lr", "momentum", "beta3"])])

    assert "hyper=['beta3']: there is no such hyper-parameter to write: there are lr, G.momentum" in caplog.text
    assert rows_of(tmp_path / "run.csv")[0]["G.momentum"] == "0.9"


@pytest.mark.parametrize(
    ("name", "column"),
    [("=cmd()", "'=cmd()"), ("+1", "'+1"), ("@a", "'@a"), ("two\nlines", "two\\nlines"), ("re\rturn", "re\\rturn")],
)
def test_a_name_is_one_line_and_no_formula(name: str, column: str, tmp_path: Path) -> None:
    """Also where the training goes on in the table that is there."""
    table = csv(tmp_path / "run.csv", facts=[name], every=1)
    final = run(start(Scripted(batches=1, **{name: 0.5}), epochs=1), sinks=[table])
    run(extend(final, epochs=1), sinks=[csv(tmp_path / "run.csv", facts=[name], every=1)])

    assert [row[column] for row in rows_of(tmp_path / "run.csv") if row["phase"] == "batch_end"] == ["0.5", "0.5"]
    assert name not in (tmp_path / "run.csv").read_bytes().decode().replace(column, "")


def test_a_name_of_a_counter_in_a_log_changes_no_counter(tmp_path: Path) -> None:
    """A workload of one's own may call a metric so; the column is that of the counter."""
    table = csv(tmp_path / "run.csv")
    table.open(state := at(Phase.READY), ())
    table.see(attrs.evolve(state, phase=Phase.EPOCH_END, epoch=1, metrics={"step": 0.5}), {})
    table.close()

    assert [row["step"] for row in rows_of(tmp_path / "run.csv")] == ["0"]


def test_an_unknown_fact_is_refused(tmp_path: Path) -> None:
    """Before the training, as that of a callback is."""
    with pytest.raises(ValueError, match="the sink CsvTable needs the fact 'depth'"):
        whole(csv(tmp_path / "run.csv", facts=["depth"]))
