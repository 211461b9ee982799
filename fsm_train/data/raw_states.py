"""The states of the generators of Python and NumPy as bytes, which are copied in a microsecond, and what they mean.

Both are Mersenne twisters, whose functions give their state as 624 numbers, made one by one: that took longer than all
else that an epoch begins with, and most epochs end without anybody asking for the numbers.

Rule of this file: a state is what `random.getstate` and `numpy.random.get_state` say. Where its numbers are in memory
is found with new generators whose states are known. Where they are not found as expected, those functions are asked.
"""

from __future__ import annotations

import functools
import random
import struct
import sys
from ctypes import string_at
from typing import Any

import attrs

_WORDS = struct.Struct("=624I")
_INT, _DOUBLE = struct.Struct("=i"), struct.Struct("=d")
_HERE = sys.implementation.name == "cpython"  # elsewhere the id of an object is not its place in memory


@attrs.frozen
class RawState:
    """The state of a Mersenne twister.

    Attributes:
        words: its 624 numbers of 32 bits.
        index: which of them comes next.
        gauss: the number of a normal distribution that waits; None if none does.
    """

    words: bytes
    index: int
    gauss: float | None

    def of_python(self) -> tuple[Any, ...]:
        """What `random.getstate` gives."""
        return random.Random.VERSION, (*_WORDS.unpack(self.words), self.index), self.gauss

    def of_numpy(self) -> tuple[Any, ...]:
        """What `numpy.random.get_state` gives."""
        key = sys.modules["numpy"].array(_WORDS.unpack(self.words), dtype="uint32")
        return "MT19937", key, self.index, int(self.gauss is not None), self.gauss or 0.0


def python_state() -> RawState | tuple[Any, ...]:
    """The state of `random`, as bytes where that can be done."""
    generator = random._inst
    layout = _python_layout()
    if layout is None or type(generator) is not random.Random:
        return random.getstate()
    words, index = (id(generator) + offset for offset in layout)
    (next_one,) = _INT.unpack(string_at(index, _INT.size))
    return RawState(string_at(words, _WORDS.size), next_one, generator.gauss_next)  # type: ignore[attr-defined]


def numpy_state(numpy: Any) -> RawState | Any:
    """The state of `numpy.random`, as bytes where that can be done."""
    generator = numpy.random.mtrand._rand
    bits = generator._bit_generator
    waits = _numpy_layout(numpy.random)
    if waits is None or type(generator) is not numpy.random.RandomState or type(bits) is not numpy.random.MT19937:
        return numpy.random.get_state()
    words, index = _words_of(bits)
    has_gauss, gauss = (id(generator) + offset for offset in waits)
    (is_there,) = _INT.unpack(string_at(has_gauss, _INT.size))
    return RawState(words, index, _DOUBLE.unpack(string_at(gauss, _DOUBLE.size))[0] if is_there else None)


def _words_of(bits: Any) -> tuple[bytes, int]:
    memory = string_at(bits.ctypes.state_address, _WORDS.size + _INT.size)
    return memory[: _WORDS.size], _INT.unpack(memory[_WORDS.size :])[0]


@functools.cache
def _python_layout() -> tuple[int, int] | None:
    """How far in a generator its words are, and its index; None if they are not found."""
    if not _HERE:
        return None
    generator, size = random.Random(1), random.Random.__basicsize__
    found: set[tuple[int, int]] | None = None
    for _ in range(4):
        generator.random()
        _, (*words, index), _ = generator.getstate()
        memory = string_at(id(generator), size)
        begin = memory.find(_WORDS.pack(*words))
        beside = (begin - _INT.size, begin + _WORDS.size)
        here = {(begin, at) for at in beside if begin > 0 and memory[at : at + _INT.size] == _INT.pack(index)}
        found = here if found is None else found & here
    return found.pop() if found else None


@functools.cache
def _numpy_layout(of: Any) -> tuple[int, int] | None:
    """How far in a RandomState is whether a normal number waits, and that number; None if they are not found."""
    if not (_HERE and hasattr(of.MT19937, "ctypes")):
        return None
    generator, size = of.RandomState(of.MT19937(1)), of.RandomState.__basicsize__
    found: set[int] | None = None
    for _ in range(8):
        generator.standard_normal()
        _, key, index, has_gauss, gauss = generator.get_state()
        if _words_of(generator._bit_generator) != (key.tobytes(), index):
            return None
        waits = struct.pack("=i4xd", has_gauss, gauss)
        memory = string_at(id(generator), size)
        here = {at for at in range(0, size - len(waits) + 1, 8) if _same_waits(memory, at, waits)}
        found = here if found is None else found & here
    return (begin := found.pop(), begin + 8) if found is not None and len(found) == 1 else None


def _same_waits(memory: bytes, at: int, waits: bytes) -> bool:
    return memory[at : at + 4] == waits[:4] and memory[at + 8 : at + 16] == waits[8:]
