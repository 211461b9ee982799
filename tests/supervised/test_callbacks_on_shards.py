"""Each callback of the library on a model that two ranks share out, beside one process on the union of their batches.

`python -m tests.supervised.test_callbacks_on_shards` writes the table of fsm_train/supervised/README.md from the cases.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.distributed as dist
from torch import nn

from fsm_train import Callback, callbacks
from fsm_train.callbacks import (
    accumulate,
    checkpoint,
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
from fsm_train.supervised.shares import whole
from tests.diabetes_training import sgd, workload
from tests.forked import forked
from tests.generated import marked, write_block
from tests.supervised.union import check_as_union, data_of, last_state

if dist.is_available():
    import torch.distributed.fsdp  # once, and not in each process

README = Path(__file__).parents[2] / "fsm_train" / "supervised" / "README.md"
AS_THE_UNION = "as one process on the union of the batches"
OWN_PARTS = "each rank's part of a batch is mixed by itself"


@attrs.frozen
class Case:
    """A callback on a sharded model.

    Attributes:
        make: the callbacks of a training.
        differs: the most by which a weight differs from that of one process on the union; None if it is another
            computation, so that only the ranks are compared with each other.
        says: what holds, for the table.
        refused: how the sentence begins with which it is refused.
        broken: a loss that is not finite comes to one rank.
        images: the inputs have a height and a width.
    """

    make: Callable[[], list[Callback[Any]]]
    differs: float | None = 1e-6
    says: str = AS_THE_UNION
    refused: str = ""
    broken: bool = False
    images: bool = False


CASES: Mapping[str, Case] = {
    "accumulate": Case(lambda: [accumulate(2)], says=f"{AS_THE_UNION}; each batch is reduced"),
    "checkpoint": Case(lambda: [checkpoint("checkpoints")], says=f"{AS_THE_UNION}; each rank writes its shares"),
    "clip_grad_norm": Case(lambda: [clip_grad_norm(0.5), clip_grad_norm(0.1, pattern="0.*", name="of one layer")]),
    "clip_grad_value": Case(lambda: [clip_grad_value(0.1)]),
    "compile_step": Case(lambda: [compile_step()], refused="a sharded model is gathered layer by layer in a step"),
    "cutmix": Case(lambda: [cutmix(0.5)], None, OWN_PARTS, images=True),
    "detect_anomaly": Case(lambda: [detect_anomaly()]),
    "diagnosing": Case(lambda: [diagnosing()]),
    "during": Case(lambda: [during(accumulate(2), epochs=(1, 2))], says="as the callback that it consults"),
    "early_stopping": Case(lambda: [early_stopping(patience=1, min_delta=10.0)]),
    "ema": Case(lambda: [ema(0.9)]),
    "freeze": Case(lambda: [freeze("0.*", until_epoch=1)]),
    "grad_noise": Case(
        lambda: [grad_noise(0.1)], says=f"{AS_THE_UNION}; each rank draws the noise of whole parameters"
    ),
    "limit": Case(lambda: [limit(batches=2, valid_batches=1)]),
    "micro_batches": Case(lambda: [micro_batches(2)], refused="a sharded model is gathered and its gradients are"),
    "mixed_precision": Case(lambda: [mixed_precision("bfloat16")], 1e-2),
    "mixup": Case(lambda: [mixup(0.5)], None, OWN_PARTS),
    "parallel": Case(lambda: [parallel("ddp")], says="nothing: `parallel=` says how it is shared"),
    "record": Case(lambda: [record("loss", "grad_norm", "weight")]),
    "reduce_on_plateau": Case(lambda: [reduce_on_plateau(patience=0, min_delta=10.0)]),
    "restore_best": Case(lambda: [restore_best(mode="max")]),
    "schedule": Case(lambda: [schedule(lr=cosine(9))]),
    "skip_nonfinite": Case(lambda: [skip_nonfinite()], broken=True),
    "stop_after": Case(lambda: [stop_after(steps=4)]),
    "stop_at": Case(lambda: [stop_at("valid_loss", 1e6)]),
    "stop_on_nonfinite": Case(lambda: [stop_on_nonfinite()], broken=True),
    "stop_pruned": Case(lambda: [stop_pruned("weight")]),
    "suspend_after": Case(lambda: [suspend_after(seconds=1e-6)]),
    "swa": Case(lambda: [swa(1)]),
    "torch_scheduler": Case(lambda: [torch_scheduler(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2))]),
    "validate_every": Case(lambda: [validate_every(steps=2)]),
    "weight_penalty": Case(lambda: [weight_penalty(l1=0.1, l2=0.1)]),
}
FURTHER: Mapping[str, Case] = {
    "float16": Case(lambda: [mixed_precision("float16", initial_scale=64.0)], 1e-2),
    "float16 in windows": Case(lambda: [mixed_precision("float16", initial_scale=64.0), accumulate(2)], 1e-2),
    "penalty in windows": Case(lambda: [weight_penalty(l1=0.1, l2=0.1), accumulate(2), clip_grad_norm(0.5)]),
    "ema after a validation": Case(lambda: [ema(0.5), validate_every(steps=1), restore_best()]),
    "skipping in windows": Case(lambda: [skip_nonfinite(), accumulate(2), weight_penalty(l2=0.1)], broken=True),
}
"""Several at once, and other settings."""


def seven() -> nn.Module:
    """A model whose layers have odd lengths: the last one's bias is all on the first of two ranks."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 7), nn.Tanh(), nn.Linear(7, 1))


def weights(model: nn.Module) -> torch.Tensor:
    """All parameters in one vector."""
    return torch.cat([whole(parameter.detach()).flatten() for parameter in model.parameters()])


def size_of_last(work: Any) -> torch.Tensor:
    """A sensor of a part of the model, which gives a shared number."""
    return work.model[-1].weight.square().sum()  # type: ignore[no-any-return]


def trained(case: Case, rank: int | None) -> Any:
    """The last state and the weights of a rank, or why it was refused; None for the union."""
    train, valid = data_of(case, rank)
    model = nn.Sequential(nn.Flatten(), *seven()) if case.images else seven()
    work = workload(
        train,
        model=model,
        optimizer=lambda _: sgd,
        valid=valid,
        sensors={"weight": size_of_last},
        parallel=None if rank is None else "fsdp",
    )
    try:  # of a sharded model some are refused
        final = last_state(case, work, rank)
    except Exception as error:
        if case.refused and case.refused in str(error):
            return str(error), None
        raise
    return final, weights(work.model)


ALL = {**CASES, **FURTHER}


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """By rank and name, the last state and the weights: one process group for all of them."""
    if not dist.is_available():
        pytest.skip("this torch has no torch.distributed")

    folder = tmp_path_factory.mktemp("ranks")

    def work(rank: int) -> Any:
        os.chdir(folder)
        return {name: trained(case, rank) for name, case in ALL.items()}

    return forked(2, folder, work)


@pytest.mark.parametrize("name", ALL)
def test_callback_decides_on_shares_as_on_the_union(
    name: str, on_two_ranks: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights to rounding, the number of steps and samples, the metrics, and why it ended; or it is refused."""
    monkeypatch.chdir(tmp_path)
    case = ALL[name]
    one, other = (of_rank[name] for of_rank in on_two_ranks)
    if not case.refused:
        check_as_union(case, one, other, trained)
        return
    assert case.refused in one[0]
    assert one == other


def table() -> str:
    """The rows of the README."""
    says = {name: f"refused: {case.refused} …" if case.refused else case.says for name, case in CASES.items()}
    rows = [f"| `{name}` | {says[name]} |" for name in callbacks.__all__]
    return "\n".join(["| callback | on a sharded model |", "|---|---|", *rows])


def test_table_of_the_readme_has_a_row_for_each_callback() -> None:
    """And says what the cases here test."""
    assert CASES.keys() == {*callbacks.__all__}
    assert marked("callbacks", table()) in README.read_text()


if __name__ == "__main__":
    write_block(README, "callbacks", table())
