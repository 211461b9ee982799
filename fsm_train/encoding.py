"""Values as JSON, and back, exactly.

Rules of this file: what JSON has no form for is an object with one of the keys below. A decoded value equals the
encoded one to the last bit, or decoding is an error. No name from a file is looked up or imported: a record is
decoded only to a class that the caller gives.

    {"$float": "nan"}          nan, inf, -inf, or the 16 hexadecimal digits of another NaN
    {"$int": "…"}              a whole number beyond 64 bits
    {"$str": "…"}              text that is not valid Unicode, escaped
    {"$list": […]}             a list; a plain JSON array is a tuple
    {"$set": […]}, {"$map": [[key, value], …]}
    {"$enum": "Phase.BATCH_END"}
    {"$": "Best", "value": …}  an attrs record: the name of its class, and its fields
    {"$repr": "…"}             anything else: it can be read, but not decoded
"""

from __future__ import annotations

import contextlib
import enum
import functools
import math
import re
import struct
from collections.abc import Callable, Hashable, Mapping, Set
from numbers import Integral, Real
from typing import Any

import attrs
import orjson

from .core.history import History
from .core.phase import Flag, Junction, Operation, Phase

Json = Any

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
INT64 = 1 << 63
DEPTH = 64
"""The deepest nesting that is decoded; the memories of callbacks are far less deep."""

ENUMS: Mapping[str, type[enum.Enum]] = {kind.__name__: kind for kind in (Phase, Flag, Junction, Operation)}


class CannotDecodeError(ValueError):
    """`encode` did not write this value, or it cannot be decoded."""


# -------------------------------------------------------------------------------------- writing


def encode(value: object) -> Json:
    """The value as JSON."""
    kind: Any = type(value)
    if kind is float:
        return value if value - value == 0.0 else _special(value)  # type: ignore[operator, arg-type]
    if kind is str:
        return _text(value)  # type: ignore[arg-type]
    if kind is int:
        return value if -INT64 <= value < INT64 else {"$int": str(value)}  # type: ignore[operator]
    if value is None or kind is bool:
        return value
    if kind is tuple:
        return [encode(part) for part in value]  # type: ignore[attr-defined]
    names = _fields(kind)
    if names is not None:
        return {"$": kind.__name__, **{name: encode(getattr(value, name)) for name in names}}
    return _other(value)


def numbers(mapping: Mapping[str, float]) -> Mapping[str, Json]:
    """A mapping of numbers as JSON; the mapping itself unless a value has no form in JSON.

    Raises:
        TypeError: a value is no real number, so that it could not be read again; the message names it.
    """
    for value in mapping.values():
        if type(value) is float:
            if value - value != 0.0:
                break
        elif type(value) is not int or not -INT64 <= value < INT64:
            break
    else:
        return mapping
    return {name: _number(name, value) for name, value in mapping.items()}


def _number(name: str, value: object) -> Json:
    if not isinstance(value, Real):
        raise TypeError(f"{name} is {_short(value)}, which is no real number")
    return encode(int(value) if isinstance(value, Integral) else float(value))


def _special(value: float) -> Json:
    if math.isinf(value):
        return {"$float": "inf" if value > 0 else "-inf"}
    bits = struct.pack(">d", value).hex()
    return {"$float": "nan" if bits == "7ff8000000000000" else bits}


def _text(value: str) -> Json:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return {"$str": value.encode("unicode_escape").decode("ascii")}
    return value


@functools.lru_cache(maxsize=512)
def _fields(kind: Hashable) -> tuple[str, ...] | None:
    if isinstance(kind, type) and attrs.has(kind):
        return tuple(field.name for field in attrs.fields(kind))
    return None


def _other(value: object) -> Json:
    match value:
        case Flag():
            return {"$enum": f"Flag.{flag_names(value)}"}
        case enum.Enum() if type(value) in ENUMS.values():
            return {"$enum": f"{type(value).__name__}.{value.name}"}
        case bool() | int() | float() | str():  # of a derived class, such as numpy's float64
            plain = next(base for base in (int, float, str) if isinstance(value, base))
            return encode(plain(value))
        case History():
            return encode(tuple(value))
        case list():
            return {"$list": [encode(part) for part in value]}
        case Mapping():
            return {"$map": [[encode(key), encode(part)] for key, part in value.items()]}
        case Set():
            return {"$set": sorted((encode(part) for part in value), key=orjson.dumps)}
    # Without the address in memory, or the same run would have another log each time.
    return {"$repr": _text(_ADDRESS.sub("", repr(value)))}


@functools.lru_cache(maxsize=1024)
def flag_names(flags: Flag) -> str:
    """The names of the flags, such as "SKIP_STEP|SKIP_ZERO"; "" for none."""
    return "|".join(str(flag.name) for flag in flags)


# -------------------------------------------------------------------------------------- reading


def decode(value: Json, classes: Mapping[str, type] | None = None, depth: int = DEPTH) -> Any:
    """The value that `encode` wrote.

    Args:
        value: the JSON, as it was read.
        classes: the classes of records that may be made, by name.
        depth: the deepest nesting that is decoded.

    Raises:
        CannotDecodeError: `encode` did not write this, or it cannot be decoded; the message says why.
    """
    if depth == 0:
        raise CannotDecodeError("it is nested too deeply")
    if isinstance(value, list):
        return tuple(decode(part, classes, depth - 1) for part in value)
    if not isinstance(value, dict):
        return value
    if "$" in value:
        return _record(value, classes or {}, depth)
    if len(value) == 1:
        (tag, content) = next(iter(value.items()))
        if tag in _DECODERS:
            kind, decoder = _DECODERS[tag]
            try:
                if type(content) is not kind:
                    raise TypeError(content)
                return decoder(content, lambda part: decode(part, classes, depth - 1))
            except (TypeError, ValueError, KeyError, struct.error) as error:
                if isinstance(error, CannotDecodeError):
                    raise
                raise CannotDecodeError(f"{_short(value)} is no {tag[1:]}") from error
    raise CannotDecodeError(f"{_short(value)} is not a value that a log has")


def number(value: Json) -> float:
    """The number that `encode` wrote.

    Raises:
        CannotDecodeError: the value is not a number, or one that is beyond those of a float.
    """
    kind = type(value)
    if kind is float or kind is int:
        return value  # type: ignore[no-any-return]
    if kind is dict and len(value) == 1 and ("$float" in value or "$int" in value):
        decoded: float = decode(value)
        with contextlib.suppress(OverflowError):
            float(decoded)
            return decoded
    raise CannotDecodeError(f"{_short(value)} is not a number")


def flags(value: Json) -> Flag:
    """The flags that `flag_names` wrote.

    Raises:
        CannotDecodeError: a name is not that of a flag.
    """
    if not isinstance(value, str):
        raise CannotDecodeError(f"{_short(value)} are no flags")
    return _flags_named(value)


@functools.lru_cache(maxsize=1024)
def _flags_named(names: str) -> Flag:
    union = Flag.NONE
    for name in filter(None, names.split("|")):
        if name not in Flag.__members__:
            raise CannotDecodeError(f"{_short(name)} is no flag")
        union |= Flag[name]
    return union


def _float(content: str) -> float:
    if content in ("nan", "inf", "-inf"):
        return float(content)
    if len(content) != 16:
        raise ValueError(content)
    (value,) = struct.unpack(">d", bytes.fromhex(content))
    return float(value)


_ESCAPED = re.compile(r"([ -\[\]-~]|\\([\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}))*")


def _unescaped(content: str) -> str:
    if not _ESCAPED.fullmatch(content):  # Python warns of other escapes, and keeps them
        raise ValueError(content)
    return content.encode("ascii").decode("unicode_escape")


def _enum(content: str) -> object:
    kind, _, name = content.partition(".")
    return flags(name) if kind == "Flag" else ENUMS[kind][name]


def _refuse_repr(content: str) -> object:
    raise CannotDecodeError(f"{_short(content)} was written as text, since it has no form as data")


_DECODERS: Mapping[str, tuple[type, Callable[[Any, Callable[[Json], Any]], Any]]] = {
    "$float": (str, lambda content, _: _float(content)),
    "$int": (str, lambda content, _: int(content)),
    "$str": (str, lambda content, _: _unescaped(content)),
    "$list": (list, lambda content, inner: [inner(part) for part in content]),
    "$set": (list, lambda content, inner: frozenset(inner(part) for part in content)),
    "$map": (list, lambda content, inner: {inner(key): inner(part) for key, part in content}),
    "$enum": (str, lambda content, _: _enum(content)),
    "$repr": (str, lambda content, _: _refuse_repr(content)),
}
"""By key, the type of what it holds, and how that is decoded."""


def is_encoded(value: Json) -> bool:
    """Whether the JSON is of the form that `encode` writes: the keys are known, and hold what they are to hold."""
    if type(value) is list:
        return all(map(is_encoded, value))
    if type(value) is not dict:
        return True
    if "$" in value:
        return type(value["$"]) is str and all(map(is_encoded, value.values()))
    if len(value) != 1:
        return False
    tag, content = next(iter(value.items()))
    if tag not in _DECODERS or not isinstance(content, _DECODERS[tag][0]):
        return False
    if tag == "$map" and not all(type(pair) is list and len(pair) == 2 for pair in value[tag]):
        return False
    return isinstance(content, str) or all(map(is_encoded, value[tag]))


def _record(value: dict[str, Json], classes: Mapping[str, type], depth: int) -> object:
    kind = classes.get(value["$"]) if isinstance(value["$"], str) else None
    if kind is None:
        raise CannotDecodeError(f"it has a record of a class {_short(value['$'])}, which is not known here")
    fields = {field.name: field.alias or field.name for field in attrs.fields(kind) if field.init}
    parts = {name: decode(part, classes, depth - 1) for name, part in value.items() if name != "$"}
    if parts.keys() != fields.keys():
        raise CannotDecodeError(f"its record {value['$']} has the fields {sorted(parts)}, but now {sorted(fields)}")
    try:
        return kind(**{fields[name]: part for name, part in parts.items()})
    except Exception as error:  # a class refuses in its own way
        raise CannotDecodeError(f"its record {value['$']} is refused: {error}") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
