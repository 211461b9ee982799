"""What all commands share: the shell, the exit status, and where text goes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from fsm_train import Flag, Phase, State, Transition, on, run, start
from fsm_train.cli import COMMANDS, main, show
from fsm_train.cli.output import write_json

from ..eventlog.log_files import forged, workload
from .logs import three_epochs

Captured = pytest.CaptureFixture[str]


def test_names_from_a_log_cannot_move_the_cursor(tmp_path: Path, capsys: Captured) -> None:
    """Control characters in names and reasons are written out, in every command."""
    evil = "\x1b]0;gotcha\x07\x1b[2J\u202eesrever"

    @on(Phase.EPOCH_END, name=evil)
    def stops(state: State) -> Transition:
        return Transition(flags=Flag.STOP_TRAINING, reason=evil)

    path = str(tmp_path / "run.jsonl")
    run(start(workload(), epochs=3), [stops], log=path)
    three_epochs(tmp_path / "plain.jsonl")

    for arguments in (["show", path], ["tail", path], ["diff", path, str(tmp_path / "plain.jsonl")]):
        main(arguments)
        shown = capsys.readouterr().out
        assert not {"\x1b", "\x07", "\u202e"} & set(shown)
        assert "\\x1b]0;gotcha\\x07\\x1b[2J\\u202eesrever" in shown
    assert main(["replay", path]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["show"], ["replay"], ["diagnose"], ["tail"], ["what-if", "a.b=1"], ["plot", "-o", "x.png"]]
)
def test_what_cannot_be_read_is_2(command: list[str], tmp_path: Path, capsys: Captured) -> None:
    """With a sentence on standard error, and nothing on standard output."""
    name, *options = command
    for path, sentence in ((tmp_path / "missing.jsonl", "No such file"), (tmp_path / "bad.jsonl", "it is no JSON")):
        (tmp_path / "bad.jsonl").write_bytes(b"\xff\n")
        assert main([name, str(path), *options]) == 2
        found = capsys.readouterr()
        assert (found.out, found.err.startswith("fsm-train: "), sentence in found.err) == ("", True, True)


def _shell(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fsm_train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, **options)


@pytest.mark.usefixtures("measured")
def test_python_m_is_the_same_and_imports_no_torch(log: str) -> None:
    """`python -m fsm_train`, with torch made unimportable."""
    assert _shell("replay", log).stdout.startswith("agrees: 75 lines")
    code = "import sys; sys.modules['torch'] = None; from fsm_train.cli import main; sys.exit(main(sys.argv[1:]))"
    for arguments in (
        ["show", log],
        ["diagnose", log],
        ["what-if", log, "early_stopping.patience=2"],
        ["diff", log, log],
        ["graph"],
    ):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


def test_a_reader_who_has_seen_enough_is_no_error(log: str) -> None:
    """As with `fsm-train tail --all LOG | head -1`."""
    command = f"{sys.executable} -m fsm_train tail --all {log} | head -1; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=180)

    assert (found.returncode, found.stderr, found.stdout.count("\n")) == (0, "", 1)


def test_help_says_what_the_exit_status_means(capsys: Captured) -> None:
    """And an unknown command is 2, as argparse has it."""
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "0 it agrees, 1 it differs, is refused, is damaged or is ill, 2 it cannot be read" in said
    with pytest.raises(SystemExit) as caught:
        main(["nonsense"])
    assert caught.value.code == 2


def test_help_names_each_command(capsys: Captured) -> None:
    """And the help of a command is its own."""
    with pytest.raises(SystemExit):
        main(["--help"])
    assert set(COMMANDS) <= set(capsys.readouterr().out.split())
    for name in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: fsm-train {name} [-h] [--json]")


def test_version_is_that_of_the_package(capsys: Captured) -> None:
    """As installed."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"fsm-train {version('fsm-train')}\n"


def test_show_imports_nothing_of_other_commands(log: str) -> None:
    """A small log is shown at once: neither what replays nor a large library is imported for it."""
    code = "import sys; from fsm_train.cli import main; main(['show', sys.argv[1]]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, log], capture_output=True, text=True, check=True)

    heavy = {"torch", "numpy", "rich", "structlog", "matplotlib", "importlib.metadata", "fsm_train.eventlog.replayer"}
    assert heavy.isdisjoint(done.stdout.split())


@pytest.mark.usefixtures("measured")
def test_a_terminal_that_knows_few_characters_gets_what_it_can(log: str) -> None:
    """Bars of a curve are escaped, and JSON uses its own escapes, so that it is still JSON."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    forged(Path(log), lambda lines: lines[-1].update(reason="zu spät"))

    page = _shell("show", log, env=environment)
    data = _shell("show", "--json", log, env=environment)

    assert (page.returncode, page.stderr, "\\u2588" in page.stdout) == (0, "", True)
    assert (data.returncode, json.loads(data.stdout)["reason"]) == (0, "zu spät")


def test_what_json_has_no_form_for_is_written_all_the_same(log: str, capsys: Captured) -> None:
    """Whole numbers beyond 64 bits as a log has them, half a pair of UTF-16 escaped; in keys too."""
    write_json({"seed": 2**70, "name": "a\udcff", "more": [(-(2**63) - 1, "é")], "k\udcff": None})
    assert json.loads(capsys.readouterr().out) == {
        "seed": {"$int": str(2**70)},
        "name": "a\\udcff",
        "more": [[{"$int": str(-(2**63) - 1)}, "é"]],
        "k\\udcff": None,
    }

    def odd(lines: list[dict[str, Any]]) -> None:
        lines[0]["start"]["plan"]["seed"] = {"$int": str(2**70)}
        lines[-1]["reason"] = {"$str": "\\udcff"}

    forged(Path(log), odd)
    assert main(["show", "--json", log]) == 0
    assert json.loads(capsys.readouterr().out)["reason"] == "\\udcff"
    assert main(["show", log]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"plan       epochs 20, seed {2**70}"


def test_too_little_memory_is_a_sentence(log: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """As anything else that keeps a log from being read."""

    def too_little(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(show, "summarize", too_little)

    assert main(["show", log]) == 2
    assert capsys.readouterr().err == "fsm-train: there is too little memory for it\n"


def test_a_closed_pipe_is_no_error_and_nothing_more_is_written_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, where the reader is gone for certain."""

    class Closed(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

        def fileno(self) -> int:
            return file.fileno()

    with (tmp_path / "pipe").open("w") as file:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", Closed())
            assert main(["graph"]) == 0
        file.write("more")
    assert (tmp_path / "pipe").read_text() == ""
