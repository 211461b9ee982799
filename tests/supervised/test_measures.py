"""Measures: functions of the training at the end of a validation."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import (
    Callback,
    Evaluation,
    Flag,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    evaluate,
    iterate,
    on,
    over_all,
    run,
    start,
)
from fsm_train.callbacks import early_stopping, ema, validate_every
from tests.killed import killed_and_resumed
from tests.models import Noisy, digits, same_weights

DATA = digits(200)
KNOWN, ASKED = TensorDataset(*DATA[:140]), TensorDataset(*DATA[140:])
KNOWN_PAIR = [(KNOWN.tensors[0], KNOWN.tensors[0])]


def _autoencoder(**settings: Any) -> Supervised:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 4), nn.Dropout(0.2), nn.Linear(4, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    images = TensorDataset(KNOWN.tensors[0], KNOWN.tensors[0])
    train = DataLoader(images, batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(3))
    valid = settings.pop("valid", [(ASKED.tensors[0], ASKED.tensors[0])])
    return Supervised(model, optimizer, settings.pop("loss_fn", nn.MSELoss()), train, valid, **settings)


# ------------------------------------------------------------------------------- nearest neighbours


def _knn(work: Any) -> float:
    encode = work.model[0]
    neighbours = KNeighborsClassifier(3).fit(encode(KNOWN.tensors[0]), KNOWN.tensors[1])
    return float(neighbours.score(encode(ASKED.tensors[0]), ASKED.tensors[1]))


def test_nearest_neighbours_at_the_end_of_each_validation(tmp_path: Path) -> None:
    """As a plain loop has them, which they leave alone, also over a kill in mid-epoch; they can be monitored."""
    plain, scores = _autoencoder(), []
    torch.manual_seed(0)
    for _ in range(3):
        for images, target in plain.train:
            nn.functional.mse_loss(plain.model(images), target).backward()
            plain.optimizer.step()
            plain.optimizer.zero_grad()
        with torch.no_grad():
            scores.append(_knn(plain))

    def with_neighbours() -> Supervised:
        return _autoencoder(measures={"knn": _knn})

    callbacks = [early_stopping("valid_knn", patience=9, mode="max")]
    work = with_neighbours()
    final = run(start(work, epochs=3, seed=0), callbacks)
    resumed, other = killed_and_resumed(with_neighbours, tmp_path, 7, callbacks, epochs=3)

    assert [metrics["valid_knn"] for metrics in final.history] == scores
    assert len(set(scores)) > 1
    assert [metrics["valid_knn"] for metrics in resumed.history] == scores
    assert same_weights(work.model, plain.model)
    assert same_weights(other.model, plain.model)
    assert evaluate(work)["valid_knn"] == scores[-1]


# ------------------------------------------------------------------------------- what it may do


def _rude(work: Supervised) -> float:
    """Draws from everything, trains a little, and reads the training data."""
    assert not torch.is_grad_enabled()
    assert not any(module.training for module in work.model.modules())
    assert (work.inputs, work.target, work.output) == (None, None, None)
    random.random()
    work.model.train()
    work.model(next(iter(work.train))[0])
    return float(torch.rand(()))


@pytest.mark.parametrize("callbacks", [[], [validate_every(steps=2)], [ema(0.5)]], ids=["epoch", "steps", "average"])
def test_a_measure_changes_nothing_of_the_training(callbacks: list[Callback[Any]]) -> None:
    """Whatever it draws, sets or reads; each draws the same."""
    ours, theirs = _autoencoder(measures={"one": _rude, "other": _rude}), _autoencoder()
    final = run(start(ours, epochs=2, seed=0), callbacks)
    plain = run(start(theirs, epochs=2, seed=0), callbacks)

    assert same_weights(ours.model, theirs.model)
    assert {name: final.metrics[name] for name in plain.metrics} == plain.metrics
    assert final.metrics["valid_one"] == final.metrics["valid_other"]


def test_a_measure_reads_loaders_with_persistent_workers() -> None:
    """By workers of its own: those of the training stay in their pass, and draw what they would have drawn."""

    def read(work: Supervised) -> float:
        for loader in (work.train, work.valid):
            assert loader is not None
            for _ in loader:
                pass
        return 0.0

    def trained(**settings: Any) -> nn.Module:
        torch.manual_seed(1)
        model = nn.Linear(64, 10)
        workers = {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "fork"}
        train, valid = (DataLoader(Noisy(digits(48)), batch_size=8, **workers) for _ in range(2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        work = Supervised(model, optimizer, nn.CrossEntropyLoss(), train, valid, **settings)
        run(start(work, epochs=2, seed=0), [validate_every(steps=4)])
        return model

    assert same_weights(trained(measures={"read": read}), trained())


def test_a_measure_sees_the_average_that_is_validated() -> None:
    """Its score belongs to the weights of the loss beside it."""
    seen: list[torch.Tensor] = []

    def look(work: Supervised) -> float:
        seen.append(work.model[0].weight.clone())
        return 0.0

    work = _autoencoder(measures={"look": look})
    run(start(work, epochs=1), [ema(0.5)])

    assert torch.equal(seen[0], work.model[0].weight)  # a training ends with its average


def test_a_measure_leaves_the_batch_under_way_to_a_loop_that_evaluates() -> None:
    """In the middle of a batch, as each evaluation does."""
    work = _autoencoder(measures={"knn": _knn})
    for _ in iterate(start(work, epochs=1), at=[Phase.BATCH_BEGIN]):
        before = work.inputs
        evaluate(work)
        assert work.inputs is before


def test_a_mapping_is_several_metrics() -> None:
    """Each has the name of the measure before its own."""
    measures = {"knn": lambda work: {"3": torch.tensor(0.5), "5": 0.25}}
    callbacks = [early_stopping("valid_knn_5", mode="max")]
    metrics = run(start(_autoencoder(measures=measures), epochs=1), callbacks).metrics

    assert (metrics["valid_knn_3"], metrics["valid_knn_5"]) == (0.5, 0.25)


def test_a_validation_that_is_left_at_its_begin_measures_nothing() -> None:
    """There is no batch that it would belong to."""

    @on(Phase.VALID_BEGIN)
    def leave(state: State) -> Transition:
        return Transition(flags=Flag.STOP_VALID)

    final = run(start(_autoencoder(measures={"knn": _knn}), epochs=1), [leave])

    assert final.metrics.keys() == {"train_loss"}


# ------------------------------------------------------------------------------- what is refused


def test_a_measure_that_fails_is_named_and_the_model_is_as_before() -> None:
    """In the modes of the training."""

    def fails(work: Supervised) -> float:
        raise KeyError("no features")

    work = _autoencoder(measures={"fine": lambda work: 1.0, "knn": fails})
    with pytest.raises(KeyError) as caught:
        run(start(work, epochs=1))

    assert caught.value.__notes__[0] == "Raised by the measure 'knn', at the end of a validation."
    assert all(module.training for module in work.model.modules())


@pytest.mark.parametrize("value", [None, "high", [0.5], torch.ones(2), {"3": 1j}])
def test_a_measure_that_gives_no_number_is_refused(value: Any) -> None:
    """By name, with what it gave."""
    work = _autoencoder(measures={"knn": lambda work: value})

    with pytest.raises(WorkloadError, match="the measure 'knn' returned .* for 'valid_knn.*: let it return a real"):
        run(start(work, epochs=1))


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"measures": [_knn]}, TypeError, "measures is a list: give a mapping from names"),
        ({"measures": {"knn": 0.5}}, TypeError, "the measure 'knn' is a float: give a function of the workload"),
        ({"measures": {"loss": _knn}}, ValueError, "a measure cannot be called 'loss': valid_loss is measured already"),
        (
            {"measures": {"knn": _knn}, "metrics": {"knn": lambda output, target: 1.0}},
            ValueError,
            "a measure cannot be called 'knn'",
        ),
        (
            {"measures": {"a_loss": _knn}, "valid": {"a": [(ASKED.tensors[0], ASKED.tensors[0])]}},
            ValueError,
            "a measure cannot be called 'a_loss': valid_a_loss is measured already",
        ),
        ({"measures": {"knn": lambda: 1.0}}, WorkloadError, r"measures=\{'knn': …\} is called with \(work\)"),
    ],
)
def test_what_is_no_measure_is_refused(settings: Any, error: type[Exception], sentence: str) -> None:
    """Where it is written."""
    with pytest.raises(error, match=sentence):
        _autoencoder(**settings)


SAME_NAME: dict[str, dict[str, Any]] = {
    "the measure 'k_a' gives valid_k_a": {"measures": {"k": lambda work: {"a": 1.0}, "k_a": lambda work: 2.0}},
    "the measure 'kl' gives valid_kl": {
        "measures": {"kl": lambda work: 1.0},
        "loss_fn": lambda output, images: {"loss": nn.functional.mse_loss(output, images), "kl": output.mean()},
    },
    "the measure 'a' gives valid_a_loss": {"measures": {"a": lambda work: {"loss": 1.0}}, "valid": {"a": KNOWN_PAIR}},
    "the metric 'k_a' gives valid_k_a": {
        "metrics": {"k": over_all(lambda output, target: {"a": 1.0}), "k_a": lambda output, target: 2.0}
    },
    "valid['x_k'] gives valid_x_k_loss": {
        "valid": {
            "x": Evaluation(KNOWN_PAIR, metrics={"k": over_all(lambda output, target: {"loss": 1.0})}),
            "x_k": KNOWN_PAIR,
        }
    },
}


@pytest.mark.parametrize("sentence", SAME_NAME)
def test_what_something_else_measures_is_not_written_over(sentence: str) -> None:
    """Where the names of a mapping are known only once it is given."""
    with pytest.raises(WorkloadError) as caught:
        run(start(_autoencoder(**SAME_NAME[sentence]), epochs=1))

    assert str(caught.value) == f"{sentence}, which something else measures too: rename one of them"


def test_measures_need_a_validation() -> None:
    """Without one they would never be taken."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with pytest.raises(WorkloadError, match="measures are taken at the end of a validation, and there is no valid="):
        Supervised(
            model, optimizer, nn.MSELoss(), [(torch.ones(1, 1), torch.ones(1, 1))], measures={"knn": lambda work: 1.0}
        )


def test_measures_are_shown() -> None:
    """As the other settings."""
    assert "knn" in repr(_autoencoder(measures={"knn": _knn}))


def test_a_measure_needs_no_metric_beside_it() -> None:
    """An evaluation without a loss and metrics is there for the measures, which are taken at its end."""
    model = torch.nn.Linear(2, 1)
    batches = [(torch.ones(3, 2), torch.ones(3, 1))]
    work = Supervised(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.nn.MSELoss(),
        batches,
        Evaluation(batches, loss_fn=None),
        measures={"five": lambda work: 5.0},
    )
    assert run(start(work, epochs=1)).metrics["valid_five"] == 5.0
