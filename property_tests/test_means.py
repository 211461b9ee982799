"""Means: whatever batches count and whichever are left out, a metric is one pass over the union of what was kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from fsm_train import Flag, Phase, State, Supervised, Transition, on, run, start
from fsm_train.callbacks import accumulate
from fsm_train.supervised.means import Mean, weighted_mean
from property_tests.test_real_model import same_weights

Batch = tuple[float, bool, float, Phase | None]
"""What it counts, whether it is full of NaN, its loss, and where it is left out."""

weights = st.one_of(st.integers(0, 5), st.sampled_from([0.5, 1 / 3, 1e-3, 7.25]))
skipped = st.sampled_from([None, None, Phase.BATCH_BEGIN, Phase.LOSS_BEGIN, Phase.LOSS_END])
kept_or_not = st.builds(lambda weight, bad, loss, at: (weight, bad and not (weight and at is None), loss, at),
                        weights, st.booleans(), st.floats(-4, 4, width=16), skipped)  # fmt: skip


class Level(nn.Module):
    """Its loss is the number in the batch; batch norm notes each batch that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0] + 0 * self.norm(x)[:, 0] + 0 * self.scale


def level(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return output.mean()


def trained(batches: Sequence[Batch], every: int) -> tuple[State, nn.Module]:
    """One epoch over these batches, validated on those that are not left out by a callback."""
    data = [
        (torch.full((2, 1), math.nan if bad else loss), torch.full((2,), weight)) for weight, bad, loss, _ in batches
    ]
    valid = [batch for batch, (_, _, _, at) in zip(data, batches, strict=True) if at is None]
    model = Level()

    @on(Phase.BATCH_BEGIN, Phase.LOSS_BEGIN, Phase.LOSS_END)
    def skip(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_BATCH) if batches[state.batch][3] is state.phase else None

    work = Supervised(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        level,
        data,
        valid if any(weight for weight, _, _, at in batches if at is None) else None,
        samples=lambda inputs, target: float(target[0].double()),
        metrics={"level": level},
    )
    return run(start(work, epochs=1), [skip, accumulate(every)]), model


@settings(max_examples=60)
@given(st.lists(kept_or_not, min_size=1, max_size=6), st.integers(1, 3))
def test_metrics_are_one_pass_over_what_was_kept(batches: Sequence[Batch], every: int) -> None:
    """Losses and metrics, of training and validation, and the statistics of batch norm."""
    kept = [batch for batch in batches if batch[3] is None and batch[0]]
    final, model = trained(batches, every)

    counted = [(float(torch.tensor(weight)), loss) for weight, _, loss, _ in kept]
    total = math.fsum(weight for weight, _ in counted)
    if not kept:
        assert not [name for name in final.metrics if name.startswith("train_")]
    else:
        union = math.fsum(weight * loss for weight, loss in counted) / total
        for name in ("train_loss", "train_level", "valid_loss", "valid_level"):
            assert math.isclose(final.metrics[name], union, rel_tol=1e-6, abs_tol=1e-6), name
        assert same_weights(model, trained(kept, every)[1])
    assert math.isclose(final.samples, sum(float(torch.tensor(batch[0])) for batch in batches))


@given(st.lists(st.tuples(st.floats(width=32), st.integers(0, 2**30))))
@example([(math.inf, 1), (-math.inf, 2)])
@example([(math.inf, 0), (1.0, 2)])
def test_single_precision_is_averaged_to_the_same_bit(batches: list[tuple[float, int]]) -> None:
    """Products with counts that are exact need not be taken apart; what is not finite stays so."""
    values, counts = [value for value, _ in batches], [count for _, count in batches]
    if any(counts):
        assert repr(weighted_mean(values, counts, short=True)) == repr(weighted_mean(values, counts))


numbers = st.one_of(st.floats(-1e300, 1e300), st.sampled_from([math.inf, -math.inf, math.nan]))
batches_of_one = st.tuples(numbers, st.integers(1, 2**30), st.sampled_from(["float", "double"]))


@given(st.lists(batches_of_one, min_size=1, max_size=3))
@example([(1.0, 4, "double"), (0.4, 9, "double")])
def test_mean_of_scalars_is_that_of_their_blocks(batches: list[tuple[float, int, str]]) -> None:
    """One scalar is read as it is, several in tensors: the mean is the same to the bit, whatever their types are."""
    alone, blocks = Mean(), Mean()
    for value, weight, kind in batches:
        scalar = getattr(torch.tensor(value, dtype=torch.float64), kind)()
        for mean in (alone, blocks):
            mean.add(scalar, weight)
    assert len(blocks.values()) == len(batches)

    assert repr(alone.result()) == repr(blocks.result())
