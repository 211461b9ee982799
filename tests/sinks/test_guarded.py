"""What holds for every sink: it is told in order, no more often than it wants, and it can do no harm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import pytest

from fsm_train import Callback, CallbackError, Flag, Phase, Scripted, State, Transition, on, run, start
from fsm_train.sinks import Sink
from fsm_train.testing import simulate

from .conftest import Clock


class Recorder:
    """A sink that writes down what it is told."""

    def __init__(self, *at: Phase, needs: Iterable[str] = (), interval: float = 0.0) -> None:
        self.at = at
        self.needs = frozenset(needs)
        self.interval = interval
        self.told: list[str] = []
        self.seen: list[State] = []

    def open(self, state: State, callbacks: Sequence[Callback[Any]]) -> None:
        self.told.append("open")

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        self.told.append(state.phase.value)
        self.seen.append(state)

    def close(self) -> None:
        self.told.append("close")


class Broken(Recorder):
    """A sink that writes down what it is told, and raises."""

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        super().see(state, answers)
        raise OSError("the disk is full")


class Shut(Recorder):
    """A sink that cannot be opened."""

    def open(self, state: State, callbacks: Sequence[Callback[Any]]) -> None:
        raise PermissionError("no such luck")


@on(Phase.LOSS_END, needs={"loss"}, memory=0.0)
def slow_down_when_worse(state: State, best: float) -> Transition:
    """A callback that decides by what it measures and remembers, so that any influence would show."""
    if state.facts["loss"] < best:
        return Transition(memory=state.facts["loss"])
    return Transition(flags=Flag.SKIP_STEP, hyper={"lr": 0.1 / (1 + state.iteration)})


def a_training() -> State:
    return start(Scripted(batches=3, loss=lambda state: 1 - state.iteration % 5, valid_loss=0.5), epochs=2, seed=0)


def test_a_sink_of_each_second_batch_is_told_of_no_other() -> None:
    """What has to be measured for it is measured there alone; phases of an epoch are as they are."""
    sink = Recorder(Phase.BATCH_END, Phase.EPOCH_END, needs={"loss"})
    sink.every = 2  # type: ignore[attr-defined]
    run(a_training(), sinks=[sink])

    assert [(state.phase, state.iteration) for state in sink.seen] == [
        (Phase.BATCH_END, 2),
        (Phase.EPOCH_END, 3),
        (Phase.BATCH_END, 4),
        (Phase.BATCH_END, 6),
        (Phase.EPOCH_END, 6),
    ]
    assert [state.facts["loss"] for state in sink.seen if "loss" in state.facts] == [0, -2, 1]


def test_sink_is_told_in_order() -> None:
    """A sink is opened first, told the phases it asked for in their order, the final one too, and closed last."""
    sink = Recorder(Phase.EPOCH_BEGIN, Phase.EPOCH_END, Phase.DONE)

    run(a_training(), sinks=[sink])

    assert sink.told == ["open", "epoch_begin", "epoch_end", "epoch_begin", "epoch_end", "done", "close"]


def test_raising_sink_is_switched_off_with_one_warning() -> None:
    """A sink that raises is named in one warning, closed and told nothing more, and the training ends as ever."""
    sink = Broken(Phase.BATCH_END)

    with pytest.warns(
        RuntimeWarning, match=r"the sink Broken raised OSError: the disk is full; it is switched off"
    ) as caught:
        final = run(a_training(), sinks=[sink])

    assert len(caught) == 1
    assert sink.told == ["open", "batch_end", "close"]
    assert final == run(a_training())


def test_sink_that_cannot_be_closed_is_told_so_once() -> None:
    """Trouble at the very end is a warning too, and the sink is not closed again for it."""

    class Unclosable(Recorder):
        def close(self) -> None:
            super().close()
            raise OSError("the disk is full")

    sink = Unclosable(Phase.DONE)
    with pytest.warns(RuntimeWarning, match=r"the sink Unclosable raised OSError"):
        final = run(a_training(), sinks=[sink])

    assert sink.told == ["open", "done", "close"]
    assert "the disk is full" in final.notes[0]


def test_sink_that_cannot_be_opened_is_not_told_anything() -> None:
    """A sink whose `open` raises is switched off before it sees the first phase."""
    sink = Shut(Phase.BATCH_END)

    with pytest.warns(RuntimeWarning, match="the sink Shut raised PermissionError"):
        run(a_training(), sinks=[sink])

    assert sink.seen == []


def test_raising_sink_leaves_the_others_alone() -> None:
    """What one sink raises, the next one does not notice."""
    sink = Recorder(Phase.EPOCH_END)

    with pytest.warns(RuntimeWarning):
        run(a_training(), sinks=[Broken(Phase.EPOCH_END), sink])

    assert sink.told == ["open", "epoch_end", "epoch_end", "close"]


@pytest.mark.parametrize(
    "phases", [(), (Phase.BATCH_END,), tuple(phase for phase in Phase if phase is not Phase.READY)]
)
def test_sinks_influence_nothing(phases: tuple[Phase, ...]) -> None:
    """The final state is the same with a sink as without, wherever it looks and whatever it needs."""
    sink = Recorder(*phases, needs={"loss"} if phases else ())

    final = run(a_training(), [slow_down_when_worse], sinks=[sink])

    assert final == run(a_training(), [slow_down_when_worse])


@pytest.mark.parametrize("interrupt_at", [None, Phase.BATCH_END])
def test_last_state_is_the_one_that_is_returned(interrupt_at: Phase | None) -> None:
    """What is seen of a final phase is what `run` returns, and no facts are in it that nobody sees otherwise."""
    sink = Recorder(Phase.DONE, Phase.SUSPENDED)
    final = simulate([], sinks=[sink], interrupt_at=interrupt_at)

    assert sink.seen == [final]
    assert final == simulate([], interrupt_at=interrupt_at)
    assert final.facts == {}


def test_sink_is_closed_when_a_callback_raised() -> None:
    """A training that fails tells its sinks so, and closes them."""

    @on(Phase.EPOCH_END)
    def wrong(state: State) -> Transition:
        raise ZeroDivisionError

    sink = Recorder(Phase.FAILED)

    with pytest.raises(CallbackError):
        run(a_training(), [wrong], sinks=[sink])

    assert sink.told == ["open", "failed", "close"]


def test_interval_throttles_batches(clock: Clock) -> None:
    """Of batches of a second each, a sink with an interval of three seconds sees every third one."""
    sink = Recorder(Phase.BATCH_END, interval=3.0)

    run(start(Scripted(batches=10, loss=lambda state: clock(1.0, 0.0)), epochs=1), sinks=[sink])

    assert [state.iteration for state in sink.seen] == [1, 4, 7, 10]


def test_interval_does_not_throttle_epochs(clock: Clock) -> None:
    """A sink sees the end of every epoch, however quickly they follow each other."""
    sink = Recorder(Phase.EPOCH_END, interval=3.0)

    run(start(Scripted(), epochs=4), sinks=[sink])

    assert [state.epoch for state in sink.seen] == [1, 2, 3, 4]


def test_nothing_is_measured_between_two_looks(clock: Clock) -> None:
    """What a sink needs is read from the device only when it looks."""
    read: list[int] = []

    class Counting(Scripted):
        def read(self, names: Set[str], state: State) -> Mapping[str, float]:
            read.extend([state.iteration] * ("loss" in names))
            return super().read(names, state)

    work = Counting(batches=10, loss=lambda state: clock(1.0, 0.5))

    run(start(work, epochs=1), sinks=[Recorder(Phase.BATCH_END, needs={"loss"}, interval=3.0)])

    assert read == [1, 4, 7, 10]


def test_impossible_need_is_refused_before_the_training_begins() -> None:
    """A sink that needs what cannot be known where it looks is an error of whoever wrote it."""
    sink: Sink = Recorder(Phase.EPOCH_END, needs={"loss"})

    with pytest.raises(ValueError, match="the sink Recorder needs the fact 'loss' at epoch_end"):
        run(a_training(), sinks=[sink])


def test_sink_of_ones_own_has_only_phases_and_see() -> None:
    """What derives from Sink needs no fact, is not throttled, and has nothing to open or to close."""

    class Seen(Sink):
        at = (Phase.EPOCH_END,)

        def __init__(self) -> None:
            self.epochs: list[int] = []

        def see(self, state: State, answers: Mapping[str, Transition]) -> None:
            self.epochs.append(state.epoch)

    sink = Seen()
    final = run(a_training(), sinks=[sink])

    assert (sink.epochs, sink.needs, sink.interval) == ([1, 2], frozenset(), 0.0)
    assert final == run(a_training())


def test_attributes_of_a_sink_may_be_its_own() -> None:
    """Phases, needs and interval can be set when the sink is made."""

    class Losses(Sink):
        def __init__(self, *at: Phase, interval: float) -> None:
            self.at, self.needs, self.interval = at, {"loss"}, interval
            self.losses: list[float] = []

        def see(self, state: State, answers: Mapping[str, Transition]) -> None:
            self.losses.append(state.facts["loss"])

    sink = Losses(Phase.LOSS_END, interval=0.0)
    run(a_training(), sinks=[sink])

    assert sink.losses == [1, 0, -1, -2, -3, 1]


def test_sink_without_see_is_refused_when_it_is_made() -> None:
    """A sink that sees nothing is a mistake, which Python names."""

    class Blind(Sink):
        at = (Phase.EPOCH_END,)

    with pytest.raises(TypeError, match="see"):
        Blind()


@pytest.mark.parametrize("method", ["open", "see"])
def test_a_sink_that_ctrl_c_came_into_is_only_closed(method: str) -> None:
    """What it was told may be half done; nor is one told anything of a run that was not begun for it."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    first, second = Recorder(Phase.EPOCH_END, Phase.TEARDOWN), Recorder(Phase.EPOCH_END, Phase.TEARDOWN)
    setattr(first, method, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(start(Scripted(), epochs=1), sinks=[first, second])

    assert first.told == ["open"] * (method == "see") + ["close"]
    assert second.told == (["open", "teardown", "close"] if method == "see" else ["close"])
