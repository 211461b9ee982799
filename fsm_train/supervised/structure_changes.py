"""Commands that change the structure of a model: pruning, quantisation, densifying.

Rules of this file: what was copied by name before such a command follows it at once, or the command is refused at once.
What is refused leaves modules and optimizer as they were. A checkpoint lists the commands, and restoring one carries
them out again, in their order, before it loads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..core.errors import CheckpointError, WorkloadError
from ..core.state import State
from ..core.transition import Command
from ..encoding import CannotDecodeError, decode, encode
from ..worlds.registry import handler_of, registered
from .joint_optimizer import each_of
from .param_groups import Members, check_parameters
from .training import Training

_OF_TORCH = frozenset(vars(nn.Module()))
"""The attributes of a module in which torch keeps what it consists of."""


@attrs.frozen(eq=False)
class Structure:
    """What modules and an optimizer consist of, at one moment: which tensors, parts and hooks, and where.

    Attributes:
        modules: each with its class and attributes.
        members: the parameters in the groups of the optimizer.
        states: what the optimizer has for each parameter, and a copy of that.
        values: parameters and buffers with copies of their values; none where others restore these.
        changes: the commands that had changed the structure by then.
    """

    modules: tuple[tuple[nn.Module, type[nn.Module], dict[str, Any]], ...]
    members: Members
    states: tuple[tuple[dict[Any, Any], dict[Any, Any]], ...]
    values: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    changes: tuple[Command, ...]

    @staticmethod
    def of(work: Training, *, with_values: bool = False) -> Structure:
        parts = [part for module in work.modules.values() for part in module.modules()]
        return Structure(
            tuple((part, type(part), _attributes(part)) for part in parts),
            Members.of(work.optimizer),
            tuple((state, dict(state)) for state in _states(work)),
            tuple((tensor, tensor.detach().clone()) for tensor in _tensors_of(parts)) if with_values else (),
            tuple(work.structure_changes),
        )

    def put_back(self, work: Training) -> None:
        """Let them consist of that again; more than once, if asked to."""
        for part, kind, attributes in self.modules:
            part.__class__ = kind
            part.__dict__.clear()
            part.__dict__.update({name: _copied(name, value) for name, value in attributes.items()})
        for tensor, value in self.values:
            tensor.data = value.clone()
        self.members.put_back(work.optimizer)
        for state, before in self.states:
            state.clear()
            state.update(before)
        work.structure_changes[:] = self.changes
        read_anew(work)


def _states(work: Training) -> list[dict[Any, Any]]:
    """What each optimizer has for its parameters."""
    states = (getattr(each, "state", None) for each in each_of(work.optimizer).values())
    return [state for state in states if isinstance(state, dict)]


def _tensors_of(parts: Iterable[nn.Module]) -> Iterator[torch.Tensor]:
    for part in parts:
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None and not is_lazy(tensor):
                yield tensor


def _attributes(part: nn.Module) -> dict[str, Any]:
    return {name: _copied(name, value) for name, value in vars(part).items()}


def _copied(name: str, value: Any) -> Any:
    """The value of an attribute; of what torch keeps in a container, a copy of that."""
    return value.copy() if name in _OF_TORCH and hasattr(value, "copy") else value


def carry_out_change(work: Training, command: Command) -> None:
    """Carry out a command that changes modules, and let all that the training knows of them follow.

    Raises:
        WorkloadError: averages or kept weights cannot follow, the model has an average at this phase, or the command
            could not be read from a checkpoint. Modules and optimizer are as they were.
    """
    if (weights := work.carried_over.weights_in_use()) != "model":
        raise WorkloadError(
            f"{type(command).__name__} changes modules while the model has the average {weights!r}, as it has in a "
            "validation: give it at EPOCH_BEGIN, BATCH_END or EPOCH_END"
        )
    _check_readable(command)
    before = Structure.of(work, with_values=True)
    try:
        handler_of(type(command))(work, command)
        read_anew(work)
        for average in work.carried_over.averages.values():
            average.follow()
        work.carried_over.check_kept(work.modules)
    except BaseException:
        before.put_back(work)
        raise
    work.structure_changes.append(command)


def read_anew(work: Training) -> None:
    """Read parameters, gradients and buffers again, which may be other objects now.

    What the optimizer has for a parameter that is gone goes too.

    Raises:
        WorkloadError: the optimizer has parameters that are not the model's.
    """
    check_parameters(work.model, work.optimizer, work.loss_fn)
    there = {id(parameter) for group in work.optimizer.param_groups for parameter in group["params"]}
    for state in _states(work):
        for parameter in [p for p in state if isinstance(p, torch.Tensor) and id(p) not in there]:
            del state[parameter]
    work._members = Members()
    work.read_parameters()
    work.gradients.changed()
    work._buffers = work.new_buffers()
    work.frozen_parameters.take_in()
    work.call_through(work.wrapper)
    if work.whole_step is not None:
        work.whole_step = work.whole_step.renewed()


# ------------------------------------------------------------------------------- in a checkpoint


def plain_changes(work: Training) -> list[Any]:
    """The commands that have changed the structure, in order, as plain values."""
    return [encode(command) for command in work.structure_changes]


def _check_readable(command: Command) -> None:
    kind = type(command)
    try:
        readable = decode(encode(command), {kind.__name__: kind}) == command
    except CannotDecodeError:
        readable = False
    if not readable:
        raise WorkloadError(
            f"{command!r} changes modules, and a checkpoint lists it to be carried out again: let its fields be "
            "numbers, texts and tuples of them"
        )


@contextlib.contextmanager
def changes_carried_out(work: Training, saved: Sequence[Any], state: State) -> Iterator[None]:
    """Carry out those of the saved commands that this workload lacks; if what is done then fails, undo them.

    Args:
        work: of the structure that the saved training began with, or had later.
        saved: what `plain_changes` gave.
        state: the one in which they are carried out.

    Raises:
        CheckpointError: they are no commands that change modules.
        WorkloadError: the structure of this workload was changed in another way.
    """
    commands = [_command_of(each) for each in saved]
    ours = work.structure_changes
    if ours != commands[: len(ours)]:
        raise WorkloadError(
            f"the structure of this model was changed by {ours}, and that of the checkpoint by {commands}: make the "
            "workload anew, with the model as it was when that training began"
        )
    if ours == commands:
        yield
        return
    before, state_before = Structure.of(work, with_values=True), work.state
    try:
        work.state = state
        for command in commands[len(ours) :]:
            handler_of(type(command))(work, command)
            read_anew(work)
        yield
    except BaseException:
        before.put_back(work)
        raise
    finally:
        work.state = state_before
    work.structure_changes[:] = commands


def _command_of(saved: Any) -> Command:
    kinds = {kind.__name__: kind for kind in registered() if kind.changes_modules}
    try:
        command = decode(saved, kinds)
    except CannotDecodeError as error:
        raise CheckpointError(
            f"it lists a command that changed the structure of the model, and that is not known here: {error}. Import "
            "the module that registers it with @carries_out before restoring"
        ) from error
    if not isinstance(command, Command):
        raise CheckpointError(f"it lists {saved!r:.60} as a command that changed the structure of the model")
    return command
