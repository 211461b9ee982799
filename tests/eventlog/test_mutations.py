"""Random mutations of a log, through everything that reads one: an answer or a sentence, soon, and nothing else."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fsm_train import Callback, Scripted, extend, run, start
from fsm_train.callbacks import early_stopping, record, reduce_on_plateau
from fsm_train.cli import main, tail
from fsm_train.eventlog import LogError, diff, read_log, replay, sweep, what_if
from tests.how_long import of_all

from .log_files import library, logged, workload
from .mutations import mutated

PARTS = 20
MUTATIONS = of_all(10_000, few=60)
SECONDS = 10.0  # for one command, whose answer takes some milliseconds

Captured = pytest.CaptureFixture[str]


def _callbacks() -> list[Callback[object]]:
    return [*library(), record("loss"), reduce_on_plateau(patience=1)]


class _Breaks(Scripted):
    """Fails in its seventh backward pass."""

    def backward(self, state: object = None) -> None:
        super().backward()
        self.passes = getattr(self, "passes", 0) + 1
        if self.passes == 7:
            raise RuntimeError("oops")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """A whole training, one that was extended, and one that failed."""
    folder = tmp_path_factory.mktemp("logs")
    whole, extended, failed = (folder / f"{name}.jsonl" for name in ("whole", "extended", "failed"))
    logged(whole, _callbacks(), epochs=3)
    state = run(start(workload(), epochs=2, seed=0), _callbacks(), log=extended)
    run(extend(state, epochs=1), _callbacks(), log=extended)
    with pytest.raises(RuntimeError):
        run(start(_Breaks(batches=4, loss=1.0, valid_loss=1.0), epochs=3, seed=0), _callbacks(), log=failed)
    return whole, extended, failed


def _commands(log: str, good: str) -> list[list[str]]:
    return [
        *(["show", log], ["show", "--json", log], ["replay", log], ["replay", "--json", log]),
        *(["tail", "--all", log], ["tail", "--all", "--json", log], ["diff", good, log], ["diff", "--json", log, good]),
        *(["view", good, log, "-o", f"{log}.html"], ["view", log, "--what-if", "early_stopping.patience=2"]),
        *(["what-if", log, "early_stopping.patience=2"], ["what-if", "--json", log, "early_stopping.patience=1"]),
    ]


def _functions(log: Path, good: Path) -> list[Callable[[], object]]:
    return [
        lambda: list(read_log(log, superseded=True)),
        lambda: replay(log),
        lambda: replay(log, _callbacks()),
        lambda: what_if(log, [early_stopping(patience=1)], without=()),
        lambda: sweep(log, early_stopping, patience=[1]),
        lambda: diff(good, log),
    ]


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_a_mutated_log_is_answered_or_refused(
    part: int, logs: Sequence[Path], tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command ends with 0, 1, or 2 and a sentence; a function returns, or raises a LogError. Nothing warns.

    With FSM_TRAIN_LONG=1 there are 10,000 of them.
    """

    def nothing_comes(_: float) -> None:
        raise KeyboardInterrupt  # tail waits for the rest of a log that has not ended

    monkeypatch.setattr(tail.time, "sleep", nothing_comes)
    log = tmp_path / "mutated.jsonl"
    for number in range(part, MUTATIONS, PARTS):
        draw = random.Random(f"mutation {number}")
        log.write_bytes(mutated(draw.choice(logs).read_bytes(), draw))
        with warnings.catch_warnings(action="error"):
            for command in _commands(str(log), str(logs[0])):
                begin = time.process_time()
                status = main(command)
                told = capsys.readouterr().err
                assert status in (0, 1, 2) or (status == 130 and command[0] == "tail"), (number, command)
                assert status != 2 or told.startswith("fsm-train: "), (number, command)
                assert time.process_time() - begin < SECONDS, (number, command)
            for index, function in enumerate(_functions(log, logs[0])):
                try:
                    function()
                except LogError:
                    pass
                except Exception as error:
                    pytest.fail(f"mutation {number}, function {index}: {error!r}")


def test_mutations_reach_what_is_behind_the_digests(logs: Sequence[Path], tmp_path: Path) -> None:
    """Most of them are refused, but not for their digests; and some are read."""
    log, said = tmp_path / "mutated.jsonl", []
    for number in range(200):
        draw = random.Random(f"mutation {number}")
        log.write_bytes(mutated(draw.choice(logs).read_bytes(), draw))
        try:
            list(read_log(log))
        except LogError as error:
            said.append(str(error))

    assert 50 < len(said) < 190
    assert sum("not of the form" in sentence for sentence in said) > len(said) / 3
    assert sum("digest does not fit" in sentence for sentence in said) < len(said) / 4
