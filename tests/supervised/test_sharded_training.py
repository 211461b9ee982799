"""`sharded` under `Supervised(parallel="ddp")`: the same script gives the same training on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Subset

from fsm_train import Supervised, WorkloadError, evaluate, run, sharded, start
from fsm_train.callbacks import accumulate
from tests.diabetes_training import weights_of, workload
from tests.forked import forked
from tests.models import diabetes

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


def patients(begin: int, end: int, **settings: Any) -> DataLoader[Any]:
    return sharded(DataLoader(Subset(diabetes(), range(begin, end)), **settings))


def make(train: int, valid: int, **settings: Any) -> Supervised:
    """Of so many patients, in batches of 12 of all ranks."""
    return workload(
        patients(0, train, batch_size=12, shuffle=True),
        valid=patients(300, 300 + valid, batch_size=12),
        parallel={"interrupts_every": 1000},
        **settings,
    )


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize(("train", "valid"), [(48, 24), (55, 13)], ids=["even", "uneven"])
def test_same_script_trains_the_same_on_each_number_of_ranks(
    tmp_path: Path, ranks: int, train: int, valid: int
) -> None:
    """Weights and metrics to rounding, with as many steps; and no exchange for a batch, since all know what comes."""

    def work(rank: int | None) -> Any:
        model = make(train, valid)
        final = run(start(model, epochs=3, seed=0), [accumulate(2)])
        exchanges = None if model.ranks is None else model.ranks.agreed(model).exchanges  # type: ignore[attr-defined]
        return weights_of(model.model), dict(final.metrics), (final.step, final.samples), exchanges

    (weights, metrics, counted, exchanges), *others = forked(ranks, tmp_path, work)
    alone, alone_metrics, counted_alone, _ = work(None)
    assert all(torch.equal(weights, other) and metrics == measured for other, measured, *_ in others)
    torch.testing.assert_close(weights, alone, rtol=0, atol=1e-5)
    assert metrics == pytest.approx(alone_metrics, rel=1e-5)
    assert counted == counted_alone
    # Made, prepare, finish, seconds; of each epoch and each validation its pass and its metrics.
    assert exchanges == 4 + 3 * 4


def test_evaluation_is_exact_whatever_the_ranks_have(tmp_path: Path) -> None:
    """Uneven shares, a rank that has no batch, and a loader whose sizes are not known."""

    def work(rank: int | None) -> Any:
        model = workload(parallel="ddp", metrics={"off": lambda output, target: (output - target).abs().mean()})
        loaders = (
            *(patients(0, samples, batch_size=4) for samples in (15, 1, 6)),
            patients(0, 15, batch_size=5, collate_fn=lambda samples: torch.utils.data.default_collate(samples)),
        )
        measured = [dict(evaluate(model, loader)) for loader in loaders]
        with pytest.raises(WorkloadError, match="data has no batches"):
            evaluate(model, patients(0, 3, batch_size=4, drop_last=True))
        return measured

    one, other = forked(2, tmp_path, work)
    assert one == other
    for measured, alone in zip(one, work(None), strict=True):
        assert measured == pytest.approx(alone, rel=1e-6)


def test_last_batch_of_fewer_samples_than_ranks_is_left_out_of_a_training(tmp_path: Path) -> None:
    """And a note says so."""

    def work(rank: int) -> Any:
        model = make(25, 1)
        final = run(start(model, epochs=2, seed=0))
        return final.step, final.samples, final.notes

    one, other = forked(2, tmp_path, work)
    assert one == other
    assert one[:2] == (4, 48)
    assert one[2][0].startswith("training batches were left out, since another rank had none any more: at least 2 of")
