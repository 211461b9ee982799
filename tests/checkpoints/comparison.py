"""Trainings that are suspended and resumed, and their ends compared to the last bit."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fsm_train import Flag, Phase, State, Supervised, Transition, on, restore, run, start
from fsm_train.core.callback import Callback
from fsm_train.core.commands import SaveCheckpoint
from fsm_train.data.generators import Generators
from fsm_train.encoding import encode
from fsm_train.supervised.shares import local
from tests.checkpoints.awkward_training import Spec

End = tuple[dict[str, str], list[str]]
"""Digests of all values at the end of a training, and the lines of its `StateLog`."""

BOUNDARIES = (Phase.BATCH_END, Phase.VALID_BATCH_END, Phase.VALID_END, Phase.EPOCH_END)


def suspend_everywhere(folder: Path) -> list[Callback[Any]]:
    """Suspends at each boundary and writes a checkpoint there; its name is the number of the boundary."""

    @on(*BOUNDARIES, Phase.SUSPEND, memory=(0, (-1, 0)))
    def suspend_everywhere(state: State, seen: tuple[int, tuple[int, int]]) -> Transition | None:
        before, last = seen
        if state.phase is Phase.SUSPEND:
            return Transition(commands=(SaveCheckpoint(str(folder), f"{before:04d}"),))
        if state.phase is not Phase.VALID_BATCH_END:
            return Transition(flags=Flag.SUSPEND, memory=(before + 1, (state.iteration, 0)))
        # A suspended validation starts again: the second time, continue for one more batch.
        here = (state.iteration, state.valid_batch)
        return Transition(flags=Flag.SUSPEND, memory=(before + 1, here)) if here > last else None

    return [suspend_everywhere]


class StateLog:
    """A sink that writes a line for each phase: the control state, facts and answers."""

    at = (*BOUNDARIES, Phase.STEP_BEGIN, Phase.STEP_END, Phase.DONE)
    needs = frozenset({"loss", "grad_norm", "stepped"})
    interval = 0.0

    def __init__(self) -> None:
        self.lines: list[str] = []

    def open(self, state: State, callbacks: Sequence[Callback[Any]]) -> None: ...

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        seen = {
            **_control_state(state),
            "facts": encode(dict(state.facts)),
            "answers": {name: repr(answer.hyper) for name, answer in answers.items() if name not in _DIFFERENT},
        }
        self.lines.append(json.dumps([state.phase.value, seen], sort_keys=True))

    def close(self) -> None: ...


_DIFFERENT = ("suspend_everywhere", "leave", "checkpoint", "clock")  # callbacks whose answers differ on purpose


def _control_state(state: State) -> dict[str, Any]:
    counters = {
        name: getattr(state, name)
        for name in ("epoch", "batch", "iteration", "step", "samples", "pending", "batches_over", "validated_at")
    }
    memory = {name: encode(value) for name, value in state.memory.items() if name not in _DIFFERENT}
    # Only in the suspended training the flag is raised.
    flags = (state.flags & ~Flag.SUSPEND).value
    values = {name: encode(dict(getattr(state, name))) for name in ("hyper", "metrics")}
    return {**counters, **values, "flags": flags, "memory": memory, "history": encode(tuple(map(dict, state.history)))}


def train_through(spec: Spec) -> End:
    """The end of an undisturbed training, and its lines."""
    work, callbacks = spec.make()
    log = StateLog()
    return end_of(work, run(start(work, epochs=spec.epochs, seed=0), callbacks, sinks=[log])), log.lines


def suspended_everywhere(spec: Spec, folder: Path) -> dict[str, str]:
    """The end of a training that was suspended, saved and resumed at every boundary, in this process."""
    work, callbacks = spec.make()
    state = start(work, epochs=spec.epochs, seed=0)
    while state.phase is not Phase.DONE:
        state = run(state, [*callbacks, *suspend_everywhere(folder)])
    return end_of(work, state)


def resume(spec: Spec, path: Path) -> End:
    """Resume from this checkpoint. Returns the end of the training, and its lines from there on."""
    disturb()
    work, callbacks = spec.make()
    log = StateLog()
    return end_of(work, run(restore(path, work), callbacks, sinks=[log])), log.lines


def differences_anywhere(spec: Spec, folder: Path, each: int) -> list[str]:
    """What is not as undisturbed where the training is suspended at every boundary, or resumed at each so-many-th."""
    expected = train_through(spec)
    found = [f"in one process {text}" for text in differences(expected, (suspended_everywhere(spec, folder), []))]
    for path in sorted(path for path in folder.iterdir() if path.name.isdigit())[::each]:
        found += [f"{path.name} {text}" for text in differences(expected, resume(spec, path))]
    return found


def disturb() -> None:
    """Put all global generators into unpredictable states."""
    random.seed(random.SystemRandom().random())
    np.random.seed(random.SystemRandom().randrange(2**32))
    torch.seed()


def end_of(work: Supervised, state: State) -> dict[str, str]:
    """A digest of each tensor and value that a training changes, independent of how checkpoints are made."""
    generators = Generators.now(work.loader_generators())
    everything = {
        "state": _control_state(state) | {"phase": state.phase.value, "reason": state.reason},
        "model": work.model.state_dict(),
        "buffers": dict(work.model.named_buffers()),
        "modes": [module.training for module in work.model.modules()],
        "optimizer": work.optimizer.state_dict(),
        "gradients": [p.grad for p in work.parameters],
        "averages": {name: dict(a.parameters) for name, a in work.carried_over.averages.items()},
        "averaged buffers": {name: dict(a.buffers) for name, a in work.carried_over.averages.items()},
        "weights": {name: kept.state() for name, kept in work.carried_over.weights.items()},
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
        data = local(value.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
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
    """The values that differ at the end, and the first line that differs. Empty for equal trainings."""
    ends, others = expected[0], found[0]
    differing = [
        f"{key}: {ends.get(key)} / {others.get(key)}"
        for key in sorted(ends.keys() | others.keys())
        if ends.get(key) != others.get(key)
    ]
    rest = expected[1][len(expected[1]) - len(found[1]) :]
    differing += [f"seen: {a} / {b}" for a, b in zip(rest, found[1], strict=False) if a != b][:1]
    return differing
