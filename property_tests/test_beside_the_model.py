"""Laws of what stands beside the model: modes are as they were, and scores of what was kept are true of it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fsm_train import Phase, Supervised, callbacks, evaluate, iterate, load_weights, run, start
from fsm_train.callbacks import checkpoint, restore_best
from fsm_train.core.callback import Callback
from fsm_train.supervised import kept_weights, training, weights
from fsm_train.supervised.modules import Modes

GENERATOR = torch.Generator().manual_seed(0)
TRAIN = [(torch.randn(8, 4, generator=GENERATOR) + i, torch.randn(8, 1, generator=GENERATOR)) for i in range(3)]
VALID = [(torch.randn(16, 4, generator=GENERATOR), torch.randn(16, 1, generator=GENERATOR))]


class Centred(nn.Module):
    """Batch norm, dropout, and a running mean outside the state_dict, changed in place or made anew."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("mean", torch.zeros(4), persistent=False)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs.to(self.mean.dtype)
        if self.training:
            mean = 0.5 * self.mean + 0.5 * inputs.mean(0)
            self.mean = self.mean.copy_(mean) if self.in_place else mean
        output: torch.Tensor = self.head(self.body(inputs - 3 * self.mean))
        return output


class Weighted(nn.Module):
    """The squared error with a learned uncertainty and a running scale."""

    def __init__(self) -> None:
        super().__init__()
        self.logvar = nn.Parameter(torch.zeros(()))
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.scale = 0.9 * self.scale + 0.1 * target.square().mean()
        return torch.exp(-self.logvar) * (output - target).square().mean() / self.scale + self.logvar


MAKERS: Mapping[str, Any] = {
    "ema": lambda: callbacks.ema(0.7),
    "swa": lambda: callbacks.swa(1),
    "freeze": lambda: callbacks.freeze("body.1.*", train_bn=False),
    "freeze until": lambda: callbacks.freeze("body.*", until_epoch=1, train_bn=False),
    "restore_best": restore_best,
    "validate_every": lambda: callbacks.validate_every(steps=2),
    "accumulate": lambda: callbacks.accumulate(2),
    "mixup": callbacks.mixup,
    "weight_penalty": lambda: callbacks.weight_penalty(l2=1e-3),
    "early_stopping": lambda: callbacks.early_stopping("valid_loss", patience=1),
    "skip_nonfinite": callbacks.skip_nonfinite,
}
SMALL = settings(max_examples=10, deadline=None)  # each is a training, or two


def made(in_place: bool, *, loss_is_module: bool, dtype: torch.dtype = torch.float32) -> Supervised:
    torch.manual_seed(0)
    model, loss = Centred(in_place).to(dtype), Weighted() if loss_is_module else nn.MSELoss()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.2, momentum=0.5)
    train, valid = ([(inputs, target.to(dtype)) for inputs, target in data] for data in (TRAIN, VALID))
    return Supervised(model, optimizer, loss, train, valid)


def chosen(names: set[str]) -> list[Callback[Any]]:
    return [MAKERS[name]() for name in sorted(names)]


names = st.sets(st.sampled_from(sorted(MAKERS)), max_size=4).filter(lambda names: not {"ema", "swa"} <= names)


@st.composite
def modes(draw: st.DrawFn) -> list[bool]:
    """A mode for each of the modules of model and loss."""
    return draw(st.lists(st.booleans(), min_size=8, max_size=8))


@SMALL
@given(names, modes(), st.sampled_from(["ends", "fails", "is left"]), st.booleans())
def test_modes_are_as_they_were(names: set[str], modes: list[bool], ending: str, in_place: bool) -> None:
    """Whatever the callbacks, the modes and the end: each module is in the mode that it was in."""
    work = made(in_place, loss_is_module=True)
    parts = [*work.model.modules(), *work.loss_fn.modules()]  # type: ignore[attr-defined]
    for part, mode in zip(parts, modes, strict=True):
        part.training = mode
    before = [part.training for part in parts]
    if ending == "fails":
        work.valid = [(torch.zeros(1, 3), torch.zeros(1, 1))]
        with pytest.raises(RuntimeError):
            run(start(work, epochs=2), chosen(names))
    elif ending == "is left":
        for state in iterate(start(work, epochs=2), chosen(names), at=[Phase.VALID_BATCH_END]):
            if state.phase is Phase.VALID_BATCH_END:
                break
    else:
        run(start(work, epochs=2), chosen(names))

    assert [part.training for part in parts] == before


averaging = st.sampled_from([(), ("ema",), ("swa",)])


@SMALL
@given(averaging, names, st.booleans(), st.booleans(), st.sampled_from(["min", "max"]))
def test_scores_of_what_was_kept_are_true(
    average: tuple[str, ...], names: set[str], in_place: bool, loss_is_module: bool, mode: Any
) -> None:
    """The best weights in memory and on disk, measured again, have the score that they were kept for."""
    # In swa's last act the statistics of batch norm are another estimate, which has another score by design.
    others = names - {"ema", "swa", "restore_best", "validate_every", "early_stopping"}
    work = made(in_place, loss_is_module=loss_is_module)
    with tempfile.TemporaryDirectory() as folder:
        files = checkpoint(folder, monitor="valid_loss", mode=mode, keep=1)
        kept = [] if average == ("swa",) else [restore_best(mode=mode)]
        final = run(start(work, epochs=4), [*chosen({*average, *others}), files, *kept])
        fresh = made(in_place, loss_is_module=loss_is_module)
        loaded = load_weights(folder, fresh.model)
    best = {"min": min, "max": max}[mode](metrics["valid_loss"] for metrics in final.history)

    assert loaded["metrics"]["valid_loss"] == best
    assert not kept or evaluate(work)["valid_loss"] == best
    assert loss_is_module or evaluate(fresh)["valid_loss"] == best


@SMALL
@given(st.sampled_from([torch.bfloat16, torch.float16, torch.float64]), averaging, st.booleans())
def test_scores_are_true_in_each_precision(dtype: torch.dtype, average: tuple[str, ...], in_place: bool) -> None:
    """Rounding when an average is used is the same when it is loaded."""
    work = made(in_place, loss_is_module=False, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        files = checkpoint(folder, monitor="valid_loss", keep=1)
        final = run(start(work, epochs=3), [*chosen({*average}), files])
        fresh = made(in_place, loss_is_module=False, dtype=dtype)
        load_weights(folder, fresh.model)

    assert evaluate(fresh)["valid_loss"] == min(metrics["valid_loss"] for metrics in final.history)


# ------------------------------------------------------------------------------- planted bugs


def eval_parts_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(training.Training, "use_training_modes", lambda work: work.model.train())


def failures_leave_modes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Modes, "put_back", lambda modes: None)


def loss_is_no_part(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(training.Training, "modules", property(lambda work: {"model": work.model}))


def buffers_outside_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    whole = kept_weights.put_back_module
    patch.setattr(kept_weights, "put_back_module", lambda module, saved: whole(module, {**saved, "buffers": None}))


def own_weights_are_loaded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(weights.Average, "use", lambda average, on: None)


PARTS = [True] * 8
IN_EVAL = [True, False, *PARTS[2:]]  # the body, but not the model
PLANTED: list[tuple[Any, Any, tuple[Any, ...]]] = [
    (test_modes_are_as_they_were, eval_parts_are_forgotten, (set(), IN_EVAL, "ends", True)),
    (test_modes_are_as_they_were, failures_leave_modes, (set(), PARTS, "fails", True)),
    (test_scores_of_what_was_kept_are_true, loss_is_no_part, ((), set(), True, True, "max")),
    (test_scores_of_what_was_kept_are_true, buffers_outside_are_forgotten, ((), set(), False, False, "max")),
    (test_scores_of_what_was_kept_are_true, own_weights_are_loaded, (("ema",), set(), False, False, "min")),
]


@pytest.mark.parametrize(("law", "bug", "example"), PLANTED)
def test_planted_bug_is_caught(law: Any, bug: Any, example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The laws have teeth: each of these is caught by the law that it breaks, which holds without it."""
    law.hypothesis.inner_test(*example)
    bug(monkeypatch)

    with pytest.raises(AssertionError):
        law.hypothesis.inner_test(*example)
