"""Logs that replay, rates that were used, reasons that are said once, commands in time, sinks that change nothing."""

from __future__ import annotations

import io
import logging
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from rich.console import Console
from rich.logging import RichHandler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import (
    Callback,
    CallbackError,
    Command,
    Flag,
    LrFound,
    Phase,
    Scripted,
    Sink,
    State,
    Supervised,
    Transition,
    describe,
    on,
    replay,
    run,
    start,
)
from fsm_train.callbacks import grad_noise, record, reduce_on_plateau, schedule, stop_after, torch_scheduler
from fsm_train.commands import AddPenalty, ClipGradNorm, MixUp, UseMixedPrecision, WeighLoss
from fsm_train.core.runs import reasons_agree
from fsm_train.eventlog.render import summarize
from fsm_train.schedules import absolute, exponential
from fsm_train.sinks import progress
from fsm_train.testing import simulate
from tests.eventlog.log_files import forged


def supervised(**settings: Any) -> Supervised:
    model = nn.Linear(4, 1)
    data = [(torch.ones(2, 4), torch.zeros(2, 1))] * 2
    return Supervised(model, torch.optim.SGD(model.parameters(), lr=1e-30), nn.MSELoss(), data, data, **settings)


# --------------------------------------------------------------------------------- replay


@pytest.mark.parametrize(
    "callback", [record("loss", "grad_norm", every=2), record("loss"), grad_noise(0.1, name="noise of mine")]
)
def test_a_log_makes_its_callbacks_again(callback: Callback[Any], tmp_path: Path) -> None:
    """Also with variadic settings, and with a name on which the answers depend."""
    log = tmp_path / "run.jsonl"
    run(start(supervised(), epochs=2), [callback], log=log)

    assert replay(log).ok


# --------------------------------------------------------------------------------- the rate of an epoch


@on(Phase.VALID_END, sets={"lr"})
def after_validation(state: State) -> Transition:
    return Transition(hyper={"lr": state.hyper["lr"] / 2})


@on(Phase.BATCH_END, sets={"lr"})
def after_batch(state: State) -> Transition:
    return Transition(hyper={"lr": state.hyper["lr"] / 2})


RATES: list[Callable[[], Callback[Any]]] = [
    lambda: torch_scheduler(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), by="epoch"),
    lambda: torch_scheduler(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), by="step"),
    lambda: reduce_on_plateau(patience=0, factor=0.5),
    lambda: schedule(lr=exponential(0.9)),
    lambda: schedule(lr=absolute(exponential(0.9)), by="epoch"),
    lambda: after_validation,
    lambda: after_batch,
    lambda: record("loss"),
]


@pytest.mark.parametrize("make", RATES)
@pytest.mark.parametrize("terminal", [False, True])
def test_the_rate_of_a_row_is_that_of_the_last_step_of_its_epoch(
    make: Callable[[], Callback[Any]], terminal: bool, tmp_path: Path
) -> None:
    """In progress and in show, whatever sets it, and at whatever phase."""
    used: dict[int, Any] = {}
    optimizer: Any = None

    def look(*_: object) -> None:
        used[work.model.epoch] = optimizer.param_groups[0]["lr"]

    work = supervised()
    optimizer = work.optimizer
    optimizer.register_step_pre_hook(look)
    work.model.epoch = 0  # type: ignore[assignment]

    @on(Phase.EPOCH_BEGIN)
    def count(state: State) -> None:
        work.model.epoch = state.epoch  # type: ignore[assignment]

    screen = io.StringIO()
    console = Console(file=screen, width=100, force_terminal=terminal, color_system=None)
    sinks = [progress(console=console, metrics=[], interval=1e9)]
    log = tmp_path / "run.jsonl"
    final = run(start(work, epochs=3), [make(), count], log=log, sinks=sinks)
    run(attrs.evolve(final, plan=attrs.evolve(final.plan, epochs=4)), [make(), count], log=log)

    assert [epoch.rate for epoch in summarize(log).epochs] == pytest.approx(list(used.values()))
    shown = screen.getvalue().replace("\r", "\n").splitlines()
    rows = [line for line in shown if "/3 " in line and ("epoch" not in line if terminal else "lr" in line)]
    printed = [float(line.split()[-2]) for line in rows]  # the last word is the time
    assert printed == pytest.approx([used[0], used[1], used[2]], rel=1e-3)


def test_an_epoch_without_a_step_has_the_rate_that_it_began_with(tmp_path: Path) -> None:
    """There is no other; each group has its own."""
    screen = io.StringIO()
    skip = Callback("skip", Phase.STEP_BEGIN, lambda state, memory: Transition(flags=Flag.SKIP_STEP))
    work = Scripted(hyper={"lr": (0.1, 0.2)}, valid_loss=1.0)
    sinks = [progress(console=Console(file=screen, width=100), metrics=[])]
    run(start(work, epochs=2), [skip, reduce_on_plateau(patience=0, factor=0.5)], log=tmp_path / "log", sinks=sinks)

    assert [epoch.rate for epoch in summarize(tmp_path / "log").epochs] == [(0.1, 0.2), (0.1, 0.2)]
    assert screen.getvalue().count("0.1") == 2


# --------------------------------------------------------------------------------- find_lr


def found(losses: list[float]) -> LrFound:
    smoothed, average = [], 0.0
    for i, loss in enumerate(losses):
        average = 0.98 * average + 0.02 * loss
        smoothed.append(average / (1 - 0.98 ** (i + 1)))
    return LrFound(tuple(10.0 ** (i / 10) for i in range(len(losses))), tuple(losses), tuple(smoothed))


def test_losses_that_never_fall_suggest_no_rate() -> None:
    """Rising or constant: the error says so, the text says none, and the plot has no line for it."""
    for losses in ([0.0, 1.0, 2.0, 3.0], [1.0] * 20):
        with pytest.raises(ValueError, match="so none is suggested"):
            _ = found(losses).suggestion
        assert "suggestion" in repr(found(losses))
        assert "none" in repr(found(losses))


def test_noise_suggests_no_rate() -> None:
    """A dip that is no larger than what batches differ by is none; a fall that is larger is found in the same noise."""
    noise = random.Random(3)
    rising = [1 + i / 50 + noise.gauss(0, 0.1) for i in range(50)]
    flat = [1.0 + 0.1 * (-1) ** i * (i % 3) for i in range(1, 51)]
    falling = [2 - i / 50 + noise.gauss(0, 0.1) for i in range(50)]

    for losses in (rising, flat):
        with pytest.raises(ValueError, match="fell by no more than it varies|fell with no rate"):
            _ = found(losses).suggestion
    assert found(falling).suggestion in found(falling).rates


# --------------------------------------------------------------------------------- reasons


def test_a_reason_is_said_once() -> None:
    """stop_after looks at BATCH_END and EPOCH_END, with other seconds each time."""
    final = simulate([stop_after(seconds=5)], batches=9, elapsed=lambda state: 1.0 * state.iteration + state.epoch)
    assert final.reason == "stop_after: 5.0 seconds are over"


@on(Phase.BATCH_END, Phase.EPOCH_END)
def stops(state: State) -> Transition | None:
    return Transition(flags=Flag.STOP_TRAINING, reason=f"seen at {state.phase.value}") if state.iteration > 1 else None


@on(Phase.EPOCH_END)
def stops_too(state: State) -> Transition | None:
    return Transition(flags=Flag.STOP_TRAINING) if state.iteration > 1 else None


def test_each_callback_that_stops_gives_its_reason() -> None:
    """One that stops later than another is named beside it."""
    assert simulate([stops, stops_too], batches=9).reason == "stops: seen at batch_end; stops_too"


def test_an_old_interruption_is_no_reason_of_a_finished_training() -> None:
    """The training was stopping when the signal came, and ends after the resumption for that reason alone."""
    pauses = Callback(
        "pauses",
        Phase.VALID_END,
        lambda state, memory: Transition(flags=Flag.SUSPEND, reason="for lunch"),
        raises=Flag.SUSPEND,
    )
    work = Scripted(batches=2, valid_loss=1.0, loss=lambda state: os.kill(os.getpid(), signal.SIGINT) or 1.0)  # type: ignore[func-returns-value]
    suspended = run(start(work, epochs=3), [stops_now, pauses])
    assert "interrupted by SIGINT" in suspended.reason
    again = run(suspended, [stops_now, pauses])
    final = run(again, [stops_now, pauses])

    assert "for lunch" in again.reason
    assert (final.phase, final.reason) == (Phase.DONE, "stops_now: enough")


@on(Phase.BATCH_END)
def stops_now(state: State) -> Transition:
    return Transition(flags=Flag.STOP_TRAINING, reason="enough")


def test_logs_of_earlier_versions_agree_in_their_reasons() -> None:
    """A reason that stands there twice, or with an old interruption, is the reason that is given once."""
    assert reasons_agree("a: 1", "a: 1")
    assert reasons_agree("a: 1; a: 2; b", "a: 1; b")
    assert reasons_agree("a: 1; interrupted by SIGTERM", "a: 1")
    assert not reasons_agree("a: 1; c: 3", "a: 1")
    assert not reasons_agree("a: 2", "a: 1")


@pytest.mark.parametrize(("reason", "agrees"), [("stop_after: 0 steps were taken", True), ("other: 1", False)])
def test_a_log_that_has_a_reason_twice_replays(reason: str, agrees: bool, tmp_path: Path) -> None:
    """As earlier versions wrote it: one more of the same callback agrees, one of another does not."""
    log = tmp_path / "run.jsonl"
    run(start(Scripted(batches=2), epochs=1), [stop_after(steps=1)], log=log)

    def add(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line.get("reason"):
                line["reason"] = f"{line['reason']}; {reason}"

    forged(log, add)
    assert replay(log).ok == agrees


# --------------------------------------------------------------------------------- commands


USELESS: list[tuple[Command, Phase]] = [
    (ClipGradNorm(1.0), Phase.EPOCH_END),
    (ClipGradNorm(1.0), Phase.LOSS_END),
    (WeighLoss(0.5), Phase.BATCH_END),
    (AddPenalty(l2=0.1), Phase.BACKWARD_END),
    (MixUp(0.7, seed=0), Phase.LOSS_BEGIN),
    (UseMixedPrecision("bfloat16"), Phase.TRAIN_END),
]


@pytest.mark.parametrize(("command", "phase"), USELESS)
def test_a_command_of_which_nothing_can_come_is_refused(command: Command, phase: Phase) -> None:
    """When it is given, with the phases where something can; before the run, if it is declared."""
    late = Callback("late", phase, lambda state, memory: Transition(commands=(command,)))
    with pytest.raises(CallbackError, match="nothing can come of it here; give it at one of: "):
        simulate([late])
    for look in (describe, lambda callbacks: simulate(callbacks)):
        with pytest.raises(
            ValueError, match=f"gives the command {type(command).__name__} where nothing can come of it"
        ):
            look([attrs.evolve(late, commands={type(command)})])


def test_a_command_in_time_is_described_where_it_is_useful() -> None:
    """A callback of several phases gives each of its commands where something comes of it."""
    several = Callback("several", (Phase.LOSS_END, Phase.STEP_BEGIN), lambda state, memory: None, commands={WeighLoss})
    loss_end, step_begin = describe([several]).split("step_begin")

    assert "commands WeighLoss" in loss_end
    assert "commands" not in step_begin


# --------------------------------------------------------------------------------- sinks and sensors that draw


class Draws:
    """A sink that draws in each of its methods, from each kind of generator."""

    at, needs, interval = (Phase.EPOCH_END, Phase.BATCH_END), frozenset({"probe"}), 0.0

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def draw(self) -> None:
        torch.randint(10, (3,))
        np.random.rand(2)
        random.random()
        torch.randint(10, (3,), generator=self.loader.generator)

    def open(self, state: State, callbacks: Any) -> None:
        self.draw()

    def see(self, state: State, answers: Any) -> None:
        self.draw()

    def close(self) -> None:
        self.draw()


def drawn_beside(sinks: Callable[[Any], list[Any]]) -> tuple[Any, ...]:
    """The weights that a training with these sinks of its loader ends with, and what each generator gives then."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    data = TensorDataset(torch.randn(20, 4), torch.randn(20, 1))
    loader = DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    work = Supervised(model, optimizer, nn.MSELoss(), loader, sensors={"probe": lambda work: torch.rand(())})
    run(start(work, epochs=3, seed=0), sinks=sinks(loader))
    own = torch.rand(2, generator=loader.generator).tolist()
    return (model[0].weight.tolist(), own, torch.rand(2).tolist(), random.random(), np.random.rand())


class DrawsAtTheEnd(Sink):
    """A sink of two members that shows a random sample, as trackers do."""

    at = (Phase.EPOCH_END,)

    def see(self, state: State, answers: Any) -> None:
        torch.randint(10, (3,))


class Seeds(DrawsAtTheEnd):
    """A sink that seeds the generators for itself."""

    def see(self, state: State, answers: Any) -> None:
        torch.manual_seed(99)
        np.random.seed(99)
        random.seed(99)


class AsksOnly(DrawsAtTheEnd):
    """A sink for which a sensor draws, and that draws nothing itself."""

    needs = frozenset({"probe"})

    def see(self, state: State, answers: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    "sinks",
    [
        lambda loader: [Draws(loader)],
        lambda loader: [DrawsAtTheEnd()],
        lambda loader: [Seeds()],
        lambda loader: [AsksOnly()],
        lambda loader: [Draws(loader), Seeds()],
    ],
    ids=["in each method", "in see", "seeds", "a sensor that draws", "two"],
)
def test_a_sink_that_draws_changes_nothing(sinks: Callable[[Any], list[Any]]) -> None:
    """Neither the weights nor what is drawn afterwards; a sensor that it asks for and that draws does not either."""
    assert drawn_beside(sinks) == drawn_beside(lambda loader: [])


def test_a_sink_that_says_that_it_never_draws_costs_no_reading_of_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of the library say."""
    work = supervised()
    monkeypatch.setattr(type(work), "undisturbed", lambda work: pytest.fail("the generators were read"))
    console = Console(file=io.StringIO(), width=80)
    assert run(start(work, epochs=1), sinks=[progress(console=console)]).phase is Phase.DONE


# --------------------------------------------------------------------------------- Ctrl-C


class Saves(Scripted):
    """Sends signals while a command is carried out, and says whether that came to an end."""

    saved = False
    signals: tuple[signal.Signals, ...] = (signal.SIGINT,)

    def carry_out(self, command: Command, state: State) -> None:
        for number in self.signals:
            os.kill(os.getpid(), number)
        self.saved = True


@attrs.frozen
class Save(Command):
    pass


def _saving(phase: Phase) -> Callback[None]:
    return Callback("save", phase, lambda state, memory: Transition(commands=(Save(),)))


def test_ctrl_c_again_while_saving_ends_at_once() -> None:
    """The machine has acted on the first one; the second is KeyboardInterrupt, and handlers are back."""
    before = signal.getsignal(signal.SIGINT)
    work = Saves(loss=lambda state: os.kill(os.getpid(), signal.SIGINT) or 1.0)  # type: ignore[func-returns-value]
    with pytest.raises(KeyboardInterrupt):
        run(start(work, epochs=2), [_saving(Phase.SUSPEND)])

    assert not work.saved
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("phase", [Phase.TRAIN_END, Phase.TEARDOWN])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_too_late_does_not_take_the_state_away(phase: Phase, number: signal.Signals) -> None:
    """The state is returned, and says it."""
    work = Saves()
    work.signals = (number,)
    final = run(start(work, epochs=1), [_saving(phase)])

    assert (final.phase, work.saved, work.interrupt) == (Phase.DONE, True, None)
    assert [note.split()[0] for note in final.notes] == [number.name]


def test_ctrl_c_twice_at_the_end_is_keyboard_interrupt() -> None:
    """Who presses it again does not want to wait."""
    work = Saves()
    work.signals = (signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(start(work, epochs=1), [_saving(Phase.TEARDOWN)])


# --------------------------------------------------------------------------------- logging and the bar


@pytest.mark.parametrize("kind", ["stream", "rich"])
def test_log_records_are_shown_above_the_bar(kind: str) -> None:
    """A handler that has held the terminal's stream since before the bar writes above it, and is restored after."""
    screen = io.StringIO()
    console = Console(file=screen, width=100, force_terminal=True, color_system=None)
    handler: Any = logging.StreamHandler(screen)
    if kind == "rich":
        handler = RichHandler(console=Console(file=screen, width=100, force_terminal=True))
    held = handler.stream if kind == "stream" else handler.console
    logger = logging.getLogger("a program")
    logger.addHandler(handler)

    @on(Phase.BATCH_END)
    def speaks(state: State) -> None:
        logger.warning("spoken %d", state.iteration)

    try:
        run(start(Scripted(), epochs=1), [speaks], sinks=[progress(console=console, interval=0.0)])
    finally:
        logger.removeHandler(handler)

    lines = [line for line in screen.getvalue().splitlines() if "spoken" in line]
    assert len(lines) == 3
    assert not any("epoch 1" in line for line in lines), "no record stands in the line of the bar"
    assert (handler.stream if kind == "stream" else handler.console) is held
