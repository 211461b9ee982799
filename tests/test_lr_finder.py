"""Finding a learning rate, on real digits; and leaving no trace of it."""

from __future__ import annotations

import copy
import math
import os
import random
import signal
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Flag, LrFound, Phase, Scripted, State, Supervised, Transition, find_lr, on, run, start
from fsm_train.callbacks import ema
from fsm_train.lr_finder import lr_range_test
from fsm_train.testing import at, drive
from tests.diabetes_training import batches, net, workload
from tests.models import Noisy, diabetes, digits, network, shuffled

CROSS_ENTROPY = nn.CrossEntropyLoss()


def of_digits(loss_fn: Any = CROSS_ENTROPY, **settings: Any) -> Supervised:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Supervised(model, optimizer, loss_fn, shuffled(Noisy(digits())), shuffled(digits(64)), **settings)


# ------------------------------------------------------------------------------------ what is found


def test_rates_rise_exponentially() -> None:
    """From low to high, with a loss for each, and the smoothed losses are corrected for their beginning."""
    found = find_lr(start(of_digits(), epochs=1, seed=0), low=1e-5, high=1e-3, steps=5)

    assert found.rates == pytest.approx([1e-5, 10**-4.5, 1e-4, 10**-3.5, 1e-3])
    averages, average = [], 0.0
    for i, loss in enumerate(found.losses):
        average = 0.98 * average + 0.02 * loss
        averages.append(average / (1 - 0.98 ** (i + 1)))
    assert found.smoothed == pytest.approx(averages)


def test_suggestion_trains_real_digits_well() -> None:
    """With the suggested rate two epochs bring the loss further down than with a hundredth of it."""
    work = of_digits()
    suggestion = find_lr(start(work, epochs=1, seed=0)).suggestion
    losses = []
    for rate in (suggestion, suggestion / 100):
        work = of_digits()
        work.set_hyper({"lr": rate})
        losses.append(run(start(work, epochs=2, seed=0)).metrics["valid_loss"])

    assert 1e-3 < suggestion < 2
    assert losses[0] < losses[1]


def test_it_stops_when_the_loss_diverges() -> None:
    """Four times the best smoothed loss is enough, and the rates are those up to there."""
    work = workload(batches(8, 8, 8, 6))
    found = find_lr(start(work, epochs=1), low=1e-3, high=1e3, steps=200)

    assert len(found.rates) == len(found.losses) == len(found.smoothed) < 200
    assert found.smoothed[-1] <= 4 * min(found.smoothed)
    assert found.suggestion < found.rates[-1]


@pytest.mark.parametrize(("times", "diverged"), [(3.9, False), (4.1, True)])
def test_four_times_the_best_smoothed_loss_is_too_much(times: float, diverged: bool) -> None:
    """As in fastai: the smoothed loss counts, and not that of one batch, which is much higher here."""
    second = (times * (1 - 0.98**2) - 0.98 * 0.02) / 0.02  # what brings the average of 1.0 and this to `times`
    states = [at(Phase.STEP_BEGIN, loss=loss) for loss in (1.0, second)]

    assert second > times
    assert [bool(answer.flags) for answer in drive(lr_range_test(0.1, 1.0, 10), states)] == [False, diverged]


def test_another_multiple_of_the_best_loss_may_be_too_much() -> None:
    """None tries all the rates, as long as the loss is finite, so that one sees how it diverges."""
    ends = [
        len(find_lr(start(workload(batches(8, 8, 8, 6)), epochs=1), low=1e-3, high=1e2, steps=40, diverged=limit).rates)
        for limit in (1.1, 1e9, None)
    ]

    assert ends[0] < ends[1] < ends[2] <= 40


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_it_stops_when_the_loss_is_not_finite(loss: float) -> None:
    """That step is not taken, whatever is said of the stop."""
    (answer,) = drive(lr_range_test(0.1, 1.0, 10, diverged=None), [at(Phase.STEP_BEGIN, loss=loss)])

    assert answer.flags == Flag.STOP_TRAINING | Flag.STOP_EPOCH | Flag.SKIP_STEP
    assert answer.reason == "the loss diverged at 0.1"


def test_negative_losses_do_not_diverge_by_themselves() -> None:
    """A log-likelihood may well be below zero."""
    states = [at(Phase.STEP_BEGIN, loss=loss) for loss in (-1.0, -1.5, -2.0, -1.9, 90.0, 500.0)]

    assert [bool(answer.flags) for answer in drive(lr_range_test(0.1, 1.0, 10), states)] == [*[False] * 4, True, True]


def test_sweep_does_not_validate() -> None:
    """However small the epochs are."""
    calls: list[bool] = []

    def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(output.requires_grad)
        return CROSS_ENTROPY(output, target)

    find_lr(start(of_digits(loss_fn), epochs=1, seed=0), steps=25)

    assert calls == [True] * 25


def test_suggestion_is_where_the_loss_falls_fastest() -> None:
    """Before the lowest point of the smoothed losses."""
    curve = (2.0, 1.95, 1.8, 1.2, 0.9, 0.85, 1.5, 0.1 + 3)

    assert LrFound(tuple(10.0**i for i in range(8)), curve, curve).suggestion == 1e3
    assert LrFound((1.0, 2.0, 3.0), (3.0, 2.0, 1.0), (3.0, 2.0, 1.0)).suggestion == 2.0
    with pytest.raises(ValueError, match="2 rates are too few to suggest one"):
        _ = LrFound((1.0, 2.0), (1.0, 1.0), (1.0, 1.0)).suggestion


@pytest.mark.parametrize("seed", range(6))
def test_chance_in_the_first_losses_suggests_nothing(seed: int) -> None:
    """Small batches lose more or less by chance: a rate at which nothing is learned yet is not the steepest."""
    torch.manual_seed(seed)
    inputs, target = diabetes().tensors
    data = shuffled(TensorDataset(10 * inputs, target))
    model = torch.nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters())

    found = find_lr(start(Supervised(model, optimizer, nn.MSELoss(), data), epochs=1, seed=seed))

    assert 3e-3 < found.suggestion < 0.3


def test_suggestion_comes_before_the_lowest_loss_wherever_that_is() -> None:
    """Also where it is among the first of many rates."""
    for lowest in range(1, 100):
        losses = tuple(float(abs(at - lowest)) for at in range(100))
        rates = tuple(1e-7 * 1.2**at for at in range(100))

        assert LrFound(rates, (), losses).suggestion <= rates[lowest]


def test_plot_shows_what_was_found() -> None:
    """On axes of its own, or on those that are given."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = LrFound((0.1, 1.0, 10.0), (3.0, 2.0, 4.0), (3.0, 2.0, 2.5))
    axes = found.plot()
    _, own = pyplot.subplots()

    assert axes.get_xscale() == "log"
    assert [line.get_label() for line in axes.lines] == ["loss", "smoothed", "suggestion 1"]
    assert found.plot(own) is own
    rising = LrFound((0.1, 1.0, 10.0), (1.0, 2.0, 4.0), (1.0, 2.0, 4.0)).plot(pyplot.subplots()[1])
    assert [line.get_label() for line in rising.lines] == ["loss", "smoothed"]
    assert LrFound((0.1,), (3.0,), (3.0,)).plot().get_xlabel() == LrFound((), (), ()).plot().get_xlabel()
    pyplot.close("all")


def test_plot_is_not_flattened_by_a_loss_that_diverged() -> None:
    """The smoothed losses fill it, whatever a single batch lost."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = LrFound((0.1, 1.0, 10.0), (3.0, 2.0, 900.0), (3.0, 2.0, 6.0)).plot()

    assert axes.get_ylim() == (0.0, 7.0)
    pyplot.close("all")


# ----------------------------------------------------------------------------------- without a trace


def everything(work: Supervised) -> list[Any]:
    """All that a training changes, as comparable values."""
    generators = [torch.get_rng_state(), *(generator.get_state() for generator in work.loader_generators())]
    tensors = [
        *work.model.state_dict().values(),
        *(parameter.grad for parameter in work.model.parameters()),
        *(value for state in work.optimizer.state.values() for value in state.values()),
        *generators,
    ]
    return [
        *(tensor.tolist() if isinstance(tensor, torch.Tensor) else tensor for tensor in tensors),
        [{k: v for k, v in group.items() if k != "params"} for group in work.optimizer.param_groups],
        [module.training for module in work.model.modules()],
        random.getstate(),
        np.random.get_state()[1].tolist(),
    ]


def trained_a_little(loss_fn: Any = CROSS_ENTROPY) -> Supervised:
    """A workload in the middle of things: with momentum, gradients, modes, and generators that were used."""
    work = of_digits(loss_fn)
    work.train = DataLoader(digits(), 32, shuffle=True, generator=torch.Generator().manual_seed(5))
    run(start(work, epochs=1, seed=3))
    CROSS_ENTROPY(work.model(digits(8).tensors[0]), digits(8).tensors[1]).backward()
    work.model[1].eval()  # type: ignore[index]
    return work


@pytest.mark.parametrize("seed", [None, 7])
def test_it_leaves_no_trace(seed: int | None) -> None:
    """Model, gradients, modes, optimizer with its momentum, and all generators are as before."""
    work = trained_a_little()
    before = copy.deepcopy(everything(work))
    find_lr(start(work, epochs=1, seed=seed), steps=20)

    assert everything(work) == before


def test_it_leaves_no_trace_of_a_failure() -> None:
    """Also when the loss function raises in the middle of it."""
    calls: list[int] = []

    def fails(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 30:
            raise ZeroDivisionError
        return CROSS_ENTROPY(output, target)

    work = trained_a_little(fails)
    before = copy.deepcopy(everything(work))
    with pytest.raises(ZeroDivisionError):
        find_lr(start(work, epochs=1))

    assert everything(work) == before


def test_training_after_it_is_as_if_it_had_not_been() -> None:
    """To the last bit, batches and noise included."""
    weights = []
    for look_first in (False, True):
        torch.manual_seed(2)
        work = of_digits()
        state = start(work, epochs=2)
        if look_first:
            find_lr(state, steps=15)
        run(state)
        weights.append([value.tolist() for value in work.model.state_dict().values()])

    assert weights[0] == weights[1]


def test_averages_of_a_training_are_left_alone() -> None:
    """What the workload keeps for a training that may be extended is still there."""
    work = workload(batches(8, 8), model=net())
    run(start(work, epochs=1), [ema(0.9)])
    kept = work.carried_over.averages["ema"]
    find_lr(start(work, epochs=1), steps=5)

    assert work.carried_over.averages["ema"] is kept


def test_interrupt_is_passed_on() -> None:
    """Ctrl-C in the middle of it is no shorter search, and leaves no trace either."""
    calls: list[int] = []

    def interrupts(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 30:
            os.kill(os.getpid(), signal.SIGINT)
        return CROSS_ENTROPY(output, target)

    work = trained_a_little(interrupts)
    before = copy.deepcopy(everything(work))
    with pytest.raises(KeyboardInterrupt, match="interrupted by SIGINT"):
        find_lr(start(work, epochs=1))

    assert everything(work) == before


# ------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"low": 0.0}, "low=0.0, high=10.0: rates are positive, and high is higher"),
        ({"low": 1.0, "high": 0.5}, "low=1.0, high=0.5"),
        ({"high": math.inf}, "high=inf"),
        ({"low": "a"}, "low='a'"),
        ({"steps": 2}, "steps=2: it is a whole number from 3"),
        ({"steps": True}, "steps=True"),
        ({"diverged": 1.0}, "diverged=1.0: it is a multiple of the best loss, above 1, or None"),
        ({"diverged": "4"}, "diverged='4'"),
    ],
)
def test_settings_are_checked(settings: Any, sentence: str) -> None:
    """Before anything is trained."""
    with pytest.raises((ValueError, TypeError), match=sentence):
        find_lr(start(workload(), epochs=1), **settings)


def test_only_a_training_that_has_not_begun_is_tried_out() -> None:
    """A state that a run returned is refused."""
    final = run(start(workload(), epochs=1))

    with pytest.raises(ValueError, match=r"find_lr begins with the state of start\(workload, …\)"):
        find_lr(final)


# ----------------------------------------------------------------------- a workload that is used again


def test_suspended_training_is_not_taken_for_another() -> None:
    """Once another training has used the workload, the suspended one cannot go on: it says so."""
    work = workload(batches(8, 8, 8))
    suspended = run(start(work, epochs=1), [leave_after_a_batch])
    run(start(work, epochs=1))

    with pytest.raises(ValueError, match="its model, optimizer and data are at 3"):
        run(suspended)


def test_suspended_training_goes_on_after_rates_were_tried() -> None:
    """The place in the data is put back too: the rest of the epoch is the undisturbed one."""
    whole, disturbed = workload(batches(8, 8, 8)), workload(batches(8, 8, 8))
    expected = run(start(whole, epochs=2)).metrics
    suspended = run(start(disturbed, epochs=2), [leave_after_a_batch])

    find_lr(start(disturbed, epochs=1), steps=5)

    assert run(suspended).metrics == expected


@on(Phase.BATCH_END)
def leave_after_a_batch(state: State) -> Transition | None:
    return Transition(flags=Flag.SUSPEND) if state.iteration == 1 else None


def test_scripted_training_is_put_back_too() -> None:
    """Without a model, the rates and the script are afterwards where they were."""
    work = Scripted(batches=50, loss=[1.0 - i / 50 for i in range(50)], hyper={"lr": 0.3})
    state = start(work, max_steps=50)

    found = [find_lr(state, steps=20) for _ in range(2)]

    assert found[0] == found[1]
    assert found[0].losses[0] == 1.0
    assert work.hyper() == {"lr": 0.3}
