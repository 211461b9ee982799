"""Batches that are objects: moved wherever they stand, counted by samples=, and trained as a plain loop does."""

from __future__ import annotations

import dataclasses
from collections import UserDict, namedtuple
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fsm_train import State, Supervised, WorkloadError, replay, restore, run, start
from fsm_train.callbacks import accumulate, checkpoint, suspend_after
from fsm_train.data.batches import call, fields_of, holds_hidden_tensors, pair, structure, tensors, to_device
from fsm_train.data.counting import count

META = torch.device("meta")
ONE, TWO = torch.ones(8, 3), torch.ones(2, dtype=torch.int64)


class Graphs:
    """Several graphs as one, as PyTorch Geometric's Batch: the tensors are attributes, and `to` moves in place."""

    def __init__(self, x: torch.Tensor, batch: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.batch, self.y = x, batch, y
        self.num_graphs = len(y)
        self.times_moved = 0

    def to(self, device: torch.device) -> Graphs:
        self.x, self.batch, self.y = self.x.to(device), self.batch.to(device), self.y.to(device)
        self.times_moved += 1
        return self


class Encoding(UserDict[str, Any]):
    """A mapping that moves itself, as the BatchEncoding of transformers."""

    moved = False

    def to(self, device: torch.device) -> Encoding:
        encoding = Encoding({key: value.to(device) for key, value in self.data.items()})
        encoding.moved = True
        return encoding


Point = namedtuple("Point", ["x", "y"])


@attrs.frozen
class Record:
    x: Any
    name: str = "text"


@dataclasses.dataclass(frozen=True, slots=True)
class Boxes:
    corners: Any
    number: int = 3


@dataclasses.dataclass
class Loose:
    x: Any


def graphs(seed: int = 0) -> Graphs:
    generator = torch.Generator().manual_seed(seed)
    sizes = [3, 1, 5, 2][: 2 + seed % 3]
    of_graph = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return Graphs(
        torch.randn(sum(sizes), 3, generator=generator), of_graph, torch.randn(len(sizes), 1, generator=generator)
    )


PLACES = [
    lambda part: part,
    lambda part: [part, 1],
    lambda part: (None, part),
    lambda part: {"rest": "text", "part": part},
    lambda part: Point("text", part),
    lambda part: Record(part),
    lambda part: Boxes(part),
    lambda part: Loose([part]),
    lambda part: [Record({"a": (Boxes(Point(part, 0)),)})],
]


def devices(value: Any) -> set[str]:
    """Where the tensors are; all but the sizes in a PackedSequence, which stay on the CPU."""
    return {tensor.device.type for tensor in tensors(value) if tensor.dtype != torch.int64}


def found(value: Any, kind: type) -> list[Any]:
    """The objects of this type in a value."""
    if isinstance(value, kind):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else None
    inside = parts if parts is not None else (fields_of(value) or {}).values()
    return [part for each in inside for part in found(each, kind)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make", [lambda: ONE, graphs, lambda: Encoding(x=ONE), lambda: pack_sequence([ONE, ONE])])
def test_what_moves_itself_is_moved_wherever_it_stands(place: Any, make: Any) -> None:
    """In lists, tuples, named tuples, mappings, attrs records and dataclasses, and in all of them nested."""
    seen: list[Any] = []

    class Witness:
        def to(self, device: torch.device) -> Witness:
            seen.append(device)
            return self

    moved = to_device(place((make(), Witness())), META)
    assert seen == [META]
    assert all(graph.x.device == META for graph in found(moved, Graphs))
    assert devices(moved) <= {"meta"}
    assert place is PLACES[0] or type(moved) is type(place(0))


def test_frozen_records_are_copied_and_not_written_to() -> None:
    """The batch of a list is the same in the next epoch; one without tensors is passed on itself."""
    batch = Record(ONE), Boxes(ONE)
    first, second = to_device(batch, META)

    assert batch[0].x is ONE
    assert batch[1].corners is ONE
    assert (first.x.device, second.corners.device, first.name, second.number) == (META, META, "text", 3)
    assert to_device(unchanged := Record("text"), META) is unchanged


def test_object_that_is_inputs_and_target_is_moved_once_and_stays_one() -> None:
    """With split=lambda batch: (batch, batch) the loss sees what the model saw."""
    batch = graphs()
    inputs, target = to_device((batch, {"also": batch}), META)

    assert inputs is target["also"]
    assert inputs.times_moved == 1


def test_parts_that_are_made_when_asked_for_are_not_mixed_up() -> None:
    """A mapping may read each of its values anew, at the address of the one before."""

    class Lazy(UserDict[str, Any]):
        def __getitem__(self, key: str) -> torch.Tensor:
            return torch.full((2,), float(key))

    lazy = MappingProxyType(Lazy({str(i): None for i in range(20)}))  # moved to a dict of what it gave
    moved = to_device(lazy, torch.device("cpu"))
    assert [value[0].item() for value in moved.values()] == list(range(20))


def test_to_that_returns_nothing_is_refused() -> None:
    """Whether it moved in place or forgot its return cannot be known."""

    class Forgot:
        def to(self, device: torch.device) -> None:
            pass

    with pytest.raises(WorkloadError, match="the `to` of a Forgot returned None: it is to return what was moved"):
        to_device([Forgot()], META)


@pytest.mark.parametrize("place", PLACES)
def test_hidden_tensors_are_known_to_be_there(place: Any) -> None:
    """A copy on a stream of its own holds on to the tensors that it can see."""
    assert holds_hidden_tensors(place(graphs()))
    assert not holds_hidden_tensors(place(ONE))


def test_structure_looks_into_records_and_refuses_what_moves_itself() -> None:
    """A captured step is for batches of one form, and needs to see all of their tensors."""
    assert structure(Record(ONE)) == structure(Record(2 * ONE)) != structure(Record(ONE, "other"))
    with pytest.raises(TypeError, match="a Graphs, which may have tensors in it"):
        structure(Record(graphs()))


def test_what_moves_itself_is_one_argument_of_the_model() -> None:
    """A PackedSequence is a tuple, and an argument; an encoding is a mapping, and by keyword."""

    class Echo(nn.Module):
        def forward(self, *inputs: Any, **named: Any) -> Any:
            return inputs, named

    packed = pack_sequence([ONE, ONE])
    assert call(Echo(), packed) == ((packed,), {})
    assert call(Echo(), Encoding(x=1)) == ((), {"x": 1})
    assert isinstance(packed, PackedSequence)


# --------------------------------------------------------------------------------- what it counts


@pytest.mark.parametrize(
    ("inputs", "target", "size"),
    [
        (Record(ONE), torch.zeros(8), 8),
        (Loose({"a": ONE, "b": Boxes(ONE)}), None, 8),
        (Encoding(x=ONE, mask=ONE), torch.zeros(8), 8),
        ((ONE, graphs()), torch.zeros(8), 8),
    ],
)
def test_parts_of_records_say_the_number(inputs: Any, target: Any, size: int) -> None:
    """As those of a mapping do."""
    assert count(inputs, target) == size


@pytest.mark.parametrize(
    ("inputs", "target"),
    [
        (graphs(), TWO),
        (graphs(), graphs()),
        (Record(graphs()), TWO),
        (Record(ONE), TWO),
        (Record(ONE), graphs()),
        ([Record(ONE), Record(ONE)], TWO),
        (Record("text"), None),
    ],
)
def test_object_that_says_no_number_is_asked_about(inputs: Any, target: Any) -> None:
    """Eight rows in each of two records are two samples or eight: samples= says it."""
    with pytest.raises(WorkloadError, match="samples="):
        count(inputs, target)
    assert count(inputs, target, lambda inputs, target: 2) == 2


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (graphs(), r"gave a Graphs: pass split=lambda batch: \(batch, batch\.…\)"),
        (Record(ONE), r"gave a Record with the fields x, name: pass split=lambda batch: \(batch\.…, batch\.…\)"),
        (object(), "gave a object: pass split=…"),
    ],
)
def test_whole_batch_without_split_is_refused_with_the_split_to_write(batch: Any, sentence: str) -> None:
    """Which of its parts is the target cannot be known."""
    with pytest.raises(WorkloadError, match=sentence):
        pair(batch)


# ------------------------------------------------------------------------------------ a training


def model_of_graphs() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def pooled(model: nn.Module, batch: Graphs) -> torch.Tensor:
    """The mean over the nodes of each graph."""
    sums = torch.zeros(batch.num_graphs, 1).index_add(0, batch.batch, model(batch.x))
    return sums / torch.bincount(batch.batch, minlength=batch.num_graphs)[:, None]


def loss(output: torch.Tensor, batch: Graphs) -> torch.Tensor:
    return mse_loss(output, batch.y)


def of_graphs() -> tuple[nn.Module, State]:
    model, optimizer = model_of_graphs()
    work = Supervised(
        *(model, optimizer, loss, [graphs(seed) for seed in range(5)], [graphs(7)]),
        forward=pooled,
        split=lambda batch: (batch, batch),
        samples=lambda inputs, target: inputs.num_graphs,
    )
    return model, start(work, epochs=3)


def test_graphs_train_as_in_a_plain_loop(tmp_path: Path) -> None:
    """Bit for bit; each mean is over graphs; the log replays."""
    model, begin = of_graphs()
    final = run(begin, log=tmp_path / "run.jsonl")

    plain, optimizer = model_of_graphs()
    for _ in range(3):
        total = 0.0
        for batch in (graphs(seed) for seed in range(5)):
            optimizer.zero_grad()
            value = loss(pooled(plain, batch), batch)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += value.item() * batch.num_graphs
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
    assert final.samples == 3 * (2 + 3 + 4 + 2 + 3)
    assert final.metrics["train_loss"] == pytest.approx(total / 14)
    assert replay(tmp_path / "run.jsonl", []).ok


def test_graphs_resume_in_the_middle_of_an_epoch_and_of_a_window(tmp_path: Path) -> None:
    """Bit for bit, from a file, with windows that are weighed by graphs."""
    model, begin = of_graphs()
    run(begin, [accumulate(2)])

    _, begin = of_graphs()
    slices = [accumulate(2), suspend_after(seconds=1e-9), checkpoint(tmp_path, every_steps=1)]
    suspended = run(begin, slices)
    assert suspended.pending == 1
    again, begin = of_graphs()
    assert begin.workload is not None
    run(restore(tmp_path, begin.workload), [accumulate(2)])
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_training_moves_a_batch_once() -> None:
    """The parts of a batch are moved together, where the model is on another device."""
    _, begin = of_graphs()
    work: Any = begin.workload
    work._moves = True  # as on a device that is not the CPU
    run(begin)

    assert {batch.times_moved for batch in work.train} == {3}
    assert {batch.times_moved for batch in work.valid} == {3}
