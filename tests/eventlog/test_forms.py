"""The form of a line: each value of another type is refused where it is read, with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from fsm_train import LogError, Scripted, diff, extend, read_log, replay, run, start, what_if
from fsm_train.callbacks import early_stopping, record
from fsm_train.eventlog import forms
from fsm_train.eventlog.forms import MAX_DEPTH, MAX_EVENTS

from .log_files import forged, index, library, lines_of, logged

REFUSED: dict[str, list[Any]] = {
    "epoch": [None, 1.0, "1", True, [1], {"$int": "1"}],
    "samples": [None, "32", True, {"$float": "nan"}],
    "flags": [None, 3, "FLY", ["STOP_TRAINING"], {"$enum": "Flag.NONE"}],
    "hyper": [None, [], {"lr": "x"}, {"lr": [0.1, None]}, {"lr": {"$int": "9" * 400}}],
    "metrics": [None, [], {"a": "x"}, {"a": True}, {"a": [1.0]}, {"a": {"$float": "x"}}],
    "answers": [None, [], {"a": 1}, {"a": {"flags": 1}}, {"a": {"hyper": 1}}, {"a": {"reason": 1}}]
    + [{"a": {"commands": commands}} for commands in (1, ["x"], [{}], [{"$": 1}])],
    "facts": [None, [], {"loss": None}, {"loss": {"$repr": "1"}}],
    "course": [None, {}, [1], [[32]], [[32, 1, 1]], [[32, 0]], [[32, 1.0]], [[True, 1]], [[-1, 1]], [[[], 1]], ["ab"]],
    "reason": [None, 1, [[1], 2], {"$int": "9" * 30}, {"$str": 1}, {"$str": "\\q"}, {"$str": "é"}],
    "error": [1, {"a": 1}],
    "resume_at": [None, 1, "nowhere", "setup", "done", ["batch_end"]],
    "batches_over": [1, None, "true"],
    "exhausted": [0],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("log") / "run.jsonl"
    logged(path, [*library(), record("loss")], epochs=2)
    return path.read_bytes()


@pytest.fixture
def log(whole: bytes, tmp_path: Path) -> Path:
    (tmp_path / "run.jsonl").write_bytes(whole)
    return tmp_path / "run.jsonl"


def _refused(log: Path, sentence: str) -> None:
    for read in (lambda: list(read_log(log)), lambda: replay(log), lambda: what_if(log, []), lambda: diff(log, log)):
        with pytest.raises(LogError, match=sentence):
            read()


@pytest.mark.parametrize("key", REFUSED)
def test_a_value_of_another_type_is_refused_in_a_line(key: str, log: Path, whole: bytes) -> None:
    """By each reader, with the name of its key."""
    for value in REFUSED[key]:
        log.write_bytes(whole)
        forged(log, lambda lines: lines[index(lines, "loss_end", 2)].update({key: value}))  # noqa: B023
        _refused(log, f"its {key} is .*, and not of the form that a log has")


@pytest.mark.parametrize("key", ["epoch", "flags", "hyper", "metrics"])
def test_a_missing_value_is_refused(key: str, log: Path) -> None:
    """As one of another type."""
    forged(log, lambda lines: lines[index(lines, "loss_end")].pop(key))

    _refused(log, f"its {key} is None, and not of the form")


STARTS: dict[str, list[Any]] = {
    "epoch": [-1, None],
    "samples": [-0.5, "x"],
    "validated_at": [-2, 0.0],
    "plan": [None, {}, {"epochs": None, "max_steps": None, "seed": 0}, {"epochs": -1, "max_steps": None, "seed": 0}]
    + [{"epochs": 1, "max_steps": None, "seed": seed} for seed in (-1, 0.5, {"$int": "-1"}, {"$int": "x"})],
    "has_valid": [None, 1],
    "fetched": [[], -1],
    "batches_per_epoch": [None, -1, 1.5],
    "history": [{}, [1], [{"a": "x"}]],
    "memory": [[], None],
    "resume_at": ["setup"],
}


@pytest.mark.parametrize("key", STARTS)
def test_a_value_of_another_type_is_refused_in_the_start(key: str, log: Path, whole: bytes) -> None:
    """A state can be made of every start that is accepted."""
    for value in STARTS[key]:
        log.write_bytes(whole)
        forged(log, lambda lines: lines[0]["start"].update({key: value}))  # noqa: B023
        _refused(log, f"its start.{key} is .*, and not of the form that a log has")


SPECS: dict[str, list[Any]] = {
    "name": [None, "", 1, {"$str": "x"}],
    "factory": [None, []],
    "params": [None, [], {"a": {"b": 1}}, {"a": {"$map": [1]}}, {"a": {"$map": [[1, 2, 3]]}}, {"a": {"$": 1}}]
    + [
        {"a": value} for value in ({"$list": "abc"}, {"$int": 1}, {"$list": [{}]}, [{"$float": 1}], {"$": "x", "y": {}})
    ],
    "at": [None, [], ["nowhere"], ["done"], [["setup"]]],
    "needs": [None, [1]],
    "every": [0, -1, 1.0, True],
    "order": [None, 0.5],
    "monitors": [None, [1]],
}


@pytest.mark.parametrize("key", SPECS)
def test_a_value_of_another_type_is_refused_in_a_callback(key: str, log: Path, whole: bytes) -> None:
    """Before anything is made of it."""
    for value in SPECS[key]:
        log.write_bytes(whole)
        forged(log, lambda lines: lines[0]["callbacks"][0].update({key: value}))  # noqa: B023
        _refused(log, "its callbacks is .*, and not of the form that a log has")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("start", value) for value in (None, [], 1)),
        *(("callbacks", value) for value in (None, {}, [1], ["x"])),
        *(("versions", value) for value in (None, {"a": 1})),
        *(("phases", value) for value in (None, [1], ["header"], ["resumed"])),
        *(("sensors", value) for value in (None, [1])),
        *(("facts", value) for value in (None, ["tokens"])),
        *(("continues", value) for value in (0, 5, -1, "x")),
        *(("gap", value) for value in (1, None)),
        *(("torn", value) for value in (-1, 1.5)),
    ],
)
def test_a_value_of_another_type_is_refused_in_a_header(key: str, value: Any, log: Path) -> None:
    """And a header that continues a line that is not before it."""
    forged(log, lambda lines: lines[0].update({key: value}))

    _refused(log, f"its {key} is .*, and not of the form that a log has")


def test_each_line_is_refused_by_its_number(log: Path, whole: bytes) -> None:
    """Whenever it is read: ahead of a batch, or when a state is compared with it."""
    for number in range(2, len(whole.splitlines()) + 1):
        log.write_bytes(whole)
        forged(log, lambda lines: lines[number - 1].update(metrics=[]))  # noqa: B023
        _refused(log, f"line {number}: its metrics is")


def test_an_answer_that_a_training_refuses_is_an_error_of_the_log(log: Path) -> None:
    """A recorded callback cannot have set what the optimizer does not have."""
    forged(log, lambda lines: lines[index(lines, "step_begin")]["answers"]["schedule"].update(hyper={"odd": 1.0}))

    with pytest.raises(LogError, match="line .*odd"):
        what_if(log, [early_stopping(patience=1)])


def test_a_memory_that_none_wrote_is_refused(tmp_path: Path) -> None:
    """In the header of a training that continues, where it is given to its callback."""
    path, work = tmp_path / "run.jsonl", Scripted(valid_loss=1.0)
    state = run(start(work, epochs=1), [early_stopping()])
    run(extend(state, epochs=1), [early_stopping()], log=path)
    forged(path, lambda lines: lines[0]["start"]["memory"].update(early_stopping={"$": "Best", "value": 1.0}))

    with pytest.raises(LogError, match="line 1: its start cannot be made again: its record Best has the fields"):
        replay(path)


def test_two_callbacks_of_one_name_are_refused(log: Path) -> None:
    """No training has them."""
    forged(log, lambda lines: lines[0]["callbacks"].append(lines[0]["callbacks"][0]))

    _refused(log, "its callbacks is .*, and not of the form")


def test_the_shapes_that_are_known_are_those_that_are_written(log: Path) -> None:
    """Each line of a training is recognized at once, so that reading stays fast."""
    for line in lines_of(log):
        if line["event"] not in ("header", "done", "teardown") and "reason" not in line:
            assert forms.is_plain(line)


def test_a_line_may_be_as_deep_as_one_that_is_written(log: Path) -> None:
    """And no deeper: what is to be shown of it could not be written."""
    value: Any = 1
    for _ in range(MAX_DEPTH - 3):  # in the memory of an answer of the line
        value = [value]
    orjson.dumps({"answers": {"a": {"memory": value}}})
    forged(log, lambda lines: lines[3]["answers"].update(accumulate={"memory": value}))
    assert len(list(read_log(log))) > 4

    text = log.read_bytes().replace(b"[[[[", b"[[[[[", 1).replace(b"]]]]", b"]]]]]", 1)
    log.write_bytes(text)

    _refused(log, f"line 4: it is nested more than {MAX_DEPTH} deep")


def test_many_values_are_not_deep(log: Path) -> None:
    """A large memory is read."""
    forged(log, lambda lines: lines[3]["answers"].update(accumulate={"memory": [{"$list": [i]} for i in range(1000)]}))

    assert len(list(read_log(log))) > 4


def test_a_course_that_no_replay_could_finish_is_refused(log: Path) -> None:
    """Also where all counters agree with it."""
    batches = MAX_EVENTS + 1

    def stretch(lines: list[dict[str, Any]]) -> None:
        begin = index(lines, "batch_end")
        lines[begin - 1]["course"] = [[32, batches]]
        for line in lines[begin - 1 :]:
            line["iteration"] += batches

    forged(log, stretch)

    _refused(log, f"its course has more than {MAX_EVENTS} events, and a replay takes each")


def test_lines_that_go_on_without_a_batch_are_refused_before_they_are_kept(log: Path) -> None:
    """A million lines without a course would all be held, to be compared with a training that never comes."""

    def repeat(lines: list[dict[str, Any]]) -> None:
        first = index(lines, "loss_end")
        end = index(lines, "loss_end", 2)
        batch = [{key: value for key, value in line.items() if key != "course"} for line in lines[first:end]]
        lines[first:end] = [dict(line) for _ in range(50) for line in batch]

    forged(log, repeat)

    for read in (lambda: replay(log, [*library(), record("loss")]), lambda: what_if(log, [early_stopping(patience=1)])):
        with pytest.raises(LogError, match="the lines go on without a batch, and no training does"):
            read()


def test_a_callback_that_does_not_fit_the_recorded_training_is_an_error_of_the_log(log: Path) -> None:
    """Settings that a factory takes, and a training does not."""
    forged(log, lambda lines: lines[0]["callbacks"][0]["params"].update(weight="tokens"))

    with pytest.raises(LogError, match="line 1: its training cannot be run again with these callbacks: .*'tokens'"):
        replay(log)


def test_a_callback_whose_factory_breaks_is_an_error_of_the_log(log: Path) -> None:
    """However it breaks: it is given what no one would type."""
    for value in ({"$list": []}, {"$": "Chain", "stages": [1], "last": 1}, {"$": "Unknown"}, {"$repr": "x"}, None):
        forged(log, lambda lines: lines[0]["callbacks"][3]["params"].update(min_delta=value))  # noqa: B023
        with pytest.raises(LogError, match="line 1: the callback 'early_stopping' cannot be made from the log"):
            replay(log)


def test_other_programs_have_headers_too(tmp_path: Path) -> None:
    """Their lines do not say which lines of the log count."""
    path, work = tmp_path / "run.jsonl", Scripted(batches=2)
    state = run(start(work, epochs=1), log=path)
    run(extend(state, epochs=1), log=path)
    whole = list(read_log(path))
    path.write_bytes(path.read_bytes() + b'{"event":"header"}\n')

    assert [record.digest for record in read_log(path)] == [record.digest for record in whole]


def test_a_pipe_is_no_log(tmp_path: Path) -> None:
    """It cannot be read twice; waiting for its writer would have no end."""
    import os

    os.mkfifo(tmp_path / "pipe")

    _refused(tmp_path / "pipe", "a log is read twice, so it must be a file")
