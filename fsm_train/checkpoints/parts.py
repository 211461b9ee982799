"""What bit-exact resuming takes: taken from a workload, and brought back to one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch

from ..core.errors import WorkloadError
from ..data.generators import Generators
from ..data.loaders import workers_there
from ..data.position import Beginning, inexact, keeps_its_place
from ..supervised.modules import load_module, modules_of, state_of_module

if TYPE_CHECKING:
    from ..core.state import State
    from ..supervised.workload import Supervised

Parts = dict[str, Any]


def parts_of(work: Supervised, state: State) -> tuple[Parts, tuple[str, ...]]:
    """All that a training changes, as tensors and plain values, and what of it cannot be brought back exactly."""
    meters, unsaved = work.train_meters.state()
    notes = (*inexact(work.train, state), *(f"the metric {name}: it has no state_dict" for name in unsaved))
    kept = work.kept
    parts: Parts = {
        "modules": {name: state_of_module(module) for name, module in modules_of(work).items()},
        "optimizer": work.optimizer.state_dict(),
        "optimizer_of": _optimizer_of(work),
        "gradients": {i: p.grad.detach() for i, p in enumerate(work.parameters) if p.grad is not None},
        "window": work.window.state(),
        "scaler": work.precision.state() if work.precision else kept.scaler,
        "averages": {**kept.saved_averages, **{name: a.state() for name, a in kept.averages.items()}},
        "weights": {name: [weights, averages] for name, (weights, averages) in kept.weights.items()},
        "schedulers": {**kept.saved_schedulers, **{name: s.state_dict() for name, s in kept.schedulers.items()}},
        "generators": plain(Generators.now(work.own_generators())),
        "beginning": _plain_beginning(work.beginning.seen_from(work, state)) if work.beginning else None,
        "loader": work.train.state_dict() if keeps_its_place(work.train) else None,  # type: ignore[attr-defined]
        "batches": _batches(work),
        "meters": meters,
        "extra": {name: part.state_dict() for name, part in work.extra.items()},
    }
    return parts, notes


def bring_back(work: Supervised, parts: Parts) -> tuple[str, ...]:
    """Put everything back but the pass over the data and the generators, which wait for the run to begin.

    Returns what is not as it was.

    Raises:
        RuntimeError, WorkloadError: the workload is another one than was saved.
    """
    if other := _other_optimizer(_optimizer_of(work), parts["optimizer_of"]):
        raise WorkloadError(f"the optimizer is another one than was saved, which torch would not notice: {other}")
    for name, module in modules_of(work).items():
        if name not in parts["modules"]:
            raise WorkloadError(f"nothing was saved of the {name}, which is a module now")
        load_module(module, parts["modules"][name])
    work.optimizer.load_state_dict(parts["optimizer"])
    for i, parameter in enumerate(work.parameters):
        gradient = parts["gradients"].get(i)
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    work.window.load(parts["window"])
    work.train_meters.load_state(parts["meters"], work.device)
    kept = type(work.kept)()
    kept.scaler = parts["scaler"]
    kept.saved_averages = parts["averages"]
    kept.saved_schedulers = parts["schedulers"]
    kept.weights = {name: (weights, averages) for name, (weights, averages) in parts["weights"].items()}
    work.kept = kept
    for name in work.extra.keys() & parts["extra"].keys():
        work.extra[name].load_state_dict(parts["extra"][name])
    return tuple(_not_as_it_was(work, parts))


def _not_as_it_was(work: Supervised, parts: Parts) -> Iterator[str]:
    """What differs so that the training goes on, but not as it would have."""
    for name in sorted(work.extra.keys() - parts["extra"].keys()):
        yield f"extra {name!r}: it is not in the checkpoint, and begins afresh"
    for name in sorted(parts["extra"].keys() - work.extra.keys()):
        yield f"extra {name!r}: it is in the checkpoint, and not brought back since the workload has none of this name"
    if parts["batches"] != _batches(work):
        yield f"the training data: it has {_batches(work)} batches an epoch, and had {parts['batches']}"
    if (parts["loader"] is not None) != keeps_its_place(work.train):
        yield "the place in the training data: it was saved with a loader of another kind"
    beginning = parts["beginning"]
    if beginning is not None and (beginning["train"] is None) != (workers_there(work.train) is None):
        yield "the random numbers of the epochs after this one: a loader draws fewer where persistent_workers is True"
    if len(parts["generators"]["own"]) != len(work.own_generators()):
        yield "the generators of the loaders: there are others than there were"
    if parts["generators"]["numpy"] is not None and not _numpy_is_there():
        yield "the generator of NumPy: it cannot be imported here"
    devices, here = len(parts["generators"]["cuda"]), torch.cuda.device_count()
    if devices > here:
        yield f"the generators of CUDA: there were {devices} devices, and {here} are here"


def _optimizer_of(work: Supervised) -> list[Any]:
    """The optimizer's class, and the names of the parameters in each group."""
    names = {
        id(p): f"{kind}.{name}" for kind, module in modules_of(work).items() for name, p in module.named_parameters()
    }
    groups = [[names.get(id(p), "?") for p in group["params"]] for group in work.optimizer.param_groups]
    return [type(work.optimizer).__name__, groups]


def _other_optimizer(ours: list[Any], saved: list[Any]) -> str:
    """In what the two differ first, if they do."""
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


def _batches(work: Supervised) -> int | None:
    try:
        return len(work.train)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def plain(generators: Generators) -> Parts:
    """The generators as tensors and plain values."""
    version, internal, gauss = generators.python
    numpy = generators.numpy
    return {
        "python": [version, torch.tensor(internal), gauss],
        "numpy": None if numpy is None else [numpy[0], torch.from_numpy(numpy[1].astype("int64")), *numpy[2:]],
        "cpu": generators.cpu,
        "cuda": list(generators.cuda),
        "own": [state for _, state in generators.own],
    }


def _plain_beginning(beginning: Beginning) -> Parts:
    return {"generators": plain(beginning.generators), "train": beginning.train, "valid": beginning.valid}


def as_beginning(parts: Mapping[str, Any] | None, own: list[torch.Generator]) -> Beginning | None:
    """What was saved of the pass under way, if there was one; `own` as for `as_generators`."""
    return None if parts is None else Beginning(as_generators(parts["generators"], own), parts["train"], parts["valid"])


def _numpy_is_there() -> bool:
    """Whether NumPy can be imported, and then it is: it was in use, and has to be there to be put back."""
    try:
        importlib.import_module("numpy")
    except ImportError:
        return False
    return True


def as_generators(parts: Mapping[str, Any], own: list[torch.Generator]) -> Generators:
    """What `plain` was given; `own` are the same generators of the loaders, in the same order."""
    version, internal, gauss = parts["python"]
    numpy = None
    if parts["numpy"] is not None and _numpy_is_there():
        name, keys, *rest = parts["numpy"]
        numpy = (name, keys.numpy().astype("uint32"), *rest)
    return Generators(
        python=(version, tuple(internal.tolist()), gauss),
        numpy=numpy,
        cpu=parts["cpu"],
        cuda=tuple(parts["cuda"][: torch.cuda.device_count()]),
        own=tuple(zip(own, parts["own"], strict=False)),
    )
