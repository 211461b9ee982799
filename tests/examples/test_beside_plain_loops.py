"""Examples that train a second time by a plain loop and assert that the weights are equal: they run, and learn."""

from __future__ import annotations

from tests.test_examples import numbers, run


def test_fine_tuning_goes_on_where_the_head_alone_ends() -> None:
    """With all layers the accuracy on unseen digits ends above the best with the head alone."""
    shown = run("finetune.py")

    head = numbers(shown, r"head alone: (\S+) (\S+) (\S+) (\S+) (\S+);")
    whole = numbers(shown, r"all of it: (\S+) (\S+) (\S+) (\S+) (\S+)\n")
    assert whole[-1] > max(head) > head[0]


def test_a_mean_teacher_learns_from_images_without_labels() -> None:
    """It reads more unseen digits than a model that had the labels alone."""
    taught, alone = numbers(run("mean_teacher.py"), r"unseen digits: (\S+); from the 50 labels alone: (\S+)")

    assert taught > alone + 0.02


def test_a_policy_prefers_what_it_was_told_to() -> None:
    """Also in pairs that it never saw."""
    (share,) = numbers(run("dpo.py"), r"in (\d+)% of unseen pairs")

    assert share > 90


def test_a_trial_that_fails_is_shown_beside_the_others() -> None:
    """Each of the four others has its line with a loss."""
    shown = run("search.py")

    assert shown.count("failed: Invalid learning rate: -0.1") == 2
    assert shown.count(" valid_loss 0.") == 4
