"""What of a training on several ranks is not as one process would compute it on the union of their batches, in words.

Rule of this file: nothing is refused here, and nothing changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.callback import Callback
from ..core.commands import CutMix, MixUp
from ..data.layers import loaders_in
from ..data.whole_data import padding
from ..wording import pluralize


def notes_of_ranks(
    model: nn.Module, loaders: Mapping[str, object], callbacks: Iterable[Callback[Any]]
) -> Iterator[str]:
    """A sentence for each thing that is not that of the union, or that counts twice."""
    for path, loader in loaders.items():
        for name, inner in loaders_in(loader, path).items():
            if samples := padding(inner):
                yield (
                    f"{name}: the DistributedSampler gives {pluralize(samples, 'sample')} twice, so that all "
                    "ranks have as many, and they count twice: sharded(loader) gives none twice"
                )
    if any(map(_normalizes_by_itself, model.modules())):
        yield (
            "batch norm takes its statistics from each rank's part of a batch, and not from the whole batch: on GPUs, "
            "torch.nn.SyncBatchNorm.convert_sync_batchnorm(model) takes them from all ranks"
        )
    for callback in callbacks:
        if {MixUp, CutMix}.intersection(callback.commands or ()):
            yield f"{callback.name} mixes the samples within each rank's part of a batch, and not those of all ranks"


def _normalizes_by_itself(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm) and module.training
