"""The tables around a training as a person sees them: in a real terminal of 80 columns, and nowhere else unasked."""

from __future__ import annotations

import contextlib
import gc
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
import weakref
from fcntl import ioctl
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from fsm_train import CallbackError, Phase, Scripted, State, Supervised, on, run, start
from fsm_train.callbacks import checkpoint, early_stopping, freeze, validate_every
from fsm_train.sinks import progress

from .test_progress import screen

SCRIPT = textwrap.dedent("""
    from fsm_train import Scripted, run, start
    from fsm_train.callbacks import clip_grad_norm, early_stopping, record
    from fsm_train.core.model_part import ModelPart
    from fsm_train.sinks import progress

    class Work(Scripted):
        model_parts = (ModelPart("body", "Sequential", 1_000, 0), ModelPart("head", "Linear", 10, 10))

    metrics = dict(train_accuracy=0.5, valid_loss=[1.0, 0.5, 0.75, 0.8], valid_accuracy=[0.5, 0.9, 0.8, 0.7])
    callbacks = [early_stopping(patience=2), record("grad_norm", every=50), clip_grad_norm(1.0)]
    run(start(Work(batches=3, **metrics), epochs=9), callbacks, sinks=[progress()], log="run.jsonl")
""")


def in_a_terminal(script: str, folder: Path, columns: int = 80) -> str:
    """What a program writes to a terminal of this width that is its standard input, output and error."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment
    ):
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(ours, 1 << 16):
                written += piece
        except OSError:
            pass  # as Linux says that nobody has the other end any more
        os.close(ours)
    return written.decode()


@pytest.mark.usefixtures("measured")
def test_a_terminal_of_80_columns_shows_the_tables(tmp_path: Path) -> None:
    """What is trained, who looks where and what that costs; then the rows, and what came of it.

    No line is wider, but for the reason, which is one line, whatever it says.
    """
    lines = [re.sub(r"(?<=  )\d+\.\ds$", "0.0s", line) for line in screen(in_a_terminal(SCRIPT, tmp_path))]

    assert [len(line) for line in lines if len(line) > 80] == [99]
    assert lines == [
        "part              parameters  trained",
        "body  Sequential       1,000        0",
        "head  Linear              10       10",
        "all                    1,010       10",
        "watched by      at",
        "early_stopping  valid_end, epoch_end",
        "record          step_begin",
        "clip_grad_norm  step_begin",
        "Progress        epoch_begin, batch_end, valid_begin, valid_batch_end, valid_end,",
        "                epoch_end",
        "EventLog        setup, epoch_begin, valid_end, epoch_end, teardown",
        "measured   each time it costs                               for",
        "grad_norm  the norm of all gradients, read from the device  record, every 50",
        "loss       a number read from the device                    Progress, every 0.1s",
        "epoch  train_loss  valid_loss  train_accuracy  valid_accuracy   lr  time",
        "  1/9       0.000       1.000          0.5000          0.5000  0.1  0.0s",
        "  2/9       0.000      0.5000          0.5000          0.9000  0.1  0.0s",
        "  3/9       0.000      0.7500          0.5000          0.8000  0.1  0.0s",
        "  4/9       0.000      0.8000          0.5000          0.7000  0.1  0.0s",
        "stopped after epoch 4/9: early_stopping: valid_loss has not improved on 0.5 for 2 validations  0.0s",
        "best         valid_loss 0.5, at the end of epoch 2 of 4",
        "log          run.jsonl",
    ]


@pytest.mark.usefixtures("measured")
def test_what_is_logged_is_broken_between_words(tmp_path: Path) -> None:
    """A terminal would break it within them; what is longer than a line stays whole, so that it can be copied."""
    path = "/".join(["folder"] * 20)
    logs = f"import logging; logging.getLogger('fsm_train').warning('word ' * 20 + {path!r})"
    script = SCRIPT.replace("class Work", "from fsm_train import Phase, on\n\nclass Work").replace(
        "run(start", f"callbacks.append(on(Phase.SETUP)(lambda state: exec({logs!r})))\nrun(start"
    )
    lines = screen(in_a_terminal(script, tmp_path))

    assert lines[:3] == [" ".join(["word"] * 16), " ".join(["word"] * 4), path]


@pytest.mark.usefixtures("measured")
def test_a_pipe_gets_no_table(tmp_path: Path) -> None:
    """Where nobody watches, a line per epoch and one for the end is all that is written."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )

    assert [line.split()[0] for line in done.stdout.splitlines()] == ["epoch"] * 4 + ["stopped"]
    assert done.stderr == ""


# ---------------------------------------------------------------------------------- where one asks


def page(**settings: Any) -> tuple[Console, Any]:
    console = Console(file=StringIO(), width=80)
    return console, progress(console=console, **settings)


def lines_of(console: Console) -> list[str]:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def net() -> Supervised:
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Supervised(model, optimizer, nn.MSELoss(), [(torch.zeros(4, 2), torch.zeros(4, 1))])


def test_a_file_gets_the_tables_if_asked() -> None:
    """With parts as they are when training begins: what a callback froze is not trained."""
    console, sink = page(summary=True)
    run(start(net(), epochs=1), [freeze("0.*")], sinks=[sink])

    lines = lines_of(console)
    assert [line.split() for line in lines[:5]] == [
        ["part", "parameters", "trained"],
        ["0", "Linear", "12", "0"],
        ["1", "Linear", "5", "5"],
        ["all", "17", "5"],
        [],
    ]
    assert lines[-1].startswith("best         train_loss ")


def test_one_workload_is_shown_once() -> None:
    """Calls of `run` in a row show what came of each, and the model the first time alone."""
    console, sink = page(summary=True)
    work = net()
    for _ in range(2):
        run(start(work, epochs=1), sinks=[sink])

    assert [line.split()[0] for line in lines_of(console) if line].count("part") == 1
    assert [line.split()[0] for line in lines_of(console) if line].count("best") == 2


@pytest.mark.usefixtures("measured")
def test_it_can_be_left_out(tmp_path: Path) -> None:
    """Also in a terminal."""
    shown = screen(in_a_terminal(SCRIPT.replace("progress()", "progress(summary=False)"), tmp_path))

    assert [line.split()[0] for line in shown] == ["epoch", "1/9", "2/9", "3/9", "4/9", "stopped"]


def test_a_training_that_fails_says_where_its_log_is(tmp_path: Path) -> None:
    """That is when it is looked for; and where its checkpoints are."""

    @on(Phase.EPOCH_END)
    def fails(state: State) -> None:
        raise ValueError("no")

    console, sink = page(summary=True)
    with pytest.raises(CallbackError):
        run(
            start(net(), epochs=2),
            [fails, checkpoint(tmp_path / "saved"), early_stopping("train_loss")],
            sinks=[sink],
            log=tmp_path / "run.jsonl",
        )

    assert lines_of(console)[-2:] == [f"log          {tmp_path}/run.jsonl", f"checkpoints  {tmp_path}/saved"]


def test_summary_is_a_bool() -> None:
    """Anything else is refused at once."""
    with pytest.raises(ValueError, match="summary='no': True or False"):
        progress(summary="no")  # type: ignore[arg-type]


def test_a_workload_that_is_no_such_model_has_no_parts() -> None:
    """The other tables are shown all the same."""
    console, sink = page(summary=True)
    run(start(Scripted(), epochs=1), sinks=[sink])

    assert lines_of(console)[:2] == ["watched by  at", "Progress    epoch_begin, valid_end, epoch_end"]


def test_the_sink_keeps_no_model_alive() -> None:
    """Neither after a run nor after one that ended before its first phase was seen."""
    _, sink = page(summary=True)
    work = net()
    model = weakref.ref(work.model)

    @on(Phase.SETUP)
    def fails(state: State) -> None:
        raise ValueError("no")

    for callbacks in ([fails], []):
        with contextlib.suppress(CallbackError):
            run(start(work, epochs=1), callbacks, sinks=[sink])
    del work
    gc.collect()
    assert model() is None


def test_the_best_may_be_within_an_epoch() -> None:
    """A training of one long epoch has its best checkpoint there."""
    console, sink = page(summary=True)
    work = Scripted(batches=6, valid_loss=[0.5, 0.25, 0.75])
    run(start(work, epochs=1), [validate_every(steps=2), early_stopping("valid_loss")], sinks=[sink])

    assert lines_of(console)[-1] == "best         valid_loss 0.25, after step 4, within epoch 1"
