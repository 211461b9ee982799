"""The numbers of several optimizers, as data: names, parts and conflicts."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from fsm_train import Callback, CallbackError, ConflictError, Phase, State, Transition, describe, on
from fsm_train.callbacks import reduce_on_plateau, schedule
from fsm_train.core.description import check_callbacks
from fsm_train.core.joint_hyper import common_names, joined, shared_name, split, without_shared
from fsm_train.core.runs import with_hyper
from fsm_train.core.state import Hyper, check_hyper
from fsm_train.schedules import absolute, constant, step
from fsm_train.testing import at, check_callback, simulate
from tests.how_long import of_all

NOW: Mapping[str, Hyper] = {
    "lr": (0.1, 0.01, 0.02),
    "muon.lr": 0.1,
    "muon.momentum": 0.9,
    "adamw.lr": (0.01, 0.02),
    "adamw.beta1": (0.9, 0.8),
}


def setting(name: str, phase: Phase = Phase.STEP_BEGIN, **hyper: Hyper) -> Callback[None]:
    """A callback that sets these numbers; two underscores stand for the dot."""

    @on(phase, name=name)
    def sets(state: State) -> Transition:
        return Transition(hyper={key.replace("__", "."): value for key, value in hyper.items()})

    return sets


def test_a_number_of_one_optimizer_is_set_alone() -> None:
    """The numbers of the others stay, and the tuple over all groups follows."""
    final = simulate([setting("one", muon__lr=0.5)], hyper=NOW)

    assert final.hyper == {**NOW, "lr": (0.5, 0.01, 0.02), "muon.lr": 0.5}


def test_a_number_of_all_is_set_in_each() -> None:
    """One value for all groups, or one for each."""
    alike = simulate([setting("all", lr=0.5)], hyper=NOW)
    each = simulate([setting("each", lr=(1.0, 2.0, 3.0))], hyper=NOW)

    assert alike.hyper == {**NOW, "lr": (0.5, 0.5, 0.5), "muon.lr": 0.5, "adamw.lr": (0.5, 0.5)}
    assert each.hyper == {**NOW, "lr": (1.0, 2.0, 3.0), "muon.lr": 1.0, "adamw.lr": (2.0, 3.0)}


def test_two_names_of_one_number_are_one_number() -> None:
    """Whoever sets it by the one name and whoever by the other disagree, and both are named."""
    with pytest.raises(ConflictError, match=r"'all' sets muon.lr to 0.5 and 'one' to 0.25"):
        simulate([setting("one", muon__lr=0.25), setting("all", lr=0.5)], hyper=NOW)

    assert simulate([setting("one", muon__lr=0.5), setting("all", lr=0.5)], hyper=NOW).hyper["muon.lr"] == 0.5


def test_one_answer_says_one_thing() -> None:
    """The two names of a number with different values, in one Transition, are refused."""
    with pytest.raises(CallbackError, match=r"it sets 'muon.lr' to 0.25, and to 0.5 as a part of 'lr'"):
        simulate([setting("torn", muon__lr=0.25, lr=0.5)], hyper=NOW)

    assert simulate([setting("whole", muon__lr=0.5, lr=0.5)], hyper=NOW).hyper["lr"] == (0.5, 0.5, 0.5)


def test_declared_names_meet_before_anything_runs() -> None:
    """A schedule of all and one of an optimizer are a conflict; schedules of two optimizers are none."""
    ours, theirs = schedule(lr=constant(1.0), optimizer="muon"), schedule(lr=constant(1.0), optimizer="adamw")
    with pytest.raises(ConflictError, match=r"'schedule_muon' and 'schedule' both set muon.lr at step_begin"):
        check_callbacks([ours, schedule(lr=constant(1.0))])

    assert check_callbacks([ours, theirs]) == (ours, theirs)
    assert "'reduce_on_plateau' both set muon.lr" in describe([ours, reduce_on_plateau("train_loss")])


def test_schedule_of_one_optimizer_counts_from_its_own_rate() -> None:
    """A factor of that optimizer's rates, with the others as they are; absolute values too."""
    halved = schedule(lr=step(2, 0.5), optimizer="adamw")
    final = simulate([halved, schedule(momentum=absolute(0.5), optimizer="muon")], hyper=NOW, epochs=1, batches=3)

    assert final.hyper == {**NOW, "lr": (0.1, 0.005, 0.01), "adamw.lr": (0.005, 0.01), "muon.momentum": 0.5}
    assert halved.params["optimizer"] == "adamw"


def test_schedule_of_an_optimizer_that_is_not_there_says_so() -> None:
    """With the numbers that there are."""
    with pytest.raises(CallbackError, match=r"there is no hyper-parameter 'lion.lr' to schedule: the optimizer has lr"):
        simulate([schedule(lr=constant(1.0), optimizer="lion")], hyper=NOW)

    for wrong in ("", 3):
        with pytest.raises(TypeError, match="optimizer=.*: give the name of one of several optimizers"):
            schedule(lr=constant(1.0), optimizer=wrong)  # type: ignore[arg-type]


@pytest.mark.long
def test_schedule_of_one_optimizer_keeps_the_laws() -> None:
    """What holds for every callback of the library."""
    hyper = {"lr": (0.1, 0.2), "muon.lr": 0.1, "b.lr": 0.2}
    check_callback(schedule(lr=step(2, 0.5), optimizer="muon"), examples=of_all(200, few=12), hyper=hyper)


def test_numbers_have_the_bounds_of_their_own_name() -> None:
    """A rate below zero is refused by whichever name; a number that only looks like a beta has no bounds."""
    with pytest.raises(ValueError, match=r"muon\.lr=-1\.0: it is a number from 0"):
        check_hyper("muon.lr", -1.0)
    with pytest.raises(ValueError, match=r"adamw\.beta1=1\.0: it is a number from 0 and below 1"):
        check_hyper("adamw.beta1", 1.0)

    assert check_hyper("beta", 4.0) == 4.0


def test_what_changed_between_two_runs_is_named_once() -> None:
    """A rate set by hand is one warning, by the name of its optimizer."""
    state, warnings = with_hyper(at(Phase.READY, hyper=NOW), {**NOW, "lr": (0.5, 0.01, 0.02), "muon.lr": 0.5})

    assert state.hyper["lr"] == (0.5, 0.01, 0.02)
    assert warnings == ("muon.lr is 0.5 in the optimizer, and was 0.1 in the state: the training continues with 0.5",)


def test_names_within_names() -> None:
    """An optimizer of a player has both names; what has no shared name stands alone."""
    players: Mapping[str, Hyper] = {"D.lr": (0.1, 0.2), "D.muon.lr": 0.1, "D.adam.lr": 0.2, "G.lr": 0.3, "kl": 1.0}

    assert [shared_name(name) for name in players] == ["lr", "D.lr", "D.lr", "lr", ""]
    assert split(players, {"D.lr": 1.0, "kl": 2.0}) == {"D.muon.lr": 1.0, "D.adam.lr": 1.0, "kl": 2.0}
    assert joined(players, {"D.adam.lr": 1.0, "kl": 2.0})["D.lr"] == (0.1, 1.0)
    assert list(without_shared(players)) == ["D.muon.lr", "D.adam.lr", "G.lr", "kl"]
    assert common_names({"D.lr"}, {"G.lr", "D.muon.lr"}) == ["D.muon.lr"]


def test_a_single_optimizer_is_as_ever() -> None:
    """Nothing is split, joined or left out where no name has an owner."""
    hyper: Mapping[str, Hyper] = {"lr": 0.1, "momentum": 0.9}

    assert without_shared(hyper) is hyper
    assert split(hyper, {"lr": (0.5,)}) == {"lr": 0.5}
    assert joined(hyper, {"lr": 0.5}) == {"lr": 0.5}


def test_one_optimizer_with_a_name_has_both() -> None:
    """A mapping of one is no special case."""
    assert simulate([setting("all", lr=0.5)], hyper={"lr": 0.1, "a.lr": 0.1}).hyper == {"lr": 0.5, "a.lr": 0.5}
