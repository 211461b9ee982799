"""`examples/gan.py` and `examples/actor_critic.py`, which compare themselves with the loop by hand."""

from __future__ import annotations

from tests.test_examples import numbers, run


def test_two_networks_take_turns() -> None:
    """The loop by hand has the same weights, and what is drawn comes nearer to the digits."""
    shown = run("gan.py", seconds=300)

    (before,) = numbers(shown, r"before +gap (\S+)")
    after, steps = numbers(shown, r"after +gap (\S+) +steps of G (\d+)")
    assert after < 0.6 * before
    assert steps == 6 * 29
    assert "train_D_real" in shown


def test_an_actor_learns_from_its_critic() -> None:
    """The loop by hand has the same weights, and the actor walks home; it plays at each second batch."""
    shown = run("actor_critic.py", seconds=300)

    east, steps = numbers(shown, r"it steps (\S+) east, actor (\d+) steps")
    assert east < -0.8
    assert steps == 300
