"""Curves of metrics as a picture.

Rule of this file: it is the only one in the event log that imports matplotlib, which is an extra.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..wording import escaped
from .reader import Line
from .render import metric_names


def plot(runs: Mapping[str, Sequence[Line]], path: str) -> None:
    """Draw each metric over the epochs: train (dashed) and valid of one name in one panel, one colour per run.

    Args:
        runs: by the label of a run, the lines of its finished epochs.
        path: of the picture; its suffix, such as .png, gives the format.

    Raises:
        ValueError: matplotlib does not know the format, or there is no finished epoch.
    """
    panels: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for epochs in runs.values() for name in metric_names(epochs)):
        panels.setdefault(name.removeprefix("train_").removeprefix("valid_"), []).append(name)
    if not panels:
        raise ValueError("there is no finished epoch to draw")
    figure = Figure(figsize=(6, 3 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for i, (run, epochs) in enumerate(runs.items()):
            for name in names:
                at = [line.epoch for line in epochs if name in line.metrics]
                values = [line.metrics[name] for line in epochs if name in line.metrics]
                finite = [value if math.isfinite(value) else math.nan for value in values]
                style = "--" if name.startswith("train_") else "-"
                label = escaped(name if len(runs) == 1 else f"{run}: {name}").replace("$", r"\$")
                axis.plot(at, finite, style, color=f"C{i}", label=label)
        axis.set(title=escaped(title).replace("$", r"\$"), xlabel="epoch")
        axis.legend()
    figure.savefig(path)
