"""Checks of settings: tests of a value, functions that refuse one, and validators of attrs fields.

Rule of this file: an error says which setting it is, what was found, and what is accepted.
"""

from __future__ import annotations

import difflib
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any, TypeGuard

import attrs

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def is_whole(value: object, least: float = -math.inf) -> TypeGuard[int]:
    """Whether it is an int, and no bool, that is at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is an int or a float, and no bool. NaN and infinities are numbers."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


NO_TEXT = "it has half of a pair of UTF-16, which is no valid text, and no log or checkpoint could hold it"


def is_text(name: str) -> bool:
    r"""Whether it is valid Unicode: the name of a file that is none has lone surrogates.

    >>> is_text("loss"), is_text("loss\udcff")
    (True, False)
    """
    return name.encode(errors="ignore").decode() == name


def as_count(value: object, name: str) -> float:
    """What a batch counts: a number from 0, as an int where it is whole.

    >>> as_count(8.0, "samples"), as_count(0.5, "samples")
    (8, 0.5)

    Raises:
        ValueError: it is no number, negative, or not finite.
    """
    if not is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{name} gives {value!r:.60} for a batch: what a batch counts is a finite number from 0")
    return int(value) if value == int(value) else value


def is_exact_number(value: object) -> TypeGuard[float]:
    """Whether it is a number, and no bool, that a float holds exactly: a scalar of NumPy is one too."""
    if type(value) is float or is_number(value):
        return True
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    as_float = float(value)
    return as_float == value or as_float != as_float


# ------------------------------------------------------- functions that raise, for arguments

_INCOMPARABLE = (TypeError, ValueError, RuntimeError)
"""What it raises to compare something with a number: the last two are of arrays and tensors of several numbers."""


def check_count(name: str, value: object, least: int = 0) -> None:
    if not is_whole(value, least):
        raise ValueError(f"{name}={value!r}: it is a whole number from {least}")


def check_number(name: str, value: object, fits: Callable[[Any], bool], wanted: str) -> None:
    """Refuse what is no number, and numbers that do not fit.

    A number is what can be compared with one, and is no bool: a scalar of NumPy is one too.

    Args:
        name: the setting.
        value: what was found.
        fits: whether a number is accepted; it is false of NaN.
        wanted: what is accepted, as a sentence.
    """
    try:
        accepted = not isinstance(value, bool) and bool(fits(value))
    except _INCOMPARABLE:
        accepted = False
    if not accepted:
        raise ValueError(f"{name}={value!r}: {wanted}")


def check_positive(name: str, value: object) -> None:
    check_number(name, value, lambda x: 0 < x < math.inf, "it is a positive number")


def check_positive_or_inf(name: str, value: object) -> None:
    check_number(name, value, lambda x: x > 0, "it is a positive number, or math.inf")


def check_not_negative(name: str, value: object) -> None:
    check_number(name, value, lambda x: 0 <= x < math.inf, "it is a number from 0")


def check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: True or False")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name}={value!r}: {', '.join(others)} or {last}")


_MEANT = (
    ("steps", "max_steps", "max_steps"),
    *((name, "epochs", "epochs") for name in ("max_epochs", "num_epochs", "n_epochs")),
    ("train_batches", "batches", "batches"),
    ("learning_rate", "lr", "lr"),
    *((name, "hyper", f"hyper={{{name!r}: …}}") for name in ("lr", "learning_rate", "momentum", "weight_decay")),
)
"""Names that are no misspellings: such a name, the known one without which it is the user's own, and what it means."""


def check_not_misspelt(where: str, names: Iterable[str], known: Set[str]) -> None:
    """Refuse a name that is near a known one. Any other name is accepted, as one of the user's own.

    So is a known name with an ending, such as `loss_2`, `valid_loss_ema` or `epoch_time`.

    >>> check_not_misspelt("simulate", ["tokens", "loss_2"], {"epochs", "loss"})
    >>> check_not_misspelt("simulate", ["epoch"], {"epochs", "loss"})
    Traceback (most recent call last):
        ...
    TypeError: simulate(epoch=…): did you mean epochs? A name of your own must differ more from the known ones

    Raises:
        TypeError: with the name that is likely meant.
    """
    for name in names:
        if name not in known and (meant := _likely_meant(name, known)):
            raise TypeError(
                f"{where}({name}=…): did you mean {meant}? A name of your own must differ more from the known ones"
            )


def _likely_meant(name: str, known: Set[str]) -> str | None:
    if prefixed := re.fullmatch("(val|validation|training)_(.+)", name):
        return f"{'train' if prefixed[1] == 'training' else 'valid'}_{prefixed[2]}"
    for other, needed, meant in _MEANT:
        if name == other and needed in known:
            return meant
    extended = {word for word in known if re.fullmatch(f"{re.escape(word)}(_.+|[0-9]+)", name)}
    # How near is near: "ephoc" to "epoch" is 0.8, "batch_sise" to "batch_size" 0.9.
    near = 0.79 if not extended and not name.startswith(("train_", "valid_")) else 0.87
    return next(iter(difflib.get_close_matches(name, sorted(known - extended), n=1, cutoff=near)), None)


# ---------------------------------------------------------- validators, for fields of records


def _validator(fits: Callable[[Any], bool], wanted: str) -> Validator:
    # It does not call `check_number`: a record such as WeighLoss is made for each batch.
    def validate(record: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        try:
            accepted = bool(fits(value))
        except _INCOMPARABLE:
            accepted = False
        if not accepted:
            raise ValueError(f"{attribute.name}={value!r}: it must be {wanted}")

    return validate


positive = _validator(lambda x: 0 < x < math.inf, "a positive number")
not_negative = _validator(lambda x: 0 <= x < math.inf, "a number from 0")
fraction = _validator(lambda x: 0 <= x <= 1, "a number from 0 to 1")


def check_possible(setting: str, value: str | os.PathLike[str], such_as: str) -> str:
    """The path of a file or folder as a text.

    Raises:
        ValueError: none can be called like this.
    """
    path = os.fspath(value)
    if not path or "\0" in path:
        raise ValueError(f"{setting}={path!r}: nothing can have this path; give one such as {such_as!r}")
    return path


def check_folder(setting: str, value: str | os.PathLike[str]) -> str:
    """The path of a folder as a text.

    Raises:
        ValueError: no folder can be called like this.
    """
    return check_possible(setting, value, "checkpoints")
