"""The modules of a training, and their whole state: the state_dict, the buffers outside of it, the modes."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..core.errors import CheckpointError, WorkloadError
from ..data.compiled import load_state_dict, named_buffers, named_modules, state_dict_of, submodule, uncompiled

StateDict = dict[str, Any]


def modules_of(model: nn.Module, loss_fn: object) -> dict[str, nn.Module]:
    """The model, and the modules of the loss, which may have parameters, buffers and modes too.

    A loss that is a module is "loss". Modules are also found in a functools.partial, a bound method, an
    object's attributes, a function's closure, and among the globals that a function names: the first is "loss",
    the others "loss 2", "loss 3", … A part of the model is not one of the loss. Of a compiled module it is the one
    that it was compiled from.
    """
    model = uncompiled(model)
    known = {id(part) for part in model.modules()}
    modules = {"model": model}
    for module in _modules_in(loss_fn, set()):
        if id(module) not in known:
            modules["loss" if len(modules) == 1 else f"loss {len(modules)}"] = module
            known |= {id(part) for part in module.modules()}
    return modules


@attrs.frozen(eq=False)
class ModulesIn:
    """The modules that `modules_of` gives, looked for at each iteration.

    Attributes:
        model, loss_fn: its arguments.
    """

    model: nn.Module
    loss_fn: object

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(modules_of(self.model, self.loss_fn).values())


def _modules_in(value: object, seen: set[int]) -> Iterator[nn.Module]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield uncompiled(value)
        return
    for part in _parts_of(value):
        yield from _modules_in(part, seen)


def _parts_of(value: object) -> Iterable[object]:
    """What a callable calls: what it is bound to, made of, or encloses."""
    match value:
        case functools.partial():
            return (value.func, *value.args, *value.keywords.values())
        case types.MethodType():
            return (value.__self__, value.__func__)
        case types.FunctionType():
            named = (value.__globals__.get(name) for name in value.__code__.co_names)
            cells = (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
            return (*(part for part in named if isinstance(part, nn.Module)), *cells)
        case type() | types.ModuleType():
            return ()
        case list() | tuple():
            return value
        case dict():
            return value.values()
    return _attributes(value) if callable(value) else ()


def _attributes(value: object) -> Iterator[object]:
    yield from getattr(value, "__dict__", {}).values()
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and not name.startswith("__"):
                yield getattr(value, name, None)


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


# ---------------------------------------------------------------------------------------- modes


@attrs.frozen
class Modes:
    """Whether modules are in train or in eval mode, each of them.

    Attributes:
        of_each: the modules with their modes, an outer one before those in it.
    """

    of_each: tuple[tuple[nn.Module, bool], ...]

    @staticmethod
    def of(*roots: nn.Module) -> Modes:
        """The present modes of these and of all modules in them."""
        return Modes(tuple((module, module.training) for root in roots for module in root.modules()))

    def put_back(self) -> None:
        """Set each module to its mode again, through `train`, which a module may have replaced."""
        for module, mode in self.of_each:
            if module.training != mode:
                module.train(mode)
        for module, mode in self.of_each:
            module.training = mode


# ---------------------------------------------------------------------------------------- state


def state_of_module(module: nn.Module) -> StateDict:
    """The state_dict, all buffers, and the mode of each submodule. The tensors are the live ones.

    What a lazy layer has not initialized yet is left out.
    """
    return {
        "values": initialized(state_dict_of(module)),
        "buffers": {name: buffer.detach() for name, buffer in named_buffers(module) if not is_lazy(buffer)},
        "modes": {name: part.training for name, part in named_modules(module)},
    }


def initialized(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without the parameters and buffers that a lazy layer has not initialized yet."""
    return {name: value for name, value in values.items() if not is_lazy(value)}


def copy_of_module(module: nn.Module) -> StateDict:
    """A copy of `state_of_module` that shares no tensor with it, without the modes."""
    return {kind: copy_of(state_of_module(module)[kind]) for kind in ("values", "buffers")}


def copy_of(state: StateDict) -> StateDict:
    """A copy of a state_dict that shares no tensor with it."""
    return {name: value.detach().clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}


def fits_module(module: nn.Module, saved: Mapping[str, Any]) -> bool:
    """Whether the module has the names, shapes, dtypes and layouts that were saved, so that `load_module` succeeds."""
    kinds = (state_dict_of(module), saved["values"]), (dict(named_buffers(module)), saved["buffers"])
    return all(
        ours.keys() == theirs.keys() and all(_alike(value, theirs[name]) for name, value in ours.items())
        for ours, theirs in kinds
    )


def _alike(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor) or is_lazy(one):
        return False
    kinds = [(tensor.shape, tensor.dtype, tensor.layout) for tensor in (one, other)]
    return kinds[0] == kinds[1] and not other.is_meta


def load_module(module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Restore what `state_of_module` gave, exactly.

    Raises:
        RuntimeError: from torch, if names or shapes differ.
        WorkloadError: dtypes differ, which torch would convert in silence, or a buffer has another name or shape.
    """
    values, buffers = saved["values"], saved["buffers"]
    check_dtypes(module, values)
    load_values(module, values)
    with torch.no_grad():
        for name, buffer in named_buffers(module):
            if is_lazy(buffer):
                continue
            if name not in buffers or buffers[name].shape != buffer.shape:
                was = tuple(buffers[name].shape) if name in buffers else "not there"
                raise WorkloadError(f"the buffer {name} has the shape {tuple(buffer.shape)}, and was {was} when saved")
            buffer.copy_(buffers[name])
    for name, part in named_modules(module):
        part.training = saved["modes"].get(name, part.training)


def check_tensors(module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Refuse what is no tensor where the module has one.

    Raises:
        CheckpointError: with the first name.
    """
    for name, ours in state_dict_of(module).items():
        theirs = saved["values"].get(name, ours)
        if isinstance(ours, torch.Tensor) and not isinstance(theirs, torch.Tensor):
            raise CheckpointError(f"its value of {name} is of the type {type(theirs).__name__}, and no tensor")


def check_dtypes(module: nn.Module, values: Mapping[str, Any]) -> None:
    """Refuse values of other dtypes than the module's, which torch would convert in silence.

    Raises:
        WorkloadError: with the first name.
    """
    for name, ours in state_dict_of(module).items():
        theirs = values.get(name)
        if isinstance(theirs, torch.Tensor) and isinstance(ours, torch.Tensor) and ours.dtype != theirs.dtype:
            raise WorkloadError(
                f"{name} is of type {ours.dtype} and was saved as {theirs.dtype}: convert it afterwards"
            )


def load_values(module: nn.Module, values: Mapping[str, Any]) -> None:
    """Load a state_dict. What a lazy layer has not initialized, there or here, is no difference.

    Raises:
        RuntimeError: from torch, if names or shapes differ, or what is saved is not initialized and the module is.
    """
    waiting = {name: value for name, value in state_dict_of(module).items() if is_lazy(value) and name not in values}
    load_state_dict(module, {**values, **waiting})


def put_back_module(module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Restore what `copy_of_module` gave. A buffer that forward made anew meanwhile may have another shape.

    Raises:
        RuntimeError: from torch, if names or the shapes of parameters differ.
    """
    buffers = saved["buffers"]
    if buffers is not None:  # a checkpoint of an earlier version has only the values
        for name in dict.fromkeys((*buffers, *(name for name, _ in named_buffers(module)))):
            set_buffer(module, name, buffers.get(name))
    load_values(module, saved["values"])


def set_buffer(module: nn.Module, name: str, value: torch.Tensor | None) -> None:
    """Give the buffer of this name this value: in place where it fits, since captured steps reference the tensor."""
    path, _, own = name.rpartition(".")
    owner = submodule(module, path)
    present = owner._buffers.get(own)
    if own not in owner._buffers:
        return  # the names are checked where they matter
    if value is None or present is None or is_lazy(present):
        owner._buffers[own] = None if value is None else value.detach().clone()
    elif present.shape != value.shape or present.dtype != value.dtype:
        owner._buffers[own] = value.detach().to(present.device, copy=True)
    else:
        with torch.no_grad():
            present.copy_(value)
