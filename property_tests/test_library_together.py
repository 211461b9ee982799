"""Any part of the library, in any order, beside one loop that does all of it by hand."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from fsm_train import Callback, Flag, Phase, Plan, State, Supervised, Transition, on, run, start
from fsm_train.callbacks import (
    accumulate,
    clip_grad_norm,
    clip_grad_value,
    early_stopping,
    ema,
    freeze,
    grad_noise,
    limit,
    mixed_precision,
    mixup,
    parallel,
    record,
    reduce_on_plateau,
    restore_best,
    schedule,
    skip_nonfinite,
    stop_after,
    stop_on_nonfinite,
    swa,
    torch_scheduler,
    validate_every,
    weight_penalty,
)
from fsm_train.supervised.buffers import Buffers
from fsm_train.testing import at
from tests.diabetes_training import batches, net, sgd
from tests.models import same_weights

EPOCHS, SEED = 3, 4
A_THIRD = settings(max_examples=settings().max_examples // 3)
SIZES = (8, 8, 5, 6)
VALID = batches(6, 4, skip=40)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    """Sums are taken in one order, and small models do not wait for threads."""
    torch.set_num_threads(1)


@attrs.frozen
class Chosen:
    """What is done in a training; nothing of it by default."""

    every: int = 1
    drop_last: bool = False
    bad: frozenset[int] = frozenset()  # batches of each epoch whose loss is not finite
    batches: int | None = None
    steps: int | None = None
    validate: int | None = None
    scheduled: bool = False
    torch_scheduled: bool = False
    plateau: bool = False
    patience: int | None = None
    best: bool = False
    value: float | None = None
    norm: float | None = None
    noise: float | None = None
    l1: float = 0.0
    l2: float = 0.0
    frozen: int | None = None  # until this epoch
    average: str | None = None
    mixed: bool = False
    half: str | None = None
    wrapped: bool = False

    @property
    def data(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(x, y * math.inf if i in self.bad else y) for i, (x, y) in enumerate(batches(*SIZES))]

    @property
    def callbacks(self) -> list[Callback[Any]]:
        c = self
        wanted = [
            (c.every > 1, lambda: accumulate(c.every, drop_last=c.drop_last)),
            (c.bad, lambda: skip_nonfinite(limit=99)),
            (c.batches, lambda: limit(batches=c.batches)),
            (c.steps, lambda: stop_after(steps=c.steps)),
            (c.validate, lambda: validate_every(steps=c.validate or 1)),
            (c.scheduled, lambda: schedule(lr=falling, momentum=falling)),
            (c.torch_scheduled, lambda: torch_scheduler(exponential)),
            (c.plateau, lambda: reduce_on_plateau(factor=0.5, patience=0, mode="max")),
            (c.patience, lambda: early_stopping(patience=c.patience or 1, mode="max")),
            (c.best, lambda: restore_best(mode="max")),
            (c.value, lambda: clip_grad_value(c.value or 1)),
            (c.norm, lambda: clip_grad_norm(c.norm or 1)),
            (c.noise, lambda: grad_noise(c.noise or 1)),
            (c.l1 or c.l2, lambda: weight_penalty(l1=c.l1, l2=c.l2)),
            (c.frozen, lambda: freeze("0.*", until_epoch=c.frozen)),
            (c.average == "ema", lambda: ema(0.7)),
            (c.average == "swa", lambda: swa(1)),
            (c.mixed, lambda: mixup(1.0)),
            (c.half, lambda: mixed_precision(c.half, initial_scale=64.0)),  # type: ignore[arg-type]
            (c.wrapped, lambda: parallel()),
        ]
        return [make() for there, make in wanted if there]

    @property
    def exact(self) -> bool:
        """Whether the loop by hand takes its sums in the same order, so that every bit is the same."""
        return self.every == 1 and not (self.l1 or self.l2)


def falling(progress: int) -> float:
    return 1 / (1 + progress / 2)


def exponential(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


@st.composite
def choices(draw: st.DrawFn) -> Chosen:
    """Each setting is as often left out as not. What decides by a comparison is kept out of half precision."""

    def maybe(*values: Any) -> Any:
        return draw(st.none() | st.sampled_from(values))

    half = maybe("bfloat16", "float16")
    compares = half is None
    scheduled = draw(st.sampled_from(["", "ours", "torch's"]))
    return Chosen(
        every=draw(st.integers(1, 3)),
        drop_last=draw(st.booleans()),
        bad=draw(st.frozensets(st.integers(0, 3), max_size=2)),
        batches=maybe(1, 3),
        steps=maybe(1, 4, 7),
        validate=maybe(1, 2, 3),
        scheduled=scheduled == "ours",
        torch_scheduled=scheduled == "torch's",
        plateau=compares and draw(st.booleans()),
        patience=maybe(1, 2) if compares else None,
        best=compares and draw(st.booleans()),
        value=maybe(0.05),
        norm=maybe(0.1),
        noise=maybe(0.05),
        l1=draw(st.sampled_from([0.0, 0.02])),
        l2=draw(st.sampled_from([0.0, 0.02])),
        frozen=maybe(1, 2, 9),
        average=maybe("ema", "swa"),
        mixed=draw(st.booleans()),
        half=half,
        wrapped=draw(st.booleans()),
    )


@attrs.define
class Done:
    """What a training has left."""

    model: nn.Module
    epochs: int = 0
    iterations: int = 0
    steps: int = 0
    valid_losses: list[float] = attrs.field(factory=list)


def by_hand(c: Chosen) -> Done:
    """The loop that one would write."""
    model, done = net(), Done(net())
    optimizer = sgd(model)
    group = optimizer.param_groups[0]
    scheduler = exponential(optimizer) if c.torch_scheduled else None
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=c.half == "float16")
    average_of = get_ema_multi_avg_fn(0.7) if c.average == "ema" else None  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=average_of)
    best: float | None = None
    kept: Any = None
    plateau_best = stopping_best = -math.inf
    bad_checks = validations = total = pending = 0
    validated_at: int | None = None
    stop = False

    def computing() -> Any:
        if c.half is None:
            return contextlib.nullcontext()
        return torch.autocast("cpu", dtype=getattr(torch, c.half))

    def drawn(phase: Phase, batch: int, name: str) -> Any:
        counters: Any = {"batch": batch, "iteration": done.iterations, "step": done.steps, "epoch": epoch}
        return at(phase, plan=Plan(epochs=EPOCHS, seed=SEED), **counters).random(name)

    def step(batch: int) -> None:
        nonlocal total, pending, validated_at, stop
        scaler.unscale_(optimizer)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if c.every > 1:
            for gradient in gradients:
                gradient /= total / 8
        if c.value is not None:
            nn.utils.clip_grad_value_(model.parameters(), c.value)
        if c.norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), c.norm)
        if c.noise is not None:
            generator = torch.Generator().manual_seed(drawn(Phase.STEP_BEGIN, batch, "grad_noise").getrandbits(32))
            for gradient in gradients:
                gradient += torch.empty_like(gradient).normal_(0.0, c.noise, generator=generator)
        if c.scheduled:
            group["lr"], group["momentum"] = 0.05 * falling(done.steps), 0.9 * falling(done.steps)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        total, pending, validated_at = 0, 0, None
        done.steps += 1
        if c.average == "ema":
            average.update_parameters(model)
        if scheduler is not None:
            scheduler.step()
        stop = stop or done.steps == c.steps

    def validate(*, at_the_end: bool) -> None:
        nonlocal validated_at, validations
        if at_the_end and c.average == "swa" and epoch >= 1:
            average.update_parameters(model)
        seen = average.module if average.n_averaged else model
        modes = [module.training for module in seen.modules()]
        seen.eval()
        with torch.no_grad(), computing():
            losses = [(nn.functional.mse_loss(seen(x), y).item(), len(x)) for x, y in VALID]
        for module, mode in zip(seen.modules(), modes, strict=True):
            module.training = mode
        done.valid_losses.append(math.fsum(loss * size for loss, size in losses) / 10)
        validated_at = done.iterations
        validations = done.steps // (c.validate or 1)
        check(done.valid_losses[-1])

    def check(monitored: float) -> None:
        """Each validation is one. Once the training is about to stop, only the best weights are still looked for."""
        nonlocal best, kept, plateau_best, stopping_best, bad_checks, stop
        if c.best and (best is None or monitored > best):
            best = monitored
            kept = copy.deepcopy((model.state_dict(), average.state_dict()))
        if stop:
            return
        if c.plateau and monitored <= plateau_best:
            group["lr"] *= 0.5
        plateau_best = max(plateau_best, monitored)
        bad_checks = 0 if monitored > stopping_best else bad_checks + 1
        stopping_best = max(stopping_best, monitored)
        stop = c.patience is not None and bad_checks >= c.patience

    for epoch in range(EPOCHS):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not (name.startswith("0.") and c.frozen is not None and epoch < c.frozen))
        model.train()
        for i, (inputs, target) in enumerate(c.data):
            if c.mixed:
                draw = drawn(Phase.BATCH_BEGIN, i, "mixup")
                weight = draw.betavariate(1.0, 1.0)
                weight = max(weight, 1 - weight)
                generator = torch.Generator().manual_seed(draw.getrandbits(32))
                partners = torch.randperm(len(inputs), generator=generator)
                inputs = weight * inputs + (1 - weight) * inputs[partners]
            before = copy.deepcopy(dict(model.named_buffers()))
            with computing():
                output = model(inputs)
                loss = nn.functional.mse_loss(output, target)
                if c.mixed:
                    loss = weight * loss + (1 - weight) * nn.functional.mse_loss(output, target[partners])
            if loss.isfinite():
                trainable = [p for p in model.parameters() if p.requires_grad]
                loss = loss + c.l1 * sum(p.abs().sum() for p in trainable) if c.l1 else loss
                loss = loss + c.l2 * sum(p.square().sum() for p in trainable) if c.l2 else loss
                if c.every > 1:
                    loss = loss * (len(inputs) / 8)
                scaler.scale(loss).backward()
                total, pending = total + len(inputs), pending + 1
                if pending == c.every:
                    step(i)
            else:  # the batch is left out, and leaves no trace
                for name, buffer in model.named_buffers():
                    buffer.copy_(before[name])
            done.iterations += 1
            if c.validate is not None and done.steps // c.validate > validations:
                validate(at_the_end=False)
            if stop or i + 1 == c.batches:
                break
        if pending and not c.drop_last:
            step(i + 1)
        optimizer.zero_grad()
        total = pending = 0
        if validated_at != done.iterations:
            validate(at_the_end=True)
        elif c.average == "swa" and epoch >= 1:
            average.update_parameters(model)
        done.epochs += 1
        if stop:
            break

    if kept is not None:
        model.load_state_dict(kept[0])
        average.load_state_dict(kept[1])
    done.model = model
    if average.n_averaged:
        done.model = average.module
        if c.average == "swa":
            update_bn(c.data, done.model)
    return done


def ours(c: Chosen, callbacks: list[Callback[Any]]) -> tuple[Done, State, Supervised]:
    """The same, by the machine."""
    model = net()
    work = Supervised(model, sgd(model), nn.MSELoss(), c.data, VALID)
    losses: list[float] = []

    @on(Phase.VALID_END)
    def look(state: State) -> None:
        losses.append(state.metrics["valid_loss"])

    final = run(start(work, epochs=EPOCHS, seed=SEED), [*callbacks, look])
    while final.phase is Phase.SUSPENDED:
        final = run(final, [*callbacks, look])
    return Done(model, final.epoch, final.iteration, final.step, losses), final, work


@given(choices(), st.randoms(use_true_random=False))
def test_any_part_of_the_library_is_the_loop_by_hand(c: Chosen, random: Any) -> None:
    """Counters and validations are the same, weights and statistics too.

    They are equal to the last bit where sums are in the same order, else within 1e-3, or within 5% where half
    precision rounds them.
    """
    callbacks = c.callbacks
    random.shuffle(callbacks)
    expected = by_hand(c)
    done, _, _ = ours(c, callbacks)

    assert (done.epochs, done.iterations, done.steps) == (expected.epochs, expected.iterations, expected.steps)
    near = 5e-2 if c.half else 1e-3
    assert done.valid_losses == pytest.approx(expected.valid_losses, rel=near)
    if c.exact:
        assert same_weights(done.model, expected.model)
    for name, value in expected.model.state_dict().items():
        assert torch.allclose(done.model.state_dict()[name].double(), value.double(), rtol=near, atol=near), name


def test_a_batch_that_leaves_a_trace_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law has teeth: statistics that keep something of a batch that was left out break it."""
    chosen = Chosen(bad=frozenset({1}))
    assert same_weights(ours(chosen, chosen.callbacks)[0].model, by_hand(chosen).model)
    monkeypatch.setattr(Buffers, "put_back", lambda self: None)
    assert not same_weights(ours(chosen, chosen.callbacks)[0].model, by_hand(chosen).model)


@A_THIRD
@given(choices(), st.randoms(use_true_random=False))
def test_order_of_the_list_changes_nothing(c: Chosen, random: Any) -> None:
    """Any two orders end in equal states, and in weights that are equal to the last bit."""
    shuffled = c.callbacks
    random.shuffle(shuffled)
    (one, final, _), (other, other_final, _) = ours(c, c.callbacks), ours(c, shuffled)

    assert final == other_final
    assert same_weights(one.model, other.model)


@A_THIRD
@given(choices(), st.integers(1, 12), st.sampled_from([Phase.BATCH_END, Phase.VALID_BATCH_END, Phase.EPOCH_END]))
def test_suspending_changes_nothing(c: Chosen, iteration: int, phase: Phase) -> None:
    """Left anywhere and taken up again, a training ends in the same state and the same weights."""

    @on(phase, memory=False)
    def leave(state: State, left: bool) -> Transition | None:
        if left or state.iteration < iteration:
            return None
        return Transition(flags=Flag.SUSPEND, memory=True)

    once, final, _ = ours(c, c.callbacks)
    twice, resumed, _ = ours(c, [*c.callbacks, leave])

    assert (twice.epochs, twice.iterations, twice.steps) == (once.epochs, once.iterations, once.steps)
    assert resumed.history == final.history
    assert {name: resumed.memory[name] for name in final.memory} == final.memory
    assert same_weights(once.model, twice.model)


@A_THIRD
@given(choices(), st.integers(0, 11))
def test_failing_leaves_nothing_behind(c: Chosen, iteration: int) -> None:
    """Whatever is in use when something raises, the model is afterwards called directly, trainable, and itself."""
    model = net()
    work = Supervised(model, sgd(model), nn.MSELoss(), c.data, VALID)

    @on(Phase.BATCH_END, Phase.VALID_BATCH_END, Phase.EPOCH_END)
    def fail(state: State) -> None:
        if state.iteration >= iteration:
            raise ZeroDivisionError

    with contextlib.suppress(Exception):
        run(start(work, epochs=EPOCHS, seed=SEED), [*c.callbacks, stop_on_nonfinite(), record("loss"), fail])

    assert work.wrapped_model is model
    assert work.precision is None
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(average.in_use for average in work.carried_over.averages.values())
