"""Sensors, which measure a user's own facts, and how all facts are read from the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from ..core.errors import WorkloadError
from ..core.facts import KNOWN_AT

S = TypeVar("S", bound=Callable[..., Any])


def read_in_one_transfer(facts: Mapping[str, torch.Tensor | float]) -> Mapping[str, float]:
    """The values as floats. Tensors, which are scalars, are read in one transfer if they are on one device."""
    on_device = {name: value for name, value in facts.items() if isinstance(value, torch.Tensor)}
    if len({value.device for value in on_device.values()}) == 1 < len(on_device):
        values = torch.stack([value.detach().double() for value in on_device.values()]).tolist()
    else:
        values = [value.item() for value in on_device.values()]
    return {
        **{n: float(v) for n, v in facts.items() if n not in on_device},
        **dict(zip(on_device, values, strict=True)),
    }


def check_sensors(sensors: Mapping[str, S]) -> Mapping[str, S]:
    """The sensors, if each is a function and none has the name of a standard fact.

    Raises:
        WorkloadError: one has the name of a standard fact, or is no function.
    """
    for name, sensor in sensors.items():
        if name in KNOWN_AT:
            raise WorkloadError(f"a sensor cannot be called {name!r}: that fact is measured anyway")
        if not callable(sensor):
            raise WorkloadError(f"the sensor {name!r} is a {type(sensor).__name__}: give a function of the workload")
    return dict(sensors)
