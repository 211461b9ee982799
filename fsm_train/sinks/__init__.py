"""Sinks: they watch a training, and can influence nothing."""

from .base import Sink
from .progress import progress

__all__ = ["Sink", "progress"]
