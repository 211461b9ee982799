"""A training as a run of Weights & Biases.

Rule of this file: it imports `wandb`, which is an extra, when a sink is made. The run is one of its own beside a run
of the program, unless the user says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..core.phase import Phase
from ..core.state import State
from ..lazy import from_extra
from .points import Point
from .tracker import Ending, Selection, Setting, Tracker

EXIT_CODE: Mapping[Phase | None, int] = {Phase.DONE: 0, Phase.FAILED: 1}
"""By the final phase, the exit code of the run; 130 of one that was suspended or cut off."""


def wandb(
    project: str | None = None,
    *,
    name: str | None = None,
    id: str | None = None,  # noqa: A002 -- as wandb.init calls it
    facts: Iterable[str] = (),
    every: int = 50,
    hyper: Iterable[str] = ("lr",),
    config: Mapping[str, object] | None = None,
    **init: object,
) -> Tracker:
    """Write a run of Weights & Biases: metrics, learning rate and epoch over the optimizer steps, config, and the end.

    The plan and the parameters of the callbacks are in the config of the run, and `ended` in its summary says how the
    training ended. The run finishes with exit code 0, with 1 if the training failed, and if it was suspended with
    130 after `mark_preempting`. NaN and infinities are written as they are.

    A training that resumes goes on in its run, if `id` is given or it is this object again. What was written after
    the place where it resumes stays, and the charts, whose axis is `step`, have both.

    >>> from fsm_train.sinks import wandb
    >>> sink = wandb("digits", id="first", mode="offline")  # doctest: +SKIP

    Args:
        project: the project; the default is that of wandb.
        name: what the run is called.
        id: by which it is found again; wandb makes one up if there is none.
        facts: of batches, such as "loss" or "grad_norm".
        every: of which batches: those whose number is a multiple of this.
        hyper: the names of hyper-parameters, which are written with each epoch.
        config: settings of your own.
        **init: further arguments of `wandb.init`, such as mode, dir, entity or tags.

    Raises:
        ModuleNotFoundError: wandb is not installed.
        TypeError, ValueError: an argument makes no sense.
    """
    selection = Selection.checked(facts, every, hyper, config)
    return WandbRun(selection, id, {"reinit": "create_new", **init, "project": project, "name": name})


class WandbRun(Tracker):
    """The sink that `wandb` makes.

    Attributes:
        run_id: of the run; None before there is one.
    """

    def __init__(self, selection: Selection, run_id: str | None, init: Mapping[str, object]) -> None:
        super().__init__(selection)
        self._wandb = from_extra("wandb", "wandb", "wandb(…)")
        self._given_id = self.run_id = run_id
        self._init = init

    def begin_run(self, state: State, config: Mapping[str, Setting], resumed: bool) -> None:
        how = {"id": self.run_id, "resume": "allow"} if resumed and self.run_id else {"id": self._given_id}
        self._run = self._wandb.init(**{**how, **self._init})
        self.run_id = self._run.id
        self._run.config.update(dict(config), allow_val_change=True)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, point: Point) -> None:
        self._run.log({**point.values, "epoch": point.epoch, "step": point.step})

    def end_run(self, ending: Ending) -> None:
        self._run.summary["ended"] = ending.text
        if ending.phase is Phase.SUSPENDED:
            self._run.mark_preempting()
        self._run.finish(exit_code=EXIT_CODE.get(ending.phase, 130))
