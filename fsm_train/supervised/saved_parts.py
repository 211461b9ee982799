"""What bit-exact resuming takes: read from a training, and restored to one.

The keys of these parts are the format of `tensors.pt` on disk, and stay as they are.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import torch

from ..checkpoints.files import Parts
from ..core.errors import WorkloadError
from ..core.state import State
from ..data.batches import number_of_batches
from ..data.generators import Generators
from ..data.loaders import persistent_workers_running
from ..data.position import EpochStart, SuspendPoint, inexact, is_stateful
from .carried_over import CarriedOver
from .modules import load_module, modules_of, state_of_module
from .param_groups import load_optimizer
from .training import Training


def parts_of(work: Training, state: State) -> tuple[Parts, tuple[str, ...]]:
    """Everything that a training changes, as tensors and plain values, and notes on what cannot be restored exactly.

    The tensors are the live ones: save them before the training continues.
    """
    if work.precision is not None:
        work.precision.rescale(work.gradients())  # the scaler's state does not say that gradients are unscaled
    meters, unsaved = work.train_meters.state()
    notes = (*inexact(work.train, state), *(f"the metric {name}: it has no state_dict" for name in unsaved))
    carried = work.carried_over
    modules = modules_of(work.model, work.loss_fn)
    start = work.epoch_start.as_of(work.train, work.valid, state) if work.epoch_start else None
    parts: Parts = {
        "modules": {name: state_of_module(module) for name, module in modules.items()},
        "optimizer": work.optimizer.state_dict(),
        "optimizer_of": _optimizer_of(work),
        "gradients": {i: p.grad.detach() for i, p in enumerate(work.parameters) if p.grad is not None},
        "window": work.window.state(),
        "scaler": work.precision.state() if work.precision else carried.scaler,
        "averages": {**carried.saved_averages, **{name: a.state() for name, a in carried.averages.items()}},
        "weights": {name: [weights, averages] for name, (weights, averages) in carried.weights.items()},
        "schedulers": {**carried.saved_schedulers, **{n: s.state_dict() for n, s in carried.schedulers.items()}},
        "generators": plain(Generators.now(work.loader_generators())),
        "beginning": _plain_epoch_start(start) if start else None,
        "loader": work.train.state_dict() if is_stateful(work.train) else None,  # type: ignore[attr-defined]
        "batches": number_of_batches(work.train),
        "meters": meters,
        "extra": {name: part.state_dict() for name, part in work.extra.items()},
    }
    return parts, notes


def restore_parts(work: Training, parts: Parts, state: State) -> tuple[str, ...]:
    """Restore everything, and return notes on what differs from the training that was saved.

    The pass over the data and the generators are restored when the run starts: until then other code
    may draw random numbers. So this notes where they were, in `suspended_at` and `epoch_start`.

    Args:
        work: of the same model, optimizer and loaders as the training that was saved.
        parts: what `parts_of` gave.
        state: the state that was saved with them.

    Raises:
        RuntimeError, WorkloadError: the model, the loss or the optimizer is another one.
    """
    if other := _other_optimizer(_optimizer_of(work), parts["optimizer_of"]):
        raise WorkloadError(f"the optimizer is another one than was saved, which torch would not notice: {other}")
    for name, module in modules_of(work.model, work.loss_fn).items():
        if name not in parts["modules"]:
            raise WorkloadError(f"nothing was saved of the {name}, which is a module now")
        load_module(module, parts["modules"][name])
    load_optimizer(work.optimizer, parts["optimizer"])
    for i, parameter in enumerate(work.parameters):
        gradient = parts["gradients"].get(i)
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    work.window.load(parts["window"])
    work.train_meters.load_state(parts["meters"])
    work.carried_over = CarriedOver(
        scaler=parts["scaler"],
        weights={name: (weights, averages) for name, (weights, averages) in parts["weights"].items()},
        saved_averages=parts["averages"],
        saved_schedulers=parts["schedulers"],
    )
    for name in work.extra.keys() & parts["extra"].keys():
        work.extra[name].load_state_dict(parts["extra"][name])
    notes = tuple(_differences(work, parts))
    own = work.loader_generators()
    if parts["loader"] is not None and is_stateful(work.train):
        work.train.load_state_dict(parts["loader"])  # type: ignore[attr-defined]
    work.suspended_at = SuspendPoint(state.iteration, generators_from(parts["generators"], own), from_file=True)
    work.epoch_start = epoch_start_from(parts["beginning"], own)
    return notes


def _differences(work: Training, parts: Parts) -> Iterator[str]:
    """A note for each difference that makes the training continue in another way than it would have."""
    for name in sorted(work.extra.keys() - parts["extra"].keys()):
        yield f"extra {name!r}: it is not in the checkpoint, and begins as it is now"
    for name in sorted(parts["extra"].keys() - work.extra.keys()):
        yield f"extra {name!r}: it is in the checkpoint, and not brought back since the workload has none of this name"
    batches = number_of_batches(work.train)
    if parts["batches"] != batches:
        yield f"the training data: it has {batches} batches an epoch, and had {parts['batches']}"
    if (parts["loader"] is not None) != is_stateful(work.train):
        yield "the place in the training data: it was saved with a loader of another kind"
    start = parts["beginning"]
    if start is not None and (start["train"] is None) != (persistent_workers_running(work.train) is None):
        yield "the random numbers of the epochs after this one: a loader draws fewer where persistent_workers is True"
    if len(parts["generators"]["own"]) != len(work.loader_generators()):
        yield "the generators of the loaders: there are others than there were"
    if parts["generators"]["numpy"] is not None and not _can_import_numpy():
        yield "the generator of NumPy: it cannot be imported here"
    devices, here = len(parts["generators"]["cuda"]), torch.cuda.device_count()
    if devices > here:
        yield f"the generators of CUDA: there were {devices} devices, and {here} are here"


def _optimizer_of(work: Training) -> list[Any]:
    """The optimizer's class, and the names of the parameters in each group."""
    modules = modules_of(work.model, work.loss_fn)
    names = {id(p): f"{kind}.{name}" for kind, module in modules.items() for name, p in module.named_parameters()}
    groups = [[names.get(id(p), "?") for p in group["params"]] for group in work.optimizer.param_groups]
    return [type(work.optimizer).__name__, groups]


def _other_optimizer(ours: list[Any], saved: list[Any]) -> str:
    """The first difference of the two; empty if there is none."""
    (kind, groups), (saved_kind, saved_groups) = ours, saved
    if kind != saved_kind:
        return f"it is of the class {kind}, and was of {saved_kind}"
    if len(groups) != len(saved_groups):
        return f"it has {len(groups)} parameter groups, and had {len(saved_groups)}"
    for i, (names, saved_names) in enumerate(zip(groups, saved_groups, strict=True)):
        for name, saved_name in zip_longest(names, saved_names, fillvalue="nothing"):
            if name != saved_name:
                return f"its group {i} has {name} in the place of {saved_name}"
    return ""


def plain(generators: Generators) -> Parts:
    """The states of the generators as tensors and plain values."""
    version, internal, gauss = generators.python
    numpy = generators.numpy
    return {
        "python": [version, torch.tensor(internal), gauss],
        "numpy": None if numpy is None else [numpy[0], torch.from_numpy(numpy[1].astype("int64")), *numpy[2:]],
        "cpu": generators.cpu,
        "cuda": list(generators.cuda),
        "own": [state for _, state in generators.own],
    }


def _plain_epoch_start(start: EpochStart) -> Parts:
    return {"generators": plain(start.generators), "train": start.train, "valid": start.valid}


def epoch_start_from(parts: Mapping[str, Any] | None, own: list[torch.Generator]) -> EpochStart | None:
    """The start of the epoch that was saved, if there was one; `own` as for `generators_from`."""
    if parts is None:
        return None
    return EpochStart(generators_from(parts["generators"], own), parts["train"], parts["valid"])


def _can_import_numpy() -> bool:
    """Import NumPy, if it can be imported: the training used it, so its generator has to be restored."""
    try:
        importlib.import_module("numpy")
    except ImportError:
        return False
    return True


def generators_from(parts: Mapping[str, Any], own: list[torch.Generator]) -> Generators:
    """The inverse of `plain`; `own` are the generators of the loaders, in the order in which they were saved."""
    version, internal, gauss = parts["python"]
    numpy = None
    if parts["numpy"] is not None and _can_import_numpy():
        name, keys, *rest = parts["numpy"]
        numpy = (name, keys.numpy().astype("uint32"), *rest)
    return Generators(
        python=(version, tuple(internal.tolist()), gauss),
        numpy=numpy,
        cpu=parts["cpu"],
        cuda=tuple(parts["cuda"][: torch.cuda.device_count()]),
        own=tuple(zip(own, parts["own"], strict=False)),
    )
