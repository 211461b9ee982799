"""Averages of the weights over the training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from ..core.errors import WorkloadError
from ..data.compiled import named_buffers, named_parameters
from .modules import Modes, StateDict, copy_of, copy_of_module, put_back_module, set_buffer
from .shares import equal_everywhere, local
from .structure import follow

_HALF = (torch.float16, torch.bfloat16)


class Average:
    """An average of the weights of the model and the loss. While it is in use, they have the average.

    The numbers are those of torch.optim.swa_utils.AveragedModel. Parameters in half precision are averaged in
    float32, where a small update is not lost, and rounded when they are used. Buffers are copied at each update, or
    averaged as parameters are.

    Attributes:
        name: of the average.
        modules: whose weights are averaged: the model, and a loss with weights.
        decay: of an exponential average; None for the plain mean.
        averages_buffers: whether buffers of floating point are averaged; the masks of torch.nn.utils.prune never are.
        n_averaged: the number of updates.
        parameters, buffers: the averages, by the kind of module and the name, such as "model.0.weight".
        in_use: whether the modules have the average now.
        own: the weights of the modules, after `finish` gave them the average; otherwise None.
    """

    def __init__(self, name: str, modules: Mapping[str, nn.Module], decay: float | None) -> None:
        self.name = name
        self.modules = dict(modules)
        self.decay = decay
        self.averages_buffers = False
        self.n_averaged = 0
        self.parameters: dict[str, torch.Tensor] = {}
        self.buffers: dict[str, torch.Tensor] = {}
        self.own: StateDict | None = None
        self._waiting: set[str] = set()  # parameters that a lazy layer had not initialized at the last update
        self._averaged_objects: list[int] = []  # which parameters these were
        self._exchanged: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None = None
        self._present()  # notes what is not initialized yet

    @property
    def in_use(self) -> bool:
        return self._exchanged is not None

    @property
    def started(self) -> bool:
        """False until the first update; restoring weights can make it False again."""
        return self.n_averaged > 0

    def update(self, decay: float | None = None) -> None:
        """Take the present weights into the average; the first update copies them.

        Args:
            decay: of this update; None for the average's own.

        Raises:
            WorkloadError: the model has other parameters than before.
        """
        present = self._present()
        if self.started:
            self._follow(present)
        else:
            self.parameters, self.buffers = {}, {}
        buffers = dict(self._present_buffers())
        averaged = self._averaged_buffers(buffers, present)
        for name, buffer in buffers.items():
            mean = self.buffers.get(name)
            dtype = _dtype_of_average(buffer) if name in averaged else buffer.dtype
            if mean is None or mean.shape != buffer.shape or mean.dtype != dtype:  # forward may make it anew
                self.buffers[name] = buffer.detach().to(dtype, copy=True)
                averaged.pop(name, None)
            elif name not in averaged:
                mean.copy_(buffer.detach())
        self._take_in(present, self.parameters, decay)
        self._take_in(averaged, self.buffers, decay)
        self._averaged_objects = [*map(id, present.values())]
        self.n_averaged += 1

    def _take_in(
        self, present: Mapping[str, torch.Tensor], averaged: dict[str, torch.Tensor], decay: float | None
    ) -> None:
        decay = self.decay if decay is None else decay
        groups: dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]] = defaultdict(lambda: ([], []))
        for name, value in present.items():
            mean = averaged.get(name)
            if mean is None:  # the first update, or a lazy layer has initialized it since
                averaged[name] = _in_float32(value)
                continue
            means, values = groups[mean.device, mean.dtype]
            means.append(local(mean))  # the mean of shares is the share of the mean
            values.append(local(value.detach().to(mean.device, mean.dtype)))
        for (device, _), (means, values) in groups.items():
            if decay is not None:
                get_ema_multi_avg_fn(decay)(means, values, None)  # type: ignore[no-untyped-call]
            elif device.type == "cpu":
                for mean, value in zip(means, values, strict=True):
                    mean.copy_(mean + (value - mean) / (self.n_averaged + 1))
            else:
                get_swa_multi_avg_fn()(means, values, torch.tensor(self.n_averaged, device=device))  # type: ignore[no-untyped-call]

    def _averaged_buffers(
        self, buffers: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Those of the present buffers that are averaged."""
        if not self.averages_buffers:
            return {}
        masks = _masks(buffers, parameters)
        return {name: value for name, value in buffers.items() if value.is_floating_point() and name not in masks}

    def use(self, on: bool) -> None:
        """Exchange the values in place: optimizer, wrappers and captured steps reference the tensors."""
        if on is self.in_use or not self.started:
            return
        if on:
            self._follow(self._present())
            own = copy_of(dict(self._present())), copy_of(dict(self._present_buffers()))
            self._write(self.parameters, self._rounded_buffers())
            self._exchanged = own
        else:
            assert self._exchanged is not None
            self._write(*self._exchanged)
            self._exchanged = None

    def finish(self) -> None:
        """Give the modules the average. Their own weights are stored, for a training that is extended."""
        self.use(False)
        self._follow(self._present())
        self.own = {kind: copy_of_module(module) for kind, module in self.modules.items()}
        self._write(self.parameters, self._rounded_buffers())

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the modules have the average in this context, and what they had before after it, to the last bit.

        Autograd does not notice: a graph of before can be gone backward through after it. Without an update yet, or
        where the modules have the average since `finish`, they keep what they have in it.

        Raises:
            WorkloadError: the model has other parameters than the average; afterwards, if one was changed meanwhile.
        """
        exchanges = self.started and (self.own is None or not self._is_in_modules())
        if exchanges:
            self._follow(self._present())
        parameters, buffers = [*self._present().values()], [*self._registered_buffers()]
        own = [parameter.detach().clone() for parameter in parameters]
        versions = [parameter._version for parameter in parameters]
        stand_ins = self._buffers_to_lend(exchanges)
        try:
            if exchanges:
                self._write(self.parameters, {})
            for module, name, buffer in buffers:  # a forward pass may change them in place, where a graph has the own
                module._buffers[name] = stand_ins[id(buffer)]
            torch.clear_autocast_cache()  # of what was cast before
            yield
            changed = versions != [parameter._version for parameter in parameters]
        finally:
            for parameter, before in zip(parameters, own, strict=True):
                parameter.data.copy_(before)
            for module, name, buffer in buffers:
                module._buffers[name] = buffer
            torch.clear_autocast_cache()
        if changed:
            raise WorkloadError(
                f"weights were changed while the model had the average {self.name!r}, by a step of an optimizer, say, "
                "and what it was is lost: the model has its own weights again. Train outside of such a block"
            )

    def restore_own(self) -> None:
        """Give the modules their own weights back, if they still have the average of `finish`."""
        own, self.own = self.own, None
        if own is None:
            return
        if self._is_in_modules():
            for kind, module in self.modules.items():
                if kind in own:
                    put_back_module(module, own[kind])

    def _is_in_modules(self) -> bool:
        """Whether the parameters have the values of the average."""
        present = self._present()
        if present.keys() != self.parameters.keys():
            return False
        means = {name: self.parameters[name].to(p.device, p.dtype) for name, p in present.items()}
        return equal_everywhere([(parameter, means[name]) for name, parameter in present.items()])

    def state(self) -> StateDict:
        """What `load` restores. The tensors are the live ones."""
        average = {"n_averaged": self.n_averaged, "parameters": self.parameters, "buffers": self.buffers}
        return {"average": average, "own": self.own}

    def load(self, state: StateDict) -> None:
        """Restore what `state` gave, or what it gave in earlier versions: the state of an AveragedModel.

        Raises:
            WorkloadError: the model has other parameters than it had.
        """
        average, own = state["average"], state["own"]
        self.put_back({**average["buffers"], **average["values"]} if "values" in average else average)
        is_earlier = own is not None and not isinstance(own.get("model"), dict)
        self.own = {"model": {"values": own, "buffers": None}} if is_earlier else own
        if self.started:
            if is_earlier or "values" in average:  # which had no average of the loss
                self._waiting |= {name for name in self._present() if not name.startswith("model.")}
            self._follow(self._present())

    def copy(self) -> StateDict:
        """A copy of the average, for `put_back`."""
        return {
            "n_averaged": self.n_averaged,
            "parameters": copy_of(self.parameters),
            "buffers": copy_of(self.buffers),
        }

    def put_back(self, copied: StateDict) -> None:
        """Restore what `copy` gave, or the state_dict of an AveragedModel. More than once, if asked to."""
        present = self._present(with_lazy=True)
        if "parameters" not in copied:
            values = {f"model.{name[7:]}": value for name, value in copied.items() if name.startswith("module.")}
            copied = {
                "n_averaged": int(copied["n_averaged"]),
                "parameters": {name: value for name, value in values.items() if name in present},
                "buffers": {name: value for name, value in values.items() if name not in present},
            }
        devices = {name: value.device for name, value in (*present.items(), *self._present_buffers())}
        self.n_averaged = copied["n_averaged"]
        self.parameters = {n: _in_float32(value, devices.get(n)) for n, value in copied["parameters"].items()}
        self.buffers = {n: value.detach().to(devices.get(n), copy=True) for n, value in copied["buffers"].items()}
        self._averaged_objects = []

    def follow(self) -> None:
        """Take over the names that the parameters have now, if there is an average yet.

        Raises:
            WorkloadError: that is not possible.
        """
        if self.started:
            self._follow(self._present())

    def _follow(self, present: Mapping[str, nn.Parameter]) -> None:
        """Take over the names that the parameters have now.

        Raises:
            WorkloadError: that is not possible.
        """
        if self._averaged_objects == [*map(id, present.values())] and self.parameters.keys() == present.keys():
            return
        buffers = dict(self._present_buffers())
        kept = {**self.parameters, **_masks(self.buffers, self.parameters)}
        names = {**present, **_masks(buffers, present)}
        known = {name: value for name, value in names.items() if name in kept or name not in self._waiting}
        followed, difference = follow(kept, known, present.keys() & known.keys())
        if difference:
            raise WorkloadError(
                f"the average {self.name!r} does not fit the model any more: {difference.replace('model.', '')}. "
                "Begin a training after such a change: start(workload, …) with the changed model"
            )
        self.parameters = {name: value for name, value in followed.items() if name in present}
        self.buffers = {name: value for name, value in self.buffers.items() if name in buffers}
        self.buffers |= {name: buffers[name].detach().clone() for name in followed.keys() - present.keys()}

    def _write(self, parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._present().items():
            if name in parameters:
                parameter.data.copy_(parameters[name])  # as data, so that no graph counts it as a change
        for name, buffer in buffers.items():
            kind, _, own = name.partition(".")
            set_buffer(self.modules[kind], own, buffer)

    def _rounded_buffers(self) -> dict[str, torch.Tensor]:
        """The averages of buffers, in half precision where the modules have them so."""
        half = {name: buffer.dtype for name, buffer in self._present_buffers() if buffer.dtype in _HALF}
        return {name: value.to(half.get(name, value.dtype)) for name, value in self.buffers.items()}

    def _buffers_to_lend(self, averaged: bool) -> dict[int, torch.Tensor]:
        """By the id of each present buffer, a copy of its average, or of itself."""
        averages = self._rounded_buffers() if averaged else {}
        return {
            id(buffer): averages.get(name, buffer).detach().to(buffer.device, copy=True)
            for name, buffer in self._present_buffers()
        }

    def _registered_buffers(self) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
        """Each buffer, with the module that has it and its name there; one that several modules share comes often."""
        for part in {part: None for module in self.modules.values() for part in module.modules()}:
            for name, buffer in part._buffers.items():
                if buffer is not None and not is_lazy(buffer):
                    yield part, name, buffer

    def _present(self, *, with_lazy: bool = False) -> dict[str, nn.Parameter]:
        parameters = [pair for kind, module in self.modules.items() for pair in named_parameters(module, kind)]
        lazy = {name for name, parameter in parameters if is_lazy(parameter)}
        if not with_lazy:
            self._waiting |= lazy
        return {name: parameter for name, parameter in parameters if with_lazy or name not in lazy}

    def _present_buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        for kind, module in self.modules.items():
            for name, buffer in named_buffers(module, kind):
                if not is_lazy(buffer):
                    yield name, buffer


def _masks(buffers: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The masks of torch.nn.utils.prune among the buffers."""
    return {name: value for name, value in buffers.items() if f"{name.removesuffix('_mask')}_orig" in parameters}


def _dtype_of_average(value: torch.Tensor) -> torch.dtype:
    return torch.float32 if value.dtype in _HALF else value.dtype


def _in_float32(value: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """A copy, in float32 if the value is in half precision."""
    return value.detach().to(device, _dtype_of_average(value), copy=True)


def refit_batch_norm(
    model: nn.Module,
    call: Callable[[Any], Any],
    inputs: Iterable[Any],
    across_ranks: Callable[[Iterable[_BatchNorm]], None] | None = None,
) -> None:
    """Recompute the statistics of batch norm in one pass over the inputs, as torch.optim.swa_utils.update_bn does.

    Batch norm in eval mode keeps its statistics. The modes of modules do not change.

    Args:
        model: in the modes in which it is trained.
        call: the model's output for the inputs of a batch.
        inputs: of each batch.
        across_ranks: makes the statistics of several ranks one, when all have had their batches.
    """
    refitted = {m: m.momentum for m in model.modules() if isinstance(m, _BatchNorm) and m.training}
    if not refitted:
        return
    for module in refitted:
        module.reset_running_stats()
        module.momentum = None  # the plain mean over all batches
    modes = Modes.of(model)
    try:
        with torch.no_grad():
            for each in inputs:
                call(each)
            if across_ranks is not None:
                across_ranks(refitted)
    finally:
        for module, momentum in refitted.items():
            module.momentum = momentum
        modes.put_back()
