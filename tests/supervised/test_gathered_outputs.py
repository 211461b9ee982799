"""What all ranks predicted, in the order of the dataset, whatever the indices are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy
import pytest
import torch

from fsm_train.supervised.gathered_outputs import PredictedBatch, gathered
from fsm_train.supervised.training import Training


class Alone:
    """Trains without other ranks."""

    ranks = None


@pytest.mark.parametrize("of_kind", [int, numpy.int64, torch.tensor])
def test_numbers_of_each_kind_are_an_order(of_kind: Any) -> None:
    """Samplers of one's own draw with numpy or torch."""
    batches = [
        PredictedBatch([of_kind(2), of_kind(0)], torch.tensor([2.0, 0.0])),
        PredictedBatch([of_kind(1)], torch.tensor([1.0])),
    ]

    assert gathered(cast("Training", Alone), batches, nothing=None).tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("indices", [["b", "a"], [(0, 1), (0, 0)], [1, "a"]])
def test_keys_of_another_kind_are_none(indices: Sequence[Any]) -> None:
    """Then the outputs stay in the order in which they came."""
    batches = [PredictedBatch(indices, torch.tensor([2.0, 0.0]))]

    assert gathered(cast("Training", Alone), batches, nothing=None).tolist() == [2.0, 0.0]
