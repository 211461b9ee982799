"""Going on with a workload that is not as it was: what torch would take without a word is refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from fsm_train import Flag, Phase, State, Supervised, Transition, WorkloadError, find_lr, on, restore, run, start
from fsm_train.callbacks import checkpoint
from fsm_train.supervised.param_groups import load_optimizer
from tests.checkpoints.awkward_training import Counts
from tests.checkpoints.comparison import differences, end_of
from tests.models import diabetes


def _model(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, width), nn.BatchNorm1d(width), nn.Dropout(0.2), nn.Linear(width, 1))


def _sgd(*modules: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for module in modules for p in module.parameters()], lr=0.01, momentum=0.9)


def _work(loss: Any = None, **settings: Any) -> Supervised:
    model, loss = _model(), loss or nn.MSELoss()
    optimizer = _sgd(model, *([loss] if isinstance(loss, nn.Module) else []))
    return Supervised(model, optimizer, loss, DataLoader(diabetes(), 64, shuffle=True), **settings)


Made = Callable[[nn.Module], tuple[nn.Module, torch.optim.Optimizer]]


@pytest.mark.parametrize(
    ("made", "error", "sentence"),
    [
        (
            lambda model: (model, torch.optim.Adam(model.parameters())),
            WorkloadError,
            "the optimizer is another one than was saved.*: it is of the class Adam, and was of SGD",
        ),
        (
            lambda model: (model, torch.optim.SGD([{"params": [p]} for p in model.parameters()])),
            WorkloadError,
            "it has 6 parameter groups, and had 1",
        ),
        (
            lambda model: (model, torch.optim.SGD([*model.parameters()][::-1])),
            WorkloadError,
            "its group 0 has model.3.bias in the place of model.0.weight",
        ),
        (
            lambda model: (model, torch.optim.SGD([*model.parameters()][:-1])),
            WorkloadError,
            "its group 0 has nothing in the place of model.3.bias",
        ),
        (
            lambda model: (model.half(), _sgd(model)),
            WorkloadError,
            "0.weight is of type torch.float16 and was saved as torch.float32",
        ),
        (
            lambda model: ((wider := _model(5)), _sgd(wider)),
            RuntimeError,
            r"(?s)size mismatch for 0.weight: .*\[4, 10\]\) from checkpoint.*\[5, 10\]",
        ),
    ],
)
def test_another_model_or_optimizer_is_refused(
    made: Made, error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    """With what was found and what was expected; numbers of one are never put into the other."""
    run(start(_work(), epochs=1, seed=0), [checkpoint(tmp_path)])
    model, optimizer = made(_model())

    with pytest.raises(error, match=sentence):
        restore(tmp_path, Supervised(model, optimizer, nn.MSELoss(), DataLoader(diabetes(), 64)))


def test_a_loss_that_is_a_module_now_is_refused(tmp_path: Path) -> None:
    """Nothing was saved of it."""
    run(start(_work(nn.functional.mse_loss), epochs=1, seed=0), [checkpoint(tmp_path)])

    with pytest.raises(WorkloadError, match="nothing was saved of the loss, which is a module now"):
        restore(tmp_path, _work(nn.MSELoss()))


def test_validation_that_was_not_there_is_refused(tmp_path: Path) -> None:
    """Its course would be another one."""
    run(start(_work(), epochs=1, seed=0), [checkpoint(tmp_path)])

    with pytest.raises(WorkloadError, match="was trained without validation data, and this workload is with"):
        restore(tmp_path, _work(valid=DataLoader(diabetes(), 200)))


class KeepsItsPlace(DataLoader[Any]):
    """A loader that says where it is, as torchdata's StatefulDataLoader does."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """It is somewhere else now."""


def _over(train: Any) -> Supervised:
    model = _model()
    return Supervised(model, _sgd(model), nn.MSELoss(), train)


@pytest.mark.parametrize(
    ("then", "now", "sentence"),
    [
        (
            lambda: _work(extra={"counts": Counts()}),
            _work,
            "extra 'counts': it is in the checkpoint, and not brought back since the workload has none of this name",
        ),
        (
            _work,
            lambda: _work(extra={"counts": Counts()}),
            "extra 'counts': it is not in the checkpoint, and begins as it is now",
        ),
        (
            _work,
            lambda: _over(DataLoader(diabetes(), 50, shuffle=True)),
            "the training data: it has 9 batches an epoch, and had 7",
        ),
        (
            _work,
            lambda: _over(KeepsItsPlace(diabetes(), 64, shuffle=True)),
            "the training data: it is a KeepsItsPlace, and was a DataLoader",
        ),
        (
            _work,
            lambda: _over(DataLoader(diabetes(), 64, shuffle=True, generator=torch.Generator())),
            "the generator train.generator: it was not saved, and goes on from where it is",
        ),
    ],
)
def test_what_is_not_as_it_was_is_said(
    then: Callable[[], Supervised],
    now: Callable[[], Supervised],
    sentence: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The training goes on, and its notes say what of it is another one now; so does a warning."""
    run(start(then(), epochs=1, seed=0), [checkpoint(tmp_path)])
    state = restore(tmp_path, now())

    assert [note for note in state.notes if sentence in note]
    assert sentence in caplog.text
    assert run(state, []).phase is Phase.DONE


class Growing(Sampler[int]):
    """A curriculum: so many samples as the epoch says."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return 64 * (2 + self.epoch)


def test_a_sampler_that_grows_with_the_epochs_is_no_other_data(tmp_path: Path) -> None:
    """Its length is compared with what it was before it was told of an epoch."""
    growing = lambda: _over(DataLoader(diabetes(), 64, sampler=Growing()))
    ended = run(start(growing(), epochs=2, seed=0), [checkpoint(tmp_path)])

    assert ended.iteration == 2 + 3
    assert restore(tmp_path, growing()).notes == ()


# ---------------------------------------------------------------------- a loss with parameters


class Scaled(nn.Module):
    """A loss whose scale is learned, with a running mean that is in no state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        error = nn.functional.mse_loss(output, target)
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * error)
        return error * torch.exp(-self.log_scale) + self.log_scale + 0.001 * self.mean


def _of_loss(work: Supervised) -> dict[str, float]:
    loss = work.loss_fn
    assert isinstance(loss, Scaled)
    return {"scale": loss.log_scale.item(), "mean": loss.mean.item()}


def test_parameters_and_buffers_of_a_loss_are_gone_on_with(tmp_path: Path) -> None:
    """As those of the model are."""

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 10 else None

    undisturbed = _work(Scaled())
    through = end_of(undisturbed, run(start(undisturbed, epochs=3, seed=0), []))
    run(start(_work(Scaled()), epochs=3, seed=0), [checkpoint(tmp_path), leave])
    work = _work(Scaled())
    end = end_of(work, run(restore(tmp_path, work), [checkpoint(tmp_path)]))

    assert differences((through, []), (end, [])) == []
    assert _of_loss(work) == _of_loss(undisturbed)
    assert _of_loss(work)["scale"] != 0.0


def test_looking_for_a_rate_leaves_no_trace_in_a_loss_or_an_extra() -> None:
    """Parameters and buffers of the loss, their gradients, and parts of one's own are as they were."""
    extra = Counts()
    work = _work(Scaled(), extra={"counts": extra})
    work.model.register_forward_hook(lambda *args: setattr(extra, "calls", extra.calls + 1))
    for parameter in work.parameters:
        parameter.grad = torch.full_like(parameter, 0.5)
    state = start(work, epochs=1, seed=0)
    before = end_of(work, state)

    find_lr(state, low=1e-5, high=1e-2, steps=5)

    assert differences((before, []), (end_of(work, state), [])) == []
    assert _of_loss(work) == {"scale": 0.0, "mean": 0.0}
    assert extra.calls == 0
    assert all(torch.equal(p.grad, torch.full_like(p, 0.5)) for p in work.parameters if p.grad is not None)


def test_rate_that_is_a_tensor_stays_where_it_was() -> None:
    """A checkpoint is read to the CPU; a step that is captured on another device could not use it there."""
    saved = torch.optim.Adam(_model().parameters(), lr=torch.tensor(0.1), capturable=False, foreach=False).state_dict()
    optimizer = torch.optim.Adam(_model().parameters(), foreach=False)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.2, device="meta")

    load_optimizer(optimizer, saved)

    assert optimizer.param_groups[0]["lr"].device.type == "meta"
