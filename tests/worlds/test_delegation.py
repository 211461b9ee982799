"""What a workload is asked reaches the one that `Agreed` is around, or is agreed on: nothing of it is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fsm_train import Operation, Scripted, WorkloadError
from fsm_train.core.workload import Workload
from fsm_train.testing import simulate
from fsm_train.worlds.agreed import Agreed
from fsm_train.worlds.proxy import WorkloadProxy

MEMBERS = frozenset(name for name in {*vars(Workload), *Workload.__annotations__} if not name.startswith("_"))

AGREED = frozenset(
    {
        *("batches_per_epoch", "shares_facts", "informed", "notes", "metric_names", "interrupt", "set_aside"),
        *("across_ranks", "evaluate_on"),
        *("prepare", "reposition", "finish", "carry_out", "bound", "read", "fused", "laps"),
        *("open", "fetch", "backward", "measure", "open_valid", "fetch_valid", "evaluate", "measure_valid"),
    }
)
"""What several ranks are told the same of, or what has to be done beside it."""

OWN = frozenset(
    {
        *(
            "rank",
            "hands_on_signals",
            "doing",
            "has_valid",
            "sensors",
            "players",
            "carries",
            "refuses",
            "scheduler_length",
        ),
        "model_parts",
        *("reductions", "known_sizes", "known_valid_sizes", "whole_data", "metric_weights", "set_rank_weight"),
        *("stand_by", "measure_nothing"),
        *("hyper", "set_hyper", "snapshot", "put_back", "undisturbed", "reserve"),
        *("turn", "forward", "loss", "discard", "unscale", "step", "zero", "abandon"),
    }
)
"""What is that of this rank's workload, or the same on all ranks because what they decide is."""


def test_each_member_of_a_workload_is_agreed_on_or_a_rank_s_own() -> None:
    """Whoever adds one decides which, and writes it here; each operation is one of them."""
    assert not AGREED & OWN
    assert MEMBERS == AGREED | OWN
    assert {operation.value for operation in Operation} <= MEMBERS


def test_what_is_agreed_on_is_defined_and_nothing_else() -> None:
    """What is defined beside it would hide what the workload says."""
    defined = {name for kind in (Agreed, WorkloadProxy) for name in vars(kind)} & MEMBERS
    assert defined == AGREED


class Asked:
    """Has every member of a workload, each with a value of its own."""

    batches_per_epoch = 3
    interrupt = None

    def __init__(self) -> None:
        self.players: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in MEMBERS:
            raise AttributeError(name)
        return self.answer(name)

    @staticmethod
    def answer(name: str) -> Callable[..., str]:
        return lambda *given: f"{name} of {given}"


@pytest.mark.parametrize("name", sorted(OWN - {"players"}))
def test_what_is_a_rank_s_own_comes_from_its_workload(name: str) -> None:
    """And not from the defaults of `Workload`."""
    joined: Any = Agreed(Asked(), lambda row: [row, row])  # type: ignore[arg-type]
    assert getattr(joined, name)(1, 2) == f"{name} of (1, 2)"


def test_players_are_those_of_the_workload() -> None:
    """There are none where there are several ranks, which have no turns."""
    work = Asked()
    joined: Any = Agreed(work, lambda row: [row, row])  # type: ignore[arg-type]
    assert joined.players is work.players


@pytest.mark.parametrize(
    "join",
    [
        lambda: Agreed(Scripted(players={"D": 1, "G": 5}), lambda row: [row, row]),
        lambda: simulate([], ranks=2, batches=3, players={"D": 1, "G": 5}),
    ],
    ids=["Agreed", "simulate"],
)
def test_players_on_several_ranks_are_refused(join: Callable[[], object]) -> None:
    """What one weighs on each rank, nobody counts."""
    with pytest.raises(WorkloadError, match="the players 'D', 'G' take turns, .*: train players on one rank"):
        join()
