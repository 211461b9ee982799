"""`predict`: what the model says about data, joined, and a training that is as without it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Evaluation, Phase, Supervised, WorkloadError, evaluate, iterate, predict, run, start
from fsm_train.callbacks import mixed_precision
from fsm_train.worlds.scripted import Scripted

INPUTS = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
TARGET = INPUTS.sum(1, keepdim=True)
ROWS = TensorDataset(INPUTS, TARGET)


def work(**settings: Any) -> Supervised:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    train = DataLoader(ROWS, batch_size=10, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Supervised(model, optimizer, nn.MSELoss(), train, **settings)


class Gives(nn.Module):
    """A model whose output is a function of its inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.function = function

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.function(*inputs, **named)


def gives(function: Callable[..., Any], **settings: Any) -> Supervised:
    model = Gives(function)
    train = [(INPUTS, TARGET)]
    return Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), train, **settings)


def test_outputs_are_those_of_a_plain_loop() -> None:
    """In eval mode, without gradients, in the order of the data; bit for bit."""
    training = work()
    run(start(training, epochs=2, seed=0))
    loader = DataLoader(ROWS, batch_size=16)
    training.model.eval()
    with torch.no_grad():
        plain = torch.cat([training.model(inputs) for inputs, _ in loader])
    training.model.train()

    predicted = predict(training, loader)

    assert torch.equal(predicted, plain)
    assert not predicted.requires_grad
    assert training.model.training
    assert torch.equal(predict(training, DataLoader(TensorDataset(INPUTS), batch_size=16)), plain)
    assert torch.equal(predict(training, iter(INPUTS.split(16))), plain)


def test_a_training_is_as_without_it() -> None:
    """In a loop over `iterate`: weights, history, the batch under way, and all that is drawn."""
    alone, beside = work(), work()
    final = run(start(alone, epochs=2, seed=0))
    after = torch.rand(3)
    for state in iterate(start(beside, epochs=2, seed=0), at=[Phase.LOSS_END, Phase.EPOCH_END]):
        if state.phase in (Phase.LOSS_END, Phase.EPOCH_END):
            under_way = beside.inputs, beside.target, beside.output
            assert predict(beside, beside.train).shape == (50, 1)
            assert all(a is b for a, b in zip(under_way, (beside.inputs, beside.target, beside.output), strict=True))
            assert beside.model.training

    assert state.history == final.history
    assert all(torch.equal(a, b) for a, b in zip(alone.model.parameters(), beside.model.parameters(), strict=True))
    assert torch.equal(torch.rand(3), after)


def test_modes_of_each_module_and_generators_are_put_back() -> None:
    """Also of a frozen part, also where the model raises; nothing of a batch stays in the workload."""
    training = work()
    training.model[1].eval()
    state = torch.get_rng_state()
    predict(training, DataLoader(ROWS, batch_size=10, shuffle=True))
    for bad in (INPUTS[:, :2], INPUTS[:, :3]):
        with pytest.raises(RuntimeError) as raised:
            predict(training, [INPUTS, bad])
        assert raised.value.__notes__ == ["Raised in predict(work, data), in batch 1 of data, counted from 0."]

    assert [module.training for module in training.model] == [True, False, True, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert (training.inputs, training.target, training.output, training.valid) == (None, None, None, None)


class Boxes(NamedTuple):
    scores: torch.Tensor
    lengths: torch.Tensor


def test_outputs_of_parts_are_joined_part_by_part() -> None:
    """Tuples, named ones, mappings and those inside each other; a part that does not join is a list of the batches."""
    data = [INPUTS[:3], INPUTS[3:5]]
    five = INPUTS[:5]

    one, two = predict(gives(lambda x: (x, x * 2)), data)
    assert torch.equal(one, five)
    assert torch.equal(two, five * 2)
    named = predict(gives(lambda x: Boxes(x, x[:, 0])), data)
    assert isinstance(named, Boxes)
    assert torch.equal(named.lengths, five[:, 0])
    output = predict(gives(lambda x: OrderedDict(loss=x.mean(), logits=x, more=(x[:1], None))), data)
    assert output.keys() == {"loss", "logits", "more"}
    assert torch.equal(output["logits"], five)
    assert [loss.item() for loss in output["loss"]] == [part.mean().item() for part in data]
    assert torch.equal(output["more"][0], torch.stack([INPUTS[0], INPUTS[3]]))
    assert output["more"][1] is None


LISTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "another width": lambda x: x[:, : len(x)],
    "another dtype": lambda x: x if len(x) == 3 else x.double(),
    "scalars": lambda x: x.mean(),
    "sparse tensors": lambda x: x.to_sparse(),
    "a list an image": lambda x: [{"boxes": row} for row in x],
    "text": lambda x: f"{len(x)} samples",
    "other types": lambda x: x if len(x) == 3 else (x,),
    "other keys": lambda x: {str(len(x)): x},
    "other lengths": lambda x: (x,) * len(x),
}


@pytest.mark.parametrize("form", LISTS)
def test_outputs_that_do_not_join_are_a_list(form: str) -> None:
    """An item for each batch, as the model gave it."""
    data = [INPUTS[:3], INPUTS[3:5]]
    predicted = predict(gives(LISTS[form]), data)

    assert isinstance(predicted, list)
    assert [str(item) for item in predicted] == [str(LISTS[form](batch)) for batch in data]


def test_outputs_share_no_memory() -> None:
    """A model that writes each output into one buffer gives as many outputs as batches."""
    buffer = torch.zeros(2)

    def same_memory(x: torch.Tensor) -> Any:
        return {"scores": buffer.copy_(x[:2, 0]), "name": buffer[0]}

    predicted = predict(gives(same_memory), [INPUTS[:2], INPUTS[2:4]])
    assert torch.equal(predicted["scores"], INPUTS[:4, 0])
    assert [value.item() for value in predicted["name"]] == [INPUTS[0, 0].item(), INPUTS[2, 0].item()]


class Moved:
    """An output that is an object with tensors inside."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def to(self, device: torch.device) -> Moved:
        return Moved(device)


def test_objects_are_brought_to_the_cpu_as_they_say() -> None:
    """By their own `to`, as batches are."""
    (predicted,) = predict(gives(lambda x: Moved()), [INPUTS])
    assert predicted.device == torch.device("cpu")


def test_inputs_are_told_by_the_form_of_a_batch() -> None:
    """A pair has a target; a tensor, a mapping, an object and what stands alone in a list are inputs."""
    seen: list[Any] = []

    def note(*inputs: Any, **named: Any) -> torch.Tensor:
        seen.append((inputs, named))
        return torch.zeros(1)

    x, y = INPUTS[:1], TARGET[:1]
    training = gives(note)
    predict(training, [(x, y), [x, y], x, [x], {"a": x, "b": y}, ((x, y), None)])
    predict(training, [(x, y), [x], (x, y, x)], inputs_only=True)

    assert [len(inputs) for inputs, _ in seen] == [1, 1, 1, 1, 0, 2, 2, 1, 3]
    assert seen[4][1].keys() == {"a", "b"}
    with pytest.raises(
        WorkloadError, match=r"a batch of data is a tuple of 3: .* inputs_only=True\) if all are inputs"
    ):
        predict(training, [(x, y, x)])


def test_split_is_that_of_the_training() -> None:
    """It makes the pair of each batch; where there is no target for it to find, the sentence says what to write."""
    training = gives(
        lambda **named: named["x"], split=lambda batch: ({"x": batch["x"]}, batch["y"]), forward=lambda m, x: m(**x)
    )
    assert torch.equal(predict(training, [{"x": INPUTS, "y": TARGET}]), INPUTS)
    with pytest.raises(WorkloadError, match=r"a dict of 1: KeyError: 'y'\. .* predict\(work, data, inputs_only=True\)"):
        predict(training, [{"x": INPUTS}])
    assert torch.equal(predict(training, [{"x": INPUTS}], inputs_only=True), INPUTS)


def test_precision_is_that_of_the_run_under_way() -> None:
    """As in a validation."""
    training = work()
    loop = iterate(start(training, epochs=1), [mixed_precision("bfloat16")], at=[Phase.BATCH_END])
    predicted = [predict(training, [INPUTS]) for state in loop if state.phase is Phase.BATCH_END]
    assert [output.dtype for output in predicted] == [torch.bfloat16] * 5


def test_a_callback_may_not_be_in_a_validation() -> None:
    """Where `evaluate` is refused, so is this, and where it is allowed, this is."""
    training = work(valid=[(INPUTS, TARGET)])
    asked: list[Phase] = []
    for state in iterate(start(training, epochs=1), at=[Phase.VALID_BATCH_END, Phase.VALID_END]):
        if state.phase is Phase.VALID_BATCH_END:
            for ask in (evaluate, predict):
                with pytest.raises(WorkloadError, match="a validation of this workload is under way"):
                    ask(training, [(INPUTS, TARGET)])
        elif state.phase is Phase.VALID_END:
            predict(training, [INPUTS])
        asked.append(state.phase)
    assert asked == [Phase.VALID_BATCH_END, Phase.VALID_END, Phase.DONE]


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "a tensor": (INPUTS, WorkloadError, "write predict(work, DataLoader(TensorDataset(inputs), batch_size=32))"),
    "two tensors": ((INPUTS, TARGET), WorkloadError, "or a list of one batch: predict(work, [batch])"),
    "a mapping": ({"x": INPUTS}, WorkloadError, "predict(work, [data]) if it is one batch"),
    "a dataset": (ROWS, WorkloadError, "write predict(work, DataLoader(data, batch_size=32))"),
    "a used iterator": (iter([]), WorkloadError, "data gave no batch"),
    "an evaluation": (Evaluation([INPUTS]), WorkloadError, "write predict(work, evaluation.data) for its data"),
    "None": (None, WorkloadError, "data is None, but batches are to come from it: write predict("),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_gives_no_batches_is_refused(wrong: str) -> None:
    """With the call to write."""
    data, error, sentence = WRONG[wrong]
    with pytest.raises(error) as raised:
        predict(work(), data)
    assert sentence in str(raised.value)


def test_what_has_no_model_is_refused() -> None:
    """A model without a workload, a workload without a model, and a setting that is none."""
    with pytest.raises(TypeError, match=r"write predict\(work, data\)"):
        predict(nn.Linear(4, 1), [INPUTS])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="predict takes a Supervised, which has a model, but was given a Scripted"):
        predict(Scripted(), [INPUTS])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inputs_only is an int: write"):
        predict(work(), [INPUTS], inputs_only=1)  # type: ignore[arg-type]
