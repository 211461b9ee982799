"""Beside the model: modes, a loss with weights, buffers, shared and lazy parameters, a structure that changes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from fsm_train import (
    CallbackError,
    Command,
    Flag,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    carries_out,
    evaluate,
    extend,
    iterate,
    on,
    restore,
    run,
    start,
)
from fsm_train.callbacks import checkpoint, ema, freeze, restore_best, swa, weight_penalty
from fsm_train.lr_finder import find_lr
from tests.killed import killed_and_resumed
from tests.models import same_weights

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def batches(n: int = 3, seed: int = 0) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator)) for _ in range(n)]


def with_norm() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))


def sgd(*modules: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for module in modules for p in module.parameters()], lr=lr)


def supervised(model: nn.Module, loss_fn: Any = None, valid: Any = None, **settings: Any) -> Supervised:
    return Supervised(model, sgd(model), loss_fn or nn.MSELoss(), batches(), valid or batches(1, 1), **settings)


def best_of(state: State, metric: str = "valid_loss") -> float:
    return min(metrics[metric] for metrics in state.history)


# ---------------------------------------------------------------------------------------- modes


def test_part_in_eval_mode_stays_in_eval_mode() -> None:
    """A frozen backbone that is in eval mode before run keeps its statistics, beside swa too."""
    for callbacks in ([freeze("0.*")], [freeze("0.*"), swa(0)], [], [swa(0)], [ema(0.9)]):
        model = with_norm()
        model[0].running_mean.fill_(5.0)
        model[0].eval()
        run(start(supervised(model), epochs=2), callbacks)

        assert not model[0].training
        assert model.training
        assert model[0].running_mean.tolist() == [5.0] * 4


def test_module_that_sets_modes_itself_is_heard() -> None:
    """A model whose `train` keeps its norms in eval mode, a usual way to freeze them, does so here."""

    class Fixed(nn.Sequential):
        def train(self, mode: bool = True) -> Fixed:
            super().train(mode)
            self[0].eval()
            return self

    model = Fixed(*with_norm())
    before = model[0].running_mean.clone()
    run(start(supervised(model), epochs=2))

    assert torch.equal(model[0].running_mean, before)


def test_module_that_merges_its_weights_in_eval_mode_is_trained_unmerged() -> None:
    """Modes are put back through `train`, which adapters replace, after a validation in mid-epoch."""

    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True) -> Merging:
            self.merged = not mode
            return super().train(mode)

    model = nn.Sequential(Merging(4, 1))
    seen = []

    @on(Phase.BATCH_BEGIN, Phase.BATCH_END)
    def look(state: State) -> Transition | None:
        seen.append(model[0].merged)
        return Transition(flags=Flag.VALIDATE) if state.phase is Phase.BATCH_END else None

    run(start(supervised(model), epochs=1), [look])

    assert seen == [False] * 6


def test_part_put_in_eval_mode_by_a_command_stays_so() -> None:
    """What a callback decides during the training is not undone by the next epoch."""
    model = with_norm()

    @attrs.frozen
    class Settle(Command):
        pass

    @carries_out(Settle)
    def settle(work: Supervised, command: Settle) -> None:
        work.model[0].eval()

    @on(Phase.EPOCH_END, commands={Settle})
    def settling(state: State) -> Transition | None:
        return Transition(commands=(Settle(),)) if state.epoch == 1 else None

    seen = []

    @on(Phase.LOSS_END)
    def look(state: State) -> None:
        seen.append(model[0].training)

    run(start(supervised(model), epochs=2), [settling, look])

    assert seen == [True] * 3 + [False] * 3


def test_model_in_eval_mode_is_trained_in_train_mode() -> None:
    """After a prediction; the parts that an earlier call found in eval mode stay in it, and the modes come back."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[0].eval()
    seen: list[list[bool]] = []

    @on(Phase.LOSS_END)
    def look(state: State) -> None:
        seen.append([part.training for part in model.modules()])

    final = run(start(supervised(model), epochs=1), [look])
    model.eval()
    run(extend(final, epochs=1), [look])

    assert seen == [[True, False, True, True]] * 6
    assert not any(part.training for part in model.modules())


def test_model_that_a_loop_leaves_in_eval_mode_is_trained_in_train_mode() -> None:
    """A prediction in an iterate loop does not freeze the next epoch."""
    model, seen = with_norm(), []
    model[0].eval()
    for state in iterate(start(supervised(model), epochs=2), at=[Phase.EPOCH_END, Phase.LOSS_END]):
        if state.phase is Phase.EPOCH_END:
            model.eval()
        elif state.phase is Phase.LOSS_END:
            seen.append((model.training, model[0].training))

    assert seen == [(True, False)] * 6


def test_checkpoint_of_a_loop_in_eval_mode_knows_the_modes_of_training(tmp_path: Any) -> None:
    """What is restored trains with the same parts in eval mode, also if the model was predicting when it was saved."""
    model = with_norm()
    model[0].eval()

    @on(Phase.EPOCH_END, order=-1)
    def predicting(state: State) -> None:
        model.eval()

    run(start(supervised(model), epochs=1), [predicting, checkpoint(tmp_path)])
    restored = with_norm()
    restore(tmp_path, supervised(restored))

    assert (restored.training, restored[0].training, restored[1].training) == (True, False, True)


BROKEN: Batches = [(torch.randn(8, 3), torch.randn(8, 1))]


def failing_iterable() -> Any:
    class Failing(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            raise KeyboardInterrupt

    return Failing(batches(1))


class FailingMetric:
    def update(self, output: torch.Tensor, target: torch.Tensor) -> None: ...
    def reset(self) -> None: ...
    def compute(self) -> float:
        raise ZeroDivisionError


@pytest.mark.parametrize("averages", [(), (ema(0.9),)])
@pytest.mark.parametrize(
    "settings",
    [{"valid": BROKEN}, {"valid": failing_iterable()}, {"metrics": {"m": FailingMetric()}}],
    ids=["batch", "iterator", "metric"],
)
def test_failure_in_a_validation_puts_modes_back(settings: dict[str, Any], averages: Any) -> None:
    """In the model, in the data, in a metric: in a run and in `evaluate`, with a loss that is a module."""
    model, loss = with_norm(), nn.Sequential(Weighted())
    model[0].eval()
    settings = {name: {"m": FailingMetric()} if name == "metrics" else value for name, value in settings.items()}
    work = supervised(model, loss[0], **settings)
    for act in (lambda: run(start(work, epochs=1), averages), lambda: evaluate(work)):
        with pytest.raises(BaseException):  # noqa: B017, PT011
            act()

        assert [part.training for part in model] == [False, True]
        assert model.training
        assert loss[0].training


@pytest.mark.parametrize("phase", [Phase.VALID_BEGIN, Phase.VALID_BATCH_BEGIN, Phase.VALID_BATCH_END])
def test_callback_that_raises_in_a_validation_puts_modes_back(phase: Phase) -> None:
    """At each phase of a validation; and a loop that leaves there."""
    model = with_norm()

    @on(phase)
    def broken(state: State) -> None:
        raise ZeroDivisionError

    with pytest.raises(CallbackError):
        run(start(supervised(model), epochs=1), [broken])
    assert all(part.training for part in model.modules())

    steps = iterate(start(supervised(model), epochs=1), at=[phase])
    next(steps)
    steps.close()
    assert all(part.training for part in model.modules())


# --------------------------------------------------------------------------- a loss with weights


class Weighted(nn.Module):
    """The squared error with a learned uncertainty; counts the batches that it saw in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.logvar = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, output: torch.Tensor, target: torch.Tensor, **_: Any) -> torch.Tensor:
        self.seen += self.training
        return torch.exp(-self.logvar) * (output - target).square().mean() + self.logvar


@attrs.frozen(eq=False)
class Holds:
    criterion: nn.Module

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.criterion(output, target)
        return loss


GLOBAL = Weighted()


def of_a_global(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = GLOBAL(output, target)
    return loss


def enclosed(criterion: nn.Module) -> Any:
    return lambda output, target: criterion(output, target)


WAYS: dict[str, Callable[[Weighted], Any]] = {
    "itself": lambda loss: loss,
    "its forward": lambda loss: loss.forward,
    "a partial": lambda loss: functools.partial(loss, note="x"),
    "a partial of its forward": lambda loss: functools.partial(loss.forward, note="x"),
    "a method of an object": lambda loss: Holds(loss).__call__,
    "a closure": enclosed,
    "an object": Holds,
}


@pytest.mark.parametrize("way", WAYS)
def test_loss_that_is_a_module_is_a_part_of_what_is_trained(way: str) -> None:
    """It is evaluated in eval mode and put back with the best, however it is wrapped."""
    torch.manual_seed(0)
    model, loss = nn.Linear(4, 1), Weighted()
    work = Supervised(model, sgd(model, loss, lr=0.9), WAYS[way](loss), batches(), batches(1, 1))
    final = run(start(work, epochs=8), [restore_best()])

    assert int(loss.seen) == final.iteration
    assert evaluate(work)["valid_loss"] == best_of(final) < final.history[-1]["valid_loss"]


def test_loss_that_is_a_global_is_found() -> None:
    """A function that names a module at the top of a script."""
    model = nn.Linear(4, 1)
    work = Supervised(model, sgd(model, GLOBAL), of_a_global, batches())

    assert work.modules == {"model": model, "loss": GLOBAL}


def test_model_in_a_loss_is_the_model() -> None:
    """A penalty that reads the model's own weights makes no second module of it; two others are both found."""
    model, one, two = with_norm(), Weighted(), Weighted()

    def penalized(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = one(output, target) + two(output, target) + model[1].weight.square().sum()
        return loss

    work = Supervised(model, sgd(model), penalized, batches())

    assert work.modules == {"model": model, "loss": one, "loss 2": two}


def test_average_of_a_loss() -> None:
    """Ema validates with the average of the loss's parameter, and ends with it."""
    model, loss = nn.Linear(4, 1), Weighted()
    work = Supervised(model, sgd(model, loss), loss, batches(), batches(1, 1))
    own, average = [], None

    @on(Phase.STEP_END)
    def look(state: State) -> None:
        own.append(loss.logvar.detach().clone())

    final = run(start(work, epochs=2), [look, ema(0.5)])
    for value in own:
        average = value if average is None else 0.5 * average + 0.5 * value

    torch.testing.assert_close(loss.logvar.detach(), average)
    assert evaluate(work)["valid_loss"] == final.metrics["valid_loss"]


def test_norm_in_a_loss_keeps_its_modes() -> None:
    """A perceptual loss that is in eval mode stays in eval mode; its part in train mode is back after a validation."""
    loss = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1))
    loss[0].eval()
    modes = []

    def distance(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        modes.append((loss[0].training, loss[1].training))
        return nn.functional.mse_loss(loss(output), target)

    run(start(supervised(nn.Linear(4, 1), distance), epochs=2))

    assert modes == ([(False, True)] * 3 + [(False, False)]) * 2


# ------------------------------------------------------------------------------------- buffers


class Centred(nn.Module):
    """Subtracts a running mean, which is changed in place or made anew."""

    def __init__(self, persistent: bool, in_place: bool, *, late: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.in_place = in_place
        self.register_buffer("mean", None if late else torch.zeros(4), persistent=persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mean is None:
            self.mean = torch.zeros(4)
        if self.training:
            if self.in_place:
                self.mean.mul_(0.5).add_(x.mean(0), alpha=0.5)
            else:
                self.mean = 0.5 * self.mean + 0.5 * x.mean(0)
        output: torch.Tensor = self.linear(x - 5 * self.mean)
        return output


DRIFTING = [(inputs + i, target) for i, (inputs, target) in enumerate(batches(4))]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("averages", [(), (ema(0.5),)])
def test_best_weights_come_back_with_their_buffers(persistent: bool, in_place: bool, late: bool, averages: Any) -> None:
    """Also those outside the state_dict, those that forward makes anew, and those of an average."""
    torch.manual_seed(0)
    model = Centred(persistent, in_place, late=late)
    work = Supervised(model, sgd(model, lr=0.005), nn.MSELoss(), DRIFTING, batches(1, 1))
    final = run(start(work, epochs=8), [restore_best(mode="max"), *averages])

    assert evaluate(work)["valid_loss"] == max(metrics["valid_loss"] for metrics in final.history)


def test_best_weights_come_back_with_their_buffers_from_disk(tmp_path: Any) -> None:
    """A training that is restored has the copies of the best, with buffers outside the state_dict."""

    def work() -> Supervised:
        torch.manual_seed(0)
        model = Centred(persistent=False, in_place=True)
        return Supervised(model, sgd(model, lr=0.005), nn.MSELoss(), DRIFTING, batches(1, 1))

    best = restore_best(mode="max")
    once = work()
    whole = run(start(once, epochs=6), [best])
    run(start(work(), epochs=5), [best, checkpoint(tmp_path)])
    again = work()
    final = run(extend(restore(tmp_path, again), epochs=1), [best])

    assert final.history == whole.history
    assert torch.equal(again.model.mean, once.model.mean)


# ------------------------------------------------------------------------------------ freezing


class Language(nn.Module):
    """Input and output share a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(5, 4)
        self.mid = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.emb.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.mid(self.emb(words)))
        return scores


@pytest.mark.parametrize(("pattern", "other"), [("head.*", "emb.weight"), ("emb.*", "head.weight")])
def test_tied_weight_is_frozen_under_either_name(pattern: str, other: str, caplog: pytest.LogCaptureFixture) -> None:
    """And it is said that the other name is frozen with it; afterwards it is trained as before."""
    model = Language()
    before = model.head.weight.detach().clone()
    words = torch.arange(5)
    work = Supervised(model, sgd(model), nn.CrossEntropyLoss(), [(words, (words + 1) % 5)] * 4)
    with caplog.at_level(logging.WARNING, "fsm_train"):
        run(start(work, epochs=1), [freeze(pattern)])

    assert torch.equal(before, model.head.weight)
    assert [m for m in caplog.messages if f"same parameter as {other}" in m] != []
    assert model.head.weight.requires_grad


def test_what_cannot_be_trained_later_is_said_before_the_first_batch(caplog: pytest.LogCaptureFixture) -> None:
    """A parameter that the optimizer does not have, and one that required no gradient before."""
    seen = []

    @on(Phase.TRAIN_BEGIN)
    def look(state: State) -> None:
        seen.extend(caplog.messages)

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    head = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING, "fsm_train"):
        run(start(Supervised(model, head, nn.MSELoss(), batches()), epochs=2), [freeze("0.*", until_epoch=1), look])
    assert any("the optimizer does not have 0.weight, 0.bias" in message for message in seen)

    caplog.clear()
    seen.clear()
    model[0].requires_grad_(False)
    with caplog.at_level(logging.WARNING, "fsm_train"):
        run(start(supervised(model), epochs=2), [freeze("0.*", until_epoch=1), look])
    assert any("0.weight, 0.bias required no gradient before" in message for message in seen)


def test_nothing_is_said_of_a_parameter_that_is_frozen_for_good(caplog: pytest.LogCaptureFixture) -> None:
    """An optimizer of the head alone beside a frozen body is as it should be."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    head = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING, "fsm_train"):
        run(start(Supervised(model, head, nn.MSELoss(), batches()), epochs=2), [freeze("0.*")])

    assert caplog.messages == []


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    """With train_bn=False, as long as it is frozen; another norm learns, and the modes come back."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4), nn.Linear(4, 1))
    seen = []

    @on(Phase.EPOCH_END)
    def look(state: State) -> None:
        seen.append([norm.num_batches_tracked.item() for norm in model[:3]])

    callbacks = [
        freeze("0.*", until_epoch=1, train_bn=False),
        freeze("[01].*", train_bn=False),
        look,
    ]
    run(start(supervised(model), epochs=2), callbacks)

    assert seen == [[0, 0, 3], [0, 0, 6]]
    assert all(part.training for part in model.modules())

    seen.clear()
    run(start(supervised(model), epochs=2), [freeze("0.*", until_epoch=1, train_bn=False), look])
    assert seen == [[0, 3, 9], [3, 6, 12]]


def test_frozen_batch_norm_stays_frozen_beside_a_prediction_and_swa() -> None:
    """The model is in eval mode when an epoch begins; swa refits the other norm alone."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    before = model[0].running_mean.clone()

    @on(Phase.EPOCH_END)
    def predicting(state: State) -> None:
        model.eval()

    run(start(supervised(model), epochs=2), [freeze("0.*", train_bn=False), swa(0), predicting])

    assert torch.equal(model[0].running_mean, before)
    assert model[1].num_batches_tracked == 3


def test_frozen_batch_norm_learns_again_after_a_resume(tmp_path: Path) -> None:
    """A checkpoint of a training in which it is frozen does not keep it so beyond the epoch that unfreezes it."""
    callbacks = [freeze("0.*", until_epoch=1, train_bn=False)]
    undisturbed = supervised(with_norm())
    run(start(undisturbed, epochs=2, seed=0), callbacks)

    _, resumed = killed_and_resumed(lambda: supervised(with_norm()), tmp_path, 2, callbacks)

    assert resumed.model[0].num_batches_tracked == 3
    assert same_weights(resumed.model, undisturbed.model)


# ------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("average", [ema(0.999), swa(0)], ids=["ema", "swa"])
def test_small_updates_of_half_precision_weights_are_not_lost(dtype: torch.dtype, average: Any) -> None:
    """The average is that of the weights in float32, and rounded when it is used; validations do not change it."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1).to(dtype)
    data = [(inputs.to(dtype), target.to(dtype)) for inputs, target in batches()]
    work = Supervised(model, sgd(model, lr=0.05), nn.MSELoss(), data, data[:1])
    seen: list[torch.Tensor] = []
    phase = Phase.STEP_END if average.name == "ema" else Phase.EPOCH_END

    @on(phase)
    def look(state: State) -> None:
        seen.append(model.weight.detach().float())

    run(start(work, epochs=6), [average, look])
    mean = seen[0]
    for i, value in enumerate(seen[1:], start=1):
        mean = mean + (value - mean) * (1e-3 if average.name == "ema" else 1 / (i + 1))

    kept = work.carried_over.averages[average.name].parameters["model.weight"]
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept, mean, atol=1e-6, rtol=1e-6)
    assert torch.equal(model.weight, kept.to(dtype))


# ------------------------------------------------------------------------------------ lazy layers


def lazy() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Linear(5, 1))


@pytest.mark.parametrize(
    "callbacks",
    [(), (ema(0.5),), (swa(0),), (restore_best(),), (weight_penalty(l2=1e-3),), (freeze("3.*"),), (freeze("0.*"),)],
    ids=lambda callbacks: callbacks[0].name if callbacks else "none",
)
def test_lazy_layer_trains_as_the_loop(callbacks: Any) -> None:
    """With the callbacks that touch parameters before the first batch; without any, bit for bit."""
    model, optimizer = (made := lazy()), sgd_of_lazy(made)
    for inputs, target in batches():
        nn.functional.mse_loss(model(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    mine = lazy()
    work = Supervised(mine, sgd_of_lazy(mine), nn.MSELoss(), batches(), batches(1, 1))
    final = run(start(work, epochs=1), callbacks)

    assert final.epoch == 1
    assert callbacks or all(torch.equal(a, b) for a, b in zip(model.parameters(), mine.parameters(), strict=True))


def sgd_of_lazy(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_lazy_layer_without_a_batch_yet(tmp_path: Any) -> None:
    """It is shown, saved before its first batch and restored, and trains on to the same weights."""

    @on(Phase.BATCH_BEGIN, Phase.BATCH_END)
    def skip_first(state: State) -> Transition | None:
        if state.phase is Phase.BATCH_BEGIN:
            return Transition(flags=Flag.SKIP_BATCH) if state.iteration == 0 else None
        return Transition(flags=Flag.SUSPEND) if state.iteration == 1 else None

    first = Supervised(model := lazy(), sgd_of_lazy(model), nn.MSELoss(), batches(), batches(1, 1))
    assert "6 parameters and 4 lazy tensors" in repr(first)
    callbacks = [ema(0.5), restore_best(), skip_first]
    suspended = run(start(first, epochs=2, seed=0), [*callbacks, checkpoint(tmp_path)])
    assert suspended.phase is Phase.SUSPENDED
    run(suspended, callbacks)

    again = lazy()
    work = Supervised(again, sgd_of_lazy(again), nn.MSELoss(), batches(), batches(1, 1))
    run(restore(tmp_path, work), callbacks)

    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_what_is_undone_cannot_begin_with_a_lazy_layer() -> None:
    """find_lr puts everything back, and says that the first batch cannot be undone."""
    model = lazy()
    work = Supervised(model, sgd_of_lazy(model), nn.MSELoss(), batches())

    with pytest.raises(WorkloadError, match=r"lazy layer .* call the model with a batch before, model\(inputs\)"):
        find_lr(start(work, epochs=1))


# ----------------------------------------------------------------------- a structure that changes


@attrs.frozen
class Change(Command):
    kind: str


@carries_out(Change)
def change(work: Supervised, command: Change) -> None:
    layer = work.model[0]
    match command.kind:
        case "prune":
            prune.l1_unstructured(layer, "weight", amount=0.5)
        case "remove":
            prune.remove(layer, "weight")
        case "parametrize":
            parametrize.register_parametrization(layer, "weight", nn.Softplus())
        case "replace":
            work.model[0] = nn.Linear(4, 4, bias=False)
        case "resize":
            layer.bias = nn.Parameter(torch.zeros(1))


def changing(*kinds: str) -> Any:
    """The changes, at the begin of epochs 2, 3, …"""

    @on(Phase.EPOCH_BEGIN, commands={Change})
    def changing(state: State) -> Transition | None:
        later = state.epoch - 2
        return Transition(commands=(Change(kinds[later]),)) if 0 <= later < len(kinds) else None

    return changing


def trained_to_its_best() -> Supervised:
    """So that the best comes before the change."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    run(start(supervised(model), epochs=50))
    return Supervised(model, sgd(model, lr=0.3), nn.MSELoss(), batches(), batches(1, 1))


@pytest.mark.parametrize("kinds", [("prune",), ("prune", "remove")])
@pytest.mark.parametrize("averages", [(), (ema(0.5),), (swa(0),)])
def test_best_of_before_a_pruning_follows_its_names(kinds: tuple[str, ...], averages: Any) -> None:
    """The weights that are put back have the score, whatever they are called by now."""
    work = trained_to_its_best()
    final = run(start(work, epochs=6), [restore_best(), changing(*kinds), *averages])

    if averages != (swa(0),):
        assert evaluate(work)["valid_loss"] == best_of(final)


@pytest.mark.parametrize(
    ("kind", "difference"),
    [
        ("parametrize", "it has 0.parametrizations.weight.original now, and had 0.weight"),
        ("replace", "it had 0.bias"),
        ("resize", r"0.bias has the shape \(1,\), and had \(4,\)"),
    ],
)
def test_best_that_cannot_follow_is_said_when_the_model_changes(kind: str, difference: str) -> None:
    """After the command, and not at TRAIN_END, with the name of what was kept and the difference."""
    epochs = []

    @on(Phase.EPOCH_END)
    def count(state: State) -> None:
        epochs.append(state.epoch)

    with pytest.raises(WorkloadError, match=f"the weights that 'restore_best' has kept .*{difference}"):
        run(start(trained_to_its_best(), epochs=6), [restore_best(), changing(kind), count])

    assert epochs == [1, 2]


def test_average_follows_a_pruning_parameter_by_parameter() -> None:
    """Pruning changes the order of the parameters: the average of a bias does not become one of a weight."""
    work = trained_to_its_best()
    run(start(work, epochs=4), [ema(0.0), changing("prune")])
    average = work.carried_over.averages["ema"].parameters

    assert average.keys() == {"model.0.bias", "model.0.weight_orig", "model.1.weight", "model.1.bias"}
    assert average["model.0.weight_orig"].shape == (4, 4)


def test_average_that_cannot_follow_is_said_when_the_model_changes() -> None:
    """At the next update, with the name of the average."""
    with pytest.raises(WorkloadError, match=r"the average 'ema' does not fit the model any more: it has 0\.param"):
        run(start(trained_to_its_best(), epochs=4), [ema(0.9), changing("parametrize")])
