"""What is refused, and what is said, of data and models that are not as the union of the ranks' batches."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from fsm_train import WorkloadError, over_all, run, start
from fsm_train.callbacks import clip_grad_norm, cutmix, mixup
from fsm_train.data import together
from fsm_train.supervised.meters import Meters
from fsm_train.supervised.rank_notes import notes_of_ranks
from tests.diabetes_training import batches, linear, net, workload
from tests.forked import forked
from tests.models import diabetes

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


class Kept(logging.Handler):
    """Keeps the texts of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        logging.getLogger("fsm_train").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def test_training_data_that_each_rank_reads_whole_are_refused(tmp_path: Path) -> None:
    """On all ranks, with what to write; and the ranks can go on with other data."""

    def work(rank: int) -> Any:
        said = []
        for train in (DataLoader(diabetes(), batch_size=64, shuffle=True), batches(8, 8)):
            with pytest.raises(WorkloadError) as refused:
                run(start(workload(train, parallel="ddp"), epochs=1))
            said.append(str(refused.value))
        final = run(start(workload(batches(8, 8)[rank : rank + 1], parallel="ddp"), epochs=1))
        return said, final.step

    one, other = forked(2, tmp_path, work)
    assert one == other
    said, steps = one
    assert steps == 1
    assert all(each.startswith("each of the 2 ranks reads all of the training data, and the same") for each in said)
    assert all("sharded(loader)" in each for each in said)


def test_what_is_not_the_union_is_said_once_by_one_rank(tmp_path: Path) -> None:
    """However many runs there are."""

    def work(rank: int) -> Any:
        kept = Kept()
        sampler = DistributedSampler(diabetes(), shuffle=False)
        train = DataLoader(diabetes(), batch_size=64, sampler=sampler)
        model = workload(train, model=net(), valid=batches(8), parallel="ddp")
        for _ in range(2):
            final = run(start(model, epochs=1), [mixup(0.5)])
        return kept.texts, final.notes

    (said, notes), (others, _) = forked(2, tmp_path, work)
    assert (others, notes) == ([], ())
    assert [text.partition(",")[0].partition(":")[0] for text in said] == [
        "batch norm takes its statistics from each rank's part of a batch",
        "mixup mixes the samples within each rank's part of a batch",
        "each of the 2 ranks evaluates all of the validation data",
    ]


def largest(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).max()


def test_notes_name_what_is_not_the_union() -> None:
    """And nothing else: not what is frozen, not synchronized, not padded."""
    sampler = DistributedSampler(range(7), 2, 0)  # type: ignore[arg-type]
    padded: Any = DataLoader(range(7), sampler=sampler)  # type: ignore[arg-type]
    frozen, synchronized = net().eval(), nn.SyncBatchNorm.convert_sync_batchnorm(net())

    for model in (linear(), frozen, synchronized):
        assert not [*notes_of_ranks(model, {"train": [torch.zeros(1)]}, [clip_grad_norm(1.0)])]
    mean, gathered = (Meters("valid", {"auc": metric}, torch.device("cpu")) for metric in (largest, over_all(largest)))
    data = {"train": together(padded, [1]), "valid": padded}
    said = [*notes_of_ranks(net(), data, [mixup(0.5), cutmix(0.5)], [mean, gathered])]
    assert [sentence.split(",")[0] for sentence in said] == [
        "train.loaders[0]: the DistributedSampler gives 1 sample twice",
        "valid: the DistributedSampler gives 1 sample twice",
        "batch norm takes its statistics from each rank's part of a batch",
        "over_all (valid_auc) is asked on each rank",
        "mixup mixes the samples within each rank's part of a batch",
        "cutmix mixes the samples within each rank's part of a batch",
    ]
