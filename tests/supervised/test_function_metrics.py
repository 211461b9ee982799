"""Metrics that are functions: means over samples, and sums over counts of their own."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fsm_train import Supervised, WorkloadError, run, start
from fsm_train.supervised.means import ratio
from fsm_train.supervised.meters import Meters
from tests.killed import killed_and_resumed
from tests.models import same_weights

CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------ word errors

PADDING = -1
LENGTHS = [(5, 2, 3), (1, 4), (7, 7, 1, 2), (3,)]


def _sentences() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of sentences of several lengths, as features and words of a small vocabulary."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for lengths in LENGTHS:
        words = torch.full((len(lengths), max(lengths)), PADDING)
        for row, length in enumerate(lengths):
            words[row, :length] = torch.randint(5, (length,), generator=generator)
        batches.append((torch.randn(*words.shape, 8, generator=generator), words))
    return batches


def _loss(output: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output.flatten(0, 1), words.flatten(), ignore_index=PADDING)


def _wer(output: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    spoken = words != PADDING
    return ((output.argmax(dim=-1) != words) & spoken).sum(), spoken.sum()


def _reader() -> Supervised:
    torch.manual_seed(1)
    model = nn.Linear(8, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return Supervised(model, optimizer, _loss, _sentences(), _sentences()[:2], metrics={"wer": _wer})


def test_word_error_rate_is_errors_over_words(tmp_path: Path) -> None:
    """Of the epoch, as a plain loop counts them, also over a kill in mid-epoch."""
    plain, whole = _reader(), _reader()
    errors = words = wrong = all_words = 0
    for epoch in range(2):
        for inputs, target in plain.train:
            output = plain.model(inputs)
            if epoch == 1:
                errors, words = (n + int(more) for n, more in zip((errors, words), _wer(output, target), strict=True))
            _loss(output, target).backward()
            plain.optimizer.step()
            plain.optimizer.zero_grad()
    for inputs, target in _sentences()[:2]:
        counted = _wer(plain.model(inputs), target)
        wrong, all_words = wrong + int(counted[0]), all_words + int(counted[1])

    final = run(start(whole, epochs=2))
    resumed, work = killed_and_resumed(_reader, tmp_path, iteration=6)

    assert words == sum(map(sum, LENGTHS))
    assert final.metrics["train_wer"] == errors / words
    assert final.metrics["valid_wer"] == wrong / all_words
    assert resumed.metrics == final.metrics
    assert same_weights(work.model, plain.model)


# ------------------------------------------------------------------------------------------ exactness


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 10**6) | st.floats(0, 1e6, width=32)
        ),
        min_size=1,
    )
)
def test_a_ratio_is_that_of_exact_sums(parts: list[tuple[float, float]]) -> None:
    """Each sum is rounded once, whatever the order and size of its parts; nothing counted is no value."""
    sums, counts = [total for total, _ in parts], [count for _, count in parts]
    counted = sum(map(Fraction, counts))

    found = ratio(sums, counts)

    if counted == 0:
        assert found is None
        return
    assert found is not None
    exact = sum(map(Fraction, sums)) / counted
    if math.isfinite(found):
        assert abs(Fraction(found) - exact) <= abs(exact) * Fraction(1, 2**51) + Fraction(1, 2**1074)
    else:
        assert abs(exact) > Fraction(1.79e308)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_ratio_of_what_is_not_finite_is_not_finite(value: float) -> None:
    """One such batch is to be seen."""
    found = ratio([1.0, value], [1, 1])

    assert found is not None
    assert math.isnan(found) if math.isnan(value) else found == value


# ------------------------------------------------------------------------------------------ what is refused


def _meters(*values: Any) -> Meters:
    """Meters that got these values, one a batch."""
    taken = iter(values)
    meters = Meters("valid", {"wer": lambda output, target: next(taken)}, CPU)
    for _ in values:
        meters.add(torch.zeros(()), None, None, 2)
    return meters


def test_parts_may_be_numbers_or_tensors_of_any_type() -> None:
    """Each is counted as it is."""
    values = [(1, 3), (torch.tensor(2), torch.tensor(4.0)), (torch.tensor(0.5, dtype=torch.float64), 1)]

    assert _meters(*values).results()["valid_wer"] == 3.5 / 8


def test_what_counted_nothing_has_no_value() -> None:
    """An epoch without a word has no error rate; the loss is there."""
    assert _meters((0, 0), (torch.tensor(0.0), torch.tensor(0))).results() == {"valid_loss": 0.0}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([(1, 2, 3)], r"the metric 'wer' returned a tuple of 3: return one number, or a pair \(sum, count\)"),
        ([("1", 2)], r"the metric 'wer' returned as the sum a str: return a real number or a scalar tensor"),
        ([(1, torch.ones(2))], r"the metric 'wer' returned as the count a float32 tensor of shape \(2,\)"),
        ([0.5, (1, 2)], r"the metric 'wer' returned \(sum, count\) for this batch, and not for an earlier one"),
        ([(1, 2), 0.5], r"the metric 'wer' returned its mean for this batch, and not for an earlier one"),
    ],
)
def test_what_is_no_sum_and_count_is_refused_by_name(values: list[Any], sentence: str) -> None:
    """At its batch, with what to return."""
    with pytest.raises(WorkloadError, match=sentence) as caught:
        _meters(*values)

    assert "Raised by the metric 'wer' on valid data" in caught.value.__notes__[0]


@pytest.mark.parametrize("count", [-1, math.nan, math.inf])
def test_a_count_is_a_finite_number_from_0(count: float) -> None:
    """It may be on a device, so it is looked at when the epoch's mean is."""
    with pytest.raises(WorkloadError, match=r"'wer' returned \(sum, count\) with the count"):
        _meters((1, torch.tensor(count)), (1, 5)).results()


def test_a_kind_is_of_one_epoch() -> None:
    """After a reset the other may begin."""
    meters = _meters(0.5)
    meters.reset()
    meters.metrics["wer"].load_state(_meters((1, 4)).metrics["wer"].state())

    assert meters.results() == {"valid_wer": 0.25}


def test_a_function_that_was_an_object_when_it_was_saved_begins_anew() -> None:
    """And a note says so."""
    meters = _meters()

    different = meters.load_state({"loss": [None, [], []], "metrics": {"wer": {"updated": True, "own": {}}}})

    assert different == ["wer: it was an object when it was saved, and is a function now"]
    assert meters.results() == {}
