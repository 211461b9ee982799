"""Laws of a rank's share of the data."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fsm_train import WorkloadError, sharded
from fsm_train.data.known_sizes import known_sizes
from fsm_train.data.layers import set_epoch


@example(samples=1, size=1, ranks=2, epoch=0, seed=0, shuffle=False, drop_last=False, per_rank=False)
@given(
    samples=st.integers(1, 60),
    size=st.integers(1, 20),
    ranks=st.integers(1, 5),
    epoch=st.integers(0, 2**40),
    seed=st.integers(0, 2**40),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    per_rank=st.booleans(),
)
def test_shares_are_the_batches_of_one_process(
    samples: int, size: int, ranks: int, epoch: int, seed: int, shuffle: bool, drop_last: bool, per_rank: bool
) -> None:
    """No sample comes twice or is missing, shares differ by one at most, and sizes are as they were known."""
    settings = {"shuffle": shuffle, "drop_last": drop_last, "seed": seed}
    of_all = size * ranks if per_rank else size
    alone = sharded(range(samples), batch_size=of_all, **settings)
    parts = [
        sharded(range(samples), batch_size=size, per_rank=per_rank, rank=rank, ranks=ranks, **settings)
        for rank in range(ranks)
    ]
    for loader in (alone, *parts):
        set_epoch(loader, epoch)
    whole = [batch.tolist() for batch in alone]

    if of_all < ranks and len(whole) > 1:
        for part in parts:
            with pytest.raises(WorkloadError, match="has none for some of the"):
                list(part)
        return
    shares = [[batch.tolist() for batch in part] for part in parts]
    assert [len(part) for part in parts] == [len(share) for share in shares]
    for i, batch in enumerate(whole):
        assert sorted(n for share in shares for each in share[i : i + 1] for n in each) == sorted(batch)
    counted = [sum(map(len, share)) for share in shares]
    assert max(counted) - min(counted) <= 1
    for part, share in zip(parts, shares, strict=True):
        if (known := known_sizes(part)) is not None:
            batches, each, last = known
            assert [len(batch) for batch in share] == [*[each] * (batches - 1), last]
        else:
            assert not share or of_all % ranks
