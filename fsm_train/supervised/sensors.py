"""Facts of one's own, and how all facts are read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from ..core.errors import WorkloadError
from ..core.facts import KNOWN_AT

if TYPE_CHECKING:
    from .workload import Supervised

Sensor = Callable[["Supervised"], "torch.Tensor | float"]


def in_one_transfer(found: Mapping[str, torch.Tensor | float]) -> Mapping[str, float]:
    """The values as floats; those on a device are read back together."""
    on_device = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if len(on_device) > 1:
        values = torch.stack([value.detach().double() for value in on_device.values()]).tolist()
    else:
        values = [value.item() for value in on_device.values()]
    return {
        **{n: float(v) for n, v in found.items() if n not in on_device},
        **dict(zip(on_device, values, strict=True)),
    }


def check_sensors(sensors: Mapping[str, Sensor]) -> Mapping[str, Sensor]:
    """The sensors, when each is a function with a name of its own.

    Raises:
        WorkloadError: one is called like a fact that there is anyway, or is no function.
    """
    for name, sensor in sensors.items():
        if name in KNOWN_AT:
            raise WorkloadError(f"a sensor cannot be called {name!r}: that fact is measured anyway")
        if not callable(sensor):
            raise WorkloadError(f"the sensor {name!r} is a {type(sensor).__name__}: give a function of the workload")
    return dict(sensors)
