"""Averages with settings, and several side by side: as arithmetic, and beside torch.optim.swa_utils by hand."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fsm_train import Callback, Flag, Phase, State, Supervised, Transition, on, replay, restore, run, start
from fsm_train.callbacks import checkpoint, ema, mixed_precision, restore_best, swa
from fsm_train.core.commands import KeepAverage, UpdateAverage
from fsm_train.testing import at, check_callback, drive
from tests.averages_by_hand import By
from tests.diabetes_training import Trained, batches, looking, net, plain, sgd, trained, weights_of, workload
from tests.models import same_weights

DATA, VALID = batches(8, 8, 8, 6), batches(5, 5, skip=30)
EPOCHS = 3


# ------------------------------------------------------------------------------------------ as data


def step_ends(*steps: int, applied: bool = True) -> list[State]:
    return [at(Phase.STEP_END, step=step, stepped=float(applied)) for step in steps]


def updated_at(callback: Callback[Any], states: list[State]) -> list[int]:
    """The steps after which the average is updated."""
    return [s.step for s, answer in zip(states, drive(callback, states), strict=True) if answer.commands]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"every": 3}, [3, 6, 9]),
        ({"start": 6}, [6, 7, 8, 9]),
        ({"every": 3, "start": 2}, [2, 5, 8]),
        ({"every": 4, "start": 9}, [9]),
        ({"start": 10}, []),
    ],
)
def test_updates_are_every_so_many_steps_from_start(settings: dict[str, int], steps: list[int]) -> None:
    """The first after step `start`, where there is one, and then each `every` steps."""
    assert updated_at(ema(0.9, **settings), step_ends(*range(1, 10))) == steps  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["own", "model"])
def test_an_average_is_not_called_as_the_weights_of_the_model_are(name: str) -> None:
    """By these names an evaluation asks for the own weights, and a checkpoint says that it was measured with them."""
    for make in (lambda: ema(name=name), lambda: swa(1, name=name)):
        with pytest.raises(ValueError, match=f"name='{name}': so the model's own weights are called; write name="):
            make()


def test_a_step_that_was_held_back_is_no_update() -> None:
    """The same number of steps is seen again then, and is counted once."""
    states = [*step_ends(2), *step_ends(2, applied=False), *step_ends(3, 4)]

    assert updated_at(ema(0.9, every=2), states) == [2, 4]


def test_warmup_begins_with_a_small_decay() -> None:
    """(1 + n) / (10 + n) for update n, as long as that is smaller: by numbers that are written down."""
    answers = drive(ema(0.3, warmup=True), step_ends(*range(1, 6)))
    decays = [answer.commands[0].decay for answer in answers]  # type: ignore[attr-defined]

    assert decays == [1 / 10, 2 / 11, 3 / 12, 0.3, 0.3]


def test_an_average_beside_the_model_is_only_kept() -> None:
    """It is asked nothing at a validation and at the end, and says so before."""
    beside = ema(0.9, validate=False)

    assert beside.at == (Phase.SETUP, Phase.STEP_END)
    assert beside.commands == {KeepAverage, UpdateAverage}
    assert beside(at(Phase.SETUP)) == Transition(commands=(KeepAverage("ema", 0.9),))


@pytest.mark.unmeasured
def test_each_setting_makes_a_callback_of_good_behaviour() -> None:
    """Pure, saved, and the same where a training is resumed."""
    check_callback(ema(0.9, every=2, start=3, warmup=True, validate=False), examples=20)


# --------------------------------------------------------------------------- with a real model, by hand


SETTINGS = [
    By(),
    By(buffers="average"),
    By(every=3, start=2),
    By(warmup=True, start=1),
    By(initial=True),
    By(warmup=True, initial=True, every=2),
    By(0.99, "average", every=2, start=3, warmup=True),
]


def by_hand(*settings: By) -> tuple[nn.Module, list[nn.Module]]:
    """The model and its averages, after the same training in a loop by hand."""
    model = net()
    optimizer = sgd(model)
    averages = [by.averaged(model) for by in settings]
    for step, (inputs, target) in enumerate(DATA * EPOCHS, 1):
        nn.functional.mse_loss(model(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        for average in averages:
            average.after(step, model)
    return model, [average.torchs.module for average in averages]


def averages_of(work: Supervised) -> dict[str, dict[str, torch.Tensor]]:
    """By name, the values of each average: those of the model's state_dict."""
    return {
        name: {key.removeprefix("model."): value.clone() for key, value in {**a.parameters, **a.buffers}.items()}
        for name, a in work.carried_over.averages.items()
    }


def equal(found: dict[str, torch.Tensor], module: nn.Module) -> bool:
    expected = module.state_dict()
    return found.keys() == expected.keys() and all(value.equal(found[name]) for name, value in expected.items())


@pytest.mark.parametrize("by", SETTINGS)
def test_settings_are_those_of_a_loop_by_hand(by: By) -> None:
    """Weights and buffers at the end, bit for bit; the model ends with them."""
    ours = trained([ema(**attrs.asdict(by))], DATA, model=net(), valid=VALID, epochs=EPOCHS)
    _, [average] = by_hand(by)

    assert same_weights(ours.model, average)


def test_averaged_buffers_are_no_copies() -> None:
    """The statistics of batch norm differ between the two, and the parameters do not."""
    copied, averaged = (by_hand(By(buffers=buffers))[1][0].state_dict() for buffers in ("copy", "average"))
    differing = {name for name, value in copied.items() if not value.equal(averaged[name])}

    assert differing == {"1.running_mean", "1.running_var"}


def side_by_side() -> list[Callback[Any]]:
    kept = [ema(**attrs.asdict(by), validate=False, name=str(i)) for i, by in enumerate(SETTINGS[1:], 1)]
    return [ema(**attrs.asdict(SETTINGS[0]), name="0"), *kept]


def all_equal(work: Supervised) -> bool:
    return all(
        equal(averages_of(work)[str(i)], average) for i, average in enumerate(by_hand(*SETTINGS)[1])
    ) and same_weights(work.model, by_hand(SETTINGS[0])[1][0])


def test_several_side_by_side_are_each_as_alone() -> None:
    """One validates, and is what the model ends with; the others are there by name."""
    ours = trained(side_by_side(), DATA, model=net(), valid=VALID, epochs=EPOCHS)
    alone = trained([ema(0.8)], DATA, model=net(), valid=VALID, epochs=EPOCHS)

    assert all_equal(ours.work)
    assert ours.final.history == alone.final.history


def test_only_beside_the_model_they_change_nothing() -> None:
    """Neither what is validated nor what the training ends with."""
    kept = side_by_side()[1:]
    ours, without = (trained(c, DATA, model=net(), valid=VALID, epochs=EPOCHS) for c in (kept, []))

    assert same_weights(ours.model, without.model)
    assert ours.final.history == without.final.history


def test_an_average_goes_beside_swa() -> None:
    """Swa validates and ends the training; each is what it is alone."""
    both = trained([swa(1), ema(0.8, validate=False)], DATA, model=net(), valid=VALID, epochs=EPOCHS)
    alone = trained([swa(1)], DATA, model=net(), valid=VALID, epochs=EPOCHS)

    assert same_weights(both.model, alone.model)
    assert equal(averages_of(both.work)["ema"], by_hand(By())[1][0])


@pytest.mark.parametrize("phase", [Phase.BATCH_END, Phase.VALID_BATCH_END, Phase.EPOCH_END])
def test_all_are_resumed_from_a_checkpoint(phase: Phase, tmp_path: Path) -> None:
    """In the middle of an epoch, of a validation, and after an epoch, in other objects: bit for bit."""

    @on(phase, memory=False)
    def leave_once(state: State, left: bool) -> Transition | None:
        return Transition(flags=Flag.SUSPEND, memory=True) if state.iteration >= 6 and not left else None

    log, files = tmp_path / "log.jsonl", tmp_path / "files"
    callbacks = [*side_by_side(), checkpoint(files, last=1), leave_once]
    suspended = run(start(workload(DATA, model=net(), valid=VALID), epochs=EPOCHS), callbacks, log=log)
    work = workload(DATA, model=net(), valid=VALID)
    run(restore(files, work), callbacks, log=log)

    assert suspended.phase is Phase.SUSPENDED
    assert all_equal(work)
    assert replay(log, callbacks).ok


def test_restore_best_gives_each_average_back() -> None:
    """Those of the epoch whose score was the best, and not the last ones."""
    seen: list[Any] = []
    work = workload(DATA, model=net(), valid=VALID, optimizer=plain)
    look, _ = looking(Phase.EPOCH_END, lambda state: seen.append((state.metrics["valid_loss"], averages_of(work))))
    run(start(work, epochs=4), [*side_by_side(), restore_best("valid_loss"), look])
    scores = [score for score, _ in seen]
    best = seen[scores.index(min(scores))][1]

    assert scores.index(min(scores)) < 3
    assert all(value.equal(averages_of(work)[name][key]) for name in best for key, value in best[name].items())


def test_another_decay_is_that_of_the_steps_that_follow() -> None:
    """Whether the training goes on in the same objects or from a file."""

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 6 else None

    work = workload(DATA, model=net())
    suspended = run(start(work, epochs=EPOCHS), [ema(0.8), leave])
    run(suspended, [ema(0.5)])
    model = net()
    optimizer, average = sgd(model), AveragedModel(model)
    for i, (inputs, target) in enumerate(DATA * EPOCHS):
        nn.functional.mse_loss(model(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.multi_avg_fn = get_ema_multi_avg_fn(0.8 if i < 6 else 0.5)  # type: ignore[no-untyped-call]
        average.update_parameters(model)

    assert same_weights(work.model, average.module)


# ----------------------------------------------------------------------------------- awkward buffers


class Marked(nn.Module):
    """A weight, and buffers of each kind; the running mean is made anew by forward, in another shape once."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 1)
        self.register_buffer("mean", torch.zeros(10))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("table", torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
            self.mean = 0.5 * self.mean + 0.5 * inputs.detach().mean(0).to(self.mean.dtype)
            if self.seen == 3:
                self.table = torch.full((2,), 3.0)
        output: torch.Tensor = self.linear(inputs.to(self.mean.dtype) - self.mean)
        return output.float()


def marked(dtype: torch.dtype = torch.float32) -> Marked:
    torch.manual_seed(0)
    return Marked().to(dtype)


def test_buffers_that_forward_makes_anew_are_averaged() -> None:
    """A running mean is, a count is copied, and what gets another shape begins again with that."""
    ours = trained([ema(0.5, buffers="average")], DATA, model=marked())
    mean, expected = torch.zeros(10), torch.zeros(10)
    for i, (inputs, _) in enumerate(DATA):
        mean = 0.5 * mean + 0.5 * inputs.mean(0)
        expected = mean if i == 0 else torch.lerp(expected, mean, 0.5)

    assert ours.model.mean.equal(expected)
    assert ours.model.seen == len(DATA)
    assert ours.model.table.equal(torch.full((2,), 3.0))


def test_buffers_in_half_precision_are_averaged_in_float32() -> None:
    """As weights are: with a decay near 1 a half would not move. Rounded where the model has them."""
    ours = trained([ema(0.999, buffers="average")], DATA, model=marked(torch.bfloat16), epochs=20)
    average = ours.work.carried_over.averages["ema"].buffers["model.mean"]

    assert (average.dtype, ours.model.mean.dtype) == (torch.float32, torch.bfloat16)
    assert ours.model.mean.equal(average.to(torch.bfloat16))
    assert not average.equal(average.to(torch.bfloat16).float())


def test_masks_of_pruning_are_copied() -> None:
    """A mask is zero or one, and its average would be neither."""
    model = net()
    work = workload(DATA, model=model)

    @on(Phase.BATCH_BEGIN)
    def prune_more(state: State) -> None:
        if state.iteration == 2:
            model[0].weight_mask[0] = 0.0

    prune.random_unstructured(model[0], "weight", 0.5)
    run(start(work, epochs=1), [ema(0.9, buffers="average", validate=False), prune_more])

    assert averages_of(work)["ema"]["0.weight_mask"].equal(model[0].weight_mask)


def test_steps_that_a_scaler_holds_back_are_not_counted() -> None:
    """`start` and `every` count applied steps alone."""
    callbacks = [mixed_precision("float16", initial_scale=2.0**24), ema(0.9, every=2, start=1)]
    ours: Trained = trained(callbacks, DATA, model=net(), epochs=4)

    assert 0 < ours.final.step < 16
    assert ours.work.carried_over.averages["ema"].n_averaged == math.ceil(ours.final.step / 2)


def test_own_weights_of_each_batch_are_those_without_averages() -> None:
    """Whatever is averaged beside it, the training is the same to the last bit."""
    seen: list[list[torch.Tensor]] = []
    for callbacks in (side_by_side(), []):
        model = copy.deepcopy(net())
        look, weights = looking(Phase.BATCH_BEGIN, lambda state, model=model: weights_of(model))
        trained([*callbacks, look], DATA, model=model, valid=VALID, epochs=EPOCHS)
        seen.append(weights)

    assert all(a.equal(b) for a, b in zip(*seen, strict=True))
