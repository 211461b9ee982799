"""A callback that is consulted during a part of the training."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

from fsm_train import (
    Callback,
    Flag,
    Phase,
    State,
    Supervised,
    Transition,
    describe,
    on,
    replay,
    restore,
    run,
    start,
    what_if,
)
from fsm_train.callbacks import (
    accumulate,
    checkpoint,
    clip_grad_norm,
    during,
    freeze,
    limit,
    mixed_precision,
    schedule,
    stop_after,
    suspend_after,
)
from fsm_train.callbacks.windows import Recipe
from fsm_train.core.planned import planned_length
from fsm_train.encoding import CannotDecodeError, encode
from fsm_train.eventlog.from_header import callback_from_spec
from fsm_train.schedules import absolute, cosine
from fsm_train.testing import at, simulate


@attrs.frozen
class Seen:
    """A memory that only an annotation speaks of."""

    at: tuple[tuple[str, int, int], ...] = ()


def witness(*phases: Phase) -> Callback[Any]:
    @on(*phases, memory=None)
    def witness(state: State, seen: Seen | None) -> Transition:
        before = () if seen is None else seen.at
        return Transition(memory=Seen((*before, (state.phase.value, state.epoch, state.step))))

    return witness


def seen(callback: Callback[Any], **settings: Any) -> list[tuple[str, int, int]]:
    memory: Any = simulate([callback], **settings).memory["witness"]
    return [] if memory is None else list(memory.at)


@pytest.mark.parametrize(
    ("window", "epochs"), [((1, 3), [1, 2]), ((None, 2), [0, 1]), ((2, None), [2, 3]), ((None, None), [0, 1, 2, 3])]
)
def test_epochs_are_those_of_a_slice(window: Any, epochs: list[int]) -> None:
    """Half open, from 0, and open with None; the end of an epoch belongs to it, though it is counted by then."""
    begins = seen(during(witness(Phase.EPOCH_BEGIN), epochs=window), epochs=4, batches=2)
    ends = seen(during(witness(Phase.EPOCH_END), epochs=window), epochs=4, batches=2)
    batches = seen(during(witness(Phase.BATCH_END), epochs=window), epochs=4, batches=2)
    valid = seen(during(witness(Phase.VALID_END), epochs=window), epochs=4, batches=2, valid_loss=1.0)

    assert [epoch for _, epoch, _ in begins] == epochs
    assert [epoch - 1 for _, epoch, _ in ends] == epochs
    assert [epoch for _, epoch, _ in batches] == sorted(epochs * 2)
    assert [epoch for _, epoch, _ in valid] == epochs


@pytest.mark.parametrize(("window", "steps"), [((1, 3), [1, 2]), ((None, 2), [0, 1]), ((3, None), [3])])
def test_steps_are_those_of_a_slice(window: Any, steps: list[int]) -> None:
    """By the steps that were taken; the end of a step belongs to it, though it is counted by then."""
    begins = seen(during(witness(Phase.STEP_BEGIN), steps=window), epochs=2, batches=2)
    ends = seen(during(witness(Phase.STEP_END), steps=window), epochs=2, batches=2)

    assert [step for _, _, step in begins] == steps
    assert [step - 1 for _, _, step in ends] == steps


def test_outside_of_epochs_it_is_consulted_as_ever() -> None:
    """There a schedule reads its bases, and a checkpoint is written at SUSPEND."""
    phases = (Phase.SETUP, Phase.TRAIN_BEGIN, Phase.BATCH_END, Phase.TRAIN_END, Phase.TEARDOWN)
    callback = during(witness(*phases), epochs=(7, 8))

    assert [phase for phase, _, _ in seen(callback)] == ["setup", "train_begin", "train_end", "teardown"]


def test_what_was_set_stays_when_the_window_ends() -> None:
    """A hyper-parameter keeps its last value; what is for one batch ends with it."""
    rates = schedule(lr=absolute(lambda step: 0.1 * (step + 1)))
    final = simulate([during(rates, steps=(0, 3))], hyper={"lr": 1.0}, epochs=1, batches=5)

    assert final.hyper["lr"] == pytest.approx(0.3)
    assert simulate([during(accumulate(2), epochs=(1, 2))], epochs=3, batches=4).step == 4 + 2 + 4


def test_declarations_memory_and_name_are_those_of_the_callback() -> None:
    """So that it is described, checked against the others and saved as it."""
    inner = clip_grad_norm(1.0)
    callback = during(inner, epochs=(0, 4))

    assert attrs.evolve(callback, params=inner.params, factory=inner.factory) == inner
    assert during(inner, epochs=(0, 4), name="early").name == "early"
    assert callback.factory == "fsm_train.callbacks.windows.during"
    assert repr(callback.params["callback"]) == "clip_grad_norm(max_norm=1.0, norm_type=2.0, pattern=None)"
    assert "commands ClipGradNorm" in describe([callback])
    assert callback(at(Phase.STEP_BEGIN, epoch=3)) == inner(at(Phase.STEP_BEGIN, epoch=3))
    assert callback(at(Phase.STEP_BEGIN, epoch=4)) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: during(clip_grad_norm(1.0), epochs=(0, 4)),
        lambda: during(schedule(lr=cosine(9)), steps=[1, None], name="early"),
        lambda: during(during(accumulate(2), epochs=(0, 3)), epochs=(1, None)),
        lambda: during(top_level, epochs=(0, 1)),
    ],
)
def test_pickled_is_the_same(make: Callable[[], Callback[Any]]) -> None:
    """By the call that made it, for a pool of processes."""
    callback = make()
    copied = pickle.loads(pickle.dumps(callback))

    assert copied == callback
    state = at(Phase.STEP_BEGIN, epoch=9, step=9)
    assert copied(state) == callback(state)


@on(Phase.STEP_BEGIN, raises=Flag.NONE, sets=(), commands=())
def top_level(state: State) -> None:
    """A callback of a script, without a factory."""


def training() -> tuple[nn.Module, State]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    batches = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(4)]
    work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.5), nn.MSELoss(), batches)
    return model, start(work, epochs=3)


def test_clipping_during_one_epoch_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    """Bit for bit, also suspended and resumed at each batch; and the log replays without the callbacks."""
    callbacks = [during(clip_grad_norm(0.1), epochs=(1, 2))]
    model, begin = training()
    run(begin, callbacks, log=tmp_path / "run.jsonl")

    torch.manual_seed(0)
    plain = nn.Linear(3, 1)
    batches = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(4)]
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    for epoch in range(3):
        for inputs, target in batches:
            optimizer.zero_grad()
            nn.functional.mse_loss(plain(inputs), target).backward()  # type: ignore[no-untyped-call]
            if epoch == 1:
                nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
            optimizer.step()
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
    assert replay(tmp_path / "run.jsonl").ok

    resumed, state = training()
    each = [*callbacks, suspend_after(seconds=1e-9), checkpoint(tmp_path / "checkpoints")]
    while (state := run(state, each)).phase is Phase.SUSPENDED:
        resumed, begin = training()
        assert begin.workload is not None
        state = restore(tmp_path / "checkpoints", begin.workload)
    assert all(map(torch.equal, resumed.parameters(), plain.parameters()))


def test_another_window_is_asked_of_a_log(tmp_path: Path) -> None:
    """what_if takes the callback with other settings, under the same name."""
    log = tmp_path / "run.jsonl"
    _, begin = training()
    run(begin, [during(limit(batches=2), epochs=(0, 1))], log=log)

    assert what_if(log, [during(limit(batches=2), epochs=(0, 1))]).state.iteration == 10
    assert what_if(log, [during(limit(batches=2), epochs=(1, 2))]).state.iteration < 10


def test_only_factories_of_the_library_are_called_for_a_log() -> None:
    """Not the one that a log names inside of a window, however deep."""

    def spec(innermost: str) -> dict[str, Any]:
        inner = Recipe(innermost, "x", {"max_norm": 1.0})
        outer = Recipe("fsm_train.callbacks.windows.during", "x", {"callback": inner, "epochs": (0, 1)})
        params = {"callback": encode(outer), "epochs": [0, 1]}
        return {"factory": outer.factory, "name": "x", "params": params}

    made = callback_from_spec(spec("fsm_train.callbacks.clipping.clip_grad_norm"))
    assert made(at(Phase.STEP_BEGIN)) == clip_grad_norm(1.0)(at(Phase.STEP_BEGIN))
    with pytest.raises(CannotDecodeError, match="the callback inside is not of the library"):
        callback_from_spec(spec("os.system"))


def test_length_of_the_plan_is_not_guessed_where_it_changes_for_a_part() -> None:
    """A schedule is noted neither as too long nor as too short then."""
    state = at(Phase.READY, batches_per_epoch=8)
    for inner in (accumulate(2), limit(batches=3), stop_after(steps=4), during(accumulate(2), epochs=(0, 1))):
        assert planned_length(state, [during(inner, epochs=(0, 1))]).step is None
    assert planned_length(state, [during(clip_grad_norm(1.0), epochs=(0, 1))]) == planned_length(state)


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: during(clip_grad_norm(1.0)), ValueError, "give epochs=.* or steps="),
        (lambda: during(clip_grad_norm(1.0), epochs=(0, 1), steps=(0, 1)), ValueError, "and not both"),
        (lambda: during(clip_grad_norm(1.0), epochs=4), TypeError, r"epochs=4: give the first and the one after"),
        (lambda: during(clip_grad_norm(1.0), steps=(1, 2, 3)), TypeError, r"steps=\(1, 2, 3\)"),
        (lambda: during(clip_grad_norm(1.0), epochs=(2, 2)), ValueError, "is empty"),
        (lambda: during(clip_grad_norm(1.0), epochs=(None, 0)), ValueError, "is empty"),
        (lambda: during(clip_grad_norm(1.0), epochs=(-1, 2)), ValueError, "the first of epochs"),
        (lambda: during(clip_grad_norm(1.0), steps=(1, 2.5)), (TypeError, ValueError), "the end of steps"),
        (lambda: during(clip_grad_norm(1.0), epochs=(0, 1), name=torch.zeros(2)), TypeError, "name="),
        (lambda: during(clip_grad_norm, epochs=(0, 1)), TypeError, "clip_grad_norm"),
        (lambda: during(mixed_precision("float16"), epochs=(0, 1)), ValueError, "consulted at setup only"),
        (lambda: during(freeze("a.*"), epochs=(0, 1)), ValueError, "consulted at setup only"),
    ],
)
def test_what_makes_no_window_is_refused(make: Callable[[], Any], error: Any, sentence: str) -> None:
    """When it is made, in a sentence."""
    with pytest.raises(error, match=sentence):
        make()
