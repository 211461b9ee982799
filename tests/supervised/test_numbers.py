"""Numbers of one's own: set by callbacks, read in the loss and the model, logged, replayed, saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import (
    Callback,
    CallbackError,
    Flag,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    extend,
    find_lr,
    iterate,
    on,
    read_log,
    replay,
    restore,
    run,
    start,
)
from fsm_train.callbacks import accumulate, checkpoint, compile_step, mixed_precision, schedule
from fsm_train.schedules import absolute, cosine, linear
from fsm_train.supervised import handlers
from fsm_train.supervised.compilation import CapturedStep
from fsm_train.testing import at, check_callback, drive, simulate
from tests.diabetes_training import batches
from tests.how_long import of_all
from tests.killed import killed_and_resumed
from tests.models import same_weights
from tests.supervised.test_compilation import PretendedGraph

BATCHES = batches(8, 8, 8, 8, 8, 8)
RISE = linear(0.0, 1.0, 8)


class Blurred(nn.Module):
    """A network with noise in the middle, whose output is (prediction, size of the code)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.decode, self.noise = nn.Linear(10, 6), nn.Linear(6, 1), 0.1

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        code = self.encode(inputs)
        return self.decode(code + self.noise * torch.randn_like(code)), code.square().mean()


def loss_with(weight: Callable[[], float]) -> Callable[..., torch.Tensor]:
    def loss(output: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(output[0], target) + weight() * output[1]

    return loss


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def annealed(train: Any = BATCHES, optimizer: Callable[[nn.Module], Any] = sgd, **settings: Any) -> Supervised:
    """The weight of the second term is a number of one's own."""
    model = Blurred()
    settings = {"numbers": {"kl": 0.0}, **settings}
    work = Supervised(model, optimizer(model), loss_with(lambda: work.numbers["kl"]), train, **settings)
    return work


def by_hand(every: int = 1, epochs: int = 2) -> Blurred:
    model = Blurred()
    optimizer, step = sgd(model), 0
    torch.manual_seed(0)
    for _ in range(epochs):
        for i, (inputs, target) in enumerate(BATCHES):
            loss = loss_with(lambda: RISE(step))(model(inputs), target)  # noqa: B023  called at once
            (loss / every).backward()
            if (i + 1) % every == 0:
                optimizer.step()
                optimizer.zero_grad()
                step += 1
    return model


@pytest.mark.parametrize("every", [1, 2])
def test_an_annealed_loss_is_the_loop_by_hand(every: int) -> None:
    """Each batch has the weight of the step that it is for: it is set before the forward pass. Also accumulated."""
    work = annealed()
    final = run(start(work, epochs=2, seed=0), [schedule(kl=RISE), accumulate(every)])

    assert same_weights(work.model, by_hand(every))
    assert work.numbers == {"kl": final.hyper["kl"]} == {"kl": RISE(final.step - 1)}


def test_killed_and_resumed_it_goes_on_exactly(tmp_path: Path) -> None:
    """In mid-epoch, in a window; the log replays, and holds the number."""
    callbacks = [schedule(kl=RISE, lr=cosine(6)), accumulate(2)]
    undisturbed = annealed()
    final = run(start(undisturbed, epochs=2, seed=0), callbacks)

    resumed, work = killed_and_resumed(annealed, tmp_path, 5, callbacks)

    assert same_weights(work.model, undisturbed.model)
    assert resumed.hyper == final.hyper
    logged = [line.hyper["kl"] for line in read_log(tmp_path / "run.jsonl") if getattr(line, "hyper", None)]
    assert (logged[0], logged[-1]) == (0.0, RISE(5))


def test_a_finished_training_goes_on_with_its_numbers() -> None:
    """As they were left; the schedule goes on where it was."""
    whole, parted = annealed(), annealed()
    run(start(whole, epochs=2, seed=0), [schedule(kl=RISE)])
    run(extend(run(start(parted, epochs=1, seed=0), [schedule(kl=RISE)]), epochs=1), [schedule(kl=RISE)])

    assert same_weights(parted.model, whole.model)


def test_any_callback_sets_it_and_the_model_reads_it() -> None:
    """By a Transition at BATCH_BEGIN; in `forward` as in the loss."""
    seen: list[float] = []

    def forward(model: nn.Module, inputs: torch.Tensor) -> Any:
        seen.append(work.numbers["noise"])
        return model(inputs)

    @on(Phase.BATCH_BEGIN, sets={"noise"})
    def alternate(state: State) -> Transition:
        return Transition(hyper={"noise": float(state.batch % 2)})

    work = annealed(numbers={"kl": 0, "noise": 0.5}, forward=forward)
    states = list(iterate(start(work, epochs=1), [alternate]))

    assert seen == [0.0, 1.0] * 3
    assert (states[-1].hyper["noise"], states[-1].hyper["kl"]) == (1.0, 0.0)


def test_it_is_restored_with_the_weights(tmp_path: Path) -> None:
    """Before the training goes on; what only one side has is a note."""
    run(start(annealed(), epochs=1, seed=0), [schedule(kl=RISE), checkpoint(tmp_path)])
    same, other = annealed(), annealed(numbers={"kl2": 1.0, "kl": 0.25})

    state = restore(tmp_path, same)
    noted = restore(tmp_path, other)

    assert same.numbers == {"kl": RISE(5)} == {"kl": state.hyper["kl"]}
    assert other.numbers == {"kl2": 1.0, "kl": RISE(5)}
    assert "the number 'kl2': it is not in the checkpoint, and begins as it is now" in noted.notes
    none = annealed(numbers=None, forward=lambda model, inputs: model(inputs))
    assert any("the number 'kl': it was saved" in note for note in restore(tmp_path, none).notes)


def test_finding_a_rate_puts_it_back() -> None:
    """What a callback set in the meantime is undone."""
    work = annealed()
    snapshot = work.snapshot()
    work.set_hyper({"kl": 0.75})
    assert work.hyper()["kl"] == 0.75

    work.put_back(snapshot)
    assert work.numbers == {"kl": 0.0}
    find_lr(start(work, epochs=1), steps=3)
    assert work.numbers == {"kl": 0.0}


def test_several_optimizers_leave_it_alone() -> None:
    """It has no owner, and no part."""

    def two(model: Any) -> dict[str, torch.optim.Optimizer]:
        return {"a": sgd(model.encode), "b": sgd(model.decode)}

    work = annealed(optimizer=two)
    final = run(start(work, epochs=2, seed=0), [schedule(kl=RISE), schedule(lr=cosine(20), optimizer="a")])

    assert final.hyper["kl"] == 1.0
    assert final.hyper["b.lr"] == 0.05


def test_a_captured_step_is_captured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number is a constant of the graph: a schedule by epoch costs a capture each epoch, and is right."""
    captured: list[CapturedStep] = []

    def pretend(work: Supervised, mode: str, backend: str) -> CapturedStep:
        captured.append(CapturedStep(work, PretendedGraph(work)))
        return captured[0]

    monkeypatch.setattr(handlers, "compiled_step", pretend)
    steady = [(*BATCHES[0],)] * 8
    weights = schedule(kl=lambda epoch: 0.5 * epoch, by="epoch")
    work, plain = annealed(steady), annealed(steady)
    work.model.noise = plain.model.noise = 0.0  # what stands in for a graph draws when it records
    run(start(work, epochs=3, seed=0), [weights, compile_step("graph")])
    run(start(plain, epochs=3, seed=0), [weights])

    assert captured[0].captures == 3
    assert same_weights(work.model, plain.model)


# --------------------------------------------------------------------------------------- as data


def test_what_a_loss_reads_is_set_before_the_forward_pass() -> None:
    """At BATCH_BEGIN, by the index of the step that the batch is for; what only a step reads at STEP_BEGIN, as ever."""
    both = schedule(kl=RISE, lr=cosine(8))
    answers = drive(both, [at(phase, step=2, lr=0.5, hyper={"kl": 0.0}) for phase in both.at])

    assert both.at == (Phase.SETUP, Phase.BATCH_BEGIN, Phase.STEP_BEGIN)
    assert [answer.hyper for answer in answers if answer] == [{}, {"kl": RISE(2)}, {"lr": 0.5 * cosine(8)(2)}]
    assert schedule(kl=RISE).at == (Phase.SETUP, Phase.BATCH_BEGIN)
    assert schedule(lr=cosine(8)).at == (Phase.SETUP, Phase.STEP_BEGIN)
    assert schedule(kl=RISE, by="epoch").at == (Phase.SETUP, Phase.EPOCH_BEGIN)
    assert schedule(rho=cosine(8), optimizer="sam").at == (Phase.SETUP, Phase.STEP_BEGIN)


def test_a_schedule_is_a_factor_of_what_is_not_zero() -> None:
    """Of 0 there are no factors, so there it is the value; of a number of the optimizer it stays a factor."""
    final = simulate(
        [schedule(kl=RISE, beta=RISE, weight_decay=RISE)], hyper={"kl": 0, "beta": 4, "weight_decay": 0}, batches=9
    )

    assert final.hyper == {"kl": 1.0, "beta": 4.0, "weight_decay": 0.0}
    assert simulate([schedule(kl=absolute(RISE))], hyper={"kl": 3}, batches=5).hyper["kl"] == RISE(4)


def test_stretched_over_the_training_it_is_that_of_its_step() -> None:
    """By training, with accumulation: the share is the same at BATCH_BEGIN as at the step."""
    seen: dict[Phase, list[float]] = {Phase.BATCH_END: []}

    @on(Phase.BATCH_END)
    def look(state: State) -> None:
        seen[Phase.BATCH_END].append(state.hyper["kl"])  # type: ignore[arg-type]

    simulate([schedule(kl=RISE, by="training"), accumulate(2), look], hyper={"kl": 0.0}, batches=8, epochs=1)

    assert seen[Phase.BATCH_END] == [0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


@pytest.mark.long
def test_a_schedule_of_ones_own_number_keeps_the_laws() -> None:
    """What holds for every callback of the library."""
    check_callback(schedule(kl=RISE, lr=cosine(8)), examples=of_all(200, few=12), hyper={"kl": 0.0, "lr": 0.1})


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("numbers", "error", "sentence"),
    [
        ({"lr": 1.0}, WorkloadError, "numbers has the name 'lr', which is a number of the optimizer"),
        (["kl"], TypeError, r"numbers is a list: give a mapping from names, numbers=\{'kl': 0.0\}"),
        ({1: 0.0}, TypeError, "numbers has the key 1: names are strings"),
        ({"": 0.0}, ValueError, "numbers has the name '': a name is not empty"),
        ({"\ud800": 0.0}, ValueError, "numbers has the name"),
        ({"muon.kl": 0.0}, ValueError, "a name with a dot is that of one of several optimizers"),
        ({"kl": (1.0, 2.0)}, TypeError, r"numbers=\{'kl': \(1.0, 2.0\)\}: it is one number"),
        ({"kl": "1"}, TypeError, "kl='1': a hyper-parameter is a number"),
        ({"kl": float("nan")}, ValueError, "kl=nan: a hyper-parameter is finite"),
    ],
)
def test_what_is_no_number_of_ones_own_is_refused(numbers: Any, error: type[Exception], sentence: str) -> None:
    """When the workload is made, with what to write instead."""
    with pytest.raises(error, match=sentence):
        annealed(numbers=numbers)


def test_a_number_that_one_of_several_optimizers_has_is_refused() -> None:
    """Also one that not all of them have."""
    model = Blurred()
    optimizers = {"a": sgd(model.encode), "b": torch.optim.Adam(model.decode.parameters())}

    with pytest.raises(WorkloadError, match="numbers has the name 'momentum', which is a number of the optimizer"):
        Supervised(model, optimizers, loss_with(lambda: 0.0), BATCHES, numbers={"momentum": 0.99})


def test_a_number_that_is_not_there_is_no_hyper_parameter() -> None:
    """With those that there are."""
    with pytest.raises(
        CallbackError, match="there is no hyper-parameter 'k' to schedule: the optimizer has lr, .*, kl"
    ):
        run(start(annealed(), epochs=1), [schedule(k=RISE)])


def test_a_validation_and_half_precision_read_it_too(tmp_path: Path) -> None:
    """The validation loss has the number as it is then; a training in bfloat16 replays."""
    work = annealed(valid=BATCHES[:1])
    log = tmp_path / "run.jsonl"

    @on(Phase.BATCH_END)
    def stop(state: State) -> Transition | None:
        return Transition(flags=Flag.STOP_TRAINING) if state.iteration == 4 else None

    callbacks: list[Callback[Any]] = [schedule(kl=RISE), mixed_precision(), stop]
    final = run(start(work, epochs=2, seed=0), callbacks, log=log)
    work.numbers["kl"] = 0.0

    assert final.metrics["valid_loss"] > 0
    assert replay(log, callbacks).ok
