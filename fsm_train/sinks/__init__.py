"""Sinks: they watch a training, and can influence nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Recorder, Sink
from .progress import progress

__all__ = ["Recorder", "Sink", "csv", "mlflow", "progress", "tensorboard", "wandb"]

if TYPE_CHECKING:
    from .csv_table import csv
    from .mlflow_run import mlflow
    from .tensorboard_events import tensorboard
    from .wandb_run import wandb
else:
    from ..lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".csv_table": ("csv",),
            ".mlflow_run": ("mlflow",),
            ".tensorboard_events": ("tensorboard",),
            ".wandb_run": ("wandb",),
        },
    )
