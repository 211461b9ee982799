"""The shell: what is printed, where it goes, and the exit status."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fsm_train import Callback, Phase, State, Transition, on, run, start
from fsm_train.callbacks import early_stopping, schedule
from fsm_train.cli import main
from fsm_train.schedules import piecewise, warmup

from .eventlog.log_files import forged, index, library, logged, smoothed, workload


@pytest.fixture
def log(tmp_path: Path) -> str:
    logged(tmp_path / "run.jsonl", epochs=20)
    return str(tmp_path / "run.jsonl")


@pytest.fixture
def other(tmp_path: Path) -> str:
    logged(tmp_path / "other.jsonl", [*library()[:3], early_stopping(patience=1)], epochs=20)
    return str(tmp_path / "other.jsonl")


Captured = pytest.CaptureFixture[str]


def test_show_is_a_page(log: str, capsys: Captured) -> None:
    """The plan, the callbacks as the calls that make them, a row an epoch, curves, and why it ended."""
    assert main(["show", log]) == 0

    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert lines[0] == "plan       epochs 20, seed 0"
    assert lines[1] == "callbacks  accumulate(every=2, drop_last=False, weight='batch_size')"
    assert lines[4].startswith("           early_stopping(monitor='valid_loss', patience=3, ")
    assert lines[6].split() == ["epoch", "step", "train_loss", "valid_loss", "lr"]
    assert lines[7].split() == ["1", "2", "0.5866", "3", "0.02575"]
    assert [line for line in lines if line.startswith("valid_loss")] == ["valid_loss  █▅▆▆▁▁▂▂  3 to 1.3"]
    assert (
        lines[-1] == "done after 8 epochs and 16 steps: early_stopping: valid_loss has not improved on 1.0 for 3 epochs"
    )


def test_show_as_json(log: str, capsys: Captured) -> None:
    """The same as data."""
    assert main(["show", log, "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["plan"] == {"epochs": 20, "max_steps": None, "seed": 0}
    assert [row["valid_loss"] for row in found["epochs"]] == [3.0, 2.0, 2.5, 2.4, 1.0, 1.1, 1.2, 1.3]
    assert (found["phase"], found["lines"]) == ("done", 76)


def _plan_of_3(path: Path) -> None:
    run(start(workload(), epochs=3), log=path)


def _steps(path: Path) -> None:
    run(start(workload(), max_steps=1), log=path)


def _failed(path: Path) -> None:
    @on(Phase.BATCH_END)
    def breaks(state: State) -> None:
        raise RuntimeError("oops")

    with pytest.raises(Exception, match="oops"):
        run(start(workload(), epochs=3), [breaks], log=path)


def _cut(path: Path) -> None:
    _plan_of_3(path)
    forged(path, lambda lines: lines.__delitem__(slice(index(lines, "epoch_end", 2) + 1, None)))


def _only_a_header(path: Path) -> None:
    _plan_of_3(path)
    forged(path, lambda lines: lines.__delitem__(slice(1, None)))


def _twice(path: Path) -> None:
    _plan_of_3(path)
    _plan_of_3(path)


def _stopped(path: Path) -> None:
    from fsm_train import Flag

    @on(Phase.EPOCH_END)
    def stops(state: State) -> Transition:
        return Transition(flags=Flag.SUSPEND)

    run(start(workload(), epochs=3), [stops], log=path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (_plan_of_3, "done: all of the 3 epochs of the plan"),
        (_steps, "done: all of the 1 step of the plan"),
        (_failed, "failed after 0 epochs and 1 step: CallbackError: callback 'breaks'"),
        (_cut, "under way, or cut short: the log ends at epoch_end, after 2 epochs and 8 steps"),
        (_only_a_header, "nothing has happened yet"),
        (_twice, "runs       1 call of run, 1 call superseded"),
        (_stopped, "suspended after 1 epoch and 4 steps: stops"),
    ],
)
def test_show_says_how_it_ended(make: Any, sentence: str, tmp_path: Path, capsys: Captured) -> None:
    """Whatever the end was, or that there was none yet."""
    make(tmp_path / "run.jsonl")

    assert main(["show", str(tmp_path / "run.jsonl")]) == 0
    assert sentence in capsys.readouterr().out
    assert main(["show", str(tmp_path / "run.jsonl"), "--json"]) == 0


def test_show_writes_settings_as_they_were_typed(tmp_path: Path, capsys: Captured) -> None:
    """Schedules, mappings, tuples, names that were given, and callbacks of one's own."""
    rates = {"lr": piecewise({0: 1.0, 5: 0.5}), "momentum": warmup(3)}
    callbacks: list[Callback[Any]] = [
        schedule(**rates, name="rates"),
        smoothed,
        Callback("odd", (Phase.EPOCH_END,), lambda *_: None, params={"a": {1: 2}, "b": (1,), "c": print, "d": "x"}),
    ]
    from fsm_train import Scripted

    run(start(Scripted(hyper={"lr": (0.1, 0.2), "momentum": 0.9}), epochs=1), callbacks, log=tmp_path / "run.jsonl")

    main(["show", str(tmp_path / "run.jsonl")])

    shown = capsys.readouterr().out
    assert "schedule(by='step', lr=piecewise(points=((0, 1.0), (5, 0.5))), " in shown
    assert "start=0.01)) as 'rates'" in shown
    assert "smoothed, at batch_end" in shown
    assert "odd(a={1: 2}, b=(1,), c=<built-in function print>, d='x')" in shown
    assert shown.splitlines()[-5].split()[-1] == "0.08..0.16"


def test_names_from_a_log_cannot_move_the_cursor(tmp_path: Path, capsys: Captured) -> None:
    """Control characters in names and reasons are written out, in every command."""
    from fsm_train import Flag

    evil = "\x1b]0;gotcha\x07\x1b[2J\u202eesrever"

    @on(Phase.EPOCH_END, name=evil)
    def stops(state: State) -> Transition:
        return Transition(flags=Flag.STOP_TRAINING, reason=evil)

    path = str(tmp_path / "run.jsonl")
    run(start(workload(), epochs=3), [stops], log=path)
    _plan_of_3(tmp_path / "plain.jsonl")

    for arguments in (["show", path], ["tail", path], ["diff", path, str(tmp_path / "plain.jsonl")]):
        main(arguments)
        shown = capsys.readouterr().out
        assert not {"\x1b", "\x07", "\u202e"} & set(shown)
        assert "\\x1b]0;gotcha\\x07\\x1b[2J\\u202eesrever" in shown
    assert main(["replay", path]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_replay_agrees_or_differs(log: str, capsys: Captured) -> None:
    """Exit 0 and 1, with the difference as a sentence or as JSON."""
    assert main(["replay", log]) == 0
    assert capsys.readouterr().out == "agrees: 75 lines, to done after 8 epochs and 16 steps\n"

    forged(Path(log), lambda lines: lines[0]["callbacks"][3]["params"].update(patience=2))
    assert main(["replay", log]) == 1
    assert "callback 'early_stopping': recorded" in capsys.readouterr().out
    assert main(["replay", log, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["divergence"]["callback"], found["divergence"]["epoch"]) == (False, "early_stopping", 4)


def test_callbacks_are_imported_from_where_they_are_typed(
    log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """A list, a function that gives one, or a single callback; from the folder one is in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_for_the_cli.py").write_text(
        "from tests.eventlog.log_files import library\n"
        "as_list = library()\n"
        "def as_function():\n    return library()\n"
        "single = library()[0]\n"
        "wrong = [1]\n"
    )

    for name in ("as_list", "as_function"):
        assert main(["replay", log, "--callbacks", f"mine_for_the_cli:{name}"]) == 0
    assert main(["replay", log, "--callbacks", "mine_for_the_cli:single"]) == 1
    capsys.readouterr()
    for name, sentence in (
        ("mine_for_the_cli:wrong", "it is no list of callbacks"),
        ("mine_for_the_cli:missing", "has no attribute 'missing'"),
        ("not_there_at_all:x", "No module named 'not_there_at_all'"),
        ("mine_for_the_cli", "write it as module:name"),
    ):
        assert main(["replay", log, "--callbacks", name]) == 2
        assert sentence in capsys.readouterr().err
    assert str(tmp_path) not in sys.path


def test_what_if_is_a_table(log: str, capsys: Captured) -> None:
    """Ranges, lists and values; exit 1 where something is refused."""
    assert main(["what-if", log, "early_stopping.patience=1..4"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:2] == ["early_stopping.patience", "verdict"]
    assert [row[:4] for row in rows[1:]] == [
        ["1", "exact", "epoch", "3"],
        ["2", "exact", "epoch", "4"],
        ["3", "exact", "epoch", "8"],
        ["4", "censored", "-", "1"],
    ]

    assert main(["what-if", log, "early_stopping.patience=1,2", "early_stopping.mode=min", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["settings"]["early_stopping.patience"] for row in found] == [1, 2]
    assert found[0]["best"] == {"monitor": "valid_loss", "value": 2.0, "epoch": 2}

    assert main(["what-if", log, "clip_grad_norm.max_norm=2.0", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["verdict"] == "refused"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("patience=3", "write it as early_stopping.patience=1..10"),
        ("early_stopping.patience", "write it as"),
        ("nobody.patience=3", "there is no callback 'nobody' in this log: there are accumulate, clip_grad_norm"),
        ("early_stopping.patience=-3", "patience=-3: it is a whole number from 0"),
        ("early_stopping.nonsense=3", "unexpected keyword argument 'nonsense'"),
    ],
)
def test_what_cannot_be_asked_says_so(setting: str, sentence: str, log: str, capsys: Captured) -> None:
    """On standard error, with exit 2."""
    assert main(["what-if", log, setting]) == 2
    found = capsys.readouterr()
    assert (found.out, sentence in found.err) == ("", True)


def test_diff_shows_the_first_difference(log: str, other: str, capsys: Captured) -> None:
    """Exit 0 where there is none."""
    assert main(["diff", log, log]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["diff", log, other]) == 1
    first, then = capsys.readouterr().out.splitlines()
    assert first.startswith('callbacks, early_stopping: {"patience":3} against {"patience":1}, at header')
    assert then.startswith("what happened then: decisions, early_stopping")
    assert main(["diff", log, other, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["then"]["kind"] == "decisions"
    assert main(["diff", log, log, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) is None


def test_tail_follows_a_training_that_is_under_way(log: str, tmp_path: Path, capsys: Captured) -> None:
    """Lines come as they are written, torn ones when they are whole, to the end of the training."""
    whole = Path(log).read_bytes()
    live = tmp_path / "live.jsonl"
    live.write_bytes(whole[:5000])

    def write_on() -> None:
        for end in (9000, len(whole)):
            time.sleep(0.3)
            live.write_bytes(whole[:end])

    writer = threading.Thread(target=write_on)
    writer.start()
    assert main(["tail", str(live)]) == 0
    writer.join()

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [["epoch_end", "epoch", "1"], ["epoch_end", "epoch", "2"]]
    assert lines[-1].startswith("done          epoch 8  batch 4  step 16  early_stopping: valid_loss has not improved")
    assert len(lines) == 9


def test_tail_passes_over_what_others_write(log: str, tmp_path: Path, capsys: Captured) -> None:
    """A file that a logger of somebody's own writes has other events in it."""
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_bytes(b'{"event":"hello"}\n' + Path(log).read_bytes())

    assert main(["tail", str(mixed)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9


def test_tail_of_everything(log: str, capsys: Captured) -> None:
    """Each line: what was asked for, or that something was noted; as text or as JSON."""
    assert main(["tail", "--all", log]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 75
    assert "loss_end      epoch 0  batch 0  step 0  accumulate: SKIP_STEP|SKIP_ZERO WeighLoss" in lines
    assert "clip_grad_norm: ClipGradNorm  schedule: lr=0.001" in lines[4]
    assert main(["tail", "--json", log]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["phase"] for line in found] == ["epoch_end"] * 8 + ["done"]
    assert found[0]["metrics"]["valid_loss"] == 3.0


def test_plot_draws_the_curves(log: str, other: str, tmp_path: Path, capsys: Captured) -> None:
    """Of one or several trainings, with values that are not finite left out."""
    picture = tmp_path / "curves.png"

    for logs in ([log], [log, other]):
        assert main(["plot", *logs, "-o", str(picture)]) == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{picture}\n" * 2


def test_plot_says_what_it_cannot(log: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to draw, a kind of picture that nobody knows, or matplotlib is not there."""
    _only_a_header(tmp_path / "empty.jsonl")
    for logs, output, sentence in (
        ([str(tmp_path / "empty.jsonl")], "x.png", "there is no finished epoch to draw"),
        ([log], "x.nonsense", "not supported"),
    ):
        assert main(["plot", *logs, "-o", str(tmp_path / output)]) == 2
        assert sentence in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "fsm_train.eventlog.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["plot", log, "-o", "x.png"]) == 2
    assert "pip install 'fsm-train[plot]'" in capsys.readouterr().err


def test_graph_draws_the_machine(capsys: Captured) -> None:
    """As text, for Mermaid, for Graphviz, or as JSON."""
    assert main(["graph"]) == 0
    assert "SETUP              resuming" in capsys.readouterr().out
    assert main(["graph", "--format", "mermaid"]) == 0
    assert capsys.readouterr().out.startswith("stateDiagram-v2")
    assert main(["graph", "--format", "dot"]) == 0
    drawn = capsys.readouterr().out
    assert drawn.startswith("digraph machine {")
    assert '    BATCH_BEGIN -> BATCH_END [label="[SKIP_BATCH]"]' in drawn
    assert "    FETCHED [shape=diamond]" in drawn
    assert main(["graph", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["edges"][0][0] == "READY"


def test_graph_shows_who_watches(capsys: Captured) -> None:
    """The callbacks at their phases, and with --watched only those phases."""
    for shape, note in (("text", "EPOCH_END          early_stopping"), ("mermaid", "note right of EPOCH_END : early")):
        assert main(["graph", "--format", shape, "--callbacks", "fsm_train.callbacks:early_stopping"]) == 0
        assert note in capsys.readouterr().out
    watched = ["--callbacks", "fsm_train.callbacks:early_stopping", "--watched"]
    assert main(["graph", "--format", "dot", *watched]) == 0
    drawn = capsys.readouterr().out
    assert '    EPOCH_END [label="EPOCH_END\\nearly_stopping"]' in drawn
    assert "    EPOCH_END -> EPOCH_END" in drawn
    assert "BATCH" not in drawn
    assert main(["graph", "--format", "mermaid", *watched]) == 0
    assert "<<choice>>" not in capsys.readouterr().out


@pytest.mark.parametrize("command", [["show"], ["replay"], ["tail"], ["what-if", "a.b=1"], ["plot", "-o", "x.png"]])
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
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_python_m_is_the_same_and_imports_no_torch(log: str) -> None:
    """`python -m fsm_train`, with torch made unimportable."""
    assert _shell("replay", log).stdout.startswith("agrees: 75 lines")
    code = "import sys; sys.modules['torch'] = None; from fsm_train.cli import main; sys.exit(main(sys.argv[1:]))"
    for arguments in (["show", log], ["what-if", log, "early_stopping.patience=2"], ["diff", log, log], ["graph"]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


def test_a_reader_who_has_seen_enough_is_no_error(log: str) -> None:
    """As with `fsm-train tail --all LOG | head -1`."""
    command = f"{sys.executable} -m fsm_train tail --all {log} | head -1; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)

    assert (found.returncode, found.stderr, found.stdout.count("\n")) == (0, "", 1)


def test_ctrl_c_ends_a_tail(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the status that shells give to it."""

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    forged(Path(log), lambda lines: lines.pop())
    monkeypatch.setattr(time, "sleep", interrupted)

    assert main(["tail", log]) == 130


def test_colours_are_for_terminals_that_want_them(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file gets none, and NO_COLOR is respected."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, no_color, coloured in ((Terminal(), "", True), (Terminal(), "1", False), (io.StringIO(), "", False)):
        monkeypatch.setitem(os.environ, "NO_COLOR", no_color)
        monkeypatch.setattr(sys, "stdout", stream)
        main(["show", log])
        assert ("\x1b[1m" in stream.getvalue()) == coloured


def test_help_says_what_the_exit_status_means(capsys: Captured) -> None:
    """And an unknown command is 2, as argparse has it."""
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "0 it agrees, 1 it differs, is refused or is damaged, 2 it cannot be read" in said
    with pytest.raises(SystemExit) as caught:
        main(["nonsense"])
    assert caught.value.code == 2
