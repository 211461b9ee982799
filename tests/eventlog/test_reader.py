"""Reading: as a stream, with the number of the line for whatever is wrong, and the history that counts."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from fsm_train import Flag, LogError, Phase, Scripted, extend, read_log, run, start
from fsm_train.eventlog import Header, Line, upcasts
from fsm_train.eventlog.entries import MAX_LINE_BYTES
from fsm_train.eventlog.upcasts import upcast

from .log_files import forged, index, library, lines_of, logged, smoothed, workload, write


@pytest.fixture
def log(tmp_path: Path) -> Path:
    logged(tmp_path / "run.jsonl", [*library(), smoothed], epochs=2)
    return tmp_path / "run.jsonl"


def test_records_tell_what_happened(log: Path) -> None:
    """The header says what the training was to be, and each line what was seen and answered."""
    header, *lines = list(read_log(log))

    assert isinstance(header, Header)
    assert (header.plan.epochs, header.plan.seed, header.schema, header.continues) == (2, 0, 2, None)
    assert [spec["name"] for spec in header.callbacks][-1] == "smoothed"
    assert header.versions["fsm-train"]
    assert all(isinstance(line, Line) for line in lines)
    first = next(line for line in lines if isinstance(line, Line) and line.phase is Phase.LOSS_END)
    assert (first.epoch, first.batch, first.facts) == (0, 0, {"batch_size": 32})
    assert first.flags == Flag.SKIP_STEP | Flag.SKIP_ZERO == first.answers["accumulate"]["flags"]
    assert first.course == ((32, 1),)
    (last,) = lines[-1:]
    assert isinstance(last, Line)
    assert (last.phase, last.epoch, last.number, last.seq) == (Phase.DONE, 2, len(lines) + 1, len(lines))


def test_answers_are_read_as_what_they_are(log: Path) -> None:
    """Hyper-parameters as numbers, a reason as text."""
    lines = [line for line in read_log(log) if isinstance(line, Line)]
    at_step = next(line for line in lines if line.phase is Phase.STEP_BEGIN)

    assert at_step.answers["schedule"]["hyper"] == at_step.hyper
    assert at_step.answers["clip_grad_norm"]["commands"][0]["$"] == "ClipGradNorm"


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """A log of megabytes is read in some hundred kilobytes."""
    path = tmp_path / "run.jsonl"
    run(start(Scripted(batches=8000, loss=1.0), epochs=1), [smoothed], log=path)
    tracemalloc.start()

    for _ in read_log(path):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert path.stat().st_size > 2_000_000
    assert peak < 400_000


def test_a_compressed_log_is_read(log: Path) -> None:
    """A path that ends in .gz is uncompressed on the way."""
    packed = log.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(log.read_bytes()))

    assert list(read_log(packed)) == list(read_log(log))


@pytest.mark.parametrize(
    "data",
    [b"no gzip", gzip.compress(b"x" * 1000, mtime=0)[:-4], gzip.compress(b"{}", mtime=0)[:12] + b"\xff" * 9],
    ids=["no gzip", "cut short", "damaged"],
)
def test_a_damaged_compressed_log_says_so(data: bytes, tmp_path: Path) -> None:
    """What is no gzip, or a part of one, is an error with the name of the file."""
    path = tmp_path / "run.jsonl.gz"
    path.write_bytes(data)

    with pytest.raises(LogError, match="cannot be uncompressed"):
        list(read_log(path))


def test_a_log_cut_at_any_byte_of_its_end_reads_without_its_torn_line(log: Path, tmp_path: Path) -> None:
    """A crash while writing costs the line that was being written, and no other."""
    data = log.read_bytes()
    whole = list(read_log(log))
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    cut = tmp_path / "cut.jsonl"

    for size in range(ends[-3], len(data) + 1):
        cut.write_bytes(data[:size])
        complete = sum(end <= size for end in ends)
        complete += any(size == end - 1 for end in ends)  # only its line end is missing
        assert list(read_log(cut)) == whole[:complete]


def test_a_torn_line_anywhere_else_is_an_error(log: Path) -> None:
    """With its number."""
    lines = log.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4][:30] + b"\n"
    log.write_bytes(b"".join(lines))

    with pytest.raises(LogError, match=r"run\.jsonl, line 5: it is no JSON .* the log does not end here") as caught:
        list(read_log(log))
    assert caught.value.line == 5


NOT_LOGS: list[tuple[bytes, str]] = [
    (b"", r"there is no log in this file: give the file that run\(…, log=…\) wrote"),
    (b"\x00\xff" * 50, "line 1: it is no JSON"),
    (b"[" * 100_000 + b"]" * 100_000 + b"\n", "line 1: it is no JSON"),
    (b'{"a":' * 500 + b"1" + b"}" * 500 + b"\n", "there is no log in this file"),
    (b"17\n", r"line 1: it is no JSON object: give the file that run\(…, log=…\) wrote"),
    (b'{"a": 1}\n', "there is no log in this file"),
    (b'{"seq": 0}\n', "line 1: it has no sequence number, digest or phase"),
    (b'{"seq": 0, "digest": "x", "event": "nonsense"}\n', "line 1: it has no sequence number, digest or phase"),
    (b'{"seq": 0, "digest": "x", "event": "setup"}\n', "line 1: the log has no header"),
    (b'{"seq": 3, "digest": "x", "event": "header"}\n', "line 1: the log begins with line 3: what comes before"),
    (b'{"seq": 0, "digest": "x", "event": "header"}\n', "line 1: its digest does not fit"),
]


@pytest.mark.parametrize(("data", "sentence"), NOT_LOGS, ids=[sentence for _, sentence in NOT_LOGS])
def test_what_is_no_log_says_so(data: bytes, sentence: str, tmp_path: Path) -> None:
    """Random bytes, deep nesting, other JSON: a sentence with the line, and nothing else."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(data)

    with pytest.raises(LogError, match=sentence):
        list(read_log(path))


def test_an_endless_line_is_refused_before_it_is_held(tmp_path: Path) -> None:
    """A line of 100 MB is an error, and takes no more memory than a line may."""
    path = tmp_path / "run.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a":"')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n')
    tracemalloc.start()

    with pytest.raises(LogError, match="line 1: it is longer than 16 MiB"):
        list(read_log(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_LINE_BYTES


def test_a_move_that_the_table_does_not_allow_is_an_error(log: Path) -> None:
    """From one line to the next the machine must be able to come."""

    def jump(lines: list[dict[str, Any]]) -> None:
        del lines[index(lines, "setup") + 1 : index(lines, "epoch_end")]

    forged(log, jump)

    with pytest.raises(LogError, match="line 3: the machine cannot go from setup to epoch_end"):
        list(read_log(log))


def test_a_header_leads_to_setup(log: Path) -> None:
    """Whatever else follows a header is an error."""
    forged(log, lambda lines: lines.pop(1))

    with pytest.raises(LogError, match="line 2: the machine cannot go from header to epoch_begin"):
        list(read_log(log))


FORMS = [
    (1, {"facts": 3}, "its facts is 3, and not of the form"),
    (1, {"hyper": None}, "its hyper is None, and not of the form"),
    (1, {"iteration": None}, "its iteration is None, and not of the form"),
    (0, {"phases": ["nowhere"]}, r"its phases is \['nowhere'\], and not of the form"),
    (0, {"facts": ["tokens"]}, r"its facts is \['tokens'\], and not of the form"),
    (0, {"callbacks": [{"name": "x"}]}, "its callbacks is .*, and not of the form"),
    (1, {"course": {}}, "its course is {}, and not of the form"),
    (0, {"start": []}, r"its start is \[\], and not of the form"),
    (1, {"flags": "FLY"}, "its flags is 'FLY', and not of the form"),
    (1, {"flags": 3}, "its flags is 3, and not of the form"),
    (1, {"course": [1]}, r"its course is \[1\], and not of the form"),
    (1, {"course": [[32, 2**62]]}, "its course has more events than the 3 that its counters allow"),
    (0, {"versions": 3}, "its versions is 3, and not of the form"),
    (1, {"metrics": {"a": "x"}}, "its metrics is {'a': 'x'}, and not of the form"),
]


@pytest.mark.parametrize(("number", "change", "sentence"), FORMS, ids=[sentence for *_, sentence in FORMS])
def test_a_line_of_another_form_is_an_error(number: int, change: dict[str, Any], sentence: str, log: Path) -> None:
    """Also where numbers and digests fit, nothing is taken for what it is not."""
    forged(log, lambda lines: lines[number].update(change))

    with pytest.raises(LogError, match=sentence) as caught:
        list(read_log(log))
    assert caught.value.line == number + 1


@pytest.mark.parametrize(
    "change", [{"fetched": []}, {"has_valid": [1]}, {"history": {}}, {"resume_at": 3}, {"plan": 1}], ids=str
)
def test_a_start_of_another_form_is_an_error(change: dict[str, Any], log: Path) -> None:
    """A call of run is replayed from a state whose values have the types of a state."""
    forged(log, lambda lines: lines[0]["start"].update(change))

    with pytest.raises(LogError, match=r"line 1: its start\.\w+ is .*, and not of the form"):
        list(read_log(log))


def test_a_training_goes_on_at_a_place_with_a_name(log: Path) -> None:
    """A header that names no place to go on from, but something else, is refused as any other form that is wrong."""
    forged(log, lambda lines: lines[0]["start"].update(resume_at=["epoch_end"]))

    with pytest.raises(LogError, match="line 1: its start.resume_at is .*, and not of the form that a log has"):
        list(read_log(log))


# ------------------------------------------------------------------------------------ versions


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [(99, "schema 99, and this version of fsm_train knows up to 2: read it with a newer one"), ("x", "which is none")],
)
def test_a_newer_schema_is_refused(schema: object, sentence: str, log: Path) -> None:
    """In a sentence that says what to do."""
    forged(log, lambda lines: lines[0].update(schema=schema))

    with pytest.raises(LogError, match=sentence):
        list(read_log(log))


def test_an_older_schema_is_brought_up_one_step_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step makes a header of one schema that of the next."""
    steps = {1: lambda header: {**header, "two": True}, 2: lambda header: {**header, "three": header["two"]}}
    monkeypatch.setattr(upcasts, "UPCASTS", steps)
    monkeypatch.setattr(upcasts, "SCHEMA", 3)

    assert upcast({"schema": 1}, "run.jsonl", 1) == {"schema": 1, "two": True, "three": True}


# ------------------------------------------------------------------------- the history that counts


def test_lines_after_what_is_gone_on_from_are_superseded(tmp_path: Path) -> None:
    """A training that is gone on with from an earlier state has one history, and the rest can be seen on demand."""
    path, work = tmp_path / "run.jsonl", workload()
    first = run(start(work, epochs=1), [smoothed], log=path)
    run(extend(first, epochs=3), [smoothed], log=path)
    run(extend(first, epochs=1), [smoothed], log=path)

    counting, everything = list(read_log(path)), list(read_log(path, superseded=True))

    assert [r.number for r in everything] == list(range(1, len(everything) + 1))
    assert [r for r in everything if not r.superseded] == counting
    headers = [r for r in everything if isinstance(r, Header)]
    assert [(h.continues, h.superseded) for h in headers] == [(None, False), (10, True), (10, False)]
    assert max(r.epoch for r in counting if isinstance(r, Line)) == 2
    assert max(r.epoch for r in everything if isinstance(r, Line)) == 4


def test_a_history_may_go_on_from_one_that_was_superseded(tmp_path: Path) -> None:
    """What counts is what leads to the last line, wherever it stands in the file."""
    path, work = tmp_path / "run.jsonl", workload()
    first = run(start(work, epochs=1), [smoothed], log=path)
    second = run(extend(first, epochs=1), [smoothed], log=path)
    run(extend(first, epochs=2), [smoothed], log=path)
    run(extend(second, epochs=1), [smoothed], log=path)

    headers = [r for r in read_log(path, superseded=True) if isinstance(r, Header)]

    assert [h.superseded for h in headers] == [False, False, True, False]


def test_a_training_that_begins_anew_supersedes_all(tmp_path: Path) -> None:
    """Nothing is written over, and nothing is mixed."""
    path = tmp_path / "run.jsonl"
    logged(path, [smoothed], epochs=1)
    before = path.read_bytes()
    logged(path, [smoothed], epochs=2)

    assert path.read_bytes().startswith(before)
    assert sum(isinstance(r, Header) for r in read_log(path)) == 1
    assert sum(isinstance(r, Header) for r in read_log(path, superseded=True)) == 2


def test_events_of_others_are_passed_over(log: Path) -> None:
    """A file that a logger of somebody's own writes has other events in it; those are not of the log."""
    whole = list(read_log(log))
    lines: list[dict[str, Any]] = lines_of(log)
    others = [{"event": "hello"}, {"event": "a", "x": 1}, {"event": "sent", "part": "header"}]
    write(log, [others[0], *lines[:5], *others[1:], *lines[5:]])

    assert [r.digest for r in read_log(log)] == [r.digest for r in whole]
