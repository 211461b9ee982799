"""Captured steps, tried without CUDA: when a step is captured, replayed, captured anew, or done the eager way.

The graph of these tests does on the CPU what a CUDA graph does: recording changes no tensor, and a
replay repeats what was recorded, with the numbers and the tensors of that moment, whatever Python
holds by then.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fsm_train import Callback, Flag, Phase, State, Supervised, Transition, WorkloadError, on, run, start
from fsm_train.callbacks import compile_step, freeze, mixed_precision, mixup, parallel, schedule, torch_scheduler
from fsm_train.core.commands import UseCompiledStep
from fsm_train.data.batches import tensors
from fsm_train.schedules import time_decay
from fsm_train.supervised import handlers
from fsm_train.supervised.compilation import (
    MIN_CAPTURES,
    WARM_UP,
    CapturedStep,
    CompiledStep,
    compiled_step,
)
from fsm_train.supervised.cuda_graphs import CudaGraph, check_capturable, stream_for
from fsm_train.worlds.registry import handler_of
from tests.diabetes_training import batches, linear, net, sgd, trained, workload
from tests.models import same_weights

DATA = batches(8, 8, 8, 8)


class PretendedGraph:
    """A graph on the CPU: what was recorded is done again by calling it, as things were when it was recorded."""

    def __init__(self, work: Supervised) -> None:
        self.work = work
        self.did: list[str] = []

    def on_capture_stream(self, train: Callable[[], Any]) -> Any:
        self.did.append("warm up")
        return train()

    def capture(self, train: Callable[[], Any]) -> Any:
        self.did.append("capture")
        before = [tensor.clone() for tensor in self._tensors()]
        self.train, self.statics = train, train()
        with torch.no_grad():
            for tensor, was in zip(self._tensors(), before, strict=True):
                tensor.copy_(was)
        self.baked = self._python()
        return self.statics

    def replay(self) -> None:
        self.did.append("replay")
        now, gradients = self._python(), [parameter.grad for parameter in self.work.parameters]
        self._set(self.baked)
        for parameter in self.work.parameters:
            parameter.grad = None
        for static, new in zip(tensors(self.statics), tensors(self.train()), strict=True):
            static.copy_(new)
        self._set(now)
        for parameter, gradient in zip(self.work.parameters, gradients, strict=True):
            parameter.grad = gradient  # a replay writes to tensors of its own

    def _tensors(self) -> list[torch.Tensor]:
        state = self.work.optimizer.state.values()
        kept = [value for each in state for value in each.values() if isinstance(value, torch.Tensor)]
        return [*self.work.model.parameters(), *self.work.model.buffers(), *kept]

    def _python(self) -> Any:
        groups = [{k: copy.copy(v) for k, v in group.items() if k != "params"} for group in self._groups()]
        frozen = [parameter.requires_grad for parameter in self.work.model.parameters()]
        return groups, frozen, [module.training for module in self.work.model.modules()]

    def _set(self, python: Any) -> None:
        groups, frozen, modes = python
        for group, values in zip(self._groups(), groups, strict=True):
            group.update(values)
        for parameter, trainable in zip(self.work.model.parameters(), frozen, strict=True):
            parameter.requires_grad_(trainable)
        for module, mode in zip(self.work.model.modules(), modes, strict=True):
            module.training = mode

    def _groups(self) -> list[dict[str, Any]]:
        return self.work.optimizer.param_groups


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[PretendedGraph]:
    """The graphs of the trainings of this test, one each."""
    made: list[PretendedGraph] = []

    def captured(work: Supervised, mode: str, backend: str) -> CapturedStep:
        made.append(PretendedGraph(work))
        return CapturedStep(work, made[-1])

    monkeypatch.setattr(handlers, "compiled_step", captured)
    return made


def assert_same(callbacks: Callable[[], list[Callback[Any]]], data: Any = DATA, **parts: Any) -> None:
    """Train with and without capturing, to the same weights."""
    epochs = parts.pop("epochs", 3)
    make = parts.pop("model", net)
    ours = trained([compile_step("graph"), *callbacks()], data, model=make(), epochs=epochs, **parts)
    theirs = trained(callbacks(), data, model=make(), epochs=epochs, **parts)
    assert same_weights(ours.model, theirs.model)
    assert ours.final.metrics == theirs.final.metrics
    assert ours.final.step == theirs.final.step


# --------------------------------------------------------------------------------- capture and replay


def test_steps_are_warmed_up_captured_once_and_replayed(graphs: list[PretendedGraph]) -> None:
    """A few steps beside the graph, one recording, which trains nothing, and replays from then on."""
    assert_same(list, valid=DATA[:2])

    assert graphs[0].did == ["warm up"] * WARM_UP + ["capture"] + ["replay"] * 9


def test_metrics_are_of_the_batch_that_was_trained(graphs: list[PretendedGraph]) -> None:
    """A metric may answer with a part of the output, which is written over by each replay and by a validation."""

    def first(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return output[0, 0] - target[0, 0]

    assert_same(list, valid=DATA[1:3], metrics={"first": first})

    assert graphs[0].did.count("replay") == 9


def test_facts_are_of_the_batch_that_was_trained(graphs: list[PretendedGraph]) -> None:
    """The loss of each batch, read after it, is that of the eager way."""

    def losses(*callbacks: Callback[Any]) -> list[float]:
        seen: list[float] = []

        @on(Phase.BATCH_END, needs={"loss"})
        def note(state: State) -> None:
            seen.append(state.facts["loss"])

        trained([*callbacks, note], DATA, model=net(), epochs=2)
        return seen

    assert losses(compile_step("graph")) == losses()


# ------------------------------------------------------------------------------------ the eager way


def said(*callbacks: Callback[Any], data: Any = DATA, **parts: Any) -> list[str]:
    """What is warned of in a training with captured steps."""
    with pytest.warns(RuntimeWarning) as caught:
        trained([compile_step("graph"), *callbacks], data, **parts)
    return [str(warning.message) for warning in caught]


SHORT = "compile_step: a batch of shapes [(6, 10), (6, 1)] does not fit the first one, and is trained the eager way"


@pytest.mark.parametrize("sizes", [(8, 8, 8, 8, 6), (8, 8, 8, 6), (8, 6, 8, 8)])
def test_batch_of_another_shape_is_eager_and_said_once(sizes: tuple[int, ...], graphs: list[PretendedGraph]) -> None:
    """Wherever it comes, also just when it would be captured: the first batch says which shape is the usual one."""
    data = batches(*sizes)

    assert said(data=data, model=net(), epochs=3) == [SHORT]
    with pytest.warns(RuntimeWarning):
        assert_same(list, data)

    usual = 3 * (len(sizes) - 1)
    assert graphs[0].did == ["warm up"] * WARM_UP + ["capture"] + ["replay"] * (usual - WARM_UP)


def test_metrics_after_a_batch_of_another_shape(graphs: list[PretendedGraph]) -> None:
    """The next replay is measured by its own output, and not by that of the eager batch."""
    with pytest.warns(RuntimeWarning, match="does not fit the first one"):
        assert_same(list, batches(8, 8, 8, 8, 6, 8), metrics={"mean": lambda output, target: output.mean()})


def test_gradient_scaler_is_eager_and_said_once(graphs: list[PretendedGraph]) -> None:
    """It looks at the gradients from the CPU."""
    assert said(mixed_precision("float16"), epochs=2) == [
        "compile_step: a gradient scaler decides on the CPU whether to step, and each step is trained the eager way"
    ]
    assert graphs[0].did == []


def test_parallel_wrapper_is_eager_and_said_once(graphs: list[PretendedGraph]) -> None:
    """Also when it is put in place after compile_step was consulted."""
    assert said(parallel(), epochs=2) == [
        "compile_step: a parallel wrapper exchanges gradients as it sees fit, and is trained the eager way"
    ]
    assert graphs[0].did == []


def test_bfloat16_is_captured(graphs: list[PretendedGraph]) -> None:
    """Autocast alone decides nothing while a step is under way."""
    assert_same(lambda: [mixed_precision("bfloat16")])

    assert graphs[0].did.count("replay") == 9


def test_mixed_batches_are_eager(graphs: list[PretendedGraph]) -> None:
    """Each is mixed in its own way."""
    assert_same(lambda: [mixup()], seed=0)

    assert graphs[0].did == []


def test_gradients_that_wait_are_eager_and_said_once(graphs: list[PretendedGraph]) -> None:
    """A replay would write its gradients, and forget those that were there."""

    @on(Phase.BATCH_BEGIN)
    def every_second(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_STEP | Flag.SKIP_ZERO) if state.batch % 2 == 0 else None

    with pytest.warns(RuntimeWarning) as caught:
        assert_same(lambda: [every_second])

    assert [str(warning.message) for warning in caught] == [
        "compile_step: gradients of earlier batches wait for this step, which is trained the eager way"
    ]


def test_batch_that_hides_its_tensors_is_eager_and_said_once(graphs: list[PretendedGraph]) -> None:
    """New numbers could not be copied into place, and the first batch would be trained again and again."""

    class Hiding:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

    data = [((x, Hiding(x)), y) for x, y in DATA]

    assert said(data=data, forward=lambda model, inputs: model(inputs[1].tensor)) == [
        "compile_step: the batch holds a Hiding, which may have tensors in it: it is trained the eager way"
    ]


# -------------------------------------------------------------------------------- what is baked in


def test_schedule_by_epoch_is_captured_anew_each_epoch(graphs: list[PretendedGraph]) -> None:
    """A graph keeps the learning rate that it was recorded with."""
    assert_same(lambda: [schedule(lr=time_decay(0.5), by="epoch")])

    assert graphs[0].did.count("capture") == 3


def test_torchs_own_scheduler_is_seen(graphs: list[PretendedGraph]) -> None:
    """It sets the rate in the optimizer by itself."""
    make = torch.optim.lr_scheduler.StepLR
    assert_same(lambda: [torch_scheduler(lambda optimizer: make(optimizer, 1, 0.5), by="epoch")])

    assert graphs[0].did.count("capture") == 3


def test_what_is_frozen_and_thaws_is_captured_anew(graphs: list[PretendedGraph]) -> None:
    """Whether a parameter has a gradient is part of the recording; the step that begins its momentum is not."""
    assert_same(lambda: [freeze("0.*", until_epoch=2)])

    assert graphs[0].did.count("capture") == 2


def test_setting_a_number_to_what_it_is_costs_nothing(graphs: list[PretendedGraph]) -> None:
    """Only a change needs a new recording."""

    @on(Phase.BATCH_BEGIN)
    def same(state: State) -> Transition:
        return Transition(hyper={"lr": 0.05})

    assert_same(lambda: [same])

    assert graphs[0].did.count("capture") == 1


def test_numbers_that_change_with_each_batch_are_eager_and_said_once(graphs: list[PretendedGraph]) -> None:
    """A recording for each step costs more than it saves."""
    with pytest.warns(RuntimeWarning) as caught:
        assert_same(lambda: [schedule(lr=time_decay(0.5), by="iteration")], epochs=4)

    (warning,) = caught
    assert f"such as a learning rate, have changed {MIN_CAPTURES} times in {MIN_CAPTURES} steps, and" in str(
        warning.message
    )
    assert graphs[0].did.count("capture") == MIN_CAPTURES


# --------------------------------------------------------------------------------------- what cannot be


def test_step_that_cannot_be_captured_says_why(graphs: list[PretendedGraph], monkeypatch: pytest.MonkeyPatch) -> None:
    """With what CUDA said, and what to look for; the original is the cause."""

    def refuse(self: PretendedGraph, train: Callable[[], Any]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with …")

    monkeypatch.setattr(PretendedGraph, "capture", refuse)

    with pytest.raises(WorkloadError) as caught:
        trained([compile_step("graph")], DATA)

    assert str(caught.value).startswith(
        "this training step cannot be captured as a CUDA graph (RuntimeError: operation not permitted when stream is "
        "capturing): nothing in the model"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_the_end_of_a_failed_capture_is_not_to_blame(
    graphs: list[PretendedGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said is what failed first; that the capture could not be ended is the cause."""

    def refuse(self: PretendedGraph, train: Callable[[], Any]) -> Any:
        try:
            raise ZeroDivisionError("of all things")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(PretendedGraph, "capture", refuse)

    with pytest.raises(WorkloadError, match=r"a CUDA graph \(ZeroDivisionError: of all things\)") as caught:
        trained([compile_step("graph")], DATA)

    assert isinstance(caught.value.__cause__, RuntimeError)


def test_no_graph_of_autograd_stays_on_another_stream(graphs: list[PretendedGraph]) -> None:
    """Between a warm-up, or a replay, and an eager step, nobody holds on to what the one before has computed."""
    held: list[bool] = []

    @on(Phase.BATCH_END)
    def look(state: State) -> None:
        held.append(work.output.requires_grad)

    work = workload(batches(8, 6, 8, 8, 8, 8), model=net())
    with pytest.warns(RuntimeWarning, match="does not fit the first one"):
        run(start(work, epochs=1), [compile_step("graph"), look])

    assert held == [False, True, False, False, False, False]


def test_loss_is_checked_before_it_is_captured(graphs: list[PretendedGraph]) -> None:
    """In the first warm-up, in the sentence that an eager step has for it."""
    model = linear()
    work = Supervised(model, sgd(model), lambda output, target: (output - target) ** 2, DATA)

    with pytest.raises(WorkloadError, match=r"a tensor of shape \(8, 1\).*take its mean"):
        run(start(work, epochs=1), [compile_step("graph")])


def test_optimizer_that_counts_on_the_cpu_is_refused() -> None:
    """With the setting that lets it be captured; one that counts nothing is taken as it is."""
    adam = torch.optim.Adam(linear().parameters())
    with pytest.raises(WorkloadError, match="Adam cannot be captured as it is: make it with capturable=True"):
        check_capturable(adam)

    check_capturable(torch.optim.Adam(linear().parameters(), capturable=True))
    check_capturable(sgd(linear()))


def test_nothing_is_captured_on_the_cpu() -> None:
    """The command itself refuses a device that has no graphs."""
    with pytest.raises(WorkloadError, match="captures a CUDA graph, but the model is on cpu"):
        handler_of(UseCompiledStep)(workload(DATA), UseCompiledStep("graph"))


class PretendedStream:
    def __init__(self, name: str, did: list[str]) -> None:
        self.name, self.did = name, did

    def wait_stream(self, other: PretendedStream) -> None:
        self.did.append(f"{self.name} waits for {other.name}")


def test_what_only_cuda_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-ups and capture are on one stream, which waits and is waited for; other threads may go on meanwhile."""
    did: list[str] = []
    side, computing = PretendedStream("side", did), PretendedStream("computing", did)

    @contextlib.contextmanager
    def on_stream(stream: PretendedStream) -> Iterator[None]:
        did.append(f"on {stream.name}")
        yield
        did.append(f"off {stream.name}")

    @contextlib.contextmanager
    def capturing(graph: Any, *, stream: PretendedStream, capture_error_mode: str) -> Iterator[None]:
        did.append(f"capture on {stream.name}, {capture_error_mode}")
        yield

    stream_for.cache_clear()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: did.append("replay")))
    work = workload(DATA)
    work.device = torch.device("cuda")
    step = compiled_step(work, "graph", "inductor")
    assert isinstance(step, CapturedStep)

    assert step.graph.on_capture_stream(lambda: did.append("train") or 1) == 1
    assert step.graph.capture(lambda: did.append("train") or 2) == 2
    step.graph.replay()

    stream_for.cache_clear()
    assert did == [
        *("side waits for computing", "on side", "train", "off side", "computing waits for side"),
        *("on computing", "capture on side, thread_local", "train", "off computing"),
        "replay",
    ]


def test_graph_goes_on_over_two_runs(graphs: list[PretendedGraph]) -> None:
    """A suspended training goes on with a graph of its own, to the weights of an undisturbed one."""

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 6 else None

    work = workload(DATA, model=net())
    suspended = run(start(work, epochs=3), [compile_step("graph"), leave])
    run(suspended, [compile_step("graph")])

    assert same_weights(work.model, trained([], DATA, model=net(), epochs=3).model)
    assert [graph.did.count("capture") for graph in graphs] == [1, 1]


@pytest.mark.parametrize(
    ("optimizer", "compiled"), [(sgd, 3), (lambda model: torch.optim.Adam(model.parameters(), foreach=False), 4)]
)
def test_step_that_makes_momentum_is_eager_in_torchs_own_graphs(
    optimizer: Any, compiled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would lie in the memory of a graph; only those that know of graphs make it before."""
    did: list[str] = []
    work = workload(DATA, model=net(), optimizer=optimizer)
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: did.append("begin"))
    work.device = torch.device("cuda")
    step = CompiledStep(work, "reduce-overhead", "inductor")
    work.device = torch.device("cpu")
    original = step.step
    monkeypatch.setattr(step, "step", lambda optimizer: (did.append("step"), original(optimizer)))
    monkeypatch.setattr(handlers, "compiled_step", lambda *settings: step)

    run(start(work, epochs=1), [compile_step("reduce-overhead")])

    assert (did.count("begin"), did.count("step")) == (4, compiled)
    assert same_weights(work.model, trained([], DATA, model=net(), optimizer=optimizer).model)


def test_stream_of_a_failed_capture_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then it is one and the same, and afterwards the stream before it is the current one."""
    current = [object()]
    usual = current[0]

    class Capture:
        def __init__(self, graph: Any, *, stream: Any, capture_error_mode: str) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            current[0] = self.stream

        def __exit__(self, *error: object) -> None:
            raise RuntimeError("the capture could not be ended")

    @contextlib.contextmanager
    def restoring(stream: Any) -> Iterator[None]:
        before = current[0]
        current[0] = stream
        try:
            yield
        finally:
            current[0] = before

    stream_for.cache_clear()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(torch.cuda, "stream", restoring)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[0])
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    device = torch.device("cuda")
    first, second = CudaGraph(device), CudaGraph(device)
    with pytest.raises(RuntimeError, match="could not be ended"):
        second.capture(lambda: 1)

    assert first.stream is second.stream is not CudaGraph(device).stream
    assert current == [usual]
    stream_for.cache_clear()
