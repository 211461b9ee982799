"""Compiled steps: as data, who prevents them, and that they train as the eager ones do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
    WorkloadError,
    iterate,
    on,
    replay,
    run,
    start,
)
from fsm_train.callbacks import (
    accumulate,
    clip_grad_norm,
    compile_step,
    freeze,
    mixed_precision,
    mixup,
    record,
    schedule,
    torch_scheduler,
)
from fsm_train.core.commands import UseCompiledStep
from fsm_train.core.description import watchers_before_loss
from fsm_train.core.phase import CONSULTED
from fsm_train.schedules import time_decay
from fsm_train.sinks.base import Recorder
from fsm_train.supervised.compilation import CompiledStep
from fsm_train.testing import at
from tests.diabetes_training import batches, net, sgd, trained, weights_of, workload
from tests.models import accuracy, digits, network, same_weights

DATA = batches(8, 8, 8, 8)
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:DeprecationWarning"
)  # torch's compiler uses what it deprecates
INSIDE_A_STEP = {Phase.LOSS_BEGIN, Phase.LOSS_END, Phase.BACKWARD_END, Phase.STEP_BEGIN, Phase.STEP_END}
CLOSE = 1e-5  # largest difference of a weight; weights are about 0.3


@pytest.fixture
def compiled_steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rates that the steps had which were trained in one go."""
    rates: list[float] = []
    original = CompiledStep.run

    def counted(self: CompiledStep) -> torch.Tensor:
        rates.append(self.work.optimizer.param_groups[0]["lr"])
        return original(self)

    monkeypatch.setattr(CompiledStep, "run", counted)
    return rates


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    """Torch keeps a few versions of an optimizer's code in one process, and later trainings would get none."""
    torch.compiler.reset()


# ------------------------------------------------------------------------------------------ as data


@pytest.mark.parametrize("mode", ["graph", "default", "reduce-overhead", "max-autotune"])
def test_it_asks_for_whole_steps_when_a_run_begins(mode: Any) -> None:
    """One command at SETUP; how it was made is recorded."""
    callback = compile_step(mode)

    assert callback(at(Phase.SETUP)) == Transition(commands=(UseCompiledStep(mode, "inductor"),))
    assert callback.at == (Phase.SETUP,)
    assert callback.params == {"mode": mode, "backend": "inductor"}


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"mode": "fast"}, ValueError, "mode='fast': one of 'graph', 'default', 'reduce-overhead', 'max-autotune'"),
        (
            {"mode": "graph", "backend": "eager"},
            ValueError,
            "backend='eager' goes with mode='default': the mode 'graph'",
        ),
        ({"backend": None}, TypeError, "backend=None: give the name of a backend of torch.compile"),
    ],
)
def test_settings_are_checked_when_made(settings: dict[str, Any], error: type[Exception], sentence: str) -> None:
    """Nonsense is refused on the spot."""
    with pytest.raises(error, match=sentence):
        compile_step(**settings)


def test_graph_needs_cuda() -> None:
    """On another device the run ends before anything is trained, and says why."""
    with pytest.raises(WorkloadError, match=r"mode='graph'\) captures a CUDA graph, but the model is on cpu"):
        trained([compile_step("graph")], DATA)


# ---------------------------------------------------------------------------- who looks inside a step


def silent(phase: Phase, **settings: Any) -> Callback[None]:
    return on(phase, name=f"looks at {phase.value}", **settings)(lambda state: None)


@pytest.mark.unmeasured
@pytest.mark.parametrize("phase", [phase for phase in CONSULTED if phase not in (Phase.SETUP, Phase.SUSPEND)])
def test_who_looks_between_forward_and_loss_is_named(
    phase: Phase, compiled_steps: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """When the run begins. Whoever is consulted between forward and zero leaves no step whole."""
    trained([compile_step(backend="eager"), silent(phase)], DATA, valid=DATA[:1])

    between = f"compile_step leaves forward and loss as they are, since these look between them: looks at {phase.value}"
    assert [record.message for record in caplog.records if record.name == "fsm_train"] == (
        [between] if phase is Phase.LOSS_BEGIN else []
    )
    assert len(compiled_steps) == (0 if phase in INSIDE_A_STEP else 4)


def test_nobody_is_named_without_compile_step() -> None:
    """Only who wants whole steps wants to know."""
    lookers = [clip_grad_norm(1.0), record("loss"), accumulate(2), silent(Phase.LOSS_BEGIN)]

    assert watchers_before_loss(lookers) == []
    assert watchers_before_loss([*lookers, compile_step()]) == ["looks at loss_begin"]


class Watching(Recorder):
    at = (Phase.LOSS_BEGIN,)

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        """Nothing to do."""


def test_sinks_and_stepping_look_too(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever they are, they are named."""
    state = start(workload(DATA), epochs=1)
    for _ in iterate(state, [compile_step(backend="eager")], sinks=[Watching()], at=[Phase.LOSS_BEGIN]):
        pass

    assert "these look between them: the sink Watching, at=…" in caplog.text


def test_log_leaves_steps_whole(compiled_steps: list[float], tmp_path: Path) -> None:
    """It is told where callbacks are consulted, and notes what else it has to without looking."""
    log = tmp_path / "run.jsonl"
    run(start(workload(DATA), epochs=1), [compile_step(backend="eager"), silent(Phase.BATCH_END)], log=log)

    assert len(compiled_steps) == 4
    assert replay(log, [compile_step(backend="eager"), silent(Phase.BATCH_END)]).ok


def test_one_who_looks_between_forward_and_loss_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Forward, loss and backward are the eager ones, bit for bit, and the step is compiled."""
    looks = silent(Phase.LOSS_BEGIN)
    with caplog.at_level(logging.WARNING, "fsm_train"):
        ours = trained([compile_step(backend="eager"), looks], DATA, model=net(), epochs=2)

    assert same_weights(ours.model, trained([looks], DATA, model=net(), epochs=2).model)
    assert "look between them: looks at loss_begin" in caplog.text


# ------------------------------------------------------------------------------------- the same weights


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def _without_norm() -> nn.Module:
    """Before a batch norm the gradient of a bias is rounding alone, and Adam makes whole steps of it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1))


@pytest.mark.unmeasured
@pytest.mark.parametrize(("make", "optimizer"), [(net, sgd), (_without_norm, _adam)], ids=["sgd", "adam"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_training_is_the_eager_one(
    backend: str, make: Callable[[], nn.Module], optimizer: Any, compiled_steps: list[float]
) -> None:
    """Weights, buffers, epoch losses and counters, over epochs with validation between them."""
    parts: dict[str, Any] = {"data": DATA, "valid": DATA[:2], "epochs": 3, "optimizer": optimizer}

    ours = trained([compile_step(backend=backend)], model=make(), **parts)
    theirs = trained([], model=make(), **parts)

    assert len(compiled_steps) == 12
    for mine, other in zip(ours.model.state_dict().values(), theirs.model.state_dict().values(), strict=True):
        assert mine.allclose(other, rtol=0, atol=CLOSE)
    assert ours.final.metrics == pytest.approx(dict(theirs.final.metrics), rel=1e-5)
    assert (ours.final.step, ours.final.samples) == (theirs.final.step, theirs.final.samples) == (12, 96)


def test_facts_and_metrics_of_a_whole_step() -> None:
    """The loss for a callback that needs it after the batch, and metrics, are those of the eager way."""
    seen: dict[str, list[float]] = {"compiled": [], "eager": []}
    data = list(zip(*(tensor[:96].split(24) for tensor in digits().tensors), strict=True))

    def train(kind: str, callbacks: list[Callback[Any]]) -> State:
        @on(Phase.BATCH_END, needs={"loss"})
        def note(state: State) -> None:
            seen[kind].append(state.facts["loss"])

        torch.manual_seed(0)
        parts = {"loss_fn": nn.CrossEntropyLoss(), "metrics": {"accuracy": accuracy}}
        return trained([*callbacks, note], data, model=network(), **parts).final

    ours, theirs = train("compiled", [compile_step(backend="eager")]), train("eager", [])

    assert seen["compiled"] == pytest.approx(seen["eager"], rel=1e-5)
    assert ours.metrics == pytest.approx(dict(theirs.metrics), rel=1e-5)


@pytest.mark.unmeasured
def test_bfloat16_is_compiled_too(compiled_steps: list[float]) -> None:
    """Autocast without a scaler goes through the compiled step: what is computed has its type."""
    seen: list[torch.dtype] = []

    def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(output.dtype)
        return nn.functional.mse_loss(output, target)

    callbacks = [compile_step(backend="eager"), mixed_precision("bfloat16")]
    ours = trained(callbacks, DATA, model=net(), loss_fn=loss_fn)
    theirs = trained([mixed_precision("bfloat16")], DATA, model=net())

    assert set(seen) == {torch.bfloat16}
    assert len(compiled_steps) == 4
    assert ours.weights.allclose(theirs.weights, rtol=0, atol=1e-3)


def test_batches_of_another_shape_are_compiled_again(compiled_steps: list[float]) -> None:
    """A short last batch costs a compilation, and nothing else."""
    data = batches(8, 8, 8, 6)

    ours = trained([compile_step(backend="eager")], data, model=net(), epochs=2)

    assert len(compiled_steps) == 8
    assert ours.weights.allclose(trained([], data, model=net(), epochs=2).weights, rtol=0, atol=CLOSE)


@pytest.mark.unmeasured
def test_frozen_layers_stay_as_they_are(compiled_steps: list[float]) -> None:
    """Also when they thaw while steps are compiled."""
    callbacks = [freeze("0.*", until_epoch=2)]

    ours = trained([compile_step(backend="eager"), *callbacks], DATA, model=net(), epochs=3)

    assert len(compiled_steps) == 12
    assert ours.weights.allclose(trained(callbacks, DATA, model=net(), epochs=3).weights, rtol=0, atol=CLOSE)


def test_what_the_next_step_writes_over_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch.compile keeps its answers in graphs, as on CUDA, losses are kept for the end of the epoch."""
    began: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: began.append(1))
    original = CompiledStep.__init__
    answered = torch.zeros(())

    def in_graphs(self: CompiledStep, *args: Any) -> None:
        original(self, *args)
        self.in_graphs, computed = True, self.forward_and_loss

        def overwriting(*args: Any) -> tuple[Any, torch.Tensor]:
            output, loss = computed(*args)
            answered.copy_(loss.detach())
            loss.data = answered  # the memory of each answer is that of the one before
            return output, loss

        self.forward_and_loss = overwriting

    monkeypatch.setattr(CompiledStep, "__init__", in_graphs)
    ours = trained([compile_step(backend="eager")], DATA, model=net())

    assert len(began) == 4
    assert ours.final.metrics == pytest.approx(dict(trained([], DATA, model=net()).final.metrics), rel=1e-5)


# -------------------------------------------------------------------------------- numbers that change


def test_learning_rate_of_a_schedule_is_seen(compiled_steps: list[float]) -> None:
    """A rate that is set by epoch is the one that the compiled step has."""
    callbacks = [schedule(lr=time_decay(0.5), by="epoch")]

    ours = trained([compile_step(backend="eager"), *callbacks], DATA, model=net(), epochs=3)

    assert len(set(compiled_steps)) == 3
    assert ours.weights.allclose(trained(callbacks, DATA, model=net(), epochs=3).weights, rtol=0, atol=CLOSE)


@pytest.mark.unmeasured
def test_learning_rate_of_torchs_own_scheduler_is_seen(compiled_steps: list[float]) -> None:
    """It writes to the optimizer by itself."""

    def halved() -> list[Callback[Any]]:
        return [torch_scheduler(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), by="epoch")]

    ours = trained([compile_step(backend="eager"), *halved()], DATA, model=net(), epochs=3)

    assert len(set(compiled_steps)) == 3
    assert ours.weights.allclose(trained(halved(), DATA, model=net(), epochs=3).weights, rtol=0, atol=CLOSE)


def test_numbers_that_change_all_the_time_are_said_once(compiled_steps: list[float]) -> None:
    """After a few compilations the optimizer steps the eager way, with the numbers that are set."""
    callbacks = [schedule(lr=time_decay(0.5), by="iteration")]

    with pytest.warns(RuntimeWarning) as caught:
        ours = trained([compile_step(backend="eager"), *callbacks], DATA, model=net(), epochs=3)

    (warning,) = caught
    assert str(warning.message) == (
        "compile_step: numbers that are compiled into the optimizer's step, such as a learning rate, have changed 4 "
        "times: it is done the eager way from now on; forward and loss stay compiled"
    )
    assert len(set(compiled_steps)) == 12
    assert ours.weights.allclose(trained(callbacks, DATA, model=net(), epochs=3).weights, rtol=0, atol=CLOSE)


def test_setting_a_number_to_what_it_is_costs_nothing() -> None:
    """Only a change counts."""

    @on(Phase.BATCH_BEGIN)
    def same(state: State) -> Transition:
        return Transition(hyper={"lr": 0.05})

    trained([compile_step(backend="eager"), same], DATA, model=net(), epochs=3)  # a warning would be an error


# -------------------------------------------------------------------------------------- the eager way


def test_gradient_scaler_is_said_once(compiled_steps: list[float]) -> None:
    """It decides on the CPU: such steps are the eager ones."""
    callbacks = [mixed_precision("float16")]

    with pytest.warns(RuntimeWarning, match="compile_step: a gradient scaler decides on the CPU") as caught:
        ours = trained([compile_step(backend="eager"), *callbacks], DATA, model=net(), epochs=2)

    assert (len(compiled_steps), len(caught)) == (0, 1)
    assert same_weights(ours.model, trained(callbacks, DATA, model=net(), epochs=2).model)


@pytest.mark.parametrize("others", [[mixup()], [accumulate(2)]], ids=["mixup", "accumulate"])
def test_mixed_batches_and_windows_are_eager(others: list[Callback[Any]], compiled_steps: list[float]) -> None:
    """What has a loss or a gradient of its own kind is trained as without compile_step, bit for bit."""
    ours = trained([compile_step(backend="eager"), *others], DATA, model=net(), epochs=2, seed=0)

    assert compiled_steps == []
    assert same_weights(ours.model, trained(others, DATA, model=net(), epochs=2, seed=0).model)


def test_gradients_that_wait_are_stepped_with_the_rest(compiled_steps: list[float]) -> None:
    """A callback that accumulates by flags alone leaves a gradient, to which a whole step adds its own."""

    @on(Phase.BATCH_BEGIN)
    def every_second(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_STEP | Flag.SKIP_ZERO) if state.batch % 2 == 0 else None

    ours = trained([compile_step(backend="eager"), every_second], DATA, model=net())

    assert len(compiled_steps) == 2
    assert ours.weights.allclose(trained([every_second], DATA, model=net()).weights, rtol=0, atol=CLOSE)


def test_it_ends_with_the_run() -> None:
    """A later run of the same workload, without the callback, is the eager one."""
    work = workload(DATA, model=net())
    run(start(work, epochs=1), [compile_step(backend="eager")])

    assert work.whole_step is None


# --------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("operation", ["forward", "loss", "backward", "step", "zero"])
def test_error_in_a_compiled_step_keeps_its_type_and_says_where(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and loss are one, and called forward; else the operation is named."""

    def fails(*_: object, **__: object) -> Any:
        raise ZeroDivisionError("of all things")

    work = workload(DATA, model=net())
    owners: dict[str, tuple[object, str]] = {
        "forward": (work.model, "forward"),
        "loss": (work, "loss_fn"),
        "backward": (torch.Tensor, "backward"),
        "step": (work.optimizer, "step"),
        "zero": (work.optimizer, "zero_grad"),
    }
    begun = Callback("begun", (Phase.TRAIN_BEGIN,), lambda state, _: monkeypatch.setattr(*owners[operation], fails))

    with pytest.raises(ZeroDivisionError) as caught:
        run(start(work, epochs=1), [compile_step(backend="eager"), begun])

    name = "forward" if operation == "loss" else operation
    after = {"forward": "batch_begin", "backward": "loss_end", "step": "step_begin", "zero": "step_end"}[name]
    assert caught.value.__notes__[0].startswith(f"Raised by {name}, after {after} of epoch 0, batch 0")


def test_loss_is_checked_as_ever() -> None:
    """A loss that backward cannot begin with is refused in a sentence."""
    model = net()
    work = Supervised(model, sgd(model), lambda output, target: (output - target) ** 2, DATA)

    with pytest.raises(WorkloadError, match=r"a tensor of shape \(8, 1\).*take its mean"):
        run(start(work, epochs=1), [compile_step(backend="eager")])

    assert torch.equal(weights_of(model), weights_of(net()))
