"""What a callback answers: a `Transition`. The commands that may be in it are in `commands.py`.

Rule of this file: answers are data. Making one changes nothing and executes nothing; a command is
carried out by the interpreter, on the workload, after all callbacks of the phase have answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Final

import attrs

from .phase import Flag, Phase
from .state import Hyper, check_hyper
from .values import EMPTY, FrozenMap


class Command:
    """An effect described as data: subclass it with a frozen attrs record.

    >>> @attrs.frozen
    ... class ScaleGradients(Command):
    ...     factor: float
    >>> Transition(commands=(ScaleGradients(0.5),)).commands
    (ScaleGradients(factor=0.5),)

    Attributes:
        last: whether it is carried out after all commands that are not, whatever their order.
        changes_hyper: whether carrying it out changes the numbers or the parameters in the groups of the optimizer,
            which are then read again. None, the default, says that it may. Two callbacks whose commands say True
            are refused at one phase, unless their `order` differs.
        changes_modules: whether it changes what the model consists of: parts, parameters, buffers or hooks, as pruning
            does. Averages and kept weights follow by name, or it is refused when it is carried out; a checkpoint lists
            it, and `restore` carries it out before it loads. What it makes must follow from its fields.
        alone: whether only one callback of a run may give commands of this type.
        instead: what to do where two callbacks give commands of such a type.
        acts_on: what it changes, such as "gradients", if commands of other types change that too. Of two at the same
            phase with the same `order`, the result depends on which comes first, which `describe` and a run say.
        whole_steps: whether it is for several operations of a training step at once, between which no callback looks.
        useful_at: the phases at which something can come of it; None for all. At another phase it is refused.
        each_evaluation: whether it is a change of the loss or the gradients of a batch that is to be made again where
            an optimizer evaluates the batch again, by a closure. Of the gradients if it acts on them, else of the loss.
    """

    __slots__ = ()
    last: ClassVar[bool] = False
    changes_hyper: ClassVar[bool | None] = None
    changes_modules: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    instead: ClassVar[str] = "leave one out"
    acts_on: ClassVar[str] = ""
    whole_steps: ClassVar[bool] = False
    useful_at: ClassVar[tuple[Phase, ...] | None] = None
    each_evaluation: ClassVar[bool] = False

    def of_player(self, player: str) -> Command:
        """The same for one player of a training with turns. Here itself: it acts on the player whose turn it is."""
        return self


class _Unchanged:
    def __repr__(self) -> str:
        return "UNCHANGED"

    def __reduce__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = _Unchanged()
"""The memory of a Transition that leaves the callback's memory as it is."""


def _flags(value: object) -> Flag:
    if not isinstance(value, Flag):
        raise TypeError(f"flags={value!r}: raise flags with Flag, for example Flag.SKIP_STEP | Flag.SKIP_ZERO")
    return value


def _hyper(value: object) -> Mapping[str, Hyper]:
    if not isinstance(value, Mapping):
        raise TypeError(f"hyper={value!r}: give a mapping, for example {{'lr': 0.1}}")
    return FrozenMap({name: check_hyper(name, wanted) for name, wanted in value.items()}) if value else EMPTY


def _commands(value: object) -> tuple[Command, ...]:
    if isinstance(value, Command):
        raise TypeError(f"commands={value!r}: give a tuple, also for a single command: ({value!r},)")
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"commands={value!r}: give a tuple of commands")
    for command in value:
        if not isinstance(command, Command):
            raise TypeError(
                f"{command!r} is no command: a command is a frozen record that inherits from fsm_train.Command"
            )
    return tuple(value)


@attrs.frozen(slots=False)
class Transition:
    """What a callback asks for. It has no slots, since an instance is made before each step, and is quicker so.

    >>> answer = Transition(flags=Flag.SKIP_STEP, hyper={"lr": 0.01}, reason="the loss rose")
    >>> answer.flags.name, answer.hyper["lr"], answer.commands
    ('SKIP_STEP', 0.01, ())

    Attributes:
        flags: flags to raise.
        hyper: hyper-parameters to set: one value, or a tuple with one per parameter group.
        memory: what to remember until the next time; UNCHANGED keeps what there is.
        commands: effects to carry out on the workload.
        reason: why, for the log, and for the final state where the training stops.
    """

    flags: Flag = attrs.field(default=Flag.NONE, converter=_flags)
    hyper: Mapping[str, Hyper] = attrs.field(default=EMPTY, converter=_hyper)
    memory: object = UNCHANGED
    commands: tuple[Command, ...] = attrs.field(default=(), converter=_commands)
    reason: str = attrs.field(default="", validator=attrs.validators.instance_of(str))


def setting(hyper: Mapping[str, Hyper], memory: object) -> Transition:
    """The answer that sets these hyper-parameters, which `check_hyper` gave, and remembers this.

    It goes around the constructor's checks and conversions, since a schedule answers before each step.

    >>> setting({"lr": 0.5}, 3) == Transition(hyper={"lr": 0.5}, memory=3)
    True
    """
    answer = _new(Transition)
    _set_values(answer, {"flags": Flag.NONE, "hyper": FrozenMap(hyper), "memory": memory, "commands": (), "reason": ""})
    return answer


_new = object.__new__
_set_values: Callable[[Transition, dict[str, object]], None] = Transition.__dict__["__dict__"].__set__


def is_useful(kind: type[Command], phase: Phase) -> bool:
    """Whether something can come of a command of this type at this phase."""
    return kind.useful_at is None or phase in kind.useful_at


NOTHING = Transition()
