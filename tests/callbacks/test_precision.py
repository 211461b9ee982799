"""Half precision and parallel wrappers, beside loops that do the same by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

from fsm_train import (
    CallbackError,
    ConflictError,
    Flag,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    extend,
    on,
    run,
    start,
)
from fsm_train.callbacks import (
    accumulate,
    clip_grad_norm,
    detect_anomaly,
    freeze,
    mixed_precision,
    parallel,
    schedule,
    skip_nonfinite,
)
from fsm_train.core.commands import UseMixedPrecision, UseParallel
from fsm_train.testing import at
from tests.diabetes_training import Batch, batches, looking, net, sgd, trained, weights_of, workload
from tests.models import leave_after, same_weights

DATA = batches(8, 8, 8, 6)
HUGE = 2.0**30  # a scale with which the gradients of these losses overflow in float16


# ------------------------------------------------------------------------------------------ as data


def test_precision_is_put_in_place_at_setup() -> None:
    """One command, in every call of run."""
    ask = mixed_precision("float16", initial_scale=8.0, growth_interval=5)

    assert ask.at == (Phase.SETUP,)
    assert ask(at(Phase.SETUP)) == Transition(commands=(UseMixedPrecision("float16", 8.0, 5),))


def test_wrapper_is_put_in_place_before_everything_else() -> None:
    """What other commands do at SETUP finds it there."""
    assert parallel().order < mixed_precision().order
    assert parallel("ddp")(at(Phase.SETUP)) == Transition(commands=(UseParallel("ddp"),))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: mixed_precision("float32"), "dtype='float32': 'bfloat16' or 'float16'"),  # type: ignore[arg-type]
        (lambda: mixed_precision("float16", initial_scale=0), "initial_scale=0: it must be a positive number"),
        (lambda: mixed_precision("float16", growth_interval=0), "growth_interval=0: it is a whole number from 1"),
        (lambda: parallel("horovod"), "kind='horovod': 'data_parallel' or 'ddp'"),  # type: ignore[arg-type]
    ],
)
def test_settings_are_checked_when_made(make: Callable[[], object], sentence: str) -> None:
    """Nonsense is refused on the spot."""
    with pytest.raises(ValueError, match=sentence):
        make()


def test_settings_are_recorded() -> None:
    """What they were made with, and under which name."""
    half, wrapped = mixed_precision(name="half"), parallel()

    assert (half.name, half.params) == (
        "half",
        {"dtype": "bfloat16", "initial_scale": 65536.0, "growth_interval": 2000},
    )
    assert (wrapped.name, wrapped.params) == ("parallel", {"kind": "data_parallel"})


@pytest.mark.parametrize(
    "twice", [[mixed_precision(), mixed_precision("float16", name="b")], [parallel(), parallel(name="b")]]
)
def test_only_one_of_a_kind(twice: list[Any]) -> None:
    """Two of them is a conflict that is known before anything runs."""
    with pytest.raises(ConflictError, match="both give the command Use"):
        run(start(workload(), epochs=1), twice)


def test_two_that_do_not_say_so_are_refused_at_setup() -> None:
    """Callbacks of one's own need not declare their commands."""

    @on(Phase.SETUP, name="mine")
    def mine(state: State) -> Transition:
        return Transition(commands=(UseMixedPrecision("bfloat16"),))

    with pytest.raises(ConflictError, match="'mine' and 'mixed_precision' both give the command UseMixedPrecision"):
        trained([mixed_precision(), mine])


# --------------------------------------------------------------------------------------- by hand


@attrs.define
class Loop:
    """Training with autocast and a gradient scaler, written out."""

    dtype: torch.dtype = torch.float16
    scale: float = 2.0**16
    interval: int = 2000
    every: int = 1
    max_norm: float | None = None
    rate: Callable[[int], float] | None = None
    steps: int = 0
    stepped: list[bool] = attrs.field(factory=list)
    model: nn.Module = attrs.field(factory=net)

    def run(self, data: list[Batch], epochs: int = 1) -> Loop:
        optimizer = sgd(self.model)
        enabled = self.dtype is torch.float16
        scaler = torch.amp.GradScaler("cpu", init_scale=self.scale, growth_interval=self.interval, enabled=enabled)
        for _ in range(epochs):
            for first in range(0, len(data), self.every):
                window = data[first : first + self.every]
                for inputs, target in window:
                    with torch.autocast("cpu", dtype=self.dtype):
                        loss = nn.functional.mse_loss(self.model(inputs), target)
                    scaler.scale(loss / len(window)).backward()
                scaler.unscale_(optimizer)
                if self.max_norm is not None:
                    nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
                if self.rate is not None:
                    optimizer.param_groups[0]["lr"] = 0.05 * self.rate(self.steps)
                before = scaler.get_scale()
                scaler.step(optimizer)
                scaler.update()
                self.stepped.append(scaler.get_scale() >= before)
                self.steps += self.stepped[-1]
                optimizer.zero_grad()
        self.scale = scaler.get_scale()
        return self


def scale_of(work: Supervised) -> float:
    assert work.carried_over.scaler is not None
    return float(work.carried_over.scaler["scale"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_those_of_the_loop_by_hand(dtype: Any) -> None:
    """Bit for bit, with torch's own autocast and scaler."""
    ours = trained([mixed_precision(dtype)], DATA, model=net(), epochs=3)

    assert same_weights(ours.model, Loop(getattr(torch, dtype)).run(DATA, epochs=3).model)
    assert not same_weights(ours.model, trained([], DATA, model=net(), epochs=3).model)


def test_bfloat16_needs_no_scaler() -> None:
    """It has the range of float32, so that every step is taken."""
    look, stepped = looking(Phase.STEP_END, lambda state: state.facts["stepped"], needs={"stepped"})
    ours = trained([mixed_precision("bfloat16"), look], DATA)

    assert stepped == [1.0] * 4
    assert ours.work.carried_over.scaler is None


def test_overflow_holds_the_step_back() -> None:
    """It is a fact, the counter waits with it, and the scale is halved until steps are taken again."""
    look, seen = looking(Phase.STEP_END, lambda s: (s.facts["stepped"], s.step), needs={"stepped"})
    ours = trained([mixed_precision("float16", initial_scale=HUGE), look], DATA, model=net(), epochs=5)
    loop = Loop(scale=HUGE).run(DATA, epochs=5)

    assert [bool(stepped) for stepped, _ in seen] == loop.stepped
    assert [step for _, step in seen] == [sum(loop.stepped[: i + 1]) for i in range(20)]
    assert 0 < loop.steps < 20
    assert (ours.final.step, scale_of(ours.work)) == (loop.steps, loop.scale)
    assert same_weights(ours.model, loop.model)


def test_scale_grows_again() -> None:
    """After so many steps in a row the scale is doubled, as the loop does."""
    ours = trained([mixed_precision("float16", initial_scale=8.0, growth_interval=3)], DATA, model=net(), epochs=2)

    assert scale_of(ours.work) == Loop(scale=8.0, interval=3).run(DATA, epochs=2).scale == 32.0


def test_accumulation_and_clipping_see_true_gradients() -> None:
    """Windows of two, clipped once each after unscaling, are those of the loop, to the rounding of float16."""
    callbacks = [clip_grad_norm(0.5), accumulate(2), mixed_precision("float16", initial_scale=2.0**24)]
    data = batches(8, 8, 8, 8)
    ours = trained(callbacks, data, model=net(), epochs=8)
    loop = Loop(scale=2.0**24, every=2, max_norm=0.5).run(data, epochs=8)

    assert 0 < ours.final.step == loop.steps < 16
    assert scale_of(ours.work) == loop.scale
    assert torch.allclose(ours.weights, weights_of(loop.model), rtol=1e-2, atol=1e-3)


def test_schedules_wait_for_steps_that_were_held_back() -> None:
    """The rate of step i is used by the i-th step that was taken, as in the loop."""

    def rate(step: int) -> float:
        return 0.5**step

    ours = trained([mixed_precision("float16", initial_scale=HUGE), schedule(lr=rate)], DATA, model=net(), epochs=5)

    assert same_weights(ours.model, Loop(scale=HUGE, rate=rate).run(DATA, epochs=5).model)


# ------------------------------------------------------- unscaled, and then no step after all


def test_skipped_overflow_lowers_the_scale() -> None:
    """Where a callback skips the step of an infinite gradient, the scaler learns of it all the same."""
    ours = trained(
        [skip_nonfinite(limit=50), mixed_precision("float16", initial_scale=HUGE)], DATA, model=net(), epochs=5
    )
    loop = Loop(scale=HUGE).run(DATA, epochs=5)

    assert (ours.final.step, scale_of(ours.work)) == (loop.steps, loop.scale)
    assert same_weights(ours.model, loop.model)


def _not_yet(*moments: int, flags: Flag = Flag.SKIP_STEP | Flag.SKIP_ZERO, phase: Phase = Phase.STEP_BEGIN) -> Any:
    @on(phase)
    def not_yet(state: State) -> Transition | None:
        return Transition(flags=flags) if state.iteration in moments else None

    return not_yet


def sums(data: list[Batch], *windows: tuple[int, ...], model: nn.Module) -> nn.Module:
    """The model after a step for each window, with the sum of the gradients of its batches."""
    optimizer = sgd(model)
    for window in windows:
        for i in window:
            with torch.autocast("cpu", dtype=torch.float16):
                loss = nn.functional.mse_loss(model(data[i][0]), data[i][1])
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_window_goes_on_after_a_step_that_was_not_taken() -> None:
    """Gradients that were unscaled for nothing get their scale back, so that those to come count the same."""
    ours = trained([mixed_precision("float16", initial_scale=64.0), _not_yet(1)], DATA, model=net())

    assert ours.final.step == 3
    assert ours.weights.allclose(weights_of(sums(DATA, (0,), (1, 2), (3,), model=net())), rtol=1e-3, atol=1e-4)


def test_last_step_that_was_not_taken_is_that_of_the_leftover_window() -> None:
    """At the end of the epoch it is unscaled again: once is enough."""
    ours = trained([mixed_precision("float16", initial_scale=64.0), _not_yet(3)], DATA, model=net())

    assert ours.final.step == 4
    assert ours.weights.allclose(weights_of(sums(DATA, (0,), (1,), (2,), (3,), model=net())), rtol=1e-3, atol=1e-4)


def test_gradients_that_are_kept_over_a_step_keep_their_size() -> None:
    """Kept gradients are at their true size after a step, and count as such beside scaled ones."""
    keep = _not_yet(1, flags=Flag.SKIP_ZERO, phase=Phase.STEP_END)
    ours = trained([mixed_precision("float16", initial_scale=64.0), keep], DATA[:3], model=net())

    model = net()
    optimizer = sgd(model)
    for i in range(3):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = nn.functional.mse_loss(model(DATA[i][0]), DATA[i][1])
        loss.backward()
        optimizer.step()
        if i != 1:
            optimizer.zero_grad()
    assert ours.weights.allclose(weights_of(model), rtol=1e-3, atol=1e-4)


def test_window_goes_on_over_a_suspension() -> None:
    """Gradients that were unscaled for nothing before it count the same after it."""
    callbacks = [mixed_precision("float16", initial_scale=64.0), _not_yet(1)]
    work = workload(DATA, model=net())

    suspended = run(start(work, epochs=1), [*callbacks, leave_after(2)])
    assert (suspended.phase, suspended.pending) == (Phase.SUSPENDED, 1)
    run(suspended, callbacks)

    assert same_weights(work.model, trained(callbacks, DATA, model=net()).model)


# ------------------------------------------------------------------------- from one run to the next


def test_scale_goes_on_over_suspensions_and_extensions() -> None:
    """A training in three calls of run is the one in a single call: weights, steps and scale."""
    callbacks = [mixed_precision("float16", initial_scale=HUGE, growth_interval=6), accumulate(2)]
    once = trained(callbacks, DATA, model=net(), epochs=8)
    work = workload(DATA, model=net())

    suspended = run(start(work, epochs=4), [*callbacks, leave_after(7)])
    final = run(extend(run(suspended, callbacks), epochs=4), callbacks)

    assert suspended.phase is Phase.SUSPENDED
    assert (final.step, scale_of(work)) == (once.final.step, scale_of(once.work))
    assert same_weights(work.model, once.model)


def test_settings_come_from_the_code_and_the_scale_from_before() -> None:
    """With another growth interval, an extended training goes on at its scale and grows at the new pace."""
    work = workload(DATA, model=net())
    final = run(start(work, epochs=1), [mixed_precision("float16", initial_scale=8.0)])
    run(extend(final, epochs=1), [mixed_precision("float16", initial_scale=2.0, growth_interval=6)])

    assert scale_of(work) == 16.0


def test_new_training_begins_with_a_new_scale() -> None:
    """What one training has learnt of the scale is not another's."""
    work = workload(DATA, model=net())
    for _ in range(2):
        run(start(work, epochs=1), [mixed_precision("float16", initial_scale=8.0, growth_interval=4)])

    assert scale_of(work) == 16.0


def test_precision_is_undone_after_a_failure() -> None:
    """The next training computes in full precision again."""
    work = workload(DATA)
    with pytest.raises(CallbackError, match="ZeroDivisionError"):
        run(start(work, epochs=1), [mixed_precision(), _failing()])

    assert work.precision is None


def _failing() -> Any:
    """A callback that fails after the first batch."""

    @on(Phase.BATCH_END)
    def fail(state: State) -> None:
        raise ZeroDivisionError

    return fail


def test_validation_is_in_half_precision_too() -> None:
    """What is validated is what is trained."""
    seen: list[torch.dtype] = []

    def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(output.dtype)
        return nn.functional.mse_loss(output, target)

    trained([mixed_precision("bfloat16")], DATA[:1], valid=DATA[1:2], loss_fn=loss_fn)

    assert seen == [torch.bfloat16] * 2


# ----------------------------------------------------------------------------------------- parallel


def test_wrapped_training_on_the_cpu_is_the_plain_one() -> None:
    """Bit for bit, and the model is afterwards called directly again."""
    called: list[type] = []

    def forward(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        called.append(type(model))
        return model(inputs)  # type: ignore[no-any-return]

    ours = trained([parallel()], DATA, model=net(), valid=DATA[:1], forward=forward)

    assert set(called) == {nn.DataParallel}
    assert ours.work.wrapped_model is ours.model
    assert same_weights(ours.model, trained([], DATA, model=net(), valid=DATA[:1]).model)


def test_wrapper_is_undone_after_a_failure() -> None:
    """The model itself is called again."""
    work = workload(DATA)
    with pytest.raises(CallbackError, match="ZeroDivisionError"):
        run(start(work, epochs=1), [parallel(), _failing()])

    assert work.wrapped_model is work.model


def test_several_processes_need_a_group() -> None:
    """Without one it is said at SETUP what to call."""
    with pytest.raises(WorkloadError, match=r'"ddp" needs a process group: call torch.distributed.init_process_group'):
        trained([parallel("ddp")])


DISTRIBUTED = """
import sys
import torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
from tests.callbacks.test_precision import distributed_is_plain
distributed_is_plain()
dist.destroy_process_group()
print("the same")
"""


def test_distributed_training_in_one_process_is_the_plain_one(tmp_path: Path) -> None:
    """With a real process group, in a process of its own: weights, a failure, and freezing in between."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DISTRIBUTED, str(tmp_path / "group")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("the same\n")


def distributed_is_plain() -> None:
    """What is checked in that process."""
    subsets: list[list[Any]] = [
        [],
        [accumulate(2), clip_grad_norm(0.1)],
        [freeze("0.*", until_epoch=1)],
        [freeze("0.*")],
    ]
    for others in subsets:
        ours = trained([parallel("ddp"), *others], DATA, model=net(), valid=DATA[:1], epochs=3)
        assert same_weights(ours.model, trained(others, DATA, model=net(), valid=DATA[:1], epochs=3).model), others
        assert ours.work.wrapped_model is ours.model

    work = workload(DATA, model=net())
    with pytest.raises(CallbackError, match="ZeroDivisionError"):
        run(start(work, epochs=1), [parallel("ddp"), _failing()])
    assert work.wrapped_model is work.model
    run(start(work, epochs=1))


# ----------------------------------------------------------------------------------------- anomalies


def _not_a_number(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A loss that is finite, with a gradient that is not: the derivative of a square root at 0."""
    return ((output - output).sum().abs().sqrt() + (output - target).square().mean()).mean()


def test_anomaly_is_found_where_it_is_made() -> None:
    """The error names the operation; afterwards torch is as before, also where it detected already."""
    model = torch.nn.Linear(2, 1)
    batches = [(torch.ones(4, 2), torch.zeros(4, 1))]
    work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), _not_a_number, batches)

    with pytest.raises(RuntimeError, match="returned nan values"), pytest.warns(UserWarning, match="Error detected in"):
        run(start(work, epochs=1), [detect_anomaly()])
    assert not torch.is_anomaly_enabled()

    with torch.autograd.set_detect_anomaly(True, False):
        run(start(work, epochs=1), [detect_anomaly(check_nan=False)])  # nothing fails: only a NaN comes out
        assert (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()) == (True, False)


def test_weights_are_the_same_while_anomalies_are_detected() -> None:
    """It looks, and changes nothing."""
    plain, watched = workload(), workload()
    run(start(plain, epochs=2, seed=0))
    run(start(watched, epochs=2, seed=0), [detect_anomaly()])
    assert torch.equal(weights_of(plain.model), weights_of(watched.model))
