"""Sensors, which measure a user's own facts, and how all facts are read from the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch

from ..core.arguments import kind_of
from ..core.errors import WorkloadError
from ..core.facts import KNOWN_AT
from ..data.batches import in_words
from .arguments import check_named
from .real_numbers import is_real_scalar
from .shares import whole

S = TypeVar("S", bound=Callable[..., Any])


def read_in_one_transfer(facts: Mapping[str, torch.Tensor | float]) -> Mapping[str, float]:
    """The values as floats. Tensors of one device, which are scalars, are read in one transfer; others one by one.

    Tensors of several types are stacked in the widest of them. A whole number could be rounded by that.
    """
    on_device = {name: whole(value) for name, value in facts.items() if isinstance(value, torch.Tensor)}
    floating = all(value.is_floating_point() for value in on_device.values())
    if floating and len({value.device for value in on_device.values()}) == 1 < len(on_device):
        values = torch.stack([value.detach() for value in on_device.values()]).tolist()
    else:
        values = [value.item() + 0 for value in on_device.values()]  # the sum of a bool is a number
    return {
        **{n: float(v) for n, v in facts.items() if n not in on_device},
        **dict(zip(on_device, values, strict=True)),
    }


def measure(work: Any, sensors: Mapping[str, Callable[[Any], Any]], names: Iterable[str]) -> dict[str, Any]:
    """What these sensors measure of the workload, by name: numbers and scalar tensors.

    Raises:
        WorkloadError: one gives something else.
        Exception: what a sensor raised, with a note that names it.
    """
    facts = {}
    name = ""
    try:
        for name in sorted(names):  # the same order on all ranks
            value = facts[name] = sensors[name](work)
            if not is_real_scalar(value):
                raise WorkloadError(
                    f"the sensor {name!r} returned {in_words(value)}: return a real number or a scalar tensor"
                )
    except Exception as error:
        error.add_note(f"Raised by the sensor {name!r}.")
        raise
    return facts


def check_sensors(sensors: Mapping[str, S]) -> Mapping[str, S]:
    """The sensors, if each is a function and none has the name of a standard fact.

    Raises:
        WorkloadError: one has the name of a standard fact, or is no function.
    """
    check_named("sensors", sensors, "'depth': lambda work: …", "work")
    for name, sensor in sensors.items():
        if name in KNOWN_AT:
            raise WorkloadError(f"a sensor cannot be called {name!r}: that fact is measured anyway")
        if not callable(sensor):
            raise WorkloadError(f"the sensor {name!r} is {kind_of(sensor)}: give a function of the workload")
    return dict(sensors)
