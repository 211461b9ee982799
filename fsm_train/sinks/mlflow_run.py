"""A training as a run of MLflow.

Rule of this file: it imports `mlflow`, which is an extra, when a sink is made, and goes through a client of its own, so
that a run of the program, and its settings, stay as they are.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..core.phase import Phase
from ..core.state import State
from ..lazy import from_extra
from .points import Point
from .tracker import Ending, Selection, Setting, Tracker

STATUS: Mapping[Phase | None, str] = {Phase.DONE: "FINISHED", Phase.FAILED: "FAILED"}
"""By the final phase, the status of the run. One that was suspended or cut off is KILLED."""

AT_ONCE = 100
"""How many numbers or parameters MLflow takes in one request; of numbers it would take more."""

LONGEST = 500
"""The longest value of a parameter that each version of MLflow takes."""


def mlflow(
    experiment: str,
    *,
    run: str | None = None,
    run_id: str | None = None,
    tracking_uri: str | None = None,
    tags: Mapping[str, str] | None = None,
    facts: Iterable[str] = (),
    every: int = 50,
    hyper: Iterable[str] = ("lr",),
    config: Mapping[str, object] | None = None,
) -> Tracker:
    """Write a run of MLflow: metrics, learning rate and epoch over the optimizer steps, parameters, and the end.

    The plan and the parameters of the callbacks are parameters of the run. It ends as FINISHED, FAILED, or KILLED
    where the training was suspended; the tag `ended` says why. Characters that MLflow does not take in a name
    become `_`. NaN is written as it is, and for an infinity MLflow stores the largest number.

    A training that resumes goes on in its run: the one of this object, of `run_id`, or else the newest of the name
    `run` in the experiment; if there is none, in a new one. MLflow removes nothing: what was written after the place
    where it resumes stays, beside what is measured there now. A parameter that has another value by then is added
    with the step in its name.

    >>> from fsm_train.sinks import mlflow
    >>> sink = mlflow("digits", run="first", tracking_uri="sqlite:///mlflow.db")  # doctest: +SKIP

    Args:
        experiment: its name; it is made if it is not there.
        run: the name of the run. MLflow makes one up if there is none, and then no other process finds it again.
        run_id: of a run that is there already, instead.
        tracking_uri: of the server or the database; the default is that of MLflow: what the environment has as
            MLFLOW_TRACKING_URI, else mlflow.db in the folder that the program runs in (of older versions: mlruns).
        tags: further ones.
        facts: of batches, such as "loss" or "grad_norm".
        every: of which batches: those whose number is a multiple of this.
        hyper: the names of hyper-parameters, which are written with each epoch.
        config: settings of your own, which are parameters too.

    Raises:
        ModuleNotFoundError: mlflow is not installed.
        TypeError, ValueError: an argument makes no sense.
    """
    if not isinstance(experiment, str) or not experiment:
        raise TypeError(f"experiment={experiment!r:.80}: give its name, as in mlflow('digits')")
    if run is not None and not isinstance(run, str):
        raise TypeError(f"run={run!r:.80}: give the name of the run, or None")
    if run is not None and "'" in run and '"' in run:
        raise ValueError(f"run={run!r:.80}: MLflow finds no name that has quotes of both kinds")
    return MlflowRun(
        Selection.checked(facts, every, hyper, config), experiment, run, run_id, tracking_uri, dict(tags or {})
    )


class MlflowRun(Tracker):
    """The sink that `mlflow` makes.

    Attributes:
        run_id: of the run; None before there is one.
    """

    def __init__(
        self,
        selection: Selection,
        experiment: str,
        run: str | None,
        run_id: str | None,
        tracking_uri: str | None,
        tags: Mapping[str, str],
    ) -> None:
        super().__init__(selection)
        self._mlflow = from_extra("mlflow", "mlflow", "mlflow(…)")
        self._entities = from_extra("mlflow.entities", "mlflow", "mlflow(…)")
        self._experiment = experiment
        self._run = run
        self._given_id = self.run_id = run_id
        self._uri = tracking_uri
        self._tags = tags

    def begin_run(self, state: State, config: Mapping[str, Setting], resumed: bool) -> None:
        self._client = self._mlflow.MlflowClient(self._uri)
        there = self._run_there() if resumed else self._given_id
        if there is None:
            made = self._client.create_run(self._experiment_id(), run_name=self._run, tags=self._tags)
            self.run_id = made.info.run_id
        else:
            self.run_id = there
            self._client.update_run(there, status="RUNNING")
        self._write_params(config, self._client.get_run(self.run_id).data.params, state.step)

    def write(self, point: Point) -> None:
        now = round(time.time() * 1000)
        values = {**point.values, "epoch": point.epoch}
        metrics = [self._entities.Metric(taken_name(name), value, now, point.step) for name, value in values.items()]
        for some in in_parts(metrics):
            self._client.log_batch(self.run_id, metrics=some)

    def end_run(self, ending: Ending) -> None:
        self._client.set_tag(self.run_id, "ended", ending.text)
        self._client.set_terminated(self.run_id, STATUS.get(ending.phase, "KILLED"))

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        made: str = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
        return made

    def _run_there(self) -> str | None:
        """The run that this training had."""
        if self.run_id is not None or self._run is None:
            return self.run_id
        quote = '"' if "'" in self._run else "'"
        named = f"attributes.run_name = {quote}{self._run}{quote}"
        newest = ["attributes.start_time DESC"]
        found = self._client.search_runs([self._experiment_id()], named, order_by=newest, max_results=1)
        return found[0].info.run_id if found else None

    def _write_params(self, config: Mapping[str, Setting], there: Mapping[str, str], step: int) -> None:
        """Write the parameters; one cannot be written again with another value."""
        params = {taken_name(name): str(value)[:LONGEST] for name, value in config.items()}
        new: list[Any] = []
        for name, value in params.items():
            if name in there and there[name] != value:
                name = f"{name} from step {step}"
            if name not in there:
                new.append(self._entities.Param(name, value))
        for some in in_parts(new):
            self._client.log_batch(self.run_id, params=some)


def in_parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The items, as many at once as MLflow takes."""
    return (items[first : first + AT_ONCE] for first in range(0, len(items), AT_ONCE))


def taken_name(name: str) -> str:
    """The name with `_` for each character that MLflow does not take.

    >>> taken_name("valid_top@5"), taken_name("lr/0")
    ('valid_top_5', 'lr/0')
    """
    return re.sub(r"[^\w\-. /]", "_", name)
