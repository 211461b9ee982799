"""Which tweak earns its place, on small real trainings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fsm_train import Ablation, Flag, Phase, Scripted, State, Transition, ablate, on, run, start
from fsm_train.ablation import Variant
from fsm_train.callbacks import clip_grad_norm, schedule
from fsm_train.schedules import absolute
from tests.diabetes_training import batches, net, workload


def make_state(seed: int) -> State:
    """A model, an optimizer and data of its own for each seed."""
    model = net()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return start(workload(batches(8, 8, 8, 6), model=model, valid=batches(20, skip=30)), epochs=2, seed=seed)


TWEAKS = [clip_grad_norm(1.0), schedule(lr=absolute(lambda step: 0.2))]


def test_everything_on_each_one_off_none() -> None:
    """Each variant is trained with each seed, and what stands in the table is what such a run gives."""
    found = ablate(make_state, TWEAKS, progress=False)

    assert [row.variant for row in found.rows] == ["all", "without clip_grad_norm", "without schedule", "none"]
    for row, callbacks in zip(found.rows, (TWEAKS, TWEAKS[1:], TWEAKS[:1], []), strict=True):
        assert row.values == tuple(run(make_state(seed), callbacks).metrics["valid_loss"] for seed in (0, 1, 2))
        assert row.difference == pytest.approx(row.mean - found.rows[0].mean)
    assert (found.monitor, found.mode, found.seeds) == ("valid_loss", "min", (0, 1, 2))


def test_a_single_callback_is_on_or_off() -> None:
    """Leaving it out would be "none" again."""
    found = ablate(make_state, TWEAKS[:1], seeds=[0], progress=False)

    assert [row.variant for row in found.rows] == ["all", "none"]
    assert found.verdict(found.rows[1]) == "one seed is no evidence"


def rows(*values: tuple[float, ...]) -> tuple[Variant, ...]:
    left_out = [None, *"abcdef"][: len(values)]
    return tuple(
        Variant(f"without {name}" if name else "all", each, values[0], name)
        for name, each in zip(left_out, values, strict=True)
    )


def test_verdicts_are_measured_seed_by_seed() -> None:
    """A difference counts by its standard error over pairs with one seed; larger is better in mode="max"."""
    base = (1.0, 5.0, 2.0, 3.0)
    up, down = (1.5, 5.6, 2.5, 3.6), (0.5, 4.4, 1.5, 2.4)
    table = rows(base, up, down, (1.1, 4.9, 2.1, 2.9), (9.0, 0.5, 4.0, 0.5))

    def verdicts(mode: Any) -> list[str]:
        found = Ablation("valid_loss", mode, (0, 1, 2, 3), table)
        return [found.verdict(row) for row in found.rows]

    assert verdicts("min") == ["", "worse without", "better without", "within the noise", "within the noise"]
    assert verdicts("max")[1:3] == ["better without", "worse without"]
    assert Ablation("valid_loss", "min", (0, 1, 2, 3), table).earned == ("a",)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_compared(bad: float) -> None:
    """A variant that diverged is neither better nor worse by a number; the table can still be printed."""
    found = Ablation("valid_loss", "min", (0, 1), rows((1.0, 1.2), (bad, 1.0), (1.0, 9.0)))
    lost = Ablation("valid_loss", "min", (0, 1), rows((bad, 1.2), (2.0, 1.0)))

    assert found.verdict(found.rows[1]) == lost.verdict(lost.rows[1]) == "not finite"
    assert found.verdict(found.rows[2]) == "within the noise"
    assert len(str(found).splitlines()) == 4


def test_it_prints_as_a_table() -> None:
    """A head line, and a line for each variant: mean, spread, difference, verdict."""
    found = Ablation("valid_loss", "min", (0, 1), rows((1.0, 1.2), (2.0, 2.3)))

    assert str(found).splitlines() == [
        "valid_loss: mean ± spread over 2 seeds, difference ± its standard error",
        "all            1.1000 ± 0.1414",
        "without a      2.1500 ± 0.2121     +1.0500 ± 0.0500  worse without",
    ]


def test_bar_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed can be piped on."""
    ablate(lambda seed: start(Scripted(batches=1, valid_loss=1.0), epochs=1), TWEAKS[:1], seeds=[0])

    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("callbacks", "settings", "sentence"),
    [
        ([], {}, "at least one callback and one seed"),
        (TWEAKS, {"seeds": []}, "at least one callback and one seed"),
        ([TWEAKS[0], TWEAKS[0]], {}, "two callbacks are called 'clip_grad_norm'"),
        (TWEAKS, {"mode": "best"}, "mode='best'"),
    ],
)
def test_nonsense_is_refused_before_anything_is_trained(callbacks: Any, settings: Any, sentence: str) -> None:
    """With what would make sense."""
    with pytest.raises(ValueError, match=sentence):
        ablate(lambda seed: pytest.fail("trained"), callbacks, **settings)


def test_missing_metric_is_said_with_those_that_there_are() -> None:
    """And with the variant that ended without it."""
    with pytest.raises(LookupError, match="'all' ended without 'valid_f1': there are train_loss, valid_loss"):
        ablate(make_state, TWEAKS, monitor="valid_f1", progress=False)


def test_training_that_was_left_early_is_not_compared() -> None:
    """An interrupt ends the ablation; a suspended run is no result."""

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition:
        return Transition(flags=Flag.SUSPEND, reason="as if by Ctrl-C")

    with pytest.raises(KeyboardInterrupt, match="'all' was suspended: leave: as if by Ctrl-C"):
        ablate(make_state, [leave], monitor="train_loss", progress=False)
