"""For tests of callbacks: whole trainings in milliseconds, without torch."""

from .simulation import at, drive, simulate

__all__ = ["at", "drive", "simulate"]
