"""A model that `fully_shard` shares out over two ranks: how it comes to be one, and what becomes of uneven data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fsm_train import (
    Evaluation,
    Phase,
    State,
    Supervised,
    WorkloadError,
    evaluate,
    find_lr,
    load_weights,
    on,
    predict,
    run,
    start,
)
from fsm_train.callbacks import (
    accumulate,
    checkpoint,
    clip_grad_norm,
    ema,
    grad_noise,
    mixed_precision,
    parallel,
    skip_nonfinite,
    swa,
    weight_penalty,
)
from fsm_train.supervised.advice import inspect_settings
from fsm_train.supervised.sharded_model import shard
from fsm_train.supervised.shares import equal_everywhere, is_shared, local
from fsm_train.supervised.window import norm_of
from tests.diabetes_training import batches, net, sgd, workload
from tests.forked import forked
from tests.supervised.test_callbacks_on_shards import seven, weights

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


NOTHING = "nothing was raised"


def lately(make: Callable[..., Any] = sgd) -> Callable[[nn.Module], Any]:
    """An optimizer as a function of the model, for `workload`."""
    return lambda _: make


def part(rank: int | None, *sizes: int, skip: int = 0) -> list[Any]:
    data = batches(*sizes, skip=skip)
    return data if rank is None else [tuple(each[rank::2] for each in batch) for batch in data]


def sharded(rank: int | None, train: Any = None, **settings: Any) -> Supervised:
    """A training of shares on two ranks; on None of them, of the whole model on the union."""
    given: dict[str, Any] = {"parallel": "fsdp" if rank is not None else None, "model": seven(), **settings}
    return workload(train or part(rank, 8, 7, 6), optimizer=given.pop("optimizer", lately()), **given)


def sentence(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return NOTHING


def close(one: Any, other: Any, most: float = 1e-6) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=most)


# ---------------------------------------------------------------------------- how it comes to be one


def test_model_is_sharded_by_hand_or_here_or_not_at_all(tmp_path: Path) -> None:
    """The weights are those of rank 0, a policy of precision and a mesh pass through; one process shards nothing."""

    def work(rank: int) -> Any:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        by_hand = seven()
        for each in by_hand:
            fully_shard(each)
        fully_shard(by_hand)
        of_rank = seven()
        with torch.no_grad():
            of_rank[0].weight.add_(float(rank))  # the ranks begin differently
        settings = {
            "kind": "fsdp",
            "mesh": init_device_mesh("cpu", (2,)),
            "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16),
            "seconds": 60.0,
        }
        works = [
            sharded(rank, model=by_hand, optimizer=sgd),
            sharded(rank, model=of_rank),
            sharded(rank, parallel=settings),
        ]
        for each in works:
            run(start(each, epochs=2, seed=0))
        return [weights(each.model) for each in works], works[2].model[0].weight.to_local().shape

    (one, local), (other, _) = forked(2, tmp_path, work)
    assert all(map(torch.equal, one, other))
    assert local == (4, 10)

    alone = sharded(None, parallel="fsdp")
    run(start(alone, epochs=2, seed=0))
    close(one[0], weights(alone.model))
    close(one[1], weights(alone.model))
    close(one[2], weights(alone.model), 1e-2)
    assert not torch.equal(one[2], one[0])


def test_what_does_not_go_with_shares_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Before anything is trained, on all ranks the same."""
    saved = tmp_path / "whole"
    whole_one = workload(model=seven())
    run(start(whole_one, epochs=1), [checkpoint(saved)])

    def work(rank: int) -> dict[str, str]:
        def begin(**settings: Any) -> Callable[[], object]:
            return lambda: run(start(sharded(rank, **settings), epochs=1))

        def after_its_optimizer() -> object:
            model = seven()
            optimizer = sgd(model)
            shard(model, {})
            return sharded(rank, model=model, optimizer=lambda _: optimizer)

        def ready() -> nn.Module:
            shard(model := seven(), {})
            return model

        def with_callback() -> object:
            return run(start(sharded(rank, model=ready(), parallel=None), epochs=1), [parallel("ddp")])

        several = {"a": part(rank, 4), "b": Evaluation(part(rank, 4), weights="own")}
        twice = {
            "a": Evaluation(part(rank, 4)),
            "b": Evaluation(part(rank, 4), forward=lambda model, x: model(x) + model(-x)),
        }
        return {
            "whole": sentence(begin(optimizer=sgd)),
            "ddp": sentence(begin(model=ready(), parallel="ddp")),
            "ddp by a callback": sentence(with_callback),
            "no parallel": sentence(begin(model=ready(), parallel=None)),
            "each for itself": sentence(begin(model=ready(), parallel=False)),
            "made before": sentence(after_its_optimizer),
            "Rprop": sentence(begin(optimizer=lately(lambda model: torch.optim.Rprop(model.parameters())))),
            "evaluations": sentence(begin(valid=several)),
            "forwards": sentence(begin(valid=twice)),
            "load_weights": sentence(lambda: load_weights(saved, ready())),
            "setting": sentence(lambda: sharded(rank, parallel={"kind": "fsdp", "bucket_cap_mb": 1})),
        }

    one, other = forked(2, tmp_path, work)
    beginnings = {
        "whole": "the model is not sharded: call torch.distributed.fsdp.fully_shard on its layers",
        "ddp": 'the model is sharded, and parallel="ddp" is for a whole one on each rank',
        "ddp by a callback": 'the model is sharded, and parallel="ddp" is for a whole one on each rank',
        "no parallel": "this is rank 0 of a process group of 2, and each would train a model of its own: it is sharded",
        "each for itself": "this is rank 0 of a process group of 2, and each would train a model of its own: it is",
        "made before": "the optimizer was made before the model was sharded, which gives the model new parameters",
        "Rprop": "Rprop does not step shares of a parameter: take AdamW or SGD",
        "evaluations": "valid['a'] and valid['b'] do not measure the same weights, and the ranks gather a sharded",
        "forwards": "valid['a'] and valid['b'] do not call the model the same way, and the ranks gather a sharded",
        "load_weights": "load_weights is for a whole model, and each rank has only a share of this one",
        "setting": "There are kind, agree, seconds, interrupts_every, and those of fully_shard: mesh",
    }
    assert {name: text for name, text in one.items() if beginnings[name] not in text} == {}
    assert one.keys() == beginnings.keys()
    assert {name: text.replace("rank 1", "rank 0") for name, text in other.items()} == one


def test_function_for_the_optimizer_takes_the_model() -> None:
    """In one process it is called all the same; what takes something else is refused."""
    model = seven()
    work = Supervised(model, lambda model: {"one": sgd(model)}, nn.MSELoss(), batches(8))
    assert work.optimizer.param_groups[0]["params"] == [*model.parameters()]
    with pytest.raises(WorkloadError, match="the function for optimizer"):
        Supervised(model, lambda: sgd(model), nn.MSELoss(), batches(8))  # type: ignore[arg-type,misc]


def test_fused_step_is_advised_where_there_is_one_for_shares(tmp_path: Path) -> None:
    """Of SGD there is none."""

    def work(rank: int) -> list[bool]:
        shard(model := seven(), {})
        made = [torch.optim.SGD(model.parameters(), momentum=0.9), torch.optim.AdamW(model.parameters())]
        return [inspect_settings(each, [], torch.device("cpu")).can_fuse for each in made]

    assert forked(2, tmp_path, work) == [[False, True]] * 2


# ------------------------------------------------------------------------------------ uneven data

SIZES = ((5, 4, 0, 3, 2), (3, 4, 6, 1, 7))
"""Of each batch on each rank. None of the first rank's third one counts, and its loss is no number."""

UNEVEN: Mapping[str, Any] = {
    "plain": [],
    "accumulate": [accumulate(2)],
    "penalty": [weight_penalty(l1=0.1, l2=0.1)],
    "penalty in windows": [weight_penalty(l1=0.1), accumulate(2)],
    "float16": [mixed_precision("float16", initial_scale=64.0)],
}


def counted(inputs: torch.Tensor, target: torch.Tensor) -> float:
    return float((~target.isnan()).sum())


def in_parts(rank: int | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = []
    for (inputs, target), sizes in zip(batches(8, 8, 6, 4, 9), zip(*SIZES, strict=True), strict=True):
        parts = [inputs[: sizes[0]], inputs[sizes[0] :]], [target[: sizes[0]], target[sizes[0] :]]
        if rank is None:
            found.append((inputs, target))
        elif sizes[rank]:
            found.append((parts[0][rank], parts[1][rank]))
        else:
            found.append((inputs[:2], torch.full((2, 1), math.nan)))
    return found


def test_batches_of_all_sizes_and_of_none_train_as_their_union_does(tmp_path: Path) -> None:
    """Also with a penalty, whose gradient each rank has of its own shares alone."""

    def trained(rank: int | None, given: list[Any]) -> torch.Tensor:
        work = sharded(rank, in_parts(rank), samples=counted)
        run(start(work, epochs=2, seed=0), given)
        return weights(work.model)

    def work(rank: int) -> Any:
        return {name: trained(rank, given) for name, given in UNEVEN.items()}

    one, other = forked(2, tmp_path, work)
    for name, given in UNEVEN.items():
        assert torch.equal(one[name], other[name])
        close(one[name], trained(None, given), 1e-3 if name == "float16" else 1e-6)


def test_rank_without_a_batch_stands_by_in_validations_and_predictions(tmp_path: Path) -> None:
    """The metrics are those of the union, and each rank predicts its own batches; also before anything is trained."""

    def valid(rank: int | None) -> list[Any]:
        data = batches(4, 3, 5, 2, skip=30)
        return data if rank is None else data[:3] if rank == 0 else data[3:]

    def work(rank: int) -> Any:
        trained = sharded(rank, valid=valid(rank), metrics={"error": lambda o, t: (o - t).abs().mean()})
        before = dict(evaluate(trained))
        final = run(start(trained, epochs=2, seed=0), [ema(0.5)])
        return (
            before,
            dict(final.metrics),
            dict(evaluate(trained)),
            predict(trained, valid(rank)),
            weights(trained.model),
        )

    one, other = forked(2, tmp_path, work)
    assert one[:3] == other[:3]
    assert torch.equal(one[4], other[4])

    alone = sharded(None, valid=valid(None), metrics={"error": lambda o, t: (o - t).abs().mean()})
    assert one[0] == pytest.approx(dict(evaluate(alone)), rel=1e-5)
    final = run(start(alone, epochs=2, seed=0), [ema(0.5)])
    assert one[1] == pytest.approx(dict(final.metrics), rel=1e-5)
    assert one[2] == pytest.approx(dict(evaluate(alone)), rel=1e-5)
    close(torch.cat([one[3], other[3]]), predict(alone, valid(None)), 1e-5)


def test_several_evaluations_of_other_lengths_on_each_rank_measure_the_union(tmp_path: Path) -> None:
    """One rank is in the second while the other is in the first: all call the model the same way."""
    first, second = batches(4, 3, 5, 2, skip=30), batches(2, 6, skip=50)

    def twice(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = model(inputs) + model(-inputs)
        return output

    def work(rank: int | None) -> Any:
        shares = {None: (first, second), 0: (first[:3], second[:1]), 1: (first[3:], second[1:])}[rank]
        valid = {name: Evaluation(Sized(data), forward=twice) for name, data in zip("ab", shares, strict=True)}
        trained = sharded(rank, valid=valid)
        return dict(run(start(trained, epochs=2, seed=0), [ema(0.5)]).metrics), dict(evaluate(trained))

    one, other = forked(2, tmp_path, work)
    assert one == other
    for found, expected in zip(one, work(None), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_measure_of_a_sharded_model_takes_all_ranks(tmp_path: Path) -> None:
    """Also one that had no batch to validate: the others gather the model for theirs."""

    def mean(work: Any) -> float:
        value: float = work.model(torch.ones(2, 10)).mean().item()
        return value

    def work(rank: int | None) -> Any:
        trained = sharded(rank, valid=part(rank, 4), measures={"mean": mean})
        run(start(trained, epochs=1, seed=0))
        trained.valid = Sized(batches(3)[: 0 if rank else 1])
        return dict(evaluate(trained))

    one, other = forked(2, tmp_path, work)
    assert one == other
    assert one == pytest.approx(work(None), rel=1e-5)


ALONE = {"evaluate": evaluate, "predict": lambda trained: predict(trained, batches(3))}


@pytest.mark.parametrize("call", ALONE)
@pytest.mark.parametrize(
    ("elsewhere", "error"),
    [
        ("ends", "PeerError: rank 1 failed, and this rank ended with it: its process is gone"),
        ("runs", "DisagreementError: the ranks are at different places: at "),
    ],
)
def test_rank_that_evaluates_alone_is_told_so(tmp_path: Path, call: str, elsewhere: str, error: str) -> None:
    """At once, whether the other one has ended or is in a run: a sharded model takes all of them."""

    def work(rank: int) -> str:
        trained = sharded(rank, valid=part(rank, 4))
        if rank == 0:
            return sentence(lambda: ALONE[call](trained))
        return NOTHING if elsewhere == "ends" else sentence(lambda: run(start(trained, epochs=1)))

    one, other = forked(2, tmp_path, work, limit=20)
    assert one.startswith(error)
    assert other == (NOTHING if elsewhere == "ends" else one)


def test_rank_that_never_had_a_batch_is_refused(tmp_path: Path) -> None:
    """It has nothing to gather the model with; the other ranks are freed."""

    def work(rank: int) -> str:
        trained = sharded(rank, parallel={"kind": "fsdp", "seconds": 5.0}, valid=Sized(batches(4)[rank:]))
        return sentence(lambda: evaluate(trained))

    one, other = forked(2, tmp_path, work)
    assert "give each rank at least one batch" in other
    assert one != NOTHING


class Sized:
    """Data that say nothing of themselves before they come."""

    def __init__(self, data: list[Any]) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)


# ------------------------------------------------------------------------------ what else is shared


def test_step_that_overflows_in_the_shares_of_one_rank_is_held_back_on_all(tmp_path: Path) -> None:
    """The scaler of each sees what the others found."""

    def trained(rank: int | None) -> tuple[torch.Tensor, int]:
        torch.manual_seed(0)

        def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (output[:, :1] - target).square().mean() + 1e34 * output[:, 1].mean()  # whose weights are rank 1's

        work = sharded(rank, model=nn.Linear(10, 2), loss_fn=loss)
        final = run(start(work, epochs=1), [mixed_precision("float16", initial_scale=2.0**17)])
        return weights(work.model), final.step

    one, other = forked(2, tmp_path, trained)
    assert torch.equal(one[0], other[0])
    alone = trained(None)
    assert one[1] == other[1] == alone[1]
    assert torch.isfinite(alone[0]).all()
    close(one[0], alone[0])


def test_learning_rate_is_found_and_the_training_put_back(tmp_path: Path) -> None:
    """The losses are those of one process, and the training afterwards is one without a search."""

    def searched(rank: int | None) -> Any:
        work = sharded(rank, optimizer=lately(lambda model: torch.optim.AdamW(model.parameters(), lr=0.01)))
        state = start(work, epochs=2, seed=0)
        found = find_lr(state, low=1e-4, high=1.0, steps=8)
        run(state)
        return found.losses, weights(work.model)

    one, other = forked(2, tmp_path, searched)
    assert one[0] == other[0]
    assert torch.equal(one[1], other[1])
    losses, weights_of_one = searched(None)
    assert one[0] == pytest.approx(losses, rel=1e-5)
    close(one[1], weights_of_one, 1e-5)


def test_average_that_a_training_ended_with_is_given_back_when_it_is_extended(tmp_path: Path) -> None:
    """All ranks compare their shares with it, also one that has none of a parameter."""

    def trained(rank: int | None) -> Any:
        work = sharded(rank)
        final = run(start(work, epochs=2, seed=0), [ema(0.5)])
        averaged = weights(work.model)
        run(start(work, epochs=1), [ema(0.5)])
        return averaged, weights(work.model), final.step

    one, other = forked(2, tmp_path, trained)
    alone = trained(None)
    for i in range(2):
        assert torch.equal(one[i], other[i])
        close(one[i], alone[i])


def test_parameters_that_are_not_sharded_are_trained_beside_those_that_are(tmp_path: Path) -> None:
    """Those of a loss, by an optimizer of their own: clipped with the others by one norm."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (output * self.scale - target).square().mean()

    def trained(rank: int | None) -> Any:
        loss = Scaled()

        def make(model: nn.Module) -> Any:
            return {"model": sgd(model), "loss": torch.optim.SGD(loss.parameters(), lr=0.1)}

        work = sharded(rank, in_parts(rank), samples=counted, optimizer=lately(make), loss_fn=loss)
        run(start(work, epochs=2, seed=0), [clip_grad_norm(0.5), accumulate(2)])
        return torch.cat([weights(work.model), loss.scale.detach()[None]])

    one, other = forked(2, tmp_path, trained)
    assert torch.equal(one, other)
    close(one, trained(None))


def test_largest_gradient_is_that_of_all_shares_also_of_empty_ones(tmp_path: Path) -> None:
    """A layer with fewer rows than there are ranks leaves one without; a NaN in one share is a NaN for all."""

    def trained(rank: int | None) -> Any:
        work = sharded(rank)
        seen = []

        @on(Phase.STEP_BEGIN, order=1)
        def look(state: State) -> None:
            seen.append(float(norm_of([p.grad for p in work.parameters if p.grad is not None], math.inf)))

        run(start(work, epochs=2, seed=0), [clip_grad_norm(0.05, norm_type=math.inf), look])
        gradients = [torch.ones_like(parameter) for parameter in work.parameters]
        if rank != 1:
            local(gradients[0]).view(-1)[0] = math.nan
        return weights(work.model), torch.tensor(seen), float(norm_of(gradients, math.inf))

    (one, seen, spoilt), (other, *_, also) = forked(2, tmp_path, trained)
    whole, same, _ = trained(None)
    assert torch.equal(one, other)
    close((one, seen), (whole, same))
    assert math.isnan(spoilt)
    assert math.isnan(also)


def test_statistics_of_batch_norm_are_fitted_by_ranks_that_have_uneven_data(tmp_path: Path) -> None:
    """None waits for ever, and all validate with those of rank 0."""

    def work(rank: int) -> Any:
        seen: list[Any] = []

        def look(work: Any) -> float:
            seen.append(torch.cat([buffer.flatten().double() for buffer in work.model.buffers()]))
            return float(work.model(batches(4)[0][0]).sum())

        mine = batches(8, 7, 6, 5, 4)[2 * rank : 2 + 3 * rank]
        trained = sharded(rank, Sized(mine), model=net(), valid=part(rank, 8, skip=30), measures={"look": look})
        final = run(start(trained, epochs=2, seed=0), [swa(0)])
        return torch.stack(seen), weights(trained.model), dict(final.metrics)

    (one, *model), (other, *as_model) = forked(2, tmp_path, work)
    assert torch.equal(one, other)
    assert torch.equal(model[0], as_model[0])
    assert model[1] == as_model[1]


def test_batch_that_is_left_out_leaves_no_layer_gathered(tmp_path: Path) -> None:
    """So what reads or changes the model afterwards finds the shares."""

    @on(Phase.BATCH_END, Phase.VALID_BATCH_END, needs={"look"})
    def asks(state: State) -> None:
        return None

    def work(rank: int) -> list[bool]:
        found: list[bool] = []

        def look(work: Any) -> float:
            found.append(all(map(is_shared, work.model.parameters())))
            return 0.0

        data = [(inputs, target * math.nan) for inputs, target in part(rank, 8, 7)]
        outermost = nn.Linear(10, 1)  # which torch leaves gathered after a forward pass
        trained = sharded(rank, data, model=outermost, valid=part(rank, 8), sensors={"look": look})
        run(start(trained, epochs=1), [skip_nonfinite(limit=9), asks])
        return found

    one, other = forked(2, tmp_path, work)
    assert one == other == [True] * 3


def test_difference_in_the_share_of_one_rank_is_seen_on_all(tmp_path: Path) -> None:
    """Otherwise one of them would take a way that the others do not."""

    def work(rank: int) -> list[bool]:
        shard(model := nn.Linear(10, 2), {})
        weight = model.weight.detach()
        other = weight.clone()
        same = equal_everywhere([(weight, other)])
        local(other).add_(float(rank))
        return [same, equal_everywhere([(weight, other)])]

    assert forked(2, tmp_path, work) == [[True, False]] * 2


@pytest.mark.long(alone=True)
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # whose output is a view
def test_mesh_of_tensor_parallel_layers_passes_through(tmp_path: Path) -> None:
    """Ranks that compute one batch together read the same batch: noise, a norm, a penalty and an average are right."""

    def trained(rank: int | None, given: list[Any]) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1))
        if rank is not None:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard
            from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

            mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
            parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
            fully_shard(model, mesh=mesh["data"])
        work = sharded(rank, batches(8, 7), model=model, valid=batches(8, skip=30))
        run(start(work, epochs=2, seed=0), given)
        return weights(work.model)

    def work(rank: int) -> Any:
        return [trained(rank, each) for each in several]

    several = [[grad_noise(0.1), ema(0.5)], [weight_penalty(l1=0.1, l2=0.1), clip_grad_norm(0.1)]]
    one, other = forked(2, tmp_path, work)
    for i, given in enumerate(several):
        assert torch.equal(one[i], other[i])
        close(one[i], trained(None, given))
