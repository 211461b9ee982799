"""Training data that the model makes itself, such as rollouts of a policy: a pass over them cannot be wound.

Rule of this file: it only looks. No layer is iterated, indexed or called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from ..core.state import State
from .compiled import uncompiled
from .layers import Layer, layers_of


def made_by_model(loader: object, modules: Iterable[nn.Module], state: State, *, has_place: bool) -> Iterator[str]:
    """A note, if what this state was saved with continues a pass that has to be read again, and the model makes it.

    Batches that were read are read again to continue a stream. The model has other weights by then than when it made
    them, so that what it makes, and what that leads to, differs.

    Args:
        loader: of the training data.
        modules: that are trained.
        state: that of the checkpoint.
        has_place: whether the loader saves its own place.
    """
    inside = state.batch > 0 and not state.batches_over
    if has_place or not inside or not _is_read_again(loader):
        return
    parts = {id(part) for module in modules for part in module.modules()}
    for layer in layers_of(train=loader):
        path = next((path for path, module in _modules_in(layer) if id(uncompiled(module)) in parts), None)
        if path is not None:
            yield (
                f"the training data, which the model makes itself ({path}): a pass over it cannot be continued in the "
                "middle, since what the model made before is made again with the weights of now. Fill a dataset that "
                "is given as extra= in a command at EPOCH_BEGIN: fsm_train/data/README.md shows how"
            )
            return


def _is_read_again(loader: object) -> bool:
    """Whether the batches of a pass are read again to continue it: not so where they are skipped in a sampler."""
    if isinstance(loader, list):
        return False
    return type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset)


def _modules_in(layer: Layer) -> Iterator[tuple[str, nn.Module]]:
    """The module that this layer is, or those among the globals that its methods of reading name."""
    part: Any = layer.part
    if isinstance(part, nn.Module):
        yield layer.path, part
        return
    methods = [part] if isinstance(part, FunctionType) else [getattr(type(part), name, None) for name in _READING]
    for method in methods:
        if isinstance(method, FunctionType):
            for name in method.__code__.co_names:
                if isinstance(named := method.__globals__.get(name), nn.Module):
                    yield f"{layer.path} names {name}", named


_READING = ("__iter__", "__next__", "__getitem__", "__getitems__", "__call__")
