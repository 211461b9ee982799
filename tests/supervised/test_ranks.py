"""Several processes as one training, on gloo."""

from __future__ import annotations

import math
import os
import random
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from fsm_train import (
    Flag,
    Operation,
    Phase,
    Scripted,
    State,
    Supervised,
    Transition,
    WorkloadError,
    evaluate,
    on,
    run,
    start,
)
from fsm_train.callbacks import (
    accumulate,
    clip_grad_norm,
    early_stopping,
    mixed_precision,
    parallel,
    record,
    reduce_on_plateau,
    skip_nonfinite,
    weight_penalty,
)
from fsm_train.supervised.rank_weight import weigh_rank
from fsm_train.supervised.ranks import GlooExchange
from fsm_train.supervised.whole_step import WHOLE_STEP, train_piece
from fsm_train.testing import PerRank, differences, simulate, train_ranks
from fsm_train.testing.ranks import Join
from fsm_train.worlds.agreed import Agreed
from fsm_train.worlds.disagreement import DisagreementError, PeerError
from fsm_train.worlds.rows import WIDTH, Topic
from tests.diabetes_training import batches, weights_of, workload
from tests.forked import LIMIT, forked, wait_at_most
from tests.models import diabetes

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

TRIALS = 100 if os.environ.get("FSM_TRAIN_LONG") == "1" else 10

UNEVEN: dict[str, tuple[Any, Any]] = {
    "batches": (5, 4),
    "batch_size": (2, 3),
    "loss": (1.0, [1.0, float("nan")] * 6),
    "valid_loss": ([3.0, 2.0, 1.0], [1.0, 2.0, 4.0]),
    "valid_batches": (1, 2),
}


def agreed(work: Scripted, exchange: GlooExchange | None = None) -> Any:
    return Agreed(work, exchange or GlooExchange(), interrupts_every=1).as_workload()


def library() -> list[Any]:
    return [early_stopping(patience=1), reduce_on_plateau(patience=0), skip_nonfinite(limit=9), record("grad_norm")]


def test_processes_end_as_simulated_ranks_do(tmp_path: Path) -> None:
    """With the same last state, on both, and after the same number of exchanges."""

    def work(rank: int) -> tuple[State, int]:
        joined = agreed(Scripted(**{name: values[rank] for name, values in UNEVEN.items()}))
        return run(start(joined, epochs=3), library()), joined.exchanges

    (one, exchanges), (other, as_many) = forked(2, tmp_path, work)
    simulated = simulate(library(), ranks=2, epochs=3, **{name: PerRank(*values) for name, values in UNEVEN.items()})
    assert not list(differences(one, other))
    assert not list(differences(one, simulated))
    assert exchanges == as_many


@pytest.mark.parametrize("signalled", [(0,), (1,), (0, 1)])
def test_signal_to_one_process_suspends_all(tmp_path: Path, signalled: tuple[int, ...]) -> None:
    """All leave at the same step, with the same reason."""

    class Signalled(Scripted):
        def step(self, state: State | None = None) -> bool:
            self.steps = getattr(self, "steps", 0) + 1
            if self.steps == 3 and self.rank in signalled:  # type: ignore[attr-defined]
                os.kill(os.getpid(), signal.SIGTERM)
            return super().step(state)

    def work(rank: int) -> State:
        scripted = Signalled(batches=50)
        scripted.rank = rank  # type: ignore[attr-defined]
        return run(start(agreed(scripted), epochs=1))

    one, other = forked(2, tmp_path, work)
    assert not list(differences(one, other))
    assert (one.phase, one.step, one.reason) == (Phase.SUSPENDED, 4, "interrupted by SIGTERM")


@pytest.mark.long
@pytest.mark.parametrize("who", [(0,), (1,), (0, 1)], ids=["first", "second", "both"])
def test_signals_at_any_time(tmp_path: Path, who: tuple[int, ...]) -> None:
    """In training and in validations, between and within exchanges: all leave at the same place, and none hangs."""
    begun = threading.Event()

    class Slow(Scripted):
        def forward(self, state: State | None = None) -> None:
            begun.set()
            time.sleep(0.0005)

        def evaluate(self, state: State | None = None) -> None:
            begun.set()
            time.sleep(0.0005)
            super().evaluate(state)

    def send(after: float) -> None:
        begun.wait()  # one that comes before the run is the program's own, and suspends nothing
        time.sleep(after)
        os.kill(os.getpid(), signal.SIGTERM)

    def work(rank: int) -> list[State]:
        slow = Slow(batches=20, valid_batches=20, valid_loss=1.0, batch_size=[2 + rank] * 10**5)
        state, states = start(agreed(slow), epochs=10**6), []
        delays = random.Random(rank)
        signal.signal(signal.SIGTERM, lambda *_: None)  # one that comes after the other rank's has suspended both
        for _ in range(TRIALS):
            begun.clear()
            sender = threading.Thread(target=send, args=(delays.uniform(0.0, 0.06),))
            if rank in who:
                sender.start()
            state = run(state)
            begun.set()
            if rank in who:
                sender.join()
            states.append(attrs.evolve(state, workload=None))
        return states

    one, other = forked(2, tmp_path, work)
    assert len(one) == len(other) == TRIALS
    assert {state.phase for state in one} == {Phase.SUSPENDED}
    assert [list(differences(*pair)) for pair in zip(one, other, strict=True)] == [[]] * TRIALS


def test_failing_process_frees_the_others(tmp_path: Path) -> None:
    """Within a moment, and not after a time-out; they say who it was and what it raised."""

    def work(rank: int) -> Any:
        scripted = Scripted(batches=9, loss=[1.0, 1.0] if rank == 1 else 1.0)
        return run(start(agreed(scripted), epochs=1))

    began = time.monotonic()
    one, other = forked(2, tmp_path, work)
    assert time.monotonic() - began < LIMIT / 3
    assert isinstance(one, PeerError)
    assert str(one).startswith("rank 1 failed, and this rank ended with it: WorkloadError: the script of loss has 2")
    assert type(other) is WorkloadError


def test_word_of_an_earlier_training_is_none_of_a_later_one(tmp_path: Path) -> None:
    """A script may go on after a failure, with another group and the same store: the next one is named by itself."""

    def work(rank: int) -> Any:
        store = dist.distributed_c10d._get_default_store()
        said = []
        for failing in (1, 0):
            if not dist.is_initialized():
                dist.init_process_group(
                    "gloo",
                    store=dist.PrefixStore("again", store),
                    rank=rank,
                    world_size=2,
                    timeout=timedelta(seconds=20),
                )
            exchange = GlooExchange(seconds=20, store=store)
            if rank == failing:
                exchange.fail(f"ValueError: of rank {rank}")
            else:
                with pytest.raises(PeerError) as heard:
                    exchange([1.0] * WIDTH)
                said.append(str(heard.value))
                exchange.fail("PeerError: of the other")
        return said

    assert forked(2, tmp_path, work) == [
        ["rank 1 failed, and this rank ended with it: ValueError: of rank 1"],
        ["rank 0 failed, and this rank ended with it: ValueError: of rank 0"],
    ]


def test_what_an_earlier_training_told_beside_is_none_of_a_later_one(tmp_path: Path) -> None:
    """The store keeps what was told last, and both count from the beginning: a save waits for its own ranks."""

    def work(rank: int) -> Any:
        told = []
        for training in ("first", "second"):
            exchange = GlooExchange(seconds=20)
            if rank == 0 and training == "second":
                time.sleep(0.2)  # the other would read what is there
            peers: Any = SimpleNamespace(rank=rank, ranks=2, lost=False)
            told.append(exchange.beside(peers).tell(Topic.WRITE, [training, rank]))
        return told

    assert forked(2, tmp_path, work) == [[[[name, rank] for rank in range(2)] for name in ("first", "second")]] * 2


def test_process_that_is_gone_is_missed(tmp_path: Path) -> None:
    """It could leave no word, and the others end at once all the same."""

    class Gone(Scripted):
        def step(self, state: State | None = None) -> bool:
            os._exit(1)

    def work(rank: int) -> Any:
        return run(start(agreed(Gone(batches=3) if rank else Scripted(batches=3)), epochs=1))

    one, other = forked(2, tmp_path, work)
    assert isinstance(other, EOFError)
    assert isinstance(one, PeerError)
    assert str(one).startswith("rank 1 failed, and this rank ended with it: its process is gone, without a word")
    assert one.__notes__[0] == "This rank waited at a look for signals between two batches."


def test_wait_that_is_too_long_says_where(tmp_path: Path) -> None:
    """Of each rank, also of one that came to no exchange."""
    over = tmp_path / "over"

    class Waits(Scripted):
        exchange: GlooExchange

        def forward(self, state: State | None = None) -> None:
            wait_at_most(1.0, self.exchange)

    class Slow(Waits):
        def forward(self, state: State | None = None) -> None:
            super().forward(state)
            until = time.monotonic() + LIMIT / 2
            while not over.exists() and time.monotonic() < until:
                time.sleep(0.01)

    def work(rank: int) -> Any:
        scripted = (Slow if rank else Waits)(batches=3)
        scripted.exchange = GlooExchange(seconds=90)
        try:
            return run(start(agreed(scripted, scripted.exchange), epochs=1))
        finally:
            over.touch()

    one, _ = forked(2, tmp_path, work)
    assert str(one).startswith(
        "the ranks waited 1 seconds for each other: rank 0 waited at a look for signals between two batches; rank 1 "
        "came to no exchange. One that came to no exchange"
    )


def test_disagreement_is_the_same_sentence_in_each_process(tmp_path: Path) -> None:
    """Texts go through rows of numbers, of all lengths."""

    def work(rank: int) -> Any:
        return run(start(agreed(Scripted(hyper={"lr": 0.1 + rank, "momentum": 0.9})), epochs=1))

    one, other = forked(2, tmp_path, work)
    assert isinstance(one, DisagreementError)
    assert str(one) == str(other)
    assert "hyper lr: 0.1 on rank 0, 1.1 on rank 1" in str(one)


def test_one_process_exchanges_with_itself(tmp_path: Path) -> None:
    """A script is the same for one process and for several. After a failure there is no group any more."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        exchange = GlooExchange(store=store)
        assert (exchange.rank, exchange.ranks) == (0, 1)
        assert exchange([float(i) for i in range(WIDTH)]) == [[float(i) for i in range(WIDTH)]]
        assert exchange.failure() is None

        exchange.fail("OSError: disk full")
        exchange.fail("OSError: and again")
        assert str(exchange.failure()) == "rank 0 failed, and this rank ended with it: OSError: disk full"
        assert not dist.is_initialized()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def test_weight_of_a_rank_scales_its_gradient() -> None:
    """And one of nothing leaves no trace of a loss that is not a number, but a gradient for each parameter."""
    work = workload()
    for weight, loss, gradient in ((2.0, 1.0, 2.0), (0.0, math.nan, 0.0)):
        work.optimizer.zero_grad()
        work.set_rank_weight(weight)
        weigh_rank(work, loss * sum(parameter.sum() for parameter in work.model.parameters())).backward()
        assert {parameter.grad.unique().item() for parameter in work.model.parameters()} == {gradient}


def test_without_a_process_group_there_is_no_exchange() -> None:
    """It says what to do."""
    with pytest.raises(WorkloadError, match="there is no process group: start this script with torchrun"):
        GlooExchange()
    with pytest.raises(ValueError, match="seconds"):
        GlooExchange(seconds=0)


# ------------------------------------------------------------------------------------ a real model


def real(rank: int | None) -> Supervised:
    """Every second patient of each batch on each of two ranks; None for the union."""

    def of_rank(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return batch if rank is None else tuple(part[rank::2] for part in batch)

    train = [of_rank(batch) for batch in batches(8, 8, 8)]
    valid = [of_rank(batch) for batch in batches(8, 8, 6, skip=30)]
    if rank == 1:
        valid.pop()  # and give its patients to the other rank
    elif rank == 0:
        valid[-1] = batches(8, 8, 6, skip=30)[-1]
    metrics = {"error": lambda output, target: (output - target).abs().mean()}
    return workload(train, valid=valid, metrics=metrics)


def test_two_processes_train_as_one_does_on_the_union(tmp_path: Path) -> None:
    """With DDP, to rounding: what is decided by facts and metrics, the weights, and an evaluation."""
    deciding = [reduce_on_plateau(patience=0, min_delta=0.02), early_stopping(patience=2, min_delta=0.02)]

    def work(rank: int) -> Any:
        model = real(rank)
        joined = Agreed(model, GlooExchange(), interrupts_every=2).as_workload()
        final = run(start(joined, epochs=12, seed=0), [parallel("ddp"), *deciding, record("loss", "grad_norm")])
        return attrs.evolve(final, workload=None), weights_of(model.model).tolist(), dict(evaluate(joined))

    (one, weights, measured), (other, others, as_measured) = forked(2, tmp_path, work)
    assert not list(differences(one, other))
    assert (weights, measured) == (others, as_measured)

    alone = real(None)
    final = run(start(alone, epochs=12, seed=0), [*deciding, record("loss", "grad_norm")])
    assert (one.epoch, one.step, one.samples, one.reason[:20]) == (
        final.epoch,
        final.step,
        final.samples,
        final.reason[:20],
    )
    assert one.hyper["lr"] == final.hyper["lr"] < 0.05
    assert one.metrics == pytest.approx(final.metrics, rel=1e-5)
    assert measured == pytest.approx(dict(evaluate(alone)), rel=1e-5)
    torch.testing.assert_close(torch.tensor(weights), weights_of(alone.model), rtol=0, atol=1e-6)


def test_loader_with_a_distributed_sampler_takes_no_exchange_per_batch(tmp_path: Path) -> None:
    """Its shares are even, also in their last and smaller batch, and resumed in the middle of an epoch."""

    def work(rank: int) -> Any:
        sampler: Any = DistributedSampler(data := diabetes(), num_replicas=2, rank=rank, seed=1)
        joined = Agreed(
            workload(DataLoader(data, batch_size=50, sampler=sampler)), GlooExchange(), interrupts_every=1000
        )
        suspended = run(start(joined.as_workload(), epochs=2, seed=0), [stop_in_epoch])
        before = joined.exchanges
        final = run(suspended)
        return attrs.evolve(final, workload=None), before, joined.exchanges - before

    @on(Phase.BATCH_END)
    def stop_in_epoch(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 3 else None

    (one, *exchanges), (other, *as_many) = forked(2, tmp_path, work)
    assert not list(differences(one, other))
    assert one.samples == 2 * 442
    # join, prepare, open, finish, elapsed; prepare, reposition, measure, an epoch of open and measure, finish, elapsed
    assert exchanges == as_many == [5, 7]


SIZES = ((5, 4, 0, 3, 2), (3, 4, 6, 1, 7))
"""Of each batch on each rank. None of the first rank's third one counts, and its loss is no number."""

UNION: Any = {
    "plain": [],
    "accumulate": [accumulate(2)],
    "skip": [skip_nonfinite(limit=9), clip_grad_norm(0.1)],
    "bf16": [mixed_precision("bfloat16")],
    "fp16": [mixed_precision("float16", initial_scale=64.0)],
    "penalty": [weight_penalty(l2=0.1)],
}


def counted(inputs: torch.Tensor, target: torch.Tensor) -> float:
    return float((~target.isnan()).sum())


def in_parts(rank: int | None, *, broken: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of this rank, or of both together; with `broken` the second one's loss is not finite on one rank."""
    found = []
    for i, ((inputs, target), sizes) in enumerate(zip(batches(8, 8, 6, 4, 9), zip(*SIZES, strict=True), strict=True)):
        target = torch.full_like(target, math.inf) if broken and i == 1 and rank != 0 else target
        parts = [inputs[: sizes[0]], inputs[sizes[0] :]], [target[: sizes[0]], target[sizes[0] :]]
        if rank is None:
            found.append((inputs, target))
        elif sizes[rank]:
            found.append((parts[0][rank], parts[1][rank]))
        else:
            found.append((inputs[:2], torch.full((2, 1), math.nan)))
    return found


def test_weight_of_a_rank_ends_with_its_run() -> None:
    """A workload that was one of several trains alone as ever."""
    once, again = workload(), workload()
    again.set_rank_weight(0.0)

    for work in (once, again):
        run(start(work, epochs=1))
    assert torch.equal(weights_of(once.model), weights_of(again.model))


@pytest.mark.parametrize(
    ("settings", "who"),
    [
        ({"backward": lambda loss, parameters: loss.backward()}, "its backward is its own"),
        ({"closure": True}, "the optimizer evaluates its batch again, by a closure"),
    ],
)
def test_weight_that_a_backward_would_not_see_is_refused(settings: Any, who: str) -> None:
    """A backward of one's own, or a closure, would take the mean of the ranks for that of their union."""
    work = workload(**settings)
    work.set_rank_weight(1.0)
    with pytest.raises(WorkloadError, match=rf"counts 1.5 times the mean over ranks, .*: but {who}".replace(":", ";")):
        work.set_rank_weight(1.5)


class InOneGo:
    """A compiled step, whose graph has no weight of a rank."""

    def begin(self, operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
        raise AssertionError("this batch weighs")


def test_compiled_piece_of_a_step_leaves_a_rank_that_weighs_alone() -> None:
    """Forward, loss and backward are done one by one, and the gradient has the weight."""
    gradients = []
    for weight in (1.0, 3.0):
        work = workload(sensors={})
        work.set_rank_weight(weight)
        work.whole_step = None if weight == 1.0 else InOneGo()  # type: ignore[assignment]
        work.prepare(state := start(work, epochs=1))
        work.set_rank_weight(weight)
        work.open(state)
        work.fetch()
        train_piece(work, WHOLE_STEP[:3])
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in work.parameters]))  # type: ignore[union-attr]

    torch.testing.assert_close(gradients[1], 3.0 * gradients[0])


def test_metrics_of_several_evaluations_weigh_what_each_of_them_counted() -> None:
    """And not what all of them counted together: shares may be uneven in another way in each."""
    near, far = batches(2, 8, skip=30), batches(2, 8, skip=60)

    def of_ranks(rank: int) -> dict[str, Any]:
        return {"near": near[rank : rank + 1], "far": far[1 - rank : 2 - rank]}

    def still(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.0)  # simulated ranks do not share gradients

    def train(rank: int, join: Join) -> State:
        model = workload(batches(8, 8)[rank : rank + 1], optimizer=still, valid=of_ranks(rank))
        return run(start(join(model), epochs=1, seed=0))

    together = train_ranks(2, train).state.metrics
    alone = run(start(workload(optimizer=still, valid={"near": near, "far": far}), epochs=1, seed=0)).metrics
    for name in ("valid_near_loss", "valid_far_loss"):
        assert together[name] == pytest.approx(alone[name], rel=1e-5)


@pytest.mark.parametrize("chosen", UNION)
def test_gradient_of_unequal_ranks_is_that_of_the_union(tmp_path: Path, chosen: str) -> None:
    """With DDP to rounding, leftover windows and a rank whose batch counts nothing included."""
    broken, tolerance = chosen == "skip", 1e-2 if chosen in ("bf16", "fp16") else 1e-6

    def work(rank: int) -> Any:
        model = workload(in_parts(rank, broken=broken), samples=counted)
        final = run(start(Agreed(model, GlooExchange()).as_workload(), epochs=3), [parallel("ddp"), *UNION[chosen]])
        return attrs.evolve(final, workload=None), weights_of(model.model).tolist()

    (one, weights), (other, others) = forked(2, tmp_path, work)
    assert not list(differences(one, other))
    assert weights == others

    alone = workload(in_parts(None, broken=broken), samples=counted)
    final = run(start(alone, epochs=3), UNION[chosen])
    assert (one.step, one.samples) == (final.step, final.samples)
    assert one.metrics == pytest.approx(final.metrics, rel=max(tolerance, 1e-5))
    torch.testing.assert_close(torch.tensor(weights), weights_of(alone.model), rtol=0, atol=tolerance)
