"""Trainings on a real GPU: the same as by hand to the last bit, without waits, and brought back exactly.

Deterministic kernels only: linear layers, batch norm, dropout.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader, Dataset

from fsm_train import (
    Callback,
    Phase,
    State,
    Supervised,
    WorkloadError,
    find_lr,
    on,
    restore,
    run,
    start,
)
from fsm_train.callbacks import (
    accumulate,
    checkpoint,
    clip_grad_norm,
    clip_grad_value,
    compile_step,
    early_stopping,
    ema,
    freeze,
    grad_noise,
    mixed_precision,
    mixup,
    parallel,
    record,
    restore_best,
    schedule,
    swa,
    torch_scheduler,
    validate_every,
    weight_penalty,
)
from fsm_train.schedules import time_decay
from tests.diabetes_training import looking
from tests.models import Noisy, accuracy, digits, leave_after, network, same_weights

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

GPU = torch.device("cuda")
HUGE = 2.0**30  # a scale with which gradients overflow in float16
Batch = tuple[torch.Tensor, torch.Tensor]
Optimizer = Callable[[nn.Module], torch.optim.Optimizer]
Callbacks = Callable[[], list[Callback[Any]]]


def ready(*sizes: int, skip: int = 0) -> list[Batch]:
    """The next digits in batches of these sizes, on the device; by default ten of 32."""
    images, labels = digits().tensors
    sizes = sizes or (32,) * 10
    end = skip + sum(sizes)
    return list(zip(images[skip:end].to(GPU).split(sizes), labels[skip:end].to(GPU).split(sizes), strict=True))


def pinned() -> list[Batch]:
    return [(x.cpu().pin_memory(), y.cpu().pin_memory()) for x, y in ready()]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def fused_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def capturable(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01, capturable=True)


def tensor_rate(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01, device=GPU), capturable=True)


def fused_adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01, fused=True)


def made(
    data: Iterable[Any] | None = None,
    *,
    model: Callable[[], nn.Module] = network,
    optimizer: Optimizer = sgd,
    device: torch.device = GPU,
    **settings: Any,
) -> Supervised:
    there = model().to(device)
    return Supervised(there, optimizer(there), nn.CrossEntropyLoss(), ready() if data is None else data, **settings)


def trained(
    callbacks: Iterable[Callback[Any]], data: Iterable[Any] | None = None, *, epochs: int = 2, **settings: Any
) -> tuple[nn.Module, State]:
    work = made(data, **settings)
    final = run(start(work, epochs=epochs, seed=0), callbacks)
    return work.model, final


def by_hand(data: Iterable[Any] | None = None, *, epochs: int = 2, optimizer: Optimizer = sgd) -> nn.Module:
    """The five-line loop, which brings each batch to the device."""
    model = network().to(GPU)
    steps, loss_fn, data = optimizer(model), nn.CrossEntropyLoss(), ready() if data is None else data
    torch.manual_seed(0)
    for _ in range(epochs):
        model.train()
        for inputs, target in data:
            loss = loss_fn(model(inputs.to(GPU)), target.to(GPU))
            loss.backward()
            steps.step()
            steps.zero_grad()
    return model


def apart(a: nn.Module, b: nn.Module) -> float:
    """The largest difference of two weights."""
    return max((x - y).abs().max().item() for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many graphs were captured, and how many times one was replayed."""
    counts = [0, 0]
    capture_begin, replay = torch.cuda.CUDAGraph.capture_begin, torch.cuda.CUDAGraph.replay

    def captured(graph: Any, *args: Any, **settings: Any) -> Any:
        counts[0] += 1
        return capture_begin(graph, *args, **settings)

    def replayed(graph: Any) -> Any:
        counts[1] += 1
        return replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", captured)
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", replayed)
    return counts


# -------------------------------------------------------------------------------------- the bare loop


@pytest.mark.parametrize("optimizer", [sgd, fused_sgd, adam, capturable, tensor_rate, fused_adam])
def test_training_is_the_bare_loop(optimizer: Optimizer) -> None:
    """Bit for bit, with batch norm and with dropout drawn on the device."""
    model, final = trained([], optimizer=optimizer)

    assert same_weights(model, by_hand(optimizer=optimizer))
    assert final.step == 20


def test_batches_from_a_loader_are_those_of_the_bare_loop() -> None:
    """Shuffled on the CPU and moved to the device."""

    def loader() -> DataLoader[Any]:
        return DataLoader(digits(), batch_size=32, shuffle=True)

    model, _ = trained([], loader())

    assert same_weights(model, by_hand(loader()))


def test_validation_changes_nothing() -> None:
    """Generators of the device included: dropout goes on as if nobody had looked."""
    shuffled = DataLoader(digits(64), batch_size=32, shuffle=True)
    model, final = trained([validate_every(steps=3)], valid=shuffled, metrics={"accuracy": accuracy})

    assert same_weights(model, by_hand())
    assert 0.1 < final.metrics["valid_accuracy"] <= 1


def test_losses_are_those_of_the_bare_loop() -> None:
    """Each loss that is asked for is that of its batch, to the last bit, and their mean is the epoch's."""
    look, seen = looking(Phase.BATCH_END, lambda state: state.facts["loss"], needs={"loss"})
    _, final = trained([record("loss"), look], epochs=1)

    model, losses = network().to(GPU), []
    steps = sgd(model)
    torch.manual_seed(0)
    for inputs, target in ready():
        loss = nn.functional.cross_entropy(model(inputs), target)
        loss.backward()
        steps.step()
        steps.zero_grad()
        losses.append(loss.item())
    assert seen == losses
    assert final.metrics["train_loss"] == pytest.approx(sum(losses) / 10, rel=1e-12)


def test_facts_of_several_devices_are_read_together() -> None:
    """A sensor may answer with a tensor on the CPU, beside a loss on the device."""
    look, seen = looking(
        *(Phase.STEP_BEGIN, lambda state: (state.facts["samples seen"], state.facts["loss"], state.facts["grad_norm"])),
        needs={"loss", "grad_norm", "samples seen"},
    )
    trained([look], epochs=1, sensors={"samples seen": lambda work: torch.tensor(float(len(work.inputs)))})

    assert [size for size, _, _ in seen] == [32.0] * 10
    assert all(loss > 0 and norm > 0 for _, loss, norm in seen)


def test_parallel_on_one_device_is_the_plain_training() -> None:
    """DataParallel has one device to choose from, and calls the model on it."""
    assert same_weights(trained([parallel()])[0], by_hand())


def test_distributed_on_one_device_is_the_plain_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process group of one."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    group = f"file://{tmp_path / 'group'}"
    torch.distributed.init_process_group("gloo", init_method=group, rank=0, world_size=1)
    try:
        model, _ = trained([parallel("ddp")])
    finally:
        torch.distributed.destroy_process_group()

    assert same_weights(model, by_hand())


# ------------------------------------------------------------------------------------ half precision


def half_by_hand(dtype: torch.dtype, scale: float, optimizer: Optimizer) -> tuple[nn.Module, list[bool]]:
    """Two epochs with autocast and a gradient scaler; and which steps were taken."""
    model, stepped = network().to(GPU), []
    steps = optimizer(model)
    scaler = torch.amp.GradScaler("cuda", init_scale=scale, enabled=dtype is torch.float16)
    torch.manual_seed(0)
    for _ in range(2):
        model.train()
        for inputs, target in ready():
            with torch.autocast("cuda", dtype=dtype):
                loss = nn.functional.cross_entropy(model(inputs), target)
            scaler.scale(loss).backward()
            scaler.unscale_(steps)
            before = scaler.get_scale()
            scaler.step(steps)
            scaler.update()
            stepped.append(scaler.get_scale() >= before)
            steps.zero_grad()
    return model, stepped


@pytest.mark.parametrize("optimizer", [sgd, adam, fused_adam])
@pytest.mark.parametrize(("dtype", "scale"), [("bfloat16", 1.0), ("float16", 2.0**10), ("float16", HUGE)])
def test_half_precision_is_that_of_the_loop_by_hand(dtype: Any, scale: float, optimizer: Optimizer) -> None:
    """Bit for bit; an overflow is a step that was not taken, and is not counted."""
    look, seen = looking(Phase.STEP_END, lambda state: bool(state.facts["stepped"]), needs={"stepped"})
    model, final = trained([mixed_precision(dtype, initial_scale=scale), look], optimizer=optimizer)
    expected, stepped = half_by_hand(getattr(torch, dtype), scale, optimizer)

    assert seen == stepped
    assert final.step == sum(stepped)
    assert (final.step < 20) == (scale == HUGE)
    assert final.step > 0
    assert same_weights(model, expected)


# ----------------------------------------------------------------------------------- captured steps


@pytest.mark.parametrize("optimizer", [sgd, fused_sgd, capturable, tensor_rate])
def test_captured_steps_are_the_bare_loop(optimizer: Optimizer, replays: list[int]) -> None:
    """Bit for bit: three steps beside the graph, one capture, replays; dropout draws on where it was."""
    model, final = trained([compile_step("graph")], optimizer=optimizer)

    assert same_weights(model, by_hand(optimizer=optimizer))
    assert (final.step, replays) == (20, [1, 17])


def test_losses_and_metrics_of_captured_steps(replays: list[int]) -> None:
    """They are those of the eager way, though each replay writes over the last one's."""

    def seen_with(*callbacks: Callback[Any]) -> tuple[list[float], Any]:
        look, seen = looking(Phase.BATCH_END, lambda state: state.facts["loss"], needs={"loss"})
        data, valid = ready(), ready(32, 32, skip=32)
        _, final = trained([*callbacks, look], data, valid=valid, metrics={"accuracy": accuracy})
        return seen, final.history

    assert seen_with(compile_step("graph")) == seen_with()
    assert replays == [1, 17]


def by_parts(output: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    size = output.square().mean()
    entropy = nn.functional.cross_entropy(output, target)
    return {"loss": entropy + 0.01 * size, "size": size, "entropy": entropy}


def test_loss_by_parts_of_captured_steps(replays: list[int]) -> None:
    """Weights and means of the parts are those of the eager way, though each replay writes over the last one's."""

    def parts_with(*callbacks: Callback[Any]) -> tuple[nn.Module, list[float], State]:
        look, seen = looking(Phase.BATCH_END, lambda state: state.facts["loss"], needs={"loss"})
        model = network().to(GPU)
        work = Supervised(model, sgd(model), by_parts, ready(), ready(32, 32, skip=32))
        return model, seen, run(start(work, epochs=2, seed=0), [*callbacks, look])

    ours, losses, final = parts_with(compile_step("graph"))
    theirs, expected, plain = parts_with()

    assert replays == [1, 17]
    assert same_weights(ours, theirs)
    assert losses == expected
    assert final.history == plain.history
    assert plain.metrics.keys() == {
        f"{split}_{part}" for split in ("train", "valid") for part in ("loss", "size", "entropy")
    }
    assert final.metrics["train_loss"] == pytest.approx(
        final.metrics["train_entropy"] + 0.01 * final.metrics["train_size"], rel=1e-5
    )


@pytest.mark.parametrize(
    ("callbacks", "optimizer", "captures"),
    [
        (lambda: [schedule(lr=time_decay(0.5), by="epoch")], sgd, 3),
        (lambda: [torch_scheduler(lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5), by="epoch")], sgd, 3),
        (lambda: [schedule(lr=time_decay(0.5), by="iteration")], tensor_rate, 1),
        (lambda: [freeze("0.*", until_epoch=1)], sgd, 2),
        (lambda: [mixed_precision("bfloat16")], sgd, 1),
        (lambda: [validate_every(steps=4)], sgd, 1),
        (lambda: [clip_grad_norm(0.1)], sgd, 1),
        (lambda: [clip_grad_norm(0.1), freeze("0.*", until_epoch=1)], capturable, 2),
        (lambda: [accumulate(2)], sgd, 0),
        (lambda: [ema(0.8)], sgd, 1),
        (lambda: [mixup()], sgd, 0),
    ],
)
@pytest.mark.filterwarnings("ignore:compile_step. a callback or sink looks between loss and backward")
def test_captured_steps_beside_others(
    callbacks: Callbacks, optimizer: Optimizer, captures: int, replays: list[int]
) -> None:
    """Rates that change, what thaws, half precision, and those that look inside: the weights of the eager way."""
    valid = ready(32, 32)
    ours, _ = trained([compile_step("graph"), *callbacks()], optimizer=optimizer, epochs=3, valid=valid)
    theirs, _ = trained(callbacks(), optimizer=optimizer, epochs=3, valid=valid)

    assert replays[0] == captures
    assert same_weights(ours, theirs)


@pytest.mark.parametrize("sizes", [(32, 32, 32, 32, 32, 20), (32, 20, 32, 32, 32, 32)])
def test_batch_of_another_shape_beside_a_graph(sizes: tuple[int, ...], replays: list[int]) -> None:
    """It is trained the eager way, on another stream, and the weights are those of the bare loop."""
    with pytest.warns(RuntimeWarning, match="does not fit the first one"):
        model, _ = trained([compile_step("graph")], ready(*sizes))

    assert same_weights(model, by_hand(ready(*sizes)))
    assert replays == [1, 7]


def test_batch_of_another_shape_beside_captured_gradients(replays: list[int]) -> None:
    """It adds to no gradient of the graph, and the next replay to none of its own."""
    sizes = (32, 32, 32, 32, 32, 20, 32)
    with pytest.warns(RuntimeWarning, match="does not fit the first one"):
        ours, _ = trained([compile_step("graph"), clip_grad_norm(0.1)], ready(*sizes))
    theirs, _ = trained([clip_grad_norm(0.1)], ready(*sizes))

    assert same_weights(ours, theirs)
    assert replays == [1, 9]


def test_graph_is_fed_from_the_cpu(replays: list[int]) -> None:
    """Batches come from pinned memory, and are copied into place before each replay."""
    model, _ = trained([compile_step("graph")], pinned())

    assert same_weights(model, by_hand())
    assert replays == [1, 17]


def test_trainings_leave_nothing_on_the_device() -> None:
    """However many graphs were captured, in the end as much memory is in use as after the first one."""
    in_use = []
    for _ in range(4):
        trained([compile_step("graph")], pinned())
        gc.collect()
        in_use.append(torch.cuda.memory_allocated())

    assert in_use[1:] == in_use[:1] * 3


# ---------------------------------------------------------------------------------- compiled steps


@pytest.mark.filterwarnings("ignore:Profiler record function:UserWarning")
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")
@pytest.mark.filterwarnings("ignore:compile_step. a callback or sink looks inside the steps")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_pieces_are_the_eager_ones_up_to_rounding(mode: Any) -> None:
    """With gradients that wait, and are clipped: no graph of torch writes over them."""
    torch.compiler.reset()
    inside = [accumulate(2), clip_grad_norm(0.5)]
    ours, _ = trained([compile_step(mode), *inside], model=without_dropout)

    assert apart(ours, trained(inside, model=without_dropout)[0]) < 1e-4


def without_dropout() -> nn.Module:
    """And without a bias that batch norm takes out again: its gradient is rounding, of which Adam makes whole steps."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")  # torch makes one to begin with
@pytest.mark.filterwarnings("ignore:Profiler record function:UserWarning")
@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_steps_are_the_eager_ones_up_to_rounding(mode: Any, optimizer: Optimizer) -> None:
    """Weights, losses and metrics, with validations in between; what one step answers is not written over."""

    def seen_with(*callbacks: Callback[Any]) -> tuple[nn.Module, list[float], Any]:
        look, seen = looking(Phase.BATCH_END, lambda state: state.facts["loss"], needs={"loss"})
        settings: dict[str, Any] = {"valid": ready(32, 32), "metrics": {"accuracy": accuracy}}
        model, final = trained([*callbacks, look], model=without_dropout, optimizer=optimizer, **settings)
        return model, seen, final.metrics

    torch.compiler.reset()
    (ours, losses, metrics), (theirs, expected, known) = seen_with(compile_step(mode)), seen_with()

    assert apart(ours, theirs) < 1e-4
    assert losses == pytest.approx(expected, abs=1e-4)
    assert dict(metrics) == pytest.approx(dict(known), abs=1e-3)


# ------------------------------------------------------------------------------------------ feeding


def test_batches_fed_from_pinned_memory_are_the_bare_loop() -> None:
    """One ahead, on a stream of its own."""
    assert same_weights(trained([], pinned())[0], by_hand())


@pytest.mark.parametrize("ahead", [None, False])
def test_batches_fed_by_workers_are_the_same(ahead: bool | None) -> None:
    """Shuffled, augmented and pinned elsewhere, with dropout on the device."""

    def fed(ahead: bool | None, **settings: Any) -> nn.Module:
        data = DataLoader(Noisy(digits(160)), batch_size=16, shuffle=True, num_workers=1, **settings)
        return trained([], data, ahead=ahead)[0]

    assert same_weights(fed(ahead, pin_memory=True), fed(False))


class Collecting(Dataset[Batch]):
    """Each sample is read by a worker that first collects all garbage."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Batch:
        gc.collect()
        return torch.zeros(64), torch.zeros((), dtype=torch.long)


def test_workers_do_not_die_of_garbage_on_the_device() -> None:
    """Tensors that were used on two streams, in a cycle that nobody has collected when the workers are forked."""
    gc.disable()
    try:
        cycle: list[Any] = [torch.zeros(1000, device=GPU)]
        cycle[0].record_stream(torch.cuda.Stream())
        cycle.append(cycle)
        del cycle
        _, final = trained([], DataLoader(Collecting(), batch_size=8, num_workers=1), epochs=1)
    finally:
        gc.enable()

    assert final.step == 4


def test_copies_and_computations_do_not_overtake_each_other() -> None:
    """Large batches that are all different, and steps that take longer than a copy: nothing is read half-copied."""

    def wide() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10))

    generator = torch.Generator().manual_seed(0)
    few = [
        (torch.randn(4096, 1024, generator=generator), torch.randint(10, (4096,), generator=generator))
        for _ in range(12)
    ]
    from_pinned, _ = trained([], [(x.pin_memory(), y.pin_memory()) for x, y in few], model=wide, epochs=3)
    there, _ = trained([], [(x.to(GPU), y.to(GPU)) for x, y in few], model=wide, epochs=3)

    assert same_weights(from_pinned, there)


# ------------------------------------------------------------------------------------ without waiting


@pytest.fixture
def never_waiting() -> Iterator[Callback[None]]:
    """A callback that makes each wait for the device an error, from the seventh batch of an epoch to its last."""

    @on(Phase.BATCH_END)
    def never_waiting(state: State) -> None:
        if state.batch in (6, 9):
            torch.cuda.set_sync_debug_mode("error" if state.batch == 6 else "default")

    yield never_waiting
    torch.cuda.set_sync_debug_mode("default")


def test_waiting_would_be_noticed(never_waiting: Callback[None]) -> None:
    """Whoever asks for the loss waits."""
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        trained([never_waiting, record("loss")])


@pytest.mark.parametrize(
    ("callbacks", "settings"),
    [
        (list, {}),
        (list, {"metrics": {"accuracy": accuracy}}),
        (list, {"data": pinned}),
        (lambda: [record("batch_size", "elapsed")], {}),
        (lambda: [accumulate(2), clip_grad_norm(0.1)], {}),
        (lambda: [clip_grad_value(0.01), weight_penalty(l1=1e-4, l2=1e-4)], {}),
        (lambda: [grad_noise(0.01)], {}),
        (lambda: [mixup()], {}),
        (lambda: [ema(0.9)], {}),
        (lambda: [swa(0), freeze("0.*")], {}),
        (lambda: [mixed_precision("bfloat16")], {}),
        (lambda: [schedule(lr=time_decay(0.5))], {}),
        (lambda: [schedule(lr=time_decay(0.5))], {"optimizer": fused_adam}),
        (lambda: [schedule(lr=time_decay(0.5))], {"optimizer": tensor_rate}),
        (lambda: [compile_step("graph")], {}),
        (lambda: [compile_step("graph")], {"data": pinned}),
        (lambda: [compile_step("graph"), schedule(lr=time_decay(0.5), by="iteration")], {"optimizer": tensor_rate}),
    ],
)
def test_nobody_waits_within_an_epoch(
    callbacks: Callbacks, settings: dict[str, Any], never_waiting: Callback[None]
) -> None:
    """As long as nobody asks for a fact of the device."""
    parts = {**settings, **({"data": settings["data"]()} if "data" in settings else {})}
    _, final = trained([never_waiting, *callbacks()], epochs=1, **parts)

    assert final.iteration == 10


# ----------------------------------------------------------------------------------------- averages


def test_moving_average_is_that_of_the_loop_by_hand() -> None:
    """Bit for bit; the training ends with it."""
    model, _ = trained([ema(0.8)])

    theirs = network().to(GPU)
    steps = sgd(theirs)
    average = AveragedModel(theirs, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    torch.manual_seed(0)
    for inputs, target in ready() * 2:
        nn.functional.cross_entropy(theirs(inputs), target).backward()
        steps.step()
        average.update_parameters(theirs)
        steps.zero_grad()
    assert same_weights(model, average.module)


def test_stochastic_average_is_that_of_the_loop_by_hand() -> None:
    """With the statistics of batch norm made anew from the training data."""
    model, _ = trained([swa(0)], epochs=3)

    theirs = network().to(GPU)
    steps, average = sgd(theirs), AveragedModel(theirs)
    torch.manual_seed(0)
    for _ in range(3):
        for inputs, target in ready():
            nn.functional.cross_entropy(theirs(inputs), target).backward()
            steps.step()
            steps.zero_grad()
        average.update_parameters(theirs)
    update_bn(((inputs,) for inputs, _ in ready()), average)
    assert same_weights(model, average.module)


def test_training_ends_with_the_best_weights() -> None:
    """Those of the epoch with the best loss, after it was stopped early."""
    kept: list[dict[str, torch.Tensor]] = []

    @on(Phase.EPOCH_END)
    def keep(state: State) -> None:
        kept.append({name: value.clone() for name, value in work.model.state_dict().items()})

    work = made(
        ready(32, 32),
        valid=ready(64, skip=64),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9),
    )
    final = run(
        start(work, epochs=60, seed=0), [early_stopping("valid_loss", patience=3), restore_best("valid_loss"), keep]
    )

    losses = [metrics["valid_loss"] for metrics in final.history]
    best = kept[losses.index(min(losses))]
    assert len(losses) < 60
    assert all(torch.equal(value, best[name]) for name, value in work.model.state_dict().items())


# -------------------------------------------------------------------------------- trying out, going on


def test_finding_a_rate_leaves_no_trace() -> None:
    """Weights, optimizer and the generators of the device are as before."""
    work = made()
    state = start(work, epochs=2, seed=0)
    before = torch.cuda.get_rng_state()
    found = find_lr(state, low=1e-4, high=1.0, steps=15)
    untouched = torch.equal(before, torch.cuda.get_rng_state())
    run(state)

    assert len(found.losses) == 15
    assert untouched
    assert same_weights(work.model, by_hand())


def to_percent(output: torch.Tensor, target: torch.Tensor) -> float:
    return 100 * accuracy(output, target).item()


@pytest.mark.parametrize(
    ("callbacks", "settings"),
    [
        (list, {}),
        (list, {"optimizer": adam}),
        (list, {"optimizer": fused_adam}),
        (list, {"optimizer": tensor_rate}),
        (list, {"data": pinned}),
        (list, {"metrics": {"accuracy": accuracy}}),
        (list, {"metrics": {"percent": to_percent}}),
        (lambda: [mixed_precision("float16", initial_scale=2.0**22), accumulate(2)], {}),
        (lambda: [mixed_precision("bfloat16"), clip_grad_norm(0.1), grad_noise(0.01)], {}),
        (lambda: [ema(0.8), restore_best("valid_loss"), mixup()], {"valid": lambda: ready(32, 32)}),
        (lambda: [swa(0), validate_every(steps=3)], {"valid": lambda: ready(32, 32)}),
        (lambda: [compile_step("graph")], {}),
        (lambda: [compile_step("graph"), schedule(lr=time_decay(0.5), by="iteration")], {"optimizer": tensor_rate}),
    ],
)
@pytest.mark.parametrize("from_file", [False, True])
def test_training_goes_on_to_the_last_bit(
    callbacks: Callbacks, settings: dict[str, Any], from_file: bool, tmp_path: Path
) -> None:
    """Left in the middle of an epoch, with dropout, in this process or from a file in a workload made anew."""

    def fresh() -> Supervised:
        parts = {name: value() if name in ("data", "valid") else value for name, value in settings.items()}
        return made(**parts)

    undisturbed, work = fresh(), fresh()
    expected = run(start(undisturbed, epochs=2, seed=0), callbacks())

    state = run(start(work, epochs=2, seed=0), [*callbacks(), checkpoint(tmp_path), leave_after(5)])
    assert state.phase is Phase.SUSPENDED
    torch.manual_seed(99)
    if from_file:
        work = fresh()
        state = restore(tmp_path, work)
        assert state.notes == ()
    final = run(state, callbacks())

    assert same_weights(work.model, undisturbed.model)
    assert (final.step, final.metrics, final.history) == (expected.step, expected.metrics, expected.history)


def test_metric_objects_go_on(tmp_path: Path) -> None:
    """Their state is on the device again."""
    torchmetrics = pytest.importorskip("torchmetrics")

    def fresh() -> Supervised:
        return made(metrics={"theirs": torchmetrics.classification.MulticlassAccuracy(num_classes=10)})

    expected = run(start(fresh(), epochs=1, seed=0))
    run(start(fresh(), epochs=1, seed=0), [checkpoint(tmp_path), leave_after(5)])
    work = fresh()
    final = run(restore(tmp_path, work))

    assert final.metrics == expected.metrics


@pytest.mark.parametrize(("there", "here"), [(GPU, torch.device("cpu")), (torch.device("cpu"), GPU)])
@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_checkpoint_goes_on_on_another_device(
    there: torch.device, here: torch.device, optimizer: Optimizer, tmp_path: Path
) -> None:
    """With the weights that were saved, to the end."""
    data = [(x.cpu(), y.cpu()) for x, y in ready()]
    work = made(data, device=there, optimizer=optimizer, metrics={"accuracy": accuracy})
    run(start(work, epochs=2, seed=0), [ema(0.8), checkpoint(tmp_path), leave_after(5)])

    again = made(data, device=here, optimizer=optimizer, metrics={"accuracy": accuracy})
    state = restore(tmp_path, again)
    saved, loaded = work.model.state_dict().values(), again.model.state_dict().values()
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(saved, loaded, strict=True))
    final = run(state, [ema(0.8)])

    assert (final.step, final.phase) == (20, Phase.DONE)
    assert {tensor.device.type for tensor in again.model.state_dict().values()} == {here.type}


WITHOUT = """
import sys
import torch
from torch import nn
from fsm_train import Supervised, restore, run
from tests.models import digits, network
model = network()
data = list(zip(*(tensor.split(32) for tensor in digits().tensors)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
state = restore(sys.argv[1], Supervised(model, optimizer, nn.CrossEntropyLoss(), data))
print(torch.cuda.is_available(), *state.notes, run(state).step, sep="; ")
"""


def test_checkpoint_goes_on_where_there_is_no_cuda(tmp_path: Path) -> None:
    """In a process that sees no device; that its generators are gone is said."""
    run(start(made(), epochs=2, seed=0), [checkpoint(tmp_path), leave_after(5)])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    devices = torch.cuda.device_count()
    assert done.stdout == f"False; the generators of CUDA: there were {devices} devices, and 0 are here; 20\n"


# -------------------------------------------------------------------------------- what cannot be captured


def test_step_that_waits_cannot_be_captured() -> None:
    """It says what waited, and the stream is the usual one again."""
    model = network().to(GPU)

    def waits(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(output, target)
        return loss / max(loss.item(), 1e-3)

    usual = torch.cuda.current_stream()
    with pytest.raises(WorkloadError, match="as a CUDA graph .*not permitted when stream is capturing"):
        run(start(Supervised(model, sgd(model), waits, ready()), epochs=1), [compile_step("graph")])

    # But torch itself leaves the generator of the device as if it were captured still: dropout needs a new process.
    assert torch.cuda.current_stream() == usual


def test_optimizer_that_counts_on_the_cpu_is_refused() -> None:
    """With the setting that lets it be captured."""
    with pytest.raises(WorkloadError, match="make it with capturable=True"):
        trained([compile_step("graph")], optimizer=adam)
