"""Curves of metrics as a picture.

Rule of this file: it is the only one in the event log that imports matplotlib, which is an extra.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..wording import escaped
from .epochs import Epochs

MAX_PANELS = 100
"""The most panels of a picture."""


def plot(runs: Mapping[str, Epochs], path: str) -> None:
    """Draw each metric over the epochs: train (dashed) and valid of one name in one panel, one colour per run.

    Args:
        runs: by the label of a run, its finished epochs.
        path: of the picture; its suffix, such as .png, gives the format.

    Raises:
        ValueError: matplotlib does not know the format, there is no finished epoch, or there are too many metrics.
    """
    panels: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for epochs in runs.values() for name in epochs.names):
        panels.setdefault(name.removeprefix("train_").removeprefix("valid_"), []).append(name)
    if not panels:
        raise ValueError("there is no finished epoch to draw")
    if len(panels) > MAX_PANELS:
        raise ValueError(f"there are {len(panels)} metrics to draw, and a picture has at most {MAX_PANELS}")
    figure = Figure(figsize=(6, 3 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for i, (run, epochs) in enumerate(runs.items()):
            for name in names:
                points = [(epoch.epoch, epoch.metrics[name]) for epoch in epochs if name in epoch.metrics]
                at = [epoch for epoch, _ in points]
                finite = [value if math.isfinite(value) else math.nan for _, value in points]
                style = "--" if name.startswith("train_") else "-"
                label = escaped(name if len(runs) == 1 else f"{run}: {name}").replace("$", r"\$")
                axis.plot(at, finite, style, color=f"C{i}", label=label)
        axis.set(title=escaped(title).replace("$", r"\$"), xlabel="epoch")
        axis.legend()
    figure.savefig(path)
