"""A loss by parts: what is minimized, and the metrics of its parts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from fsm_train import (
    Callback,
    CallbackError,
    Flag,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    evaluate,
    on,
    run,
    start,
)
from fsm_train.callbacks import (
    accumulate,
    clip_grad_norm,
    compile_step,
    early_stopping,
    mixed_precision,
    mixup,
    skip_nonfinite,
)
from fsm_train.supervised import handlers
from fsm_train.supervised.compilation import WARM_UP, CapturedStep
from fsm_train.supervised.loss_parts import may_have_parts, separate
from fsm_train.supervised.means import weighted_mean
from tests.killed import killed_and_resumed
from tests.models import digits, same_weights
from tests.supervised.test_compilation import PretendedGraph

# ------------------------------------------------------------------------------- a variational autoencoder


class Autoencoder(nn.Module):
    """Codes with noise; its output is (rebuilt, mean, log variance)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encode, self.decode = nn.Linear(64, 8), nn.Linear(4, 64)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, log_variance = self.encode(images).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decode(code).sigmoid(), mean, log_variance


def vae_loss(output: tuple[torch.Tensor, ...], images: torch.Tensor) -> dict[str, torch.Tensor]:
    rebuilt, mean, log_variance = output
    bce = functional.binary_cross_entropy(rebuilt, images)
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()
    return {"loss": bce + 0.1 * kl, "bce": bce, "kl": kl}


IMAGES = digits(90).tensors[0]
BATCHES = [(batch, batch) for batch in IMAGES.split([16, 24, 16, 8, 16, 10])]


def training(loss_fn: Any = vae_loss, **settings: Any) -> Supervised:
    model = Autoencoder()
    return Supervised(model, torch.optim.SGD(model.parameters(), lr=0.5), loss_fn, BATCHES, BATCHES[:2], **settings)


def test_autoencoder_with_a_loss_by_parts_is_the_plain_loop(tmp_path: Path) -> None:
    """Weights and the means of each part, over the epoch's samples; monitored; also over a kill in mid-epoch."""
    plain = Autoencoder()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    torch.manual_seed(0)
    for _ in range(2):
        parts: dict[str, list[float]] = {"loss": [], "bce": [], "kl": []}
        for images, _target in BATCHES:
            losses = vae_loss(plain(images), images)
            losses["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            for name, values in parts.items():
                values.append(losses[name].item())
        before = torch.get_rng_state()
        with torch.no_grad():
            valid = [vae_loss(plain(images), images)["kl"].item() for images, _ in BATCHES[:2]]
        torch.set_rng_state(before)

    monitors = [early_stopping("valid_kl", patience=9)]
    whole = training()
    final = run(start(whole, epochs=2, seed=0), monitors)
    resumed, work = killed_and_resumed(training, tmp_path, 8, monitors)

    sizes = [len(images) for images, _ in BATCHES]
    expected = {f"train_{name}": weighted_mean(values, sizes) for name, values in parts.items()}
    expected["valid_kl"] = weighted_mean(valid, sizes[:2])
    assert {name: final.metrics[name] for name in expected} == expected
    assert resumed.metrics == final.metrics
    assert same_weights(whole.model, plain)
    assert same_weights(work.model, plain)


@on(Phase.LOSS_END)
def leave_one_out(state: State) -> Transition | None:
    return Transition(flags=Flag.SKIP_BACKWARD) if state.batch == 1 else None


@pytest.mark.parametrize(
    "callbacks",
    [
        [accumulate(2), clip_grad_norm(0.1)],
        [mixed_precision("bfloat16")],
        [mixed_precision("float16"), skip_nonfinite()],
        [compile_step("default", backend="eager")],
        [mixup(0.4)],
        [leave_one_out],
    ],
    ids=["accumulate, clip", "bfloat16", "float16", "compiled", "mixup", "left out"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile, about torch itself
def test_parts_change_nothing_of_the_training(callbacks: list[Callback[Any]]) -> None:
    """It is that of the loss alone, bit for bit, and the parts add up to the loss that was measured."""
    by_parts, alone = training(), training(lambda output, images: vae_loss(output, images)["loss"])
    metrics = run(start(by_parts, epochs=2, seed=0), callbacks).metrics
    plain = run(start(alone, epochs=2, seed=0), callbacks).metrics

    assert same_weights(by_parts.model, alone.model)
    assert {name: metrics[name] for name in plain} == plain
    for split in ("train", "valid"):
        total = metrics[f"{split}_bce"] + 0.1 * metrics[f"{split}_kl"]
        assert metrics[f"{split}_loss"] == pytest.approx(total, rel=1e-5)


def test_parts_of_a_captured_step_are_those_of_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay writes to the same tensors again and again."""
    same = [(images[:8], images[:8]) for images, _ in BATCHES]

    def trained(callbacks: list[Callback[Any]]) -> tuple[Supervised, State]:
        model = nn.Linear(64, 64)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        loss = lambda output, images: {"loss": output.sub(images).square().mean(), "size": output.mean()}
        work = Supervised(model, optimizer, loss, same, device="cpu")
        return work, run(start(work, epochs=2), callbacks)

    graphs: list[PretendedGraph] = []

    def capturing(work: Supervised, mode: str, backend: str) -> CapturedStep:
        graphs.append(PretendedGraph(work))
        return CapturedStep(work, graphs[-1])

    monkeypatch.setattr(handlers, "compiled_step", capturing)
    captured, final = trained([compile_step("graph")])
    eager, expected = trained([])

    assert graphs[0].did.count("replay") == 2 * len(same) - WARM_UP
    assert final.metrics == expected.metrics
    assert same_weights(captured.model, eager.model)


def test_evaluate_measures_parts_too() -> None:
    """As a validation of a run does."""
    assert evaluate(training()).keys() == {"valid_loss", "valid_bce", "valid_kl"}


def test_a_part_that_only_some_batches_have_is_the_mean_over_those() -> None:
    """It weighs as their samples."""

    def loss(output: tuple[torch.Tensor, ...], images: torch.Tensor) -> dict[str, Any]:
        parts = {"large": float(len(images))} if len(images) > 12 else {}
        return {"loss": output[0].mean(), **parts}

    metrics = run(start(training(loss), epochs=1)).metrics

    assert metrics["train_large"] == weighted_mean([16, 24, 16, 16], [16, 24, 16, 16])


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (
            lambda bce: {"bce": bce},
            "loss_fn returned a mapping of 'bce', without 'loss': return what is minimized",
        ),
        (lambda bce: {}, "loss_fn returned a mapping of nothing, without 'loss'"),
        (lambda bce: {"loss": bce, 1: bce}, "a mapping with the key 1: its parts have names, which are strings"),
        (lambda bce: {"loss": bce, "a\udcff": bce}, "a part with the name 'a.udcff': it has half of a pair of UTF-16"),
        (
            lambda bce: {"loss": bce, "x": torch.ones(2)},
            r"a float32 tensor of shape \(2,\) as the part 'x': a part is a",
        ),
        (lambda bce: {"loss": bce, "x": "1"}, "a str as the part 'x': a part is a real number or a scalar tensor"),
        (lambda bce: {"loss": 3.0}, "loss_fn returned a float, 3.0: it is to return a scalar tensor"),
        (lambda bce: {"loss": bce, "good": bce}, "loss_fn returned a part 'good', and a metric has this name"),
    ],
)
@pytest.mark.parametrize("callbacks", [[], [leave_one_out]], ids=["whole step", "one by one"])
def test_what_is_no_loss_by_parts_is_refused(loss: Any, sentence: str, callbacks: list[Callback[Any]]) -> None:
    """At the first batch, with what was found and what to return."""
    work = training(lambda output, images: loss(output[0].mean()), metrics={"good": lambda output, target: 1.0})

    with pytest.raises(WorkloadError, match=sentence):
        run(start(work, epochs=1), callbacks)


def test_any_other_loss_has_no_parts() -> None:
    """It is passed on as it is."""
    loss = torch.ones(())

    separated, parts = separate(loss)

    assert separated is loss
    assert len(parts) == 0


# ------------------------------------------------------------------------------- before the first batch


class OfOnesOwn(nn.Module):
    """A loss with parts, in a method that `forward` calls."""

    def forward(self, output: Any, target: Any) -> Any:
        return self.parts(output)

    def parts(self, output: Any) -> Any:
        return {"loss": output.mean()}


class Called:
    """A function in an object, without parts."""

    def __call__(self, output: Any, target: Any) -> Any:
        return functional.mse_loss(output, target)


def made(name: str) -> Any:
    def loss(output: Any, target: Any) -> Any:
        return vae_loss(output, target) if name else (lambda: {name: output})()

    return loss


@pytest.mark.parametrize(
    ("loss_fn", "expected"),
    [
        (vae_loss, True),
        (lambda output, target: vae_loss(output, target), True),
        (lambda output, target: dict(loss=output), True),  # noqa: C408
        (functools.partial(vae_loss), True),
        (OfOnesOwn(), True),
        (OfOnesOwn().forward, True),
        (nn.Sequential(OfOnesOwn()), True),
        (made("kl"), True),
        (lambda output, target: functional.mse_loss(output, target), False),
        (lambda output, target: (output - target).square().mean(), False),
        (nn.CrossEntropyLoss(), False),
        (functional.cross_entropy, False),
        (functools.partial(functional.cross_entropy, label_smoothing=0.1), False),
        (Called(), False),
    ],
)
def test_whether_a_loss_may_have_parts_is_read_from_its_code(loss_fn: Any, expected: bool) -> None:
    """So that a misspelt monitor of any other training is refused before its first batch."""
    assert may_have_parts(loss_fn) is expected


def test_a_misspelt_monitor_is_refused_unless_it_may_be_a_part() -> None:
    """Before the first batch, or where it is looked for first."""
    plain = training(lambda output, images: functional.mse_loss(output[0], images))

    with pytest.raises(LookupError, match="there will be train_loss, valid_loss"):
        run(start(plain, epochs=1), [early_stopping("valid_kl")])
    with pytest.raises(CallbackError, match="there is no metric 'valid_kld' to monitor: there are .*valid_kl"):
        run(start(training(), epochs=1), [early_stopping("valid_kld")])
