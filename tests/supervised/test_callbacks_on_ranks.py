"""Each callback of the library on two ranks, beside one process on the union of their batches.

`python -m tests.supervised.test_callbacks_on_ranks` writes the table of fsm_train/worlds/README.md from the same cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.distributed as dist
from torch import nn

from fsm_train import Callback, callbacks, run, start
from fsm_train.callbacks import (
    accumulate,
    clip_grad_norm,
    clip_grad_value,
    compile_step,
    cutmix,
    detect_anomaly,
    diagnosing,
    during,
    early_stopping,
    ema,
    freeze,
    grad_noise,
    limit,
    micro_batches,
    mixed_precision,
    mixup,
    parallel,
    record,
    reduce_on_plateau,
    restore_best,
    schedule,
    skip_nonfinite,
    stop_after,
    stop_at,
    stop_on_nonfinite,
    stop_pruned,
    suspend_after,
    swa,
    torch_scheduler,
    validate_every,
    weight_penalty,
)
from fsm_train.schedules import cosine
from tests.diabetes_training import batches, linear, net, weights_of, workload
from tests.forked import forked
from tests.generated import marked, write_block
from tests.supervised.union import check_as_union, data_of, last_state

README = Path(__file__).parents[2] / "fsm_train" / "worlds" / "README.md"
AS_THE_UNION = "as one process on the union of the batches"
OWN_PARTS = "each rank's part of a batch is mixed by itself: said once"


@attrs.frozen
class Case:
    """A callback on several ranks.

    Attributes:
        make: the callbacks of a training.
        differs: the most by which a weight differs from that of one process on the union; None if it is another
            computation, so that only the ranks are compared with each other.
        with_ddp: what holds there, for the table.
        broken: a loss that is not finite comes to one rank.
        images: the inputs have a height and a width.
        slow: it takes seconds, and is tried among the long tests.
    """

    make: Callable[[], list[Callback[Any]]]
    differs: float | None = 1e-6
    with_ddp: str = AS_THE_UNION
    broken: bool = False
    images: bool = False
    slow: bool = False


CASES: Mapping[str, Case] = {
    "accumulate": Case(lambda: [accumulate(2)], with_ddp=f"{AS_THE_UNION}, with one reduction for each step"),
    "clip_grad_norm": Case(lambda: [clip_grad_norm(0.5)]),
    "clip_grad_value": Case(lambda: [clip_grad_value(0.1)]),
    "compile_step": Case(lambda: [compile_step(backend="eager")], slow=True),
    "cutmix": Case(lambda: [cutmix(0.5)], None, OWN_PARTS, images=True),
    "detect_anomaly": Case(lambda: [detect_anomaly()]),
    "diagnosing": Case(lambda: [diagnosing()]),
    "during": Case(lambda: [during(accumulate(2), epochs=(1, 2))], with_ddp="as the callback that it consults"),
    "early_stopping": Case(lambda: [early_stopping(patience=1, min_delta=10.0)]),
    "ema": Case(lambda: [ema(0.9)]),
    "freeze": Case(lambda: [freeze("weight", until_epoch=1)]),
    "grad_noise": Case(lambda: [grad_noise(0.1)]),
    "limit": Case(lambda: [limit(batches=2, valid_batches=1)]),
    "micro_batches": Case(lambda: [micro_batches(2)]),
    "mixed_precision": Case(lambda: [mixed_precision("bfloat16")], 1e-2),
    "mixup": Case(lambda: [mixup(0.5)], None, OWN_PARTS),
    "parallel": Case(lambda: [parallel("ddp")], with_ddp='as `Supervised(parallel="ddp")`'),
    "record": Case(lambda: [record("loss", "grad_norm")]),
    "reduce_on_plateau": Case(lambda: [reduce_on_plateau(patience=0, min_delta=10.0)]),
    "restore_best": Case(lambda: [restore_best(mode="max")]),
    "schedule": Case(lambda: [schedule(lr=cosine(9))]),
    "skip_nonfinite": Case(lambda: [skip_nonfinite()], broken=True),
    "stop_after": Case(lambda: [stop_after(steps=4)]),
    "stop_at": Case(lambda: [stop_at("valid_loss", 1e6)]),
    "stop_on_nonfinite": Case(lambda: [stop_on_nonfinite()], broken=True),
    "stop_pruned": Case(lambda: [stop_pruned("pruned")]),
    "suspend_after": Case(lambda: [suspend_after(seconds=1e-6)]),
    "swa": Case(lambda: [swa(1)], with_ddp=f"{AS_THE_UNION}; batch norm is fitted to the batches of all ranks"),
    "torch_scheduler": Case(lambda: [torch_scheduler(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2))]),
    "validate_every": Case(lambda: [validate_every(steps=2)]),
    "weight_penalty": Case(lambda: [weight_penalty(l1=0.1, l2=0.1)]),
}
ELSEWHERE: Mapping[str, str] = {
    "checkpoint": "one folder for all ranks, restored bit for bit",
}
"""What holds of those whose tests stand elsewhere."""


def trained(case: Case, rank: int | None) -> Any:
    """The last state and the weights of a rank; None for the union."""
    train, valid = data_of(case, rank)
    model = nn.Sequential(nn.Flatten(), linear()) if case.images else linear()
    work = workload(
        train,
        model=model,
        valid=valid,
        parallel=None if rank is None else "ddp",
        sensors={"pruned": lambda work: float(rank != 1)},
    )
    return last_state(case, work, rank), weights_of(model)


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """By rank and name, the last state and the weights: one process group for all of them."""
    if not dist.is_available():
        pytest.skip("this torch has no torch.distributed")

    def work(rank: int) -> Any:
        return {name: trained(case, rank) for name, case in CASES.items() if not case.slow}

    return forked(2, tmp_path_factory.mktemp("ranks"), work)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.slow])
def test_callback_decides_the_same_on_all_ranks_and_as_on_the_union(name: str, on_two_ranks: list[Any]) -> None:
    """Weights to rounding, the number of steps and samples, the metrics, and why it ended."""
    check_as_union(CASES[name], *(of_rank[name] for of_rank in on_two_ranks), trained)


@pytest.mark.long(alone=True)
@pytest.mark.filterwarnings("ignore")  # of torch.compile
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.slow])
def test_slow_callback_decides_the_same_too(name: str, tmp_path: Path) -> None:
    """What is compiled is compiled on each rank."""
    check_as_union(CASES[name], *forked(2, tmp_path, lambda rank: trained(CASES[name], rank)), trained)


@pytest.mark.parametrize("make", [lambda: ema(0.5), lambda: ema(0.5, buffers="average"), lambda: swa(0)])
def test_all_ranks_validate_an_average_with_the_same_buffers(make: Callable[[], Any], tmp_path: Path) -> None:
    """Those of rank 0: each rank has seen other batches."""

    def work(rank: int) -> Any:
        seen: list[Any] = []

        def look(work: Any) -> float:
            seen.append(torch.cat([buffer.flatten().double() for buffer in work.model.buffers()]))
            return 0.0

        mine, valid = batches(8, 7, 6, 5)[2 * rank : 2 * rank + 2], batches(8, 6, skip=30)[rank : rank + 1]
        work = workload(mine, model=net(), valid=valid, measures={"look": look}, parallel="ddp")
        run(start(work, epochs=2, seed=0), [make()])
        return torch.stack(seen), work.model.state_dict()

    (one, model), (other, as_model) = forked(2, tmp_path, work)
    assert torch.equal(one, other)
    assert all(torch.equal(model[name], as_model[name]) for name in model)


def test_a_rank_that_fails_while_batch_norm_is_fitted_frees_the_others(tmp_path: Path) -> None:
    """They wait for its statistics."""

    class Fails:
        passes = 0

        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            yield from batches(8, 7)
            if self.passes == 2:
                raise OSError("the disk is gone")

    def work(rank: int) -> str:
        try:
            run(start(workload(Fails() if rank else batches(6, 5), model=net(), parallel="ddp"), epochs=1), [swa(0)])
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    assert forked(2, tmp_path, work) == [
        "PeerError: rank 1 failed, and this rank ended with it: OSError: the disk is gone",
        "OSError: the disk is gone",
    ]


def test_batch_norm_of_an_average_is_fitted_to_the_batches_of_all_ranks(tmp_path: Path) -> None:
    """To the mean over all of them, also where one rank has more."""
    data = batches(8, 7, 6, 5, 9)

    def work(rank: int) -> Any:
        mine = data[2 * rank : 2 + 3 * rank]
        work = workload(mine, model=net(), parallel="ddp")
        run(start(work, epochs=2, seed=0), [limit(batches=2), swa(0)])
        return work.model.state_dict()

    one, other = forked(2, tmp_path, work)
    assert all(torch.equal(one[name], other[name]) for name in one)

    model = net()
    model.load_state_dict(one)
    inner = model[0]
    norms = [inner(inputs) for inputs, _ in data]
    mean = torch.stack([each.mean(dim=0) for each in norms]).mean(dim=0)
    variance = torch.stack([each.var(dim=0) for each in norms]).mean(dim=0)
    torch.testing.assert_close(one["1.running_mean"], mean.detach())
    torch.testing.assert_close(one["1.running_var"], variance.detach())
    assert one["1.num_batches_tracked"] == len(data)


def table() -> str:
    """The rows of the README."""
    with_ddp = {**ELSEWHERE, **{name: case.with_ddp for name, case in CASES.items()}}
    rows = [f"| `{name}` | yes | {with_ddp[name]} |" for name in callbacks.__all__]
    return "\n".join(["| callback | single | DDP |", "|---|---|---|", *rows])


def test_table_of_the_readme_has_a_row_for_each_callback() -> None:
    """And says what the cases here test."""
    assert {*CASES, *ELSEWHERE} == {*callbacks.__all__}
    assert marked("callbacks", table()) in README.read_text()


if __name__ == "__main__":
    write_block(README, "callbacks", table())
