"""Several ranks as one training: what they agree on, and when they exchange."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fsm_train import (
    Callback,
    CallbackError,
    EventLog,
    Flag,
    Operation,
    Phase,
    Scripted,
    Sink,
    State,
    Transition,
    WorkloadError,
    ablate,
    evaluate,
    find_lr,
    iterate,
    on,
    replay,
    run,
    start,
)
from fsm_train.callbacks import accumulate, checkpoint, early_stopping, record, schedule, validate_every
from fsm_train.commands import SaveCheckpoint
from fsm_train.core.reductions import Sensor
from fsm_train.testing import Moment, PerRank, RankEnds, simulate, train_ranks
from fsm_train.testing.ranks import Join
from fsm_train.worlds.agreed import Agreed
from fsm_train.worlds.disagreement import DisagreementError, PeerError
from fsm_train.worlds.meeting import Meeting
from fsm_train.worlds.rows import Row, Topic

Make = Callable[[int], Scripted]
PER_RUN, PER_EPOCH, PER_VALIDATION = 4, 2, 2  # join, prepare, finish, elapsed; open, measure; the same
SELDOM = 1000


def trained(make: Make, *callbacks: Callback[Any], ranks: int = 2, epochs: int = 1, **settings: Any) -> RankEnds:
    """Each rank with the workload that this makes for it."""

    def train(rank: int, join: Join) -> State:
        return run(start(join(make(rank)), epochs=epochs), callbacks)

    return train_ranks(ranks, train, **settings)


@on(Phase.LOSS_END, needs={"loss"}, memory=())
def losses(state: State, seen: tuple[float, ...]) -> Transition:
    """Remembers each loss."""
    return Transition(memory=(*seen, state.facts["loss"]))


# ---------------------------------------------------------------------------------- how many exchanges


@pytest.mark.parametrize(("epochs", "batches"), [(1, 3), (3, 5), (2, 50)])
def test_even_data_take_no_exchange_per_batch(epochs: int, batches: int) -> None:
    """Where no fact is needed, a batch costs nothing, and an epoch two exchanges."""
    ends = trained(lambda rank: Scripted(batches=batches), epochs=epochs, interrupts_every=SELDOM)

    assert ends.exchanges == (PER_RUN + epochs * PER_EPOCH,) * 2


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_signals_are_looked_for_each_so_many_fetches(every: int) -> None:
    """One of the fetches finds no batch."""
    ends = trained(lambda rank: Scripted(batches=6), interrupts_every=every)

    assert ends.exchanges == (PER_RUN + PER_EPOCH + 7 // every,) * 2


def test_uneven_data_take_an_exchange_for_each_fetch() -> None:
    """The last of which ends the pass, on all ranks with the shortest; each carries signals."""
    ends = trained(lambda rank: Scripted(batches=6 + rank))

    assert ends.exchanges == (PER_RUN + PER_EPOCH + 7,) * 2
    assert ends.state.step == 6


def test_validation_of_even_data_takes_two() -> None:
    """At its begin and at its end."""
    ends = trained(lambda rank: Scripted(valid_loss=1.0, valid_batches=5), interrupts_every=SELDOM)

    assert ends.exchanges == (PER_RUN + PER_EPOCH + PER_VALIDATION,) * 2


def test_facts_of_one_phase_are_one_exchange() -> None:
    """However many callbacks need however many; a look for signals is spared by it."""
    several = (record("loss"), losses)
    ends = trained(lambda rank: Scripted(batches=3), *several, interrupts_every=2)

    assert ends.exchanges == (PER_RUN + PER_EPOCH + 3 * 2,) * 2  # `record` is consulted at BATCH_END


def test_more_numbers_than_a_row_has_room_for() -> None:
    """Seven sensors take two rows."""
    names = [f"sensor_{i}" for i in range(7)]

    @on(Phase.EPOCH_END, needs=set(names), memory=())
    def remember(state: State, _: object) -> Transition:
        return Transition(memory=tuple(state.facts[name] for name in names))

    sensors: dict[str, Any] = {name: (lambda state, i=i: float(i)) for i, name in enumerate(names)}
    ends = trained(lambda rank: Scripted(batches=1, **sensors), remember, interrupts_every=SELDOM)

    assert ends.state.memory["remember"] == tuple(map(float, range(7)))
    assert ends.exchanges == (PER_RUN + PER_EPOCH + 2,) * 2


def test_a_checkpoint_takes_one(tmp_path: Path) -> None:
    """All compare what they decided before they write."""
    ends = trained(lambda rank: Scripted(), checkpoint(str(tmp_path)), epochs=2, interrupts_every=SELDOM)

    saves, facts = 2, 3  # whether the last one was written is a fact, at each EPOCH_END and at TRAIN_END
    assert ends.exchanges == (PER_RUN + 2 * PER_EPOCH + saves + facts,) * 2


def test_ranks_that_never_compare_exchange_as_often() -> None:
    """What is compared goes along with what is exchanged anyway."""
    often = {trained(lambda rank: Scripted(), agree=agree).exchanges for agree in ("epoch", "never")}

    assert len(often) == 1


# ------------------------------------------------------------------------------------ what is agreed on


def test_loss_is_the_mean_of_the_union() -> None:
    """By the samples of each rank, in the facts and in the metric; the samples of both count."""
    final = simulate([losses], ranks=2, loss=PerRank(1.0, 4.0), batch_size=PerRank(2, 1), batches=2)

    assert final.memory["losses"] == (2.0, 2.0)
    assert (final.metrics["train_loss"], final.samples) == (2.0, 6)


def test_facts_that_are_no_means() -> None:
    """The largest norm, the slowest rank; a sensor as it declares."""
    needs = {"grad_norm", "elapsed", "tokens", "memory_used", "depth"}

    @on(Phase.STEP_BEGIN, needs=needs, memory=())
    def remember(state: State, _: object) -> Transition:
        return Transition(memory=tuple(state.facts[name] for name in sorted(needs)))

    final = simulate(
        [remember],
        ranks=2,
        grad_norm=PerRank(1.0, math.inf),
        elapsed=PerRank(3.0, 2.0),
        tokens=PerRank(Sensor(lambda state: 5, reduction="sum"), Sensor(lambda state: 7, reduction="sum")),
        memory_used=PerRank(Sensor(lambda state: 5, reduction="max"), Sensor(lambda state: 7, reduction="max")),
        depth=PerRank(1.0, 2.0),
    )
    assert final.memory["remember"] == (1.5, 3.0, math.inf, 7.0, 12.0)


def test_weights_of_ranks_are_by_what_accumulate_weighs_by() -> None:
    """Tokens, say: two of a rank with three times as many samples count less than four of the other one."""

    class Weighed(Scripted):
        weights: list[float]

        def set_rank_weight(self, weight: float) -> None:
            self.now = weight

        def backward(self, state: State | None = None) -> None:
            super().backward(state)
            self.weights = [*getattr(self, "weights", []), self.now]

    works: list[Weighed] = []

    def train(rank: int, join: Join) -> State:
        tokens: Any = Sensor(lambda state: 4.0 if rank else 2.0 * (state.batch % 2), reduction="sum")
        works.append(Weighed(batches=4, batch_size=3 - 2 * rank, tokens=tokens))
        return run(start(join(works[-1]), epochs=1), [accumulate(2, weight="tokens")])

    assert train_ranks(2, train).state.step == 2
    few, many = sorted(work.weights for work in works)
    assert few == pytest.approx([0.0, 2 * 2 / 6] * 2)
    assert many == pytest.approx([2.0, 2 * 4 / 6] * 2)


def test_a_rank_whose_batch_counts_nothing_takes_part() -> None:
    """Its loss is in no mean; a batch that counts nothing on all ranks is left out on all."""
    final = simulate(
        [losses],
        ranks=2,
        loss=PerRank(1.0, math.nan),
        batch_size=PerRank([2, 0, 2], [0, 0, 0]),
        batches=3,
    )
    assert final.memory["losses"] == (1.0, 1.0)
    assert (final.iteration, final.step, final.metrics["train_loss"]) == (3, 2, 1.0)


def test_shards_of_a_validation_need_no_padding() -> None:
    """A rank without a further batch stands by, and one without any measures nothing."""
    final = simulate([], ranks=3, valid_loss=PerRank(1.0, 3.0, 100.0), valid_batches=PerRank(3, 1, 0))

    assert final.metrics["valid_loss"] == 1.5


def test_facts_of_a_validation_are_those_of_the_ranks_that_have_a_batch() -> None:
    """One that stands by would give the loss of its batch before."""

    @on(Phase.VALID_BATCH_END, needs={"loss", "elapsed"}, memory=())
    def remember(state: State, seen: tuple[float, ...]) -> Transition:
        return Transition(memory=(*seen, state.facts["loss"], state.facts["elapsed"]))

    final = simulate(
        [remember], ranks=2, valid_loss=PerRank([1.0], [3.0]), valid_batches=PerRank(2, 1), elapsed=PerRank(1.0, 2.0)
    )
    assert final.memory["remember"] == (2.0, 2.0, 1.0, 2.0)


def test_validation_that_is_stopped_at_its_begin_measures_nothing() -> None:
    """No rank has had a batch, and none stood by."""

    @on(Phase.VALID_BEGIN)
    def stop(state: State) -> Transition:
        return Transition(flags=Flag.STOP_VALID)

    assert "valid_loss" not in simulate([stop], ranks=2, valid_loss=PerRank([1.0], [2.0])).metrics


def test_training_loss_so_far_is_weighed_by_what_was_trained() -> None:
    """In a validation in the middle of an epoch, and not by what was validated."""
    final = simulate(
        [validate_every(steps=1)],
        ranks=2,
        until=lambda state: state.phase is Phase.VALID_END,
        batches=2,
        loss=PerRank(1.0, 4.0),
        batch_size=PerRank(2, 1),
        valid_batches=PerRank(1, 5),
        valid_loss=PerRank(1.0, 4.0),
    )
    assert final.metrics == {"train_loss": 2.0, "valid_loss": pytest.approx((2 + 20) / 7)}


def test_metrics_that_only_some_ranks_have() -> None:
    """The others do not count in them. Their names are exchanged where they differ."""
    scripts: list[dict[str, Any]] = [{"train_a": 1.0}, {"train_b": 2.0}, {"train_b": 4.0}]
    ends = trained(lambda rank: Scripted(**scripts[rank]), ranks=3)

    assert ends.state.metrics == {"train_loss": 0.0, "train_a": 1.0, "train_b": 3.0}


def test_metrics_weigh_what_their_workload_says() -> None:
    """Such as the tokens of a metric that gives (sum, count)."""
    weights = [1.0, 3.0]

    class Weighed(Scripted):
        def __init__(self, rank: int) -> None:
            super().__init__(train_perplexity=4.0 * rank)
            self.rank = rank

        @property
        def metric_weights(self) -> Mapping[str, float]:
            return {"train_perplexity": weights[self.rank]}

    assert trained(Weighed).state.metrics["train_perplexity"] == 3.0


def test_epoch_is_as_long_as_the_shortest() -> None:
    """What is left out is counted and said, by rank."""
    final = simulate([], ranks=3, batches=PerRank(5, 3, 4), epochs=2)

    assert (final.step, final.batches_per_epoch) == (6, 3)
    assert final.notes[0].startswith(
        "training batches were left out, since another rank had none any more: at least 4 of rank 0, 2 of rank 2, in 2"
    )


def test_schedule_over_the_whole_training_is_the_same_on_all_ranks() -> None:
    """It stretches over the batches that the ranks have together, and not over their own."""
    final = simulate([schedule(lr=lambda share: 1 - share, by="training")], ranks=2, batches=PerRank(8, 4))

    assert final.step_hyper["lr"] == pytest.approx(0.1 * 1 / 4)


def test_epoch_of_unknown_length() -> None:
    """One rank that does not know is enough for none to know."""
    assert simulate([], ranks=2, batches=PerRank(3, [3])).batches_per_epoch is None


def test_one_rank_is_as_none() -> None:
    """Agreed with itself, a training is what it is."""
    callbacks = [early_stopping(patience=1), losses, record("grad_norm")]
    values: dict[str, Any] = {"batches": 3, "loss": [0.5, 1.0] * 9, "valid_loss": [1.0, 2.0, 0.5], "grad_norm": 2.0}

    assert simulate(callbacks, ranks=1, **values) == simulate(callbacks, **values)


def test_evaluation_is_that_of_all_ranks() -> None:
    """Between two runs too."""
    found = []

    def train(rank: int, join: Join) -> State:
        work = join(Scripted(valid_loss=1.0 + rank))
        found.append(evaluate(work))
        return start(work, epochs=1)

    train_ranks(2, train)
    assert found == [{"valid_loss": 1.5}] * 2


def test_rates_are_tried_together() -> None:
    """`find_lr` sees the losses of the union, and suggests the same to all."""
    found = []

    def train(rank: int, join: Join) -> State:
        work = join(Scripted(batches=20, loss=lambda state: 1.0 + rank / (1 + state.iteration)))
        found.append(find_lr(start(work, epochs=1), steps=20))
        return start(work, epochs=1)

    assert not train_ranks(2, train).errors
    assert (found[0].rates, found[0].losses, found[0].suggestion) == (
        found[1].rates,
        found[1].losses,
        found[1].suggestion,
    )


def test_callbacks_are_left_out_together() -> None:
    """`ablate` compares trainings of all ranks, and tells each the same."""
    found = []

    def train(rank: int, join: Join) -> State:
        def make(seed: int) -> State:
            work = Scripted(batches=4 + rank, valid_loss=lambda state: rank + 1.0 / (1 + state.step))
            return start(join(work), epochs=2, seed=seed)

        found.append(ablate(make, [early_stopping(patience=1), accumulate(2)]))
        return make(0)

    assert not train_ranks(2, train).errors
    assert found[0] == found[1]
    assert str(found[0]).count("0.7000") == 2  # after four steps: the mean of 1 / 5 and 1 + 1 / 5


def test_step_that_is_one_call_counts() -> None:
    """A workload may carry out a step as one; fetches and evaluations stay apart."""
    asked: list[tuple[Operation, ...]] = []

    class InOne(Scripted):
        def fused(self, operations: tuple[Operation, ...]) -> Callable[[], object] | None:
            asked.append(operations)
            if Operation.BACKWARD not in operations:
                return None

            def one_by_one() -> object:
                outcomes = [getattr(self, operation.value)() for operation in operations]
                return outcomes[operations.index(Operation.STEP)]

            return one_by_one

    ends = trained(lambda rank: InOne(loss=1.0 + 3 * rank, batch_size=2 - rank, valid_loss=1.0))

    assert ends.state.metrics["train_loss"] == 2.0
    assert asked
    assert not {Operation.FETCH, Operation.FETCH_VALID, Operation.EVALUATE}.intersection(*asked)


class Looks(Sink):
    """Notes the loss in each state that it sees."""

    at = (Phase.BATCH_END,)
    needs = frozenset({"loss"})

    def __init__(self) -> None:
        self.losses: list[float | None] = []

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        self.losses.append(state.facts.get("loss"))


def test_sinks_of_one_rank_measure_nothing() -> None:
    """The first rank alone writes, and shows: it gets the facts that a callback needs, and no others."""
    alone, beside = Looks(), Looks()

    simulate([], ranks=2, batches=2, loss=PerRank(1.0, 2.0), sinks=PerRank([alone], []))
    simulate([record("loss")], ranks=2, batches=2, loss=PerRank(1.0, 2.0), sinks=PerRank([beside], []))

    assert (alone.losses, beside.losses) == ([None, None], [1.5, 1.5])


def test_log_of_one_rank_alone(tmp_path: Path) -> None:
    """With facts of its own it is as one without; the ranks end alike, and it is replayed."""
    path = tmp_path / "run.jsonl"

    def train(rank: int, join: Join) -> State:
        log = None if rank else EventLog(path, facts={"loss"}, phases=[Phase.STEP_END])
        return run(start(join(Scripted(batches=3, valid_loss=[2.0, 1.0])), epochs=2), [early_stopping()], log=log)

    assert train_ranks(2, train).state.epoch == 2
    assert replay(path).ok


# -------------------------------------------------------------------------------------------- signals


def test_signal_to_one_rank_suspends_all() -> None:
    """At the end of the batch whose fetch carried it, and with one reason."""
    final = simulate([], ranks=3, batches=9, interrupt_at=PerRank(None, Moment("forward", times=2), None))

    assert (final.phase, final.batch, final.reason) == (Phase.SUSPENDED, 3, "interrupted by SIGTERM")


def test_signal_that_comes_too_late_is_noted() -> None:
    """On all ranks if the last exchange carried it, else on the one that it was sent to."""
    carried = simulate([], ranks=2, interrupt_at=PerRank(None, Moment("finish")))
    assert carried.phase is Phase.DONE
    assert carried.notes == ("SIGTERM came when this call of run was ending, too late to change anything",)

    def train(rank: int, join: Join) -> State:
        moment = Moment("exchange", times=PER_RUN + PER_EPOCH, after=True) if rank else None
        work = join(Scripted(), interrupt_at=moment)
        (last,) = deque(iterate(start(work, epochs=1)), maxlen=1)
        return last

    ends = train_ranks(2, train, interrupts_every=SELDOM)
    assert [len(state.notes) for state in ends.states] == [0, 1]


def test_signal_of_another_run_is_no_signal_of_this_one() -> None:
    """What suspended a run is over with it."""

    def train(rank: int, join: Join) -> State:
        work = join(Scripted(batches=9), interrupt_at=Moment("step") if rank else None)
        suspended = run(start(work, epochs=1))
        assert suspended.phase is Phase.SUSPENDED
        return run(suspended)

    assert train_ranks(2, train).state.step == 9


# -------------------------------------------------------------------------------------- disagreements


def on_each_rank(make: Callable[[int], Callback[Any]], **settings: Any) -> BaseException:
    """What all ranks raise with the callback that this makes for each."""

    def train(rank: int, join: Join) -> State:
        return run(start(join(Scripted(batches=3, valid_loss=1.0)), epochs=2), [make(rank)])

    ends = train_ranks(3, train, **settings)
    assert len({str(error) for error in ends.errors}) == 1
    assert len(ends.errors) == 3
    return ends.errors[0]


def own_rate(rank: int) -> Callback[None]:
    @on(Phase.EPOCH_END)
    def own_rate(state: State) -> Transition:
        return Transition(hyper={"lr": 0.1 / (1 + rank % 2)})

    return own_rate


def own_memory(rank: int) -> Callback[float]:
    @on(Phase.EPOCH_END, memory=0.0)
    def own_memory(state: State, _: float) -> Transition:
        return Transition(memory=math.nan if rank else 1.0)

    return own_memory


def own_stop(rank: int) -> Callback[None]:
    @on(Phase.BATCH_END)
    def own_stop(state: State) -> Transition | None:
        return Transition(flags=Flag.STOP_EPOCH) if rank == 1 and state.iteration == 2 else None

    return own_stop


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (own_rate, "hyper lr: 0.1 on ranks 0 and 2, 0.05 on rank 1"),
        (own_memory, "memory own_memory: 1.0 on rank 0, nan on ranks 1 and 2"),
    ],
)
def test_disagreement_is_named_on_all_ranks(make: Callable[[int], Callback[Any]], text: str) -> None:
    """With what differs, and the value on each rank."""
    error = on_each_rank(make)

    assert isinstance(error, DisagreementError)
    assert str(error).startswith(f"the ranks decided differently. {text}. A callback")


def test_ranks_at_different_places_say_where() -> None:
    """They meet in an exchange, since all rows are as wide; with agree="phase" before the operations differ."""
    error = on_each_rank(own_stop)
    assert (
        "at a look for signals between two batches on ranks 0 and 2, at the begin of a validation on rank 1. "
        "batches_over: false on ranks 0 and 2, true on rank 1; "
        'flags: "" on ranks 0 and 2, STOP_EPOCH on rank 1. They were told' in str(error)
    )

    error = on_each_rank(own_stop, agree="phase")
    assert (
        'flags: "" on ranks 0 and 2, STOP_EPOCH on rank 1; next operation: fetch on ranks 0 and 2, open_valid on rank 1'
        in str(error)
    )


@pytest.mark.parametrize(
    ("agree", "phase", "flag"),
    [
        ("epoch", Phase.BATCH_END, Flag.VALIDATE),
        ("epoch", Phase.BATCH_END, Flag.STOP_TRAINING),
        ("epoch", Phase.BATCH_END, Flag.SUSPEND),
        ("phase", Phase.BATCH_BEGIN, Flag.SKIP_BATCH),
        ("phase", Phase.LOSS_END, Flag.SKIP_BACKWARD),
        ("phase", Phase.LOSS_END, Flag.SKIP_STEP),
    ],
)
def test_flag_of_one_rank_is_named(agree: str, phase: Phase, flag: Flag) -> None:
    """Wherever the ranks meet after that: at another place each, or before another operation."""

    def own_flag(rank: int) -> Callback[None]:
        @on(phase)
        def own_flag(state: State) -> Transition | None:
            return Transition(flags=flag) if rank == 1 and state.iteration == 2 else None

        return own_flag

    assert f'flags: "" on ranks 0 and 2, {flag.name} on rank 1' in str(on_each_rank(own_flag, agree=agree))


def test_ranks_that_differ_again_in_saying_where_say_no_more() -> None:
    """An exchange that answers by other rows than those of a rank ends in a sentence."""
    meeting = Meeting(lambda row: [row, Row(Topic.JOIN).packed()], lambda: None, lambda signal: None)
    with pytest.raises(DisagreementError, match="at where its workload is made on rank 1"):
        meeting.meet(Topic.PREPARE)


def test_phase_by_phase_the_ranks_end_as_ever() -> None:
    """The comparisons change nothing but the time."""
    values: dict[str, Any] = {"ranks": 2, "loss": PerRank(1.0, 2.0), "valid_loss": PerRank(1.0, 2.0)}

    def train(rank: int, join: Join) -> State:
        return run(start(join(Scripted(loss=1.0 + rank, valid_loss=1.0 + rank, batches=1)), epochs=1), [losses])

    assert train_ranks(2, train, agree="phase").state == simulate([losses], **values)


def test_ranks_that_never_compare_part_in_silence() -> None:
    """With agree="never" only what cannot meet is found."""

    def train(rank: int, join: Join) -> State:
        return run(start(join(Scripted()), epochs=2), [own_rate(rank)])

    ends = train_ranks(2, train, agree="never")
    assert [state.hyper["lr"] for state in ends.states] == [0.1, 0.05]


def test_facts_that_only_one_rank_needs_are_named() -> None:
    """The others would not know what the row is about."""

    def needing(rank: int) -> Callback[Any]:
        return on(Phase.BATCH_END, needs={"loss"} if rank else {"loss", "elapsed"})(lambda state: None)

    assert 'facts needed: ["elapsed","loss"] on rank 0, ["loss"] on ranks 1 and 2' in str(on_each_rank(needing))


def test_failing_rank_frees_the_others() -> None:
    """With its number and what it raised, wherever they wait."""
    ends = trained(lambda rank: Scripted(batches=2, loss=[1.0] if rank == 1 else 1.0), ranks=3)

    assert [type(error).__name__ for error in ends.errors] == ["PeerError", "WorkloadError", "PeerError"]
    assert str(ends.errors[0]).startswith(
        "rank 1 failed, and this rank ended with it: WorkloadError: the script of loss"
    )
    with pytest.raises(WorkloadError, match="the script of loss") as raised:
        ends.state  # noqa: B018
    assert "Rank 2 ended with PeerError: rank 1 failed" in "\n".join(raised.value.__notes__)


def test_failing_rank_asks_the_others_nothing_more() -> None:
    """What it measures and saves while it is torn down is its own: they are elsewhere, and are told at once."""

    @on(Phase.TEARDOWN, needs={"elapsed"}, memory=0.0)
    def last_words(state: State, _: float) -> Transition:
        return Transition(memory=state.facts["elapsed"], commands=(SaveCheckpoint("nowhere", "last"),))

    works: list[Scripted] = []

    def make(rank: int) -> Scripted:
        works.append(Scripted(batches=2, loss=[1.0] if rank == 1 else 1.0, elapsed=7.0 + rank))
        return works[-1]

    ends = trained(make, last_words, ranks=3)
    assert [type(error).__name__ for error in ends.errors] == ["PeerError", "WorkloadError", "PeerError"]
    assert [work.commands for work in works] == [[SaveCheckpoint("nowhere", "last")]] * 3


def test_rank_whose_last_exchange_fails_finishes_as_one_that_failed() -> None:
    """What ranks do together at the end of a training, such as to share buffers, is not begun."""
    finished_with: dict[int, str] = {}

    def finishing(rank: int) -> Scripted:
        class Finishing(Scripted):
            def finish(self, state: State) -> None:
                finished_with[rank] = state.error

        return Finishing()

    def train(rank: int, join: Join) -> State:
        @on(Phase.TEARDOWN)
        def bad(state: State) -> None:
            if rank:
                raise OSError("disk full")

        return run(start(join(finishing(rank)), epochs=1), [bad])

    ends = train_ranks(2, train)
    assert isinstance(ends.errors[0], PeerError)
    assert finished_with == {rank: f"{type(error).__name__}: {error}" for rank, error in enumerate(ends.errors)}


@pytest.mark.parametrize("where", ["prepare", "open", "fetch", "measure", "finish", "read"])
def test_failure_anywhere_frees_the_others(where: str) -> None:
    """At the very end of a run too, where the others ask for the seconds that it took."""

    class Broken(Scripted):
        def broken(self, *_: object) -> Any:
            raise OSError("disk full")

    def make(rank: int) -> Scripted:
        work = Broken()
        if rank == 1:
            setattr(work, where, work.broken)
        return work

    one, other = trained(make).ends
    assert isinstance(other, OSError)
    assert str(one) == "rank 1 failed, and this rank ended with it: OSError: disk full"


def test_callback_that_raises_on_all_ranks_raises_the_same() -> None:
    """No rank waits for another."""

    @on(Phase.EPOCH_END)
    def broken(state: State) -> None:
        raise ValueError("planted")

    with pytest.raises(CallbackError, match="planted"):
        simulate([broken], ranks=2)


def test_exchange_that_cannot_tell_of_a_failure_is_told_nothing() -> None:
    """A plain function will do."""
    work = Agreed(Scripted(loss=[]), lambda row: [row], interrupts_every=SELDOM)

    with pytest.raises(WorkloadError, match="the script of loss"):
        run(start(work.as_workload(), epochs=1))
    assert work.exchanges == 3  # join, prepare, open


def test_leaving_a_loop_early_is_no_failure() -> None:
    """All ranks leave it, and can do something else with the workload."""

    def train(rank: int, join: Join) -> State:
        work = join(Scripted(valid_loss=2.0))
        loop = iterate(start(work, epochs=3), at=[Phase.EPOCH_END])
        next(loop)
        loop.close()  # type: ignore[attr-defined]
        return run(start(work, epochs=1))

    assert train_ranks(2, train).state.epoch == 1


def test_ranks_that_begin_with_other_states_are_told_before_the_first_batch() -> None:
    """Such as from checkpoints of different steps."""

    def train(rank: int, join: Join) -> State:
        return run(start(join(Scripted(hyper={"lr": 0.1 + rank})), epochs=1))

    ends = train_ranks(2, train)
    assert "hyper lr: 0.1 on rank 0, 1.1 on rank 1" in str(ends.errors[0])
    assert "prepare" in str(ends.errors[0].__notes__)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"agree": "always"}, "agree='always': there are epoch, phase, never"),
        ({"interrupts_every": 0}, "interrupts_every=0: give a whole number of batches from 1, or None"),
    ],
)
def test_settings_are_checked(settings: Any, text: str) -> None:
    """Before anything is exchanged."""
    with pytest.raises(ValueError, match=text):
        Agreed(Scripted(), lambda row: pytest.fail("it is not called"), **settings)


# ------------------------------------------------------------------------------------------------ logs


def test_logs_of_the_ranks_are_the_same_to_the_byte(tmp_path: Path) -> None:
    """They hold what was agreed on; each is replayed alone."""
    paths = [tmp_path / str(rank) / "run.jsonl" for rank in range(2)]

    def train(rank: int, join: Join) -> State:
        work = join(
            Scripted(batches=5 - rank, loss=1.0 + rank, valid_loss=[2.0 + rank, 3.0, 4.0]),
            interrupt_at=Moment("step", times=6) if rank else None,
        )
        callbacks = [early_stopping(patience=1), losses]
        suspended = run(start(work, epochs=3), callbacks, log=paths[rank])
        return run(suspended, callbacks, log=paths[rank])

    assert train_ranks(2, train).state.epoch == 2
    one, other = (path.read_bytes() for path in paths)
    assert one == other
    assert all(replay(path, [early_stopping(patience=1), losses]).ok for path in paths)


def test_errors_of_ranks_are_errors_of_a_workload() -> None:
    """Whoever catches those of this package catches them."""
    assert issubclass(PeerError, WorkloadError)
    assert issubclass(DisagreementError, WorkloadError)


def test_ranks_tell_each_other_values_of_any_size() -> None:
    """As JSON, in their order; what is empty costs one exchange alone."""
    told: dict[int, list[Any]] = {}

    def train(rank: int, join: Join) -> State:
        work = join(Scripted(batches=3, batch_size=1 + rank))
        meeting = work.meeting  # type: ignore[attr-defined]
        told[rank] = [meeting.values(Topic.WRITE, own) for own in ({"rank": rank, "text": "x" * 99 * rank}, None, [])]
        final = run(start(work, epochs=1))
        assert not meeting.lost
        told[rank].append(work.train_pass.counted)  # type: ignore[attr-defined]
        return final

    ends = train_ranks(2, train)

    both = [{"rank": 0, "text": ""}, {"rank": 1, "text": "x" * 99}]
    assert [told[rank][:3] for rank in (0, 1)] == [[both, [None, None], [None, None]]] * 2
    assert [told[rank][3] for rank in (0, 1)] == [3.0, 6.0]  # by which the metrics of each weigh
    assert ends.state.samples == 9


def test_evaluation_within_a_validation_is_another_one() -> None:
    """It is measured on all ranks, and the training goes on with what it had before."""

    def train(rank: int, join: Join) -> State:
        work = join(Scripted(batches=3, valid_loss=[4.0, 2.0][rank], valid_batches=1 + rank))
        for state in iterate(start(work, epochs=2), at=[Phase.VALID_END]):
            if state.phase is Phase.VALID_END:
                assert evaluate(work)["valid_loss"] == pytest.approx(8 / 3)
        return state

    assert train_ranks(2, train).state.metrics["valid_loss"] == pytest.approx(8 / 3)


class InOneGo(Scripted):
    """Carries out operations in one go where it can, as a compiled step does."""

    def fused(self, operations: tuple[Operation, ...]) -> Callable[[], Any] | None:
        if not operations or self.informed & {*operations}:
            return None
        methods = [getattr(self, operation.value) for operation in operations]

        def all_of_them() -> Any:
            return [method() for method in methods][-1]

        return all_of_them


def test_pieces_of_a_step_are_counted_once() -> None:
    """Also those without a backward, where a callback looks in between."""
    settings = {"batches": 4, "batch_size": 3, "loss": 1.0}
    ends = trained(lambda rank: InOneGo(**settings), losses, epochs=2)
    plain = trained(lambda rank: Scripted(**settings), losses, epochs=2)
    assert (ends.state.samples, ends.state.memory) == (plain.state.samples, plain.state.memory)


class Broken(Scripted):
    """Fails in its second backward as torch does, which does not say why."""

    def backward(self, state: State | None = None) -> None:
        self.backwards = getattr(self, "backwards", 0) + 1
        if self.backwards == 2:
            raise RuntimeError("Connection closed by peer")


def test_error_of_torch_is_explained_by_who_failed() -> None:
    """If the exchange knows of one; otherwise it is what it is."""

    class Knows:
        def __call__(self, row: Any) -> Any:
            return [row, row]

        def failure(self, error: BaseException, place: str) -> PeerError:
            return PeerError.of(1, f"KeyError, while rank 0 was at {place}")

    with pytest.raises(PeerError, match="rank 1 failed.*KeyError, while rank 0 was at backward") as raised:
        run(start(Agreed(Broken(), Knows()).as_workload(), epochs=1))
    assert isinstance(raised.value.__cause__, RuntimeError)
    with pytest.raises(RuntimeError, match="Connection closed") as alone:
        run(start(Agreed(Broken(), lambda row: [row, row]).as_workload(), epochs=1))
    assert not isinstance(alone.value, WorkloadError)
