"""Several optimizers that step together, beside loops that do the same by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Muon, SparseAdam

from fsm_train import (
    Callback,
    Command,
    Flag,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    carries_out,
    describe,
    extend,
    find_lr,
    on,
    restore,
    run,
    start,
)
from fsm_train.callbacks import (
    accumulate,
    checkpoint,
    clip_grad_norm,
    clip_grad_value,
    compile_step,
    freeze,
    grad_noise,
    mixed_precision,
    schedule,
    torch_scheduler,
)
from fsm_train.schedules import cosine, step
from fsm_train.supervised import handlers
from fsm_train.supervised.compilation import CapturedStep, check_capturable
from fsm_train.supervised.joint_optimizer import JointOptimizer
from tests.diabetes_training import looking
from tests.killed import killed_and_resumed
from tests.models import digits, same_weights
from tests.supervised.test_compilation import PretendedGraph

IMAGES, TARGETS = digits(128).tensors
BATCHES = list(zip(IMAGES.split(16), TARGETS.split(16), strict=True))
CROSS_ENTROPY = nn.CrossEntropyLoss()


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def muon_and_adamw(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    """The matrix within by Muon, vectors and the head in two groups by AdamW."""
    body, norm, _, head = model.children()
    return {
        "muon": Muon([body.weight], lr=0.02, momentum=0.9),
        "adamw": AdamW([{"params": [body.bias, *norm.parameters()]}, {"params": head.parameters(), "lr": 3e-3}], 1e-3),
    }


def two_sgd(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    body, norm, _, head = model.children()
    rest = [*norm.parameters(), *head.parameters()]
    return {"a": SGD(body.parameters(), 0.1, momentum=0.9), "b": SGD(rest, 0.05, momentum=0.5)}


def work_of(make: Callable[[nn.Module], Any] = muon_and_adamw, train: Any = BATCHES, **settings: Any) -> Supervised:
    model = network()
    return Supervised(model, make(model), CROSS_ENTROPY, train, **settings)


@attrs.define
class Loop:
    """Training with several optimizers, written out."""

    every: int = 1
    max_norm: float | None = None
    scale: float | None = None
    schedules: Mapping[str, Callable[[int], float]] = attrs.field(factory=dict)

    def __call__(self, model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer], epochs: int = 2) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=self.scale or 1.0, enabled=self.scale is not None)
        own = {name: [group["lr"] for group in optimizers[name].param_groups] for name in self.schedules}
        steps = 0
        for _ in range(epochs):
            for i, (inputs, target) in enumerate(BATCHES):
                with torch.autocast("cpu", torch.float16, enabled=self.scale is not None):
                    loss = CROSS_ENTROPY(model(inputs), target) / self.every
                scaler.scale(loss).backward()
                if (i + 1) % self.every:
                    continue
                for optimizer in optimizers.values():
                    scaler.unscale_(optimizer)
                for name, factor in self.schedules.items():
                    for group, rate in zip(optimizers[name].param_groups, own[name], strict=True):
                        group["lr"] = rate * factor(steps)
                if self.max_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)
                for optimizer in optimizers.values():
                    scaler.step(optimizer)
                scaler.update()
                for optimizer in optimizers.values():
                    optimizer.zero_grad()
                steps += 1


SCHEDULES = {"muon": cosine(10), "adamw": step(3, 0.5)}
TRAININGS = {
    "plain": (Loop(), []),
    "accumulated": (Loop(every=4), [accumulate(4)]),
    "clipped": (Loop(max_norm=0.5), [clip_grad_norm(0.5)]),
    "in float16": (Loop(scale=128.0), [mixed_precision("float16", initial_scale=128.0)]),
    "all of it": (
        Loop(every=2, max_norm=0.5, scale=128.0, schedules=SCHEDULES),
        [
            accumulate(2),
            clip_grad_norm(0.5),
            mixed_precision("float16", initial_scale=128.0),
            *(schedule(lr=factor, optimizer=name) for name, factor in SCHEDULES.items()),
        ],
    ),
}


@pytest.mark.parametrize("kind", TRAININGS)
def test_weights_are_those_of_the_loop_by_hand(kind: str) -> None:
    """Bit for bit, and so is what each optimizer keeps."""
    by_hand, callbacks = TRAININGS[kind]
    plain = network()
    optimizers = muon_and_adamw(plain)
    by_hand(plain, optimizers)

    work = work_of()
    run(start(work, epochs=2), callbacks)

    assert same_weights(work.model, plain)
    for name, optimizer in optimizers.items():
        theirs, ours = optimizer.state_dict()["state"], work.optimizer[name].state_dict()["state"]
        assert all(torch.equal(theirs[i][key], ours[i][key]) for i in theirs for key in theirs[i])


@pytest.mark.parametrize("kind", TRAININGS)
def test_killed_and_resumed_they_go_on_exactly(kind: str, tmp_path: Path) -> None:
    """In the middle of an epoch, with new objects, also within a window; the log replays."""
    _, callbacks = TRAININGS[kind]
    undisturbed = work_of()
    final = run(start(undisturbed, epochs=2, seed=0), callbacks)

    resumed, work = killed_and_resumed(work_of, tmp_path, 5, callbacks)

    assert same_weights(work.model, undisturbed.model)
    assert resumed.hyper == final.hyper


@pytest.mark.parametrize("kind", TRAININGS)
def test_suspended_in_the_middle_of_a_window_they_go_on_exactly(kind: str) -> None:
    """In the same process, with the same objects."""
    _, callbacks = TRAININGS[kind]
    whole, parted = work_of(), work_of()
    run(start(whole, epochs=2, seed=0), callbacks)

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 3 else None

    left = run(start(parted, epochs=2, seed=0), [*callbacks, leave])
    assert left.phase is Phase.SUSPENDED
    run(left, [*callbacks, leave])

    assert same_weights(parted.model, whole.model)


def test_a_finished_training_goes_on() -> None:
    """One epoch and an extension by one are two epochs."""
    _, callbacks = TRAININGS["all of it"]
    whole, parted = work_of(), work_of()
    run(start(whole, epochs=2), callbacks)

    run(extend(run(start(parted, epochs=1), callbacks), epochs=1), callbacks)

    assert same_weights(parted.model, whole.model)


def test_numbers_of_all_and_of_each() -> None:
    """A tuple over all groups of what all have, and by name what each has."""
    hyper = start(work_of(), epochs=1).workload.hyper()  # type: ignore[union-attr]

    assert hyper["lr"] == (0.02, 1e-3, 3e-3)
    assert (hyper["muon.lr"], hyper["adamw.lr"]) == (0.02, (1e-3, 3e-3))
    assert (hyper["muon.momentum"], hyper["adamw.beta1"]) == (0.9, (0.9, 0.9))
    assert not {"momentum", "beta1"} & hyper.keys()


def test_a_number_is_written_to_the_groups_that_it_means() -> None:
    """By either name; what an optimizer changed itself in the meantime stays."""
    work = work_of()
    adamw = work.optimizer["adamw"]

    @on(Phase.BATCH_BEGIN)
    def set_muon(state: State) -> Transition:
        adamw.param_groups[0]["lr"] = 0.125  # as an optimizer that adapts its own rate
        return Transition(hyper={"muon.lr": 0.5, "muon.momentum": 0.25})

    run(start(work, epochs=1), [set_muon])

    groups = [*work.optimizer["muon"].param_groups, *adamw.param_groups]
    assert [group["lr"] for group in groups] == [0.5, 0.125, 3e-3]
    assert groups[0]["momentum"] == 0.25

    work.set_hyper({"lr": (1.0, 2.0, 3.0)})
    assert [group["lr"] for group in groups] == [1.0, 2.0, 3.0]


# -------------------------------------------------------------------------------------- the scaler


def overflowing(inputs: torch.Tensor) -> bool:
    return bool((inputs == BATCHES[2][0]).all())


class Poison(torch.autograd.Function):
    """What goes through as it is, and has an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * torch.inf


def poisoned_body(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The third batch has an infinite gradient in the first layer alone."""
    body, norm, relu, head = model.children()
    hidden = body(inputs)
    if overflowing(inputs):
        hidden = Poison.apply(hidden)
    return head(relu(norm(hidden)))


def poisoned_all(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    output = model(inputs)
    return Poison.apply(output) if overflowing(inputs) else output


def body_and_head(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    body, norm, _, head = model.children()
    return {"body": SGD([*body.parameters()], 0.1), "head": Adam([*norm.parameters(), *head.parameters()], 0.01)}


@pytest.mark.parametrize(("forward", "stepped"), [(poisoned_body, 1.0), (poisoned_all, 0.0)])
def test_each_is_held_back_on_its_own(forward: Any, stepped: float) -> None:
    """As torch documents for several; the step counts if one of them took it; the scale is halved once."""
    plain = network()
    optimizers, scaler = body_and_head(plain), torch.amp.GradScaler("cpu", init_scale=128.0)
    for inputs, target in BATCHES:
        with torch.autocast("cpu", torch.float16):
            loss = CROSS_ENTROPY(forward(plain, inputs), target)
        scaler.scale(loss).backward()
        for optimizer in optimizers.values():
            scaler.step(optimizer)
        scaler.update()
        for optimizer in optimizers.values():
            optimizer.zero_grad()

    work = work_of(body_and_head, forward=forward)
    look, seen = looking(Phase.STEP_END, lambda state: state.facts["stepped"], needs={"stepped"})
    final = run(start(work, epochs=1), [mixed_precision("float16", initial_scale=128.0), look])

    assert same_weights(work.model, plain)
    assert seen == [1.0, 1.0, stepped, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert final.step == 7 + stepped
    assert work.carried_over.scaler["scale"] == scaler.get_scale() == 64.0  # type: ignore[index]


class NanGradient(Poison):
    """What has a gradient of NaN, as where infinities meet."""

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * torch.nan


@pytest.mark.parametrize("poison", [Poison, NanGradient])
def test_clipping_by_a_norm_that_is_not_finite_poisons_no_other(poison: Any) -> None:
    """The others have a gradient of zero for that step, as a norm of infinity gives them; nothing becomes NaN."""

    def forward(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        body, norm, relu, head = model.children()
        hidden = body(inputs)
        return head(relu(norm(poison.apply(hidden) if overflowing(inputs) else hidden)))  # type: ignore[no-any-return]

    work, plain = work_of(body_and_head, forward=forward), network()
    run(start(work, epochs=1), [mixed_precision("float16", initial_scale=128.0), clip_grad_norm(0.5)])
    optimizers, scaler = body_and_head(plain), torch.amp.GradScaler("cpu", init_scale=128.0)
    for inputs, target in BATCHES:
        with torch.autocast("cpu", torch.float16):
            loss = CROSS_ENTROPY(forward(plain, inputs), target)
        scaler.scale(loss).backward()
        for optimizer in optimizers.values():
            scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in plain.parameters() if p.grad is not None])
        norm = torch.tensor(torch.inf) if norm.isnan() else norm
        nn.utils.clip_grads_with_norm_(plain.parameters(), 0.5, norm)
        for optimizer in optimizers.values():
            scaler.step(optimizer)
        scaler.update()
        for optimizer in optimizers.values():
            optimizer.zero_grad()

    assert same_weights(work.model, plain)
    assert all(parameter.isfinite().all() for parameter in work.model.parameters())


def test_a_frozen_one_does_not_disturb_the_scaler() -> None:
    """An optimizer whose parameters have no gradient steps as it would, and counts as none."""
    work = work_of(body_and_head)
    before = copy.deepcopy(work.model[0].state_dict())  # type: ignore[index]
    final = run(start(work, epochs=1), [mixed_precision("float16", initial_scale=128.0), freeze("0.*")])

    assert final.step == 8
    assert all(torch.equal(before[key], value) for key, value in work.model[0].state_dict().items())  # type: ignore[index]


# -------------------------------------------------------------------------------- what is clipped


def test_a_pattern_clips_some_of_the_parameters() -> None:
    """By the norm of these alone; the others stay as they are. Two patterns are two callbacks."""
    plain = network()
    optimizers = muon_and_adamw(plain)
    for inputs, target in BATCHES:
        CROSS_ENTROPY(plain(inputs), target).backward()
        nn.utils.clip_grad_norm_(plain[0].parameters(), 0.05)
        nn.utils.clip_grad_norm_([plain[3].bias], 0.01, norm_type=1.0)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()

    work = work_of()
    body, bias = clip_grad_norm(0.05, pattern="0.*"), clip_grad_norm(0.01, norm_type=1.0, pattern="3.b*", name="bias")
    run(start(work, epochs=1), [body, bias])

    assert same_weights(work.model, plain)


def test_a_pattern_that_nothing_matches_is_refused() -> None:
    """With the names that there are; and an empty one at once."""
    with pytest.raises(WorkloadError, match=r"clipping: no parameter of the optimizer matches 'h\.\*': there are 0\.w"):
        run(start(work_of(), epochs=1), [clip_grad_norm(1.0, pattern="h.*")])
    with pytest.raises(ValueError, match="pattern='': give a pattern"):
        clip_grad_norm(1.0, pattern="")


@attrs.frozen
class AddBias(Command):
    """Give the bias of the head to the optimizer."""

    changes_hyper = True


@carries_out(AddBias)
def add_bias(work: Supervised, command: AddBias) -> None:
    work.optimizer.add_param_group({"params": [work.model[3].bias], "lr": 0.1})  # type: ignore[index]


def test_a_pattern_finds_parameters_that_are_added_later() -> None:
    """Names are looked for again where the optimizer has others."""
    model = network()
    work = Supervised(model, SGD([model[3].weight], 0.1), CROSS_ENTROPY, BATCHES)

    @on(Phase.BATCH_END, commands={AddBias})
    def grow(state: State) -> Transition | None:
        return Transition(commands=(AddBias(),)) if state.iteration == 1 else None

    look, norms = looking(Phase.STEP_END, lambda _: model[3].bias.grad.norm().item())
    run(start(work, epochs=1), [clip_grad_norm(0.001, pattern="3.*"), grow, look])

    assert norms[0] > 0.001 > max(norms[1:])


# --------------------------------------------------------------------------------- sparse gradients

WORDS = torch.randint(0, 12, (8, 16, 5), generator=torch.Generator().manual_seed(3))
SENTENCES = [(words, words[:, 0] % 2) for words in WORDS]


class Bag(nn.Module):
    """The mean of embeddings whose gradients are sparse, and a dense layer."""

    def __init__(self, sparse: bool = True) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.words, self.head = nn.Embedding(40, 6, sparse=sparse), nn.Linear(6, 2)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(words).mean(dim=1))  # type: ignore[no-any-return]


def sparse_and_dense(model: Any) -> dict[str, torch.optim.Optimizer]:
    return {"words": SparseAdam(model.words.parameters(), lr=0.05), "head": Adam(model.head.parameters(), lr=0.01)}


def bag(train: Any = SENTENCES) -> Supervised:
    model = Bag()
    return Supervised(model, sparse_and_dense(model), CROSS_ENTROPY, train)


def bags_by_hand(change: Callable[[Any], None], every: int = 1) -> Bag:
    plain = Bag()
    optimizers = sparse_and_dense(plain)
    for i, (words, target) in enumerate(SENTENCES):
        (CROSS_ENTROPY(plain(words), target) / every).backward()
        if (i + 1) % every == 0:
            change(plain)
            for optimizer in optimizers.values():
                optimizer.step()
                optimizer.zero_grad()
    return plain


def clip_by_hand(model: Any) -> None:
    """The norm of a sparse gradient is that of the dense one: of its coalesced values."""
    sparse = model.words.weight.grad = model.words.weight.grad.coalesce()
    dense = [parameter.grad for parameter in model.head.parameters()]
    norm = nn.utils.get_total_norm([sparse.values(), *dense])
    factor = torch.clamp(0.1 / (norm + 1e-6), max=1.0)
    for gradient in (sparse.values(), *dense):
        gradient.mul_(factor)


@pytest.mark.parametrize("every", [1, 2])
def test_sparse_gradients_are_clipped_by_their_coalesced_values(every: int) -> None:
    """A word that occurs twice counts by the sum of its gradients, accumulated or not."""
    plain = bags_by_hand(clip_by_hand, every)

    work = bag()
    run(start(work, epochs=1), [accumulate(every), clip_grad_norm(0.1)])

    assert torch.allclose(work.model.head.weight, plain.head.weight, atol=1e-7)
    assert torch.allclose(work.model.words.weight, plain.words.weight, atol=1e-6)


def test_norm_of_sparse_gradients_is_that_of_dense_ones() -> None:
    """The fact `grad_norm`, for words that occur several times."""
    look, sparse = looking(Phase.STEP_BEGIN, lambda state: state.facts["grad_norm"], needs={"grad_norm"})
    run(start(bag(), epochs=1), [look])
    model = Bag(sparse=False)
    look, dense = looking(Phase.STEP_BEGIN, lambda state: state.facts["grad_norm"], needs={"grad_norm"})
    run(start(Supervised(model, Adam(model.parameters()), CROSS_ENTROPY, SENTENCES[:1]), epochs=1), [look])

    assert sparse[0] == pytest.approx(dense[0], rel=1e-6)


def test_sparse_gradients_are_clipped_by_value_element_by_element() -> None:
    """What is clipped is the sum over the occurrences of a word."""

    def by_value(model: Any) -> None:
        model.words.weight.grad = sparse = model.words.weight.grad.coalesce()
        for gradient in (sparse.values(), *(parameter.grad for parameter in model.head.parameters())):
            gradient.clamp_(-0.001, 0.001)

    work = bag()
    run(start(work, epochs=1), [clip_grad_value(0.001)])

    assert same_weights(work.model, bags_by_hand(by_value))


def test_noise_is_added_to_what_a_sparse_gradient_holds() -> None:
    """Words that did not occur stay as they are."""
    work, before = bag(SENTENCES[:1]), Bag()
    run(start(work, epochs=1, seed=0), [grad_noise(0.1)])
    plain = bag(SENTENCES[:1])
    run(start(plain, epochs=1, seed=0), [])

    occurring = SENTENCES[0][0].unique()
    absent = [i for i in range(40) if i not in occurring.tolist()]
    assert torch.equal(work.model.words.weight[absent], before.words.weight[absent])
    assert not torch.equal(work.model.words.weight[occurring], plain.model.words.weight[occurring])


def test_sparse_gradients_survive_a_kill_within_a_window(tmp_path: Path) -> None:
    """They are saved and brought back as they are, beside the states of both optimizers."""
    undisturbed, callbacks = bag(), [accumulate(4), clip_grad_norm(0.1)]
    run(start(undisturbed, epochs=2, seed=0), callbacks)

    _, work = killed_and_resumed(bag, tmp_path, 6, callbacks)

    assert same_weights(work.model, undisturbed.model)


# --------------------------------------------------------------------------------------- resumed


def saved(folder: Path, make: Callable[[nn.Module], Any] = body_and_head) -> Path:
    run(start(work_of(make), epochs=1, seed=0), [checkpoint(folder)])
    return folder


def renamed(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    body, head = body_and_head(model).values()
    return {"trunk": body, "head": head}


def exchanged(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    body, head = body_and_head(model).values()
    return {"body": head, "head": body}


def turned_round(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    return dict(reversed(body_and_head(model).items()))


def one(model: nn.Module) -> torch.optim.Optimizer:
    return SGD(model.parameters(), 0.1)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (renamed, "there are several, 'trunk' and 'head', and there were several, 'body' and 'head'"),
        (lambda model: {"body": one(model)}, "there are several, 'body', and there were several, 'body' and 'head'"),
        (exchanged, "of 'body', it is of the class Adam, and was of SGD"),
        (turned_round, "there are several, 'head' and 'body', and there were several, 'body' and 'head'"),
        (one, "there is one without a name, and there were several, 'body' and 'head'"),
    ],
)
def test_other_optimizers_than_were_saved_are_refused(other: Any, sentence: str, tmp_path: Path) -> None:
    """With both sides of what differs; nothing of the training has changed."""
    work, before = work_of(other), network()

    with pytest.raises(WorkloadError, match=sentence):
        restore(saved(tmp_path), work)

    assert same_weights(work.model, before)


def test_several_are_not_restored_from_one(tmp_path: Path) -> None:
    """The other way round."""
    with pytest.raises(WorkloadError, match="there are several, 'body' and 'head', and there was one without a name"):
        restore(saved(tmp_path, one), work_of(body_and_head))


def test_groups_that_were_added_come_back(tmp_path: Path) -> None:
    """Each to the optimizer that had it."""

    def without_head(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        body, _, _, head = model.children()
        return {"body": SGD([body.weight], 0.1, momentum=0.9), "head": Adam([head.weight], 0.01)}

    def grown(make_folder: Path | None) -> Supervised:
        work = work_of(without_head)
        work.optimizer["body"].add_param_group({"params": [work.model[0].bias], "lr": 0.3})  # type: ignore[index]
        if make_folder is not None:
            run(start(work, epochs=1, seed=0), [checkpoint(make_folder)])
        return work

    trained = grown(tmp_path)
    fresh = work_of(without_head)
    state = restore(tmp_path, fresh)

    assert state.hyper["lr"] == (0.1, 0.3, 0.01)
    run(extend(state, epochs=1))
    run(start(trained, epochs=1))
    assert [len(each.param_groups) for each in fresh.optimizer.optimizers.values()] == [2, 1]  # type: ignore[union-attr]


def test_finding_a_rate_leaves_no_trace() -> None:
    """Both optimizers are as they were, their momenta included."""
    found, plain = work_of(), work_of()
    find_lr(start(found, epochs=1), steps=5)
    run(start(found, epochs=1, seed=0))
    run(start(plain, epochs=1, seed=0))

    assert same_weights(found.model, plain.model)


def test_a_scheduler_of_torch_takes_one_of_them() -> None:
    """`make` is given all by name; its length is known, and its optimizer is not touched to find it out."""
    work = work_of()

    def make(optimizers: Any) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.StepLR(optimizers["muon"], 1, 0.5)

    assert work.scheduler_length(make) == ("StepLR(step_size=1)", (1, None))
    final = run(start(work, epochs=2), [torch_scheduler(make, by="epoch")])

    assert final.hyper["muon.lr"] == 0.02 * 0.25
    assert final.hyper["lr"] == (0.02 * 0.25, 1e-3, 3e-3)
    with pytest.raises(WorkloadError, match="the StepLR of 'torch_scheduler' is one of another optimizer"):
        run(start(work_of(), epochs=1), [torch_scheduler(lambda _: make({"muon": one(network())}))])


def step_lr(rate: float) -> Callable[[Any], Any]:
    return lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, rate)


def test_each_has_its_own_scheduler_of_torch(tmp_path: Path) -> None:
    """One callback makes and steps them all; by hand, and killed and resumed, the same."""
    plain = network()
    optimizers = muon_and_adamw(plain)
    schedulers = [step_lr(0.5)(optimizers["muon"]), step_lr(0.9)(optimizers["adamw"])]
    for inputs, target in BATCHES * 2:
        CROSS_ENTROPY(plain(inputs), target).backward()
        for each in (*optimizers.values(), *schedulers):
            each.step()
        for optimizer in optimizers.values():
            optimizer.zero_grad()

    both = torch_scheduler({"muon": step_lr(0.5), "adamw": step_lr(0.9)})
    final, work = killed_and_resumed(work_of, tmp_path, 5, [both])

    assert same_weights(work.model, plain)
    assert final.hyper["lr"] == tuple(rate for each in schedulers for rate in each.get_last_lr())


def test_schedulers_of_several_are_checked() -> None:
    """What is no function is refused at once, a name that is not there at SETUP; lengths are compared with the plan."""
    for wrong in ({}, {"muon": 0.5}):
        with pytest.raises(TypeError, match="of several optimizers one each, by name"):
            torch_scheduler(wrong)  # type: ignore[arg-type]
    with pytest.raises(
        WorkloadError, match="this training has no optimizer 'lion': there are several, 'muon' and 'adamw'"
    ):
        run(start(work_of(), epochs=1), [torch_scheduler({"lion": step_lr(0.5)})])
    with pytest.raises(WorkloadError, match="this training has no optimizer 'muon': it has one alone"):
        run(start(work_of(one), epochs=1), [torch_scheduler({"muon": step_lr(0.5)})])

    long = {"muon": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)}
    assert "CosineAnnealingLR(T_max=500) needs 500 steps" in describe(
        [torch_scheduler(long)], start(work_of(), epochs=1)
    )


def test_a_length_is_not_asked_of_groups_that_are_anothers() -> None:
    """A scheduler that is made of a wrapper would write to what it wraps."""
    work = work_of(lookahead)

    assert work.scheduler_length(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)) is None
    assert work.hyper()["lr"] == 0.1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile, about torch itself
def test_compiled_steps_step_all() -> None:
    """The whole step through torch.compile is that of the eager way, up to rounding."""
    compiled, plain = work_of(body_and_head), work_of(body_and_head)
    run(start(compiled, epochs=1), [compile_step("default", backend="eager")])
    run(start(plain, epochs=1))

    for ours, theirs in zip(compiled.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_captured_steps_step_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph has the steps of all, and is captured anew when a number of one of them changes."""
    captured: list[CapturedStep] = []

    def pretend(work: Supervised, mode: str, backend: str) -> CapturedStep:
        captured.append(CapturedStep(work, PretendedGraph(work)))
        return captured[0]

    monkeypatch.setattr(handlers, "compiled_step", pretend)
    decay = schedule(lr=step(1, 0.5), by="epoch", optimizer="a")
    graph, eager = work_of(two_sgd), work_of(two_sgd)
    run(start(graph, epochs=3), [compile_step("graph"), decay])
    run(start(eager, epochs=3), [decay])

    assert same_weights(graph.model, eager.model)
    assert (captured[0].captures, captured[0].replays > 3) == (3, True)


def test_an_optimizer_that_cannot_be_captured_is_named() -> None:
    """The one of several, with what to write."""
    model = network()
    optimizers = {"a": SGD(model[0].parameters(), 0.1), "b": Adam(model[3].parameters(), 0.1)}

    with pytest.raises(WorkloadError, match="Adam cannot be captured as it is: make it with capturable=True"):
        check_capturable(JointOptimizer(optimizers))


def test_it_says_what_it_is() -> None:
    """In the repr of the workload: by name, each number once."""
    shown = repr(work_of(body_and_head))

    assert "body: SGD, head: Adam; body.lr 0.1" in shown
    assert "lr 0.1, " in shown
    assert " lr (" not in shown
    assert repr(work_of(body_and_head).optimizer) == "JointOptimizer(body: SGD, head: Adam)"


# ------------------------------------------------------------------------------- what is refused


def doubled(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    return {"a": one(model), "b": Adam([next(model.parameters())])}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda model: {}, "optimizer is an empty mapping: give an optimizer, or several by name"),
        (lambda model: {"a.b": one(model)}, r"optimizer has the name 'a\.b', a str: a name is a text without a dot"),
        (lambda model: {1: one(model)}, "optimizer has the name 1, an int: a name is a text without a dot"),
        (doubled, r"a parameter of the shape \(32, 64\) is stepped by 'a' and by 'b'"),
        (lambda model: {"a": SGD}, r"optimizer\['a'\] is the class SGD: give an instance"),
        (lambda model: {"a": nn.Linear(1, 1)}, r"optimizer\['a'\] is a Linear, which has no step and no"),
        (lambda model: [one(model)], "optimizer is a list: give one optimizer, or several by name"),
    ],
)
def test_what_cannot_step_together_is_refused(make: Any, sentence: str) -> None:
    """When the workload is made, with what to write instead."""
    with pytest.raises(WorkloadError, match=sentence):
        work_of(make)


def test_a_group_is_added_to_one_of_them() -> None:
    """Which one is to be said."""
    work, extra = work_of(body_and_head), nn.Parameter(torch.zeros(2))
    with pytest.raises(WorkloadError, match=r"say which one gets the group, work\.optimizer\['body'\]"):
        work.optimizer.add_param_group({"params": [extra]})

    assert isinstance(work.optimizer, JointOptimizer)
    work.optimizer.add_param_group({"params": [extra]}, optimizer="head")
    assert work.optimizer["head"].param_groups[1]["params"] == [extra]
    assert work.optimizer.state == {}


def test_joint_state_round_trips() -> None:
    """`state_dict` by name, and `load_state_dict` of it; the state of each parameter is that of its optimizer."""
    work = work_of(body_and_head)
    run(start(work, epochs=1))
    other = JointOptimizer(body_and_head(network()))
    other.load_state_dict(copy.deepcopy(work.optimizer.state_dict()))

    head = work.model[3].weight  # type: ignore[index]
    assert work.optimizer.state[head] is work.optimizer["head"].state[head]
    assert other["head"].state_dict()["state"].keys() == work.optimizer["head"].state_dict()["state"].keys()


# ------------------------------------------------------------------------ an optimizer of any class


class Lookahead:
    """Every two steps, slow weights go half of the way to the fast ones: Zhang et al. (2019)."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.steps = inner, 0
        self.slow = [[p.detach().clone() for p in group["params"]] for group in inner.param_groups]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def step(self) -> None:
        self.inner.step()
        self.steps += 1
        if self.steps % 2 == 0:
            with torch.no_grad():
                for group, slow in zip(self.param_groups, self.slow, strict=True):
                    for fast, kept in zip(group["params"], slow, strict=True):
                        fast.copy_(kept.lerp_(fast, 0.5))

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "steps": self.steps, "slow": self.slow}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.inner.load_state_dict(saved["inner"])
        self.steps, self.slow = saved["steps"], saved["slow"]


def lookahead(model: nn.Module) -> Lookahead:
    return Lookahead(SGD(model.parameters(), lr=0.1, momentum=0.9))


@pytest.mark.parametrize("callbacks", [[], [clip_grad_norm(0.5)], [mixed_precision("float16", initial_scale=128.0)]])
def test_an_optimizer_of_any_class_is_the_loop_by_hand(callbacks: list[Callback[Any]], tmp_path: Path) -> None:
    """What has step, zero_grad, param_groups and state_dict, also killed and resumed."""
    plain = network()
    wrapper: Any = lookahead(plain)
    by_hand = Loop(max_norm=0.5) if callbacks and callbacks[0].name == "clip_grad_norm" else Loop()
    if callbacks and callbacks[0].name == "mixed_precision":
        by_hand = Loop(scale=128.0)
    by_hand(plain, {"": wrapper})

    _, work = killed_and_resumed(lambda: work_of(lookahead), tmp_path, 5, callbacks)

    assert same_weights(work.model, plain)


class Bare:
    """The four things that make an optimizer, and no more."""

    def __init__(self, model: nn.Module) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": [*model.parameters()], "lr": 0.1}]

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(self.param_groups[0]["lr"] * parameter.grad)

    def zero_grad(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {}


def test_four_things_make_an_optimizer(tmp_path: Path) -> None:
    """It trains and is scheduled; what it cannot do is said where it is needed."""
    work = work_of(Bare)
    final = run(start(work, epochs=1, seed=0), [schedule(lr=step(2, 0.5)), checkpoint(tmp_path)])

    assert final.hyper["lr"] == 0.1 * 0.5**3
    with pytest.raises(WorkloadError, match="the optimizer cannot be restored: Bare has no load_state_dict"):
        restore(tmp_path, work_of(Bare))
