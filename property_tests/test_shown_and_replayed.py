"""What is shown of a training is what it did: the rates of its epochs, and a log that replays from its header."""

from __future__ import annotations

import inspect
import io
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn
from torch.optim import lr_scheduler

from fsm_train import (
    Callback,
    ConflictError,
    Flag,
    LogError,
    Phase,
    Scripted,
    State,
    Supervised,
    Transition,
    on,
    replay,
    run,
    start,
)
from fsm_train.callbacks import accumulate, reduce_on_plateau, schedule, torch_scheduler
from fsm_train.core.origin import call_factory, resolve
from fsm_train.eventlog import from_header, render
from fsm_train.eventlog.render import summarize
from fsm_train.schedules import absolute, exponential
from fsm_train.sinks import progress
from fsm_train.sinks.current_epoch import CurrentEpoch
from tests.testing.library_examples import EXAMPLES

# ------------------------------------------------------------------------------- rates of epochs

BATCHES = 3
CLOCKS = ("step", "iteration", "epoch")
SETS_AT = [Phase.SETUP, Phase.EPOCH_BEGIN, Phase.BATCH_BEGIN, Phase.STEP_BEGIN, Phase.STEP_END, Phase.BATCH_END,
           Phase.VALID_END, Phase.EPOCH_END]  # fmt: skip


def halved_at(phase: Phase) -> Callback[Any]:
    """A callback of one's own that halves the rate there."""

    @on(phase, name="halved", sets={"lr"})
    def halved(state: State) -> Transition:
        rate = state.hyper["lr"]
        half = tuple(each / 2 for each in rate) if isinstance(rate, tuple) else rate / 2
        return Transition(hyper={"lr": half})

    return halved


WAYS: Mapping[str, Callable[[], list[Callback[Any]]]] = {
    "nothing": list,
    **{f"by hand at {phase.value}": lambda phase=phase: [halved_at(phase)] for phase in SETS_AT},
    **{
        f"schedule by {by}": lambda by=by: [schedule(lr=exponential(0.5), by=by)]
        for by in ("step", "iteration", "epoch")
    },
    "schedule by training": lambda: [schedule(lr=lambda share: 0.5 ** (8 * share), by="training")],
    "values": lambda: [schedule(lr=absolute(exponential(0.5)))],
    "plateau": lambda: [reduce_on_plateau(patience=0, factor=0.5, min_delta=1e9)],
    "torch by step": lambda: [torch_scheduler(lambda o: lr_scheduler.StepLR(o, 1, 0.5))],
    "torch by epoch": lambda: [torch_scheduler(lambda o: lr_scheduler.StepLR(o, 1, 0.5), by="epoch")],
}


@attrs.frozen
class Training:
    """How the rate is set, and what else happens.

    Attributes:
        way: that sets the rate.
        groups: of parameters.
        window: batches of a step.
        skipped: batches, counted through, that are left out.
        left_at: the batch after which the training is suspended, to go on in another call.
    """

    way: str
    groups: int = 1
    window: int = 1
    skipped: frozenset[int] = frozenset()
    left_at: int | None = None


TRAININGS = st.builds(
    Training,
    st.sampled_from(sorted(WAYS)),
    st.integers(1, 2),
    st.integers(1, 2),
    # The first batch is trained: torch warns of a scheduler that steps before its optimizer has.
    st.frozensets(st.integers(1, 3 * BATCHES - 1), max_size=5),
    st.none() | st.integers(1, 3 * BATCHES - 1),
)


def shown_is_used(training: Training) -> None:
    """Run it, and compare what the log and the progress show of each epoch with what the optimizer stepped with."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    parts = [{"params": list(layer.parameters())} for layer in model]
    optimizer = torch.optim.SGD(parts if training.groups == 2 else list(model.parameters()), lr=1e-3)
    data = [(torch.ones(1, 1), torch.zeros(1, 1))] * BATCHES
    work = Supervised(model, optimizer, nn.MSELoss(), data, data[:1])
    used: list[list[Any]] = []
    left: list[int] = []

    def rate() -> Any:
        rates = tuple(group["lr"] for group in optimizer.param_groups)
        return rates[0] if len(rates) == 1 else rates

    optimizer.register_step_pre_hook(lambda *_: used[-1].append(rate()))

    @on(Phase.BATCH_BEGIN)
    def begins(state: State) -> None:
        if state.batch == 0:
            used.append([state.hyper["lr"]])  # as EPOCH_BEGIN left it

    @on(Phase.BATCH_BEGIN, Phase.BATCH_END)
    def disturbs(state: State) -> Transition | None:
        if state.phase is Phase.BATCH_BEGIN:
            return Transition(flags=Flag.SKIP_BATCH) if state.iteration in training.skipped else None
        if state.iteration == training.left_at and not left:
            left.append(state.iteration)
            return Transition(flags=Flag.SUSPEND)
        return None

    callbacks = [*WAYS[training.way](), begins, disturbs]
    callbacks += [accumulate(training.window)] if training.window > 1 else []
    screen = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "run.jsonl")
        state = start(work, epochs=3)
        for _ in range(2 if training.left_at else 1):
            shows = progress(console=Console(file=screen, width=100), metrics=[])
            state = run(state, callbacks, log=log, sinks=[shows])
        rates = [epoch.rate for epoch in summarize(log).epochs]
    expected = [each[-1] for each in used]

    assert state.phase is Phase.DONE
    assert rates == pytest.approx(expected) if training.groups == 1 else rates == expected
    if training.groups == 1 and not training.left_at:
        printed = [float(line.split("lr ")[1].split()[0]) for line in screen.getvalue().splitlines() if "lr " in line]
        assert printed == pytest.approx(expected, rel=1e-2)


@given(TRAININGS)
def test_the_rate_that_is_shown_is_that_of_the_last_step_of_the_epoch(training: Training) -> None:
    """By any way of setting it, with steps of several batches, batches that are left out, and in two calls of run."""
    shown_is_used(training)


def progress_shows_the_next(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CurrentEpoch, "hyper_used", lambda self, state: state.hyper)


def the_log_shows_the_next(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(render._Rates, "end_epoch", lambda rates: rates._now)


def an_epoch_without_a_step_is_the_last(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(render._Rates, "begin_epoch", lambda rates: None)


@pytest.mark.parametrize(
    ("bug", "training"),
    [
        (progress_shows_the_next, Training("by hand at epoch_end")),
        (the_log_shows_the_next, Training("torch by step")),
        (an_epoch_without_a_step_is_the_last, Training("by hand at epoch_begin", skipped=frozenset({3, 4, 5}))),
    ],
)
def test_a_rate_that_is_another_is_caught(
    bug: Callable[[pytest.MonkeyPatch], None], training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The law has teeth, and holds without the bug."""
    shown_is_used(training)
    bug(monkeypatch)

    with pytest.raises(AssertionError):
        shown_is_used(training)


# --------------------------------------------------------------------------- replayed from the header

MAKERS = {f"{name} {i}": make for name, made in EXAMPLES.items() for i, make in enumerate(made)}


def is_data(callback: Callback[Any]) -> bool:
    """Whether a log can hold its settings: a function is none."""
    return not any(inspect.isroutine(value) for value in callback.params.values())


LOGGED = sorted(name for name, make in MAKERS.items() if is_data(make()))


def replays_from_its_header(names: frozenset[str], own_name: str) -> None:
    """A training with these callbacks, one to a kind; the first has a name of its own, if any is given."""
    kinds = {name.split()[0]: name for name in sorted(names)}
    callbacks = [MAKERS[name]() for name in kinds.values()]
    if own_name and callbacks:
        first = callbacks[0]
        callbacks[0] = call_factory(resolve(first.factory), dict(first.params), own_name)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "run.jsonl")
        work = Scripted(
            loss=lambda state: 1 / (1 + state.step),
            valid_loss=lambda state: (1.0, 0.5, 0.7)[state.step % 3],
            valid_accuracy=lambda state: (0.5, 0.7)[state.step % 2],
            hyper={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "beta1": 0.9},
            tokens=3.0,
        )
        state = start(work, epochs=3, seed=0)
        try:
            run(state, callbacks, log=log)
        except ConflictError:  # these two do not go together
            return
        assert replay(log).ok


@given(st.frozensets(st.sampled_from(LOGGED), min_size=1, max_size=3), st.sampled_from(["", "mine"]))
def test_a_log_of_any_callbacks_of_the_library_replays_from_its_header(names: frozenset[str], own_name: str) -> None:
    """Without being given a callback: each is made again by its settings and its name."""
    replays_from_its_header(names, own_name)


def forgets_the_name(make: Callable[..., Any], params: Mapping[str, object], name: str) -> Any:
    return make(**params)


def spreads_nothing(make: Callable[..., Any], params: Mapping[str, object], name: str) -> Any:
    return attrs.evolve(make(**params), name=name)


@pytest.mark.parametrize(
    ("bug", "name", "own_name"),
    [
        (forgets_the_name, "grad_noise 0", "mine"),
        (spreads_nothing, "record 0", ""),
        (spreads_nothing, "grad_noise 0", "mine"),
    ],
)
def test_a_callback_that_is_made_otherwise_is_caught(
    bug: Any, name: str, own_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The law has teeth: a name that is forgotten, arguments that are not spread."""
    replays_from_its_header(frozenset({name}), own_name)
    monkeypatch.setattr(from_header, "call_factory", bug)

    with pytest.raises((AssertionError, LogError)):
        replays_from_its_header(frozenset({name}), own_name)
