"""The history in a log: a header adds what the lines before it do not have, in lines that can be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import structlog

from fsm_train import (
    EventLog,
    Flag,
    LogError,
    Phase,
    Recorded,
    State,
    Transition,
    diff,
    extend,
    on,
    read_log,
    replay,
    run,
    start,
    what_if,
)
from fsm_train.cli import main
from fsm_train.eventlog import Header, history
from fsm_train.eventlog.entry import Entry, entry_of
from fsm_train.eventlog.history import LoggedHistories, LoggedHistory, ended_epoch, shared_epochs
from fsm_train.testing.differences import same
from fsm_train.worlds.scripted import Scripted

from .log_files import Lines, forged, index, lines_of, smoothed, workload, write

ODD = ({"a": float("nan")}, {"a": -0.0}, {"a": 0.0}, {"a": float("inf"), "b": 2**70}, {}, {"ä": 1, "b": 5e-324})
"""Metrics that a log can easily get wrong."""


@on(Phase.EPOCH_END)
def leave(state: State) -> Transition:
    """Leave after each epoch."""
    return Transition(flags=Flag.SUSPEND)


def trained(epochs: int = 2, history: Any = None) -> State:
    """A finished training that was logged nowhere, with a history of one's own."""
    final = run(start(workload([float(i) for i in range(50)]), epochs=epochs))
    return final if history is None else attrs.evolve(final, history=history)


def headers(path: Path, **settings: Any) -> list[Header]:
    return [record for record in read_log(path, **settings) if isinstance(record, Header)]


def starts(path: Path) -> list[dict[str, Any]]:
    return [line["start"] for line in lines_of(path) if line["event"] == "header"]


@pytest.fixture
def short_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that hold three epochs or so."""
    monkeypatch.setattr(history, "MOST_BYTES", 120)


@pytest.fixture
def elsewhere(tmp_path: Path, short_lines: None) -> Path:
    """The log of a training that was begun elsewhere: its history takes four lines."""
    path = tmp_path / "run.jsonl"
    run(extend(trained(history=tuple({"valid_loss": i / 7} for i in range(12))), epochs=1), [smoothed], log=path)
    assert [line["event"] for line in lines_of(path)][:5] == ["header", "history", "history", "history", "setup"]
    return path


# ------------------------------------------------------------------------- what a header has


def test_a_header_does_not_repeat_what_the_log_has(tmp_path: Path) -> None:
    """However long the training: each header of a continued log refers to the lines before it."""
    path = tmp_path / "run.jsonl"
    state = start(Scripted(batches=1, valid_loss=0.5), epochs=40)
    while state.phase is not Phase.DONE:
        state = run(state, [leave], log=path)

    sizes = [len(orjson.dumps(line)) for line in lines_of(path) if line["event"] == "header"]
    assert [(each.get("held", 0), each["history"]) for each in starts(path)] == [(i, []) for i in range(41)]
    assert max(sizes[1:]) - min(sizes[1:]) < 60  # digits of the counters
    again = replay(path, [leave])
    assert (again.ok, len(again.state.history)) == (True, 40)
    assert again.state == attrs.evolve(state, workload=None)


def test_a_history_from_elsewhere_is_in_the_header(tmp_path: Path) -> None:
    """Exactly, whatever is in it; and a log that goes on from there has it as well."""
    path = tmp_path / "run.jsonl"
    first = run(extend(trained(history=ODD), epochs=1), [smoothed], log=path)
    final = run(extend(first, epochs=1), [smoothed], log=path)

    assert [(each.get("held", 0), len(each["history"])) for each in starts(path)] == [(0, 6), (7, 0)]
    recorded = Recorded(path)
    assert same(recorded.start().history, ODD)
    assert same(recorded.start().history, first.history)
    again = replay(path, [smoothed])
    assert again.ok
    assert same(again.state.history, final.history)


def test_a_long_history_is_in_several_lines(elsewhere: Path) -> None:
    """None is long, and each reader puts them together."""
    lines = [line for line in lines_of(elsewhere) if "history" in line]

    assert [len(line["history"]) for line in lines] == [3, 3, 3]
    assert starts(elsewhere)[0]["further"] == 9
    whole = [{"valid_loss": i / 7} for i in range(12)]
    (header,) = headers(elsewhere)
    assert (header.start["history"], "further" in header.start) == (whole, False)
    assert (Recorded(elsewhere).start().history, header.number, header.seq) == (tuple(whole), 1, 0)
    again = replay(elsewhere, [smoothed])
    assert (again.ok, again.state.history[:12], len(again.state.history)) == (True, tuple(whole), 13)
    assert diff(elsewhere, elsewhere) is None
    assert what_if(elsewhere, []).state.history == again.state.history


def test_a_long_history_is_no_line_at_the_command_line(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`show`, `replay` and `tail` read it, and speak of the lines of the training."""
    assert main(["show", "--json", str(elsewhere)]) == 0
    assert json.loads(capsys.readouterr().out)["lines"] == len(lines_of(elsewhere)) - 3
    assert main(["tail", "--all", "--json", str(elsewhere)]) == 0
    phases = [json.loads(line)["phase"] for line in capsys.readouterr().out.splitlines()]
    assert (phases[0], len(phases)) == ("setup", len(lines_of(elsewhere)) - 4)


@pytest.mark.parametrize("bound", [False, True])
def test_a_logger_of_ones_own_gets_a_long_history(bound: bool, tmp_path: Path, short_lines: None) -> None:
    """As events, with keys that are bound to it; a bound key is none of those."""
    path = tmp_path / "run.jsonl"
    state = extend(trained(history=ODD * 4), epochs=1)
    if bound:
        final = run(state, [smoothed], log=EventLog(path, run_id=7))
    else:
        with path.open("w") as file:
            processors = [structlog.processors.JSONRenderer(sort_keys=True)]
            logger = structlog.wrap_logger(structlog.WriteLogger(file), processors=processors)
            final = run(state, [smoothed], log=EventLog(logger.bind(run_id=7)))

    assert {line["run_id"] for line in lines_of(path)} == {7}
    assert same(replay(path, [smoothed]).state.history, final.history)
    with pytest.raises(ValueError, match="history: a log has keys of its own"):
        EventLog("run.jsonl", history=1)


# ------------------------------------------------------------------ where a training goes on


def test_what_a_header_refers_to_is_what_counts(tmp_path: Path) -> None:
    """Of several continuations of one state, each has the history of its own."""
    path, work = tmp_path / "run.jsonl", Scripted(batches=2, valid_loss=lambda state: 1 / (1 + state.iteration))
    first = run(start(work, epochs=1), [smoothed], log=path)
    second = run(extend(first, epochs=2), [smoothed], log=path)
    other = Scripted(batches=2, valid_loss=lambda state: 9 / (1 + state.iteration))
    run(extend(attrs.evolve(first, workload=other), epochs=4), [smoothed], log=path)
    last = run(extend(attrs.evolve(second, workload=work), epochs=1), [smoothed], log=path)

    assert [each.get("held", 0) for each in starts(path)] == [0, 1, 1, 3]
    assert [each["history"] for each in starts(path)] == [[]] * 4
    again = replay(path, [smoothed])
    assert (again.ok, again.state.history) == (True, last.history)


def test_a_new_training_has_a_history_of_its_own(tmp_path: Path) -> None:
    """What was logged before it in the same file is none of it."""
    path = tmp_path / "run.jsonl"
    run(start(workload(), epochs=3), [smoothed], log=path)
    final = run(start(workload(), epochs=2), [smoothed], log=path)

    assert [each.get("held", 0) for each in starts(path)] == [0, 0]
    assert replay(path, [smoothed]).state.history == final.history


def test_only_what_the_log_has_exactly_is_left_out(tmp_path: Path) -> None:
    """A history that was changed between two calls is written from where it differs, and the replay finds it."""
    path = tmp_path / "run.jsonl"
    state = run(start(workload(), epochs=3), [smoothed], log=path)
    changed = (*state.history[:2], {"valid_loss": -0.0}, {"valid_loss": 1.0})
    run(extend(attrs.evolve(state, history=changed), epochs=1), [smoothed], log=path)

    assert (starts(path)[1]["held"], starts(path)[1]["history"]) == (2, [{"valid_loss": -0.0}, {"valid_loss": 1.0}])
    recorded = Recorded(path)
    recorded.start()
    assert same(recorded.start().history, changed)
    found = replay(path, [smoothed]).divergence
    assert found is not None
    assert (found.what, found.recorded) == ("history", [{"valid_loss": -0.0}, {"valid_loss": 1.0}])


def test_epochs_that_were_not_logged_are_in_the_header(tmp_path: Path) -> None:
    """Those before them are in lines."""
    path = tmp_path / "run.jsonl"
    state = run(start(workload(), epochs=2), [smoothed], log=path)
    state = run(extend(state, epochs=1), [smoothed])
    run(extend(state, epochs=1), [smoothed], log=path)

    assert (starts(path)[1]["held"], len(starts(path)[1]["history"]), headers(path)[1].gap) == (2, 1, True)
    recorded = Recorded(path)
    recorded.start()
    assert recorded.start().history == state.history


def test_zeros_and_nans_are_told_apart() -> None:
    """A log that has 0.0 does not have -0.0; NaN is the NaN that it has."""
    lines = [orjson.dumps(metrics) for metrics in ({"a": {"$float": "nan"}}, {"a": 0.0})]

    assert shared_epochs(lines, ({"a": float("nan")}, {"a": 0.0}, {"a": 1.0})) == 2
    assert shared_epochs(lines, ({"a": float("nan")}, {"a": -0.0})) == 1


# --------------------------------------------------------------------------------- damage


DAMAGE: list[tuple[str, Callable[[Lines], object], str]] = [
    ("a line is missing", lambda lines: lines.pop(2), "the header before this line has 3 more epochs of history"),
    ("one too many", lambda lines: lines.insert(2, dict(lines[1])), "line 5: the header before .* no more history"),
    ("an epoch is missing", lambda lines: lines[1]["history"].pop(), "has 1 more epochs of history"),
    (
        "an epoch too many",
        lambda lines: lines[3]["history"].append({}),
        "line 4: its history is .*, and not of the form",
    ),
    ("nothing", lambda lines: lines[3]["history"].clear(), r"line 4: its history is \[\], and not of the form"),
    ("no epochs", lambda lines: lines[2].update(history=[1]), r"line 3: its history is \[1\], and not of the form"),
    ("no list", lambda lines: lines[2].update(history={}), r"line 3: its history is {}, and not of the form"),
    ("no key", lambda lines: lines[2].pop("history"), r"line 3: its history is None, and not of the form"),
    ("it says more", lambda lines: lines[0]["start"].update(further=10), "has 1 more epochs of history"),
    (
        "it says fewer",
        lambda lines: lines[0]["start"].update(further=8),
        "line 4: its history is .*, and not of the form",
    ),
    ("it says nothing", lambda lines: lines[0]["start"].pop("further"), "line 2: .* has no more history than it says"),
    (
        "no number",
        lambda lines: lines[0]["start"].update(further="9"),
        "line 1: its start.further is '9', and not of the form",
    ),
    (
        "below zero",
        lambda lines: lines[0]["start"].update(held=-1),
        "line 1: its start.held is -1, and not of the form",
    ),
    (
        "in the middle",
        lambda lines: lines.insert(6, dict(lines[1])),
        "line 7: the machine cannot go from .* to history",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), [case[1:] for case in DAMAGE], ids=[case[0] for case in DAMAGE])
def test_damage_in_these_lines_is_found(change: Callable[[Lines], object], sentence: str, elsewhere: Path) -> None:
    """By each reader, though numbers and digests fit."""
    forged(elsewhere, change)

    for read in (
        lambda: list(read_log(elsewhere)),
        lambda: replay(elsewhere, [smoothed]),
        lambda: diff(elsewhere, elsewhere),
    ):
        with pytest.raises(LogError, match=sentence):
            read()


def test_a_changed_byte_in_these_lines_is_found(elsewhere: Path) -> None:
    """By the digest, as in any line."""
    data = elsewhere.read_bytes()
    elsewhere.write_bytes(data.replace(b'{"valid_loss":0.5714285714285714}', b'{"valid_loss":0.5714285714285715}'))

    with pytest.raises(LogError, match="line 2: its digest does not fit"):
        list(read_log(elsewhere))


def test_a_value_that_is_no_number_is_found(elsewhere: Path) -> None:
    """Where the state is made."""
    forged(elsewhere, lambda lines: lines[2]["history"][0].update(valid_loss="x"))

    with pytest.raises(LogError, match="line 3: its history is .*'x'.*, and not of the form"):
        replay(elsewhere, [smoothed])


def test_a_history_that_is_not_there_is_not_referred_to(tmp_path: Path) -> None:
    """Neither by a first header nor by a later one; one that refers to less than there is differs."""
    path = tmp_path / "run.jsonl"
    state = run(start(workload(), epochs=2), [smoothed], log=path)
    run(extend(state, epochs=1), [smoothed], log=path)
    whole = lines_of(path)

    for header, held, there in ((1, 3, 2), (0, 1, 0)):
        write(path, whole)
        forged(path, lambda lines: lines[index(lines, "header", header + 1)]["start"].update(held=held))  # noqa: B023
        with pytest.raises(
            LogError, match=f"it continues a history of {held} epochs, and the lines before it have {there}"
        ):
            replay(path, [smoothed])

    write(path, whole)
    forged(path, lambda lines: lines[index(lines, "header", 2)]["start"].update(held=1))
    found = replay(path, [smoothed]).divergence
    assert found is not None
    assert (found.what, found.recorded, len(found.decided)) == ("history", [], 1)


def test_a_log_that_a_crash_cut_within_its_history_is_read_and_continued(elsewhere: Path) -> None:
    """No line is lost that was there; a replay says what is missing, and the next call of run begins after it."""
    lines = lines_of(elsewhere)
    for count in (1, 2, 3):
        write(elsewhere, lines[:count])
        (header,) = headers(elsewhere)
        assert (len(header.start["history"]), header.start["further"]) == (3 * count, 12 - 3 * count)
        with pytest.raises(LogError, match=f"line 1: .* the log ends before the last {12 - 3 * count} epochs"):
            replay(elsewhere, [smoothed])

        state = extend(trained(history=tuple({"valid_loss": i / 7} for i in range(12))), epochs=1)
        final = run(state, [smoothed], log=elsewhere)

        again = replay(elsewhere, [smoothed])
        assert (again.ok, again.state.history) == (True, final.history)
        assert [each.superseded for each in headers(elsewhere, superseded=True)] == [True, False]


# ------------------------------------------------------------------------------ comparisons


def test_where_a_history_stands_makes_no_difference(tmp_path: Path) -> None:
    """In the header, as logs of earlier versions have it, or in the lines before it."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    state = run(start(workload(), epochs=2), [smoothed], log=a)
    run(extend(state, epochs=1), [smoothed], log=a)
    whole = [dict(metrics) for metrics in state.history]
    write(b, lines_of(a))

    def as_before(lines: Lines) -> None:
        for line in lines:
            if line["event"] == "header":
                line["schema"] = 1
        second = lines[index(lines, "header", 2)]["start"]
        second["history"] = whole
        del second["held"]

    forged(b, as_before)

    assert diff(a, b) is diff(b, a) is None
    assert replay(b, [smoothed]).state.history == replay(a, [smoothed]).state.history
    recorded = Recorded(b)
    recorded.start()
    assert recorded.start().history == state.history


@pytest.mark.parametrize(
    ("other", "a", "b"),
    [
        (({"a": 1.0}, {"a": 3.0}), [{"a": 1.0}, {"a": 2.0}], [{"a": 1.0}, {"a": 3.0}]),
        (({"a": 1.0},), "2 epochs", "1 epochs"),
    ],
)
def test_histories_that_differ_are_found(other: Any, a: object, b: object, tmp_path: Path) -> None:
    """As facts, at the header."""
    paths = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, epochs in zip(paths, (({"a": 1.0}, {"a": 2.0}), other), strict=True):
        run(extend(trained(history=epochs), epochs=1), [smoothed], log=path)

    found = diff(*paths)

    assert found is not None
    assert (found.kind, found.what, found.phase, found.a, found.b) == ("facts", "history", "header", a, b)


# ------------------------------------------------------------------------------- the records


def entry(event: str, seq: int = 0, **body: Any) -> Entry:
    return entry_of(seq + 1, {"seq": seq, "event": event, "digest": "", **body})


def test_an_epoch_is_in_the_history_by_its_line() -> None:
    """One that says that it ended; not by the line of a training that failed there."""
    assert ended_epoch(entry("epoch_end", metrics={"a": 1.0})) == {"a": 1.0}
    assert ended_epoch(entry("epoch_end", metrics={"a": 1.0}, error="broken")) is None
    assert ended_epoch(entry("valid_end", metrics={"a": 1.0})) is None


def test_the_history_is_known_at_each_line() -> None:
    """At a line that was superseded too; before the first there is none."""
    histories = LoggedHistories()
    histories.see(entry("header", 0, start={"history": [{"a": 0.0}]}))
    histories.see(entry("setup", 1))
    histories.see(entry("epoch_end", 2, metrics={"a": 1.0}))
    histories.see(entry("epoch_end", 3, metrics={"a": 2.0}))
    histories.see(entry("header", 4, start={"held": 2, "history": []}, continues=2))
    histories.see(entry("epoch_end", 5, metrics={"a": 3.0}))

    assert [[*map(orjson.loads, histories.at(seq))] for seq in (-1, 0, 1, 2, 3, 4, 5, 9)] == [
        [{"a": a} for a in values]
        for values in ([], [0.0], [0.0], [0.0, 1.0], [0.0, 1.0, 2.0], [0.0, 1.0], [0.0, 1.0, 3.0], [0.0, 1.0, 3.0])
    ]


def test_a_history_that_was_asked_for_is_shared_with_the_next() -> None:
    """What was decoded once is not decoded again, however many calls of run there are."""
    logged = LoggedHistory()
    logged.see(entry("header", 0, start={"history": [{"a": 0.0}, {"a": 1.0}]}))
    first = logged.whole()
    logged.see(entry("epoch_end", 1, metrics={"a": 2.0}))
    logged.see(entry("epoch_end", 1, metrics={"a": 9.0}, error="broken"))
    logged.see(entry("header", 2, start={"held": 3, "history": []}, continues=1))
    second = logged.whole()
    logged.see(entry("header", 3, start={"held": 1, "history": [{"a": 5.0}]}, continues=1))

    assert (first, second, logged.whole()) == (
        ({"a": 0.0}, {"a": 1.0}),
        ({"a": 0.0}, {"a": 1.0}, {"a": 2.0}),
        ({"a": 0.0}, {"a": 5.0}),
    )
    assert second[0] is first[0]
