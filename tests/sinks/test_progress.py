"""Progress is tested by what a person sees: in a file, in a terminal, in a notebook."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import types
from io import StringIO
from typing import Any

import pytest
import torch
from rich.console import Console

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
    on,
    run,
    start,
)
from fsm_train.sinks import progress

from .conftest import Clock

CODE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(.)", re.DOTALL)


def screen(text: str) -> list[str]:
    """The lines of an endless terminal when all of the text has reached it."""
    lines, row, column = [""], 0, 0
    for argument, command, char in CODE.findall(text):
        if char == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif char == "\r":
            column = 0
        elif char:
            lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
            column += 1
        elif command == "A":
            row -= int(argument)
        elif command == "K":
            lines[row] = ""
        else:
            assert command in "mhl", f"an unforeseen control code: {command}"
    return [line.rstrip() for line in lines if line.strip()]


def bars(text: str) -> list[str]:
    """The text of each bar that was drawn, without the bar itself."""
    drawn = re.findall(r"epoch +\d[^\r\n]*[━╸╺][^\r\n]*", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))
    return list(dict.fromkeys(re.sub(r"[━╸╺]+", "|", re.sub(r" +", " ", line)).strip() for line in drawn))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("TERM", "xterm-256color")
    return Console(file=StringIO(), force_terminal=True, force_interactive=True, width=100)


@pytest.fixture
def file() -> Console:
    return Console(file=StringIO(), force_terminal=False, force_interactive=False, width=20)


def written(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def skip_valid_of(*epochs: int) -> Callback[Any]:
    """Leave out the validation of these epochs."""

    @on(Phase.EPOCH_BEGIN)
    def skip_valid(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_VALID) if state.epoch in epochs else None

    return skip_valid


def suspend_after(iteration: int) -> Callback[Any]:
    """Suspend after this many batches."""

    @on(Phase.BATCH_END)
    def suspend(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND, reason="enough for today") if state.iteration == iteration else None

    return suspend


@on(Phase.EPOCH_END)
def halve(state: State) -> Transition:
    """Halve the learning rate of 0.1 for the next epoch."""
    return Transition(hyper={"lr": 0.1 / 2**state.epoch})


# ------------------------------------------------------------------------- in a file


def test_file_gets_a_line_per_epoch_and_why_it_ended(clock: Clock, file: Console) -> None:
    """Without a terminal each epoch is one line of names and values, never wrapped, and the last line says why."""
    work = Scripted(loss=lambda state: clock(0.4, 0.25), valid_accuracy=[0.5, 1.0], valid_loss=0.75)

    run(start(work, epochs=2), sinks=[progress(console=file)])

    assert written(file).splitlines() == [
        "epoch 1/2  train_loss 0.2500  valid_loss 0.7500  valid_accuracy 0.5000  lr 0.1  1.2s",
        "epoch 2/2  train_loss 0.2500  valid_loss 0.7500  valid_accuracy 1.000  lr 0.1  1.2s",
        "all 2 epochs done  2.4s",
    ]


def test_file_costs_no_look_at_a_batch(file: Console) -> None:
    """Where there is no bar the machine need not stop at batches, and no loss is read."""
    sink = progress(console=file)

    assert set(sink.at) == {Phase.EPOCH_BEGIN, Phase.EPOCH_END, Phase.DONE, Phase.SUSPENDED, Phase.FAILED}
    assert sink.needs == set()


def test_line_names_only_what_was_measured(clock: Clock, file: Console) -> None:
    """An epoch without a validation, a loss that is nan and an optimizer without a rate are lines like any other."""
    work = Scripted(loss=float("nan"), valid_loss=[0.5], hyper={"momentum": 0.9})

    run(start(work, epochs=2), [skip_valid_of(0)], sinks=[progress(console=file)])

    assert written(file).splitlines()[:2] == [
        "epoch 1/2  train_loss nan  0.0s",
        "epoch 2/2  train_loss nan  valid_loss 0.5000  0.0s",
    ]


def test_metrics_are_chosen_by_name(clock: Clock, file: Console) -> None:
    """`metrics` says which metrics are shown, in which order; one that is never measured is not there."""
    work = Scripted(valid_loss=0.5, valid_accuracy=0.9)

    run(start(work, epochs=1), sinks=[progress(console=file, metrics=["valid_accuracy", "bleu", "train_loss"])])

    assert written(file).splitlines()[0] == "epoch 1/1  valid_accuracy 0.9000  train_loss 0.000  lr 0.1  0.0s"


def test_rate_is_the_one_that_the_epoch_was_trained_with(file: Console) -> None:
    """What is decided for the next epoch when one has ended shows in the next row."""
    run(start(Scripted(), epochs=3), [halve], sinks=[progress(console=file)])

    assert re.findall(r"lr (\S+)", written(file)) == ["0.1", "0.05", "0.025"]


@pytest.mark.parametrize(
    ("lr", "shown"), [((0.5, 0.001, 0.1), "0.001..0.5"), ((0.3, 0.3), "0.3"), (1 / 3, "0.3333"), (1e-5, "1e-05")]
)
def test_rates_of_groups_are_shown_as_a_range(lr: float | tuple[float, ...], shown: str, file: Console) -> None:
    """Of the rates of several parameter groups the lowest and the highest are shown, and equal ones once."""
    run(start(Scripted(hyper={"lr": lr}), epochs=1), sinks=[progress(console=file)])

    assert f"  lr {shown}  " in written(file)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0s"), (59.9, "59.9s"), (59.96, "1m00s"), (723, "12m03s"), (3_725, "1h02m")]
)
def test_times_have_two_units_at_most(seconds: float, shown: str, clock: Clock, file: Console) -> None:
    """A time is as exact as one wants to know it, and without a space."""
    run(start(Scripted(batches=1, loss=lambda state: clock(seconds, 0.0)), epochs=1), sinks=[progress(console=file)])

    assert written(file).endswith(f"all 1 epoch done  {shown}\n")


# ------------------------------------------------------------------------- why it ended


def test_limit_of_steps_is_named(clock: Clock, file: Console) -> None:
    """A training that did all its steps says so."""
    run(start(Scripted(), max_steps=5), sinks=[progress(console=file)])

    assert written(file).splitlines()[-1] == "all 5 steps done  0.0s"


def test_reason_of_a_stop_is_shown(clock: Clock, file: Console) -> None:
    """A training that was stopped says after which epoch, by whom and why."""

    @on(Phase.EPOCH_END)
    def stop(state: State) -> Transition:
        return Transition(flags=Flag.STOP_TRAINING, reason="good enough")

    run(start(Scripted(), epochs=20), [stop], sinks=[progress(console=file)])

    assert written(file).splitlines()[-1] == "stopped after epoch 1/20: stop: good enough  0.0s"


def test_suspended_training_says_where_and_why(clock: Clock, file: Console) -> None:
    """A training that was suspended says in which epoch, by whom and why."""
    run(start(Scripted(batches=3), epochs=3), [suspend_after(4)], sinks=[progress(console=file)])

    assert written(file).splitlines()[-1] == "suspended in epoch 2/3: suspend: enough for today  0.0s"


def test_failure_is_one_line_and_gives_the_terminal_back(terminal: Console) -> None:
    """A training that fails says so in one line, however many the error has, and the cursor is back."""

    @on(Phase.EPOCH_END)
    def wrong(state: State) -> Transition | None:
        if state.epoch == 2:
            raise RuntimeError("out of memory\nand of much else")
        return None

    with pytest.raises(CallbackError):
        run(start(Scripted(), epochs=2), [wrong], sinks=[progress(console=terminal)])

    assert re.fullmatch(r"failed in epoch 2/2: CallbackError: .*out of memory  0\.\ds", screen(written(terminal))[-1])
    assert written(terminal).rindex("\x1b[?25h") > written(terminal).rindex("\x1b[?25l")


# ------------------------------------------------------------------------- in a terminal


def test_terminal_keeps_the_rows_and_the_reason(clock: Clock, terminal: Console) -> None:
    """At the end there is a header, a row per epoch and why it ended; the bar is gone and the cursor back."""
    work = Scripted(loss=lambda state: clock(0.4, 0.25), valid_loss=[12.5, float("nan")])

    run(start(work, epochs=2), [halve], sinks=[progress(console=terminal)])

    assert screen(written(terminal)) == [
        "epoch  train_loss  valid_loss          lr    time",
        "  1/2      0.2500       12.50         0.1    1.2s",
        "  2/2      0.2500         nan        0.05    1.2s",
        "all 2 epochs done  2.4s",
    ]
    assert written(terminal).rindex("\x1b[?25h") > written(terminal).rindex("\x1b[?25l")


def test_bar_learns_the_length_of_an_epoch(clock: Clock, terminal: Console) -> None:
    """The first epoch has no end in sight; the second is as long as the first one, and says how long it will take."""
    work = Scripted(batches=3, loss=lambda state: clock(0.5, 0.25))

    run(start(work, epochs=2), sinks=[progress(console=terminal, interval=0)])

    assert bars(written(terminal)) == [
        "epoch 1/2 | 0",
        "epoch 1/2 | 1 loss 0.2500",
        "epoch 1/2 | 2 loss 0.2500 2.0 batches/s",
        "epoch 1/2 | 3 loss 0.2500 2.0 batches/s",
        "epoch 2/2 | 0/3 loss 0.2500 2.0 batches/s left 1.5s",
        "epoch 2/2 | 1/3 loss 0.2500 2.0 batches/s left 1.0s",
        "epoch 2/2 | 2/3 loss 0.2500 2.0 batches/s left 0.5s",
        "epoch 2/2 | 3/3 loss 0.2500 2.0 batches/s",
    ]


def test_bar_is_sized_by_the_steps_of_the_plan(clock: Clock, terminal: Console) -> None:
    """With a limit of steps the first epoch has an end in sight too, counted in batches: here two make a step."""

    @on(Phase.BACKWARD_END)
    def every_other(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_STEP | Flag.SKIP_ZERO) if state.pending < 2 else None

    work = Scripted(batches=100, loss=lambda state: clock(4.0, 0.25))

    run(start(work, max_steps=3), [every_other], sinks=[progress(console=terminal, interval=0)])

    assert bars(written(terminal))[2:4] == [
        "epoch 1 step 1/3 | 2/6 loss 0.2500 4.0 s/batch left 16.0s",
        "epoch 1 step 1/3 | 3/9 loss 0.2500 4.0 s/batch left 24.0s",
    ]


def test_longer_epoch_has_no_end_in_sight(clock: Clock, terminal: Console) -> None:
    """An epoch that is longer than the one before shows no total and no remaining time."""
    run(start(Scripted(batches=[1, 3]), epochs=2), sinks=[progress(console=terminal, interval=0)])

    assert bars(written(terminal))[-3:] == [
        "epoch 2/2 | 1/1 loss 0.000",
        "epoch 2/2 | 2 loss 0.000",
        "epoch 2/2 | 3 loss 0.000",
    ]


def test_validation_is_visible(clock: Clock, terminal: Console) -> None:
    """While a validation is under way the bar says so, and how many of its batches are done."""
    work = Scripted(batches=2, valid_batches=2, valid_loss=0.5)

    run(start(work, epochs=1), sinks=[progress(console=terminal, interval=0)])

    assert [line for line in bars(written(terminal)) if "validating" in line] == [
        "epoch 1/1 validating 0 | 2 loss 0.000",
        "epoch 1/1 validating 1 | 2 loss 0.000",
        "epoch 1/1 validating 2 | 2 loss 0.000",
    ]


def test_validation_does_not_count_as_slow_training(clock: Clock, terminal: Console) -> None:
    """The time that a validation in the middle of an epoch takes does not lower the rate of the batches."""

    @on(Phase.BATCH_END)
    def in_the_middle(state: State) -> Transition | None:
        return Transition(flags=Flag.VALIDATE) if state.batch == 3 else None

    work = Scripted(batches=6, loss=lambda state: clock(0.5, 0.25), valid_loss=lambda state: clock(1_000.0, 0.5))

    run(start(work, epochs=1), [in_the_middle], sinks=[progress(console=terminal, interval=0)])

    assert set(re.findall(r"\S+ batches/s", "".join(bars(written(terminal))))) == {"2.0 batches/s"}


def test_bar_is_drawn_ten_times_a_second(clock: Clock, terminal: Console) -> None:
    """Of batches of a hundredth of a second each, every tenth is drawn."""
    work = Scripted(batches=35, loss=lambda state: clock(0.01001, 0.25))

    run(start(work, epochs=1), sinks=[progress(console=terminal)])

    assert re.findall(r"\| (\d+)", "\n".join(bars(written(terminal)))) == ["0", "1", "11", "21", "31"]


def test_short_epochs_draw_no_bar_between_two_looks(clock: Clock, terminal: Console) -> None:
    """Where no time passes, beginnings of epochs and validations after the first are not drawn."""
    run(start(Scripted(valid_loss=0.5), epochs=3), sinks=[progress(console=terminal)])

    assert not [line for line in bars(written(terminal)) if "validating" in line]


def test_bar_leaves_room_at_the_edge(terminal: Console) -> None:
    """The bar ends two columns before the edge, so that a ^C does not tear it apart."""
    run(start(Scripted(), epochs=1), sinks=[progress(console=terminal)])

    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written(terminal)).replace("\n", "\r").split("\r")
    assert {len(line) for line in drawn if "━" in line} == {98}


def test_many_epochs_scroll(terminal: Console) -> None:
    """What is live is one line, whatever the number of epochs, and the header stands at the top alone."""
    run(start(Scripted(), epochs=200), sinks=[progress(console=terminal)])

    shown = screen(written(terminal))
    assert len(shown) == 202
    assert sum("train_loss" in line for line in shown) == 1
    assert len({len(line) for line in shown[:-1]}) == 1
    assert "\x1b[2A" not in written(terminal)
    assert written(terminal).count("\x1b[1A") == 1  # where the bar was, at the end


def test_header_comes_again_with_a_new_metric(clock: Clock, terminal: Console) -> None:
    """A metric that is measured for the first time brings a new header, and one that is missing is a dash."""
    work = Scripted(valid_loss=0.5)

    run(start(work, epochs=3), [skip_valid_of(0, 2)], sinks=[progress(console=terminal)])

    assert screen(written(terminal))[:-1] == [
        "epoch  train_loss          lr    time",
        "  1/3       0.000         0.1    0.0s",
        "epoch  train_loss  valid_loss          lr    time",
        "  2/3       0.000      0.5000         0.1    0.0s",
        "  3/3       0.000           -         0.1    0.0s",
    ]


def test_chosen_metrics_have_their_columns_from_the_start(clock: Clock, terminal: Console) -> None:
    """A metric that was asked for has its column before it was ever measured, so that the header comes once."""
    work = Scripted(valid_loss=0.5)

    run(start(work, epochs=2), [skip_valid_of(0)], sinks=[progress(console=terminal, metrics=["valid_loss"])])

    assert screen(written(terminal))[:-1] == [
        "epoch  valid_loss          lr    time",
        "  1/2           -         0.1    0.0s",
        "  2/2      0.5000         0.1    0.0s",
    ]


def test_skipped_batches_have_no_loss(clock: Clock, terminal: Console) -> None:
    """The bar counts batches that were skipped before there was a loss."""

    @on(Phase.BATCH_BEGIN)
    def skip(state: State) -> Transition:
        return Transition(flags=Flag.SKIP_BATCH)

    run(start(Scripted(batches=2), epochs=1), [skip], sinks=[progress(console=terminal, interval=0)])

    assert bars(written(terminal)) == ["epoch 1/1 | 0", "epoch 1/1 | 1", "epoch 1/1 | 2"]


def test_resumed_training_goes_on_in_its_epoch(clock: Clock, terminal: Console) -> None:
    """A training that is resumed within its third epoch knows from its state alone how long an epoch is."""
    suspended = run(start(Scripted(batches=5), epochs=3), [suspend_after(13)])

    run(suspended, sinks=[progress(console=terminal, interval=0)])

    assert [line.split(" loss")[0] for line in bars(written(terminal))] == [
        "epoch 3/3 | 4/5",
        "epoch 3/3 | 5/5",
    ]
    assert screen(written(terminal))[1].startswith("  3/3  ")


def test_one_sink_shows_one_run_after_the_other(clock: Clock, terminal: Console) -> None:
    """A sink that is used again starts with a new header, and counts the epochs of the state."""
    sink = progress(console=terminal)
    final = run(start(Scripted(), epochs=1), sinks=[sink])

    run(extend(final, epochs=1), sinks=[sink])

    assert [line.split()[:2] for line in screen(written(terminal))] == [
        ["epoch", "train_loss"],
        ["1/1", "0.000"],
        ["all", "1"],
        ["epoch", "train_loss"],
        ["2/2", "0.000"],
        ["all", "2"],
    ]


# ------------------------------------------------------------------------- elsewhere


def test_notebook_updates_one_bar_and_prints_the_rows(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a notebook the bar is one display that is updated and emptied at the end, and the rows are plain output."""
    shown: list[str] = []

    class Handle:
        def update(self, drawn: Any) -> None:
            page = Console(file=StringIO(), width=100)
            page.print(drawn)
            shown.append(written(page))

    def display(drawn: Any, *, display_id: bool) -> Handle:
        return Handle()

    ipython = types.ModuleType("IPython.display")
    ipython.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)

    run(start(Scripted(batches=2), epochs=1), sinks=[progress(console=Console(force_jupyter=True), interval=0)])

    assert bars("".join(shown)) == ["epoch 1/1 | 0", "epoch 1/1 | 1 loss 0.000", "epoch 1/1 | 2 loss 0.000"]
    assert shown[-1].strip() == ""
    assert capsys.readouterr().out.splitlines() == [
        "epoch  train_loss          lr    time",
        "  1/1       0.000         0.1    0.0s",
        "all 1 epoch done  0.0s",
    ]


# ----------------------------------------------------------------------------- what is logged meanwhile

logger = logging.getLogger("fsm_train")


@on(Phase.SETUP)
def speak(state: State) -> None:
    logger.info("what is trained\nand what would make it faster")
    logger.debug("a detail")


def listen_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a program that has nothing to do with logging; pytest listens at the root, or else at the logger itself."""
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [])


def test_what_is_logged_is_shown(clock: Clock, file: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the program has no handler of its own; afterwards the logger is as it was."""
    listen_to_nothing(monkeypatch)
    before = logger.level, list(logger.handlers)

    run(start(Scripted(batches=2), epochs=1), [speak], sinks=[progress(console=file)])

    assert written(file).splitlines()[:2] == ["what is trained", "and what would make it faster"]
    assert "a detail" not in written(file)
    assert (logger.level, logger.handlers) == before


def test_summary_of_the_training_is_shown(terminal: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained stands above the rows."""
    listen_to_nothing(monkeypatch)
    model = torch.nn.Linear(2, 1)
    data = [(torch.zeros(4, 2), torch.zeros(4, 1))]
    work = Supervised(model, torch.optim.Adam(model.parameters()), torch.nn.MSELoss(), data)

    run(start(work, epochs=1), sinks=[progress(console=terminal)])

    first, second, *_ = screen(written(terminal))
    assert first == "Linear of 3 parameters, 3 of them trained by Adam on cpu"
    assert second == "advice: Adam(…, fused=True) takes a step in one kernel instead of many"


def test_program_with_handlers_of_its_own_hears_it_alone(clock: Clock, file: Console) -> None:
    """No message is shown twice; here the handler is that of pytest."""
    run(start(Scripted(batches=2), epochs=1), [speak], sinks=[progress(console=file)])

    assert "trained" not in written(file)


def test_nobody_reading_what_is_logged_ends_no_training(file: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with rows: a reader who has left is no reason to stop."""
    listen_to_nothing(monkeypatch)

    def left(*args: Any, **kwargs: Any) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(file, "out", left)

    with pytest.warns(RuntimeWarning, match="its output is closed"):
        assert run(start(Scripted(batches=2), epochs=2), [speak], sinks=[progress(console=file)]).epoch == 2


@pytest.mark.usefixtures("measured")
def test_reader_who_leaves_does_not_end_the_training() -> None:
    """When the reader of the pipe ends, as with `| head`, the training continues to its end."""
    code = (
        "import sys; sys.stdin.read()\n"
        "from fsm_train import Scripted, run, start\n"
        "from fsm_train.sinks import progress\n"
        "final = run(start(Scripted(), epochs=3), sinks=[progress()])\n"
        "print(final.epoch, 'epochs, at', final.phase.value, file=sys.stderr)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()

    _, said = process.communicate("")

    assert "its output is closed; it is switched off" in said
    assert "3 epochs, at done" in said


def test_rich_is_imported_only_when_progress_is_asked_for() -> None:
    """Importing the package, and its sinks, does not import rich."""
    code = "import sys, fsm_train, fsm_train.sinks; sys.exit('rich' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], check=False)

    assert done.returncode == 0


@pytest.mark.parametrize("interval", [-0.1, float("nan"), float("inf")])
def test_nonsensical_interval_is_refused(interval: float) -> None:
    """An interval that is no number of seconds is refused where it is given."""
    with pytest.raises(ValueError, match="give seconds"):
        progress(interval=interval)


@pytest.mark.parametrize("metrics", ["train_loss", [1]])
def test_metrics_are_names(metrics: Any) -> None:
    """A single name, which is a sequence of letters, and what is no name are refused where they are given."""
    with pytest.raises(TypeError, match="give a list of names"):
        progress(metrics=metrics)
