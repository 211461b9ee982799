"""`fsm-train`: what can be asked of a log, or of a folder of checkpoints, from the shell.

Rules of this file: data goes to standard output and messages to standard error. The exit status is
0 where everything agrees, 1 where something differs (for what-if, is refused; for checkpoints, is
damaged), and 2 where something cannot be read. Code of a user is imported for --callbacks alone, and
only what was typed.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import orjson

from .core.callback import Callback
from .core.errors import FsmTrainError
from .core.phase import FINAL, Phase
from .core.table import TABLE
from .wording import escaped, pluralize

if TYPE_CHECKING:
    from .checkpoints.manifest import Verified
    from .eventlog.sweeps import Sweep

AGREES, DIFFERS, UNREADABLE = 0, 1, 2


class AskedWronglyError(FsmTrainError):
    """What was typed does not fit the log, or cannot be imported."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; returns the exit status."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        status = command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return AGREES
    except KeyboardInterrupt:
        return 130
    except (FsmTrainError, OSError) as error:
        print(f"fsm-train: {escaped(error)}", file=sys.stderr)
        return UNREADABLE
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fsm-train",
        description="Look at, replay, vary and compare the logs of trainings, and verify their checkpoints.",
        epilog="Exit status: 0 it agrees, 1 it differs, is refused or is damaged, 2 it cannot be read.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text)
        found.set_defaults(command=command)
        found.add_argument("--json", action="store_true", help="write JSON")
        return found

    callbacks = {"metavar": "MODULE:NAME", "help": "import the callbacks from there: a list, or a function giving one"}
    show = add("show", _show, "Show the epochs of a training, its callbacks, and why it ended.")
    show.add_argument("log")
    replay = add("replay", _replay, "Decide everything again, and show the first decision that differs.")
    replay.add_argument("log")
    replay.add_argument("--callbacks", **callbacks)  # type: ignore[arg-type]
    what_if = add("what-if", _what_if, "Say when a training would have ended with other settings of its callbacks.")
    what_if.add_argument("log")
    what_if.add_argument("settings", nargs="+", metavar="CALLBACK.SETTING=VALUES", help="1..10, or 1,2,5, or a value")
    diff = add("diff", _diff, "Show the first difference of two trainings, and of what kind it is.")
    diff.add_argument("a")
    diff.add_argument("b")
    tail = add("tail", _tail, "Follow a training that is under way.")
    tail.add_argument("log")
    tail.add_argument("--all", action="store_true", help="show each line, not only epochs and the end")
    checkpoints = add("checkpoints", _checkpoints, "List the checkpoints in a folder, and verify each byte of them.")
    checkpoints.add_argument("folder", help="the folder that they are in, or one of them")
    plot = add("plot", _plot, "Draw the metrics of trainings over the epochs (needs the extra: plot).")
    plot.add_argument("logs", nargs="+", metavar="LOG")
    plot.add_argument("-o", "--output", required=True, help="the picture: .png, .svg, .pdf")
    graph = add("graph", _graph, "Draw the machine.")
    graph.add_argument("--format", choices=("mermaid", "dot", "text"), default="text")
    graph.add_argument("--callbacks", **callbacks)  # type: ignore[arg-type]
    graph.add_argument("--watched", action="store_true", help="only the phases that the callbacks are consulted at")
    return parser


# ---------------------------------------------------------------------------------- the commands


def _show(options: argparse.Namespace) -> int:
    from .eventlog.render import as_json, as_text, summarize

    summary = summarize(options.log)
    if options.json:
        _write_json(as_json(summary))
        return AGREES
    for line in as_text(summary):
        print(_bold(line) if line.lstrip().startswith("epoch ") else line)
    return AGREES


def _replay(options: argparse.Namespace) -> int:
    from .eventlog.replayer import replay

    found = replay(options.log, _imported(options.callbacks) if options.callbacks else None)
    if options.json:
        divergence = None if found.divergence is None else attrs.asdict(found.divergence)
        _write_json({"ok": found.ok, "lines": found.lines, "divergence": divergence})
    elif found.ok:
        state = found.state
        where = f"after {pluralize(state.epoch, 'epoch')} and {pluralize(state.step, 'step')}"
        print(f"agrees: {found.lines} lines, to {state.phase.value} {where}")
    else:
        print(f"differs: {escaped(found.divergence)}")
    return AGREES if found.ok else DIFFERS


def _what_if(options: argparse.Namespace) -> int:
    table = _sweep(options.log, options.settings)
    if options.json:
        _write_json(
            [
                {
                    "settings": setting,
                    **{name: getattr(answer, name) for name in ("verdict", "stopped_at", "line", "why")},
                    "best": None if answer.best is None else attrs.asdict(answer.best),
                }
                for setting, answer in table
            ]
        )
    else:
        for line in str(table).split("\n"):
            print(escaped(line))
    return DIFFERS if any(answer.verdict == "refused" for _, answer in table) else AGREES


def _sweep(log: str, settings: Sequence[str]) -> Sweep:
    """What would have come of each combination of these settings."""
    from .encoding import CannotDecodeError
    from .eventlog.counterfactual import what_if
    from .eventlog.from_header import remade
    from .eventlog.recorded import Recorded
    from .eventlog.sweeps import Sweep

    specs = {spec["name"]: spec for spec in Recorded(log).header.body["callbacks"]}
    ranges = dict(_range(setting, specs) for setting in settings)
    rows = []
    for values in itertools.product(*ranges.values()):
        changes: dict[str, dict[str, object]] = {}
        for (name, key), value in zip(ranges, values, strict=True):
            changes.setdefault(name, {})[key] = value
        try:
            given = [remade(specs[name], **changed) for name, changed in changes.items()]
        except (CannotDecodeError, TypeError, ValueError) as error:
            raise AskedWronglyError(f"{', '.join(changes)} cannot be made with {changes}: {error}") from error
        row = {".".join(which): value for which, value in zip(ranges, values, strict=True)}
        rows.append((row, what_if(log, given)))
    return Sweep(tuple(rows))


def _range(setting: str, specs: Mapping[str, Any]) -> tuple[tuple[str, str], list[object]]:
    """The callback, its setting and the values that were typed as CALLBACK.SETTING=VALUES."""
    which, equals, values = setting.partition("=")
    name, dot, key = which.rpartition(".")
    if not (equals and dot and name and key and values):
        raise AskedWronglyError(f"{setting!r}: write it as early_stopping.patience=1..10")
    if name not in specs:
        there_are = ", ".join(map(str, specs)) or "none"
        raise AskedWronglyError(f"there is no callback {name!r} in this log: there are {there_are}")
    first, dots, last = values.partition("..")
    if dots and first.lstrip("-").isdigit() and last.lstrip("-").isdigit():
        return (name, key), list(range(int(first), int(last) + 1))
    return (name, key), [_value(value) for value in values.split(",")]


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _diff(options: argparse.Namespace) -> int:
    from .eventlog.comparison import diff

    found = diff(options.a, options.b)
    if options.json:
        _write_json(None if found is None else attrs.asdict(found))
    elif found is None:
        print("no difference")
    else:
        for line in str(found).split("\n"):
            print(escaped(line))
    return AGREES if found is None else DIFFERS


def _tail(options: argparse.Namespace) -> int:
    from .eventlog.render import line_as_text

    for line in _followed(Path(options.log)):
        if options.all or line.phase in (Phase.EPOCH_END, *FINAL):
            if options.json:
                _write_json({**_plain(attrs.asdict(line, recurse=False)), "phase": line.phase.value})
            else:
                print(line_as_text(line))
            sys.stdout.flush()
    return AGREES


def _followed(path: Path, interval: float = 0.2) -> Iterator[Any]:
    """The lines of a log as they are written, to the end of the training."""
    from .eventlog.entries import Checked
    from .eventlog.reader import Line, record_of

    checked, number, last = Checked(path), 0, None
    with path.open("rb") as file:
        while True:
            here = file.tell()
            raw = file.readline()
            if raw.endswith(b"\n"):
                number += 1
                entry = checked.entry(number, raw)
                if entry is not None:
                    last = record_of(entry, str(path))
                    if isinstance(last, Line):
                        yield last
                continue
            if isinstance(last, Line) and last.phase in FINAL:
                return
            file.seek(here)
            time.sleep(interval)


def _checkpoints(options: argparse.Namespace) -> int:
    from .checkpoints.manifest import verified
    from .core.errors import NoCheckpointError

    found = verified(Path(options.folder))
    if not found:
        raise NoCheckpointError(f"there is no checkpoint in {options.folder}")
    # It is from there that a training goes on, whatever lies beside it.
    newest = next((each for each in found if not each.trouble), None)
    if options.json:
        _write_json(
            {
                "checkpoints": [_told(each) for each in found],
                "newest_good": None if newest is None else newest.path.name,
            }
        )
    else:
        width = max(len(escaped(each.path.name)) for each in found)
        for each in found:
            print(f"{escaped(each.path.name):<{width}}  {_seen(each)}{'  newest good' if each is newest else ''}")
            if each.trouble:
                print(f"  {escaped(each.trouble)}")
    return DIFFERS if any(each.trouble for each in found) else AGREES


def _told(found: Verified) -> dict[str, Any]:
    """A checkpoint as data; what only its manifest could say is null where that cannot be read."""
    there = found.checkpoint
    return {
        "name": found.path.name,
        "good": not found.trouble,
        "trouble": found.trouble,
        "iteration": None if there is None else there.place.iteration,
        "step": None if there is None else there.place.step,
        "written": None if there is None else there.place.written,
        "bytes": None if there is None else there.size,
    }


def _seen(found: Verified) -> str:
    """A checkpoint in a few words."""
    if found.checkpoint is None:
        return "damaged"
    place = found.checkpoint.place
    written = datetime.fromtimestamp(place.written, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    where = f"step {place.step:>8}  {written}  {found.checkpoint.size / 1e6:10.1f} MB"
    return f"{where}  {'damaged' if found.trouble else 'good'}"


def _plot(options: argparse.Namespace) -> int:
    from .eventlog.render import summarize

    summaries = {log: summarize(log) for log in options.logs}
    try:
        from .eventlog.plots import plot
    except ModuleNotFoundError as error:
        raise AskedWronglyError(f"plot needs {error.name}: pip install 'fsm-train[plot]'") from error
    try:
        plot({Path(log).name: summary.epochs for log, summary in summaries.items()}, options.output)
    except ValueError as error:
        raise AskedWronglyError(f"{options.output}: {error}") from error
    print(options.output)
    return AGREES


def _graph(options: argparse.Namespace) -> int:
    from .core import diagram

    callbacks = _imported(options.callbacks) if options.callbacks else ()
    table = TABLE
    if options.watched:
        table = diagram.contracted({phase for callback in callbacks for phase in callback.at})
    consulted = {
        phase.name: [callback.name for callback in callbacks if phase in callback.at]
        for phase in Phase
        if any(phase in callback.at for callback in callbacks)
    }
    if options.json:
        _write_json({"edges": [str(edge).split(None, 1) for edge in table], "consulted": consulted})
        return AGREES
    draw = {"mermaid": diagram.mermaid, "dot": diagram.dot, "text": diagram.text}[options.format]
    print(draw(table, consulted))
    return AGREES


# ------------------------------------------------------------------------------------- helpers


def _imported(name: str) -> list[Callback[Any]]:
    """The callbacks that are typed as module:name."""
    module, colon, attribute = name.partition(":")
    if not colon:
        raise AskedWronglyError(f"--callbacks {name}: write it as module:name")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise AskedWronglyError(f"--callbacks {name}: {error}") from error
    finally:
        sys.path.pop(0)
    if callable(found) and not isinstance(found, Callback):
        found = found()
    callbacks = [found] if isinstance(found, Callback) else list(found)
    if not all(isinstance(callback, Callback) for callback in callbacks):
        raise AskedWronglyError(f"--callbacks {name}: it is no list of callbacks")
    return callbacks


def _plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
    from .encoding import encode

    return {name: value if isinstance(value, (dict, list)) else encode(value) for name, value in mapping.items()}


def _write_json(value: object) -> None:
    from .encoding import encode

    print(orjson.dumps(value, default=encode).decode())


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text
