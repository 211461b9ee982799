"""Each situation ends with the same weights by its plain loop, by the machine, and by the machine after a kill."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from fsm_train import Flag, Phase, State, Transition, on, replay, restore, run
from fsm_train.callbacks import checkpoint
from tests.generated import marked
from tests.situations.table import README, SITUATIONS, lines_of, situation, table


class Steps:
    """Counts the steps of all optimizers while it is open."""

    def __enter__(self) -> Steps:
        self.taken = 0
        self._handle = register_optimizer_step_post_hook(self._count)
        return self

    def _count(self, *_: object) -> None:
        self.taken += 1

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def leaves(value: Any) -> Iterator[torch.Tensor | float]:
    """The tensors and numbers that a situation ends with: of a module all parameters and buffers."""
    if isinstance(value, nn.Module):
        yield from value.state_dict().values()
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from leaves(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from leaves(part)
    else:
        yield value


@functools.cache
def by_hand(name: str) -> tuple[list[torch.Tensor | float], int]:
    """What the plain loop ends with, and after how many steps."""
    with Steps() as steps:
        ended = [*leaves(situation(name).plain())]
    return ended, steps.taken


def check_equal(ended: Any, name: str) -> None:
    """All weights and tensors are those of the plain loop to the last bit, measured numbers to six digits."""
    for one, other in zip(leaves(ended), by_hand(name)[0], strict=True):
        if isinstance(other, torch.Tensor):
            assert torch.equal(one, other)
            assert other.isfinite().all()
        else:
            assert one == pytest.approx(other, rel=1e-6, abs=1e-9)


@pytest.mark.unmeasured
@pytest.mark.parametrize("name", SITUATIONS)
def test_it_ends_as_its_plain_loop_does(name: str) -> None:
    """With the same weights, after as many steps."""
    with Steps() as steps:
        ended = situation(name).machine()

    check_equal(ended, name)
    assert steps.taken == by_hand(name)[1] > 2


class KilledError(Exception):
    pass


@pytest.mark.unmeasured
@pytest.mark.parametrize(("phase", "times"), [(Phase.BATCH_END, 7), (Phase.EPOCH_END, 1)])
@pytest.mark.parametrize("name", [name for name in SITUATIONS if hasattr(situation(name), "run")])
def test_it_is_resumed_exactly(
    name: str, phase: Phase, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in or after an epoch, it ends with the same weights by objects that are all new; the log is replayed."""
    log = tmp_path / "run.jsonl"

    @on(phase, memory=1)
    def leave(state: State, time: int) -> Transition:
        return Transition(memory=time + 1, flags=Flag.SUSPEND if time == times else Flag.NONE)

    def until_killed(state: State, callbacks: Any = ()) -> State:
        assert run(state, [*callbacks, checkpoint(tmp_path / "saved"), leave], log=log).phase is Phase.SUSPENDED
        raise KilledError

    def resumed(state: State, callbacks: Any = ()) -> State:
        monkeypatch.setattr(situation(name), "run", run)  # for later trainings of the situation
        consulted = [*callbacks, checkpoint(tmp_path / "saved"), leave]
        torch.manual_seed(99)
        final = run(restore(tmp_path / "saved", state.workload), consulted, log=log)
        assert final.phase is Phase.DONE
        assert final.notes == ()
        assert replay(log, consulted).ok
        return final

    monkeypatch.setattr(situation(name), "run", until_killed)
    with pytest.raises(KilledError):
        situation(name).machine()
    monkeypatch.setattr(situation(name), "run", resumed)

    check_equal(situation(name).machine(), name)


def test_each_situation_stands_in_the_table() -> None:
    """A module that is not listed would not be run."""
    beside = {"__init__", "common", "table", Path(__file__).stem}

    assert {path.stem for path in Path(__file__).parent.glob("*.py")} - beside == set(SITUATIONS)


def test_table_is_in_the_readme() -> None:
    """Lines are counted again, and the gallery shows what they are now: `python -m tests.situations.table`."""
    assert marked("situations", table()) in README.read_text()


def test_lines_of_a_loop_are_those_that_it_alone_needs() -> None:
    """With what only one of the loops uses, and without set-up, return, blank lines, comments and docstrings."""
    source = '''
def both(x):
    return x

def setup():
    return 1

def plain():
    """Text."""
    x = setup()

    # Why.
    x = both(x)
    return x

@both
def helper(x):
    """Text."""
    return inner(x)

def inner(x):
    return x

def machine():
    x = setup()
    x = helper(
        both(x),
    )
    return x
'''

    assert (lines_of(source, "plain"), lines_of(source, "machine")) == (1, 3 + 3 + 2)
