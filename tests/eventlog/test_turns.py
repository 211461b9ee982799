"""Logs of trainings in which players take turns: written, read, replayed, asked what if, and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fsm_train import Phase, Recorded, Scripted, WorkloadError, diff, read_log, replay, run, start, what_if
from fsm_train.callbacks import accumulate, early_stopping, skip_nonfinite
from fsm_train.cli import main
from fsm_train.core.state import State
from fsm_train.core.turns import Players
from fsm_train.eventlog.errors import LogError
from fsm_train.eventlog.lines import decode_turns, turns_of
from fsm_train.eventlog.reader import Line
from tests.eventlog.log_files import forged

TURNS = {"D": 1, "G": 2}


def work(players: Mapping[str, int] = TURNS) -> Scripted:
    return Scripted(
        batches=3,
        players=players,
        loss=lambda state: 1.0 + state.random("loss").random(),
        valid_loss=[3.0, 2.0, 2.5, 2.6],
    )


def lines(path: Path) -> list[Line]:
    return [record for record in read_log(path) if isinstance(record, Line)]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl"
    run(start(work(), epochs=4), [accumulate(2), early_stopping(patience=3), skip_nonfinite()], log=str(path))
    return path


def test_a_line_says_who_plays(log: Path) -> None:
    """The player is in each line of a turn, and in none before the first one of an epoch."""
    begun = [(line.player, line.batch) for line in lines(log) if line.phase is Phase.LOSS_END]

    assert begun[:4] == [("D", 0), ("D", 1), ("G", 1), ("D", 2)]
    assert {line.player for line in lines(log) if line.phase in (Phase.EPOCH_BEGIN, Phase.EPOCH_END)} == {""}


def test_it_is_replayed(log: Path) -> None:
    """Each decision again, from the header alone; also what callbacks remember of each player."""
    replayed = replay(log)

    assert replayed.ok, replayed.divergence
    assert replayed.state is not None
    assert replayed.state.players.steps == (8, 4)
    assert Recorded(log).players == TURNS


def test_a_log_that_is_continued_between_turns_is_replayed(tmp_path: Path) -> None:
    """Suspended after the turn of D, and resumed with that of G: both calls are one training."""
    path = str(tmp_path / "run.jsonl")

    class Interrupted(Scripted):
        def step(self, state: State | None = None) -> bool:
            if self._loss and self._player == "D":
                self.interrupt = "SIGTERM"
            return super().step(state)

    script = {"batches": 3, "players": {"D": 1, "G": 1}, "loss": 1.0}
    suspended = run(start(Interrupted(**script), epochs=1), log=path)
    assert (suspended.phase, suspended.players.coming) == (Phase.SUSPENDED, ("G",))
    while suspended.phase is Phase.SUSPENDED:
        suspended = run(suspended, log=path)

    replayed = replay(path)
    assert replayed.ok, replayed.divergence
    assert replayed.state is not None
    assert replayed.state.players == suspended.players


def test_what_if_knows_turns(log: Path) -> None:
    """Another patience: exact, since until then nothing was decided otherwise."""
    answer = what_if(log, [early_stopping(patience=1)])

    assert (answer.verdict, answer.stopped_at) == ("exact", 3)


def test_what_if_refuses_another_turn(log: Path) -> None:
    """Other windows would have made other weights."""
    answer = what_if(log, [accumulate(3)])

    assert answer.verdict == "refused"
    assert "epoch 0, batch 0" in answer.why


def test_two_trainings_differ_by_their_players(log: Path, tmp_path: Path) -> None:
    """Who plays, and how often, is a fact of the workload."""
    other = tmp_path / "other.jsonl"
    callbacks = [accumulate(2), early_stopping(patience=3), skip_nonfinite()]
    run(start(work({"D": 1, "G": 3}), epochs=4), callbacks, log=str(other))

    difference = diff(log, other)
    assert difference is not None
    assert (difference.what, difference.a, difference.b) == ("players", {"D": 1, "G": 2}, {"D": 1, "G": 3})
    assert difference.then is not None


def test_tail_shows_who_plays(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The name stands after the counters."""
    assert main(["tail", "--all", str(log)]) == 0
    assert "loss_end      epoch 0  batch 1  step 1  G  " in capsys.readouterr().out
    assert main(["show", str(log)]) == 0
    assert "train_G_loss" in capsys.readouterr().out


def test_a_line_is_read_as_it_was_written() -> None:
    """Whose turn it is and what waits, at any place in a batch."""
    players = Players.of({"D": 1, "G": 1, "E": 3})
    pending = 0
    for iteration in range(4):
        for turn in range(len(players.players_of(iteration))):
            players, pending = players.next_turn(iteration, pending + turn, fetched=32)
            assert decode_turns(turns_of(players), Players.of({"D": 1, "G": 1, "E": 3})) == players


@pytest.mark.parametrize(
    "change",
    [
        lambda start: start["players"].clear(),
        lambda start: start["players"].update(D=5),
        lambda start: start["players"].update(E=1),
        lambda start: start.pop("turns"),
        lambda start: start["turns"].update(coming=["E"]),
        lambda start: start.update(player="E"),
        lambda start: start["turns"].update(steps=[0]),
        lambda start: start["turns"].update(steps=[0, "0"]),
        lambda start: start["turns"].pop("fetched"),
        lambda start: start.update(turns=3),
    ],
)
def test_turns_of_others_are_an_error(change: Callable[[Any], object], log: Path) -> None:
    """A header whose turns are not those of its players is no log, also where its digests fit."""
    forged(log, lambda lines: change(lines[0]["start"]))

    with pytest.raises(LogError, match="its start"):
        replay(log)


def test_turns_of_others_in_the_line_of_a_failure_are_an_error(tmp_path: Path) -> None:
    """There the state is read of the line."""
    path = tmp_path / "run.jsonl"
    with pytest.raises(WorkloadError):
        run(start(Scripted(batches=2, loss=[1.0], players={"D": 1, "G": 1}), epochs=1), log=str(path))
    assert replay(path).ok
    forged(path, lambda lines: [line.pop("turns", None) for line in lines if line.get("error")])

    with pytest.raises(LogError, match="its turns are not those of this training, which has D, G"):
        replay(path)
