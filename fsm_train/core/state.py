"""The state of a training: one immutable record, and the draft that one is made of.

Rule of this file: records and their checks. How one state follows from another is in `table.py`, and
how one call of `run` takes up what another left in `runs.py`.

Each field is declared once: `Counters` are what a log's line says too, a `Draft` is what the machine
writes to, and a `State` is a draft that cannot be written to.
"""

from __future__ import annotations

import copy
import math
import operator
import random
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, Never

import attrs

from .checks import is_exact_number
from .hints import assigned_attribute, missing_attribute
from .history import History, as_history
from .phase import Flag, Phase, Place
from .plan import Plan as Plan  # imported from here too
from .representation import cut, html_table
from .turns import NO_PLAYERS, Players, as_players
from .values import EMPTY, NO_FACTS, Facts, Metrics, as_facts, as_metrics, frozen_map

Hyper = float | tuple[float, ...]
"""The value of a hyper-parameter: one for all parameter groups, or a tuple with one per group."""

NEVER = -1


# NO_OP: attrs would convert at each assignment, which costs more than all else that the machine does in a batch.
@attrs.define(slots=False, kw_only=True, on_setattr=attrs.setters.NO_OP)
class Counters:
    """What a training counts, and what each line of its log says. The fields mean what they mean in `State`."""

    epoch: int = 0
    batch: int = 0
    iteration: int = 0
    step: int = 0
    samples: float = 0
    pending: int = 0
    valid_batch: int = 0
    validated_at: int = NEVER


COUNTERS = tuple(field.name for field in attrs.fields(Counters))


@attrs.define(slots=False, on_setattr=attrs.setters.NO_OP)
class Draft(Counters):
    """A state in the making: the fields of a `State`, which the effects of the table write to.

    It changes several times per batch, and a `State` is made of it only where a callback or a sink looks.
    Each belongs to the interpreter that made it; callbacks are never given one. Guards read it, or a `State`.
    """

    phase: Phase
    plan: Plan
    flags: Flag = Flag.NONE
    facts: Facts = attrs.field(default=NO_FACTS, converter=as_facts)
    metrics: Mapping[str, float] = attrs.field(default=Metrics(), converter=as_metrics)
    history: History[Mapping[str, float]] = attrs.field(default=History(), converter=as_history)
    hyper: Mapping[str, Hyper] = attrs.field(default=EMPTY, converter=frozen_map)
    memory: Mapping[str, object] = attrs.field(default=EMPTY, converter=frozen_map)
    reason: str = ""
    workload: Any = attrs.field(default=None, eq=False, repr=False)  # a Workload, whose methods take a State
    has_valid: bool = False
    batches_over: bool = False
    resume_at: Place | None = None
    error: str = ""
    failure: Any = attrs.field(default=None, eq=False)  # a Failure, which holds States
    fetched: float = 0
    exhausted: bool = False
    elapsed: float = attrs.field(default=0.0, eq=False)
    notes: tuple[str, ...] = attrs.field(default=(), eq=False)
    settings: Mapping[str, Mapping[str, str]] = attrs.field(default=EMPTY, eq=False)
    step_hyper: Mapping[str, Hyper] = attrs.field(default=EMPTY, converter=frozen_map, eq=False)
    batches_per_epoch: int | None = attrs.field(default=None, eq=False)
    players: Players = attrs.field(default=NO_PLAYERS, converter=as_players)

    def state(self, phase: Phase, flags: Flag, facts: Facts) -> State:
        """The state at `phase`, with these flags and facts.

        This is the most expensive thing that the machine does, once for each phase that is watched. The
        values were checked when they came in, so it goes around the constructor's checks and conversions.
        """
        self.phase, self.flags, self.facts = phase, flags, facts
        state = _new(State)
        _set_values(state, self.__dict__.copy())
        return state

    def show(self) -> tuple[State, dict[str, object]]:
        """A state that shares its values with this draft, and the values. One that was shown before keeps its own.

        Until somebody keeps the state, or its values, it can be shown again, as another moment: that costs next to
        nothing. Once somebody does, as their counts of references say, or refers to it weakly, show a new one.
        """
        values = self.__dict__ = self.__dict__.copy()
        return _with_values(values), values


@attrs.frozen(slots=False, repr=False)
class State(Draft):
    """A training at one instant, seen from one phase.

    It has no slots, unlike the other records: copying a `__dict__` makes a state four times as fast
    as setting two dozen slots, and one is made at every phase that is watched.

    >>> from fsm_train.testing import simulate
    >>> final = simulate([], epochs=2, batches=3, valid_loss=[1.0, 0.5])
    >>> final.epoch, final.step, final.metrics["valid_loss"]
    (2, 6, 0.5)
    >>> [metrics["valid_loss"] for metrics in final.history]
    [1.0, 0.5]

    Attributes:
        phase: where the machine stands.
        plan: how long to train.
        epoch: finished epochs; while one is under way, its index from 0.
        batch: finished training batches of this epoch; while one is under way, its index from 0.
            An epoch counts as finished at EPOCH_END, a batch at BATCH_END.
        iteration: finished training batches of the whole training.
        step: optimizer steps that were applied.
        samples: training samples seen, or what `Supervised(samples=…)` counts; whole numbers are ints.
        pending: backward passes whose gradients wait for a step.
        flags: what was asked of the machine and has not fallen yet.
        facts: what was measured at this phase.
        metrics: of the last epoch or validation: train_loss, valid_loss, valid_accuracy, …
        history: the metrics of each finished epoch: a sequence that is used as a tuple is.
        hyper: the hyper-parameters; a tuple is one value per parameter group. The optimizer is the truth: they are
            read from it when a call of `run` begins and ends, and after commands that may change them. What the
            optimizer changes itself in between, such as Prodigy's `d`, is in the next state that is read.
        memory: each callback's own, by its name.
        reason: why it stops or was suspended, with the callback's name.
        workload: the bridge to the real things; only on states that go into a run or come out. Pickle leaves it out.
        valid_batch: finished batches of the validation under way.
        has_valid: whether there is validation data.
        batches_over: whether this epoch has had its last training batch. A step that is taken
            while this is true is the one for a leftover window ("draining").
        validated_at: the `iteration` after which these weights were validated, or -1.
        resume_at: where a suspended training resumes.
        error: what went wrong, in a failed training.
        failure: where that was, as a `Failure` of `core/failing.py`; None otherwise. Not compared.
        fetched: what the batch that was fetched last counts: its samples, or what `Supervised(samples=…)` gives.
        exhausted: whether the last fetch found no further batch.
        elapsed: seconds of training in the calls of `run` that have ended.
        notes: what the owner of the last state should know and what is no part of the training: that
            the log of it is incomplete, that a sink was switched off. Not compared.
        settings: the `params` of each callback in words, by its name: what a resume compares. Not compared here.
        step_hyper: the hyper-parameters of the last applied step; `hyper` may be those of the next one. Not compared.
        batches_per_epoch: training batches in a pass over the data, or None where that is not known. Not compared.
        players: those that take turns at a batch, and what is counted for each, as `Players` of `core/turns.py`; false
            for a workload without turns. With turns a batch is finished at the BATCH_END of its last turn, `step`
            counts the steps of all, and `pending` is of the player whose turn it is.
    """

    def __attrs_post_init__(self) -> None:
        if (
            self.epoch < 0
            or self.batch < 0
            or self.iteration < 0
            or self.step < 0
            or self.samples < 0
            or self.pending < 0
        ):
            name = next(name for name in COUNTERS if getattr(self, name) < 0)
            raise ValueError(f"{name}={getattr(self, name)}: a state counts from 0")

    def __getattr__(self, name: str) -> Never:
        """Say where what is not here can be found. Called only for attributes that do not exist."""
        if name.startswith("_"):  # of a protocol: copy, pickle, a notebook
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        values = self.__dict__
        metrics, hyper = values.get("metrics", EMPTY), values.get("hyper", EMPTY)
        hint = missing_attribute(name, _FIELD_NAMES, metrics, hyper)
        raise AttributeError(f"a state has no {name!r}: {hint}")

    def _in_short(self) -> list[tuple[str, str]]:
        """What a person wants to know first, by name; what is empty is left out."""
        rate = {name: self.hyper[name] for name in ("lr",) if name in self.hyper}
        parts = [
            ("at", f"epoch={self.epoch}, batch={self.batch}, step={self.step}"),
            ("player", self.player),
            ("metrics", _in_short(self.metrics)),
            ("hyper", _in_short(rate)),
            ("facts", _in_short(self.facts)),
            ("flags", "|".join(str(flag.name) for flag in self.flags)),
            ("reason", cut(self.reason)),
        ]
        return [(name, text) for name, text in parts if text]

    def __repr__(self) -> str:
        """Where the training stands, in a few words: a state holds too much to be printed whole."""
        return f"State({self.phase.value}: {'; '.join(text for _, text in self._in_short())})"

    def _repr_html_(self) -> str:
        from .drawing import history_rows  # which is of no use but in a notebook

        notes = [("note", note) for note in self.notes]
        return html_table(f"State at {self.phase.value}", [*self._in_short(), *notes, *history_rows(self.history)])

    @property
    def draining(self) -> bool:
        """Whether the batches are over and a step is being taken for the leftover window."""
        return self.batches_over and self.phase in (Phase.STEP_BEGIN, Phase.STEP_END)

    @property
    def player(self) -> str:
        """The name of the player whose turn it is; between turns, as in a validation, of the one that played last.

        "" from EPOCH_END to the first turn of an epoch, and for a workload without turns.
        """
        return self.players.player

    @property
    def turn(self) -> int:
        """The index of that turn within the batch, from 0."""
        return self.players.turn

    def steps_of(self, player: str) -> int:
        """The optimizer steps of this player that were applied; those of all are in `step`.

        Raises:
            LookupError: there is no such player.
        """
        return self.players.steps_of(player)

    def __getstate__(self) -> dict[str, Any]:
        """All but the workload: model, optimizer and data stay in this process."""
        return {**self.__dict__, "workload": None}

    def __copy__(self) -> State:
        return _with_values(self.__dict__.copy())

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        return _with_values({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})

    def draft(self) -> Draft:
        """A draft with these values, to be written to."""
        draft = _new(Draft)
        draft.__dict__.update(self.__dict__)
        return draft

    def random(self, name: str) -> random.Random:
        """A generator of random numbers that depends on the plan's seed, the counters and `name` alone.

        The same state gives the same numbers, in a replay and in another process too. A plan
        without a seed draws as one with seed 0. Outside of a validation, how long the last one was
        does not count, so that whether one validates does not change what one trains.
        """
        seed = self.plan.seed or 0
        validated = self.valid_batch if self.phase in (Phase.VALID_BATCH_BEGIN, Phase.VALID_BATCH_END) else 0
        turn = f"{self.turn}/" if self.players else ""
        return random.Random(f"{seed}/{self.epoch}/{self.batch}/{self.iteration}/{self.step}/{validated}/{turn}{name}")


_FIELD_NAMES = tuple(field.name for field in attrs.fields(State))


class ReadOnlyStateError(attrs.exceptions.FrozenInstanceError):
    """A state was written to. The message says what a callback returns instead."""

    def __init__(self, message: str) -> None:
        AttributeError.__init__(self, message)
        self.msg = message


def _refuse_to_set(state: State, name: str, value: object) -> Never:
    raise ReadOnlyStateError(assigned_attribute(name, value, _FIELD_NAMES, state.hyper))


State.__setattr__ = _refuse_to_set  # type: ignore[assignment, method-assign]  # attrs refuses one in the class


def _in_short(values: Mapping[str, Hyper]) -> str:
    """The first few of these numbers, by name."""
    first = [f"{name}={_number_in_short(value)}" for name, value in [*values.items()][:6]]
    return ", ".join([*first, "…"] if len(values) > len(first) else first)


def _number_in_short(value: Hyper) -> str:
    if isinstance(value, tuple):
        shown = [f"{part:.4g}" for part in value[:3]]
        return f"({', '.join([*shown, '…'] if len(value) > len(shown) else shown)})"
    return f"{value:.4g}"


def replaced(state: Draft, changes: Mapping[str, object]) -> State:
    """As attrs.evolve, several times as fast, for values that are checked already and frozen."""
    values = state.__dict__.copy()
    values.update(changes)
    return _with_values(values)


def _with_values(values: dict[str, object]) -> State:
    state = _new(State)
    _set_values(state, values)
    return state


_new = object.__new__
_set_values: Callable[[State, dict[str, object]], None] = Counters.__dict__["__dict__"].__set__
"""Past `State.__setattr__`, which refuses."""


_FROM_ZERO = frozenset({"lr", "weight_decay", "momentum", "eps", "alpha", "lr_decay", "momentum_decay"})
_BETA = re.compile(r"beta[1-9]")


def check_hyper(name: str, value: object) -> Hyper:
    """`value` as a hyper-parameter: a finite float, or a tuple of them.

    >>> check_hyper("lr", 1)
    1.0

    Raises:
        TypeError: it is neither a number nor a tuple of numbers.
        ValueError: it is not finite, or the optimizers of torch refuse it too: a rate, a momentum or a weight decay
            below 0, a beta outside of [0, 1).
    """
    if type(value) is float and 0.0 < value < 1.0:  # which is right for each of them, and is checked at each step
        return value
    if isinstance(value, tuple):
        if not value:
            raise ValueError(f"{name} is an empty tuple: give one value per parameter group")
        return tuple(_finite(name, part) for part in value)
    return _finite(name, value)


def hyper_read(before: Mapping[str, Hyper], now: Mapping[str, Hyper]) -> Mapping[str, Hyper]:
    """The hyper-parameters of the state, which had `before`, once `now` was read from the optimizer.

    A number in a tensor has single precision. Where it is what `before` is rounded to, `before` stays, so that it
    does not matter when one reads.

    >>> hyper_read({"lr": 0.1, "momentum": 0.9}, {"lr": 0.10000000149011612, "momentum": 0.5})
    {'lr': 0.1, 'momentum': 0.5}
    """
    if before == now:
        return before
    read = {name: _value_read(before[name], value) if name in before else value for name, value in now.items()}
    same = read.keys() == before.keys() and all(value is before[name] for name, value in read.items())
    return before if same else frozen_map(read)


def _value_read(before: Hyper, now: Hyper) -> Hyper:
    if isinstance(before, tuple) and isinstance(now, tuple):
        parts = tuple(_number_read(*pair) for pair in zip(before, now, strict=False))
        parts += now[len(parts) :]
        return before if len(parts) == len(before) and all(map(operator.is_, parts, before)) else parts
    if isinstance(before, tuple) or isinstance(now, tuple):
        return now
    return _number_read(before, now)


def _number_read(before: float, now: float) -> float:
    same = before == now or (before != before and now != now)
    return before if same or (_rounded(now) == now and _rounded(before) == now) else now


def _rounded(number: float) -> float:
    """The number in single precision; infinite where it does not fit."""
    return float(struct.unpack("f", struct.pack("f", number))[0])


_HYPER_IS = "a hyper-parameter is a number, or a tuple with one number per parameter group"
_HYPER_ADVICE = {
    "list": "for one number per parameter group, give a tuple",
    "ndarray": "for one number per parameter group, give a tuple: tuple(array.tolist())",
    "Tensor": "write .item() at the tensor: a hyper-parameter is a number",
}


def _finite(name: str, value: object) -> float:
    if not is_exact_number(value):
        raise TypeError(f"{name}={value!r}: {_HYPER_ADVICE.get(type(value).__name__, _HYPER_IS)}")
    own = name.rpartition(".")[2]  # without the name of a player
    if not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: a hyper-parameter is finite")
    if value < 0.0 and own in _FROM_ZERO:
        raise ValueError(f"{name}={value!r}: it is a number from 0, as the optimizers of torch require")
    if not 0.0 <= value < 1.0 and _BETA.fullmatch(own):
        raise ValueError(f"{name}={value!r}: it is a number from 0 and below 1, as the optimizers of torch require")
    return float(value) + 0.0  # there is one zero, so that equal values are the same
