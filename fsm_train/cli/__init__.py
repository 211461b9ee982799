"""`fsm-train`: commands for logs of trainings and for folders of checkpoints. There is one file per command.

Rules of this package: data goes to standard output and messages to standard error. The exit status is in status.py.
Only --callbacks imports code of the user, and only the module that is typed there.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Collection, Sequence

from ..core.errors import FsmTrainError
from ..wording import escaped
from .standard_input import with_standard_input
from .status import AGREES, INTERRUPTED, UNREADABLE

COMMANDS = {
    "show": "Show the epochs of a training, its callbacks, and why it ended.",
    "replay": "Decide everything again, and show the first decision that differs.",
    "what-if": "Say when a training would have ended with other settings of its callbacks.",
    "diff": "Show the first difference of two trainings, and of what kind it is.",
    "diagnose": "Look for known illnesses of a training in its log.",
    "tail": "Follow a training that is under way.",
    "checkpoints": "List the checkpoints in a folder, and verify each byte of them.",
    "weights": "Write the weights of a checkpoint to a file, for others (needs torch).",
    "plot": "Draw the metrics of trainings over the epochs (needs the extra: plot).",
    "view": "Make a page on which one looks at trainings line by line: curves, decisions, states.",
    "export": "Fill a table or a tracker from a log: csv, tensorboard, mlflow, wandb (each needs its extra).",
    "graph": "Draw the machine.",
    "completion": "Write the script that lets a shell complete commands and options.",
}
"""The commands and their help. The module of a command has `add_arguments(parser)` and `run(options) -> status`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; the default is the arguments of the process.

    Returns:
        The exit status.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not know each character of a log
    options = parsers(arguments)[0].parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        status = run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return AGREES
    except KeyboardInterrupt:
        return INTERRUPTED
    except (FsmTrainError, OSError, MemoryError) as error:
        print(f"fsm-train: {escaped(error) or 'there is too little memory for it'}", file=sys.stderr)
        return UNREADABLE
    return status


def parsers(arguments: Collection[str]) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of all commands, and that of each by its name.

    Only modules of commands that are among the arguments are imported. The parsers of others know no argument.
    """
    parser = argparse.ArgumentParser(
        prog="fsm-train",
        description="Look at, replay, vary and compare the logs of trainings; verify checkpoints, and write weights.",
        epilog="A log that is called - is standard input. "
        "Exit status: 0 it agrees, 1 it differs, is refused, is damaged or is ill, 2 it cannot be read.",
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    each: dict[str, argparse.ArgumentParser] = {}
    for name, text in COMMANDS.items():
        each[name] = command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="write JSON")
        if name in arguments:
            module = importlib.import_module(f".{name.replace('-', '_')}", __name__)
            module.add_arguments(command)
            reads_pipes = getattr(module, "READS_STANDARD_INPUT", False)
            command.set_defaults(run=module.run if reads_pipes else with_standard_input(module.run))
    return parser, each


class _ShowVersion(argparse.Action):
    """Print the version. argparse's own action takes it as text, and importlib.metadata is slow to import."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"fsm-train {version('fsm-train')}")
        parser.exit()
