"""A batch in pieces: the gradient of the whole one, with a fixed size and after memory ran out."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Alternating, Flag, Phase, Player, State, Supervised, Transition, WorkloadError, on, run, start
from fsm_train.callbacks import (
    accumulate,
    clip_grad_norm,
    micro_batches,
    mixed_precision,
    mixup,
    skip_nonfinite,
    weight_penalty,
)
from fsm_train.core.failing import advice_on
from fsm_train.core.phase import Operation
from fsm_train.data.out_of_memory import is_out_of_memory
from tests.diabetes_training import batches, weights_of, workload
from tests.forked import forked

SIZES = (8, 7, 6, 1)


class Small(nn.Module):
    """A network on a device with room for so many samples in a forward pass, and in a backward pass."""

    def __init__(
        self, forward: int = 100, backward: int = 100, error: Callable[[str], Exception] | None = None
    ) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 1))
        self.room = {"forward": forward, "backward": backward}
        self.error = error or torch.OutOfMemoryError
        self.most = 0

    def _take(self, what: str, samples: int) -> None:
        if samples > self.room[what]:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.most = max(self.most, samples)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self._take("forward", len(inputs))
        output: torch.Tensor = self.net(inputs)
        if output.requires_grad:
            output.register_hook(lambda gradient: self._take("backward", len(gradient)))
        return output


def trained(model: nn.Module, *callbacks: Any, loss: Any = None, **settings: Any) -> tuple[torch.Tensor, State]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    work = Supervised(model, optimizer, loss or nn.MSELoss(), batches(*SIZES), **settings)
    final = run(start(work, epochs=3, seed=0), callbacks)
    return weights_of(model), final


BESIDE: Mapping[str, tuple[list[Any], Any]] = {
    "alone": ([], None),
    "accumulate": ([accumulate(2), clip_grad_norm(0.5)], None),
    "penalty": ([weight_penalty(l2=0.1), skip_nonfinite()], None),
    "mixup": ([mixup(0.4)], None),
    "bf16": ([mixed_precision("bfloat16")], None),
    "fp16": ([mixed_precision("float16", initial_scale=64.0)], None),
    "contrast": ([], lambda output, target: torch.logsumexp(output @ output.T - target @ target.T, 1).mean()),
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("size", [3, 100])
def test_gradient_is_that_of_the_whole_batch(beside: str, size: int) -> None:
    """To rounding, also for a loss that is no mean over samples; to the last bit where the batch is whole."""
    callbacks, loss = BESIDE[beside]
    whole, before = trained(Small(), *callbacks, loss=loss)
    pieces, after = trained(model := Small(), *callbacks, micro_batches(size), loss=loss)

    assert model.most == min(size, 8)
    assert (after.step, after.samples) == (before.step, before.samples)
    if size == 100:
        assert torch.equal(pieces, whole)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-2 if beside in ("bf16", "fp16") else 1e-5)


@pytest.mark.parametrize(
    ("room", "size"),
    [({"forward": 3}, 2), ({"backward": 3}, 2), ({"backward": 1, "forward": 4}, 1), ({"backward": 7}, 4)],
)
def test_batch_is_halved_where_memory_runs_out(
    room: dict[str, int], size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With the same gradient; it is said in a warning and in the notes, and holds for the batches that follow."""
    whole, _ = trained(Small())
    with caplog.at_level(logging.WARNING, "fsm_train"):
        halved, final = trained(Small(**room), micro_batches())

    torch.testing.assert_close(halved, whole, rtol=0, atol=1e-5)
    said = [record.getMessage() for record in caplog.records]
    assert said[-1].startswith(f"memory ran out with {2 * size} samples, so they are computed {size} at a time") or (
        said[-1].startswith(f"memory ran out with {2 * size - 1} samples, so they are computed {size} at a time")
    )
    assert len(said) == len(final.notes) <= 3
    assert said[0].startswith(final.notes[0])


def test_window_keeps_what_it_has_where_memory_runs_out_later() -> None:
    """The gradient of an earlier batch is not changed by a backward that does not come to its end."""

    class Shrinking(Small):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.calls = getattr(self, "calls", 0) + 1
            self.room["backward"] = 100 if self.calls == 1 else 4
            return super().forward(inputs)

    whole, _ = trained(Small(), accumulate(4))
    halved, final = trained(Shrinking(), accumulate(4), micro_batches())
    torch.testing.assert_close(halved, whole, rtol=0, atol=1e-5)
    assert len(final.notes) == 1


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, torch.OutOfMemoryError])
def test_what_says_that_memory_ran_out(error: Callable[[str], Exception]) -> None:
    """Libraries and the CPU raise others than torch's."""
    whole, _ = trained(Small())
    halved, _ = trained(Small(backward=4, error=error), micro_batches())
    torch.testing.assert_close(halved, whole, rtol=0, atol=1e-5)


def test_other_errors_are_not_taken_for_it() -> None:
    """A shape that does not fit, say, is no matter of memory; and with a fixed size nothing is tried anew."""
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trained(nn.Linear(3, 1), micro_batches())
    with pytest.raises(torch.OutOfMemoryError):
        trained(Small(forward=2), micro_batches(3))


def test_model_that_is_too_large_for_one_sample_is_said_to_be() -> None:
    """There is nothing to halve."""
    with pytest.raises(torch.OutOfMemoryError) as raised:
        trained(Small(backward=0), micro_batches())
    assert any("the model itself that is too large" in note for note in raised.value.__notes__)


@pytest.mark.parametrize("error", [lambda words: RuntimeError(f"CUDA out of memory. {words}"), torch.OutOfMemoryError])
@pytest.mark.parametrize("pieces", [{"forward": 2}, {"backward": 2}])
def test_who_runs_out_of_memory_is_told_what_helps(error: Callable[[str], Exception], pieces: dict[str, int]) -> None:
    """In the error itself: nobody looks for a callback whose name they do not know."""
    with pytest.raises(RuntimeError) as raised:
        trained(Small(**pieces, error=error))
    assert sum("micro_batches() computes a batch in pieces" in note for note in raised.value.__notes__) == 1


def test_advice_is_given_only_where_it_helps() -> None:
    """Not of another error, not where one sample is too large, and not of a step."""
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as shapes:
        trained(nn.Linear(3, 1))
    with pytest.raises(torch.OutOfMemoryError) as too_large:
        trained(Small(backward=0), micro_batches())
    assert not any("micro_batches" in note for raised in (shapes, too_large) for note in raised.value.__notes__)
    assert advice_on(MemoryError("out of memory"), Operation.STEP) == ""


def test_dropout_is_that_of_the_forward_pass() -> None:
    """A piece draws the same in its second forward pass, and the training goes on as from the first."""

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Linear(10, 1)
            self.drawn: list[float] = []

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            mask = torch.rand(len(inputs), 1)
            self.drawn.append(mask.sum().item())
            output: torch.Tensor = self.net(inputs) * mask
            return output

    trained(model := Dropped(), micro_batches(4))
    first = model.drawn[:4]
    assert first[:2] == first[2:]
    assert len({*first[:2], *model.drawn[4:6]}) == 4


def test_batch_norm_counts_a_piece_once_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Its statistics are those of one pass over the pieces."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with caplog.at_level(logging.WARNING, "fsm_train"):
        _, final = trained(model, micro_batches(4), samples=lambda inputs, target: len(inputs) * (len(inputs) > 5))
    assert int(model[1].num_batches_tracked) == 3 * 6
    assert [note for note in final.notes if "batch norm sees pieces" in note]
    assert sum("batch norm sees pieces" in record.getMessage() for record in caplog.records) == 1


def test_parts_of_inputs_and_outputs() -> None:
    """Mappings and tuples are cut and joined part by part; whole numbers get no gradient, and unused parts none."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net, self.other = nn.Linear(10, 1), nn.Linear(10, 1)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> Any:
            return {"out": self.net(x) * scale, "unused": self.other(x), "index": x.argmax(1)}

    def loss(output: Any, target: torch.Tensor) -> torch.Tensor:
        assert output["index"].dtype is torch.int64
        return (output["out"] - target).square().mean()

    def train(*callbacks: Any) -> torch.Tensor:
        model = Parts()
        data = [({"x": x, "scale": torch.tensor(2.0)}, y) for x, y in batches(8, 6)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        run(start(Supervised(model, optimizer, loss, data, samples=lambda x, y: len(y)), epochs=2), callbacks)
        return weights_of(model)

    torch.testing.assert_close(train(micro_batches(3)), train(), rtol=0, atol=1e-6)


def test_gradients_share_no_memory() -> None:
    """Two parameters with the same gradient: clipping one in place leaves the other alone."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :1] * 0 + (self.one + self.other)

    whole, _ = trained(Sum(), clip_grad_norm(0.01))
    pieces, _ = trained(Sum(), clip_grad_norm(0.01), micro_batches(3))
    torch.testing.assert_close(pieces, whole)


@pytest.mark.parametrize(
    ("inputs", "output", "sentence"),
    [
        ((torch.ones(4, 2), torch.ones(3, 2)), "row", "tensors of several lengths"),
        ((torch.ones(4, 2), torch.ones(4, 2)), "one", "no sample in each row"),
    ],
)
def test_batch_that_cannot_be_cut_is_refused(inputs: Any, output: str, sentence: str) -> None:
    """With what is in the way."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 1)

        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.net(one) + self.net(other).sum()
            return result if output == "row" else torch.cat([result, result])

    model = Odd()
    work = Supervised(
        *(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda output, target: output.mean()),
        [(inputs, torch.zeros(4))],
        samples=lambda inputs, target: len(target),
    )
    with pytest.raises(WorkloadError, match=sentence):
        run(start(work, epochs=1), [micro_batches(2)])


def test_skipped_batches_and_validations_are_not_cut() -> None:
    """A batch that is left out leaves nothing behind; a validation is computed in one go."""

    @on(Phase.LOSS_END)
    def skip_second(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_BACKWARD) if state.batch == 1 else None

    whole, _ = trained(Small(), skip_second, valid=batches(8, skip=30))
    model = Small()
    pieces, _ = trained(model, skip_second, micro_batches(3), valid=batches(8, skip=30))
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-6)
    assert model.most == 8


def test_the_graph_of_a_batch_without_a_backward_goes_before_the_next() -> None:
    """Two of them at once may be more than there is memory for."""
    outputs: list[weakref.ref[torch.Tensor]] = []
    there: list[int] = []

    class Remembers(Small):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            gc.collect()
            there.append(sum(output() is not None for output in outputs))
            output = super().forward(inputs)
            outputs.append(weakref.ref(output))
            return output

    @on(Phase.LOSS_END)
    def skip_all(state: State) -> Transition:
        return Transition(flags=Flag.SKIP_BACKWARD)

    trained(Remembers(), skip_all, micro_batches())
    assert there == [0] * 12


def test_who_computes_a_batch_in_another_way_refuses_pieces() -> None:
    """A closure, a backward of one's own, players."""
    with pytest.raises(WorkloadError, match="closure"):
        run(start(workload(closure=True), epochs=1), [micro_batches(2)])
    with pytest.raises(WorkloadError, match="its own"):
        run(start(workload(backward=lambda loss, parameters: loss.backward()), epochs=1), [micro_batches(2)])
    model = nn.Linear(10, 1)
    player = Player(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda x, y: (model(x) - y).square().mean())
    with pytest.raises(WorkloadError, match="one model"):
        run(start(Alternating({"one": player}, batches(4)), epochs=1), [micro_batches(2)])


def test_pieces_on_several_ranks(tmp_path: Path) -> None:
    """The gradients of all pieces of all ranks are reduced once."""

    def work(rank: int | None) -> torch.Tensor:
        shares = [b if rank is None else tuple(part[rank::2] for part in b) for b in batches(8, 6)]
        model = Small()
        made = Supervised(
            *(model, torch.optim.SGD(model.parameters(), lr=0.05), nn.MSELoss(), shares),
            parallel="ddp",
        )
        run(start(made, epochs=2, seed=0), [micro_batches(3)])
        return weights_of(model)

    one, other = forked(2, tmp_path, work)
    assert torch.equal(one, other)
    torch.testing.assert_close(one, work(None), rtol=0, atol=1e-6)


def test_size_is_a_number_of_samples() -> None:
    """From 1."""
    with pytest.raises(ValueError, match="size=0"):
        micro_batches(0)
