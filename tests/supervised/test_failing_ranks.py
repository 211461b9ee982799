"""Ranks that fail, are killed, or wait at different places: the others end at once, and say who and why."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fsm_train import (
    Callback,
    Flag,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    evaluate,
    extend,
    find_lr,
    on,
    predict,
    run,
    start,
    watch,
)
from fsm_train.callbacks import accumulate, early_stopping, record
from fsm_train.eventlog.reader import read_log
from fsm_train.supervised import ranks
from fsm_train.supervised.presence import Presence
from fsm_train.worlds.disagreement import PeerError
from tests.forked import forked, wait_at_most
from tests.supervised.test_parallel import shares

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

WITHIN = 30.0
"""Seconds in which all are to end. The group would wait for 180 and the exchange for 300."""

Fail = Callable[[], None]
Case = Callable[[int, Fail, list[Callback[Any]]], Any]

LOG = "run-{rank}.jsonl"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
made: list[Supervised] = []
"""Those of this process."""


class Calls:
    """Does something at the n-th call, which counts from 1."""

    def __init__(self, n: int, do: Fail) -> None:
        self.n, self.do = n, do

    def __call__(self) -> None:
        self.n -= 1
        if self.n == 0:
            self.do()


class Net(nn.Module):
    """A linear layer that calls one function before each forward pass and one in each backward, with a part in eval."""

    def __init__(self, forward: Fail | None = None, backward: Fail | None = None) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(10, 1), nn.BatchNorm1d(1).eval()
        self.before, self.inside = forward, backward

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.before is not None:
            self.before()
        output: torch.Tensor = self.norm(self.layer(inputs))
        if self.inside is not None and output.requires_grad:
            output.register_hook(self._hook)
        return output

    def _hook(self, gradient: torch.Tensor) -> None:
        assert self.inside is not None
        self.inside()


def make(rank: int, net: Net | None = None, **settings: Any) -> Supervised:
    model = net or Net()
    given = {"loss_fn": nn.MSELoss(), "train": shares(rank), "valid": shares(rank, 8, 6, skip=30), "parallel": "ddp"}
    made.append(Supervised(model, torch.optim.SGD(model.parameters(), lr=0.01), **{**given, **settings}))
    return made[-1]


def train(work: Supervised, callbacks: Sequence[Callback[Any]]) -> State:
    return run(start(work, epochs=2), callbacks, log=LOG)


def in_callback(phase: Phase, at: int = 1) -> Case:
    def case(rank: int, fail: Fail, callbacks: list[Callback[Any]]) -> Any:
        calls = Calls(at, fail)

        @on(phase, name="bad")
        def bad(state: State) -> None:
            calls()

        return train(make(rank), [bad, *callbacks])

    return case


def in_loss(rank: int, fail: Fail, callbacks: list[Callback[Any]]) -> Any:
    calls = Calls(2, fail)

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls()
        return nn.functional.mse_loss(output, target)

    return train(make(rank, loss_fn=loss), callbacks)


def in_loader(rank: int, fail: Fail, callbacks: list[Callback[Any]]) -> Any:
    class Loader:
        def __iter__(self) -> Iterator[Any]:
            for i, batch in enumerate(shares(rank)):
                if i == 2:
                    fail()
                yield batch

    return train(make(rank, train=Loader()), callbacks)


def in_metric(rank: int, fail: Fail, callbacks: list[Callback[Any]]) -> Any:
    calls = Calls(2, fail)

    def metric(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls()
        return output.mean()

    return train(make(rank, metrics={"mean": metric}), callbacks)


def in_sensor(rank: int, fail: Fail, callbacks: list[Callback[Any]]) -> Any:
    calls = Calls(2, fail)

    def sensor(work: Any) -> float:
        calls()
        return 1.0

    return train(make(rank, sensors={"mine": sensor}), [record("mine"), *callbacks])


def at_its_end(rank: int, fail: Fail, callbacks: list[Callback[Any]]) -> Any:
    """Where the others wait for the buffers of rank 0, after the last exchange."""
    work = make(rank)
    assert work.ranks is not None
    finish = work.ranks.finish

    def finishing(model: Any, state: State) -> None:
        fail()
        finish(model, state)

    work.ranks.finish = finishing  # type: ignore[method-assign]
    return train(work, callbacks)


IN_A_RUN: dict[str, Case] = {
    **{
        f"in a callback at {phase.value}": in_callback(phase) for phase in (Phase.SETUP, Phase.LOSS_END, Phase.TEARDOWN)
    },
    "in a validation": lambda rank, fail, callbacks: train(make(rank, Net(Calls(5, fail))), callbacks),
    "in forward": lambda rank, fail, callbacks: train(make(rank, Net(Calls(2, fail))), callbacks),
    "in backward": lambda rank, fail, callbacks: train(make(rank, Net(None, Calls(2, fail))), callbacks),
    "in a window": lambda rank, fail, callbacks: train(
        make(rank, Net(None, Calls(2, fail))), [accumulate(2), *callbacks]
    ),
    "in the loss": in_loss,
    "in the loader": in_loader,
    "in a metric": in_metric,
    "in a sensor": in_sensor,
    "at its end": at_its_end,
}


def before_it(rank: int, fail: Fail, callbacks: list[Callback[Any]]) -> Any:
    work = make(rank)
    fail()  # such as a restore
    return train(work, callbacks)


def meet(rank: int) -> None:
    """Wait for the other here: else it may not have seen yet that the exchange before is complete, and end in that."""
    Path(f"here-{rank}").touch()
    until = time.monotonic() + WITHIN / 2
    while not Path(f"here-{1 - rank}").exists() and time.monotonic() < until:
        time.sleep(0.002)


def between(rank: int, fail: Fail, callbacks: list[Callback[Any]]) -> Any:
    final = train(make(rank), ())
    meet(rank)
    fail()
    return run(extend(final, epochs=1), callbacks, log=LOG)


def misspelt(rank: int, fail: Fail, callbacks: list[Callback[Any]]) -> Any:
    checked = watch.check_monitors
    watch.check_monitors = lambda *given: meet(rank) or checked(*given)  # type: ignore[func-returns-value]
    monitor = "valid_lost"
    with contextlib.suppress(OSError):
        fail()
        monitor = "valid_loss"
    return train(make(rank), [early_stopping(monitor, mode="min"), *callbacks])


def predicted(rank: int, fail: Fail, callbacks: list[Callback[Any]]) -> Any:
    work = make(rank, Net(Calls(1, fail)))
    predict(work, shares(rank))
    return evaluate(work)


BESIDE_A_RUN: dict[str, Case] = {
    "before a run": before_it,
    "between two runs": between,
    "in what a run checks": misspelt,
    "in evaluate": lambda rank, fail, callbacks: evaluate(make(rank, Net(Calls(1, fail)))),
    "in predict": predicted,
    "in find_lr": lambda rank, fail, callbacks: find_lr(start(make(rank, Net(Calls(2, fail))), epochs=1), steps=5),
}


BEFORE_A_RUN = ("between two runs", "in what a run checks")
"""What happens on one rank while the other is in a run already, or was in one."""


def in_place(work: Supervised) -> list[str]:
    """What a run puts in place for its time, and is there: wrappers, hooks, parts of the model in another mode."""
    gc.collect()  # an error that is gone held the wrapper that it was raised in
    found = [type(each).__name__ for each in gc.get_objects() if isinstance(each, DistributedDataParallel)]
    found += ["wrapped_model"] * (work.wrapped_model is not work.model)
    for name, part in work.model.named_modules():
        found += [f"{name}.{kind}" for kind in HOOKS if getattr(part, kind)]
        found += [f"{name} trains: {part.training}"] * (part.training == isinstance(part, nn.BatchNorm1d))
    found += [name for name, parameter in work.model.named_parameters() if parameter._backward_hooks]
    return found + ["no gradients"] * (not torch.is_grad_enabled())


def last_reason(rank: int) -> str:
    """Of the log of this rank; it can be read to its end. "" without one."""
    log = Path(LOG.format(rank=rank))
    return [*read_log(log)][-1].reason if log.exists() else ""  # type: ignore[union-attr]


def ends(case: Case, rank: int, failing: int, fail: Fail) -> Any:
    """What a rank's script raised, whether TEARDOWN came, the seconds, and what its run left: its log, and in place.

    Python's hook is called, as at the end of a script.
    """
    torn_down: list[Phase] = []

    @on(Phase.TEARDOWN, order=-1)
    def teardown(state: State) -> None:
        torn_down.append(state.phase)

    began = time.monotonic()
    try:
        case(rank, fail if rank == failing else lambda: None, [teardown])
        return None
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        end = type(error), str(error), len(torn_down), time.monotonic() - began
    return *end, last_reason(rank), in_place(made[-1])


def fail_with_error() -> None:
    raise OSError("disk full")


def cases(of: Mapping[str, Case], *few: tuple[str, int]) -> list[Any]:
    """Each of them on each rank; all but few are `long`."""
    return [
        pytest.param(
            where, rank, marks=[pytest.mark.long(alone=True)] * ((where, rank) not in few), id=f"{where}, rank {rank}"
        )
        for where in of
        for rank in (0, 1)
    ]


@pytest.mark.parametrize(
    ("where", "failing"),
    cases(
        {**IN_A_RUN, **BESIDE_A_RUN},
        ("in a callback at loss_end", 0),
        ("in backward", 1),
        ("in what a run checks", 1),
        ("in evaluate", 0),
        ("at its end", 1),
    ),
)
def test_a_rank_that_fails_frees_the_others(tmp_path: Path, where: str, failing: int) -> None:
    """They end with its number and what it raised, and are torn down where they were in a run."""

    def work(rank: int) -> Any:
        os.chdir(tmp_path)
        logging.disable()
        sys.excepthook = lambda *_: None
        return ends({**IN_A_RUN, **BESIDE_A_RUN}[where], rank, failing, fail_with_error)

    of_each = forked(2, tmp_path, work)
    kind, said, torn_down, seconds, logged, in_place = of_each[1 - failing]
    assert kind is PeerError
    assert said.startswith(f"rank {failing} failed, and this rank ended with it: ")
    assert said.split(": ", 1)[1] in (of_each[failing][1], f"{of_each[failing][0].__name__}: {of_each[failing][1]}")
    assert torn_down == (where in {*IN_A_RUN, *BEFORE_A_RUN})
    assert seconds < WITHIN
    assert logged == (f"PeerError: {said}" if torn_down else "")
    assert in_place == []


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


KILLED = {
    **{
        name: IN_A_RUN[name]
        for name in ("in forward", "in backward", "in a validation", "in a window", "in the loader")
    },
    **{name: BESIDE_A_RUN[name] for name in ("before a run", "between two runs", "in evaluate")},
}


@pytest.mark.parametrize(
    ("where", "gone"), cases(KILLED, ("in backward", 0), ("in a validation", 1), ("between two runs", 1))
)
def test_a_rank_that_is_killed_is_missed(tmp_path: Path, where: str, gone: int) -> None:
    """It could leave no word: the others say its number, since nobody keeps its port open any more."""

    def work(rank: int) -> Any:
        os.chdir(tmp_path)
        logging.disable()
        sys.excepthook = lambda *_: None
        return ends(KILLED[where], rank, gone, killed)

    of_each = forked(2, tmp_path, work)
    kind, said, torn_down, seconds, logged, in_place = of_each[1 - gone]
    assert kind is PeerError
    assert said.startswith(f"rank {gone} failed, and this rank ended with it: its process is gone, without a word")
    assert torn_down == (where in {*IN_A_RUN, *BEFORE_A_RUN})
    assert seconds < WITHIN
    assert logged == (f"PeerError: {said}" if torn_down else "")
    assert in_place == []
    assert isinstance(of_each[gone], EOFError)


@pytest.mark.parametrize("first", ["exchange", "gradient"])
def test_ranks_that_wait_in_different_groups_are_named(tmp_path: Path, first: str) -> None:
    """One skips a batch for a reason of its own. Then it waits for the next one, and the other for a gradient."""

    def skipping(rank: int) -> Callback[Any]:
        @on(Phase.LOSS_END)
        def own_reason(state: State) -> Transition | None:
            if state.iteration == 1:
                wait_at_most(1.0, *ranks._shared.values() if first == "exchange" else ())
            return Transition(flags=Flag.SKIP_BACKWARD) if rank and state.iteration == 1 else None

        return own_reason

    def work(rank: int) -> Any:
        os.chdir(tmp_path)
        logging.disable()
        sys.excepthook = lambda *_: None
        net = make(rank, parallel={"kind": "ddp", "seconds": 90.0})
        return ends(lambda *_: run(start(net, epochs=2), [skipping(rank)]), rank, -1, killed)

    of_each = forked(2, tmp_path, work, 90.0)
    told = 1 if first == "exchange" else 0
    (kind, said, *_), (other_kind, other, *_) = of_each[told], of_each[1 - told]
    assert kind is WorkloadError
    places = {0: "backward", 1: "a batch that was fetched"}
    assert f"the ranks waited {1 if first == 'exchange' else 90} seconds for each other" in said
    assert f"rank {told} waited at {places[told]}" in said
    assert f"rank {1 - told} came to no exchange" in said
    assert other_kind is PeerError
    assert other.startswith(f"rank {told} failed, and this rank ended with it: WorkloadError: the ranks waited")
    assert all(seconds < WITHIN for _, _, _, seconds, *_ in of_each)


class Store(dict[str, str]):
    """What two ranks tell each other, of which the other has told its part."""

    def set(self, key: str, value: str, /) -> None:
        self[key] = value

    def get(self, key: str, /) -> bytes:  # type: ignore[override]
        return self[key].encode()


def test_only_a_process_that_is_gone_is_gone() -> None:
    """Not one that is busy, nor one whose machine cannot be reached."""
    other = Presence(Store(), 0, 1)
    port = other._socket.getsockname()[1]
    elsewhere = Store({"address 1": f"other-machine no-such-host.invalid {port}"})
    assert Presence(elsewhere, 0, 2).gone() == []
    here = Store()
    Presence(here, 0, 1)
    machine, host, _ = here["address 0"].split(" ")
    beside = Presence(Store({"address 1": f"{machine} {host} {port}"}), 0, 2)
    assert beside.gone(0.1) == []
    other.close()
    assert beside.gone() == [1]


def test_a_worker_holds_no_port_open() -> None:
    """A process that was forked, such as a loader's worker, lives on for seconds after its parent was killed."""
    presence = Presence(Store(), 0, 1)
    receives, sends = os.pipe()
    if (child := os.fork()) == 0:
        os.write(sends, str(presence._socket.fileno()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(receives, 9) == b"-1"
    assert presence._socket.fileno() > 0
    os.close(receives)
    os.close(sends)
