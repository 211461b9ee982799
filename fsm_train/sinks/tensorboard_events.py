"""A training as events for TensorBoard.

Rule of this file: it imports the package `tensorboard` alone, which is an extra, when a sink is made; no torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..core.arguments import check_path
from ..core.checks import check_possible
from ..core.phase import BATCH_PHASES, Phase
from ..core.state import State
from ..lazy import from_extra
from .points import Point
from .tracker import Ending, Selection, Setting, Tracker


def tensorboard(
    folder: str | PathLike[str],
    *,
    facts: Iterable[str] = (),
    every: int = 50,
    hyper: Iterable[str] = ("lr",),
    config: Mapping[str, object] | None = None,
) -> Tracker:
    """Write events for TensorBoard: metrics, learning rate and epoch over the optimizer steps, settings, and the end.

    Scalars have single precision, as TensorBoard's own; NaN and infinities are written as they are. The plan and the
    parameters of the callbacks are in HParams and, as text, in `config`. How the training ended is the text `ended`;
    one that was done has the status SUCCESS in HParams.

    A training that resumes writes another file into the folder, by which TensorBoard drops the steps after the one at
    which it resumes; what was measured at that step itself may be there twice. A new training drops all before it, but
    HParams shows the first settings of a folder.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> final = run(start(Scripted(loss=0.5), epochs=2), sinks=[tensorboard("runs/first")])

    Args:
        folder: of the run; TensorBoard is started with the folder of several.
        facts: of batches, such as "loss" or "grad_norm".
        every: of which batches: those whose number is a multiple of this.
        hyper: the names of hyper-parameters, which are written with each epoch.
        config: settings of your own, which HParams shows too.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
        TypeError, ValueError: `folder` is no path, or an argument makes no sense.
    """
    check_path(folder, "folder", "tensorboard('runs/first')")
    check_possible("folder", folder, "runs/first")
    return TensorBoard(Path(folder), Selection.checked(facts, every, hyper, config))


class TensorBoard(Tracker):
    """The sink that `tensorboard` makes."""

    def __init__(self, folder: Path, selection: Selection) -> None:
        super().__init__(selection)
        self._folder = folder
        self._protos = _module("compat.proto.event_pb2")
        self._summaries = _module("compat.proto.summary_pb2")
        self._writers = _module("summary.writer.event_file_writer")
        self._hparams = _module("plugins.hparams.summary_v2")
        self._texts = _module("plugins.text.summary_v2")

    def begin_run(self, state: State, config: Mapping[str, Setting], resumed: bool) -> None:
        rows = "".join(f"| {_cell(name)} | {_cell(value)} |\n" for name, value in config.items())
        summaries = [
            self._hparams.hparams_pb(config),
            self._texts.text_pb("config", f"| setting | value |\n|---|---|\n{rows}"),
        ]
        there = self._wait_for_a_later_name()
        self._writer = self._writers.EventFileWriter(str(self._folder))
        if there:
            began = self._protos.SessionLog(status=self._protos.SessionLog.START)
            self._add(state.step + 1 if resumed else 0, session_log=began)
        for summary in summaries:
            self._add(state.step, summary=summary)

    def write(self, point: Point) -> None:
        values = {**point.values, "epoch": point.epoch}
        scalars = [self._summaries.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(point.step, summary=self._summaries.Summary(value=scalars))
        if point.phase not in BATCH_PHASES:
            self._writer.flush()

    def end_run(self, ending: Ending) -> None:
        self._add(ending.step, summary=self._texts.text_pb("ended", ending.text))
        if ending.phase is Phase.DONE:  # TensorBoard keeps the first status, so that another one can't be taken back
            self._add(ending.step, summary=self._success())
        self._writer.close()

    def _add(self, step: int, **what: Any) -> None:
        self._writer.add_event(self._protos.Event(wall_time=time.time(), step=step, **what))

    def _success(self) -> Any:
        """The status in HParams."""
        metadata = _module("plugins.hparams.metadata")
        plugin_data = _module("plugins.hparams.plugin_data_pb2")
        success = _module("plugins.hparams.api_pb2").STATUS_SUCCESS
        end = plugin_data.SessionEndInfo(status=success, end_time_secs=time.time())
        about = metadata.create_summary_metadata(plugin_data.HParamsPluginData(session_end_info=end))
        tag = metadata.SESSION_END_INFO_TAG
        return self._summaries.Summary(
            value=[self._summaries.Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)]
        )

    def _wait_for_a_later_name(self) -> bool:
        """Whether there are events already. TensorBoard reads files by their names, which begin with the second."""
        files = list(self._folder.glob("events.out.tfevents.*"))
        while any(f".tfevents.{int(time.time()):010d}." in file.name for file in files):
            time.sleep(0.05)
        return bool(files)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _module(name: str) -> Any:
    return from_extra(f"tensorboard.{name}", "tensorboard", "tensorboard(…)")
