"""The optimizer is the truth: only what a callback sets is written to it, and all of its groups are members."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from fsm_train import (
    CallbackError,
    Command,
    Flag,
    Phase,
    Scripted,
    State,
    Supervised,
    Transition,
    carries_out,
    extend,
    iterate,
    on,
    replay,
    restore,
    run,
    start,
)
from fsm_train.callbacks import (
    accumulate,
    checkpoint,
    clip_grad_norm,
    mixed_precision,
    reduce_on_plateau,
    schedule,
    torch_scheduler,
)
from fsm_train.core.errors import WorkloadError
from fsm_train.schedules import absolute, constant, linear
from fsm_train.supervised.param_groups import read_groups, write_groups


def batches(n: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator)) for _ in range(n)]


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))


def workload(optimizer: Any = None, **settings: Any) -> Supervised:
    """A training of one layer; `optimizer` makes one of the parameters."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    made = torch.optim.SGD(model.parameters(), **settings) if optimizer is None else optimizer(model.parameters())
    return Supervised(model, made, nn.MSELoss(), batches())


def group_of(work: Supervised, index: int = 0) -> dict[str, Any]:
    return work.optimizer.param_groups[index]


# -------------------------------------------------------------------------------- as a float


def test_whole_numbers_become_the_float_that_a_callback_sets() -> None:
    """SGD(lr=1) trains with 0.5 under constant(0.5), and a momentum of 0 becomes 0.9."""
    work = workload(lr=1)
    before = work.model.weight.detach().clone()  # type: ignore[operator]
    final = run(start(work, epochs=2), [schedule(lr=constant(0.5), momentum=absolute(0.9))])

    assert (final.hyper["lr"], final.hyper["momentum"]) == (0.5, 0.9)
    assert (group_of(work)["lr"], group_of(work)["momentum"]) == (0.5, 0.9)
    assert not torch.equal(before, work.model.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "betas", [(0, 0.999), [0.9, 0.999], (0.9, 0.99, 0.999), (torch.tensor(0.9), torch.tensor(0.999))]
)
def test_each_beta_is_a_number_of_its_own(betas: Any) -> None:
    """Whole, in a list, three of them, or tensors: one is set, and the others stay."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    group = optimizer.param_groups[0]
    group["betas"] = betas
    others = [float(beta) for beta in betas][1:]
    write_groups(optimizer, {"beta1": 0.5})

    assert type(group["betas"]) is type(betas)
    assert [float(beta) for beta in group["betas"]] == [0.5, *others]
    assert read_groups(optimizer)["beta1"] == 0.5


def test_a_number_called_beta1_that_is_no_part_of_betas_is_written() -> None:
    """Some optimizers have it as a key of its own."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    optimizer.param_groups[0]["beta1"] = 0.9
    write_groups(optimizer, {"beta1": 0.5})

    assert optimizer.param_groups[0]["beta1"] == read_groups(optimizer)["beta1"] == 0.5


def test_a_tensor_is_filled_in_place_and_one_of_whole_numbers_is_not_truncated() -> None:
    """A captured step reads the tensor; one of integers cannot hold 0.5."""
    rate, whole = torch.tensor(0.1), torch.tensor([1])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    group = optimizer.param_groups[0]
    group["lr"], group["momentum"] = rate, whole
    write_groups(optimizer, {"lr": 0.25, "momentum": 0.5})

    assert group["lr"] is rate
    assert read_groups(optimizer)["lr"] == 0.25
    assert read_groups(optimizer)["momentum"] == 0.5


# ------------------------------------------------------------------- what the optimizer changes itself


class Growing(torch.optim.Optimizer):
    """The rate is lr * d; d grows by a tenth in each step, and k counts the steps, as Prodigy and schedule-free do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1.0, "d": 1e-3, "k": 0, "growth_rate": math.inf})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["d"] *= 1.1
            group["k"] += 1
            for p in group["params"]:
                p -= group["lr"] * group["d"] * p.grad


@on(Phase.EPOCH_END)
def leave_after_two(state: State) -> Transition | None:
    return Transition(flags=Flag.SUSPEND) if state.epoch == 2 else None


def test_numbers_of_the_optimizer_go_on_extended_and_from_a_file(tmp_path: Path) -> None:
    """An estimate that it keeps in its groups is as in one call of run, and stays a whole number where it was one."""
    whole, extended, resumed = workload(Growing), workload(Growing), workload(Growing)
    run(start(whole, epochs=4))
    final = run(extend(run(start(extended, epochs=2)), epochs=2))
    run(start(workload(Growing), epochs=4), [checkpoint(tmp_path), leave_after_two])
    run(restore(tmp_path, resumed), [checkpoint(tmp_path)])

    for other in (extended, resumed):
        assert {**group_of(whole), "params": 0} == {**group_of(other), "params": 0}
        assert torch.equal(whole.model.weight, other.model.weight)  # type: ignore[arg-type]
    assert (group_of(whole)["k"], type(group_of(whole)["k"])) == (20, int)
    assert final.hyper["d"] == group_of(extended)["d"], "the last state has what the optimizer came to"


def test_a_schedule_of_one_number_leaves_the_others_alone() -> None:
    """Setting the rate at each step does not put the estimate back."""
    plain, scheduled = workload(Growing), workload(Growing)
    run(start(plain, epochs=3))
    run(extend(run(start(scheduled, epochs=1), [schedule(lr=constant(1.0))]), epochs=2), [schedule(lr=constant(1.0))])

    assert group_of(plain)["d"] == group_of(scheduled)["d"]
    assert torch.equal(plain.model.weight, scheduled.model.weight)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_scheduler_of_torch_leaves_the_other_numbers_alone_when_it_is_made_again(tmp_path: Path) -> None:
    """A scheduler that is restored sets back only what making it has changed."""

    def callbacks() -> list[Any]:
        halving = torch_scheduler(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), by="epoch")
        return [halving, checkpoint(tmp_path)]

    whole, resumed = workload(Growing), workload(Growing)
    run(start(workload(Growing), epochs=4), [*callbacks(), leave_after_two])
    run(restore(tmp_path, resumed), callbacks())
    run(start(whole, epochs=4), callbacks()[:1])

    assert group_of(whole)["d"] == group_of(resumed)["d"]
    assert group_of(whole)["lr"] == group_of(resumed)["lr"] == 1 / 16


def test_a_training_whose_optimizer_changes_its_numbers_is_replayed(tmp_path: Path) -> None:
    """Also one with an infinite number among them, over several calls of run, to the same last state."""
    path, work = tmp_path / "run.jsonl", workload(Growing)
    callbacks = [leave_after_two, torch_scheduler(lambda o: torch.optim.lr_scheduler.StepLR(o, 1), by="epoch")]
    final = run(extend(run(start(work, epochs=2), callbacks, log=path), epochs=2), callbacks, log=path)
    again = replay(path, callbacks)

    assert again.divergence is None
    assert again.state.hyper == final.hyper
    assert final.hyper["growth_rate"] == math.inf
    assert final.hyper["d"] == group_of(work)["d"]


# ------------------------------------------------------------------------- set by hand, between calls


def test_a_rate_set_by_hand_between_two_calls_counts_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """It is trained with, it is in the state, and a warning has both values."""
    work, used = workload(lr=0.1), []

    @on(Phase.STEP_END)
    def look(state: State) -> None:
        used.append((state.hyper["lr"], group_of(work)["lr"]))

    final = run(start(work, epochs=1), [look])
    group_of(work)["lr"] = 0.001
    with caplog.at_level(logging.WARNING, "fsm_train"):
        final = run(extend(final, epochs=1), [look])

    assert used == [(0.1, 0.1)] * 5 + [(0.001, 0.001)] * 5
    assert final.hyper["lr"] == 0.001
    said = "lr is 0.001 in the optimizer, and was 0.1 in the state: the training continues with 0.001"
    assert caplog.messages == [said]


def test_a_rate_set_by_hand_after_restoring_counts(tmp_path: Path) -> None:
    """A checkpoint gives what the optimizer had; what is set afterwards is trained with."""
    run(start(workload(lr=0.1), epochs=4), [checkpoint(tmp_path), leave_after_two])
    work = workload(lr=0.7)
    state = restore(tmp_path, work)
    restored = state.hyper["lr"], group_of(work)["lr"]
    group_of(work)["lr"] = 0.01

    assert restored == (0.1, 0.1)
    assert run(state).hyper["lr"] == group_of(work)["lr"] == 0.01


def test_a_rate_set_by_hand_under_a_schedule_is_said_with_who_sets_it_again(caplog: pytest.LogCaptureFixture) -> None:
    """The schedule has the last word, and the warning says so."""
    work, callbacks = workload(lr=0.1), [schedule(lr=constant(0.5))]
    final = run(start(work, epochs=1), callbacks)
    group_of(work)["lr"] = 0.001
    with caplog.at_level(logging.WARNING, "fsm_train"):
        run(extend(final, epochs=1), callbacks)

    assert group_of(work)["lr"] == 0.05
    assert caplog.messages[0].endswith("the training continues with 0.001, until 'schedule' sets it")


def test_nothing_is_said_where_nothing_was_set(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Neither of what the optimizer or a schedule changes, nor of the rounding of a rate in a tensor."""
    with caplog.at_level(logging.WARNING, "fsm_train"):
        for work in (workload(Growing), workload(lambda p: torch.optim.SGD(p, lr=torch.tensor(0.1), foreach=False))):
            callbacks = [schedule(lr=linear(1.0, 0.3, 20)), checkpoint(tmp_path / type(work.optimizer).__name__)]
            final = run(extend(run(start(work, epochs=2), callbacks), epochs=1), callbacks)
            run(extend(restore(tmp_path / type(work.optimizer).__name__, work), epochs=1), callbacks)
            assert final.hyper["lr"] == pytest.approx(0.51 * (1.0 if "d" in group_of(work) else 0.1), rel=0.1)

    # That the schedule is longer than the plan is another matter.
    assert [message for message in caplog.messages if not message.startswith("schedule: ")] == []


def test_a_script_counts_too(caplog: pytest.LogCaptureFixture) -> None:
    """A rate that is set in a scripted workload between two calls is that of the second."""
    work = Scripted(hyper={"lr": 0.1})
    final = run(start(work, epochs=1))
    work.set_hyper({"lr": 0.5})

    assert run(extend(final, epochs=1)).hyper["lr"] == 0.5
    assert "0.5" in caplog.text


def test_a_training_with_a_rate_set_by_hand_is_replayed(tmp_path: Path) -> None:
    """What a person set between two calls is in the header of the second, and no divergence."""
    path, work = tmp_path / "run.jsonl", workload(lr=0.1)
    callbacks = [reduce_on_plateau("train_loss", patience=1, factor=0.5, min_delta=1e9)]
    state = run(start(work, epochs=3), callbacks, log=path)
    group_of(work)["lr"] = 3.0
    final = run(extend(state, epochs=3), callbacks, log=path)
    again = replay(path, callbacks)

    assert again.divergence is None
    assert again.state.hyper == final.hyper
    assert final.hyper["lr"] == 1.5


# ------------------------------------------------------------------------------ groups and parameters


@attrs.frozen
class AddGroup(Command):
    """Adds the first layer to the optimizer, with a rate of its own."""


@carries_out(AddGroup)
def add_group(work: Supervised, command: AddGroup) -> None:
    work.optimizer.add_param_group({"params": list(work.model[0].parameters()), "lr": 1e-3})  # type: ignore[index]


def unfreeze_at(phase: Phase, epoch: int = 0) -> Any:
    @on(phase, commands={AddGroup})
    def unfreeze(state: State) -> Transition | None:
        return Transition(commands=(AddGroup(),)) if state.epoch == epoch else None

    return unfreeze


def only_the_head(rate: float = 0.1) -> Supervised:
    model = two_layers()
    data = [(x, 10 + y) for x, y in batches(4)]
    return Supervised(model, torch.optim.SGD(model[1].parameters(), lr=rate), nn.MSELoss(), data)


def norms_of(work: Supervised) -> tuple[list[float], Any]:
    norms: list[float] = []

    @on(Phase.STEP_END)
    def look(state: State) -> None:
        norms.append(sum(float(p.grad.norm()) ** 2 for p in work.model.parameters() if p.grad is not None) ** 0.5)

    return norms, look


@pytest.mark.parametrize("phase", [Phase.TRAIN_BEGIN, Phase.EPOCH_BEGIN, Phase.SETUP])
def test_a_group_that_a_command_adds_is_clipped(phase: Phase) -> None:
    """The norm of all gradients is what was asked for."""
    work = only_the_head()
    norms, look = norms_of(work)
    run(start(work, epochs=1), [unfreeze_at(phase), clip_grad_norm(0.01), look])

    assert max(norms) < 0.011


@pytest.mark.parametrize("phase", [Phase.TRAIN_BEGIN, Phase.BATCH_BEGIN])
def test_a_group_that_is_added_keeps_its_own_rate_under_a_schedule(phase: Phase) -> None:
    """The schedule multiplies what the group brought along."""
    work = only_the_head()
    unfreeze = unfreeze_at(Phase.TRAIN_BEGIN if phase is Phase.TRAIN_BEGIN else Phase.EPOCH_BEGIN)
    final = run(start(work, epochs=2), [unfreeze, schedule(lr=linear(1.0, 0.5, 7))])

    assert final.hyper["lr"] == pytest.approx((0.05, 5e-4), rel=1e-12)
    assert [group["lr"] for group in work.optimizer.param_groups] == list(final.hyper["lr"])  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [lambda o: LambdaLR(o, lambda epoch: 0.5), lambda o: OneCycleLR(o, 0.5, 20)])
def test_a_scheduler_of_torch_that_has_no_rate_for_an_added_group_says_so(make: Any) -> None:
    """With the numbers of groups, and the callback that has one."""
    callbacks = [unfreeze_at(Phase.TRAIN_BEGIN), torch_scheduler(make, by="epoch")]

    with pytest.raises(WorkloadError, match=r"made for 1 parameter groups, and the optimizer has 2: .*schedule has"):
        run(start(only_the_head(), epochs=3), callbacks)


def test_what_a_scheduler_of_torch_raises_itself_is_raised() -> None:
    """Where the number of groups is not the reason."""
    callbacks = [torch_scheduler(lambda o: OneCycleLR(o, 0.5, 2), by="step")]

    with pytest.raises(ValueError, match="Tried to step 3 times"):
        run(start(only_the_head(), epochs=3), callbacks)


def test_a_group_that_is_added_between_two_calls_is_a_member() -> None:
    """Clipped, accumulated, with its own rate in the state."""
    work = only_the_head()
    norms, look = norms_of(work)
    callbacks = [clip_grad_norm(0.01), accumulate(2), schedule(lr=constant(1.0)), look]
    final = run(start(work, epochs=1), callbacks)
    add_group(work, AddGroup())
    final = run(extend(final, epochs=1), callbacks)

    assert max(norms[2:]) < 0.011
    assert final.hyper["lr"] == (0.1, 1e-3)


def test_the_mean_of_a_window_is_taken_over_an_added_group_too() -> None:
    """Two batches of 8 with accumulate(2) step as one of 16, in each group."""
    small, large = only_the_head(), only_the_head()
    data = batches(2)
    small.train = data
    large.train = [tuple(torch.cat(parts) for parts in zip(*data, strict=True))]
    run(start(small, epochs=1), [unfreeze_at(Phase.TRAIN_BEGIN), accumulate(2)])
    run(start(large, epochs=1), [unfreeze_at(Phase.TRAIN_BEGIN)])

    for one, other in zip(small.model.parameters(), large.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_an_added_group_is_saved_and_comes_back(tmp_path: Path) -> None:
    """A fresh optimizer gets the groups that were added, by the names of their parameters, with their numbers."""
    callbacks = [unfreeze_at(Phase.EPOCH_BEGIN, 1), schedule(lr=linear(1.0, 0.5, 16)), clip_grad_norm(1.0)]
    whole, resumed = only_the_head(), only_the_head()
    run(start(whole, epochs=4), callbacks)
    run(start(only_the_head(), epochs=4), [*callbacks, checkpoint(tmp_path), leave_after_two])
    final = run(restore(tmp_path, resumed), [*callbacks, checkpoint(tmp_path)])

    assert len(resumed.optimizer.param_groups) == 2
    assert final.hyper["lr"] == tuple(group["lr"] for group in whole.optimizer.param_groups)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_groups_that_cannot_come_back_are_refused_with_what_to_do(tmp_path: Path) -> None:
    """An optimizer with more groups than were saved is another one."""
    run(start(only_the_head(), epochs=1), [checkpoint(tmp_path)])
    work = only_the_head()
    add_group(work, AddGroup())

    with pytest.raises(WorkloadError, match="make it with the groups that it began with"):
        restore(tmp_path, work)


def test_a_training_with_an_added_group_is_replayed(tmp_path: Path) -> None:
    """The rates of all groups are in the log."""
    path = tmp_path / "run.jsonl"
    callbacks = [unfreeze_at(Phase.EPOCH_BEGIN, 1), schedule(lr=linear(1.0, 0.5, 16))]
    run(start(only_the_head(), epochs=3), callbacks, log=path)

    assert replay(path, callbacks).divergence is None


def test_a_snapshot_takes_added_groups_away_again() -> None:
    """The optimizer has the parameters that it had, and trains as it would have."""
    work = only_the_head()
    snapshot = work.snapshot()
    run(start(work, epochs=1), [unfreeze_at(Phase.TRAIN_BEGIN)])
    work.put_back(snapshot)

    assert len(work.optimizer.param_groups) == 1
    assert work.hyper()["lr"] == 0.1
    assert len(work.parameters) == 2


def test_a_group_that_is_added_behind_the_back_of_a_call_is_refused_when_a_number_is_set() -> None:
    """It is not known which group the value is for; the sentence says where to add it."""
    work = only_the_head()
    states = iterate(start(work, epochs=2), [schedule(lr=constant(1.0))], at=[Phase.EPOCH_BEGIN])
    next(states)
    add_group(work, AddGroup())

    with pytest.raises(WorkloadError, match="2 parameter groups, and had 1 .* in a command"):
        list(states)


def test_a_schedule_refuses_an_optimizer_that_has_lost_a_group() -> None:
    """It is not known which of the values belongs to which group."""
    work = only_the_head()
    final = run(start(work, epochs=1), [unfreeze_at(Phase.SETUP), schedule(lr=constant(1.0))])
    del work.optimizer.param_groups[0]

    with pytest.raises(CallbackError, match="1 parameter groups, and had 2"):
        run(extend(final, epochs=1), [schedule(lr=constant(1.0))])


@attrs.frozen
class GrowRows(Command):
    """Exchanges the weight of a layer for one of twice as many rows."""


@carries_out(GrowRows)
def grow_rows(work: Supervised, command: GrowRows) -> None:
    old = work.model.weight
    new = nn.Parameter(torch.cat([old.detach(), old.detach()], dim=0))  # type: ignore[operator]
    work.model.weight = new
    group_of(work)["params"] = [new if p is old else p for p in group_of(work)["params"]]


def wide() -> Supervised:
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = [(torch.ones(4, 3) * 30, torch.zeros(4, 1))] * 6
    return Supervised(model, optimizer, lambda output, target: output.square().mean(), data)


def test_a_parameter_that_a_command_exchanges_is_a_member() -> None:
    """It is clipped, and in grad_norm."""
    work = wide()
    seen = []

    @on(Phase.BATCH_END, commands={GrowRows})
    def grows(state: State) -> Transition | None:
        return Transition(commands=(GrowRows(),)) if state.iteration == 2 else None

    @on(Phase.STEP_BEGIN, order=-100, needs={"grad_norm"})
    def before(state: State) -> None:
        seen.append((state.facts["grad_norm"], float(work.model.weight.grad.norm())))  # type: ignore[union-attr, operator]

    @on(Phase.STEP_END)
    def after(state: State) -> None:
        seen.append((0.5, float(work.model.weight.grad.norm())))  # type: ignore[union-attr, operator]

    run(start(work, epochs=1), [before, clip_grad_norm(0.5), grows, after])

    assert len(work.model.weight) == 4  # type: ignore[arg-type]
    assert all(ours == pytest.approx(true, rel=1e-4) for ours, true in seen)


def test_a_parameter_that_is_exchanged_between_two_calls_is_a_member() -> None:
    """As one that a command exchanges."""
    work = wide()
    final = run(start(work, epochs=1), [clip_grad_norm(0.5)])
    grow_rows(work, GrowRows())
    before = work.model.weight.detach().clone()  # type: ignore[operator]
    run(extend(final, epochs=1), [clip_grad_norm(0.5)])

    assert float((work.model.weight.detach() - before).norm()) <= 6 * 0.5 * 0.01 * 1.001  # type: ignore[operator]


def test_a_parameter_that_only_the_model_exchanges_is_refused_before_the_first_batch() -> None:
    """The optimizer would train what no longer belongs to the model."""
    work = wide()
    final = run(start(work, epochs=1))
    work.model.weight = nn.Parameter(torch.zeros(2, 3))

    with pytest.raises(WorkloadError, match="1 of the optimizer's 1 parameters are not the model's"):
        run(extend(final, epochs=1))


# ------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", -1.0), ("lr", (-1e-9,)), ("weight_decay", -0.1), ("momentum", -0.5), ("beta1", 1.0), ("beta2", -0.1)],
)
def test_numbers_that_the_optimizers_of_torch_refuse_are_refused(key: str, value: Any) -> None:
    """With the key, the value and the callback."""

    @on(Phase.EPOCH_BEGIN)
    def uphill(state: State) -> Transition:
        return Transition(hyper={key: value})

    with pytest.raises(CallbackError, match=rf"uphill.*{key}=.*a number from 0"):
        run(start(workload(lr=0.1), epochs=3), [uphill])


def test_a_schedule_below_zero_is_refused_at_the_step_where_it_gets_there() -> None:
    """A straight line that crosses zero."""
    with pytest.raises(CallbackError, match=r"schedule.*lr=-0\.05"):
        run(start(workload(lr=0.1), epochs=3), [schedule(lr=lambda step: 1 - step / 2)])


def test_numbers_that_may_be_negative_are_set() -> None:
    """Adafactor decays by a negative power, and a number of one's own has no bounds."""
    work = workload(lambda parameters: torch.optim.Adafactor(parameters))

    @on(Phase.SETUP)
    def decays(state: State) -> Transition:
        return Transition(hyper={"beta2_decay": -0.5})

    final = run(start(work, epochs=1), [decays])

    assert final.hyper["beta2_decay"] == group_of(work)["beta2_decay"] == -0.5


# ------------------------------------------------------------------------------------------- scaler


@pytest.mark.parametrize("scale", [1e-45, 2.0**120])
@pytest.mark.filterwarnings("ignore")
def test_a_scaler_from_which_there_is_no_way_back_takes_no_step(scale: float, caplog: pytest.LogCaptureFixture) -> None:
    """At scale 0, or at an infinite one, each gradient is NaN: no step counts, and that is said once."""
    work = workload(lr=0.1)
    work.loss_fn = lambda output, target: (output * math.inf).mean()
    stepped = []

    @on(Phase.STEP_END, needs={"stepped"})
    def look(state: State) -> None:
        stepped.append(state.facts["stepped"])
        assert work.precision is not None
        assert work.precision.scaler is not None
        if scale > 1:
            work.precision.scaler.update(math.inf)

    final = run(start(work, epochs=2), [mixed_precision("float16", initial_scale=scale), look])

    assert (final.step, set(stepped)) == (0, {0.0})
    assert sum("no step is taken any more" in message for message in caplog.messages) == 1
