"""What a player of a training in turns may have, beside a plain model and one optimizer, against the loop by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from fsm_train import (
    Alternating,
    Callback,
    Command,
    Phase,
    Player,
    State,
    Transition,
    WorkloadError,
    carries_out,
    describe,
    load_weights,
    on,
    restore,
    run,
    start,
)
from fsm_train.callbacks import accumulate, checkpoint, clip_grad_norm, ema, mixed_precision, schedule, torch_scheduler
from fsm_train.checkpoints.api import read
from fsm_train.checkpoints.choice import candidates
from fsm_train.schedules import absolute, linear
from tests.models import equal
from tests.players_training import Gan, adam, gan, real_digits, suspending
from tests.supervised.test_closures import Sam

StepBefore = Callable[[Any, int], None]


def in_turns(of: Gan, optimizer: Any, **settings: Any) -> Alternating:
    """D has this optimizer, and G the usual one."""
    players = {
        "D": Player(of.D, optimizer, of.real_and_fake, closure=isinstance(optimizer, Sam)),
        "G": Player(of.G, adam(of.G), of.fooled, every=2),
    }
    return Alternating(players, real_digits(), **settings)


def by_hand(of: Gan, optimizers: Any, before: StepBefore = lambda optimizers, taken: None) -> None:
    """Two epochs; D is stepped by each of the optimizers, or by one that is given a closure."""
    g_optimizer, batch = adam(of.G), 0
    torch.manual_seed(0)
    for _ in range(2):
        for real, target in real_digits():

            def evaluate(real: torch.Tensor = real, target: torch.Tensor = target) -> torch.Tensor:
                of.D.zero_grad()
                loss = of.real_and_fake(real, target)["loss"]
                loss.backward()
                return loss

            if isinstance(optimizers, Mapping):
                evaluate()
                before(optimizers, batch)
                for each in optimizers.values():
                    each.step()
            elif isinstance(optimizers, Sam):
                evaluate()
                optimizers.step(evaluate)
            else:
                optimizers.step(evaluate)
            batch += 1
            if batch % 2 == 0:
                of.G.zero_grad()
                of.fooled(real, target).backward()
                g_optimizer.step()


def several(of: Gan) -> Any:
    first, *others = of.D.parameters()
    return {"sgd": torch.optim.SGD([first], lr=0.05, momentum=0.9), "adam": torch.optim.Adam(others, lr=2e-3)}


def lbfgs(of: Gan) -> Any:
    return torch.optim.LBFGS(of.D.parameters(), lr=0.1, max_iter=3)


def sam(of: Gan) -> Any:
    return Sam(of.D.parameters(), lr=0.05, momentum=0.9)


@pytest.mark.parametrize("make", [several, lbfgs, sam])
@pytest.mark.parametrize("step", [0, 1, 2, 6])
def test_they_step_as_by_hand(make: Callable[[Gan], Any], step: int, tmp_path: Path) -> None:
    """To the last bit, also when killed after the turn of either player."""
    of, hand = gan(), gan()
    state, callbacks = start(in_turns(of, make(of)), epochs=2, seed=0), [*map(suspending, [step] * bool(step))]
    if step:
        callbacks.append(checkpoint(tmp_path))
        assert run(state, callbacks).phase is Phase.SUSPENDED
        of = gan()
        state = restore(tmp_path, in_turns(of, make(of)))
        torch.manual_seed(99)
    final = run(state, callbacks)

    by_hand(hand, make(hand))
    assert equal(of.weights(), hand.weights())
    assert (final.steps_of("D"), final.steps_of("G")) == (8, 4)


def test_numbers_of_several_optimizers_of_a_player_are_set_apart() -> None:
    """By a schedule of this library for one, by one of torch for the other, and by clipping a part of the player."""
    of, hand = gan(), gan()
    callbacks = [
        schedule(lr=linear(1.0, 0.0, 8), optimizer="sgd", player="D"),
        torch_scheduler({"adam": lambda adam: StepLR(adam, 3, 0.5)}, player="D"),
        clip_grad_norm(0.01, pattern="D.3.*", player="D"),
    ]
    work = in_turns(of, several(of))
    final = run(start(work, epochs=2, seed=0), callbacks)

    def before(optimizers: Any, taken: int) -> None:
        optimizers["sgd"].param_groups[0]["lr"] = 0.05 * (1 - taken / 8)
        optimizers["adam"].param_groups[0]["lr"] = 2e-3 * 0.5 ** (taken // 3)
        nn.utils.clip_grad_norm_(hand.D[3].parameters(), 0.01)  # type: ignore[index]

    by_hand(hand, several(hand), before)
    assert equal(of.weights(), hand.weights())
    assert final.hyper["D.lr"] == (final.hyper["D.sgd.lr"], final.hyper["D.adam.lr"])
    assert final.hyper["D.adam.lr"] == pytest.approx(2e-3 / 4)
    assert repr(work).splitlines()[1] == "  D: Sequential, sgd: SGD, adam: Adam, every 1"
    assert repr(Player(of.D, several(of), of.fooled)) == "Player(Sequential, sgd: SGD, adam: Adam, every=1)"


def test_a_scheduler_that_ends_before_its_player_is_noted() -> None:
    """Also of the second player, and of one of several optimizers, where the first player has one alone."""
    of = gan()
    players = {"G": Player(of.G, adam(of.G), of.fooled), "D": Player(of.D, several(of), of.real_and_fake)}
    work = Alternating(players, real_digits())

    assert work.scheduler_length(lambda given: CosineAnnealingLR(given["adam"], 3)) == (
        "CosineAnnealingLR(T_max=3)",
        (3, 3),
    )
    assert work.scheduler_length(lambda given: given["none"]) is None
    callback = torch_scheduler({"adam": lambda adam: CosineAnnealingLR(adam, 3)}, player="D")
    shown = describe([callback], start(work, epochs=2))
    assert "torch_scheduler_D: CosineAnnealingLR(T_max=3) ends after 3 steps, but the plan has 8" in shown


def test_another_set_of_optimizers_is_not_restored(tmp_path: Path) -> None:
    """Nothing of the training has changed then."""
    of = gan()
    run(start(in_turns(of, several(of)), epochs=1, seed=0), [checkpoint(tmp_path)])
    for names in (("sgd", "adamw"), ("sgd",)):
        other = gan()
        optimizers = dict(zip(names, several(other).values(), strict=False))
        before = [value.clone() for value in other.weights()]
        with pytest.raises(WorkloadError, match="the optimizer is another one than was saved, .* there are several"):
            restore(tmp_path, in_turns(other, optimizers))
        assert equal(other.weights(), before)


def test_a_closure_of_one_player_forbids_nothing_to_another() -> None:
    """Its own windows and a gradient scaler are refused; when all have closures, before the training begins."""
    of = gan()
    run(start(in_turns(of, lbfgs(of)), epochs=1, seed=0), [accumulate(2, player="G"), mixed_precision("bfloat16")])

    with pytest.raises(WorkloadError, match="of the player 'D', the optimizer evaluates its batch again"):
        run(start(in_turns(of, lbfgs(of)), epochs=1), [accumulate(2, player="D")])
    with pytest.raises(WorkloadError, match="which a gradient scaler cannot look into"):
        run(start(in_turns(of, lbfgs(of)), epochs=1), [mixed_precision("float16")])
    alone = Alternating({"D": Player(of.D, lbfgs(of), of.real_and_fake)}, real_digits())
    with pytest.raises(WorkloadError, match="callback 'accumulate' gives the command WeighLoss, but the optimizer"):
        run(start(alone, epochs=1), [accumulate(2)])
    with pytest.raises(WorkloadError, match=r"two half steps, .* or Player\(…, closure=True\)"):
        Player(of.D, sam(of), of.real_and_fake)
    with pytest.raises(ValueError, match="closure='yes': True or False"):
        Player(of.D, sam(of), of.real_and_fake, closure="yes")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ numbers


def with_a_number(of: Gan) -> Alternating:
    def fooled(real: torch.Tensor, target: Any) -> torch.Tensor:
        return work.numbers["weight"] * of.fooled(real, target)

    players = {"D": Player(of.D, adam(of.D), of.real_and_fake), "G": Player(of.G, adam(of.G), fooled)}
    work = Alternating(players, real_digits(), numbers={"weight": 1.0})
    return work


@pytest.mark.parametrize("step", [0, 3])
def test_a_number_is_of_the_whole_training(step: int, tmp_path: Path) -> None:
    """A player's loss reads it, a schedule sets it by batches, and it is saved."""
    of, hand = gan(), gan()
    callbacks: list[Callback[Any]] = [schedule(weight=absolute(linear(1.0, 0.0, 8)), by="iteration")]
    state = start(with_a_number(of), epochs=2, seed=0)
    if step:
        callbacks += [checkpoint(tmp_path), suspending(step)]
        run(state, callbacks)
        of = gan()
        work = with_a_number(of)
        state = restore(tmp_path, work)
        assert work.numbers == {"weight": 0.875}
    final = run(state, callbacks)

    d_optimizer, g_optimizer, batch = adam(hand.D), adam(hand.G), 0
    torch.manual_seed(0)
    for _ in range(2):
        for real, target in real_digits():
            hand.D.zero_grad()
            hand.real_and_fake(real, target)["loss"].backward()
            d_optimizer.step()
            hand.G.zero_grad()
            ((1 - batch / 8) * hand.fooled(real, target)).backward()
            g_optimizer.step()
            batch += 1
    assert equal(of.weights(), hand.weights())
    assert final.hyper["weight"] == 0.125


@pytest.mark.parametrize("name", ["lr", "beta1"])
def test_a_number_that_any_player_has_is_refused(name: str) -> None:
    """It would be taken for what all have in common."""
    of = gan()
    players = {"D": Player(of.D, several(of)["sgd"], of.fooled), "G": Player(of.G, adam(of.G), of.fooled)}
    with pytest.raises(WorkloadError, match=f"numbers has the name '{name}', which is a number of the optimizer"):
        Alternating(players, real_digits(), numbers={name: 1.0})


# ------------------------------------------------------------- compiled models, frozen ones, own state


def compiled_gan() -> Gan:
    of = gan()
    torch._dynamo.reset()
    return attrs.evolve(of, G=torch.compile(of.G, backend="eager"))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile, about torch itself
@pytest.mark.parametrize(("saved", "goes_on"), [(compiled_gan, gan), (gan, compiled_gan)])
def test_a_compiled_model_of_a_player_has_plain_names(
    saved: Callable[[], Gan], goes_on: Callable[[], Gan], tmp_path: Path
) -> None:
    """Each training goes on with what the other one saved, and the weights fit a bare model of either kind."""
    of, hand = saved(), gan()
    callbacks = [ema(0.9, validate=False, player="G"), checkpoint(tmp_path), suspending(6)]
    run(start(of.dcgan(), epochs=2, seed=0), callbacks)
    (last, *_), _ = candidates(tmp_path, "last")
    _, parts = read(last)
    of = goes_on()
    run(restore(tmp_path, of.dcgan()), callbacks)
    run(start(hand.dcgan(), epochs=2, seed=0))
    for bare in (gan().G, compiled_gan().G):
        load_weights(tmp_path, bare, which="last", player="G")
        assert equal(bare.state_dict().values(), of.G.state_dict().values())
        load_weights(tmp_path, bare, which="last")

    assert equal(of.weights(), hand.weights())
    assert "_orig_mod" not in repr(parts)


@attrs.frozen
class Judge:
    """A loss of D with a frozen teacher that is worth a file, and with a state of its own, which a method has not."""

    of: Gan
    teacher: nn.Module = attrs.field(factory=lambda: nn.Linear(64, 64).requires_grad_(False).eval())
    seen: list[int] = attrs.field(factory=lambda: [0])

    def __call__(self, real: torch.Tensor, target: Any) -> torch.Tensor:
        self.seen[0] += 1
        return self.of.real_and_fake(real + 0.01 * self.teacher(real), target)["loss"] / self.seen[0]

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen[0]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen[0] = state["seen"]


def judged(of: Gan) -> Alternating:
    torch.manual_seed(4)
    players = {"D": Player(of.D, adam(of.D), Judge(of)), "G": Player(of.G, adam(of.G), of.fooled)}
    return Alternating(players, real_digits())


@pytest.mark.parametrize("step", [5, 6])
def test_a_loss_of_any_player_is_saved(step: int, tmp_path: Path) -> None:
    """Its own state, whoever plays last; and its teacher, in a file that checkpoints share."""
    of, hand = gan(), gan()
    callbacks = [checkpoint(tmp_path, every_steps=1, last=3), suspending(step)]
    run(start(judged(of), epochs=2, seed=0), callbacks)
    of = gan()
    work = judged(of)
    final = run(restore(tmp_path, work), callbacks)
    plain = judged(hand)
    run(start(plain, epochs=2, seed=0))

    assert final.phase is Phase.DONE
    assert equal(of.weights(), hand.weights())
    assert work.by_player["D"].loss.seen == plain.by_player["D"].loss.seen == [8]  # type: ignore[attr-defined]
    assert list(tmp_path.glob("*/frozen-*.pt"))


# --------------------------------------------------------------------------------- what is refused


@attrs.frozen
class Widen(Command):
    """Changes what a model consists of."""

    changes_modules: ClassVar[bool] = True


@carries_out(Widen)
def widen(work: Any, command: Widen) -> None:
    raise AssertionError("refused before")


def test_what_is_for_one_model_is_refused() -> None:
    """A change of structure, before the training begins; a backward of one's own, when it is made."""

    @on(Phase.EPOCH_BEGIN, commands={Widen})
    def widening(state: State) -> Transition:
        return Transition(commands=(Widen(),))

    of = gan()
    with pytest.raises(WorkloadError, match="Widen, but Widen changes what a model consists of, which stays as it is"):
        run(start(of.dcgan(), epochs=1), [widening])
    with pytest.raises(TypeError, match="backward"):
        of.dcgan(backward=lambda loss, parameters: None)
