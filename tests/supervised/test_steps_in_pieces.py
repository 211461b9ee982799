"""Compiled and captured steps beside callbacks that look inside them: what comes before, at once, and then the step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Callback, Flag, Phase, State, Supervised, Transition, on, replay, restore, run, start
from fsm_train.callbacks import (
    accumulate,
    checkpoint,
    clip_grad_norm,
    clip_grad_value,
    compile_step,
    ema,
    freeze,
    mixed_precision,
    mixup,
    record,
    schedule,
    skip_nonfinite,
    weight_penalty,
)
from fsm_train.core.phase import Operation
from fsm_train.schedules import time_decay
from fsm_train.supervised.compilation import CompiledStep
from tests.diabetes_training import batches, net, trained, workload
from tests.models import same_weights
from tests.supervised.test_compilation import DATA, PretendedGraph, assert_same, graphs, said

__all__ = ["graphs"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's compiler uses it
UNEVEN = batches(8, 8, 8, 6, 8, 8, 8)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each batch that was trained in pieces, the number of operations that the compiled function did."""
    torch.compiler.reset()
    did: list[int] = []
    original = CompiledStep.begin

    def counted(self: CompiledStep, operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
        left = original(self, operations)
        did.append(len(operations) - len(left))
        return left

    monkeypatch.setattr(CompiledStep, "begin", counted)
    return did


def penalised() -> list[Callback[Any]]:
    return [weight_penalty(l2=0.01)]


def nonfinite() -> list[Callback[Any]]:
    return [skip_nonfinite()]


INSIDE: dict[str, Callable[[], list[Callback[Any]]]] = {
    "norm": lambda: [clip_grad_norm(0.1)],
    "value": lambda: [clip_grad_value(0.01), ema(0.9)],
    "accumulate": lambda: [accumulate(2)],
    "both": lambda: [accumulate(3), clip_grad_norm(0.1), record("grad_norm", "loss")],
    "leftover dropped": lambda: [accumulate(2, drop_last=True)],
    "bfloat16": lambda: [mixed_precision("bfloat16"), clip_grad_norm(0.1)],
    "thawed": lambda: [freeze("0.*", until_epoch=1), clip_grad_norm(0.1)],
    "penalty": penalised,
    "nonfinite": nonfinite,
    "schedule": lambda: [schedule(lr=time_decay(0.5), by="epoch"), clip_grad_norm(0.1)],
}


@pytest.mark.parametrize("inside", INSIDE.values(), ids=INSIDE)
def test_pieces_train_to_the_weights_of_the_eager_way(
    inside: Callable[[], list[Callback[Any]]], begun: list[int]
) -> None:
    """Bit for bit with the backend "eager", also with a leftover window, batches of two sizes and batch norm."""
    settings: dict[str, Any] = {"valid": DATA[:2], "epochs": 2, "seed": 0}

    ours = trained([compile_step(backend="eager"), *inside()], UNEVEN, model=net(), **settings)
    theirs = trained(inside(), UNEVEN, model=net(), **settings)

    assert begun == [2] * 14
    assert same_weights(ours.model, theirs.model)
    assert all(map(torch.equal, ours.model.buffers(), theirs.model.buffers()))
    assert ours.final.metrics == theirs.final.metrics
    assert (ours.final.step, ours.final.samples) == (theirs.final.step, theirs.final.samples)


def test_backward_is_compiled_with_them(begun: list[int]) -> None:
    """With a backend that compiles the gradient too, the weights are those of the eager way up to rounding."""
    ours = trained([compile_step(backend="aot_eager"), *INSIDE["both"]()], DATA, model=net(), epochs=2)

    assert begun == [2] * 8
    assert ours.weights.allclose(trained(INSIDE["both"](), DATA, model=net(), epochs=2).weights, rtol=0, atol=1e-5)


def test_the_step_is_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a callback looks before it, that of each batch."""
    took: list[bool] = []
    original = CompiledStep.take_step

    def counted(self: CompiledStep) -> None:
        took.append(self.first_is_eager)
        original(self)

    monkeypatch.setattr(CompiledStep, "take_step", counted)

    trained([compile_step(backend="eager"), clip_grad_norm(0.1)], DATA, model=net())

    assert took == [False] * 4


def test_what_is_left_out_after_its_loss_changes_nothing(begun: list[int]) -> None:
    """The statistics of batch norm are put back, as in the eager way."""

    @on(Phase.LOSS_END)
    def left_out(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_BACKWARD) if state.batch == 1 else None

    ours = trained([compile_step(backend="eager"), left_out], DATA, model=net())
    theirs = trained([left_out], DATA, model=net())

    assert begun == [2] * 4
    assert same_weights(ours.model, theirs.model)
    assert all(map(torch.equal, ours.model.buffers(), theirs.model.buffers()))
    assert ours.final.metrics == theirs.final.metrics


def test_gradient_scaler_is_eager_and_said_once(begun: list[int]) -> None:
    """As without callbacks inside the step."""
    inside = [mixed_precision("float16"), clip_grad_norm(0.1)]

    with pytest.warns(RuntimeWarning, match="compile_step: a gradient scaler decides on the CPU") as caught:
        ours = trained([compile_step(backend="eager"), *inside], DATA, model=net(), epochs=2)

    assert (begun, len(caught)) == ([0] * 8, 1)
    assert same_weights(ours.model, trained(inside, DATA, model=net(), epochs=2).model)


def test_mixed_batches_are_eager(begun: list[int]) -> None:
    """Each has a loss of its own kind."""
    inside = [mixup(), clip_grad_norm(0.1)]

    ours = trained([compile_step(backend="eager"), *inside], DATA, model=net(), seed=0)

    assert begun == []
    assert same_weights(ours.model, trained(inside, DATA, model=net(), seed=0).model)


def test_graphs_of_torch_compile_are_left_out_and_said_once(begun: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """They would write over gradients that wait."""
    original = CompiledStep.__init__

    def in_graphs(self: CompiledStep, *args: Any) -> None:
        original(self, *args)
        self.in_graphs = True

    monkeypatch.setattr(CompiledStep, "__init__", in_graphs)

    with pytest.warns(RuntimeWarning, match="looks inside the steps, and CUDA graphs of torch") as caught:
        ours = trained([compile_step(backend="eager"), clip_grad_norm(0.1)], DATA, model=net())

    assert (begun, len(caught)) == ([0] * 4, 1)
    assert same_weights(ours.model, trained([clip_grad_norm(0.1)], DATA, model=net()).model)


def test_suspended_in_a_window_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    """The gradients that wait are saved as ever, and the log of both calls replays."""

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 5 else None

    torch.compiler.reset()
    inside = [compile_step(backend="eager"), accumulate(2), clip_grad_norm(0.1)]
    log = tmp_path / "run.jsonl"
    run(start(workload(DATA, model=net()), epochs=2, seed=0), [*inside, checkpoint(tmp_path), leave], log=log)
    work = workload(DATA, model=net())

    run(restore(tmp_path, work), [*inside, checkpoint(tmp_path)], log=log)

    assert same_weights(work.model, trained(inside[1:], DATA, model=net(), epochs=2, seed=0).model)
    assert replay(log, [*inside, checkpoint(tmp_path), leave]).ok


@pytest.mark.parametrize("operation", ["forward", "backward", "step", "zero"])
def test_error_in_a_piece_says_where(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the operation, and the phase before it."""

    def fails(*_: object, **__: object) -> Any:
        raise ZeroDivisionError("of all things")

    torch.compiler.reset()
    work = workload(DATA, model=net())
    owners: dict[str, tuple[object, str]] = {
        "forward": (work.model, "forward"),
        "backward": (torch.Tensor, "backward"),
        "step": (work.optimizer, "step"),
        "zero": (work.optimizer, "zero_grad"),
    }
    broken = Callback("broken", (Phase.TRAIN_BEGIN,), lambda state, _: monkeypatch.setattr(*owners[operation], fails))

    with pytest.raises(ZeroDivisionError) as caught:
        run(start(work, epochs=1), [compile_step(backend="eager"), clip_grad_norm(1.0), broken])

    after = {"forward": "batch_begin", "backward": "loss_end", "step": "step_begin", "zero": "step_end"}[operation]
    assert caught.value.__notes__[0].startswith(f"Raised by {operation}, after {after} of epoch 0, batch 0")


# --------------------------------------------------------------------------------------- captured


def test_gradients_are_captured_where_a_callback_looks_before_the_step(graphs: list[PretendedGraph]) -> None:
    """Warmed up, recorded once and replayed from then on; what clips them sees those of each batch."""
    assert_same(lambda: [clip_grad_norm(0.1), record("grad_norm")], valid=DATA[:2])

    assert graphs[0].did == ["warm up"] * 3 + ["capture"] + ["replay"] * 9


def test_metrics_of_captured_gradients_are_of_the_batch(graphs: list[PretendedGraph]) -> None:
    """Also where frozen parameters have no gradient, and after they thaw."""
    metrics = {"first": lambda output, target: output[0, 0] - target[0, 0]}
    assert_same(lambda: [clip_grad_norm(0.1), freeze("0.*", until_epoch=2)], metrics=metrics, epochs=4)

    assert graphs[0].did.count("capture") == 2


def test_a_graph_has_nothing_to_do_between_loss_and_backward(graphs: list[PretendedGraph]) -> None:
    """Which is said once."""
    assert said(accumulate(2), model=net(), epochs=2) == [
        "compile_step: a callback or sink looks between loss and backward: each step is trained the eager way"
    ]
    assert graphs[0].did == []


def test_whole_and_captured_pieces_in_one_training(graphs: list[PretendedGraph]) -> None:
    """Steps that a callback skips are pieces, the others whole: each has a graph of its own."""

    @on(Phase.BATCH_BEGIN)
    def skip(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_STEP) if state.batch % 2 else None

    assert_same(lambda: [skip], epochs=5)

    assert graphs[0].did.count("capture") == 2


def test_batch_of_another_shape_is_an_eager_piece(graphs: list[PretendedGraph]) -> None:
    """Said once; the next replay has nothing of it."""
    with pytest.warns(RuntimeWarning, match="does not fit the first one"):
        assert_same(lambda: [clip_grad_norm(0.1)], batches(8, 8, 8, 8, 6, 8))

    assert graphs[0].did.count("capture") == 1


def test_modules_without_gradients_are_captured(graphs: list[PretendedGraph]) -> None:
    """A parameter of the optimizer that the loss does not depend on keeps having none."""

    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.spare = net(), nn.Linear(2, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.inner(inputs)

    def spare() -> nn.Module:
        torch.manual_seed(0)
        return Spare()

    assert_same(lambda: [clip_grad_norm(0.1)], model=spare)


def test_a_mixed_batch_that_is_left_out_after_its_loss_leaves_the_statistics_as_they_were() -> None:
    """Its forward pass is eager, and a callback may leave it out none the less."""

    @on(Phase.LOSS_END)
    def leaves_some_out(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_BATCH) if state.batch % 2 else None

    def mixed(*others: Callback[Any]) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        data = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(4)]
        work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), data)
        run(start(work, epochs=2, seed=0), [mixup(0.4), leaves_some_out, *others])
        return model

    eager, pieces = mixed().state_dict(), mixed(compile_step(backend="eager")).state_dict()
    assert all(torch.equal(eager[name], pieces[name]) for name in eager)
