"""Metrics over all outputs and targets: gathered, joined, saved in mid-epoch, and asked once."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import f1_score, roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Flag, Phase, State, Supervised, Transition, WorkloadError, on, over_all, restore, run, start
from fsm_train.callbacks import checkpoint, early_stopping
from fsm_train.supervised.joining import join
from fsm_train.supervised.meters import Meters
from tests.killed import killed_and_resumed
from tests.models import same_weights

CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------- area under the curve


def _patients() -> TensorDataset:
    inputs, targets = load_breast_cancer(return_X_y=True)
    features = torch.tensor(inputs[:300], dtype=torch.float32)
    return TensorDataset((features - features.mean(0)) / features.std(0), torch.tensor(targets[:300]))


def _scores(output: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    return {
        "auc": roc_auc_score(target, output[:, 1] - output[:, 0]),
        "f1": f1_score(target, output.argmax(1), average="macro"),
    }


def _diagnosis() -> Supervised:
    torch.manual_seed(1)
    model = nn.Linear(30, 2)
    data = _patients()
    train = DataLoader(data, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    valid = DataLoader(data, batch_size=77)
    return Supervised(model, optimizer, nn.CrossEntropyLoss(), train, valid, metrics={"all": over_all(_scores)})


def test_area_under_the_curve_is_scikit_learns_over_the_whole_set(tmp_path: Path) -> None:
    """On both sets, as a plain loop measures them, also over a kill in mid-epoch; it can be monitored."""
    plain = _diagnosis()
    for _ in range(2):
        outputs, targets = [], []
        for inputs, target in plain.train:
            output = plain.model(inputs)
            nn.functional.cross_entropy(output, target).backward()
            plain.optimizer.step()
            plain.optimizer.zero_grad()
            outputs.append(output.detach())
            targets.append(target)
    batches = [inputs for inputs, _ in DataLoader(_patients(), batch_size=77)]
    with torch.no_grad():
        whole = torch.cat([plain.model(batch) for batch in batches])

    final = run(start(_diagnosis(), epochs=2), [early_stopping("valid_all_auc", patience=9)])
    resumed, work = killed_and_resumed(_diagnosis, tmp_path, 8, [early_stopping("valid_all_auc", patience=9)])

    expected = _scores(whole, _patients().tensors[1]), _scores(torch.cat(outputs), torch.cat(targets))
    for split, scores in zip(("valid", "train"), expected, strict=True):
        assert {name: final.metrics[f"{split}_all_{name}"] for name in scores} == scores
    assert resumed.metrics == final.metrics
    assert same_weights(work.model, plain.model)


def test_the_function_is_asked_once_an_evaluation() -> None:
    """With detached tensors that later batches and steps leave alone."""
    asked: list[tuple[int, bool]] = []

    def look(output: torch.Tensor, target: torch.Tensor) -> int:
        asked.append((len(output), output.requires_grad))
        return len(target)

    model = nn.Linear(1, 1)
    batches = [(torch.ones(2, 1), torch.zeros(2, 1))] * 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    work = Supervised(model, optimizer, nn.MSELoss(), batches, batches[:2], metrics={"size": over_all(look)})

    final = run(start(work, epochs=1))

    assert asked == [(4, False), (6, False)]
    assert (final.metrics["valid_size"], final.metrics["train_size"]) == (4.0, 6.0)


def test_what_is_gathered_is_a_copy() -> None:
    """A loader may fill one tensor again and again."""
    meters = Meters("train", {"all": over_all(lambda output, target: output.sum())}, CPU)
    same = torch.ones(2)
    meters.add(torch.zeros(()), same, None, 2)
    same.fill_(100.0)

    assert meters.results()["train_all"] == 2.0


# ------------------------------------------------------------------------------------- joining

Pair = namedtuple("Pair", ["scores", "boxes"])


class Output(OrderedDict[str, Any]):
    """As the outputs of the models of transformers are."""


def _plainly(value: Any) -> Any:
    """Tensors as lists, and the classes of the containers beside what they hold."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return type(value), {key: _plainly(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value), [_plainly(part) for part in value]
    return value


ONE, TWO = torch.tensor([1.0]), torch.tensor([2.0, 3.0])


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        ([None, None], None),
        ([ONE, TWO], torch.tensor([1.0, 2.0, 3.0])),
        ([ONE[0], TWO[1]], torch.tensor([1.0, 3.0])),
        ([ONE[0], TWO], [ONE[0], TWO]),
        ([torch.zeros(1, 2), torch.zeros(1, 3)], [torch.zeros(1, 2), torch.zeros(1, 3)]),
        ([(ONE, TWO), (TWO, ONE)], (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 3.0, 1.0]))),
        ([(ONE, (TWO,)), Pair(TWO, (ONE,))], Pair(torch.tensor([1.0, 2.0, 3.0]), (torch.tensor([2.0, 3.0, 1.0]),))),
        ([{"a": ONE}, Output(a=TWO)], Output(a=torch.tensor([1.0, 2.0, 3.0]))),
        ([{"a": ONE}, {"b": TWO}], [{"a": ONE}, {"b": TWO}]),
        ([[ONE, TWO], [ONE]], [ONE, TWO, ONE]),
        ([({"a": ONE}, {"a": TWO}), ({"a": ONE},)], [{"a": ONE}, {"a": TWO}, {"a": ONE}]),
        ([("a", "b"), ("c",)], ["a", "b", "c"]),
        ([3, 4], [3, 4]),
        ([ONE, None], [ONE, None]),
        ([ONE, TWO.double()], [ONE, TWO.double()]),
        ([(ONE, ONE), [ONE, TWO]], [ONE, ONE, ONE, TWO]),
        ([[ONE], (TWO,)], [[ONE], (TWO,)]),
    ],
)
def test_batches_are_joined_to_one(parts: list[Any], joined: Any) -> None:
    """Part by part; what has an item for each sample to a list of them; anything else to one for each batch."""
    assert _plainly(join(parts, as_batch_of="outputs")) == _plainly(joined)


def test_tuples_of_several_lengths_are_refused() -> None:
    """Nobody can tell which parts belong to each other."""
    with pytest.raises(WorkloadError, match="the targets of the batches are tuples of 1 and of 2, .*as a list"):
        join([(ONE, TWO), (ONE,)], as_batch_of="targets")


# ------------------------------------------------------------------------------------- saving, and failures


def _gathering(*outputs: Any) -> Meters:
    meters = Meters("train", {"all": over_all(lambda output, target: output["a"].sum())}, CPU)
    for output in outputs:
        meters.add(torch.zeros(()), output, None, 1)
    return meters


def test_containers_of_any_class_go_on_from_a_checkpoint() -> None:
    """They are saved as plain ones, and are of the class of the batches after it."""
    first, resumed = _gathering(Output(a=ONE)), _gathering()
    state, unsaved = first.state()
    resumed.load_state(state)
    resumed.add(torch.zeros(()), Output(a=TWO), None, 1)

    assert unsaved == []
    assert type(state["metrics"]["all"]["outputs"][0]) is dict
    assert resumed.results()["train_all"] == 6.0


class Graph:
    """An object with tensors inside."""


def test_what_cannot_be_saved_is_named() -> None:
    """When it is saved, and again when it is not there; what comes after is gathered."""
    state, unsaved = _gathering({"a": ONE, "graph": [Graph()]}).state()
    resumed = _gathering()

    assert unsaved == [f"all: outputs[0].graph[0] is a {Graph.__module__}.Graph"]
    assert resumed.load_state(state) == ["all: what it had gathered was not saved"]
    resumed.add(torch.zeros(()), {"a": TWO}, None, 1)
    assert resumed.results()["train_all"] == 5.0


def test_a_function_that_fails_is_named() -> None:
    """With what it was given."""
    meters = _gathering({"b": ONE})

    with pytest.raises(KeyError) as caught:
        meters.results()
    assert caught.value.__notes__ == [
        "It was given a dict of 1 as all outputs and None as all targets.",
        "Raised by the metric 'all', asked over all outputs and targets, on train data.",
    ]


@pytest.mark.parametrize(
    ("function", "error", "sentence"),
    [
        (3, TypeError, r"over_all\(an int\): give a function of \(output, target\)"),
        (dict, TypeError, r"over_all\(.*dict\): give a function of \(output, target\)"),
        (lambda output: 1.0, WorkloadError, r"the function of over_all is called with \(output, target\)"),
    ],
)
def test_over_all_takes_a_function_of_output_and_target(function: Any, error: type[Exception], sentence: str) -> None:
    """Anything else is refused where it is written."""
    with pytest.raises(error, match=sentence):
        over_all(function)


def test_what_is_no_number_is_refused() -> None:
    """By the name of the metric."""
    meters = Meters("train", {"all": over_all(lambda output, target: {"auc": "high"})}, CPU)
    meters.add(torch.zeros(()), ONE, None, 1)

    with pytest.raises(WorkloadError, match="the metric 'all' returned a str for 'train_all_auc'"):
        meters.results()


def test_a_training_resumes_with_a_note_where_what_was_gathered_cannot_be_saved(tmp_path: Path) -> None:
    """When it was saved, and in the state that goes on; the training itself is as it would have been."""

    def make() -> Supervised:
        torch.manual_seed(1)
        model = nn.Linear(1, 1)
        batches = [(torch.full((2, 1), float(i)), torch.zeros(2, 1)) for i in range(4)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        return Supervised(
            *(model, optimizer, lambda output, target: output[0].mean(), batches),
            forward=lambda model, inputs: (model(inputs), Graph()),
            samples=lambda inputs, target: len(inputs),
            metrics={"all": over_all(lambda output, target: len(output[1]))},
        )

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 2 else None

    whole, work = make(), make()
    run(start(whole, epochs=1))
    run(start(make(), epochs=1), [checkpoint(tmp_path), leave])
    final = run(restore(tmp_path, work), [checkpoint(tmp_path)])

    assert "let it gather tensors and plain values" in " ".join(final.notes)
    assert "the metric all: what it had gathered was not saved" in final.notes
    assert final.metrics["train_all"] == 2.0
    assert same_weights(work.model, whole.model)
