"""A callback for one player of a training in which several take turns: the setting `player` of a factory.

Rule of this file: what a callback sees of its player, and answers for it, follows from the state alone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import attrs

from ..core.callback import Callback, strict_factory
from ..core.phase import EPOCH_PHASES, TURN_PHASES, Phase
from ..core.state import Hyper, State, replaced
from ..core.transition import Transition
from ..core.turns import check_player_name
from ..core.values import frozen_map

P = ParamSpec("P")
M = TypeVar("M")


def player_factory(make: Callable[P, Callback[M]]) -> Callable[P, Callback[M]]:
    """As `strict_factory`, for a factory with the setting `player`, which it leaves to this decorator.

    With player="G" the callback is consulted in the turns of G alone, and elsewhere as ever. It sees the steps of G as
    `state.step`, and the hyper-parameters of G under their own names. What it sets is G's, and so is what its commands
    keep or make. Without a name it is called as ever, with the name of the player behind: "clip_grad_norm_G".
    """
    strict = strict_factory(make)
    usual = inspect.signature(make).parameters["name"].default

    @functools.wraps(strict)
    def made(*args: P.args, **kwargs: P.kwargs) -> Callback[M]:
        player = kwargs.get("player")
        if player is None:
            callback = strict(*args, **kwargs)
            params: dict[str, Any] = {name: value for name, value in callback.params.items() if name != "player"}
            return attrs.evolve(callback, params=params)  # as it was recorded before there were players
        check_player_name(player)
        if not kwargs.get("name") and usual is not None:
            kwargs["name"] = f"{usual}_{player}"
        callback = of_player(strict(*args, **kwargs), str(player))
        return callback if kwargs.get("name") else attrs.evolve(callback, name=f"{callback.name}_{player}")

    return made


def of_player(callback: Callback[M], player: str) -> Callback[M]:
    """The callback, consulted in the turns of this player.

    >>> from fsm_train.callbacks import clip_grad_norm
    >>> from fsm_train.testing import at
    >>> clip = clip_grad_norm(1.0, player="G")
    >>> [clip(at(Phase.STEP_BEGIN, players={"D": 1, "G": 1}, player=player)) is None for player in ("D", "G")]
    [True, False]
    """
    inner, every = callback.decide, callback.every  # and not the callback, which is pickled as the call for this player

    @functools.wraps(inner)
    def decide(state: State, memory: Any) -> Transition | None:
        state.players.steps_of(player)  # raises where there is no such player
        if state.phase in TURN_PHASES and not _is_due(state, player, every):
            return None
        if state.phase in EPOCH_PHASES and state.epoch % every:
            return None
        own = _own_hyper(state, player)
        answer = inner(_as_seen_by(state, player, own), memory)
        if not isinstance(answer, Transition) or not (answer.hyper or answer.commands):
            return answer
        if others := [name for name in answer.hyper if name not in own and name in (callback.sets or ())]:
            raise LookupError(
                f"{others[0]!r} is no hyper-parameter of the player {player!r}: set one of the whole training without "
                "player="
            )
        return attrs.evolve(
            answer,
            hyper={f"{player}.{name}" if name in own else name: value for name, value in answer.hyper.items()},
            commands=tuple(command.of_player(player) for command in answer.commands),
        )

    sets = None if callback.sets is None else {f"{player}.{name}" for name in callback.sets}
    return attrs.evolve(callback, decide=decide, sets=sets, every=1, reads=None)


def _is_due(state: State, player: str, every: int) -> bool:
    """Whether it is the turn of this player, and as many of its turns are over as `every` asks for."""
    if state.player != player:
        return False
    over = state.phase is Phase.BATCH_END and not state.players.coming
    return every == 1 or state.players.turns_until(player, state.iteration - over) % every == 0


def _own_hyper(state: State, player: str) -> Mapping[str, Hyper]:
    begin = f"{player}."
    return {name.removeprefix(begin): value for name, value in state.hyper.items() if name.startswith(begin)}


def _as_seen_by(state: State, player: str, own: Mapping[str, Hyper]) -> State:
    """The state with the steps and the hyper-parameters of this player; those that are nobody's stay."""
    others = {name: value for name, value in state.hyper.items() if "." not in name}
    return replaced(state, {"step": state.steps_of(player), "hyper": frozen_map({**others, **own})})
