"""A schedule that ends long before or after the plan is said, with both lengths; one that fits is not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from fsm_train import (
    Callback,
    CallbackError,
    Flag,
    Phase,
    Plan,
    Scripted,
    State,
    Supervised,
    Transition,
    WorkloadError,
    describe,
    extend,
    iterate,
    on,
    replay,
    run,
    start,
)
from fsm_train.callbacks import accumulate, limit, schedule, stop_after, torch_scheduler
from fsm_train.core.planned import PlannedLength, planned_length, schedule_notes
from fsm_train.schedules import (
    Schedule,
    absolute,
    constant,
    cosine,
    cosine_restarts,
    cyclic,
    exponential,
    linear,
    multistep,
    one_cycle,
    piecewise,
    polynomial,
    step,
    time_decay,
    warmup,
)
from fsm_train.testing import at, simulate


def said(caplog: pytest.LogCaptureFixture, batches: int, *callbacks: Callback[Any], epochs: int = 5) -> str:
    """What a real training with these callbacks logs about its schedules."""
    model = nn.Linear(4, 1)
    data = [(torch.ones(2, 4), torch.ones(2, 1))] * batches
    work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), data)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fsm_train"):
        run(start(work, epochs=epochs), callbacks)
    return caplog.text


def notes(*callbacks: Callback[Any], batches: Any = 4, epochs: int | None = 5, max_steps: int | None = None) -> str:
    """The notes on schedules that `describe` shows for a plan of (by default) 20 steps."""
    state = start(Scripted(batches=batches), epochs=epochs, max_steps=max_steps)
    return "\n".join(line for line in describe(callbacks, state).splitlines() if line.startswith("note: "))


def test_cosine_of_epochs_in_a_plan_of_steps_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """cosine(5), meant as epochs, leaves 15 of 20 steps at a rate of 0: both numbers are said."""
    text = said(caplog, 4, schedule(lr=cosine(5)))

    assert "schedule: lr=cosine(5) ends after 5 steps, but the plan has 20 (5 epochs, 4 batches an epoch)" in text
    assert "the last 15 have its last value, 0" in text


def test_one_cycle_longer_than_the_steps_of_accumulation_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A one_cycle of 40 steps, where accumulate takes 10, ends near the top: both numbers are said."""
    text = said(caplog, 8, schedule(lr=one_cycle(40)), accumulate(4))

    assert "lr=one_cycle(40) needs 40 steps, but the plan has 10" in text
    assert "4 batches a step" in text


def test_schedule_that_fits_is_not_said(caplog: pytest.LogCaptureFixture) -> None:
    """cosine(20) in 20 steps logs nothing."""
    assert said(caplog, 4, schedule(lr=cosine(20))) == ""


FITS = {
    "as long": cosine(20),
    "a little shorter": cosine(19),
    "a tenth longer": cosine(22),
    "a warm-up alone": warmup(3),
    "a rise": linear(0.1, 1, 3),
    "points": piecewise({0: 1.0, 5: 0.1}),
    "a meant end": cosine(5).then(constant(0.1)),
    "a chain": warmup(5).then(cosine(15)),
    "a chain without an end": warmup(5).then(exponential(0.9)),
    "milestones": multistep([8, 16]),
    "drops": step(8),
    "restarts": cosine_restarts(5),
    "cycles": cyclic(4),
    "no change": constant(0.5),
    "a constant of a length": constant(0.5, length=300),
    "a slow decay": time_decay(0.1),
    "a warmed-up decay": warmup(3) * polynomial(20),
    "a rise of values": absolute(linear(0.8, 0.9, 3)),
}


@pytest.mark.parametrize("fitting", FITS.values(), ids=FITS)
def test_what_fits_or_is_meant_is_silent(fitting: Any) -> None:
    """A schedule as long as the plan, and one whose last value is meant to be trained with, has no note."""
    assert notes(schedule(lr=fitting)) == ""


MISFITS = {
    "a decay": (polynomial(5), "ends after 5 steps, but the plan has 20"),
    "a fall": (linear(1, 0.1, 5), "ends after 5 steps, but the plan has 20"),
    "a chain": (warmup(2).then(cosine(3)), "ends after 5 steps, but the plan has 20"),
    "a product": (warmup(2) * cosine(5) * 2, "ends after 5 steps, but the plan has 20"),
    "values": (absolute(linear(0.1, 0.01, 5)), "ends after 5 steps, but the plan has 20"),
    "a warm-up": (warmup(100), "needs 100 steps, but the plan has 20"),
    "milestones": (multistep([30, 60]), "needs 60 steps, but the plan has 20"),
    "drops": (step(30), "needs 30 steps, but the plan has 20"),
    "restarts": (cosine_restarts(50), "needs 50 steps, but the plan has 20"),
    "cycles": (cyclic(20, down=10), "needs 30 steps, but the plan has 20"),
    "points": (piecewise({0: 1.0, 90: 0.1}), "needs 90 steps, but the plan has 20"),
    "a meant end too late": (cosine(90).then(constant(0.1)), "needs 90 steps, but the plan has 20"),
    "a decay for epochs": (exponential(0.1), "is down to 1e-10 half-way through the plan of 20 steps"),
}


@pytest.mark.parametrize(("misfit", "sentence"), MISFITS.values(), ids=MISFITS)
def test_each_kind_that_does_not_fit_is_said(misfit: Any, sentence: str) -> None:
    """The note of a schedule of any kind has its length and that of the plan."""
    assert sentence in notes(schedule(lr=misfit))


def test_schedule_of_ones_own_is_judged_by_its_values() -> None:
    """A user's schedule with a length is a decay if it ends below where it was, and a rise otherwise."""

    @attrs.frozen(repr=False)
    class line(Schedule):  # noqa: N801 - called like a function
        length: int
        last: float

        def at(self, progress: float) -> float:
            return 1 + (self.last - 1) * min(progress / self.length, 1)

    assert "lr=line(5, 0.5) ends after 5 steps" in notes(schedule(lr=line(5, 0.5)))
    assert notes(schedule(lr=line(5, 1.5))) == ""
    assert notes(schedule(lr=lambda progress: 0.5)) == ""


@pytest.mark.parametrize(
    ("callbacks", "plan", "sentence"),
    [
        ([schedule(lr=cosine(20), by="epoch")], {}, "needs 20 epochs, but the plan has 5"),
        ([schedule(lr=cosine(5), by="iteration")], {}, "ends after 5 batches, but the plan has 20"),
        ([schedule(lr=cosine(20))], {"max_steps": 10}, "needs 20 steps, but the plan has 10"),
        ([schedule(lr=cosine(5))], {"epochs": None, "max_steps": 20}, "ends after 5 steps, but the plan has 20"),
        ([schedule(lr=cosine(20)), limit(batches=2)], {}, "needs 20 steps, but the plan has 10"),
        ([schedule(lr=cosine(20)), stop_after(steps=10)], {}, "needs 20 steps, but the plan has 10"),
        ([schedule(momentum=cosine(5), lr=cosine(20))], {}, "momentum=cosine(5) ends after 5 steps"),
        ([schedule(lr=cosine(5), name="mine")], {}, "mine: lr=cosine(5) ends"),
    ],
)
def test_unit_and_plan_are_counted_in(callbacks: list[Any], plan: dict[str, Any], sentence: str) -> None:
    """Each unit is compared with the plan in that unit, after max_steps, limit and stop_after."""
    assert sentence in notes(*callbacks, **plan)


@pytest.mark.parametrize(
    ("every", "plan", "batches", "expected"),
    [
        (1, Plan(epochs=3), 4, (12, 12, 3)),
        (3, Plan(epochs=3), 4, (6, 12, 3)),
        ({0: 1, 2: 4}, Plan(epochs=5), 10, (29, 50, 5)),
        ({0: 2, 9: 4}, Plan(epochs=2), 4, (4, 8, 2)),
        ({0: 1, 1: 2}, Plan(max_steps=6), 4, (6, 8, 2)),
        (1, Plan(max_steps=6), 4, (6, 6, 2)),
        (1, Plan(epochs=2, max_steps=100), 4, (8, 8, 2)),
        (1, Plan(epochs=2), None, (None, None, 2)),
        (1, Plan(epochs=2, max_steps=6), None, (None, None, None)),
        (1, Plan(max_steps=6), None, (6, None, None)),
        (1, Plan(epochs=2), 0, (None, None, 2)),
    ],
)
def test_length_of_a_plan(every: Any, plan: Plan, batches: int | None, expected: tuple[Any, ...]) -> None:
    """Steps, batches and epochs of a plan are those that its training takes; None where that is not known."""
    state = State(Phase.READY, plan, batches_per_epoch=batches)
    length = planned_length(state, [accumulate(every)])

    assert (length.step, length.iteration, length.epoch) == expected
    if batches and expected[0]:
        final = run(start(Scripted(batches=batches), epochs=plan.epochs, max_steps=plan.max_steps), [accumulate(every)])
        assert (final.step, final.iteration, final.epoch) == expected


def test_windows_that_are_never_full_have_no_length() -> None:
    """accumulate(8, drop_last=True) of 4 batches takes no step, so a plan of steps has no known end."""
    state = State(Phase.READY, Plan(max_steps=5), batches_per_epoch=4)

    assert planned_length(state, [accumulate(8, drop_last=True)]).step is None
    assert planned_length(state, [accumulate(3, drop_last=True)]) == PlannedLength(
        5, 19, 5, "4 batches an epoch, 3 batches a step, at most 5 steps"
    )


def test_unknown_lengths_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    """Where train has no len(), nothing is said of a schedule that counts steps."""

    class Endless:
        def __iter__(self) -> Any:
            return iter([(torch.ones(2, 4), torch.ones(2, 1))] * 4)

    model = nn.Linear(4, 1)
    work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), Endless())

    assert work.batches_per_epoch is None
    assert schedule_notes([schedule(lr=cosine(5))], start(work, epochs=5)) == []
    assert "needs 20 epochs" in "".join(schedule_notes([schedule(lr=cosine(20), by="epoch")], start(work, epochs=5)))


def test_extension_past_the_end_of_a_schedule_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A training whose schedule is finished says so when it is extended."""
    callbacks = [schedule(lr=cosine(20))]
    final = run(start(Scripted(batches=4), epochs=5), callbacks)
    assert caplog.text == ""

    run(extend(final, epochs=5), callbacks)
    assert "lr=cosine(20) ends after 20 steps, but the plan has 40" in caplog.text


# --------------------------------------------------------------------------------- by="training"


def rates(*callbacks: Callback[Any], **plan: Any) -> list[float]:
    """The rate of each step."""
    seen: list[Any] = []

    @on(Phase.STEP_END)
    def look(state: State) -> None:
        seen.append(state.hyper["lr"])

    simulate([*callbacks, look], **plan)
    return seen


@pytest.mark.parametrize("length", [1, 20, 1000])
@pytest.mark.parametrize("kind", [cosine, polynomial, one_cycle])
def test_stretched_schedule_is_the_one_of_the_plans_length(kind: Any, length: int) -> None:
    """By training, a schedule of any length gives the rates of the one that is as long as the plan."""
    expected = rates(schedule(lr=kind(20)), batches=4, epochs=5)

    assert rates(schedule(lr=kind(length), by="training"), batches=4, epochs=5) == pytest.approx(expected, rel=1e-12)
    assert rates(schedule(lr=kind(length), by="training"), max_steps=20) == pytest.approx(expected, rel=1e-12)


def test_stretched_parts_keep_their_shares_with_accumulation() -> None:
    """warmup(1).then(cosine(9)) warms up for a tenth of the steps, however many batches each has."""
    expected = rates(schedule(lr=warmup(1).then(cosine(9)), by="training"), batches=10, epochs=2)
    accumulated = rates(schedule(lr=warmup(1).then(cosine(9)), by="training"), accumulate(5), batches=50, epochs=2)

    assert accumulated == expected
    assert rates(schedule(lr=absolute(one_cycle(1)), by="training"), max_steps=5) == [one_cycle(5)(i) for i in range(5)]


def test_function_is_given_the_finished_share_of_the_plan() -> None:
    """A function without a length gets 0 at the first step, and as much more with each."""
    shares = rates(schedule(lr=absolute(lambda share: share), by="training"), batches=2, epochs=2)

    assert shares == [0.0, 0.25, 0.5, 0.75]
    assert rates(schedule(lr=exponential(0.25), by="training"), batches=2, hyper={"lr": 1.0}) == [1.0, 0.5]


def test_stretched_schedule_resumes_exactly_and_replays(tmp_path: Any) -> None:
    """Suspended inside a window, it goes on as if it had not been; and its log replays."""
    callbacks = [schedule(lr=cosine(1), by="training"), accumulate(4)]

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 6 else None

    whole = simulate(callbacks, batches=10, epochs=2)
    log = tmp_path / "run.jsonl"
    suspended = run(start(Scripted(batches=10), epochs=2), [*callbacks, leave], log=log)
    resumed = run(suspended, [*callbacks, leave], log=log)

    assert suspended.pending > 0
    assert resumed.hyper == whole.hyper
    assert replay(log, [*callbacks, leave]).ok


def test_extension_stretches_over_the_longer_plan() -> None:
    """After extend, the share is that of the whole longer plan."""
    callbacks = [schedule(lr=cosine(1), by="training")]
    final = run(start(Scripted(batches=4), epochs=5), callbacks)
    extended = run(extend(final, epochs=5), callbacks)

    assert extended.hyper["lr"] == pytest.approx(0.1 * cosine(40)(39))


def test_unknown_length_is_refused_by_training() -> None:
    """Epochs of an unknown number of batches cannot be stretched over: asked for max_steps before the first step."""
    with pytest.raises(CallbackError, match=r"its length is not known.*max_steps") as refused:
        simulate([schedule(lr=cosine(1), by="training")], batches=lambda state: 4, epochs=5)
    assert refused.value.phase is Phase.SETUP


@pytest.mark.parametrize("counted", [step(30), multistep([30]), cosine_restarts(5), cyclic(4), warmup(5) * step(9)])
def test_schedule_that_counts_without_an_end_is_refused_by_training(counted: Schedule) -> None:
    """What its numbers would be parts of is not known."""
    with pytest.raises(ValueError, match=r"has no end, so it cannot be stretched over the training"):
        schedule(lr=counted, by="training")


def test_state_between_batches_has_a_share_too() -> None:
    """A finished plan is finished to the last bit, and more than finished is not told apart from it."""
    from fsm_train.callbacks.scheduling import finished_share

    assert finished_share(at(Phase.EPOCH_END, plan=Plan(epochs=3), epoch=3, batch=7, batches_per_epoch=7)) == (21, 21)
    both = at(Phase.STEP_BEGIN, plan=Plan(epochs=4, max_steps=10), epoch=1, batches_per_epoch=7, step=9, pending=1)
    assert finished_share(both) == (9, 10)


# ------------------------------------------------------------------------------ torch's own schedulers

TORCH: dict[str, tuple[Callable[[Any], Any], list[Any], str]] = {
    "a cosine of epochs": (lambda o: lr_scheduler.CosineAnnealingLR(o, 5), [], "CosineAnnealingLR(T_max=5) ends after"),
    "one cycle of all batches": (
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
        [accumulate(4)],
        "OneCycleLR(total_steps=20) needs 20 steps, but the plan has 5",
    ),
    "one cycle by epochs and steps of an epoch": (
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, epochs=8, steps_per_epoch=4),
        [],
        "OneCycleLR(total_steps=32) needs 32 steps, but the plan has 20 (5 epochs, 4 batches an epoch)",
    ),
    "a polynomial": (lambda o: lr_scheduler.PolynomialLR(o, 9), [], "the last 11 are beyond its end"),
    "restarts": (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 50), [], "needs 50 steps"),
    "drops": (lambda o: lr_scheduler.StepLR(o, 30), [], "StepLR(step_size=30) needs 30 steps"),
    "milestones": (lambda o: lr_scheduler.MultiStepLR(o, [9, 90]), [], "MultiStepLR(milestones=[9, 90]) needs 90"),
    "a warm-up": (lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=100), [], "needs 100 steps"),
    "a chain": (
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o, 0.1, 3), lr_scheduler.CosineAnnealingLR(o, 4)], [3]
        ),
        [],
        "SequentialLR(…, CosineAnnealingLR(T_max=4)) from 3 ends after 7 steps, but the plan has 20",
    ),
}


def supervised(batches: int = 4) -> Supervised:
    model = nn.Linear(4, 1)
    data = [(torch.ones(2, 4), torch.ones(2, 1))] * batches
    return Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), nn.MSELoss(), data)


@pytest.mark.parametrize("misfit", TORCH)
def test_a_scheduler_of_torch_that_does_not_fit_is_said(misfit: str, caplog: pytest.LogCaptureFixture) -> None:
    """Before the first batch, in the log and by `describe`, with both lengths."""
    make, others, sentence = TORCH[misfit]
    state, callbacks = start(supervised(), epochs=5), [torch_scheduler(make), *others]

    assert sentence in describe(callbacks, state)
    with caplog.at_level(logging.WARNING, "fsm_train"):
        next(iterate(state, callbacks, at=[Phase.SETUP]))
    assert sentence in caplog.text


@pytest.mark.parametrize(
    ("make", "by"),
    [
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 20), "step"),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 5), "epoch"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=21), "step"),
        (lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=3), "step"),
        (lambda o: lr_scheduler.StepLR(o, 7), "step"),
        (lambda o: lr_scheduler.ExponentialLR(o, 0.9), "step"),
        (lambda o: lr_scheduler.MultiStepLR(o, []), "step"),
        (lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.5), "step"),
        (lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(o, 0.9)]), "step"),
        (
            lambda o: lr_scheduler.SequentialLR(
                o, [lr_scheduler.LinearLR(o, 0.1, 1, 3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
            ),
            "step",
        ),
        (
            lambda o: lr_scheduler.SequentialLR(
                o, [lr_scheduler.CosineAnnealingLR(o, 3), lr_scheduler.StepLR(o, 9)], [3]
            ),
            "step",
        ),
    ],
)
def test_a_scheduler_of_torch_that_fits_or_has_no_length_is_silent(make: Any, by: Any) -> None:
    """In the unit that it is stepped in."""
    assert "note:" not in describe([torch_scheduler(make, by=by)], start(supervised(), epochs=5))


def test_looking_at_the_length_of_a_scheduler_changes_nothing() -> None:
    """Neither the optimizer nor a generator; and what fails then fails where it is made."""
    work = supervised()
    work.optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)

    def make(optimizer: Any) -> Any:
        torch.rand(3)
        return lr_scheduler.LinearLR(optimizer, 0.01, total_iters=100)

    before = {key: value for key, value in work.optimizer.param_groups[0].items() if key != "params"}
    assert "needs 100" in describe([torch_scheduler(make)], start(work, epochs=5))
    after = {key: value for key, value in work.optimizer.param_groups[0].items() if key != "params"}

    assert after == before
    assert torch.equal(torch.rand(1), expected)
    assert "step" not in vars(work.optimizer)
    broken = torch_scheduler(lambda optimizer: 1 / 0)
    assert "note:" not in describe([broken], start(work, epochs=5))
    with pytest.raises(ZeroDivisionError):
        run(start(work, epochs=5), [broken])


def test_a_workload_without_torch_knows_no_length() -> None:
    """Nothing is said in a simulation."""
    misfit = torch_scheduler(lambda o: lr_scheduler.CosineAnnealingLR(o, 5))

    assert notes(misfit) == ""


def test_a_scheduler_of_another_optimizer_is_refused() -> None:
    """Made before, or of an optimizer that is not trained: it would set nothing."""
    work, other = supervised(), supervised()
    ready = lr_scheduler.StepLR(other.optimizer, 3)

    with pytest.raises(WorkloadError, match=r"the StepLR of 'torch_scheduler' is one of another optimizer"):
        run(start(work, epochs=1), [torch_scheduler(lambda optimizer: ready)])


def test_a_scheduler_that_was_made_of_the_optimizer_is_taken() -> None:
    """It need not be made by the function that returns it."""
    work = supervised()
    ready = lr_scheduler.StepLR(work.optimizer, 1, 0.5)

    assert run(start(work, epochs=1), [torch_scheduler(lambda optimizer: ready)]).hyper["lr"] == 0.1 / 16
