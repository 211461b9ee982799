"""What watching costs, counted and not timed: kernels, transfers from the device, states."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Callback, Flag, Phase, State, Supervised, Transition, on, run, start
from fsm_train.core.state import Draft
from fsm_train.data.generators import Generators
from tests.diabetes_training import batches, net, sgd, trained, workload
from tests.models import accuracy, digits, five_lines, network

READS = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__")
DATA = batches(8, 8, 8, 8)


class Launched(TorchDispatchMode):
    """Notes what is computed: every operation on tensors, but for other views and marks for a profiler."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not torch.ops.aten.detach.default and function.namespace != "profiler":
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each time that a value comes from a device to Python, by the method that brings it."""
    called: list[str] = []

    def counting(name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def read(tensor: torch.Tensor, *args: Any, **settings: Any) -> Any:
            called.append(name)
            return original(tensor, *args, **settings)

        return read

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, counting(name))
    return called


# ------------------------------------------------------------------------------------- nobody looks


def test_steps_launch_the_kernels_of_the_five_line_loop() -> None:
    """The same operations in the same order; what is more comes once, at the end of the epoch."""
    ours, theirs = net(), net()
    work, optimizer = workload(DATA, model=ours), sgd(theirs)
    with Launched() as bare:
        five_lines(theirs, optimizer, nn.MSELoss(), DATA, epochs=1)
    with Launched() as launched:
        run(start(work, epochs=1))

    assert launched.names[: len(bare.names)] == bare.names
    assert Counter(launched.names[len(bare.names) :]) == {"aten.stack.default": 1}


def test_generators_that_a_pass_does_not_draw_from_are_noted_once_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's and Python's take longer to read than all else at an epoch's begin. A loader of one's own may draw."""
    read = []
    noted = Generators.now
    monkeypatch.setattr(Generators, "now", staticmethod(lambda own=(): read.append(1) or noted(own)))  # type: ignore[func-returns-value]
    counts = []
    for data in (DATA, tuple(DATA), DataLoader(TensorDataset(*map(torch.cat, zip(*DATA, strict=True))), 8), _Own(DATA)):
        run(start(workload(data), epochs=4))
        counts.append(len(read))
        read.clear()
    run(start(workload(DATA), epochs=4), [keeps_what_fails])
    counts.append(len(read))

    assert counts == [1, 1, 1, 5, 5]


class _Own:
    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


@on(Phase.TEARDOWN)
def keeps_what_fails(state: State) -> None:
    """It may give a command, for all that it declares."""


def test_losses_are_read_once_an_epoch(reads: list[str]) -> None:
    """However many batches it has, and with a metric once for that."""
    data = list(zip(*(tensor[:96].split(8) for tensor in digits().tensors), strict=True))
    trained([], DATA, model=net(), epochs=3)
    alone = list(reads)
    reads.clear()
    trained([], data, model=network(), epochs=3, loss_fn=nn.CrossEntropyLoss(), metrics={"accuracy": accuracy})

    assert alone == ["tolist"] * 3
    assert reads == ["tolist"] * 6


# ----------------------------------------------------------------------------------- somebody looks


def looking(every: int, **settings: Any) -> Callback[Any]:
    return on(Phase.BATCH_END, every=every, name="look", **settings)(lambda state: None)


@pytest.mark.parametrize("every", [1, 2, 10, 50])
def test_looking_each_so_many_batches_costs_a_part(
    every: int, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """States are built, and losses read, only where the callback is consulted."""
    original, built = Draft.state, [0]

    def counting(*args: Any) -> State:
        built[0] += 1
        return original(*args)

    monkeypatch.setattr(Draft, "state", counting)

    def cost(*callbacks: Callback[Any]) -> tuple[int, int]:
        built[0] = 0
        reads.clear()
        trained(callbacks, DATA * 25, model=net())
        return built[0], len(reads)

    states, transfers = cost()

    assert cost(looking(every)) == (states + 100 // every, transfers)
    assert cost(looking(every, needs={"loss"})) == (states + 100 // every, transfers + 100 // every)


def test_facts_of_a_phase_come_in_one_transfer(reads: list[str]) -> None:
    """Loss, norm of the gradient and sensors together, for all who need them."""
    one = on(Phase.STEP_BEGIN, name="one", needs={"loss", "grad_norm"})(lambda state: None)
    other = on(Phase.STEP_BEGIN, name="other", needs={"loss", "largest", "mean", "elapsed"})(lambda state: None)
    sensors = {"largest": lambda work: work.inputs.abs().max(), "mean": lambda work: work.output.mean()}

    trained([one, other], DATA, model=net(), sensors=sensors)

    assert reads == ["tolist"] * (len(DATA) + 1)  # and the losses of the epoch


def test_one_fact_comes_alone(reads: list[str]) -> None:
    """It needs no tensor to be put together with others."""
    trained([looking(1, needs={"loss"})], DATA, model=net())

    assert reads == ["item"] * len(DATA) + ["tolist"]


def test_what_is_not_needed_is_not_read(reads: list[str]) -> None:
    """Looking alone costs no transfer, and neither does the batch size."""
    sizes: list[float] = []

    @on(Phase.BATCH_END)
    def look(state: State) -> None:
        sizes.append(state.facts["batch_size"])

    trained([look], batches(8, 8, 6), model=net())

    assert sizes == [8, 8, 6]
    assert reads == ["tolist"]


def test_batch_size_is_known_without_the_device() -> None:
    """On a device of which nothing can be read at all."""
    sizes: list[float] = []

    @on(Phase.BATCH_BEGIN)
    def skip(state: State) -> Transition:
        sizes.append(state.facts["batch_size"])
        return Transition(flags=Flag.SKIP_BATCH)

    model = nn.Linear(10, 1, device="meta")
    data = [({"x": x.to("meta")}, y.to("meta")) for x, y in batches(8, 6)]
    final = run(start(Supervised(model, sgd(model), nn.MSELoss(), data), epochs=1), [skip])

    assert sizes == [8, 6]
    assert final.samples == 14
