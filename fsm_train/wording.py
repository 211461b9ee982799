"""Text for people: numbers, times, counts, and how a training ended. One way each, for all commands and displays.

Rule of this file: pure functions from values to text. It imports only the core, so that everything above can use it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .core.state import Hyper, Plan

LOSSES = ("train_loss", "valid_loss")
"""The metrics that are listed before all others."""

PLAN_FULFILLED = "it ends with its plan fulfilled"
"""Why a training ended that no callback stopped."""


def escaped(text: object) -> str:
    r"""The text with each character that is not printable written out.

    For text from a file: no name or reason in it can then move the cursor, hide a line or set the title of a window.

    >>> print(escaped("a\tb\x1b[2J"))
    a\tb\x1b[2J
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def short_number(value: object, digits: int = 4) -> str:
    """A float with at most this many significant digits; anything else, such as an int, as `str` has it.

    >>> short_number(0.123456), short_number(0.5), short_number(123456)
    ('0.1235', '0.5', '123456')
    """
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def aligned_number(value: float) -> str:
    """Four significant digits with trailing zeros, so that the numbers of a column align.

    >>> aligned_number(0.5), aligned_number(12345.0)
    ('0.5000', '1.234e+04')
    """
    return f"{value:#.4g}".rstrip(".")


def learning_rate(lr: Hyper | None) -> str:
    """A learning rate; of several parameter groups the lowest and the highest; "" if there is none.

    >>> learning_rate((0.1, 0.001, 0.01))
    '0.001..0.1'
    """
    if lr is None or lr == ():
        return ""
    rates = lr if isinstance(lr, tuple) else (lr,)
    return "..".join(dict.fromkeys(map(short_number, (min(rates), max(rates)))))


def duration(seconds: float) -> str:
    """A time in one or two units, without a space.

    >>> duration(1.23), duration(723), duration(3720)
    ('1.2s', '12m03s', '1h02m')
    """
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def pluralize(count: int, noun: str) -> str:
    """A count with its noun.

    >>> pluralize(1, "epoch"), pluralize(0, "step")
    ('1 epoch', '0 steps')
    """
    return f"{count} {noun}{'s' * (count != 1)}"


def some_of(names: Sequence[str], most: int = 4) -> str:
    """The names in a row, of many the first ones.

    >>> some_of(["a", "b"]), some_of(["a", "b", "c"], most=2)
    ('a, b', 'a, b, …')
    """
    return ", ".join(names[:most]) + ", …" * (len(names) > most)


def losses_first(names: Iterable[str]) -> list[str]:
    """The names of metrics, each once: the losses, those of several evaluations too, then the others in their order.

    >>> losses_first(["valid_accuracy", "valid_loss", "valid_accuracy"])
    ['valid_loss', 'valid_accuracy']
    >>> losses_first(["valid_noisy_accuracy", "valid_noisy_loss", "train_loss"])
    ['train_loss', 'valid_noisy_loss', 'valid_noisy_accuracy']
    """

    def rank(name: str) -> int:
        if name in LOSSES:
            return LOSSES.index(name)
        return len(LOSSES) + (not (name.startswith("valid_") and name.endswith("_loss")))

    return sorted(dict.fromkeys(names), key=rank)


def reached_limit(plan: Plan, epoch: int, step: int) -> str:
    """The limit of the plan that these counters have reached, epochs before steps; "" if none.

    >>> reached_limit(Plan(epochs=3), epoch=3, step=40)
    '3 epochs'
    """
    for count, limit, noun in ((epoch, plan.epochs, "epoch"), (step, plan.max_steps, "step")):
        if limit is not None and count >= limit:
            return pluralize(limit, noun)
    return ""


def ending(what: str, where: str, reason: str) -> str:
    """How a training ended, in one sentence; `where` and `reason` may be empty.

    >>> ending("suspended", "in epoch 2/3", "Ctrl-C")
    'suspended in epoch 2/3: Ctrl-C'
    """
    return " ".join(filter(None, (what, where))) + (f": {reason}" if reason else "")


def as_typed(value: Any) -> str:
    """A setting as it is typed in Python; records and mappings are in the form of `encode`.

    >>> as_typed([1, {"$": "Cosine", "steps": 20}]), as_typed(None)
    ('(1, Cosine(steps=20))', 'None')
    """
    if isinstance(value, list):
        return f"({', '.join(map(as_typed, value))}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        if "$" in value:
            parts = ", ".join(f"{name}={as_typed(part)}" for name, part in value.items() if name != "$")
            return f"{value['$']}({parts})"
        if "$map" in value:
            return "{" + ", ".join(f"{as_typed(key)}: {as_typed(part)}" for key, part in value["$map"]) + "}"
        return str(next(iter(value.values()), ""))
    return repr(value)
