"""Which function carries out which command on a real workload. Torch-free.

A user's own command is a frozen record that inherits from `Command`, and a function that is registered
here with `@carries_out`. The functions for the library's commands stand in `supervised/handlers.py` and
`checkpoints/api.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..core.errors import WorkloadError
from ..core.transition import Command

C = TypeVar("C", bound=Command)
W = TypeVar("W")  # the type of the workload

_REGISTERED: dict[type[Command], Callable[[Any, Any], None]] = {}
_DEFAULTS: dict[type[Command], Callable[[Any, Any], None]] = {}


_WITHOUT_STATE: set[Callable[[Any, Any], None]] = set()
"""The functions that do not read the state of the workload."""


def carries_out(
    kind: type[C], *, needs_state: bool = True
) -> Callable[[Callable[[W, C], None]], Callable[[W, C], None]]:
    """Register the decorated function of (workload, command) as what carries out commands of this type.

    It replaces one that was registered before, that of the library included. What the workload gives it
    is documented in `fsm_train.supervised.training.Training`.

    >>> import attrs
    >>> @attrs.frozen
    ... class ScaleGradients(Command):
    ...     factor: float
    >>> @carries_out(ScaleGradients)
    ... def scale_gradients(work, command):
    ...     for parameter in work.parameters:
    ...         parameter.grad *= command.factor

    Args:
        kind: the type of command.
        needs_state: whether the function reads `work.state`. With False no state is made for it within a batch, also
            where a decision comes again for which the callbacks need not be asked (`reads` of `on`).
    """
    return _register(_REGISTERED, kind, needs_state)


def _register(
    handlers: dict[type[Command], Callable[[Any, Any], None]], kind: type[C], needs_state: bool
) -> Callable[[Callable[[W, C], None]], Callable[[W, C], None]]:
    def register(handler: Callable[[W, C], None]) -> Callable[[W, C], None]:
        handlers[kind] = handler
        (_WITHOUT_STATE.discard if needs_state else _WITHOUT_STATE.add)(handler)
        return handler

    return register


def carries_out_by_default(
    kind: type[C], *, needs_state: bool = True
) -> Callable[[Callable[[W, C], None]], Callable[[W, C], None]]:
    """Register a function of the library. A function registered with `carries_out` precedes it, in whatever order."""
    return _register(_DEFAULTS, kind, needs_state)


def needs_state(kind: type[Command]) -> bool:
    """Whether what carries out commands of this type reads the state."""
    return handler_of(kind) not in _WITHOUT_STATE


def is_registered(kind: type[Command]) -> bool:
    """Whether there is a function that carries out commands of this type."""
    return kind in _REGISTERED or kind in _DEFAULTS


def registered() -> tuple[type[Command], ...]:
    """The types of commands that can be carried out, in the order in which they were registered."""
    return (*_DEFAULTS, *_REGISTERED)


def handler_of(kind: type[Command]) -> Callable[[Any, Any], None]:
    """The function of (workload, command) that carries out commands of this type.

    Raises:
        WorkloadError: none was registered.
    """
    handler = _REGISTERED.get(kind) or _DEFAULTS.get(kind)
    if handler is None:
        raise WorkloadError(
            f"nothing is registered that carries out the command {kind.__name__}: decorate a function of "
            f"(workload, command) with @carries_out({kind.__name__}), from fsm_train"
        )
    return handler
