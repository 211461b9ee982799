"""Each situation ends with the same weights by its plain loop and by the machine; the table of them is up to date."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

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


@pytest.mark.parametrize("name", SITUATIONS)
def test_it_ends_as_its_plain_loop_does(name: str) -> None:
    """All weights and tensors are equal to the last bit, after as many steps; measured numbers to six digits."""
    module = situation(name)

    with Steps() as by_hand:
        expected = [*leaves(module.plain())]
    with Steps() as by_machine:
        ended = [*leaves(module.machine())]

    assert by_machine.taken == by_hand.taken > 2
    assert len(ended) == len(expected)
    for one, other in zip(ended, expected, strict=True):
        if isinstance(other, torch.Tensor):
            assert torch.equal(one, other)
            assert other.isfinite().all()
        else:
            assert one == pytest.approx(other, rel=1e-6, abs=1e-9)


def test_each_situation_stands_in_the_table() -> None:
    """A module that is not listed would not be run."""
    beside = {"__init__", "common", "table", Path(__file__).stem}

    assert {path.stem for path in Path(__file__).parent.glob("*.py")} - beside == set(SITUATIONS)


def test_table_is_in_the_readme() -> None:
    """Lines are counted again, and the gallery shows what they are now: `python -m tests.situations.table`."""
    assert table() in README.read_text()


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
