"""What bit-exact resuming takes: read from a training, and restored to one.

The keys of these parts are the format of `tensors.pt` on disk, and stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from ..checkpoints.writing import Parts, find_unsafe
from ..core.errors import CheckpointError, FsmTrainError, WorkloadError
from ..core.state import State
from ..data.fingerprint import differences
from ..data.generators import Generators, fits, order_generators
from ..data.loaders import persistent_workers_running
from ..data.made_by_model import made_by_model
from ..data.plain_generators import can_import_numpy, generators_of_plain, own_states, plain
from ..data.position import EpochStart, SuspendPoint, inexact, is_stateful, own_place
from ..data.sources import Sources, own_state
from . import numbers
from .carried_over import CarriedOver
from .inventory import Found, inventory, notes_of
from .kept_weights import KeptWeights
from .modules import check_tensors, copy_of_module, fits_module, load_module, put_back_module, state_of_module
from .optimizer_state import load_exactly, unsaved_within, without_marks
from .own_states import states_loaded
from .param_groups import Members
from .saved_names import plain_parts
from .saved_optimizer import gradients_of, load_gradients, load_optimizer, optimizer_of
from .saved_ranks import check_ranks_known, part_of_rank, restore_rank
from .saved_shape import check_shape
from .saved_shares import check_shared, shared_out
from .structure_changes import changes_carried_out, plain_changes
from .training import Training
from .unchanging import unchanging


def parts_of(work: Training, state: State) -> tuple[Parts, tuple[str, ...]]:
    """Everything that a training changes, as tensors and plain values, and notes on what cannot be restored exactly.

    The tensors are the live ones: save them before the training continues.
    """
    if work.precision is not None:
        work.precision.rescale(work.gradients())  # the scaler's state does not say that gradients are unscaled
    meters, unsaved_metrics = work.train_meters.state()
    place, trouble = own_place(work.train)
    generators = work.own_generators()
    paths = {id(layer.part): layer.path for layer in generators}
    sources, sources_at_start, unsafe = _changes(work, has_place=place is not None)
    optimizer = without_marks(work.optimizer.state_dict())
    items = inventory(
        Found(
            modules=tuple(work.modules),
            extra=tuple(work.extra),
            generators=tuple(paths.values()),
            sources=(*sources.own, *sources.attributes),
            unsafe=unsafe,
            changed=sources.changed_outside(),
            metrics=tuple(work.train_meters.metrics),
            unsaved_metrics=tuple(unsaved_metrics),
            place="the generators at the epoch's start" if place is None else "the loader",
            inexact=(
                *filter(None, [trouble]),
                *inexact(work.train, state, has_place=place is not None),
                *made_by_model(work.train, work.modules.values(), state, has_place=place is not None),
            ),
            within=tuple(unsaved_within(work.optimizer, optimizer, work.extra.values())),
        )
    )
    carried = work.carried_over
    modules = {name: state_of_module(module) for name, module in work.modules.items()}
    modules["model"]["modes"] = work.training_modes()
    now = Generators.now(layer.part for layer in generators)
    start = work.epoch_start.as_of(work.train, work.valid, state) if work.epoch_start else None
    parts: Parts = {
        "modules": modules,
        "optimizer": optimizer,
        "optimizer_of": optimizer_of(work),
        "gradients": gradients_of(work),
        "window": work.window.state(),
        "numbers": dict(work.numbers),
        "scaler": work.precision.state() if work.precision else carried.scaler,
        "averages": {**carried.saved_averages, **{name: a.state() for name, a in carried.averages.items()}},
        "weights": {name: kept.state() for name, kept in carried.weights.items()},
        "measured_with": carried.measured_with,
        "measured_by": carried.measured_by,
        "validations": list(carried.validations),
        "schedulers": {**carried.saved_schedulers, **{n: s.state_dict() for n, s in carried.schedulers.items()}},
        "generators": plain(now, paths),
        "beginning": _plain_epoch_start(start, now, sources_at_start, paths) if start else None,
        "loader": place,
        "sources": sources.plain(),
        "loss": own_state(work.loss_fn) if loss_has_state(work) else None,
        "batches": _batches_when_made(work),
        "data": work.data_fingerprint,
        "meters": meters,
        "extra": {name: part.state_dict() for name, part in work.extra.items()},
        "structure": plain_changes(work),
        **({} if work.ranks is None else {"ranks": part_of_rank(work, state)}),
        "frozen": {name: names for name, module in work.modules.items() if (names := unchanging(module))},
    }
    check_shared(work, parts)
    return parts, notes_of(items)


def loss_has_state(work: Training) -> bool:
    """Whether the loss may have a state that neither a module nor an extra part has."""
    return not isinstance(work.loss_fn, nn.Module) and id(work.loss_fn) not in map(id, work.extra.values())


def _changes(work: Training, *, has_place: bool) -> tuple[Sources, Sources, tuple[tuple[str, str], ...]]:
    """What of the sources of data is to be saved, now and at the epoch's start, and what of them cannot be saved."""
    now = Sources.now(work.train)
    start = now if work.epoch_start is None or work.epoch_start.sources is None else work.epoch_start.sources
    if has_place:
        now, start = now.without_loader(), start.without_loader()
    made = work.sources_when_made
    unsafe = tuple((path, what) for path, state in now.own.items() if (what := find_unsafe(state, path)))
    refused = {path for path, _ in unsafe}
    return now.since(made, start).without(refused), start.since(made, now).without(refused), unsafe


def restore_parts(work: Training, parts: Parts, state: State) -> tuple[str, ...]:
    """Restore everything, and return notes on what differs from the training that was saved.

    The pass over the data and the generators are restored when the run starts: until then other code
    may draw random numbers. So this notes where they were, in `suspended_at` and `epoch_start`.

    Args:
        work: of the same model, optimizer and loaders as the training that was saved.
        parts: what `parts_of` gave.
        state: the state that was saved with them.

    Raises:
        CheckpointError: no training has saved these parts. Nothing of this one has changed.
        RuntimeError, WorkloadError: the model, the loss or the optimizer is another one.
    """
    check_ranks_known(work)
    check_shape(parts)
    parts = shared_out(work, plain_parts(parts))
    suspended_at, epoch_start, weights, notes = _in_memory(work, parts, state)
    changes = changes_carried_out(work, parts.get("structure", ()), state)
    with states_loaded(_stateful_objects(work, parts)), changes:
        _load_optimizer_and_modules(work, parts)
    work.window.load(parts["window"])
    work.window.batches = state.pending
    work.numbers.update({name: n for name, n in parts.get("numbers", {}).items() if name in work.numbers})
    other_metrics = work.train_meters.load_state(parts["meters"])
    work.carried_over = CarriedOver(
        scaler=parts["scaler"],
        weights=weights,
        measured_with=parts.get("measured_with", "model"),
        measured_by=dict(parts.get("measured_by", {})),
        validations=tuple(parts.get("validations", (0, -1))),
        saved_averages=parts["averages"],
        saved_schedulers=parts["schedulers"],
    )
    work.suspended_at, work.epoch_start = suspended_at, epoch_start
    if work.ranks is not None:
        restore_rank(work, parts.get("ranks", {}))
    return (*notes, *(f"the metric {what}" for what in other_metrics))


def _stateful_objects(work: Training, parts: Parts) -> Iterator[tuple[str, Any, Any]]:
    """The objects beside the model that load a state of their own, each with its name and what was saved of it."""
    for name in sorted(work.extra.keys() & parts["extra"].keys()):
        yield f"extra {name!r}", work.extra[name], parts["extra"][name]
    if parts.get("loss") is not None and loss_has_state(work):
        yield "the loss", work.loss_fn, parts["loss"]


def _load_optimizer_and_modules(work: Training, parts: Parts) -> None:
    """Load them and the gradients all, or none: what does not fit raises, and the others are put back.

    Raises:
        CheckpointError: no training has saved them.
        RuntimeError, WorkloadError: the model, the loss or the optimizer is another one.
    """
    members, before = Members.of(work.optimizer), work.optimizer.state_dict()
    parameters = chain(work.parameters, *(module.parameters() for module in work.modules.values()))
    gradients = [(parameter, parameter.grad) for parameter in parameters]
    saved = parts["modules"]
    # Copies of all weights would take much memory: they are made only where something will likely not fit.
    fit = all(name in saved and fits_module(module, saved[name]) for name, module in work.modules.items())
    copies = {} if fit else {name: copy_of_module(module) for name, module in work.modules.items()}
    is_another_model = False
    try:
        load_optimizer(work, parts)
        if fit:
            load_gradients(work, parts["gradients"])
        for name, module in work.modules.items():
            if name in saved:
                check_tensors(module, saved[name])
                is_another_model = True  # if torch refuses what comes now
                load_module(module, saved[name])
                is_another_model = False
            elif isinstance(work.loss_fn, nn.Module):
                raise WorkloadError(f"nothing was saved of the {name}, which is a module now")
            # else saved before modules were found in functions; a note says so
        if not fit:
            load_gradients(work, parts["gradients"])
    except BaseException as error:
        members.put_back(work.optimizer)
        load_exactly(work.optimizer, before)
        work.read_parameters()
        for name, copied in copies.items():
            put_back_module(work.modules[name], copied)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        if is_another_model or isinstance(error, FsmTrainError) or not isinstance(error, Exception):
            raise
        raise CheckpointError(f"its parts are not what a training saves ({type(error).__name__}: {error})") from error


def _in_memory(
    work: Training, parts: Parts, state: State
) -> tuple[SuspendPoint, EpochStart | None, dict[str, KeptWeights], tuple[str, ...]]:
    """What can be made of the parts, and noted of them, without touching the training.

    Raises:
        CheckpointError: they are no such parts.
    """
    try:
        suspended_at = SuspendPoint(
            state.iteration,
            generators_from(parts["generators"], work),
            from_file=True,
            sources=Sources.from_plain(parts["sources"]) if parts.get("sources") else None,
            place=parts["loader"],
        )
        weights = {name: KeptWeights.of_state(kept) for name, kept in parts["weights"].items()}
        notes = tuple(_differences(work, parts))
        return suspended_at, epoch_start_from(parts["beginning"], work), weights, notes
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"its parts are not what a training saves ({type(error).__name__}: {error})") from error


def _differences(work: Training, parts: Parts) -> Iterator[str]:
    """A note for each difference that makes the training continue in another way than it would have."""
    for name in work.modules.keys() - parts["modules"].keys():
        if work.modules[name].state_dict():
            yield f"the weights of the {name}: they are not in the checkpoint, and stay as they are"
    for name in sorted(work.extra.keys() - parts["extra"].keys()):
        yield f"extra {name!r}: it is not in the checkpoint, and begins as it is now"
    for name in sorted(parts["extra"].keys() - work.extra.keys()):
        yield f"extra {name!r}: it is in the checkpoint, and not brought back since the workload has none of this name"
    yield from numbers.differences(work.numbers, parts.get("numbers", {}))
    batches = _batches_when_made(work)
    if parts["batches"] != batches:
        yield f"the training data: it has {batches} batches an epoch, and had {parts['batches']}"
    if parts["loader"] is not None and not is_stateful(work.train):
        yield "the place in the training data: it was saved with a loader of another kind"
    start = parts["beginning"]
    if start is not None and (start["train"] is None) != (persistent_workers_running(work.train) is None):
        yield "the random numbers of the epochs after this one: a loader draws fewer where persistent_workers is True"
    yield from _other_generators(work, parts["generators"]["own"])
    changed = parts.get("sources") or {"attributes": {}}
    yield from differences(work.data_fingerprint, parts.get("data", {}), changed["attributes"])
    if parts["generators"]["numpy"] is not None and not can_import_numpy():
        yield "the generator of NumPy: it cannot be imported here"
    devices, here = len(parts["generators"]["cuda"]), torch.cuda.device_count()
    if devices > here:
        yield f"the generators of CUDA: there were {devices} devices, and {here} are here"


def _batches_when_made(work: Training) -> int | None:
    """Those of an epoch, before a sampler was told of one, on which its length may depend."""
    length: int | None = work.data_fingerprint.get("train", {}).get("length")
    return length


def _other_generators(work: Training, saved: Any) -> Iterator[str]:
    if isinstance(saved, list):  # of an earlier version
        if len(saved) != len(_order_generators(work)):
            yield "the generators of the loaders: there are others than there were"
        return
    here = {layer.path: layer.part for layer in work.own_generators()}
    for path in saved:
        if path not in here or not fits(here[path], saved[path]):
            yield f"the generator {path}: it was saved, and there is no such one now"
    for path in here.keys() - saved.keys():
        yield f"the generator {path}: it was not saved, and goes on from where it is"


def _order_generators(work: Training) -> list[torch.Generator]:
    """The generators that earlier versions saved, in their order."""
    loaders = (work.train, *(each.loader for each in work.evaluations))
    return list(dict.fromkeys(generator for loader in loaders for generator in order_generators(loader)))


def _plain_epoch_start(start: EpochStart, now: Generators, sources: Sources, paths: Mapping[int, str]) -> Parts:
    return {
        "generators": plain(start.generators.completed(now), paths),  # from the others the pass does not follow
        "train": start.train,
        "valid": start.valid,
        "sources": sources.plain(),
    }


def epoch_start_from(parts: Mapping[str, Any] | None, work: Training) -> EpochStart | None:
    """The start of the epoch that was saved, if there was one."""
    if parts is None:
        return None
    sources = Sources.from_plain(parts["sources"]) if parts.get("sources") else None
    return EpochStart(generators_from(parts["generators"], work), parts["train"], parts["valid"], sources)


def generators_from(parts: Mapping[str, Any], work: Training) -> Generators:
    """The inverse of `plain`, for the generators of this training."""
    return generators_of_plain(parts, _own_states(parts["own"], work))


def _own_states(saved: Any, work: Training) -> Iterator[tuple[Any, Any]]:
    if isinstance(saved, list):  # of an earlier version
        yield from zip(_order_generators(work), saved, strict=False)
        return
    yield from own_states(saved, work.own_generators())
