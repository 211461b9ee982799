"""For tests of callbacks: whole trainings in milliseconds, without torch."""

from .differences import differences
from .simulation import SimulatedError, at, drive, simulate
from .trace import Event, Trace

__all__ = ["Event", "SimulatedError", "Trace", "at", "differences", "drive", "simulate"]
