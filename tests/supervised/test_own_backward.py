"""A backward of the user's own, beside loops that do the same by hand: PCGrad, GradCache, DP-SGD."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

from fsm_train import Callback, Flag, Phase, State, Supervised, Transition, WorkloadError, evaluate, on, run, start
from fsm_train.callbacks import (
    accumulate,
    clip_grad_norm,
    compile_step,
    freeze,
    mixed_precision,
    parallel,
    weight_penalty,
)
from fsm_train.core.commands import WeighLoss
from fsm_train.supervised.own_backward import run_backward
from tests.diabetes_training import batches, looking
from tests.killed import killed_and_resumed
from tests.models import same_weights

BATCHES = batches(8, 8, 8, 8, 8, 8, 8, 8)
Parameters = Sequence[nn.Parameter]
SCALE = 2.0**10


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


# ------------------------------------------------------------------------------------- three methods


def two_losses(output: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """The error, and that of the sign of what is above the mean: two tasks that disagree."""
    error = nn.functional.mse_loss(output, target)
    sign = nn.functional.softplus(-output * (target - target.mean()).sign()).mean()
    return {"loss": error + sign, "error": error, "sign": sign}


def pcgrad(losses: Any, parameters: Parameters) -> None:
    """Gradients without what conflicts: Yu et al., "Gradient Surgery for Multi-Task Learning" (2020)."""
    of_each = [
        torch.cat([g.flatten() for g in torch.autograd.grad(losses[name], parameters, retain_graph=True)])
        for name in ("error", "sign")
    ]
    projected = []
    for i, own in enumerate(of_each):
        other = of_each[1 - i]
        conflict = torch.clamp(own.dot(other), max=0.0)
        projected.append(own - conflict / other.dot(other) * other)
    whole = projected[0] + projected[1]
    for parameter, gradient in zip(parameters, whole.split([p.numel() for p in parameters]), strict=True):
        gradient = gradient.view_as(parameter)
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def each_loss(output: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    each = (output - target).square().mean(dim=1)
    return {"loss": each.mean(), "each": each, "largest": each.max()}


def private(losses: Any, parameters: Parameters) -> None:
    """The mean of gradients that are clipped one by one: Abadi et al., "Deep Learning with Differential Privacy"."""
    each = losses["each"]
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for loss in each:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += gradient * torch.clamp(0.5 / norm, max=1.0)
    for parameter, sum_ in zip(parameters, total, strict=True):
        parameter.grad = (parameter.grad if parameter.grad is not None else 0) + sum_ / len(each)


@attrs.define
class Cache:
    """A batch in pieces, whose activations are there one at a time: Gao et al. (2021)."""

    model: nn.Module
    inputs: torch.Tensor | None = None
    codes: torch.Tensor | None = None

    def forward(self, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            codes = torch.cat([model(piece) for piece in inputs.split(4)])
        if torch.is_grad_enabled():
            self.inputs, self.codes = inputs, codes.requires_grad_()
        return codes

    def backward(self, loss: torch.Tensor, parameters: Parameters) -> None:
        assert self.codes is not None
        assert self.inputs is not None
        loss.backward()  # type: ignore[no-untyped-call]
        assert self.codes.grad is not None
        for piece, gradient in zip(self.inputs.split(4), self.codes.grad.split(4), strict=True):
            (self.model(piece) * gradient).sum().backward()


def contrast(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A loss in which each sample meets each other one."""
    apart = (output - output.T).square() - (target - target.T).square()
    return apart.square().mean() / 10


@attrs.frozen
class Method:
    """How a method trains with the library, and what it does to one batch by hand."""

    loss_fn: Callable[..., Any]
    settings: Callable[[nn.Module], dict[str, Any]]

    def work(self, train: Any = BATCHES, **further: Any) -> Supervised:
        model = network()
        return Supervised(model, sgd(model), self.loss_fn, train, **self.settings(model), **further)


METHODS = {
    "PCGrad": Method(two_losses, lambda model: {"backward": pcgrad}),
    "DP-SGD": Method(each_loss, lambda model: {"backward": private}),
    "GradCache": Method(
        contrast, lambda model: {"backward": (cache := Cache(model)).backward, "forward": cache.forward}
    ),
}


def by_hand(
    method: Method, every: int = 1, max_norm: float | None = None, scale: float | None = None, epochs: int = 2
) -> nn.Module:
    """The plain loop: what the method does to a batch alone, a mean over the window, clipped."""
    model = network()
    optimizer, settings = sgd(model), method.settings(model)
    parameters, forward = [*model.parameters()], settings.get("forward", lambda model, inputs: model(inputs))
    for _ in range(epochs):
        waiting: list[list[torch.Tensor]] = []
        for i, (inputs, target) in enumerate(BATCHES):
            with torch.autocast("cpu", torch.float16, enabled=scale is not None):
                losses = method.loss_fn(forward(model, inputs), target)
            settings["backward"](losses, parameters)
            waiting.append([p.grad for p in parameters])
            optimizer.zero_grad()
            if (i + 1) % every:
                continue
            for j, parameter in enumerate(parameters):
                parameter.grad = functools.reduce(torch.add, [gradients[j] / every for gradients in waiting])
            waiting.clear()
            if max_norm is not None:
                nn.utils.clip_grad_norm_(parameters, max_norm)
            optimizer.step()
            optimizer.zero_grad()
    return model


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("max_norm", [None, 0.25])
def test_weights_are_those_of_the_loop_by_hand(name: str, every: int, max_norm: float | None) -> None:
    """Bit for bit: each batch by itself, their weighted mean, clipped."""
    plain = by_hand(METHODS[name], every, max_norm)

    work = METHODS[name].work()
    clipping = [] if max_norm is None else [clip_grad_norm(max_norm)]
    run(start(work, epochs=2), [accumulate(every), *clipping])

    assert same_weights(work.model, plain)


@pytest.mark.parametrize("name", METHODS)
def test_killed_and_resumed_it_goes_on_exactly(name: str, tmp_path: Path) -> None:
    """Within a window, in half precision, clipped; the log replays."""
    callbacks = [accumulate(4), clip_grad_norm(0.25), mixed_precision("float16", initial_scale=SCALE)]
    undisturbed = METHODS[name].work()
    run(start(undisturbed, epochs=2, seed=0), callbacks)

    _, work = killed_and_resumed(METHODS[name].work, tmp_path, 6, callbacks)

    assert same_weights(work.model, undisturbed.model)


# --------------------------------------------------------------------------------- half precision


def pcgrad_by_hand(epochs: int = 2) -> nn.Module:
    """As in a loop with a scaler: it scales each loss, and the method is applied to the scaled gradients."""
    model = network()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=SCALE)
    for _ in range(epochs):
        for inputs, target in BATCHES:
            with torch.autocast("cpu", torch.float16):
                losses = two_losses(model(inputs), target)
            pcgrad({name: scaler.scale(loss) for name, loss in losses.items()}, [*model.parameters()])
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return model


def test_losses_are_scaled_as_in_the_loop_by_hand() -> None:
    """What is linear in the losses has the same bits, with small gradients in float16 that only a scale keeps."""
    work = METHODS["PCGrad"].work()
    run(start(work, epochs=2), [mixed_precision("float16", initial_scale=SCALE), clip_grad_norm(0.5)])

    assert same_weights(work.model, pcgrad_by_hand())


@pytest.mark.parametrize("name", METHODS)
def test_sizes_of_gradients_are_the_true_ones_under_a_scaler(name: str) -> None:
    """Clipping each sample by its norm means the same with a scale; so does a backward in two parts."""
    work = METHODS[name].work()
    run(start(work, epochs=2), [mixed_precision("float16", initial_scale=SCALE), accumulate(2)])

    plain = by_hand(METHODS[name], every=2, scale=1.0)
    for ours, theirs in zip(work.model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=2e-2, atol=2e-3)


def test_a_gradient_of_none_of_the_losses_has_no_scale() -> None:
    """A function that computes everything anew, in full precision, is taken at its word."""

    def anew(loss: torch.Tensor, parameters: Parameters) -> None:
        nn.functional.mse_loss(work.model(work.inputs), work.target).backward()  # type: ignore[no-untyped-call]

    model, plain = network(), network()
    work = Supervised(model, sgd(model), nn.MSELoss(), BATCHES, backward=anew)
    run(start(work, epochs=1), [mixed_precision("float16", initial_scale=SCALE)])
    run(start(Supervised(plain, sgd(plain), nn.MSELoss(), BATCHES), epochs=1))

    assert same_weights(model, plain)


def test_an_overflow_holds_the_step_back() -> None:
    """The scaler sees infinite gradients, as ever, and lowers its scale."""
    work = METHODS["PCGrad"].work()
    look, stepped = looking(Phase.STEP_END, lambda state: state.facts["stepped"], needs={"stepped"})
    run(start(work, epochs=3), [mixed_precision("float16", initial_scale=2.0**30), look])

    assert stepped[0] == 0.0
    assert stepped[-1] == 1.0


# ------------------------------------------------------------------------------------ as the plain one


def plainly(loss: torch.Tensor, parameters: Parameters) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "callbacks",
    [
        [],
        [weight_penalty(l1=0.01, l2=0.01), accumulate(2)],
        [freeze("0.*"), clip_grad_norm(0.5)],
        [mixed_precision("float16", initial_scale=SCALE), accumulate(4)],
        [mixed_precision("bfloat16"), accumulate(4), clip_grad_norm(0.5)],
    ],
)
def test_loss_backward_as_ones_own_changes_nothing(callbacks: list[Callback[Any]]) -> None:
    """With penalties, weights, frozen parameters and half precision."""
    model, plain = network(), network()
    run(start(Supervised(model, sgd(model), nn.MSELoss(), BATCHES, backward=plainly), epochs=2), callbacks)
    run(start(Supervised(plain, sgd(plain), nn.MSELoss(), BATCHES), epochs=2), callbacks)

    assert same_weights(model, plain)


def test_a_batch_of_no_weight_adds_nothing() -> None:
    """Its share is 0, which is not the same as none."""

    @on(Phase.LOSS_END)
    def only_even(state: State) -> Transition:
        share = 0.0 if state.batch % 2 else 1.0
        last = state.batch % 2 == 1
        return Transition(commands=(WeighLoss(share),), flags=Flag.NONE if last else Flag.SKIP_STEP | Flag.SKIP_ZERO)

    model, plain = network(), network()
    run(start(Supervised(model, sgd(model), nn.MSELoss(), BATCHES, backward=plainly), epochs=1), [only_even])
    run(start(Supervised(plain, sgd(plain), nn.MSELoss(), BATCHES[::2]), epochs=1))

    assert same_weights(model, plain)


def test_a_batch_that_is_left_out_leaves_no_gradient() -> None:
    """Nothing of its graph is kept for the next one, with or without parts."""
    work = METHODS["PCGrad"].work()

    @on(Phase.LOSS_END)
    def skip_odd(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_BACKWARD) if state.batch % 2 else None

    run(start(work, epochs=1), [skip_odd])
    plain = METHODS["PCGrad"].work(BATCHES[::2])
    run(start(plain, epochs=1))

    assert same_weights(work.model, plain.model)


def test_a_closure_evaluates_by_it_too() -> None:
    """LBFGS with the user's backward is LBFGS."""

    def trained(**settings: Any) -> nn.Module:
        model = network()
        optimizer: Any = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
        run(start(Supervised(model, optimizer, nn.MSELoss(), BATCHES, **settings), epochs=1))
        return model

    assert same_weights(trained(backward=plainly), trained())


def test_parts_are_measured_as_far_as_they_are_scalars() -> None:
    """Those of several elements are for the backward alone, in training, in validation and by `evaluate`."""
    work = METHODS["DP-SGD"].work(valid=BATCHES[:2])
    final = run(start(work, epochs=1))

    assert {*final.metrics} == {"train_loss", "train_largest", "valid_loss", "valid_largest"}
    assert {*evaluate(work)} == {"valid_loss", "valid_largest"}


def test_a_part_without_a_gradient_is_passed_on() -> None:
    """Beside those that have one, also under a scaler: a number that the function needs."""
    model, plain = network(), network()

    def with_count(output: torch.Tensor, target: torch.Tensor) -> dict[str, Any]:
        return {
            "loss": nn.functional.mse_loss(output, target),
            "count": len(target),
            "above": (target > 1.5).float().sum(),
        }

    def of_count(losses: Any, parameters: Parameters) -> None:
        assert (losses["count"], losses["above"].requires_grad) == (8, False)
        losses["loss"].backward()

    half = mixed_precision("float16", initial_scale=SCALE)
    final = run(start(Supervised(model, sgd(model), with_count, BATCHES, backward=of_count), epochs=1), [half])
    run(start(Supervised(plain, sgd(plain), nn.MSELoss(), BATCHES), epochs=1), [half])

    assert final.metrics["train_count"] == 8.0
    assert same_weights(model, plain)


def test_a_generator_that_it_draws_from_is_saved(tmp_path: Path) -> None:
    """The noise of a private training goes on where it was."""

    def make() -> Supervised:
        model, noise = network(), torch.Generator().manual_seed(5)

        def noisy(loss: torch.Tensor, parameters: Parameters) -> None:
            loss.backward()  # type: ignore[no-untyped-call]
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad += 0.01 * torch.randn(parameter.shape, generator=noise)

        return Supervised(model, sgd(model), nn.MSELoss(), BATCHES, backward=noisy)

    undisturbed = make()
    run(start(undisturbed, epochs=2, seed=0))
    _, work = killed_and_resumed(make, tmp_path, 6)

    assert same_weights(work.model, undisturbed.model)


# ------------------------------------------------------------------------------------- what is refused


def nothing(loss: torch.Tensor, parameters: Parameters) -> None:
    """Forgets to add."""


def giving(loss: torch.Tensor, parameters: Parameters) -> Any:
    """Returns gradients, in place of adding them."""
    return torch.autograd.grad(loss, parameters)


def failing(loss: torch.Tensor, parameters: Parameters) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
    raise RuntimeError("no such task")


@pytest.mark.parametrize(
    ("backward", "error", "sentence"),
    [
        (nothing, WorkloadError, "backward gave none of the optimizer's parameters a gradient"),
        (giving, WorkloadError, "backward returned a tuple.*: it returns nothing, and adds to parameter.grad"),
        (failing, RuntimeError, r"no such task\nRaised by backward, after"),
    ],
)
def test_what_goes_wrong_is_said(backward: Any, error: type[Exception], sentence: str) -> None:
    """By the operation; the gradients of other batches are still there."""
    model = network()
    work = Supervised(model, sgd(model), nn.MSELoss(), BATCHES, backward=backward)

    with pytest.raises(error, match=sentence):
        run(start(work, epochs=1))


def test_a_failure_leaves_the_gradients_that_were_there() -> None:
    """Those of the batches before it in the window."""
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])

    with pytest.raises(RuntimeError, match="no such task"):
        run_backward(failing, weight.sum(), [weight], 1.0, None)

    assert weight.grad.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("callback", "sentence"),
    [
        (
            compile_step("default"),
            "'compile_step' gives the command UseCompiledStep, but the backward of",
        ),
        (parallel("ddp"), "DistributedDataParallel averages gradients while loss.backward"),
    ],
)
def test_what_cannot_go_with_it_is_refused_when_the_run_begins(callback: Callback[Any], sentence: str) -> None:
    """Before the first batch."""
    model = network()
    work = Supervised(model, sgd(model), nn.MSELoss(), BATCHES, backward=plainly)

    with pytest.raises(WorkloadError, match=sentence):
        run(start(work, epochs=1), [callback])

    assert same_weights(model, network())


def test_a_function_of_one_argument_is_refused() -> None:
    """When the workload is made."""
    model = network()
    with pytest.raises(WorkloadError, match=r"backward is called with \(loss, parameters\)"):
        Supervised(model, sgd(model), nn.MSELoss(), BATCHES, backward=lambda loss: None)  # type: ignore[misc,arg-type]
