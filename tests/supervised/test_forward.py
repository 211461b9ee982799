"""A `forward` of one's own, with and without the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Callback, Phase, State, Supervised, WorkloadError, evaluate, on, run, start
from fsm_train.callbacks import compile_step, ema, mixed_precision, swa
from tests.killed import killed_and_resumed
from tests.models import same_weights


class Speller(nn.Module):
    """Predicts each letter from those before it, which are the right ones in training: teacher forcing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.letters, self.norm = nn.Embedding(7, 8), nn.BatchNorm1d(8)
        self.memory, self.out = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 6)

    def forward(self, hint: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        states, _ = self.memory(self.letters(before), self.norm(hint).unsqueeze(0))
        return self.out(states)


def forced(model: nn.Module, hint: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    begin = torch.full_like(words[:, :1], 6)
    return model(hint, torch.cat([begin, words[:, :-1]], dim=1)).transpose(1, 2)


def _words() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 8, generator=generator), torch.randint(6, (n, 5), generator=generator)) for n in (8, 8, 4, 8)
    ]


def _speller(forward: Any = forced) -> Supervised:
    model = Speller()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return Supervised(model, optimizer, nn.CrossEntropyLoss(), _words(), _words()[:2], forward=forward)


def test_teacher_forcing_is_the_plain_loop(tmp_path: Path) -> None:
    """The forward pass gets the target, in training and in validation, also over a kill in mid-epoch."""
    plain, loss_fn = Speller(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    for _ in range(2):
        for hint, words in _words():
            loss_fn(forced(plain, hint, words), words).backward()
            optimizer.step()
            optimizer.zero_grad()
    plain.eval()
    valid = [loss_fn(forced(plain, hint, words), words).item() for hint, words in _words()[:2]]

    whole = _speller()
    final = run(start(whole, epochs=2))
    resumed, work = killed_and_resumed(_speller, tmp_path, 6)

    assert final.metrics["valid_loss"] == sum(valid) / 2
    assert same_weights(whole.model, plain)
    assert same_weights(work.model, plain)
    assert resumed.metrics == final.metrics
    assert evaluate(whole)["valid_loss"] == final.metrics["valid_loss"]


@on(Phase.LOSS_BEGIN)
def look_inside(state: State) -> None:
    """Each operation of a step is done by itself."""


@pytest.mark.parametrize(
    "callbacks",
    [[look_inside], [mixed_precision("bfloat16")], [swa(0)], [ema(0.9)]],
    ids=["one by one", "mixed precision", "batch norm of an average", "average"],
)
def test_the_target_is_that_of_the_batch_wherever_forward_is_called(callbacks: list[Callback[Any]]) -> None:
    """Also where the statistics of batch norm are computed anew."""
    targets: dict[float, torch.Tensor] = {float(hint[0, 0]): words for hint, words in _words()}
    seen = []

    def checked(model: nn.Module, hint: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(torch.equal(target, targets[float(hint[0, 0])]))
        return forced(model, hint, target)

    run(start(_speller(checked), epochs=2), callbacks)

    assert len(seen) >= 2 * (4 + 2)
    assert all(seen)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile, about torch itself
def test_a_compiled_step_gives_the_target_too() -> None:
    """And trains to the same weights."""

    def trained(callbacks: list[Callback[Any]]) -> nn.Module:
        torch.manual_seed(1)
        model = nn.Linear(8, 6)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        work = Supervised(
            model,
            optimizer,
            nn.functional.cross_entropy,
            [(hint, words[:, 0]) for hint, words in _words()],
            forward=lambda model, inputs, target: model(inputs) + nn.functional.one_hot(target, 6),
        )
        run(start(work, epochs=2), callbacks)
        return model

    assert same_weights(trained([compile_step(backend="eager")]), trained([]))


class Called:
    """An object that is called with the target."""

    def __call__(self, model: nn.Module, inputs: Any, target: Any) -> Any:
        return forced(model, inputs, target)


@pytest.mark.parametrize(
    ("forward", "given"),
    [
        (lambda model, inputs: 2, 2),
        (lambda model, inputs, target: 3, 3),
        (lambda model, inputs, words: 3, 3),
        (lambda model, inputs, target=None: 2 if target is None else 3, 3),
        (lambda model, inputs, scale=None: 2 if scale is None else 3, 2),
        (lambda model, inputs, *rest: 2 + len(rest), 2),
        (lambda model, inputs, **rest: 2 + len(rest), 2),
        (lambda *given: len(given), 2),
    ],
)
def test_the_signature_says_whether_forward_gets_the_target(forward: Any, given: int) -> None:
    """A third parameter that it needs, or that is called target."""
    work = _speller(forward)

    assert work.call("inputs", "target") == given


def test_an_object_may_take_the_target() -> None:
    """Its __call__ has the signature."""
    ours, theirs = _speller(Called()), _speller()
    run(start(ours, epochs=1))
    run(start(theirs, epochs=1))

    assert same_weights(ours.model, theirs.model)


@pytest.mark.parametrize("forward", [lambda model: 1, lambda model, inputs, target, mask: 1])
def test_a_forward_of_another_form_is_refused(forward: Any) -> None:
    """Before the first batch, with what it is called with."""
    with pytest.raises(WorkloadError, match=r"forward is called with \(model, inputs"):
        _speller(forward)
