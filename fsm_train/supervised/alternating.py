"""Players that take turns on torch: GANs, actors and critics. A batch is fetched once, and each player trains with it.

Rule of this file: an operation is done as `Supervised` does it, with what belongs to the player whose turn it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any, cast

import attrs
import torch

from ..checkpoints.writing import Parts
from ..core import commands as c
from ..core.arguments import takes_by_name
from ..core.errors import WorkloadError
from ..core.phase import Operation
from ..core.representation import html_table, properties
from ..core.runs import goes_on
from ..core.state import State
from ..core.table import Outcome
from ..core.transition import Command
from ..data.batches import Forward, Split, call, check_scalar, number_of_batches
from ..data.counting import Samples
from ..data.position import BatchStart
from . import closures
from .carried_over import Stateful
from .evaluations import AS_IN_TRAINING, Valid
from .freezing import FrozenParameters
from .joint_optimizer import kinds_of
from .loss_parts import NO_PARTS, may_have_parts, separate
from .measures import Taken
from .meters import AnyMetric, Meters
from .numbers import check_numbers
from .player import AllGroups, Models, Player, PlayerState, check_players
from .precision import Precision
from .saved_players import add_players, batch_again, restore_players
from .snapshot import Snapshot
from .turn_taking import TurnTaking
from .whole_step import WHOLE_STEP
from .workload import Sensor

_OF_ONE_MODEL = {
    c.UseCompiledStep: "compile_step compiles the step of one model",
    c.UseParallel: "parallel wraps one model",
    c.UseMicroBatches: "micro_batches computes the output of one model",
}


class Alternating(TurnTaking):
    """Trains several models in turns, each with its own optimizer and loss, on the same batches.

    At each batch the players that are due take their turns in their order: each walks from BATCH_BEGIN to BATCH_END,
    with the batch as it was fetched. In a turn FORWARD does nothing, since a player's loss calls the models itself.
    Hyper-parameters are called "D.lr" and "G.lr", the losses of an epoch train_D_loss and train_G_loss, and parts of a
    loss train_D_real. Callbacks take `player="G"`.

    Gradients are each player's own, as with zero_grad() at the beginning of a turn in a loop by hand: what the loss of
    one leaves in the parameters of another is forgotten, and a window that is accumulated is not disturbed by it. In
    float16 each player has its own gradient scaler, whose scale stays the same within its windows.

    >>> from torch import nn
    >>> from fsm_train import run, start
    >>> G, D = nn.Linear(2, 3), nn.Linear(3, 1)
    >>> def d_loss(real, _):
    ...     return D(G(torch.ones(4, 2)).detach()).mean() - D(real).mean()
    >>> def g_loss(real, _):
    ...     return -D(G(torch.ones(4, 2))).mean()
    >>> players = {
    ...     "D": Player(D, torch.optim.SGD(D.parameters(), lr=0.1), d_loss),
    ...     "G": Player(G, torch.optim.SGD(G.parameters(), lr=0.1), g_loss, every=2),
    ... }
    >>> work = Alternating(players, [(torch.zeros(4, 3), torch.zeros(4))] * 6)
    >>> final = run(start(work, epochs=1))
    >>> final.steps_of("D"), final.steps_of("G"), sorted(final.metrics), final.hyper["G.lr"]
    (6, 3, ['train_D_loss', 'train_G_loss'], 0.1)

    Args:
        players: by name, in the order of their turns.
        train: as for `Supervised`.
        valid: the same for validation, or an `Evaluation`, or a mapping of them. The loss of each player is measured
            there, as valid_D_loss, unless an evaluation has a loss of its own.
        evaluated: the player whose model gives the output of validation batches, for metrics and `predict`.
        forward: of (models, inputs) or (models, inputs, target), the same in one's own way: models["G"] is a model.
        metrics: as for `Supervised`, of (output, target), but measured on validation data alone.
        numbers: as for `Supervised`, read in a player's loss as work.numbers["weight"]. They are of no player.
        measures, sensors, device, split, samples, extra, ahead, grad_in_valid: as for `Supervised`. In sensors and
            commands, `work.model["G"]` is a player's model.

    Raises:
        WorkloadError: the parts do not fit together, or one of them is of another kind.
        TypeError, ValueError: a name cannot be one, or no player plays at each batch.
    """

    @takes_by_name
    def __init__(
        self,
        players: Mapping[str, Player],
        train: Iterable[Any],
        valid: Valid | None = None,
        *,
        evaluated: str | None = None,
        forward: Forward | None = None,
        metrics: Mapping[str, AnyMetric] | None = None,
        measures: Mapping[str, Taken] | None = None,
        sensors: Mapping[str, Sensor] | None = None,
        device: torch.device | str | None = None,
        split: Split | None = None,
        samples: Samples | None = None,
        extra: Mapping[str, Stateful] | None = None,
        ahead: bool | None = None,
        grad_in_valid: bool = False,
        numbers: Mapping[str, float] | None = None,
    ) -> None:
        players = check_players(players)
        models = Models({name: player.model for name, player in players.items()})
        self._every = {name: player.every for name, player in players.items()}
        self.by_player = {name: PlayerState(name, player, models) for name, player in players.items()}
        self.playing = first = next(iter(self.by_player.values()))
        super().__init__(
            *(models, first.optimizer, first.loss, train, valid),
            metrics=metrics,
            measures=measures,
            sensors=sensors,
            device=device,
            forward=forward if evaluated is None else self._forward_of(evaluated, forward),
            split=split,
            samples=samples,
            extra=extra,
            ahead=ahead,
            grad_in_valid=grad_in_valid,
            closure=first.gives_closure,
        )
        self.numbers = check_numbers(numbers, self.hyper())
        self.train_meters = Meters("train", {}, self.device)
        self.frozen_parameters = FrozenParameters(
            models, cast("torch.optim.Optimizer", AllGroups(self.by_player.values()))
        )
        self.switch_to(first)

    def _forward_of(self, evaluated: str, forward: Forward | None) -> Forward:
        if forward is not None:
            raise WorkloadError("evaluated= and forward= both say whose output is evaluated: leave one out")
        if evaluated not in self.by_player:
            raise WorkloadError(f"evaluated={evaluated!r}: the players are {', '.join(map(repr, self.by_player))}")
        return functools.partial(_output_of, evaluated)

    def __repr__(self) -> str:
        return properties("Alternating", self._in_words())

    def _repr_html_(self) -> str:
        return html_table("Alternating", self._in_words())

    def _in_words(self) -> list[tuple[str, str]]:
        optimizers = {name: kinds_of(one.optimizer) for name, one in self.by_player.items()}
        batches = number_of_batches(self.train)
        return [
            *((n, f"{type(self.model[n]).__name__}, {optimizers[n]}, every {self._every[n]}") for n in self.by_player),  # type: ignore[index]
            ("train", type(self.train).__name__ + ("" if batches is None else f" of {batches:,} batches")),
            *((each.argument, type(each.loader).__name__) for each in self.evaluations),
            ("device", str(self.device)),
        ]

    # --------------------------------------------------------------------------- whose turn it is

    @property
    def players(self) -> Mapping[str, int]:
        return dict(self._every)

    def turn(self, state: State) -> None:
        """The turn of `state.player` begins: the batch under way is as it was fetched."""
        self.switch_to(self.by_player[state.player])
        self._loss = self.output = None
        self.stepped = self._buffers.kept = False
        self.window.begin_batch()
        self.for_each_evaluation.clear()
        self.mix, self.loss_parts = None, NO_PARTS
        if self.shared_batch is not None:
            self.inputs, self.target, self.batch_size = self.shared_batch
        if self.notes_batch_starts and self.epoch_start is not None:
            if state.turn:  # for the first one that was noted before the batch was fetched
                self.batch_start = BatchStart.now(state.batch, self.train, self.epoch_start)
            self._buffers.keep()

    # ---------------------------------------------------------------- what the interpreter asks

    @property
    def metric_names(self) -> Set[str]:
        losses = {f"train_{name}_loss" for name in self.by_player}
        parts = {f"train_{name}_*" for name, one in self.by_player.items() if may_have_parts(one.loss)}
        measures = {f"valid_{name}{more}" for name in self._measures for more in ("", "_*")}
        names = losses | parts | measures
        for each in self.evaluations:
            names |= each.names(self.loss_fn)
            if each.settings.loss_fn is AS_IN_TRAINING:
                names -= {f"{each.prefix}_loss"}
                names |= {each.prefix + name.removeprefix("train") for name in losses | parts}
        return names

    def fused(self, operations: tuple[Operation, ...]) -> Callable[[], Outcome] | None:
        """A whole turn; none for a subclass that overrides one of its operations."""
        overridden = any(getattr(type(self), op.value) is not getattr(Alternating, op.value) for op in WHOLE_STEP)
        return self._whole_turn if operations == WHOLE_STEP and not overridden else None

    def _whole_turn(self) -> bool:
        for self.doing in WHOLE_STEP:
            getattr(self, self.doing.value)()
        self.doing = None
        return self.stepped

    def refuses(self, kind: type[Command]) -> str:
        if why := _OF_ONE_MODEL.get(kind):
            return f"{why}, and this training has players: leave the callback out"
        if kind.changes_modules:
            return f"{kind.__name__} changes what a model consists of, which stays as it is where players take turns"
        all_give = all(one.gives_closure for one in self.by_player.values())
        return closures.why_not(kind) if all_give else ""  # of one player, when the command is given in its turn

    def carry_out(self, command: Command, state: State) -> None:
        """Do what the command says, for the player that it names."""
        if why := self.refuses(type(command)):
            raise WorkloadError(why)
        if isinstance(command, c.UseMixedPrecision):
            self._use_mixed_precision(command)
            return
        player = getattr(command, "player", "")
        if isinstance(command, c.UseScheduler) and not player:
            raise WorkloadError(f"whose optimizer is {command.name!r} for? Say it: torch_scheduler(…, player='…')")
        if player and player not in self.by_player:
            raise WorkloadError(f"player={player!r}: the players are {', '.join(map(repr, self.by_player))}")
        before = self.playing
        self.switch_to(self.by_player[player] if player else before)
        try:
            if self.gives_closure and state.player and (why := closures.why_not(type(command))):
                raise WorkloadError(f"of the player {self.playing.name!r}, {why}")
            super().carry_out(command, state)
        finally:
            self.switch_to(before)

    def _use_mixed_precision(self, command: c.UseMixedPrecision) -> None:
        """Each player has a scaler of its own: one window's scale must not change while another player steps."""
        if self.precision is not None:
            raise WorkloadError("mixed precision is in use already: leave one of the two callbacks out")
        if command.dtype == "float16" and any(one.gives_closure for one in self.by_player.values()):
            raise closures.refuse_scaler()
        saved = self.carried_over.scaler or {}
        with self.each_player() as players:
            for one in players:
                self.precision = Precision(self.device, command, saved.get(one.name))

        def undo() -> None:
            scalers = {}
            with self.each_player() as players:
                for one in players:
                    assert self.precision is not None
                    self.precision.rescale(self.gradients())  # their window may still be open
                    scalers[one.name] = self.precision.state()
                    self.precision = None
            self.carried_over.scaler = scalers

        self.undo_at_finish(undo)

    def snapshot(self) -> Snapshot:
        raise WorkloadError(
            "a training of several players cannot be tried out and put back, as find_lr does: find the rate of one "
            "with a Supervised of its model"
        )

    # ------------------------------------------------------------------------- a call of run

    def prepare(self, state: State) -> None:
        with self.each_player() as players:
            for one in players:
                self.loss_checked = False
                if not goes_on(state):
                    one.optimizer.zero_grad()  # a training that failed before may have left gradients
                    one.window.clear()
        super().prepare(state)

    def reposition(self, state: State) -> None:
        """Continue where the training was suspended or ended; between two turns with the batch that they share."""
        point = self.suspended_at
        fetched = state.players.coming and point is not None and point.from_file
        if not fetched:
            super().reposition(state)
        elif self.shared_batch is not None:
            super().reposition(attrs.evolve(state, batch=state.batch + 1))
        else:
            super().reposition(state)
            batch_again(self, point)

    def finish(self, state: State) -> None:
        super().finish(state)
        if state.resume_at is None or state.error:
            self.shared_batch = None

    def parts_to_save(self, state: State) -> tuple[Parts, tuple[str, ...]]:
        parts, notes = super().parts_to_save(state)
        return add_players(self, parts, notes, state)

    def restore_parts(self, parts: Parts, state: State) -> tuple[str, ...]:
        return restore_players(self, parts, state)

    # ------------------------------------------------------------------------------ training

    def fetch(self) -> float | None:
        size = super().fetch()
        self.shared_batch = None if size is None else (self.inputs, self.target, size)
        return size

    def forward(self) -> None:
        """Nothing: the loss of a player calls the models itself. The buffers are kept in case the turn is left out."""
        if self._evaluation is not None:
            super().forward()
        elif self.doing is None:  # in a whole turn nothing can leave the batch out
            self._buffers.keep()

    def compute_loss(self) -> torch.Tensor:
        """The loss of the turn under way, with its graph, in the precision of the training; sets `loss_parts`."""
        if self._evaluation is not None:
            return super().compute_loss()
        if self.precision is None:
            loss = self._loss_of_player(self.playing)
        else:
            with self.precision.compute():
                loss = self._loss_of_player(self.playing)
        separated, self.loss_parts = separate(loss)
        return separated  # type: ignore[no-any-return]  # the user's: what it is is looked at by who computes it

    def _loss_of_player(self, one: PlayerState) -> Any:
        if self.mix is not None:
            return self.mix.loss(one.loss, self.inputs, self.target)
        return one.loss(self.inputs, self.target)

    def meter(self, meters: Meters, loss: torch.Tensor | None) -> None:
        """Add the turn, or the validation batch, under way to these meters."""
        if self._evaluation is not None:
            super().meter(meters, loss)
            return
        assert loss is not None
        meters.add_parts(_named(self.playing.name, loss, self.loss_parts), self.batch_size)

    def call(self, inputs: Any, target: Any = None) -> Any:
        if self._forward_in_use is None:
            self.model()  # raises, with what to write
        return super().call(inputs, target)

    def evaluate(self) -> None:
        evaluation = self._evaluation
        assert evaluation is not None
        of_players = evaluation.settings.loss_fn is AS_IN_TRAINING
        with torch.set_grad_enabled(self.grad_in_valid), self._computing():
            own_loss = evaluation.has_loss and not of_players
            if self._forward_in_use is not None or evaluation.meters.metrics or own_loss:
                self.forward()
            if of_players:
                self.loss_parts = self._losses_of_players()
            elif own_loss:
                loss = self.compute_loss()
                if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
                    check_scalar(loss)
                self._loss = loss.detach()
            self.meter(evaluation.meters, self._loss)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        if self.precision is None:
            yield
        else:
            with self.precision.compute():
                yield

    def _losses_of_players(self) -> dict[str, torch.Tensor]:
        """The losses of all players on the validation batch, and their parts, by name."""
        losses: dict[str, torch.Tensor] = {}
        for name, one in self.by_player.items():
            loss, parts = separate(one.loss(self.inputs, self.target))
            if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
                check_scalar(loss)
            losses |= _named(name, loss.detach(), parts)
        return losses


def _named(player: str, loss: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The loss of a player and its parts, as they are measured: "D_loss", "D_real"."""
    return {f"{player}_loss": loss, **{f"{player}_{name}": part for name, part in parts.items()}}


def _output_of(player: str, models: Any, inputs: Any) -> Any:
    return call(models[player], inputs)
