"""Commands that change what a model consists of: pruning, quantisation, densifying; and what follows them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from fsm_train import (
    Callback,
    CheckpointError,
    Command,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    carries_out,
    on,
    restore,
    run,
    start,
)
from fsm_train.callbacks import checkpoint, clip_grad_norm, compile_step, ema, freeze, restore_best
from fsm_train.checkpoints.api import read
from fsm_train.checkpoints.manifest import list_folder
from fsm_train.supervised.structure_changes import Structure
from tests.diabetes_training import batches, net, sgd, weights_of, workload
from tests.models import leave_after, same_weights
from tests.supervised.test_compilation import PretendedGraph, graphs

__all__ = ["graphs"]  # a fixture

DATA = batches(8, 8, 8, 8)


@attrs.frozen
class Prune(Command):
    """Prune this share of the weights of the first layer, the smallest ones."""

    amount: float
    changes_modules = True


@carries_out(Prune)
def prune_first(work: Supervised, command: Prune) -> None:
    first = work.model.get_submodule("0")
    prune.l1_unstructured(first, "weight", command.amount)  # type: ignore[no-untyped-call]


@attrs.frozen
class MakePermanent(Command):
    """End the pruning: one weight again, with zeros in it."""

    changes_modules = True


@carries_out(MakePermanent)
def make_permanent(work: Supervised, command: MakePermanent) -> None:
    prune.remove(work.model.get_submodule("0"), "weight")  # type: ignore[no-untyped-call]


@attrs.frozen
class Widen(Command):
    """Give the hidden layer this many units more, with parameters of their own in the optimizer."""

    units: int
    changes_modules = True


@carries_out(Widen)
def widen(work: Supervised, command: Widen) -> None:
    model = work.model
    first, last = model.get_submodule("0"), model.get_submodule("2")
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    torch.manual_seed(0)
    new = {
        (first, "weight"): torch.cat([first.weight, 0.1 * torch.randn(command.units, first.in_features)]),
        (first, "bias"): torch.cat([first.bias, torch.zeros(command.units)]),
        (last, "weight"): torch.cat([last.weight, torch.zeros(1, command.units)], dim=1),
    }
    for (layer, name), values in new.items():
        before, after = getattr(layer, name), nn.Parameter(values.detach())
        setattr(layer, name, after)
        for group in work.optimizer.param_groups:
            group["params"] = [after if parameter is before else parameter for parameter in group["params"]]


@attrs.frozen
class Quantise(Command):
    """Prepare for quantisation-aware training."""

    changes_modules = True


@carries_out(Quantise)
def quantise(work: Supervised, command: Quantise) -> None:
    import torch.ao.quantization as ao

    work.model.qconfig = ao.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment, no-untyped-call]
    ao.prepare_qat(work.model.train(), inplace=True)  # type: ignore[no-untyped-call]


def plain_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1))


def at_epochs(commands: dict[int, tuple[Command, ...]]) -> Callback[None]:
    """Give these commands when these epochs begin."""

    @on(Phase.EPOCH_BEGIN)
    def change(state: State) -> Transition | None:
        return Transition(commands=commands[state.epoch]) if state.epoch in commands else None

    return change


CHANGES: dict[str, dict[int, tuple[Command, ...]]] = {
    "pruning": {1: (Prune(0.3),), 2: (Prune(0.3),)},
    "permanent": {1: (Prune(0.3),), 2: (MakePermanent(),)},
    "widening": {1: (Widen(3),), 2: (Widen(2),)},
    "quantisation": {1: (Quantise(),)},
}


def loop(commands: dict[int, tuple[Command, ...]], epochs: int = 4) -> nn.Module:
    """The same training as a plain loop: what is changed, is changed between its epochs."""
    work = workload(DATA, model=plain_net())  # for the functions above; it trains nothing
    model, optimizer, loss_fn = work.model, work.optimizer, nn.MSELoss()
    handlers: dict[type, Any] = {Prune: prune_first, MakePermanent: make_permanent, Widen: widen, Quantise: quantise}
    for epoch in range(epochs):
        for command in commands.get(epoch, ()):
            handlers[type(command)](work, command)
            there = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for parameter in [p for p in optimizer.state if id(p) not in there]:
                del optimizer.state[parameter]
        for inputs, target in DATA:
            optimizer.zero_grad()
            loss_fn(model(inputs), target).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*reduce_range:UserWarning")


@pytest.mark.parametrize("commands", CHANGES.values(), ids=CHANGES)
def test_it_trains_as_the_plain_loop(commands: dict[int, tuple[Command, ...]]) -> None:
    """Bit for bit, also with parameters that were exchanged in a group: they are stepped, clipped and zeroed."""
    work = workload(DATA, model=plain_net())

    run(start(work, epochs=4), [at_epochs(commands), clip_grad_norm(1.0)])

    ours, theirs = work.model.state_dict(), loop(commands).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("iteration", [2, 6, 9, 14])
@pytest.mark.parametrize("commands", CHANGES.values(), ids=CHANGES)
def test_restored_training_has_the_structure_and_ends_the_same(
    commands: dict[int, tuple[Command, ...]], iteration: int, tmp_path: Path
) -> None:
    """From the middle of each epoch: what was carried out by then is carried out again, before weights are loaded."""
    callbacks = [at_epochs(commands), clip_grad_norm(1.0), checkpoint(tmp_path)]
    run(start(workload(DATA, model=plain_net()), epochs=4), [*callbacks, leave_after(iteration)])
    work = workload(DATA, model=plain_net())

    run(restore(tmp_path, work), callbacks)

    ours, theirs = work.model.state_dict(), loop(commands).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    _, parts = read(list_folder(tmp_path).checkpoints[0])
    assert [entry["$"] for entry in parts["structure"]] == [
        type(c).__name__ for each in commands.values() for c in each
    ]


def test_averages_and_kept_weights_follow_by_name(tmp_path: Path) -> None:
    """At the command itself, also when restored."""
    callbacks = [at_epochs(CHANGES["pruning"]), ema(0.9), restore_best("valid_loss"), checkpoint(tmp_path)]
    settings: dict[str, Any] = {"valid": DATA[:2]}
    undisturbed = workload(DATA, model=plain_net(), **settings)
    run(start(undisturbed, epochs=4), callbacks[:3])
    run(start(workload(DATA, model=plain_net(), **settings), epochs=4), [*callbacks, leave_after(6)])
    work = workload(DATA, model=plain_net(), **settings)

    run(restore(tmp_path, work), callbacks)

    assert "0.weight_orig" in work.model.state_dict()
    assert same_weights(work.model, undisturbed.model)


@pytest.mark.parametrize("beside", [ema(0.9), restore_best("valid_loss")], ids=["average", "kept"])
def test_what_cannot_follow_is_refused_at_the_command(beside: Callback[Any]) -> None:
    """And model and optimizer are as they were: a failed training can be saved and looked at."""
    work = workload(DATA, model=plain_net(), valid=DATA[:2])

    with pytest.raises(WorkloadError, match=r"does not fit|do not fit") as caught:
        run(start(work, epochs=3), [at_epochs({1: (Widen(3),)}), beside])

    assert "Raised at epoch_begin of epoch 1" in "".join(caught.value.__notes__)
    assert work.model.get_submodule("0").weight.shape == (8, 10)  # type: ignore[union-attr]
    assert [*work.optimizer.param_groups[0]["params"]] == [*work.model.parameters()]
    assert len(work.optimizer.state) == 4
    assert work.structure_changes == []
    run(start(work, epochs=1))


def test_command_that_fails_halfway_changes_nothing() -> None:
    """Parts, hooks, values and what the optimizer has are put back."""

    @attrs.frozen
    class Fail(Command):
        changes_modules = True

    @carries_out(Fail)
    def fail(work: Supervised, command: Fail) -> None:
        prune_first(work, Prune(0.5))
        make_permanent(work, MakePermanent())
        quantise(work, Quantise())
        nn.utils.parametrizations.weight_norm(work.model.get_submodule("2"))
        work.optimizer.state.clear()
        raise ZeroDivisionError("of all things")

    work = workload(DATA, model=plain_net())
    run(start(work, epochs=1))
    before, momentum = copy.deepcopy(work.model.state_dict()), dict(work.optimizer.state)

    with pytest.raises(ZeroDivisionError):
        run(start(work, epochs=1), [at_epochs({0: (Fail(),)})])

    assert [*map(type, work.model)] == [nn.Linear, nn.Tanh, nn.Linear]  # type: ignore[call-overload]
    assert work.model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in work.model.state_dict().items())
    assert work.optimizer.state == momentum
    run(start(work, epochs=1))


def test_new_parameters_of_a_frozen_pattern_are_frozen() -> None:
    """And those that were trained still are."""
    work = workload(DATA, model=plain_net())
    first = work.model.get_submodule("0")
    seen: list[torch.Tensor] = []

    @on(Phase.EPOCH_END)
    def look(state: State) -> None:
        seen.append(first.weight.detach().clone())  # type: ignore[operator]

    run(start(work, epochs=3), [freeze("0.*"), at_epochs({1: (Widen(3),)}), look])

    assert torch.equal(seen[1], seen[2])
    assert seen[0].shape != seen[1].shape


def test_change_within_a_validation_that_has_an_average_is_refused() -> None:
    """The average would be pruned, and the weights not."""

    @on(Phase.VALID_BATCH_BEGIN)
    def change(state: State) -> Transition:
        return Transition(commands=(Prune(0.3),))

    with pytest.raises(WorkloadError, match="Prune changes modules while the model has the average 'ema'"):
        run(start(workload(DATA, valid=DATA[:1], model=plain_net()), epochs=1), [ema(0.9), change])


def test_command_that_a_checkpoint_cannot_list_is_refused_at_once() -> None:
    """It holds more than plain values."""

    @attrs.frozen
    class ByFunction(Command):
        make: Callable[[nn.Module], object]
        changes_modules = True

    @carries_out(ByFunction)
    def by_function(work: Supervised, command: ByFunction) -> None:
        command.make(work.model)

    with pytest.raises(WorkloadError, match="a checkpoint lists it to be carried out again: let its fields be"):
        run(start(workload(DATA, model=plain_net()), epochs=1), [at_epochs({0: (ByFunction(nn.Module.eval),)})])


def test_workload_of_another_structure_is_refused(tmp_path: Path) -> None:
    """Whose own changes are others; one with the first of them gets the rest."""
    commands = CHANGES["pruning"]
    run(start(workload(DATA, model=plain_net()), epochs=4), [at_epochs(commands), checkpoint(tmp_path)])
    other, same = workload(DATA, model=plain_net()), workload(DATA, model=plain_net())
    run(start(other, epochs=1), [at_epochs({0: (Widen(1),)})])
    run(start(same, epochs=1), [at_epochs({0: (Prune(0.3),)})])
    before = weights_of(other.model)

    with pytest.raises(
        WorkloadError, match=r"was changed by \[Widen\(units=1\)\], and that of the checkpoint by \[Prune"
    ):
        restore(tmp_path, other)
    restore(tmp_path, same)

    assert torch.equal(weights_of(other.model), before)
    assert same.structure_changes == [Prune(0.3), Prune(0.3)]


def test_model_that_does_not_fit_is_as_it_was(tmp_path: Path) -> None:
    """The commands are undone where the weights cannot be loaded after them."""
    run(start(workload(DATA, model=plain_net()), epochs=4), [at_epochs(CHANGES["pruning"]), checkpoint(tmp_path)])
    other = workload(DATA, model=nn.Sequential(nn.Linear(10, 9), nn.Tanh(), nn.Linear(9, 1)))
    before = copy.deepcopy(other.model.state_dict())

    with pytest.raises((RuntimeError, WorkloadError)):
        restore(tmp_path, other)

    assert other.model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in other.model.state_dict().items())
    assert other.structure_changes == []


@pytest.mark.parametrize(
    ("listed", "sentence"),
    [
        ([{"$": "NeverSeen"}], "is not known here: .*NeverSeen"),
        ([{"$": "ClipGradNorm", "max_norm": 1.0}], "is not known here: .*ClipGradNorm"),
        ([3], "it lists 3 as a command"),
    ],
)
def test_command_that_is_not_known_is_refused(listed: list[Any], sentence: str, tmp_path: Path) -> None:
    """Only commands that say that they change modules are carried out by restoring."""
    work = workload(DATA, model=plain_net())
    run(start(work, epochs=1), [checkpoint(tmp_path)])
    state = restore(tmp_path, work)
    _, parts = read(list_folder(tmp_path).checkpoints[0])

    with pytest.raises(CheckpointError, match=sentence):
        work.restore_parts({**parts, "structure": listed}, state)


def test_trainings_that_leave_no_trace_put_the_structure_back() -> None:
    """As ablate does between its variants."""
    work = workload(DATA, model=plain_net())
    before = copy.deepcopy(work.model.state_dict())
    snapshot = work.snapshot()

    for _ in range(2):
        run(start(work, epochs=3), [at_epochs({1: (Prune(0.3),), 2: (MakePermanent(), Widen(2))})])
        work.put_back(snapshot)

        assert work.structure_changes == []
        assert work.model.state_dict().keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in work.model.state_dict().items())
    run(start(work, epochs=1))
    undisturbed = workload(DATA, model=plain_net())
    run(start(undisturbed, epochs=1))
    assert same_weights(work.model, undisturbed.model)


def test_compiled_steps_are_compiled_anew() -> None:
    """The step of the pruned model is the pruned one."""
    torch.compiler.reset()
    settings = [at_epochs(CHANGES["pruning"])]
    ours, theirs = workload(DATA, model=plain_net()), workload(DATA, model=plain_net())

    run(start(ours, epochs=4), [compile_step(backend="eager"), *settings])

    run(start(theirs, epochs=4), settings)
    assert weights_of(ours.model).allclose(weights_of(theirs.model), rtol=0, atol=1e-5)


def test_captured_steps_are_captured_anew(graphs: list[PretendedGraph]) -> None:
    """Also where the parameters are the same objects, and only hooks and masks are new."""
    ours, theirs = workload(DATA * 2, model=net()), workload(DATA * 2, model=net())
    settings = [at_epochs({1: (Prune(0.3),)})]

    run(start(ours, epochs=3), [compile_step("graph"), *settings])

    run(start(theirs, epochs=3), settings)
    assert graphs[0].did.count("capture") == 2
    assert same_weights(ours.model, theirs.model)


def test_structure_without_values_leaves_values_alone() -> None:
    """Others restore these."""
    work = workload(DATA, model=plain_net(), optimizer=sgd)
    structure = Structure.of(work)
    weights = weights_of(work.model) + 1
    for parameter in work.model.parameters():
        parameter.data.add_(1)

    structure.put_back(work)

    assert torch.equal(weights_of(work.model), weights)
