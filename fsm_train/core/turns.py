"""Players that take turns at the batches of a training: who plays, whose turn it is, and what each has pending.

Rule of this file: a record, and pure functions of it. Where a turn leads is in `table.py`, and what is done in it is
the workload's.

A turn is one walk from BATCH_BEGIN to BATCH_END by one player. All turns of a batch see the same batch. A workload
without turns has no players, and `NO_PLAYERS` stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from .checks import NO_TEXT, check_count, is_text


@attrs.frozen
class Players:
    """The players of a training, in the order in which they play, and what a training counts for each.

    >>> players = Players.of({"D": 1, "G": 5})
    >>> players.names, players.players_of(3), players.players_of(4)
    (('D', 'G'), ('D',), ('D', 'G'))

    Attributes:
        names: in the order of their turns.
        every: of each, that it plays at each so-many-th batch.
        steps: of each, its optimizer steps that were applied.
        waiting: of each, its backward passes whose gradients wait for a step, while another one plays; 0 of the one
            whose turn it is, whose are in `State.pending`.
        player: the one that played last in this epoch, or plays; "" before the first turn of an epoch.
        turn: the index of its turn within the batch, from 0.
        coming: the players whose turns at this batch are still to come.
        fetched: what the batch of these turns counts; a validation between two turns fetches others.
    """

    names: tuple[str, ...] = ()
    every: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    player: str = ""
    turn: int = 0
    coming: tuple[str, ...] = ()
    fetched: float = 0

    @staticmethod
    def of(every: Mapping[str, int]) -> Players:
        """The players of a training that has not begun: by name, at each so-many-th batch they play.

        Raises:
            TypeError, ValueError: a name is no name, or a number no number from 1.
            ValueError: no player plays at each batch, so that some batches would have no turn.
        """
        if not every:
            return NO_PLAYERS
        for name, batches in every.items():
            check_player_name(name)
            check_count(f"every of player {name!r}", batches, least=1)
        if 1 not in every.values():
            those = ", ".join(f"{name!r}: {batches}" for name, batches in every.items())
            raise ValueError(
                f"players={{{those}}}: no player plays at each batch, so that some batches would be fetched for "
                "nobody. Let one of them have every=1"
            )
        zeros = (0,) * len(every)
        return Players(tuple(every), tuple(every.values()), zeros, zeros)

    def __bool__(self) -> bool:
        return bool(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    @property
    def all_every(self) -> Mapping[str, int]:
        """By name, at each so-many-th batch they play: what they were made `of`."""
        return dict(zip(self.names, self.every, strict=True))

    def players_of(self, iteration: int) -> tuple[str, ...]:
        """The players that have a turn at the batch with this index, counted over the whole training from 0."""
        return tuple(n for n, every in zip(self.names, self.every, strict=True) if (iteration + 1) % every == 0)

    def turns_until(self, name: str, iterations: int) -> int:
        """How many turns this player has in that many batches."""
        return iterations // self.every[self._index(name)]

    def steps_of(self, name: str) -> int:
        """The optimizer steps of this player that were applied.

        Raises:
            LookupError: there is no such player.
        """
        return self.steps[self._index(name)]

    def pending_of(self, name: str, pending: int) -> int:
        """The backward passes of this player that wait for a step; `pending` are those of the one that plays.

        Raises:
            LookupError: there is no such player.
        """
        index = self._index(name)
        return pending if name == self.player else self.waiting[index]

    def next_turn(self, iteration: int, pending: int, fetched: float) -> tuple[Players, int]:
        """The next turn of the batch under way, or the first one of the next batch; and what that player has pending.

        >>> players, pending = Players.of({"D": 1, "G": 1}).next_turn(iteration=0, pending=0, fetched=32)
        >>> players.player, players.turn, players.coming
        ('D', 0, ('G',))
        >>> players, pending = players.next_turn(iteration=0, pending=3, fetched=32)
        >>> players.player, players.turn, players.coming, players.waiting, pending
        ('G', 1, (), (3, 0), 0)
        """
        if self.coming:
            first, *rest = self.coming
            return self._with_turn(first, self.turn + 1, tuple(rest), pending, self.fetched)
        first, *rest = self.players_of(iteration)
        return self._with_turn(first, 0, tuple(rest), pending, fetched)

    def leftover(self, pending: int) -> str:
        """The first player that has a window pending; "" if none has."""
        return next((name for name in self.names if self.pending_of(name, pending)), "")

    def draining(self, pending: int) -> tuple[Players, int]:
        """The first player with a window pending takes its turn, which is at no batch."""
        return self._with_turn(self.leftover(pending), 0, (), pending, self.fetched)

    def stepped(self) -> Players:
        """The one that plays has taken a step."""
        index = self.names.index(self.player)
        steps = _with(self.steps, index, self.steps[index] + 1)
        return Players(self.names, self.every, steps, self.waiting, self.player, self.turn, self.coming, self.fetched)

    def batch_over(self) -> Players:
        """No turn of this batch is to come any more."""
        return attrs.evolve(self, coming=())

    def outside_epochs(self) -> Players:
        """Nobody plays: the batches of an epoch, and the windows that they left, are over."""
        return attrs.evolve(self, player="", turn=0, coming=())

    # Made directly, once or twice a turn: attrs.evolve takes ten times as long.
    def _with_turn(
        self, name: str, turn: int, coming: tuple[str, ...], pending: int, fetched: float
    ) -> tuple[Players, int]:
        waiting = _with(self.waiting, self.names.index(self.player), pending) if self.player else self.waiting
        index = self.names.index(name)
        others = _with(waiting, index, 0)
        return Players(self.names, self.every, self.steps, others, name, turn, coming, fetched), waiting[index]

    def _index(self, name: str) -> int:
        if name not in self.names:
            there_are = ", ".join(map(repr, self.names)) or "none: this training has no turns"
            raise LookupError(f"there is no player {name!r}: there are {there_are}")
        return self.names.index(name)


NO_PLAYERS = Players()
"""Those of a workload without turns."""


def as_players(given: object) -> Players:
    """The record as it is, or that of a mapping from names to `every`."""
    return Players.of(given) if isinstance(given, Mapping) else given  # type: ignore[return-value]  # checked by use


def check_player_name(name: object) -> None:
    """Refuse what is no name of a player: a name stands before a dot in those of its hyper-parameters.

    Raises:
        TypeError, ValueError: with the reason.
    """
    if not isinstance(name, str):
        raise TypeError(f"the player {name!r}: names are strings, such as 'D'")
    if not name or not is_text(name):
        raise ValueError(f"the player {name!r}: {NO_TEXT if name else 'give it a name, such as D'}")
    if "." in name:
        raise ValueError(f"the player {name!r}: a name has no dot, which comes after it in 'D.lr'")


def _with(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])
