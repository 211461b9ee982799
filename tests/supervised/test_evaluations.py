"""Several evaluations in one validation: what each measures, with which weights, when, and what it leaves as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fsm_train import (
    Callback,
    Evaluation,
    Flag,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    evaluate,
    find_lr,
    load_weights,
    on,
    replay,
    restore,
    run,
    start,
    together,
    what_if,
)
from fsm_train.callbacks import checkpoint, early_stopping, ema, limit, validate_every
from fsm_train.cli import main
from fsm_train.core.commands import SaveCheckpoint
from fsm_train.sinks import progress
from tests.models import Noisy, accuracy, digits, network, same_weights, sgd, shuffled

CROSS_ENTROPY = nn.CrossEntropyLoss()
VALID = [tuple(digits(320).tensors)]
OTHER = [tuple(tensor[:64] for tensor in digits(320).tensors), tuple(tensor[64:96] for tensor in digits(320).tensors)]


def _work(valid: Any, **settings: Any) -> Supervised:
    model = network()
    return Supervised(model, sgd(model), CROSS_ENTROPY, shuffled(Noisy(digits())), valid, **settings)


def _loss(model: nn.Module, batches: Iterable[Any], loss_fn: Callable[..., torch.Tensor] = CROSS_ENTROPY) -> float:
    """The mean over the samples, in a plain loop over batches."""
    losses = [(loss_fn(model(inputs), target).item(), len(target)) for inputs, target in batches]
    return sum(loss * size for loss, size in losses) / sum(size for _, size in losses)


def _measured(metrics: list[dict[str, float]], at: Phase = Phase.VALID_END) -> Callback[Any]:
    """Notes the metrics of each validation."""

    @on(at)
    def measured(state: State) -> None:
        metrics.append({name: value for name, value in state.metrics.items() if name.startswith("valid_")})

    return measured


# ------------------------------------------------------------------------ what is measured


def test_each_evaluation_of_a_mapping_has_its_own_metrics() -> None:
    """The names are valid_NAME_METRIC, and the values those of a plain loop over each loader."""
    work = _work({"clean": VALID, "other": Evaluation(OTHER)}, metrics={"accuracy": accuracy})

    final = run(start(work, epochs=2, seed=0))

    names = {"valid_clean_loss", "valid_clean_accuracy", "valid_other_loss", "valid_other_accuracy"}
    assert final.metrics.keys() == {"train_loss", "train_accuracy", *names}
    assert work.metric_names == {"train_loss", "train_accuracy", *names}
    work.model.eval()
    with torch.no_grad():
        assert final.metrics["valid_clean_loss"] == pytest.approx(_loss(work.model, VALID), rel=1e-6)
        assert final.metrics["valid_other_loss"] == pytest.approx(_loss(work.model, OTHER), rel=1e-6)


def test_one_alone_is_as_a_loader() -> None:
    """An evaluation alone with nothing but data gives what its loader gives: valid_loss, bit for bit."""
    metrics = [run(start(_work(valid), epochs=2, seed=0)).metrics for valid in (OTHER, Evaluation(OTHER))]

    assert metrics[0].keys() == {"train_loss", "valid_loss"}
    assert metrics[0] == metrics[1]


def test_several_evaluations_change_nothing_of_the_training() -> None:
    """The weights are those of a training without validation, although the evaluations draw, seed and exchange."""
    several = {
        "noisy": shuffled(Noisy(digits())),
        "seeded": Evaluation(shuffled(Noisy(digits())), seed=3, loss_fn=nn.MultiMarginLoss(), metrics={}),
        "average": Evaluation(OTHER, weights="ema", forward=lambda model, inputs: model(inputs) * 2),
    }
    ours, theirs = _work(several), _work(None)
    run(start(ours, epochs=3, seed=0), [ema(0.9, name="ema")])
    run(start(theirs, epochs=3, seed=0), [ema(0.9, name="ema")])

    assert same_weights(ours.model, theirs.model)


def test_each_evaluation_measures_what_it_would_measure_alone() -> None:
    """What goes before it in the validation does not count, although all of them draw random numbers."""
    noisy = DataLoader(Noisy(digits()), batch_size=64, shuffle=True)
    alone = run(start(_work({"b": noisy}), epochs=2, seed=0)).metrics
    beside = run(start(_work({"a": shuffled(Noisy(digits())), "b": noisy}), epochs=2, seed=0)).metrics

    assert alone["valid_b_loss"] == beside["valid_b_loss"]


def test_without_a_loss_the_rest_goes_on() -> None:
    """loss_fn=None measures no valid_loss, and asks for none: the output may be of any form, as boxes are."""
    boxes = Evaluation(
        OTHER,
        loss_fn=None,
        forward=lambda model, inputs: {"classes": model(inputs).argmax(1)},
        metrics={"found": lambda output, target: (output["classes"] == target).float().mean()},
    )
    seen: list[Mapping[str, float]] = []

    @on(Phase.VALID_BATCH_END, needs={"loss"})
    def sees(state: State) -> None:
        seen.append(state.facts)

    work = _work(boxes)
    final = run(start(work, epochs=1, seed=0), [sees])

    assert final.metrics.keys() == {"train_loss", "valid_found"}
    assert work.metric_names == {"train_loss", "valid_found"}
    assert [("loss" in facts, facts["batch_size"]) for facts in seen] == [(False, 64), (False, 32)]


def test_metrics_of_one_evaluation_cost_the_training_nothing() -> None:
    """A metric of one evaluation is called for its batches alone, and the training's are not measured in it."""
    sizes: list[int] = []

    def top(output: torch.Tensor, target: torch.Tensor) -> float:
        sizes.append(len(target))
        return 1.0

    valid = {"a": Evaluation(OTHER, metrics={"top": top}), "b": VALID}
    final = run(start(_work(valid, metrics={"accuracy": accuracy}), epochs=1, seed=0))

    assert sizes == [64, 32]
    assert [name for name in final.metrics if name.startswith("valid_")] == [
        *("valid_a_loss", "valid_a_top", "valid_b_loss", "valid_b_accuracy")
    ]


def test_loss_and_forward_of_its_own() -> None:
    """An evaluation has its own loss and forward where it names them; the other one and the training keep theirs."""
    double = Evaluation(OTHER, loss_fn=nn.MultiMarginLoss(), forward=lambda model, inputs: 2 * model(inputs))
    work = _work({"double": double, "plain": OTHER})
    final = run(start(work, epochs=1, seed=0))
    model = work.model.eval()

    with torch.no_grad():
        theirs = _loss(lambda inputs: 2 * model(inputs), OTHER, nn.MultiMarginLoss())  # type: ignore[arg-type]
        assert final.metrics["valid_double_loss"] == pytest.approx(theirs, rel=1e-6)
        assert final.metrics["valid_plain_loss"] == pytest.approx(_loss(model, OTHER), rel=1e-6)


def test_module_of_an_own_loss_is_in_eval_mode_while_it_is_used() -> None:
    """A loss of an evaluation that has dropout is evaluated without, and put back into the mode that it was in."""
    modes: list[bool] = []

    class Loss(nn.Module):
        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            modes.append(self.training)
            return CROSS_ENTROPY(output, target)

    loss = Loss()
    run(start(_work({"a": Evaluation(OTHER, loss_fn=loss)}), epochs=1))

    assert modes == [False, False]
    assert loss.training


def test_inputs_go_into_an_own_forward_as_they_are() -> None:
    """A batch that only an own forward can take, such as a text, is counted as such and not passed by position."""
    texts = [(["a", "bc"], torch.tensor([1, 2]))]

    def forward(model: nn.Module, inputs: list[str]) -> torch.Tensor:
        return torch.tensor([len(text) for text in inputs])

    valid = Evaluation(texts, loss_fn=None, forward=forward, metrics={"same": accuracy_of_lengths})

    assert evaluate(_work(valid)) == {"valid_same": 1.0}


def accuracy_of_lengths(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output == target).float().mean()


def test_gradients_in_validation() -> None:
    """With grad_in_valid a derivative of the output can be measured; the weights are those of a plain loop.

    Energies and their forces, the derivatives by the inputs, are both trained, as for molecules.
    """
    inputs = torch.linspace(-1, 1, 32).unsqueeze(1)
    batches = [
        (inputs[::2], (inputs[::2] ** 2, -2 * inputs[::2])),
        (inputs[1::2], (inputs[1::2] ** 2, -2 * inputs[1::2])),
    ]

    def forward(model: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions = inputs.detach().requires_grad_()
        energy = model(positions)
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=model.training)
        return energy, -gradient

    def loss_fn(output: tuple[torch.Tensor, ...], target: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return sum(((ours - theirs) ** 2).mean() for ours, theirs in zip(output, target, strict=True))  # type: ignore[return-value]

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        return model, sgd(model)

    (ours, optimizer), (theirs, their_optimizer) = made(), made()
    work = Supervised(ours, optimizer, loss_fn, batches, batches, forward=forward, grad_in_valid=True)
    final = run(start(work, epochs=3))
    for _ in range(3):
        theirs.train()
        for each, target in batches:
            loss_fn(forward(theirs, each), target).backward()
            their_optimizer.step()
            their_optimizer.zero_grad()

    assert same_weights(ours, theirs)
    theirs.eval()
    expected = sum(loss_fn(forward(theirs, each), target).item() for each, target in batches) / 2
    assert final.metrics["valid_loss"] == pytest.approx(expected, rel=1e-6)
    without = Supervised(*made(), loss_fn, batches, batches, forward=forward)
    with pytest.raises(RuntimeError, match="does not require grad"):
        run(start(without, epochs=1))


# ------------------------------------------------------------------------------- weights


def test_model_and_average_side_by_side() -> None:
    """One evaluation has the own weights, one the average, whichever of them the callbacks validate with."""
    valid = {"own": Evaluation(OTHER), "ema": Evaluation(OTHER, weights="ema"), "loader": OTHER}
    work = _work(valid)
    theirs: list[tuple[float, float]] = []

    @on(Phase.VALID_BEGIN)
    def compare(state: State) -> None:
        model, average = copy.deepcopy(work.model).eval(), work.carried_over.averages["ema"]
        with torch.no_grad():
            own = _loss(model, OTHER)
            for name, parameter in model.named_parameters():
                parameter.copy_(average.parameters[f"model.{name}"])
            for name, buffer in model.named_buffers():
                buffer.copy_(average.buffers[f"model.{name}"])
            theirs.append((own, _loss(model, OTHER)))

    ours: list[dict[str, float]] = []
    final = run(start(work, epochs=3, seed=0), [ema(0.8), compare, _measured(ours)])

    assert [m["valid_own_loss"] for m in ours] == pytest.approx([own for own, _ in theirs], rel=1e-6)
    assert [m["valid_ema_loss"] for m in ours] == pytest.approx([average for _, average in theirs], rel=1e-6)
    assert [m["valid_loader_loss"] for m in ours] == [m["valid_own_loss"] for m in ours]
    assert len({value for pair in theirs for value in pair}) == 6
    assert final.phase is Phase.DONE


def test_loader_is_evaluated_with_the_weights_that_the_model_has() -> None:
    """Without an evaluation that names an average, ema gives plain loaders its average, alone and in a mapping."""
    alone = run(start(_work(OTHER), epochs=2, seed=0), [ema(0.9)]).metrics["valid_loss"]
    in_mapping = run(start(_work({"a": OTHER}), epochs=2, seed=0), [ema(0.9)]).metrics["valid_a_loss"]
    own = run(start(_work(Evaluation(OTHER)), epochs=2, seed=0), [ema(0.9)]).metrics["valid_loss"]

    assert alone == in_mapping != own


def test_average_that_nobody_keeps_is_refused_before_the_first_step() -> None:
    """The error says which evaluation, which averages there are, and what to do."""
    work = _work({"a": OTHER, "slow": Evaluation(OTHER, weights="slow")})
    before = copy.deepcopy(work.model)

    with pytest.raises(
        WorkloadError, match=r"valid\['slow'\] is with weights='slow', .* there are 'ema'\. .*ema\(name"
    ):
        run(start(work, epochs=1), [ema()])

    assert same_weights(before, work.model)


def test_learning_rate_test_needs_no_average_and_counts_no_validation() -> None:
    """It validates nothing; the training after it is as without it, also with an evaluation at each second one."""
    valid = {"often": OTHER, "rare": Evaluation(OTHER, weights="ema", every=2)}
    alone, work = _work(valid), _work(valid)
    expected = run(start(alone, epochs=3, seed=0), [ema(0.9)])
    found = find_lr(start(work, epochs=1), steps=5)

    assert len(found.losses) == 5
    assert run(start(work, epochs=3, seed=0), [ema(0.9)]).history == expected.history
    assert same_weights(work.model, alone.model)


def test_score_of_an_evaluation_is_that_of_its_weights(tmp_path: Path) -> None:
    """load_weights gives the weights that the monitored evaluation had, whatever the others were measured with."""
    valid = {"own": Evaluation(OTHER), "ema": Evaluation(OTHER, weights="ema")}
    callbacks = [
        ema(0.8),
        *(checkpoint(tmp_path / name, monitor=f"valid_{name}_loss", keep=1, name=f"best {name}") for name in valid),
    ]
    run(start(_work(valid), epochs=3, seed=0), callbacks)

    for name in valid:
        model = network()
        loaded = load_weights(tmp_path / name, model)
        model.eval()
        with torch.no_grad():
            assert loaded["weights"] == {"own": "model", "ema": "ema"}[name]
            assert _loss(model, OTHER) == pytest.approx(loaded["metrics"][f"valid_{name}_loss"], rel=1e-6)


# ---------------------------------------------------------------------------- every and seed


def test_every_is_each_so_many_th_validation() -> None:
    """At others the evaluation measures nothing, and its metrics of before are gone; a monitor waits for the next."""
    ours: list[dict[str, float]] = []
    valid = {"often": OTHER, "rare": Evaluation(VALID, every=2)}
    callbacks = [_measured(ours), early_stopping("valid_rare_loss", patience=3)]

    final = run(start(_work(valid), epochs=5, seed=0), callbacks)

    assert ["valid_rare_loss" in metrics for metrics in ours] == [False, True, False, True, False]
    assert all("valid_often_loss" in metrics for metrics in ours)
    assert ["valid_rare_loss" in metrics for metrics in final.history] == [False, True, False, True, False]


def test_validation_in_which_none_is_due_measures_nothing() -> None:
    """It is no error that there was no batch. At the same batch it is not counted twice."""
    ours: list[dict[str, float]] = []
    work = _work(Evaluation(OTHER, every=2))

    run(start(work, epochs=4, seed=0), [_measured(ours, Phase.EPOCH_END), validate_every(steps=10)])

    assert [[*metrics] for metrics in ours] == [[], ["valid_loss"], [], ["valid_loss"]]
    assert work.carried_over.validations[0] == 4
    assert evaluate(work).keys() == {"valid_loss"}
    assert work.carried_over.validations[0] == 4


def test_evaluation_with_a_seed_draws_the_same_each_time() -> None:
    """The same noise from data, model and own generators in each validation; the generators are then put back."""
    own = torch.Generator().manual_seed(1)
    others: list[Any] = [random.Random(1), np.random.default_rng(1), np.random.RandomState(1)]
    draws: list[tuple[float, ...]] = []

    def forward(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        drawn = (torch.rand(()).item(), torch.rand((), generator=own).item(), *(other.random() for other in others))
        draws.append((inputs.sum().item(), *drawn))
        output: torch.Tensor = model(inputs)
        return output

    data = DataLoader(Noisy(digits(64)), batch_size=64, shuffle=True)
    valid = {"other": shuffled(Noisy(digits())), "same": Evaluation(data, forward=forward, seed=7)}
    run(start(_work(valid), epochs=3, seed=0))
    assert len(draws) == 3
    assert len(set(draws)) == 1
    assert others[0].random() == random.Random(1).random()
    assert others[2].random() == np.random.RandomState(1).random()
    assert torch.equal(own.get_state(), torch.Generator().manual_seed(1).get_state())


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("persistent", [False, True])
def test_evaluation_with_a_seed_draws_the_same_in_workers(persistent: bool, joined: bool) -> None:
    """Also in workers that stay; another evaluation of the same loader has these, as if it were alone."""

    def trained(seeded: bool) -> tuple[list[list[float]], list[float], list[float]]:
        workers = {"num_workers": 1, "persistent_workers": persistent, "multiprocessing_context": "fork"}
        loader: Any = DataLoader(Noisy(digits(64)), batch_size=32, shuffle=True, **workers)
        if joined:
            loader = together(loader, [0, 0])
        seen: list[float] = []

        def forward(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
            seen.append(inputs.sum().item())
            output: torch.Tensor = model(inputs)
            return output

        same = {"same": Evaluation(loader, seed=7, forward=forward)} if seeded else {}
        split = lambda batch: tuple(batch[0] if isinstance(batch[0], (tuple, list)) else batch)
        work = _work({**same, "other": loader}, split=split)
        final = run(start(work, epochs=3, seed=0))
        again = evaluate(work, same["same"]).values() if seeded else []
        other = [metrics["valid_other_loss"] for metrics in final.history]
        return [seen[i : i + 2] for i in range(0, len(seen), 2)], other, [*again]

    draws, beside, again = trained(seeded=True)

    assert len(draws) == 4
    assert all(each == draws[0] for each in draws)
    assert beside == trained(seeded=False)[1]
    assert len(again) == 1


def test_any_whole_number_is_a_seed() -> None:
    """Also one that is larger than the seeds of torch, as of a training."""
    valid = Evaluation(shuffled(Noisy(digits(64))), seed=2**70 + 1)
    metrics = [run(start(_work(valid), epochs=1, seed=2**70)).metrics for _ in range(2)]

    assert metrics[0] == metrics[1]


# ------------------------------------------------------------------- one validation of the machine


def test_one_validation_goes_through_all_evaluations_in_order() -> None:
    """VALID_BEGIN and VALID_END come once, and the batches of all evaluations in between."""
    seen: list[tuple[Phase, int, float]] = []

    @on(Phase.VALID_BEGIN, Phase.VALID_BATCH_END, Phase.VALID_END)
    def sees(state: State) -> None:
        seen.append((state.phase, state.valid_batch, state.facts["batch_size"]))

    run(start(_work({"a": OTHER, "b": VALID}), epochs=1, seed=0), [sees])

    assert [(phase.value, batch) for phase, batch, _ in seen] == [
        *(("valid_begin", 0), ("valid_batch_end", 1), ("valid_batch_end", 2), ("valid_batch_end", 3), ("valid_end", 3))
    ]
    assert [size for _, _, size in seen[1:4]] == [64, 32, 320]


def test_stopped_validation_has_the_metrics_of_what_it_reached() -> None:
    """STOP_VALID ends the validation: evaluations that it did not reach measure nothing."""
    final = run(start(_work({"a": OTHER, "b": VALID}), epochs=1, seed=0), [limit(valid_batches=1)])

    assert [name for name in final.metrics if name.startswith("valid_")] == ["valid_a_loss"]


def test_evaluation_without_a_batch_is_named() -> None:
    """The error says which of the evaluations it is, also if another one follows it."""

    class Empty:
        def __iter__(self) -> Any:
            return iter(())

    for valid in ({"a": Empty(), "b": OTHER}, {"b": OTHER, "a": Empty()}):
        with pytest.raises(WorkloadError, match=r"valid\['a'\] gave no batch that counts"):
            run(start(_work(valid), epochs=1))


def test_failing_evaluation_leaves_the_own_weights_and_modes() -> None:
    """After an error under the average, the model has its own weights again, in its own modes."""

    def fails(output: Any, target: Any) -> float:
        raise ArithmeticError

    work = _work({"own": OTHER, "ema": Evaluation(OTHER, weights="ema", metrics={"fails": fails})})
    reference = _work(None)
    with pytest.raises(ArithmeticError) as raised:
        run(start(work, epochs=1, seed=0), [ema(0.5)])
    run(start(reference, epochs=1, seed=0), [])

    assert any("metric 'fails' on valid_ema data" in note for note in raised.value.__notes__)
    work.carried_over.averages["ema"].use(False)
    assert same_weights(work.model, reference.model)
    assert work.model.training


# ----------------------------------------------------------- resumed, logged, replayed, shown


def _awkward() -> Supervised:
    noisy = shuffled(Noisy(digits(64)))
    valid = {
        "own": Evaluation(noisy, every=2),
        "ema": Evaluation(noisy, weights="ema", seed=5),
        "text": Evaluation(OTHER, loss_fn=None, metrics={"accuracy": accuracy}, weights="ema"),
    }
    return _work(valid)


def _suspend_everywhere() -> Callback[Any]:
    @on(Phase.BATCH_END, Phase.VALID_BATCH_END, Phase.VALID_END, memory=(-1, -1))
    def suspends(state: State, last: tuple[int, int]) -> Transition | None:
        in_validation = {Phase.BATCH_END: 0, Phase.VALID_BATCH_END: state.valid_batch, Phase.VALID_END: 100}
        here = (state.iteration, in_validation[state.phase])
        return Transition(flags=Flag.SUSPEND, memory=here) if here > last else None

    return suspends


def test_suspended_anywhere_and_restored_it_is_the_same_training(tmp_path: Path) -> None:
    """Left in each batch and in each evaluation, and restored into new parts: weights and metrics bit for bit."""
    callbacks = [ema(0.9), validate_every(steps=3)]

    @on(Phase.SUSPEND)
    def saves(state: State) -> Transition:
        return Transition(commands=(SaveCheckpoint(str(tmp_path), "here"),))

    undisturbed = _awkward()
    expected = run(start(undisturbed, epochs=2, seed=0), callbacks)
    work = _awkward()
    state = run(start(work, epochs=2, seed=0), [*callbacks, _suspend_everywhere(), saves])
    parts = 1
    while state.phase is Phase.SUSPENDED:
        torch.manual_seed(parts)
        work = _awkward()
        state = run(restore(tmp_path / "here", work), [*callbacks, _suspend_everywhere(), saves])
        parts += 1

    assert parts > 50
    assert same_weights(work.model, undisturbed.model)
    assert state.history == expected.history
    assert any("valid_own_loss" in metrics for metrics in expected.history)


def test_log_of_several_evaluations_replays(tmp_path: Path) -> None:
    """Replay makes the same decisions of them, what_if others, and a monitor of a wrong name is refused at once."""
    log = tmp_path / "run.jsonl"
    callbacks = [ema(0.9), validate_every(steps=3), early_stopping("valid_own_loss", patience=1, min_delta=1.0)]
    final = run(start(_awkward(), epochs=4, seed=0), callbacks, log=log)

    assert "early_stopping" in final.reason
    assert replay(log).divergence is None
    longer = what_if(log, [ema(0.9), validate_every(steps=3), early_stopping("valid_own_loss", patience=1)])
    assert "valid_own_loss" in str(longer)
    with pytest.raises(LookupError, match="'valid_owned_loss', .* Is 'valid_own_loss' meant?"):
        run(start(_awkward(), epochs=1), [early_stopping("valid_owned_loss")])


def test_progress_shows_each_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    """The line of an epoch has the metrics of all evaluations that it measured."""
    run(start(_work({"a": OTHER, "b": VALID}), epochs=1, seed=0), sinks=[progress()])

    shown = capsys.readouterr()
    assert "valid_a_loss" in shown.out + shown.err
    assert "valid_b_loss" in shown.out + shown.err


def test_monitor_that_means_one_of_several_gets_the_name_of_one() -> None:
    """What monitors valid_loss by default is told how it is called here, and not of train_loss."""
    with pytest.raises(LookupError, match="'valid_loss', .* Is 'valid_clean_loss' meant?"):
        run(start(_work({"clean": OTHER, "noisy": OTHER}), epochs=1), [early_stopping()])


def test_plot_has_a_curve_of_each_evaluation(tmp_path: Path) -> None:
    """With its own name in the legend, also of one that is not there each time."""
    log, picture = tmp_path / "run.jsonl", tmp_path / "curves.svg"
    valid = {"clean": OTHER, "noisy": Evaluation(OTHER, every=2)}
    run(start(_work(valid, measures={"one": lambda work: {"a": 1.0}}), epochs=4, seed=0), log=log)

    assert main(["plot", str(log), "-o", str(picture)]) == 0
    drawn = picture.read_text()
    assert all(name in drawn for name in ("valid_clean_loss", "valid_noisy_loss", "valid_one_a"))


def test_persistent_workers_of_several_loaders(tmp_path: Path) -> None:
    """Whether the workers of each loader ran is saved and restored, so that a resumed training draws the same."""

    def made() -> Supervised:
        workers = DataLoader(digits(64), batch_size=32, num_workers=1, persistent_workers=True)
        noisy = Evaluation(workers, forward=lambda model, inputs: model(inputs + torch.randn_like(inputs)))
        return _work({"workers": noisy, "plain": OTHER})

    @on(Phase.BATCH_END)
    def suspends(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 15 else None

    expected = run(start(made(), epochs=2, seed=0))
    run(start(made(), epochs=2, seed=0), [suspends, checkpoint(tmp_path)])
    work = made()
    final = run(restore(tmp_path, work))

    assert final.history == expected.history


# ------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: Evaluation(OTHER, every=0), ValueError, "every=0: it is a whole number from 1"),
        (lambda: Evaluation(OTHER, seed=-1), ValueError, "seed=-1: it is a whole number from 0"),
        (lambda: Evaluation(OTHER, weights=""), ValueError, "weights='': 'own', or the name of an average"),
        (lambda: Evaluation(OTHER, weights=None), ValueError, "weights=None"),  # type: ignore[arg-type]
        (lambda: Evaluation(OTHER, loss_fn=nn.MSELoss), WorkloadError, "loss_fn is the class MSELoss"),
        (lambda: Evaluation(OTHER, forward=3), WorkloadError, "forward is an int: give a function"),  # type: ignore[arg-type]
        (lambda: Evaluation(OTHER, forward=lambda model: model), WorkloadError, "forward is called with"),
        (lambda: Evaluation(OTHER, metrics={"a": 3}), TypeError, "the metric 'a' is"),  # type: ignore[dict-item]
        (lambda: _work(OTHER, grad_in_valid=1), ValueError, "grad_in_valid=1: True or False"),
        (lambda: Evaluation(OTHER, weights="model"), ValueError, "weights='model': write weights='own'"),
        (lambda: _work([Evaluation(OTHER)]), WorkloadError, "valid is a list of evaluations, .* valid={'clean': …"),
        (
            lambda: _work((shuffled(digits()),) * 2),
            WorkloadError,
            "valid is a tuple of evaluations",
        ),
        (lambda: _work({}), WorkloadError, "valid is a mapping without evaluations"),
        (lambda: _work({1: OTHER}), TypeError, "valid has the key 1"),
        (lambda: _work({"": OTHER}), ValueError, "valid has the name ''"),
        (lambda: _work({"a": []}), WorkloadError, r"valid\['a'\] has no batches"),
        (lambda: _work(Evaluation([])), WorkloadError, "valid has no batches"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(make: Callable[[], object], error: type, sentence: str) -> None:
    """What cannot be used is refused where it is given, and the error says what was found."""
    with pytest.raises(error, match=sentence):
        make()


def test_two_evaluations_may_not_measure_one_name() -> None:
    """A metric of one that is called as one of another is refused, with the name that they would share."""
    valid = {"a": Evaluation(OTHER, metrics={"b_loss": accuracy}), "a_b": OTHER}

    with pytest.raises(WorkloadError, match=r"valid\['a'\] and valid\['a_b'\] both measure valid_a_b_loss"):
        _work(valid)


def test_first_batch_of_each_evaluation_is_looked_at_before_the_first_step() -> None:
    """A batch of a wrong form is found before the training begins, with the name of the evaluation."""
    work = _work({"a": OTHER, "b": [(torch.zeros(3, 64), torch.zeros(2))]})

    with pytest.raises(WorkloadError, match=r"valid\['b'\]: "):
        run(start(work, epochs=1))


def test_representation_names_the_evaluations() -> None:
    """The repr of a training has each loader under its name, and that of an evaluation its settings."""
    text = repr(_work({"a": OTHER, "b": Evaluation(VALID, every=3)}))

    assert "valid['a']" in text
    assert "valid['b']" in text
    assert "every=3, seed=None" in repr(Evaluation(VALID, every=3))
