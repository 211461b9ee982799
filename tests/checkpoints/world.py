"""A small training with everything in it that is awkward to go on with, and fresh processes that go on with it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
import torch._dynamo  # optimizers import it when they are made: here, once, it does not cost each process seconds
import torchmetrics
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    WeightedRandomSampler,
)

from fsm_train import Flag, NoCheckpointError, Phase, State, Supervised, Transition, on, restore, run, start
from fsm_train import callbacks as c
from fsm_train.core.callback import Callback
from fsm_train.core.commands import SaveCheckpoint
from fsm_train.core.phase import Junction
from fsm_train.data import reproducible
from fsm_train.data.generators import Generators
from fsm_train.encoding import encode
from fsm_train.schedules import cosine, warmup
from fsm_train.signals import SIGNALS
from tests.worlds import accuracy, digits

EPOCHS, BATCH = 3, 8
DATA = digits(76 + 24)
Kind = str
End = tuple[dict[str, str], list[str]]  # digests of what there is at the end, and what was to be seen on the way
BOUNDARIES = (Phase.BATCH_END, Phase.VALID_BATCH_END, Phase.VALID_END, Phase.EPOCH_END)


# ------------------------------------------------------------------------------------ the parts


class Augmented(Dataset[Any]):
    """Each sample is changed by what the generators of Python, NumPy and torch say when it is read."""

    def __init__(self, data: Dataset[Any], length: int) -> None:
        self.data = data
        self.length = length
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.read.append(index)
        image, target = self.data[index]
        return image * (1 + 0.1 * random.random()) + 0.1 * float(np.random.rand()) + 0.1 * torch.rand(64), target


class Stream(IterableDataset[Any]):
    """The same as a stream, which can only be read from its beginning."""

    def __init__(self, data: Dataset[Any], length: int, *, augmented: bool = False) -> None:
        self.data = Augmented(data, length) if augmented else data
        self.length = length

    def __iter__(self) -> Iterator[Any]:
        return (self.data[i] for i in range(self.length))


class Adapts(nn.Module):
    """Scales by a running mean that is in no state_dict, and has a mode of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                self.seen.mul_(0.9).add_(0.1 * x.abs().mean().float())
        return x / (1 + self.seen)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(64, 16),
            norm=nn.BatchNorm1d(16),
            adapts=Adapts(),
            relu=nn.ReLU(),
            dropout=nn.Dropout(0.3),
            last=nn.Linear(16, 10),
        )
    )


class Counts:
    """A part of one's own: how often it was asked in training, which has an effect on what it answers."""

    def __init__(self) -> None:
        self.calls = 0
        self.total = torch.zeros(())

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if output.requires_grad:
            self.calls += 1
            self.total += output.detach().float().mean()
        return nn.functional.cross_entropy(output, target) * (1 + 1e-3 * (self.calls % 7))

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls, "total": self.total.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls, self.total = state["calls"], state["total"].clone()


def _train(kind: Kind, workers: int) -> Any:
    data = Augmented(Subset(DATA, range(76)), 76)
    settings: dict[str, Any] = {"num_workers": workers}
    match kind:
        case "shuffled":
            return DataLoader(data, BATCH, shuffle=True, **settings)
        case "own generator":
            return DataLoader(data, BATCH, shuffle=True, generator=torch.Generator().manual_seed(4), **settings)
        case "unbatched":
            order = BatchSampler(RandomSampler(data), BATCH, drop_last=False)
            return DataLoader(_Batches(data), batch_size=None, sampler=order, **settings)
        case "weighted":
            weights = WeightedRandomSampler([1.0 + i % 3 for i in range(76)], 70)
            return DataLoader(data, BATCH, sampler=weights, drop_last=True, **settings)
        case "reproducible":
            return reproducible(DataLoader(data, BATCH, shuffle=True, **settings))
        case "stream":
            return DataLoader(Stream(Subset(DATA, range(76)), 76), BATCH, **settings)
        case "augmented stream":
            return DataLoader(Stream(Subset(DATA, range(76)), 76, augmented=True), BATCH, **settings)
        case "list":
            return list(DataLoader(Subset(DATA, range(76)), BATCH))
        case "stateful":
            from torchdata.stateful_dataloader import StatefulDataLoader

            return StatefulDataLoader(data, BATCH, shuffle=True, **settings)
    raise ValueError(kind)


class _Batches(Dataset[Any]):
    def __init__(self, data: Augmented) -> None:
        self.data = data

    def __getitem__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        samples = [self.data[i] for i in indices]
        return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


# ------------------------------------------------------------------------------------ trainings


@attrs.frozen
class Spec:
    """Which training; `saves` has it write checkpoints as it goes, and `slow` seconds a batch."""

    variant: str = "everything"
    loader: str = "shuffled"
    workers: int = 0
    epochs: int = EPOCHS
    saves: str | None = None
    slow: float = 0.0

    def made(self) -> tuple[Supervised, list[Callback[Any]]]:
        """A workload and callbacks, as a script makes them each time it is started."""
        model = network()
        train = _train(self.loader, self.workers)
        valid = DataLoader(Augmented(Subset(DATA, range(76, 100)), 24), 12, shuffle=True)
        loss = Counts()
        work = Supervised(
            *(model, _optimizer(self.variant, model), loss, train, valid),
            metrics={"accuracy": accuracy, "theirs": torchmetrics.classification.MulticlassAccuracy(num_classes=10)},
            extra={"loss": loss},
        )
        callbacks = _VARIANTS[self.variant]()
        if self.saves is not None:
            callbacks.append(c.checkpoint(self.saves, every_steps=1, keep=2))
        return work, callbacks


def _optimizer(variant: str, model: nn.Module) -> torch.optim.Optimizer:
    if variant in ("everything", "awkward"):
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    groups = [{"params": model.first.parameters(), "lr": 2e-2}, {"params": model.last.parameters()}]
    return torch.optim.AdamW([*groups, {"params": model.norm.parameters()}], lr=1e-2)


def _everything() -> list[Callback[Any]]:
    return [
        c.accumulate(3),
        c.ema(0.8),
        c.mixup(0.4),
        c.clip_grad_norm(1.0),
        c.grad_noise(0.01),
        c.schedule(lr=warmup(4).then(cosine(20)), weight_decay=warmup(6)),
        c.early_stopping("valid_loss", patience=9),
        c.restore_best("valid_loss"),
        c.validate_every(steps=2),
    ]


def _float16() -> list[Callback[Any]]:
    return [
        c.mixed_precision("float16", initial_scale=2.0**26, growth_interval=3),
        c.accumulate(3),
        c.ema(0.8),
        c.reduce_on_plateau("valid_loss", factor=0.5, patience=0),
        c.early_stopping("valid_loss", patience=9),
        c.validate_every(steps=2),
        c.freeze("first.*", until_epoch=1),
    ]


def _scheduler() -> list[Callback[Any]]:
    def cycle(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.05, 0.03, 0.02], total_steps=40)

    def plateau(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7)

    return [
        c.torch_scheduler(cycle, name="cycle"),
        c.torch_scheduler(plateau, by="epoch", monitor="valid_loss", name="plateau"),
        c.swa(1),
        c.accumulate(2),
        c.validate_every(steps=3),
    ]


def _awkward() -> list[Callback[Any]]:
    """Windows that go on after they were skipped late, gradients that are kept after a step, epochs cut short."""

    @on(Phase.STEP_BEGIN)
    def skips_late(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_STEP | Flag.SKIP_ZERO) if state.iteration % 5 == 4 else None

    @on(Phase.STEP_END)
    def keeps_gradients(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_ZERO) if state.iteration % 4 == 2 else None

    @on(Phase.EPOCH_BEGIN, Phase.BATCH_BEGIN)
    def cuts_short(state: State) -> Transition | None:
        if state.phase is Phase.EPOCH_BEGIN:
            return Transition(flags=Flag.STOP_EPOCH) if state.epoch == 1 else None
        return Transition(flags=Flag.SKIP_BATCH) if state.iteration == 6 else None

    float16 = c.mixed_precision("float16", initial_scale=1000.0, growth_interval=2)
    return [float16, c.accumulate(3), c.ema(0.8), skips_late, keeps_gradients, cuts_short, c.validate_every(steps=1)]


_VARIANTS: Mapping[str, Callable[[], list[Callback[Any]]]] = {
    "everything": _everything,
    "float16": _float16,
    "scheduler": _scheduler,
    "awkward": _awkward,
}


def suspend_everywhere(folder: Path) -> list[Callback[Any]]:
    """Suspends at each boundary, and writes a checkpoint there, with the number of boundaries before it as name."""

    @on(*BOUNDARIES, Phase.SUSPEND, memory=(0, (-1, 0)))
    def suspend_everywhere(state: State, seen: tuple[int, tuple[int, int]]) -> Transition | None:
        before, last = seen
        if state.phase is Phase.SUSPEND:
            return Transition(commands=(SaveCheckpoint(str(folder), f"{before:04d}"),))
        if state.phase is not Phase.VALID_BATCH_END:
            return Transition(flags=Flag.SUSPEND, memory=(before + 1, (state.iteration, 0)))
        # A validation that was left begins anew: the second time, go one batch further.
        here = (state.iteration, state.valid_batch)
        return Transition(flags=Flag.SUSPEND, memory=(before + 1, here)) if here > last else None

    return [suspend_everywhere]


class Trace:
    """The rest of the log: what was there to be seen at each phase, by where it was."""

    at = (*BOUNDARIES, Phase.STEP_BEGIN, Phase.STEP_END, Phase.DONE)
    needs = frozenset({"loss", "grad_norm", "stepped"})
    interval = 0.0

    def __init__(self) -> None:
        self.lines: list[str] = []

    def open(self, state: State, callbacks: Sequence[Callback[Any]]) -> None: ...

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        seen = {
            **_plainly(state),
            "facts": encode(dict(state.facts)),
            "answers": {name: repr(answer.hyper) for name, answer in answers.items() if name not in _APART},
        }
        self.lines.append(json.dumps([state.phase.value, seen], sort_keys=True))

    def close(self) -> None: ...


_APART = ("suspend_everywhere", "leave", "checkpoint", "clock")  # what is different on purpose


def _plainly(state: State) -> dict[str, Any]:
    counters = {
        name: getattr(state, name)
        for name in ("epoch", "batch", "iteration", "step", "samples", "pending", "batches_over", "validated_at")
    }
    memory = {name: encode(value) for name, value in state.memory.items() if name not in _APART}
    # Whoever was suspended has the flag up where the other has not.
    flags = (state.flags & ~Flag.SUSPEND).value
    values = {name: encode(dict(getattr(state, name))) for name in ("hyper", "metrics")}
    return {**counters, **values, "flags": flags, "memory": memory, "history": encode(tuple(map(dict, state.history)))}


def train_through(spec: Spec) -> End:
    """The end of an undisturbed training, and all that was to be seen on the way."""
    work, callbacks = spec.made()
    trace = Trace()
    return end_of(work, run(start(work, epochs=spec.epochs, seed=0), callbacks, sinks=[trace])), trace.lines


def suspended_everywhere(spec: Spec, folder: Path) -> dict[str, str]:
    """The end of a training that was suspended, saved and gone on with at every boundary, in this process."""
    work, callbacks = spec.made()
    state = start(work, epochs=spec.epochs, seed=0)
    while state.phase is not Phase.DONE:
        state = run(state, [*callbacks, *suspend_everywhere(folder)])
    return end_of(work, state)


def go_on(spec: Spec, path: Path) -> End:
    """The end of the training that this checkpoint is of, and all that was to be seen from there on."""
    disturb()
    work, callbacks = spec.made()
    trace = Trace()
    return end_of(work, run(restore(path, work), callbacks, sinks=[trace])), trace.lines


def disturb() -> None:
    """Leave all generators where nobody expects them."""
    random.seed(random.SystemRandom().random())
    np.random.seed(random.SystemRandom().randrange(2**32))
    torch.seed()


# ------------------------------------------------------------------------------------- comparing


def end_of(work: Supervised, state: State) -> dict[str, str]:
    """A digest of each tensor and value that a training changes. Knows nothing of how checkpoints are made."""
    generators = Generators.now(work.loader_generators())
    everything = {
        "state": _plainly(state) | {"phase": state.phase.value, "reason": state.reason},
        "model": work.model.state_dict(),
        "buffers": dict(work.model.named_buffers()),
        "modes": [module.training for module in work.model.modules()],
        "optimizer": work.optimizer.state_dict(),
        "gradients": [p.grad for p in work.parameters],
        "averages": {name: dict(a.averaged.named_parameters()) for name, a in work.carried_over.averages.items()},
        "averaged buffers": {name: dict(a.averaged.named_buffers()) for name, a in work.carried_over.averages.items()},
        "weights": work.carried_over.weights,
        "schedulers": {name: s.state_dict() for name, s in work.carried_over.schedulers.items()},
        "scaler": work.carried_over.scaler,
        "extra": {name: part.state_dict() for name, part in work.extra.items()},
        "python": generators.python,
        "numpy": [str(part) for part in (generators.numpy[0], generators.numpy[1].tolist(), *generators.numpy[2:])],
        "torch": generators.cpu,
        "own": [generator for _, generator in generators.own],
    }
    return dict(_digests("", everything))


def _digests(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        yield path, f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(data).hexdigest()[:16]}"
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _digests(f"{path}/{key}", part)
    elif isinstance(value, (list, tuple)) and len(value) < 100:
        for i, part in enumerate(value):
            yield from _digests(f"{path}/{i}", part)
    else:
        yield path, repr(value) if len(repr(value)) < 80 else hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def differences(expected: End, found: End) -> list[str]:
    """What is not the same: values at the end, and what was seen after the seam. Empty for the same training."""
    ends, others = expected[0], found[0]
    differing = [
        f"{key}: {ends.get(key)} / {others.get(key)}"
        for key in sorted(ends.keys() | others.keys())
        if ends.get(key) != others.get(key)
    ]
    rest = expected[1][len(expected[1]) - len(found[1]) :]
    differing += [f"seen: {a} / {b}" for a, b in zip(rest, found[1], strict=False) if a != b][:1]
    return differing


# ------------------------------------------------------------------------------ in fresh processes

FRESH = multiprocessing.get_context("forkserver")
"""Each process is forked off one that has imported this module, and has done nothing with it."""
FRESH.set_forkserver_preload([__name__, "tests.checkpoints.test_damage"])
THOROUGH = os.environ.get("FSM_TRAIN_LONG") == "1"
"""Every boundary, hundreds of kills and a thousand faults take minutes; by default there are some of each."""


def all_or_some(paths: Iterable[Path], every: int) -> list[Path]:
    """All of them in a thorough run, else every so many."""
    ordered = sorted(paths)
    return ordered if THOROUGH else ordered[every // 2 :: every]


def each_in_a_fresh_process(jobs: Sequence[tuple[Spec, Path]]) -> list[End]:
    """Go on from each of these checkpoints, each in a process of its own that has just begun."""
    with ProcessPoolExecutor(1, FRESH, as_a_script, max_tasks_per_child=1) as pool:
        return list(pool.map(go_on, *zip(*jobs, strict=True)))


def as_a_script() -> None:
    """As in a process that a shell started: its loaders' workers are forked, and not again from a server of its own."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)


def take_up(spec: Spec, answer: Path) -> None:
    """What a script does that may be killed at any time: go on from the newest checkpoint, if there is one.

    A suspended one leaves with the exit status of SIGTERM. What is asked about it afterwards is in `answer`.
    """
    as_a_script()
    os.setpgrp()
    disturb()
    before = [signal.getsignal(number) for number in SIGNALS]
    work, callbacks = spec.made()
    begun: list[float] = []

    @on(Phase.BATCH_BEGIN, Phase.VALID_BATCH_BEGIN)
    def clock(state: State) -> None:
        begun.append(time.monotonic())
        time.sleep(spec.slow)

    assert spec.saves is not None
    try:
        state = restore(spec.saves, work)
    except NoCheckpointError:
        state = start(work, epochs=spec.epochs, seed=0)
    answer.with_suffix(".begun").touch()
    state = run(state, [*callbacks, clock])
    back = [signal.getsignal(number) for number in SIGNALS] == before
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # a signal that comes now is not one of the training
    said = {"begun": begun, "handlers": back, "validating": state.resume_at is Junction.VALID_ABANDONED}
    answer.write_text(json.dumps([end_of(work, state), said]))
    if state.phase is Phase.SUSPENDED:
        sys.exit(128 + signal.SIGTERM)


@attrs.frozen
class Left:
    """How a process that was given a signal left."""

    status: int
    end: dict[str, str]
    said: dict[str, Any]
    batches_after: int  # that were begun after the signal


def signalled(spec: Spec, number: signal.Signals, after: float, *, group: bool = False) -> Left:
    """Let a process take up the training, and send it a signal so many seconds after it began."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer")
        process = FRESH.Process(target=take_up, args=(spec, answer))
        process.start()
        assert process.pid is not None
        while process.is_alive() and not answer.with_suffix(".begun").exists():
            time.sleep(0.001)
        process.join(after)
        sent = time.monotonic()
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(process.pid, number)
        process.join(60)
        assert process.exitcode is not None, "it does not leave"
        end, said = json.loads(answer.read_text()) if answer.exists() else ({}, {})
    return Left(process.exitcode, end, said, sum(begun > sent for begun in said.get("begun", ())))
