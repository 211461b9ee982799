"""What `Supervised` is given, looked at before anything is trained.

Rule of this file: nothing is called and nothing is iterated. An error says which argument it is, what was found, and
what to write instead.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..core.arguments import kind_of
from ..core.checks import NO_TEXT, is_text
from ..core.errors import WorkloadError
from ..data.batches import check_loss
from ..wording import pluralize
from .joint_optimizer import check_joint
from .shares import is_shared


def check_arguments(model: object, optimizer: object, loss_fn: object) -> None:
    """Refuse a model, an optimizer or a loss of another kind than is needed.

    Raises:
        WorkloadError: with what to write instead.
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise WorkloadError(f"model is the class {model.__name__}: give an instance, {model.__name__}(…)")
    if not isinstance(model, nn.Module):
        raise WorkloadError(f"model is {kind_of(model)}, not a torch.nn.Module")
    _check_optimizer(optimizer)
    check_loss_fn(loss_fn)


def check_loss_fn(loss_fn: object) -> None:
    """Refuse a loss of another kind than is needed.

    Raises:
        WorkloadError: with what to write instead.
    """
    if isinstance(loss_fn, type):
        raise WorkloadError(f"loss_fn is the class {loss_fn.__name__}: give an instance, {loss_fn.__name__}()")
    if not callable(loss_fn):
        raise WorkloadError(
            f"loss_fn is {kind_of(loss_fn)}: give a function of (output, target), such as torch.nn.CrossEntropyLoss()"
        )
    check_call("loss_fn", loss_fn, "output", "target")


_MEMBERS = ("step", "zero_grad", "param_groups", "state_dict")
"""What makes an optimizer, whatever its class."""


def _check_optimizer(optimizer: Any, called: str = "optimizer") -> None:
    kind = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.lr_scheduler.LRScheduler):
        raise WorkloadError(
            f"{called} is {kind_of(optimizer)}, a scheduler: give the optimizer, and to run the callback "
            f"torch_scheduler(lambda optimizer: {kind}(optimizer, …))"
        )
    if isinstance(optimizer, type):
        raise WorkloadError(
            f"{called} is the class {optimizer.__name__}: give an instance, "
            f"{optimizer.__name__}(model.parameters(), lr=…)"
        )
    if isinstance(optimizer, str):
        raise WorkloadError(f"{called} is {optimizer!r}: give an optimizer, torch.optim.SGD(model.parameters(), lr=…)")
    if isinstance(optimizer, Mapping):
        for name, each in optimizer.items():
            _check_optimizer(each, f"optimizer[{name!r}]")
        check_joint(optimizer)
        return
    if isinstance(optimizer, (list, tuple)):
        raise WorkloadError(
            f"{called} is {kind_of(optimizer)}: give one optimizer, or several by name, {{'muon': …, 'adamw': …}}. For "
            "several rates give it parameter groups, torch.optim.SGD([{'params': …, 'lr': …}, …])"
        )
    if lacking := [name for name in _MEMBERS if not hasattr(optimizer, name)]:
        raise WorkloadError(
            f"{called} is {kind_of(optimizer)}, which has no {' and no '.join(lacking)}: did the arguments change "
            "places? The order is Supervised(model, optimizer, loss_fn, train, valid)"
        )


def check_data(name: str, data: object, *, tensors: bool) -> None:
    """Refuse data that gives no batches; `tensors` says whether a batch may be a single tensor.

    Raises:
        WorkloadError: with what to write instead.
    """
    pair = isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, torch.Tensor) for part in data)
    if not tensors and (pair or isinstance(data, torch.Tensor) or hasattr(data, "__array__")):
        raise WorkloadError(
            f"{name} is {kind_of(data)}{' of two tensors' * pair}, but it is to give batches (inputs, target): write "
            f"{name}=DataLoader(TensorDataset(inputs, target), batch_size=32, shuffle={name == 'train'})"
        )
    if isinstance(data, (str, bytes, nn.Module, torch.optim.Optimizer, type)) or inspect.isfunction(data):
        raise WorkloadError(
            f"{name} is {kind_of(data)}, but batches are to come from it: give a DataLoader or a list of batches. "
            "The order is Supervised(model, optimizer, loss_fn, train, valid)"
        )


def check_named(argument: str, given: Any, example: str, *parameters: str) -> None:
    """Refuse what is no mapping from names to things that can be called with these parameters.

    Raises:
        TypeError: with what to write instead.
        ValueError: a name is no valid text.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"{argument} is {kind_of(given)}: give a mapping from names, {argument}={{{example}}}")
    for name, thing in given.items():
        if not isinstance(name, str):
            raise TypeError(f"{argument} has the key {name!r}: names are strings, {argument}={{{example}}}")
        if not is_text(name):
            raise ValueError(f"{argument} has the name {name!r}: {NO_TEXT}")
        if isinstance(thing, type):
            raise TypeError(
                f"{argument}={{{name!r}: …}} is the class {thing.__name__}: give an instance, {thing.__name__}(…)"
            )
        check_call(f"{argument}={{{name!r}: …}}", thing, *parameters)


def check_call(argument: str, function: object, *parameters: str) -> None:
    """Refuse a function that cannot be called with these parameters by position, where its signature is known.

    Raises:
        WorkloadError: with what it takes.
    """
    plain = function.func if isinstance(function, functools.partial) else function
    if not inspect.isroutine(plain):
        return
    try:
        signature = inspect.signature(function)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return  # of an extension module, say
    try:
        signature.bind(*parameters)
    except TypeError as error:
        takes = [*signature.parameters]
        shown = ", ".join([*takes[:4], "…"] if len(takes) > 4 else takes)
        raise WorkloadError(
            f"{argument} is called with ({', '.join(parameters)}), but {kind_of(plain)} takes ({shown}): {error}. "
            f"Wrap it in a lambda, lambda {', '.join(parameters)}: …"
        ) from None


def check_function(argument: str, function: object, *parameters: str) -> None:
    """Refuse what is no function, or one that cannot be called with these parameters by position.

    Raises:
        WorkloadError: with what it is, or what it takes.
    """
    if not callable(function):
        raise WorkloadError(f"{argument} is {kind_of(function)}: give a function of ({', '.join(parameters)})")
    check_call(argument, function, *parameters)


def takes_target(forward: Callable[..., Any]) -> bool:
    """Whether a `forward` is called with (model, inputs, target): it needs a third argument, or calls one `target`.

    >>> takes_target(lambda model, inputs, target: None), takes_target(lambda model, inputs, scale=1.0: None)
    (True, False)
    """
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):
        return False  # of an extension module, say
    positional = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    third = positional[2] if len(positional) > 2 else None
    return third is not None and (third.default is third.empty or third.name == "target")


def device_of(device: torch.device | str | int) -> torch.device:
    """The device, if torch knows it and it is there.

    Raises:
        WorkloadError: with the devices that there are.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        cause = "write device='cuda'" if str(device).startswith("gpu") else str(error).splitlines()[0].rstrip(".:")
        raise WorkloadError(f"device={device!r} is no device that torch knows here: {cause}") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        there_are = pluralize(torch.cuda.device_count(), "CUDA device")
        raise WorkloadError(
            f"device={device!r}, but torch sees {there_are} here: leave device= out to train where the model is, or "
            "write device='cpu'"
        )
    return found


def explain_loss(loss: object, error: Exception) -> None:
    """Raise the sentence for a loss that has no backward, from the error that it led to; otherwise do nothing.

    Raises:
        WorkloadError: the loss is no scalar tensor, or requires no gradient.
    """
    try:
        check_loss(loss)
    except WorkloadError as refused:
        raise refused from error


def check_depends(loss: torch.Tensor, parameters: Iterable[torch.Tensor]) -> None:
    """Refuse a loss whose graph reaches none of these parameters: no step would change anything.

    Nodes that are written in Python, such as those of checkpointing, hide what they depend on: a graph with one of them
    is accepted. So is one of a sharded model, which has the gathered parameters in it.

    Raises:
        WorkloadError: with where to look.
    """
    parameters = [*parameters]
    if any(map(is_shared, parameters)):
        return
    trained = {id(parameter) for parameter in parameters}
    seen: set[Any] = set()
    ahead: list[Any] = [loss.grad_fn]
    if loss.grad_fn is None:
        ahead = [] if id(loss) not in trained else [None]
    while ahead:
        node = ahead.pop()
        if node is None or isinstance(node, torch.autograd.function.BackwardCFunction):
            return
        if id(getattr(node, "variable", None)) in trained:
            return
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                ahead.append(following)
    raise WorkloadError(
        "the loss depends on none of the optimizer's parameters, so that no step changes anything: is the model's "
        "output used in the loss, and is this the model that the optimizer was made for?"
    )
