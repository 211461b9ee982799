"""What bit-exact resuming takes: taken from a workload, and brought back to one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from .generators import Generators
from .position import inexact, keeps_its_place

if TYPE_CHECKING:
    from .supervised import Supervised

Parts = dict[str, Any]


def parts_of(work: Supervised) -> tuple[Parts, tuple[str, ...]]:
    """All that a training changes, as tensors and plain values, and what of it cannot be brought back exactly."""
    notes = [note] if (note := inexact(work.train)) else []
    meters, unsaved = work.train_meters.state()
    notes += [f"the metric {name}: it has no state_dict" for name in unsaved]
    kept = work.kept
    parts: Parts = {
        "model": dict(work.model.state_dict()),
        "buffers": dict(work.model.named_buffers()),  # also those that the state_dict leaves out
        "modes": [module.training for module in work.model.modules()],
        "optimizer": work.optimizer.state_dict(),
        "gradients": {i: p.grad for i, p in enumerate(work.parameters) if p.grad is not None},
        "window": work.window.state(),
        "scaler": work.precision.state() if work.precision else kept.scaler,
        "averages": {**kept.saved_averages, **{name: a.averaged.state_dict() for name, a in kept.averages.items()}},
        "weights": {name: [weights, averages] for name, (weights, averages) in kept.weights.items()},
        "schedulers": {**kept.saved_schedulers, **{name: s.state_dict() for name, s in kept.schedulers.items()}},
        "generators": plain(Generators.now(work.own_generators())),
        "epoch_start": plain(work.epoch_start) if work.epoch_start else None,
        "loader": work.train.state_dict() if keeps_its_place(work.train) else None,  # type: ignore[attr-defined]
        "meters": meters,
        "extra": {name: part.state_dict() for name, part in work.extra.items()},
    }
    return parts, tuple(notes)


def bring_back(work: Supervised, parts: Parts) -> None:
    """Put everything back but the pass over the data and the generators, which wait for the run to begin."""
    work.model.load_state_dict(parts["model"])
    with torch.no_grad():
        for name, buffer in work.model.named_buffers():
            buffer.copy_(parts["buffers"][name])
    for module, mode in zip(work.model.modules(), parts["modes"], strict=True):
        module.training = mode
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
    for name, extra in work.extra.items():
        extra.load_state_dict(parts["extra"][name])


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


def as_generators(parts: Mapping[str, Any], own: list[torch.Generator]) -> Generators:
    """What `plain` was given; `own` are the same generators of the loaders, in the same order."""
    version, internal, gauss = parts["python"]
    numpy = None
    if parts["numpy"] is not None:
        importlib.import_module("numpy")  # it was in use, and has to be there to be put back
        name, keys, *rest = parts["numpy"]
        numpy = (name, keys.numpy().astype("uint32"), *rest)
    return Generators(
        python=(version, tuple(internal.tolist()), gauss),
        numpy=numpy,
        cpu=parts["cpu"],
        cuda=tuple(parts["cuda"]) if torch.cuda.is_available() else (),
        own=tuple(zip(own, parts["own"], strict=True)),
    )
