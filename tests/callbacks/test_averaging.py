"""Averages of the weights: as arithmetic, and beside torch.optim.swa_utils by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from fsm_train import (
    CallbackError,
    ConflictError,
    Flag,
    Phase,
    State,
    Supervised,
    Transition,
    extend,
    on,
    run,
    start,
)
from fsm_train.callbacks import ema, limit, mixed_precision, swa, validate_every
from fsm_train.core.commands import FinishAverage, KeepAverage, UpdateAverage, UseAverage
from fsm_train.testing import at, check_callback, drive
from tests.diabetes_training import batches, looking, net, sgd, trained, weights_of, workload
from tests.models import digits, network, same_weights, shuffled

DATA, VALID = batches(8, 8, 8, 6), batches(5, 5, skip=30)
BEGIN, END = UseAverage("ema", on=True), UseAverage("ema", on=False)


# ------------------------------------------------------------------------------------------ as data


def commands(callback: Any, states: list[State]) -> list[tuple[Any, ...]]:
    return [answer.commands for answer in drive(callback, states)]


def test_ema_follows_the_steps_and_is_in_for_each_validation() -> None:
    """Nothing before the first update; in and out around a validation; for good at the end."""
    states = [
        at(Phase.SETUP),
        at(Phase.VALID_BEGIN),
        at(Phase.VALID_END),
        at(Phase.STEP_END, stepped=0.0),
        at(Phase.TRAIN_END),
        at(Phase.STEP_END, stepped=1.0),
        at(Phase.VALID_BEGIN),
        at(Phase.VALID_END),
        at(Phase.VALID_BEGIN),
        at(Phase.SUSPEND),
        at(Phase.TRAIN_END),
    ]

    assert commands(ema(0.9), states) == [
        (KeepAverage("ema", 0.9),),
        *[()] * 4,
        (UpdateAverage("ema"),),
        (BEGIN,),
        (END,),
        (BEGIN,),
        (END,),
        (FinishAverage("ema"),),
    ]


def test_ema_begins_with_the_initial_weights_if_told_to() -> None:
    """Once, where the training begins: an extended one goes on with its average."""
    states = [at(Phase.SETUP), at(Phase.TRAIN_BEGIN), at(Phase.STEP_END, stepped=1.0), at(Phase.TRAIN_BEGIN)]

    assert commands(ema(0.9, initial=True, validate=False), states) == [
        (KeepAverage("ema", 0.9),),
        (UpdateAverage("ema"),),
        (UpdateAverage("ema"),),
        (),
    ]
    check_callback(ema(0.9, initial=True), examples=20)


def test_swa_takes_in_each_epoch_once() -> None:
    """At its last validation, or at its end if there was none; from start_epoch on."""
    update, use = UpdateAverage("swa"), UseAverage("swa", on=True)
    states = [
        at(Phase.SETUP),
        at(Phase.VALID_BEGIN, epoch=0, batches_over=True),  # too early
        at(Phase.EPOCH_END, epoch=1, batches_over=True),
        at(Phase.VALID_BEGIN, epoch=1),  # in the middle
        at(Phase.VALID_BEGIN, epoch=1, batches_over=True),
        at(Phase.VALID_END, epoch=1, batches_over=True),
        at(Phase.EPOCH_END, epoch=2, batches_over=True),
        at(Phase.VALID_BEGIN, epoch=2),
        at(Phase.EPOCH_END, epoch=3, batches_over=True),  # without a validation
        at(Phase.TRAIN_END, epoch=3),
    ]

    assert commands(swa(1), states) == [
        (KeepAverage("swa"),),
        (),
        (),
        (),
        (update, use),
        (UseAverage("swa", on=False),),
        (),
        (use,),
        (update,),
        (FinishAverage("swa", batch_norm=True),),
    ]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ema(1.0), "decay=1.0: it is a number from 0 to below 1"),
        (lambda: ema(-0.1), "decay=-0.1"),
        (lambda: ema(float("nan")), "decay=nan"),
        (lambda: ema(buffers="mean"), "buffers='mean': 'copy' or 'average'"),  # type: ignore[arg-type]
        (lambda: ema(every=0), "every=0: it is a whole number from 1"),
        (lambda: ema(start=-1), "start=-1: it is a whole number from 0"),
        (lambda: ema(start=1.5), "start=1.5: it is a whole number from 0"),  # type: ignore[arg-type]
        (lambda: ema(warmup=2), "warmup=2: True or False"),  # type: ignore[arg-type]
        (lambda: ema(initial=None), "initial=None: True or False"),  # type: ignore[arg-type]
        (lambda: ema(validate="no"), "validate='no': True or False"),  # type: ignore[arg-type]
        (lambda: swa(-1), "start_epoch=-1: it is a whole number from 0"),
    ],
)
def test_settings_are_checked_when_made(make: Callable[[], object], sentence: str) -> None:
    """Nonsense is refused on the spot."""
    with pytest.raises(ValueError, match=sentence):
        make()


def test_settings_are_recorded() -> None:
    """The name is that of the average, too."""
    slow, late = ema(0.5, name="slow"), swa(3)

    others = {"buffers": "copy", "every": 1, "start": 0, "warmup": False, "initial": False, "validate": True}
    assert (slow.name, slow.params) == ("slow", {"decay": 0.5, **others})
    assert commands(slow, [at(Phase.SETUP)]) == [(KeepAverage("slow", 0.5),)]
    assert (late.name, late.params) == ("swa", {"start_epoch": 3})


@pytest.mark.parametrize("other", [swa(0), ema(0.5, name="other")])
def test_two_averages_that_validate_are_a_conflict(other: Any) -> None:
    """There is one model to validate with; known before anything runs, with what to write instead."""
    work = workload()
    before = weights_of(work.model)
    sentence = "only one callback of a run may: the model has one average .* as ema.…, validate=False. does"
    with pytest.raises(
        ConflictError, match=f"'ema' and '{other.name}' both give the command .*UseAverage, .*{sentence}"
    ):
        run(start(work, epochs=1), [ema(), other])

    assert weights_of(work.model).equal(before)


def test_two_averages_that_do_not_say_so_are_refused() -> None:
    """Callbacks of one's own need not declare their commands; the second exchange is the error."""

    @on(Phase.SETUP, Phase.VALID_BEGIN)
    def mine(state: State) -> Transition:
        command = KeepAverage("mine") if state.phase is Phase.SETUP else UseAverage("mine", on=True)
        return Transition(commands=(command,))

    with pytest.raises(ConflictError, match="'ema' and 'mine' both give the command UseAverage"):
        trained([ema(), mine], DATA, valid=VALID)


# --------------------------------------------------------------------------------- numbers by hand


class _Counting(nn.Module):
    """A weight that plain descent moves from n to n + 1, and whose validation loss is its value."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.w

    @staticmethod
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return -output.mean() if output.requires_grad else output.mean()


ONE = torch.ones(1, 1, dtype=torch.float64)


def counted(callbacks: list[Any], **settings: Any) -> tuple[list[float], float]:
    """What each validation saw as the weight, and the weight at the end."""
    look, seen = looking(Phase.VALID_END, lambda state: state.metrics["valid_loss"])

    def unit_steps(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1.0)

    ours = trained(
        [*callbacks, look],
        settings.pop("data", [(ONE, ONE)]),
        model=_Counting(),
        optimizer=unit_steps,
        loss_fn=_Counting.loss,
        valid=[(ONE, ONE)],
        **settings,
    )
    return seen, ours.weights.item()


def test_ema_of_one_to_four() -> None:
    """With decay 0.9: 1 (the first update copies), 1.1, 1.29, 1.561, and that is what the model has at the end."""
    seen, last = counted([ema(0.9)], epochs=4)

    assert [*seen, last] == pytest.approx([1, 1.1, 1.29, 1.561, 1.561])


def test_swa_of_one_to_four() -> None:
    """The mean: 1, 1.5, 2, 2.5; before start_epoch it is the weight itself that is validated."""
    assert counted([swa(0)], epochs=4) == (pytest.approx([1, 1.5, 2, 2.5]), 2.5)
    assert counted([swa(2)], epochs=4) == (pytest.approx([1, 2, 3, 3.5]), 3.5)


def test_swa_without_its_epoch_changes_nothing() -> None:
    """A training that ends before start_epoch keeps its own weights."""
    assert counted([swa(4)], epochs=4) == ([1, 2, 3, 4], 4)


def test_validation_in_the_middle_of_an_epoch() -> None:
    """Each validation has the average of that moment, and the steps after it go on from the own weights."""
    seen, last = counted([ema(0.9), validate_every(steps=1)], data=[(ONE, ONE)] * 4)

    assert [*seen, last] == pytest.approx([1, 1.1, 1.29, 1.561, 1.561])


def test_only_steps_that_were_applied_count() -> None:
    """What a gradient scaler holds back is no update."""
    look, taken = looking(Phase.STEP_END, lambda state: state.facts["stepped"], needs={"stepped"})
    callbacks = [mixed_precision("float16", initial_scale=2.0**24), ema(0.9), look]
    ours = trained(callbacks, DATA, model=net(), epochs=4)

    assert 0 < sum(taken) < len(taken)
    assert ours.final.memory["ema"] == ours.work.carried_over.averages["ema"].n_averaged == sum(taken)


# -------------------------------------------------------------------------- with a real model, by hand


def test_ema_is_torchs_averaged_model() -> None:
    """Weights and buffers at the end are bit for bit those of AveragedModel in a loop by hand."""
    model = net()
    optimizer = sgd(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))  # type: ignore[no-untyped-call]
    for inputs, target in DATA * 3:
        nn.functional.mse_loss(model(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)

    assert same_weights(trained([ema(0.8)], DATA, model=net(), valid=VALID, epochs=3).model, average.module)


def test_swa_is_torchs_averaged_model_with_batch_norm_made_anew() -> None:
    """With dropout and shuffling in it: weights, statistics, and the generator as if it had not been refitted."""
    data, model = digits(128), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = AveragedModel(model)
    torch.manual_seed(3)
    for epoch in range(3):
        for inputs, target in shuffled(data):
            nn.functional.cross_entropy(model(inputs), target).backward()
            optimizer.step()
            optimizer.zero_grad()
        if epoch >= 1:
            average.update_parameters(model)
    before = torch.get_rng_state()
    update_bn(shuffled(data), average.module)
    torch.set_rng_state(before)

    ours = network()
    torch.manual_seed(3)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    run(start(Supervised(ours, optimizer, nn.CrossEntropyLoss(), shuffled(data)), epochs=3), [swa(1)])

    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(ours, average.module)
    assert all(module.training for module in ours)


def test_refit_leaves_modes_as_they_are() -> None:
    """A batch norm that was frozen in eval mode is so afterwards, and the model is not left in train mode."""
    model = net()

    @on(Phase.TRAIN_END, order=-20)
    def evaluating(state: State) -> None:
        model.eval()

    trained([swa(0), evaluating], DATA, model=model)

    assert not any(module.training for module in model)


def test_validation_with_the_average_does_not_disturb_the_training() -> None:
    """The own weights before each batch are, bit for bit, those of a run without ema."""
    seen: dict[bool, list[torch.Tensor]] = {}
    for averaged in (True, False):
        model = net()
        look, seen[averaged] = looking(Phase.BATCH_BEGIN, lambda state, model=model: weights_of(model))
        callbacks = [ema(0.8), validate_every(steps=1)] if averaged else []
        trained([*callbacks, look], DATA, model=model, valid=VALID, epochs=2)

    assert len(seen[True]) == 8
    assert all(a.equal(b) for a, b in zip(seen[True], seen[False], strict=True))


# ------------------------------------------------------------------- left early, taken up again


@pytest.mark.parametrize("phase", [Phase.VALID_BATCH_END, Phase.BATCH_END, Phase.VALID_END])
@pytest.mark.parametrize("average", [ema(0.8), swa(0)])
def test_suspended_training_is_the_same_training(phase: Phase, average: Any) -> None:
    """Suspended within a validation or beside it, it goes on to the same weights; meanwhile the model has its own."""
    once = trained([average], DATA, model=net(), valid=VALID, epochs=3)
    work = workload(DATA, model=net(), valid=VALID)

    @on(phase)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.epoch == 1 else None

    suspended = run(start(work, epochs=3), [average, leave])
    in_use = [each.in_use for each in work.carried_over.averages.values()]
    final = run(suspended, [average])

    assert (suspended.phase, in_use) == (Phase.SUSPENDED, [False])
    assert final.history == once.final.history
    assert same_weights(work.model, once.model)


def test_failure_in_a_validation_gives_the_own_weights_back() -> None:
    """Whatever goes wrong while the average is in, the model is left with what was trained."""
    plain = trained([], DATA, model=net())
    work = workload(DATA, model=net(), valid=VALID)

    @on(Phase.VALID_BATCH_END)
    def fail(state: State) -> None:
        raise ZeroDivisionError

    with pytest.raises(CallbackError, match="ZeroDivisionError"):
        run(start(work, epochs=1), [ema(0.8), fail])

    assert same_weights(work.model, plain.model)


def test_extended_training_is_the_longer_one() -> None:
    """The average that it ended with was for use; it goes on with its own weights."""
    for average in (ema(0.8), swa(0)):
        once = trained([average], DATA, model=net(), epochs=3)
        work = workload(DATA, model=net())
        final = run(start(work, epochs=2), [average])
        run(extend(final, epochs=1), [average])

        assert same_weights(work.model, once.model)


def test_weights_that_were_loaded_in_between_are_trained() -> None:
    """Who loads others into the model before extending wants those, and not the own ones back."""
    work = workload(DATA, model=net())
    final = run(start(work, epochs=1), [ema(0.8)])
    work.model.load_state_dict(net().state_dict())
    look, seen = looking(Phase.TRAIN_BEGIN, lambda state: weights_of(work.model))
    run(extend(final, epochs=1), [ema(0.8), look])

    assert seen[0].equal(weights_of(net()))


def test_another_average_may_take_over() -> None:
    """A training that goes on with other callbacks has theirs."""
    work = workload(DATA, model=net(), valid=VALID)

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 2 else None

    suspended = run(start(work, epochs=2), [ema(0.8), leave])
    final = run(suspended, [swa(0)])

    assert final.phase is Phase.DONE
    assert same_weights(work.model, trained([swa(0)], DATA, model=net(), valid=VALID, epochs=2).model)


def test_new_training_has_a_new_average() -> None:
    """It begins with the weights that the model has, the last average, and forgets all others."""
    work = workload(DATA, model=net())
    run(start(work, epochs=1), [ema(0.8)])
    run(start(work, epochs=1), [ema(0.8), limit(batches=1)])

    assert work.carried_over.averages["ema"].n_averaged == 1
