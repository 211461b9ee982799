"""Models of torch.compile: what is saved of them is what is saved of plain ones, and each loads the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Callback, Flag, Phase, State, Supervised, Transition, load_weights, on, restore, run, start
from fsm_train.callbacks import checkpoint, ema, freeze, parallel, restore_best
from fsm_train.checkpoints.api import read
from fsm_train.checkpoints.manifest import list_folder
from fsm_train.data import compiled
from fsm_train.supervised.weights_file import write_weights
from tests.diabetes_training import batches, net, workload
from tests.models import same_weights

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile, about torch itself

DATA = batches(8, 8, 8, 8)


class Encoded(nn.Module):
    """A model with a part that may be compiled, with buffers in it, and a part that draws."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder: nn.Module = net()
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(1, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.encoder(inputs)))


def plain(backend: str = "eager") -> nn.Module:
    torch.manual_seed(0)
    return Encoded()


def compiled_whole(backend: str = "eager") -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(plain(), backend=backend)  # type: ignore[return-value]


def compiled_within(backend: str = "eager") -> nn.Module:
    torch._dynamo.reset()
    model = plain()
    model.encoder = torch.compile(model.encoder, backend=backend)  # type: ignore[assignment]
    return model


def compiled_twice(backend: str = "eager") -> nn.Module:
    return torch.compile(compiled_within(backend), backend=backend)  # type: ignore[return-value]


KINDS = [plain, compiled_whole, compiled_within, compiled_twice]


def callbacks(folder: Path) -> list[Callback[Any]]:
    return [
        ema(0.9),
        restore_best("valid_loss"),
        freeze("encoder.0.*", until_epoch=1),
        checkpoint(folder, monitor="valid_loss", last=5),
    ]


@on(Phase.BATCH_END)
def leave(state: State) -> Transition | None:
    """In the middle of the second epoch."""
    return Transition(flags=Flag.SUSPEND) if state.iteration == 6 else None


def work_of(make: Callable[[], nn.Module]) -> Supervised:
    return workload(DATA, model=make(), valid=DATA[:2])


def names_in(value: Any) -> Iterator[str]:
    """Each text in parts, whether key or value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from names_in(key)
            yield from names_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from names_in(part)


def undisturbed(folder: Path) -> Supervised:
    work = work_of(plain)
    run(start(work, epochs=3, seed=0), callbacks(folder))
    return work


@pytest.mark.parametrize(("first", "later"), [*zip(KINDS, KINDS[1:] + KINDS[:1], strict=True)])
def test_each_kind_resumes_where_another_one_stopped(
    first: Callable[[], nn.Module], later: Callable[[], nn.Module], tmp_path: Path
) -> None:
    """From the middle of an epoch, bit for bit as a plain training that was not disturbed."""
    run(start(work_of(first), epochs=3, seed=0), [*callbacks(tmp_path / "one"), leave])
    work = work_of(later)

    run(restore(tmp_path / "one", work), callbacks(tmp_path / "one"))

    assert same_weights(work.model, undisturbed(tmp_path / "other").model)


@pytest.mark.parametrize("make", KINDS)
def test_names_in_a_checkpoint_are_those_of_the_plain_model(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """In all parts: weights, buffers, modes, averages, copies of weights, groups, generators."""
    kinds = {"made": make, "plain": plain}
    saved = {}
    for name, kind in kinds.items():
        run(start(work_of(kind), epochs=3, seed=0), [*callbacks(tmp_path / name), leave])
        _, saved[name] = read(list_folder(tmp_path / name).checkpoints[0])

    assert not [name for name in names_in(saved["made"]) if "_orig_mod" in name]
    assert saved["made"]["averages"]
    assert saved["made"]["weights"]
    assert sorted(names_in(saved["made"]["modules"])) == sorted(names_in(saved["plain"]["modules"]))
    assert saved["made"]["optimizer_of"] == saved["plain"]["optimizer_of"]


@pytest.mark.parametrize("make", KINDS)
def test_checkpoint_of_an_earlier_version_is_restored(
    make: Callable[[], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the names that torch gives to what is compiled."""
    with monkeypatch.context() as earlier:
        earlier.setattr(compiled, "_INSIDE", "not there")
        run(start(work_of(compiled_within), epochs=3, seed=0), [ema(0.9), checkpoint(tmp_path / "old"), leave])
    _, parts = read(list_folder(tmp_path / "old").checkpoints[0])
    assert "model.encoder._orig_mod.0.weight" in parts["optimizer_of"][1][0]
    work, other = work_of(make), work_of(plain)

    run(restore(tmp_path / "old", work), [ema(0.9)])

    run(start(other, epochs=3, seed=0), [ema(0.9)])
    assert same_weights(work.model, other.model)


@pytest.mark.parametrize("make", KINDS)
def test_weights_load_into_each_kind_and_into_a_file(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Those that the score was measured with, here an average."""
    run(start(work_of(compiled_twice), epochs=2, seed=0), callbacks(tmp_path / "it"))
    model, reference = make(), plain()

    load_weights(tmp_path / "it", model)
    write_weights(tmp_path / "it", tmp_path / "weights.pt")

    reference.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert same_weights(compiled.uncompiled(model), reference)
    assert not same_weights(reference, plain())


def test_model_of_a_workload_is_the_one_that_was_compiled() -> None:
    """It is called through the compiled one, also after a parallel wrapper; its state_dict has plain names."""
    model = compiled_whole()
    work = work_of(lambda: model)

    assert work.model is compiled.uncompiled(model)
    assert work.wrapped_model is model
    run(start(work, epochs=1), [parallel()])
    assert work.wrapped_model is model


def test_compiled_code_is_what_runs() -> None:
    """In training and in validation: the backend is asked to compile both."""
    modes: list[bool] = []
    model = plain()

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        modes.append(model.training)
        return graph.forward

    torch._dynamo.reset()
    run(start(work_of(lambda: torch.compile(model, backend=backend)), epochs=1))  # type: ignore[arg-type, return-value]

    assert set(modes) == {True, False}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch.compile, about its own tensors
def test_compiled_loss_is_a_part_under_its_plain_names(tmp_path: Path) -> None:
    """A loss with weights of its own is saved as one that is not compiled, and restored by it."""

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (self.scale * (output - target) ** 2).mean() + (1 - self.scale).square().sum()

    def with_loss(loss: nn.Module) -> Supervised:
        model = net()
        optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.01)
        return Supervised(model, optimizer, loss, DATA)

    torch._dynamo.reset()
    run(start(with_loss(torch.compile(Weighted(), backend="eager")), epochs=1), [checkpoint(tmp_path)])  # type: ignore[arg-type]
    ours, theirs = with_loss(Weighted()), with_loss(Weighted())

    restore(tmp_path, ours)

    run(start(theirs, epochs=1))
    assert [*ours.modules["loss"].state_dict()] == ["scale"]
    assert torch.equal(ours.modules["loss"].scale, theirs.modules["loss"].scale)  # type: ignore[arg-type]
    assert same_weights(ours.model, theirs.model)


def test_metric_that_holds_the_compiled_model_holds_the_model() -> None:
    """It is not copied with the metric."""
    model = compiled_whole()

    class Size:
        def __init__(self) -> None:
            self.model = model

        def reset(self) -> None: ...

        def update(self, output: torch.Tensor, target: torch.Tensor) -> None: ...

        def compute(self) -> float:
            return self.model(DATA[0][0]).sum().item()

    work = workload(DATA, model=model, metrics={"size": Size()})

    final = run(start(work, epochs=1))

    assert final.metrics["train_size"] == model(DATA[0][0]).sum().item()


def test_generators_in_a_compiled_model_are_found_under_plain_paths() -> None:
    """And what torch.compile itself holds is not looked through."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(10, 1)
            self.rng = torch.Generator()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.inner(inputs)

    outer = nn.Sequential(torch.compile(Noisy(), backend="eager"))  # type: ignore[arg-type]
    work = workload(DATA, model=outer)

    assert [layer.path for layer in work.own_generators() if layer.path.startswith("model")] == ["model.0.rng"]


def test_copies_of_a_compiled_model_share_nothing() -> None:
    """A training that is undone, as find_lr does, leaves the model as it was."""
    model = compiled_within()
    before = copy.deepcopy(compiled.state_dict_of(model))
    work = workload(DATA, model=model)
    snapshot = work.snapshot()

    run(start(work, epochs=1))
    assert not all(torch.equal(value, before[name]) for name, value in compiled.state_dict_of(model).items())
    work.put_back(snapshot)

    assert all(torch.equal(value, before[name]) for name, value in compiled.state_dict_of(model).items())


@pytest.mark.long(alone=True)
def test_inductor_trains_and_its_checkpoint_is_a_plain_one(tmp_path: Path) -> None:
    """What it computes differs by rounding; what it saves is loaded to the last bit."""
    work = workload(DATA, model=compiled_whole("inductor"), valid=DATA[:2])

    run(start(work, epochs=1, seed=0), [checkpoint(tmp_path)])
    model = plain()
    load_weights(tmp_path, model, which="last")

    assert same_weights(model, work.model)
