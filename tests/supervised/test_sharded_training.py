"""`sharded` under `Supervised(parallel="ddp")`: the same script gives the same training on any number of ranks."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, TensorDataset

from fsm_train import Phase, State, Supervised, WorkloadError, evaluate, on, predict, run, sharded, start
from fsm_train.callbacks import accumulate, grad_noise
from fsm_train.data import reproducible
from fsm_train.data.own_rank import own_rank
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


def test_one_of_several_evaluations_may_have_no_batch_for_a_rank(tmp_path: Path) -> None:
    """Its metrics are those of the ranks that have one; only what none of them has is refused."""

    def work(rank: int | None) -> Any:
        valid = {
            "one": patients(300, 301, batch_size=4),
            "few": patients(310, 313, batch_size=4),
            "many": patients(320, 330, batch_size=4),
        }
        work = workload(patients(0, 48, batch_size=12), valid=valid, parallel="ddp")
        metrics = dict(run(start(work, epochs=2, seed=0)).metrics)
        return metrics, dict(evaluate(work))

    one, other = forked(2, tmp_path, work)
    assert one == other
    for measured, alone in zip(one, work(None), strict=True):
        assert measured == pytest.approx(alone, rel=1e-5)


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


class Rows(nn.Module):
    """Gives the first input of each sample, and a number of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs: torch.Tensor) -> Any:
        return {"first": inputs[:, :1], "pair": (inputs[:, 0], inputs.shape), "samples": torch.tensor(len(inputs))}


@pytest.mark.parametrize("samples", [10, 9, 1])
def test_outputs_of_shares_are_those_of_the_dataset(tmp_path: Path, samples: int) -> None:
    """On every rank, in the order of the dataset however they are drawn; what is no row of a sample stays a list."""
    data = TensorDataset(torch.arange(20.0).view(10, 2)[:samples])
    whole = data.tensors[0]

    def work(rank: int | None) -> Any:
        model = Rows()
        training = Supervised(
            model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), [(whole, whole)], parallel="ddp"
        )
        loaders = [
            sharded(data, batch_size=4),
            sharded(data, batch_size=4, shuffle=True),
            reproducible(sharded(data, batch_size=2, shuffle=True)),
        ]
        predicted = [predict(training, loader) for loader in loaders]
        own = predict(training, [torch.zeros(1 + (rank or 0), 2)])
        return predicted, len(own["first"]), sorted(map(int, predicted[0]["samples"]))

    (one, own, _), (other, others, sizes) = forked(2, tmp_path, work)
    alone, *_ = work(None)
    assert (own, others) == (1, 2)  # of other data, those of the rank
    assert sum(sizes) == samples
    for predicted in (*one, *other, *alone):
        assert torch.equal(predicted["first"], whole[:, :1])
        assert torch.equal(predicted["pair"][0], whole[:, 0])


def test_no_output_at_all_is_refused_on_each_rank(tmp_path: Path) -> None:
    """Also where only a share is empty that says that it is not."""

    class Empty(Sampler[list[int]]):
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[list[int]]:
            return iter(())

    def work(rank: int | None) -> str:
        with pytest.raises(WorkloadError) as refused:
            predict(workload(parallel="ddp"), sharded(DataLoader(diabetes(), batch_sampler=Empty())))
        return str(refused.value)

    assert all(said.startswith("data gave no batch") for said in (*forked(2, tmp_path, work), work(None)))


class Augmented(Dataset[Any]):
    """Each sample is what the generators draw where it is read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        drawn = [random.random(), *numpy.random.random(1), *torch.rand(8).tolist()]
        return torch.tensor(drawn, dtype=torch.float32), torch.zeros(1)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_drawn_differs_between_ranks_and_what_decides_does_not(tmp_path: Path, workers: int) -> None:
    """Samples, also in workers, and dropout; but not what a callback draws, nor the seeds of commands."""

    def work(rank: int) -> Any:
        multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # it may have workers
        dropout, inputs, dropped, drawn = nn.Dropout(0.5), [], [], []
        model = nn.Sequential(dropout, nn.Linear(10, 1))

        def look(work: Supervised) -> float:
            inputs.append(work.inputs)
            dropped.append(dropout(torch.ones(50)))
            return 0.0

        @on(Phase.BATCH_END, needs={"seen"})
        def draw(state: State) -> None:
            drawn.append(state.random("own").random())

        loader = sharded(DataLoader(Augmented(), batch_size=4, generator=torch.Generator(), num_workers=workers))
        training = workload(loader, model=model, sensors={"seen": look}, parallel="ddp")
        run(start(training, epochs=1, seed=0), [draw, grad_noise(0.1)])
        return torch.cat(inputs), torch.cat(dropped), drawn, weights_of(model)

    (inputs, dropped, drawn, weights), (others, others_dropped, others_drawn, others_weights) = forked(
        2, tmp_path, work
    )
    assert not {*inputs.flatten().tolist()} & {*others.flatten().tolist()}
    assert not torch.equal(dropped, others_dropped)
    assert drawn == others_drawn
    assert len({*drawn}) == 2
    assert torch.equal(weights, others_weights)


class FailsOnRank1(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        if own_rank()[0] == 1 and i >= 4:
            raise OSError("the disk is gone")
        return diabetes()[i]


@pytest.mark.parametrize("measure", [evaluate, predict])
def test_a_rank_that_fails_in_an_evaluation_frees_the_others(tmp_path: Path, measure: Any) -> None:
    """With its name, in less time than they would wait."""

    def work(rank: int) -> Any:
        try:
            measure(workload(parallel="ddp"), sharded(FailsOnRank1(), batch_size=4))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    assert forked(2, tmp_path, work) == [
        "PeerError: rank 1 failed, and this rank ended with it: OSError: the disk is gone",
        "OSError: the disk is gone",
    ]
