"""`fsm-train export LOG KIND TARGET`: fill a tracker afterwards, through the sink that would have done it meanwhile."""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from .. import sinks
from ..core.facts import asked_at
from ..core.phase import BATCH_PHASES, FINAL, Phase
from ..core.state import State, replaced
from ..core.turns import Players
from ..core.values import Facts
from ..encoding import Json
from ..eventlog.entries import entries
from ..eventlog.entry import Entry
from ..eventlog.errors import LogError
from ..eventlog.lines import HEADER, decode_numbers, decode_plan, decode_state
from ..sinks.base import Guarded
from ..sinks.tracker import Tracker
from ..wording import escaped, pluralize
from .output import write_json
from .status import AGREES, UsageError

KINDS = ("csv", "tensorboard", "mlflow", "wandb")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log")
    parser.add_argument("kind", choices=KINDS, help="what to fill; all but csv need the extra of this name")
    parser.add_argument(
        "target",
        help="csv: the file; tensorboard: the folder of the run; mlflow: the URI of the server or database, or a file "
        "that ends in .db; wandb: the folder for an offline run, which wandb sync sends",
    )
    parser.add_argument(
        "--facts", type=_names, default=(), help="of batches, such as loss,grad_norm: where the log has them"
    )
    parser.add_argument("--every", type=int, default=1, help="of which batches: multiples of this number (default 1)")
    parser.add_argument("--hyper", type=_names, default=("lr",), help="hyper-parameters of each epoch (default lr)")
    parser.add_argument("--project", default="fsm_train", help="the project of wandb or the experiment of mlflow")
    parser.add_argument("--run", dest="run_name", help="the name of the run; by default that of the log")


def run(options: argparse.Namespace) -> int:
    log = Path(options.log)
    first, last = _headers(log)
    try:
        tracker = _tracker(options, log)
    except (ModuleNotFoundError, TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    try:
        epochs, missing = _fill(tracker, log, first, last)
    except (LogError, OSError):
        raise
    except Exception as error:  # a library refuses in its own way
        raise UsageError(f"{options.kind} refuses it: {type(error).__name__}: {error}") from error
    for fact in sorted(missing):
        print(
            f"fsm-train: the log has no {escaped(fact)} of batches: record({escaped(repr(fact))}) among the callbacks "
            "of a training puts it there",
            file=sys.stderr,
        )
    if options.json:
        write_json({"target": options.target, "epochs": epochs})
    else:
        print(escaped(f"{options.target}  {pluralize(epochs, 'epoch')}"))
    return AGREES


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _tracker(options: argparse.Namespace, log: Path) -> Tracker:
    """The sink that is to be filled."""
    wanted: dict[str, Any] = {"facts": options.facts, "every": options.every, "hyper": options.hyper}
    target, name = options.target, options.run_name or log.name.partition(".")[0]
    match options.kind:
        case "csv":
            return sinks.csv(target, **wanted)
        case "tensorboard":
            return sinks.tensorboard(target, **wanted)
        case "mlflow":
            uri = f"sqlite:///{target}" if target.endswith(".db") and "://" not in target else target
            return sinks.mlflow(options.project, run=name, tracking_uri=uri, **wanted)
        case _:
            return sinks.wandb(options.project, name=name, mode="offline", dir=target, **wanted)


def _headers(log: Path) -> tuple[Entry, Entry]:
    """The first and the last header that count.

    Raises:
        LogError: there is none.
    """
    counting = (entry for entry in entries(log) if entry.counts and entry.event == HEADER)
    first = next(counting, None)
    if first is None:
        raise LogError("no call of run in it counts", path=str(log))
    (last,) = deque((first, *counting), maxlen=1)
    return first, last


def _fill(tracker: Tracker, log: Path, first: Entry, last: Entry) -> tuple[int, frozenset[str]]:
    """Show a training to a sink, as it went: several calls of `run` are one.

    Returns:
        The number of its epochs, and the facts that the sink needs and the log does not have.
    """
    begin = attrs.evolve(_first_state(first, log), plan=decode_plan(last.body["start"]))
    callbacks: list[tuple[str, dict[str, Json]]] = [(spec["name"], spec["params"]) for spec in last.body["callbacks"]]
    is_due, epochs, missing = Guarded(tracker).due, 0, frozenset(tracker.needs)
    try:
        tracker.begin(begin, callbacks, resumed=False)
        for state, following in itertools.pairwise(itertools.chain(_states(log), [None])):
            assert state is not None
            if state.phase not in tracker.at or (state.phase in FINAL and following is not None):
                continue
            epochs += state.phase is Phase.EPOCH_END
            missing -= {fact for fact in state.facts if asked_at(fact) is state.phase}
            if is_due(0.0 if state.phase in BATCH_PHASES else math.inf, state.iteration):
                tracker.see(state, {})
    finally:
        tracker.close()
    return epochs, missing


def _states(log: Path) -> Iterator[State]:
    """The states of a log: of each line that counts, and READY for a header."""
    last: State | None = None
    for entry in entries(log):
        if not entry.counts:
            continue
        if last is None or entry.event == HEADER:
            state = _first_state(entry, log)
            last = state if last is None else replaced(state, {"step_hyper": last.step_hyper})
        else:
            try:
                state = decode_state(entry.body, Phase(entry.event), last)
                facts = Facts(decode_numbers(entry.facts))
            except ValueError as error:
                raise LogError(str(error), path=str(log), line=entry.number) from error
            # Hyper-parameters change only at a line, so a step since then had those of the line before.
            used = last.hyper if state.step > last.step else last.step_hyper
            last = replaced(state, {"facts": facts, "step_hyper": used})
        yield last


def _first_state(header: Entry, log: Path) -> State:
    """The first state of a call of `run`."""
    start = header.body["start"]
    try:
        players = Players.of(start.get("players", {}))
        plan = decode_plan(start)
        blank = State(Phase.READY, plan, has_valid=start["has_valid"], fetched=start["fetched"], players=players)
        return decode_state(start, Phase.READY, blank)
    except ValueError as error:
        raise LogError(str(error), path=str(log), line=header.number) from error
