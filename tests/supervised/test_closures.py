"""Optimizers that evaluate the batch themselves, beside loops with a closure written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import (
    Callback,
    ClipGradNorm,
    Flag,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    extend,
    on,
    restore,
    run,
    start,
)
from fsm_train.callbacks import (
    accumulate,
    checkpoint,
    clip_grad_norm,
    compile_step,
    mixed_precision,
    mixup,
    schedule,
    skip_nonfinite,
    weight_penalty,
)
from fsm_train.core.commands import WeighLoss
from fsm_train.schedules import step
from fsm_train.supervised.closures import Closure, demands_closure, why_not
from tests.diabetes_training import batches, looking
from tests.killed import killed_and_resumed
from tests.models import same_weights

BATCHES = batches(16, 16, 16, 16)
MSE = nn.MSELoss()


class Counting(nn.Module):
    """A small network with batch norm and dropout that counts its forward passes in train mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.passes = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        return self.layers(inputs)  # type: ignore[no-any-return]


class Sam(torch.optim.SGD):
    """Sharpness-aware minimization (Foret et al., 2021): up to a worse place, and a step by the gradient there.

    Its closure is optional in its signature alone, as in the published ones.
    """

    rho = 0.05

    @torch.no_grad()
    def first_step(self) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        self.moves = [p.grad * (self.rho / (norm + 1e-12)) for p in parameters]
        for parameter, move in zip(parameters, self.moves, strict=True):
            self.move(parameter, move)
        self.zero_grad()

    def move(self, parameter: torch.Tensor, by: torch.Tensor) -> None:
        parameter.add_(by)

    @torch.no_grad()
    def second_step(self) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        for parameter, move in zip(parameters, self.moves, strict=True):
            self.move(parameter, -move)
        super().step()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()


class SamByData(Sam):
    """As many old ones: by `.data`, which no version counter sees, and it leaves the gradients to the closure."""

    def move(self, parameter: torch.Tensor, by: torch.Tensor) -> None:
        parameter.data.add_(by)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none=False)


def lbfgs(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, history_size=5)


def searching(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")


def sam(model: nn.Module) -> torch.optim.Optimizer:
    return Sam(model.parameters(), lr=0.05, momentum=0.9)


def sam_by_data(model: nn.Module) -> torch.optim.Optimizer:
    return SamByData(model.parameters(), lr=0.05, momentum=0.9)


OPTIMIZERS = [lbfgs, searching, sam, sam_by_data]


def work_of(make: Callable[[nn.Module], torch.optim.Optimizer], **settings: Any) -> Supervised:
    model = Counting()
    optimizer = make(model)
    return Supervised(model, optimizer, MSE, BATCHES, closure=isinstance(optimizer, Sam), **settings)


def by_hand(
    make: Callable[[nn.Module], torch.optim.Optimizer],
    epochs: int = 2,
    loss_of: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor] = lambda m, x, y: MSE(m(x), y),
    change: Callable[[nn.Module], object] = lambda model: None,
) -> Counting:
    """The loop of the documentation: LBFGS evaluates by its closure alone, SAM once before."""
    model = Counting()
    optimizer: Any = make(model)
    torch.manual_seed(7)
    for _ in range(epochs):
        for inputs, target in BATCHES:

            def closure(inputs: torch.Tensor = inputs, target: torch.Tensor = target) -> torch.Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, inputs, target)
                loss.backward()
                change(model)
                return loss

            if isinstance(optimizer, Sam):
                closure()
            optimizer.step(closure)
            optimizer.zero_grad()
    return model


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_weights_are_those_of_the_loop_by_hand(make: Any) -> None:
    """Bit for bit, buffers too, with as many forward passes: none is wasted."""
    plain = by_hand(make)

    work = work_of(make)
    torch.manual_seed(7)
    run(start(work, epochs=2))

    assert same_weights(work.model, plain)
    assert work.model.passes == plain.passes


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_killed_and_resumed_they_go_on_exactly(make: Any, tmp_path: Path) -> None:
    """The history of LBFGS included; the log replays."""
    undisturbed = work_of(make)
    run(start(undisturbed, epochs=2, seed=0))

    _, work = killed_and_resumed(lambda: work_of(make), tmp_path, 6)

    assert same_weights(work.model, undisturbed.model)


def test_a_finished_training_goes_on() -> None:
    """One epoch and an extension by one are two epochs."""
    whole, parted = work_of(lbfgs), work_of(lbfgs)
    run(start(whole, epochs=2, seed=0))
    run(extend(run(start(parted, epochs=1, seed=0)), epochs=1))

    assert same_weights(parted.model, whole.model)


@pytest.mark.parametrize("make", [lbfgs, sam])
def test_callbacks_see_the_first_evaluation(make: Any) -> None:
    """Loss, output and train_loss are those with the weights before the step."""

    def shown(work: Supervised) -> list[Any]:
        loss, losses = looking(Phase.STEP_END, lambda state: state.facts["loss"], needs={"loss"})
        output, outputs = looking(Phase.BATCH_END, lambda state: work.output.tolist())
        final = run(start(work, epochs=1, seed=0), [loss, output])
        return [*losses, *outputs, final.metrics["train_loss"]]

    still = Counting()
    unmoved = Supervised(still, torch.optim.SGD(still.parameters(), 0.0), MSE, BATCHES[:1])
    model = Counting()
    moved = Supervised(model, make(model), MSE, BATCHES[:1], closure=make is sam)

    assert shown(moved) == shown(unmoved)
    assert not torch.equal(model.layers[0].weight, still.layers[0].weight)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_what_callbacks_do_to_a_batch_is_done_at_each_evaluation(make: Any) -> None:
    """A penalty on the loss, and clipping, as in a closure that has both."""

    def with_penalty(model: nn.Module, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        output = model(inputs)
        penalty = 0.01 * torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum()
        return MSE(output, target) + penalty

    plain = by_hand(make, 1, with_penalty, lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.5))

    work = work_of(make)
    torch.manual_seed(7)
    run(start(work, epochs=1), [weight_penalty(l2=0.01), clip_grad_norm(0.5)])

    assert same_weights(work.model, plain)


def test_a_mixed_batch_is_mixed_at_each_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluated again at the same place it has the same gradient: of the mixed inputs, and of both targets."""
    monkeypatch.setattr(Sam, "rho", 0.0)
    again, once = work_of(sam), work_of(lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    for work in (again, once):
        work.model.layers[3].p = 0.0  # type: ignore[union-attr,index]
        run(start(work, epochs=2, seed=0), [mixup(0.4)])

    for ours, theirs in zip(again.model.parameters(), once.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert again.model.passes == 2 * once.model.passes


def test_a_step_is_left_out_as_ever() -> None:
    """A batch that is skipped is not evaluated again, and the next one is as if it had not been."""
    work, plain = work_of(lbfgs), Counting()
    optimizer: Any = lbfgs(plain)
    plain.layers[3].p = work.model.layers[3].p = 0.0  # type: ignore[union-attr,index]

    @on(Phase.LOSS_END)
    def skip_second(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_BACKWARD) if state.batch == 1 else None

    run(start(work, epochs=1), [skip_second, skip_nonfinite()])
    for i, (inputs, target) in enumerate(BATCHES):
        if i == 1:
            continue

        def closure(inputs: torch.Tensor = inputs, target: torch.Tensor = target) -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = MSE(plain(inputs), target)
            loss.backward()
            return loss

        optimizer.step(closure)

    assert same_weights(work.model, plain)


def test_rates_are_scheduled() -> None:
    """LBFGS reads its rate at each step."""
    plain = Counting()
    work = work_of(lbfgs)
    final = run(start(work, epochs=1), [schedule(lr=step(2, 0.5))])

    assert final.hyper["lr"] == 0.25
    assert not same_weights(work.model, plain)


def test_bfloat16_is_that_of_every_evaluation() -> None:
    """The loss at the same weights is the same, in and out of the closure."""
    work = work_of(lbfgs)
    work.model.layers[3].p = 0.0  # type: ignore[union-attr,index]
    types: list[torch.dtype] = []
    work.model.layers[4].register_forward_hook(lambda _, __, output: types.append(output.dtype))  # type: ignore[union-attr,index]
    run(start(work, epochs=1), [mixed_precision("bfloat16")])

    assert set(types) == {torch.bfloat16}
    assert len(types) > len(BATCHES)


# ----------------------------------------------------------------- an optimizer within an optimizer


class PublishedSam(torch.optim.Optimizer):
    """In the form that most use: around another optimizer, whose state is not in its state_dict."""

    def __init__(self, parameters: Any, base: Any, rho: float = 0.05, **settings: Any) -> None:
        super().__init__(parameters, {"rho": rho, **settings})
        self.base_optimizer = base(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def first_step(self, zero_grad: bool = False) -> None:
        norm = torch.stack([p.grad.norm() for group in self.param_groups for p in group["params"]]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old_p"] = p.data.clone()
                p.add_(p.grad * group["rho"] / (norm + 1e-12))
        if zero_grad:
            self.zero_grad()

    def second_step(self, zero_grad: bool = False) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.first_step(zero_grad=True)
        torch.enable_grad()(closure)()
        self.second_step()

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self.base_optimizer.param_groups = self.param_groups


def published(extra: bool) -> Supervised:
    model = Counting()
    optimizer = PublishedSam(model.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9)
    within = {"base_optimizer": optimizer.base_optimizer} if extra else {}
    return Supervised(model, optimizer, MSE, BATCHES, closure=True, extra=within)


def test_published_sam_is_the_loop_by_hand() -> None:
    """Its two halves share the groups with the optimizer within, so that a rate is set in both."""
    plain = Counting()
    optimizer = PublishedSam(plain.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9)
    torch.manual_seed(7)
    for i, (inputs, target) in enumerate(BATCHES):
        optimizer.param_groups[0]["lr"] = 0.05 * step(2, 0.5)(i)
        MSE(plain(inputs), target).backward()
        with torch.no_grad():
            optimizer.first_step(zero_grad=True)
        MSE(plain(inputs), target).backward()
        with torch.no_grad():
            optimizer.second_step(zero_grad=True)

    work = published(extra=False)
    torch.manual_seed(7)
    run(start(work, epochs=1), [schedule(lr=step(2, 0.5))])

    assert same_weights(work.model, plain)


def test_what_an_optimizer_within_keeps_is_saved_or_said(tmp_path: Path) -> None:
    """A note names it, with what to give; given so, the training goes on exactly."""
    undisturbed = published(extra=True)
    run(start(undisturbed, epochs=2, seed=0), [schedule(lr=step(2, 0.5))])
    _, work = killed_and_resumed(lambda: published(extra=True), tmp_path, 6, [schedule(lr=step(2, 0.5))])
    assert same_weights(work.model, undisturbed.model)

    run(start(published(extra=False), epochs=1, seed=0), [checkpoint(tmp_path / "bare")])
    (note,) = restore(tmp_path / "bare", published(extra=False)).notes
    assert note == (
        "the base_optimizer of the PublishedSam, an SGD: its state is not in the state_dict of the optimizer; give the "
        "workload extra={'base_optimizer': optimizer.base_optimizer}"
    )


# ------------------------------------------------------------------------------ when it counts


def closure_of(parameter: torch.Tensor) -> tuple[Closure, list[float]]:
    """A closure over a parameter with its gradient, and the losses that were evaluated anew."""
    anew: list[float] = []

    def evaluate() -> torch.Tensor:
        assert torch.is_grad_enabled()
        anew.append(len(anew) + 1.0)
        return torch.tensor(anew[-1])

    return Closure([parameter], torch.tensor(0.0), evaluate), anew


def exchange_values(parameter: Any) -> None:
    parameter.data = parameter.data + 1


def zero_in_place(parameter: Any) -> None:
    parameter.grad.zero_()


def zero_by_none(parameter: Any) -> None:
    parameter.grad = None


def move_by_data(parameter: Any) -> None:
    parameter.data.add_(1.0)


def reshape(parameter: Any) -> None:
    parameter.data = torch.ones(2)
    parameter.grad = None


@pytest.mark.parametrize("change", [exchange_values, zero_in_place, zero_by_none, move_by_data, reshape])
def test_what_was_changed_is_evaluated_anew(change: Callable[[Any], None]) -> None:
    """Once something has changed, each call is an evaluation; before, none is."""
    parameter = nn.Parameter(torch.tensor([1.0, float("nan"), 2.0]))
    parameter.grad = torch.tensor([1.0, 2.0, float("nan")])
    closure, anew = closure_of(parameter)

    with torch.no_grad():
        assert [closure().item(), closure().item()] == [0.0, 0.0]
        change(parameter)
        assert [closure().item(), closure().item()] == [1.0, 2.0]
    assert anew == [1.0, 2.0]


def test_sparse_gradients_are_compared_too() -> None:
    """By their elements."""
    words = nn.Embedding(4, 2, sparse=True)
    words(torch.tensor([1, 1])).sum().backward()
    closure, anew = closure_of(words.weight)
    closure()
    assert anew == []

    words.weight.grad = words.weight.grad * 2  # type: ignore[operator]
    closure()
    words.weight.grad = words.weight.grad.to_dense()
    closure()
    assert anew == [1.0, 2.0]


# ------------------------------------------------------------------------------ what cannot go


@pytest.mark.parametrize(
    ("callback", "sentence"),
    [
        (accumulate(2), "'accumulate' gives the command WeighLoss, but the optimizer evaluates its batch again"),
        (compile_step("default"), "'compile_step' gives the command UseCompiledStep, but the optimizer evaluates"),
        (mixed_precision("float16"), "which a gradient scaler cannot look into: use mixed_precision"),
    ],
)
def test_what_cannot_go_with_a_closure_is_refused_when_the_run_begins(callback: Callback[Any], sentence: str) -> None:
    """Before the first batch; no weight has changed."""
    work = work_of(lbfgs)

    with pytest.raises(WorkloadError, match=sentence):
        run(start(work, epochs=1), [callback])

    assert work.model.passes == 0
    assert same_weights(work.model, Counting())


def test_other_commands_can_go_with_a_closure() -> None:
    """And all can without one."""
    model = Counting()
    work = Supervised(model, torch.optim.SGD(model.parameters(), 0.1), MSE, BATCHES)

    assert why_not(ClipGradNorm) == ""
    assert work.refuses(WeighLoss) == ""


def test_a_window_of_ones_own_is_refused_at_its_step() -> None:
    """The closure evaluates one batch, and gradients of others would be lost."""

    @on(Phase.BACKWARD_END)
    def every_second(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_STEP | Flag.SKIP_ZERO) if state.batch % 2 == 0 else None

    with pytest.raises(WorkloadError, match="gradients of 2 batches wait for this step"):
        run(start(work_of(lbfgs), epochs=1), [every_second])


class Opaque:
    """A step whose signature is not known, as one of an extension module."""

    __signature__ = "unknown"

    def __call__(self, closure: Any = None) -> None: ...


def test_a_signature_that_is_not_known_demands_nothing() -> None:
    """It steps as most do."""

    class OfExtension(torch.optim.SGD):
        step = Opaque()  # type: ignore[assignment]

    assert not demands_closure(OfExtension([nn.Parameter(torch.zeros(1))], 0.1))


class Plain:
    """An optimizer whose step takes nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": [*model.parameters()]}]

    def step(self) -> None: ...
    def zero_grad(self) -> None: ...
    def state_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("make", "closure", "sentence"),
    [
        (sam, False, r"Sam has two half steps, between which the loss .* write Supervised\(…, closure=True\)"),
        (Plain, True, "closure=True, but the step of Plain takes no closure"),
        (lambda model: {"a": lbfgs(model)}, False, r"optimizer\['a'\] is to be given a closure"),
        (lambda model: {"a": Plain(model)}, True, r"optimizer\['a'\] is to be given a closure"),
    ],
)
def test_a_closure_that_does_not_fit_is_refused(make: Any, closure: bool, sentence: str) -> None:
    """When the workload is made."""
    model = Counting()
    with pytest.raises(WorkloadError, match=sentence):
        Supervised(model, make(model), MSE, BATCHES, closure=closure)
    with pytest.raises(ValueError, match="closure='yes': True or False"):
        Supervised(model, sam(model), MSE, BATCHES, closure="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("watched", [[], [clip_grad_norm(1.0)]])
def test_a_failure_within_the_closure_is_one_of_the_step(watched: list[Callback[Any]]) -> None:
    """It is named so, whether a callback looks inside the step or none does."""
    work = work_of(lbfgs)

    def fail(module: nn.Module, inputs: Any) -> None:
        if work.model.passes == 3:
            raise RuntimeError("no memory")

    work.model.layers[0].register_forward_pre_hook(fail)  # type: ignore[union-attr,index]
    with pytest.raises(RuntimeError, match=r"no memory\nRaised by step, after \w+ of epoch 0, batch 0"):
        run(start(work, epochs=1, seed=0), watched)
