"""The weights of a score: what is loaded from a checkpoint has the score that was recorded."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import (
    CheckpointError,
    NoCheckpointError,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    evaluate,
    extend,
    load_weights,
    on,
    restore,
    run,
    start,
)
from fsm_train.callbacks import checkpoint, ema, limit, swa
from fsm_train.checkpoints import api
from fsm_train.checkpoints.manifest import Score, list_folder
from fsm_train.commands import SaveCheckpoint

torch.manual_seed(0)
INPUTS = torch.randn(400, 20)
TARGET = (INPUTS[:, 0] + torch.randn(400) > 0).long()


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == target).float().mean()


class Net(nn.Module):
    """With batch norm, dropout, a buffer outside the state_dict and, if asked for, in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2))
        self.register_buffer("mean", torch.zeros(20), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs.to(self.mean.dtype)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * inputs.mean(0)
        scores: torch.Tensor = self.body(inputs - self.mean)
        return scores


def work(dtype: torch.dtype = torch.float32, wrapper: Any = lambda model: model) -> Supervised:
    torch.manual_seed(0)
    model = wrapper(Net().to(dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    train = DataLoader(TensorDataset(INPUTS[:200], TARGET[:200]), batch_size=20)
    valid = DataLoader(TensorDataset(INPUTS[200:], TARGET[200:]), batch_size=200)
    return Supervised(model, optimizer, nn.CrossEntropyLoss(), train, valid, metrics={"accuracy": accuracy})


AVERAGES: dict[str, Any] = {"model": (), "ema": (ema(0.9),), "swa": (swa(1),)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("monitor", "mode"), [("valid_accuracy", "max"), ("valid_loss", "min")])
@pytest.mark.parametrize("average", AVERAGES)
def test_best_on_disk_has_its_score(average: str, monitor: str, mode: Any, dtype: Any, tmp_path: Path) -> None:
    """With an average and without, by either direction, with each kind of buffer, in half precision too."""
    files = checkpoint(tmp_path, monitor=monitor, mode=mode, keep=1)
    final = run(start(work(dtype), epochs=6), [*AVERAGES[average], files])
    best = {"max": max, "min": min}[mode](metrics[monitor] for metrics in final.history)
    fresh = work(dtype)
    loaded = load_weights(tmp_path, fresh.model)

    assert loaded["metrics"][monitor] == best
    assert evaluate(fresh)[monitor] == best
    # Of swa the first epoch is measured without an average.
    assert loaded["weights"] == (average if average != "swa" or loaded["epoch"] > 1 else "model")


def test_score_of_the_training_is_one_of_the_model(tmp_path: Path) -> None:
    """train_loss is measured with the weights that are trained, also where validations use an average."""
    run(start(work(), epochs=3), [ema(0.9), checkpoint(tmp_path, monitor="train_loss", keep=1)])

    assert load_weights(tmp_path, work().model)["weights"] == "model"


def test_last_and_named_checkpoints(tmp_path: Path) -> None:
    """The metrics say what the loaded weights have; a path to a checkpoint is that checkpoint."""
    final = run(start(work(), epochs=4), [ema(0.9), checkpoint(tmp_path, monitor="valid_loss", keep=4)])
    for which, epoch in (("last", 4), ("epoch-00002", 2)):
        fresh = work()
        loaded = load_weights(tmp_path, fresh.model, which=which)

        assert (loaded["name"], loaded["epoch"], loaded["step"]) == (f"epoch-{epoch:05d}", epoch, 10 * epoch)
        assert evaluate(fresh) == {name: v for name, v in final.history[epoch - 1].items() if name[0] == "v"}
    assert load_weights(tmp_path / "epoch-00003", work().model)["epoch"] == 3
    measured = {name: value for name, value in final.history[-1].items() if name.startswith("valid_")}
    assert load_weights(tmp_path, work().model, which="last")["metrics"] == measured


def test_last_without_a_monitor_has_what_was_measured(tmp_path: Path) -> None:
    """The average that the last validation used, though the checkpoint has no score."""
    final = run(start(work(), epochs=2), [ema(0.9), checkpoint(tmp_path)])
    fresh = work()
    loaded = load_weights(tmp_path, fresh.model, which="last")

    assert loaded["weights"] == "ema"
    assert evaluate(fresh)["valid_loss"] == final.metrics["valid_loss"]


def test_what_was_measured_with_is_known_after_a_resume(tmp_path: Path) -> None:
    """A training that is resumed at the end of an epoch saves again what it had measured."""
    callbacks = [ema(0.9), checkpoint(tmp_path / "one")]
    run(start(work(), epochs=2), callbacks)
    again = work()
    state = extend(restore(tmp_path / "one", again), epochs=1)

    @on(Phase.BATCH_END, commands={SaveCheckpoint})
    def save(state: State) -> Transition:
        return Transition(commands=(SaveCheckpoint(str(tmp_path / "two"), "now"),))

    run(state, [ema(0.9), limit(batches=1), save])

    assert load_weights(tmp_path / "two", work().model, which="last")["weights"] == "ema"


def test_restoring_to_go_on_stays_exact(tmp_path: Path) -> None:
    """What restore brings back are the weights that are trained, not those of the score."""
    callbacks = [ema(0.9), checkpoint(tmp_path, monitor="valid_loss")]
    once = work()
    run(start(once, epochs=4), callbacks)
    first = work()
    run(start(first, epochs=3), [ema(0.9), checkpoint(tmp_path / "three")])
    second = work()
    run(extend(restore(tmp_path / "three", second), epochs=1), [ema(0.9)])

    assert all(torch.equal(a, b) for a, b in zip(once.model.parameters(), second.model.parameters(), strict=True))


def test_manifest_records_the_score(tmp_path: Path) -> None:
    """Which metric, in which direction, its value, and with what it was measured; null where it is not finite."""
    final = run(start(work(), epochs=2), [ema(0.9), checkpoint(tmp_path, monitor="valid_loss", keep=1)])
    best = min(final.history, key=lambda metrics: metrics["valid_loss"])
    body = json.loads((tmp_path / load_weights(tmp_path, work().model)["name"] / "manifest").read_text().split("\n")[1])

    assert body["place"]["score"] == {
        "monitor": "valid_loss", "mode": "min", "value": best["valid_loss"], "weights": "ema",
    }  # fmt: skip
    command = SaveCheckpoint("", "", monitor="valid_loss")
    assert api.score_of(command, final, "model").value == final.metrics["valid_loss"]
    assert api.score_of(SaveCheckpoint("", "", monitor="valid_f1"), final, "model").value is None
    assert api.score_of(SaveCheckpoint("", ""), final, "model") is None


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("file", ["tensors.pt", "state.json", "manifest"])
def test_damaged_best_is_passed_over_and_said(file: str, tmp_path: Path) -> None:
    """As restore does: a warning names the damaged one, and the next best is loaded."""
    run(start(work(), epochs=3), [checkpoint(tmp_path, monitor="valid_loss")])
    best, second, *_ = sorted(list_folder(tmp_path).checkpoints, key=lambda c: c.save_point.score.value)  # type: ignore[union-attr]
    flip(best.path / file)

    with pytest.warns(RuntimeWarning, match=f"{best.path.name}.* damaged"):
        assert load_weights(tmp_path, work().model)["name"] == second.path.name
    with pytest.raises(CheckpointError, match="damaged"):
        load_weights(tmp_path, work().model, which=best.path.name)
    flip(best.path / file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_weights(tmp_path, work().model)["name"] == best.path.name


def test_what_is_best_is_not_guessed(tmp_path: Path) -> None:
    """No checkpoint, none with a score, scores of two metrics, no such name: each is a sentence."""
    model = work().model
    with pytest.raises(NoCheckpointError, match="no checkpoint in .*nowhere"):
        load_weights(tmp_path / "nowhere", model)
    with pytest.raises(NoCheckpointError, match="there is no checkpoint in"):
        load_weights(tmp_path, model)
    run(start(work(), epochs=1), [checkpoint(tmp_path)])
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* has a score: checkpoint\(folder, monitor="):
        load_weights(tmp_path, model)
    with pytest.raises(NoCheckpointError, match="no checkpoint 'epoch-7' in .*: there are epoch-00001"):
        load_weights(tmp_path, model, which="epoch-7")
    with pytest.raises(NoCheckpointError, match="is one checkpoint, and not a folder"):
        load_weights(tmp_path / "epoch-00001", model, which="epoch-7")
    run(start(work(), epochs=1), [checkpoint(tmp_path, monitor="valid_loss")])
    assert load_weights(tmp_path, model)["name"] == "epoch-00001"


def test_two_metrics_in_one_folder(tmp_path: Path) -> None:
    """Which of them is meant is asked for."""
    for name, monitor in (("a", "valid_loss"), ("b", "valid_accuracy")):

        @on(Phase.EPOCH_END, commands={SaveCheckpoint})
        def save(state: State, name: str = name, monitor: str = monitor) -> Transition:
            return Transition(commands=(SaveCheckpoint(str(tmp_path), name, monitor=monitor),))

        run(start(work(), epochs=1), [save])

    with pytest.raises(CheckpointError, match=r"chosen by valid_accuracy \(min\) and by valid_loss \(min\): name one"):
        load_weights(tmp_path, work().model)
    assert load_weights(tmp_path, work().model, which="a")["name"] == "a"


def test_checkpoint_that_is_called_best(tmp_path: Path) -> None:
    """Where no checkpoint has a score, "best" is the one of this name."""

    @on(Phase.EPOCH_END, commands={SaveCheckpoint})
    def save(state: State) -> Transition:
        return Transition(commands=(SaveCheckpoint(str(tmp_path), "best"),))

    run(start(work(), epochs=1), [save])

    assert load_weights(tmp_path, work().model)["name"] == "best"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (lambda: nn.Linear(20, 2), r"holds another model.*: only the model has bias, weight, and only the checkpoint"),
        (lambda: nn.DataParallel(Net()), "only the model has module.body.0.bias"),
        (lambda: Net().half(), "is of type torch.float16 and was saved as torch.float32"),
        (lambda: _wider(Net()), r"body.4.weight has the shape \(2, 32\) there, and \(3, 32\) in this model"),
        (work, "and not into a Supervised: give work.model"),
    ],
)
def test_model_that_does_not_fit_is_refused_and_unchanged(model: Any, sentence: str, tmp_path: Path) -> None:
    """Names are not matched by guess, and no half of a checkpoint is loaded."""
    run(start(work(), epochs=1), [checkpoint(tmp_path, monitor="valid_loss")])
    given = model()
    before = [p.detach().clone() for p in given.parameters()] if isinstance(given, nn.Module) else []

    with pytest.raises(WorkloadError, match=sentence):
        load_weights(tmp_path, given)
    assert not before or all(torch.equal(a, b) for a, b in zip(before, given.parameters(), strict=True))


def test_which_is_a_text(tmp_path: Path) -> None:
    """Anything else is refused before the folder is looked at."""
    with pytest.raises(TypeError, match="which=3: write 'best', 'last' or the name of a checkpoint"):
        load_weights(tmp_path, Net(), which=3)  # type: ignore[arg-type]


def _wider(model: Net) -> Net:
    model.body[4] = nn.Linear(32, 3)
    return model


def test_names_of_a_wrapped_model_are_as_they_are(tmp_path: Path) -> None:
    """What was trained in a wrapper is loaded into that wrapper."""
    final = run(start(work(wrapper=nn.DataParallel), epochs=2), [checkpoint(tmp_path, monitor="valid_loss", keep=1)])
    fresh = work(wrapper=nn.DataParallel)
    load_weights(tmp_path, fresh.model)

    assert evaluate(fresh)["valid_loss"] == min(metrics["valid_loss"] for metrics in final.history)


def test_weights_of_a_loss_that_are_left_out_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bare model has no place for them; the average of the model is loaded without that of the loss."""
    model, loss = nn.Linear(4, 1), nn.Sequential(nn.Linear(1, 1))

    def distance(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(loss(output), target)

    batches = [(torch.randn(8, 4), torch.randn(8, 1))]
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    run(start(Supervised(model, optimizer, distance, batches, batches), epochs=2), [ema(0.9), checkpoint(tmp_path)])
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fsm_train"):
        loaded = load_weights(tmp_path, nn.Linear(4, 1), which="last")

    assert any("holds weights of the loss too" in message for message in caplog.messages)
    assert loaded["left_out"] == ("loss",)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.functional.mse_loss])
def test_nothing_is_left_out_where_the_loss_has_no_weights(
    loss: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of such a loss nothing is said."""
    model, batches = nn.Linear(4, 1), [(torch.randn(8, 4), torch.randn(8, 1))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run(start(Supervised(model, optimizer, loss, batches), epochs=1), [checkpoint(tmp_path)])
    caplog.clear()

    assert load_weights(tmp_path, nn.Linear(4, 1), which="last")["left_out"] == ()
    assert caplog.messages == []


def test_rank_of_scores() -> None:
    """The largest rank is the best; a score that was not measured is the worst."""
    assert Score("a", "max", 2.0).rank > Score("a", "max", 1.0).rank > Score("a", "max", None).rank
    assert Score("a", "min", 1.0).rank > Score("a", "min", 2.0).rank > Score("a", "min", None).rank
