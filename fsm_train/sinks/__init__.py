"""Sinks: they watch a training, and can influence nothing."""

from .base import Recorder, Sink
from .progress import progress

__all__ = ["Recorder", "Sink", "progress"]
