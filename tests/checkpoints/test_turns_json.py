"""The players of a training in `state.json`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from fsm_train import CheckpointError, Phase
from fsm_train.checkpoints.state_json import control_of, state_of
from fsm_train.core.turns import NO_PLAYERS
from fsm_train.testing import simulate


def between_turns() -> bytes:
    state = simulate(
        [], batches=2, players={"D": 1, "G": 1}, until=lambda s: s.phase is Phase.BATCH_END and s.step == 3
    )
    return control_of(state)


def test_whose_turn_it_was_is_saved() -> None:
    """The next player comes when it is resumed."""
    players = state_of(between_turns()).players

    assert (players.player, players.coming, players.steps, players.fetched) == ("D", ("G",), (2, 1), 32)


def test_without_turns_nothing_of_them_is_saved() -> None:
    """The file is that of a training which has none."""
    control = control_of(simulate([], until=Phase.BATCH_END))

    assert b"players" not in control
    assert state_of(control).players == NO_PLAYERS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda players: players.update(coming=["E"]), "turns of others"),
        (lambda players: players.update(turn=0.5), "turns of others|is no"),
        (lambda players: players.update(steps=[1]), "counts others"),
        (lambda players: players.update(every=[2, 2]), "no player plays at each batch"),
        (lambda players: players.update(fetched="many"), "is no|damaged"),
        (lambda players: players.update({"$": "Plan"}), "damaged"),
        (lambda players: (players.clear(), players.update({"$list": []})), "are no players"),
    ],
)
def test_players_that_no_training_saves_are_refused(change: Callable[[Any], object], message: str) -> None:
    """A damaged file is said to be one before anything of it is used."""
    control: Any = orjson.loads(between_turns())
    change(control["players"])

    with pytest.raises(CheckpointError, match=message):
        state_of(orjson.dumps(control))
