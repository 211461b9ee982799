"""Supervised training on torch: its settings, what the interpreter asks of it, and how a call of `run` begins and ends.

The operations are those of `steps.py` and, in validations, of `validation.py`.

Rule of this file: a setting is documented in its group here, and carried out elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from ..checkpoints.api import Checkpointable
from ..checkpoints.saves import Saves
from ..checkpoints.shard_reading import Like
from ..checkpoints.writing import Parts
from ..core.arguments import takes_by_name
from ..core.callback import Callback
from ..core.checks import check_bool
from ..core.failing import may_be_saved
from ..core.model_part import ModelPart
from ..core.phase import Phase
from ..core.reductions import Reduction, reductions_of
from ..core.runs import goes_on
from ..core.state import State
from ..core.transition import Command
from ..core.workload import Workload
from ..data.batches import Forward, Split
from ..data.counting import Samples
from ..data.generators import Generators, seed_all, seed_of_rank
from ..data.layers import set_epoch
from ..data.position import SuspendPoint, require_suspended_at, resume_iterator
from ..data.prefetch import prefetched
from ..worlds.agreed import Agree
from ..worlds.registry import is_registered
from . import (
    closures,
    handlers,  # noqa: F401  importing it registers them
    own_backward,
    saved_shares,
    sharded_model,
)
from .advice import log_summary_once, warn_of_sum
from .arguments import check_call
from .carried_over import CarriedOver, Stateful
from .carrying_out import bound, carry_out
from .evaluations import Valid
from .failing import parts_after_failure
from .joint_optimizer import OptimizerLike, has_gradients
from .late_optimizer import made_for
from .loss_parts import LossFn
from .measures import Taken, check_measures
from .meters import AnyMetric
from .model_parts import model_parts
from .own_backward import Backward
from .parallel import Parallel, across_ranks, with_agree
from .param_groups import check_parameters
from .representation import as_html, as_text
from .saved_parts import parts_of, restore_parts
from .saved_ranks import SavedTogether
from .schedulers import Span, scheduler_length
from .sensors import check_sensors, measure, read_in_one_transfer
from .set_aside import set_aside, undisturbed
from .shares import whole
from .snapshot import Snapshot
from .steps import Stepping

Sensor = Callable[["Supervised"], "torch.Tensor | float"]

_LOSS_ALONE = frozenset({"loss"})


class Supervised(Stepping, Checkpointable):
    """Trains `model` to minimize `loss_fn(model(inputs), target)` over batches of (inputs, target).

    The model is trained in train mode. A part of it that is in eval mode when `run` begins stays so, as a frozen
    batch norm does. After a validation, and when a run ends or fails, each module is in the mode that it was in.
    What commands and sensors use of the workload is documented in `Training`.

    >>> from fsm_train import run, start
    >>> model = nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> batches = [(torch.zeros(4, 3), torch.ones(4, 1))] * 2
    >>> work = Supervised(model, optimizer, nn.MSELoss(), batches, valid=batches)
    >>> sorted(run(start(work, epochs=2)).metrics)
    ['train_loss', 'valid_loss']

    What is trained

    Args:
        model: its parameters are what the optimizer changes. One of torch.compile is called, while `model` is the one
            that it was compiled from: names of parameters, and what is saved, are the same with and without it.
        optimizer: what has step, zero_grad, param_groups and state_dict. Or several by name, {"muon": …, "adamw": …},
            that step together: in `state.hyper`, `lr` is then a tuple over the groups of all, and `muon.lr` is of one.
            Or a function of the model that makes them, which is called when the model is sharded: see `parallel`.
        loss_fn: of (output, target), a scalar tensor: the mean over the batch; or {"loss": …, "kl": …} with
            that and its parts by name, which are the metrics train_kl and valid_kl. A module is a part of what is
            trained: in eval mode in validations, averaged, kept and saved with the model. So is one that the function
            holds: in a partial, a bound method, an attribute, a closure or a global that it names.
        forward: of (model, inputs), or of (model, inputs, target) if its third parameter has no default or is called
            target: the output, in training and validation. By default inputs in a tuple or list are passed by
            position, those in a mapping by keyword.
        numbers: by name, numbers of your own, which are hyper-parameters like those of the optimizer: `{"kl": 0.0}` is
            set by schedule(kl=…) or Transition(hyper={"kl": …}) at BATCH_BEGIN, and read in the loss or in `forward` as
            work.numbers["kl"]; logged, replayed, saved.
        backward: of (loss, parameters), in place of loss.backward(): it adds to the `.grad` of the parameters, those of
            the optimizer that require a gradient, and returns nothing. Of a loss by parts it is given the mapping,
            whose parts may be tensors of several elements then, such as the loss of each sample (only scalars are
            measured). It sees this batch alone; what it adds is weighed by `accumulate` and scaled afterwards.
        closure: whether `step` is given a closure although its signature does not demand one, as for SAM; one that
            demands it (LBFGS) is given it anyway. The closure evaluates the batch again, and the evaluation that was
            made before the step counts only while no parameter and no gradient has changed since.

    The data

    Args:
        train: any iterable of batches that starts a new pass each time it is iterated: a DataLoader, a list.
        valid: the same for validation, or an `Evaluation` of it, or a mapping from names to several of them; None for a
            training without. It can be the same loader: a DataLoader with persistent workers is copied then, as it
            has one pass at a time. The form of its first batch is looked at before the training begins, if it is a
            list, a tuple, or a DataLoader without workers over a dataset of plain data: nothing is drawn by that. In
            another loader, a batch of a wrong form is found at the first validation.
        split: of a batch, its (inputs, target). By default a batch is that pair.
        samples: of (inputs, target), what the batch counts: a number from 0, of samples, tokens or graphs. It is the
            weight of the batch in each mean, what `accumulate` weighs it by, and what `batch_size` and `state.samples`
            count; a batch that counts 0 is left out. By default it is the first dimension that all tensors of the
            batch have in common. A batch whose tensors disagree, as with time first, is refused.

    What is measured

    Args:
        metrics: by name, a function of (output, target) that is averaged over the samples, or that gives its own
            (sum, count), whose sums are divided; `over_all` of a function, which gets all outputs and targets at once;
            or an object with update, compute and reset (torchmetrics). They are measured on train and valid data.
        measures: by name, a function of this workload that gives a number or a mapping of them: `{"knn": f}` is the
            metric valid_knn. It is taken at the end of a validation, in eval mode and without gradients. One that
            draws random numbers changes no training: the generators are put back.
        sensors: by name, a function of this workload that measures a fact. It may read `model`, `optimizer`, `state`,
            which is the State of this moment with its metrics, and of the batch under way `inputs`, `target` and
            `output`. Those are None where there is none: the output of a batch that was left out before its forward
            pass, all three after a validation and at EPOCH_END. The generators are put back here too.
            `Sensor(f, reduction="sum")` says how several ranks make one number of theirs.
        grad_in_valid: whether gradients are on in validations, for forces and others by torch.autograd.grad.

    How it is run

    Args:
        device: where to train: the model is moved there, and what in a batch has `to(device)`. By default, where the
            model is.
        ahead: whether to fetch a batch, and copy it to the device, while the one before it is trained. By default on
            CUDA, from a list or a DataLoader with workers; False never does, and True refuses other data.
        parallel: "ddp" lets the processes that torchrun starts train one model, through DistributedDataParallel; one
            process trains as without it. `sharded(loader)` gives each its share of the data. A mapping has settings of
            torch's wrapper, and of ours: `agree`, and `seconds` to wait for each other. "cuda" as device is then each
            process's own. "fsdp" is for a model that `fully_shard` shares out over the ranks; give the optimizer as a
            function, to have it done here. False lets each process train a model of its own.
        agree: when ranks compare what they decided: "epoch" (the default), "phase", to find where it begins, "never".
        extra: by name, further parts with state_dict and load_state_dict that belong in a checkpoint.

    Raises:
        WorkloadError: the parts do not fit together, or one of them is of another kind.
        TypeError: metrics, measures, sensors or numbers are no mapping from names, or one of them is a class.
    """

    @takes_by_name
    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerLike | Mapping[str, OptimizerLike] | Callable[[Any], Any],
        loss_fn: LossFn,
        train: Iterable[Any],
        valid: Valid | None = None,
        *,
        metrics: Mapping[str, AnyMetric] | None = None,
        measures: Mapping[str, Taken] | None = None,
        sensors: Mapping[str, Sensor] | None = None,
        device: torch.device | str | None = None,
        forward: Forward | None = None,
        split: Split | None = None,
        samples: Samples | None = None,
        extra: Mapping[str, Stateful] | None = None,
        ahead: bool | None = None,
        grad_in_valid: bool = False,
        numbers: Mapping[str, float] | None = None,
        closure: bool = False,
        backward: Backward | None = None,
        parallel: Parallel | None = None,
        agree: Agree | None = None,
    ) -> None:
        parallel = with_agree(parallel, agree)
        check_bool("closure", closure)
        if backward is not None:
            check_call("backward", backward, "loss", "parameters")
        super().__init__(
            *(model, made_for(model, optimizer, parallel, device), loss_fn, train, valid),
            metrics=metrics,
            device=device,
            forward=forward,
            split=split,
            samples=samples,
            extra=extra,
            ahead=ahead,
            closure=closure,
            numbers=numbers,
            backward=backward,
            parallel=parallel,
        )
        warn_of_sum(loss_fn)
        check_bool("grad_in_valid", grad_in_valid)
        self.grad_in_valid = grad_in_valid
        self._measures = check_measures(measures or {}, self.train_meters.metrics, self.evaluations)
        self._sensors = check_sensors(sensors or {})
        self._elapsed_before, self._since = 0.0, time.perf_counter()  # seconds before this call of run, and its start

    def __repr__(self) -> str:
        return as_text(self, self._measures, self.sensors)

    def _repr_html_(self) -> str:
        return as_html(self, self._measures, self.sensors)

    # ---------------------------------------------------------------- what the interpreter asks

    @property
    def rank(self) -> int:  # type: ignore[override]
        return 0 if self.ranks is None else self.ranks.rank

    @property
    def peers(self) -> SavedTogether | None:
        """The ranks that train together, which write and restore one checkpoint; None for a training on one."""
        return None if self.ranks is None else SavedTogether(self, self.ranks)

    def across_ranks(self, callbacks: Sequence[Callback[Any]] | None = None) -> Workload:
        self.failure_may_be_saved = callbacks is None or may_be_saved(callbacks)
        return across_ranks(self, callbacks)

    @property
    def has_valid(self) -> bool:
        return self.valid is not None

    @property
    def sensors(self) -> Set[str]:
        return self._sensors.keys()

    @property
    def reductions(self) -> Mapping[str, Reduction]:
        return reductions_of(self._sensors)

    @property
    def metric_names(self) -> Set[str] | None:
        """None for a subclass that measures in its own way."""
        if any(getattr(type(self), op) is not getattr(Supervised, op) for op in ("measure", "measure_valid")):
            return None
        return self._metric_names()

    @property
    def metric_weights(self) -> Mapping[str, float]:
        """What each evaluation of the validation that was measured last counted, by its metrics."""
        return self._metric_weights

    def read(self, names: Set[str], state: State) -> Mapping[str, float]:
        if names == _LOSS_ALONE:  # as for most logs
            return {} if self._loss is None else {"loss": whole(self._loss).item() + 0}
        facts: dict[str, torch.Tensor | float] = {}
        if sensors := names & self.sensors:
            self.state = state
            with undisturbed(self):  # whether a sink asks for one that draws must not change the training
                facts = measure(self, self._sensors, sensors)
        if "loss" in names and self._loss is not None:
            facts["loss"] = self._loss
        if "grad_norm" in names:
            facts["grad_norm"] = self.gradients.norm()
        if "stepped" in names:
            facts["stepped"] = float(self.stepped)
        if "elapsed" in names:
            facts["elapsed"] = self._elapsed_before + time.perf_counter() - self._since
        facts |= self.saves.facts(names, state.phase)
        return read_in_one_transfer(facts)

    @property
    def model_parts(self) -> Sequence[ModelPart]:
        return model_parts(self)

    @property
    def notes(self) -> Sequence[str]:
        return (*self.saves.notes, *self.said)

    @contextmanager
    def reserve(self, folders: Set[str]) -> Iterator[None]:
        self.saves, peers = Saves(), self.peers
        with self.saves.of(folders) if peers is None else self.saves.of_all(folders, peers):
            yield

    def carry_out(self, command: Command, state: State) -> None:
        carry_out(self, command, state)

    def bound(self, command: Command, phase: Phase) -> Callable[[], object] | None:
        """For commands of a batch, whose handlers say that they need no state."""
        return None if type(self).carry_out is not Supervised.carry_out else bound(self, command, phase)

    def carries(self, kind: type[Command]) -> bool:
        return is_registered(kind)

    def refuses(self, kind: type[Command]) -> str:
        of_closure = closures.why_not(kind) if self.gives_closure else ""
        of_backward = "" if self.custom_backward is None else own_backward.why_not(kind)
        return of_closure or of_backward or sharded_model.why_not(kind, self.model)

    def snapshot(self) -> Snapshot:
        return Snapshot.of(self, (self._batches, self._batches_fetched))

    def put_back(self, snapshot: Snapshot) -> None:
        snapshot.put_back(self)
        self._batches, self._batches_fetched = snapshot.under_way

    def scheduler_length(self, make: Callable[[Any], Any]) -> tuple[str, Span] | None:
        with undisturbed(self):
            return scheduler_length(make, self.optimizer)

    def set_aside(self) -> AbstractContextManager[None]:
        return set_aside(self)

    def undisturbed(self) -> AbstractContextManager[None]:
        return undisturbed(self)

    def parts_to_save(self, state: State) -> tuple[Parts, tuple[str, ...]]:
        self.find_shards()
        return parts_of(self, state) if state.failure is None else parts_after_failure(self, state)

    def like(self, parts: Parts) -> Like:
        return saved_shares.like(self, parts)

    def restore_parts(self, parts: Parts, state: State) -> tuple[str, ...]:
        return restore_parts(self, parts, state)

    # ------------------------------------------------------------------------- a call of run

    def prepare(self, state: State) -> None:
        self._elapsed_before, self._since = state.elapsed, time.perf_counter()
        self.loss_checked, self.doing, self.rank_weight = False, None, 1.0  # a run before leaves them set
        self.said, self.calls_as_given = [], self._calls_as_given()
        self.find_shards()
        log_summary_once(self)
        if self.ranks is not None:
            self.ranks.prepare(self, state)
        check_parameters(self.model, self.optimizer, self.loss_fn)
        self.read_parameters()
        self.begin_modes()
        if not goes_on(state):
            self.carried_over, self.suspended_at = CarriedOver(), None
            if has_gradients(self.optimizer):  # which a training that failed before may have left
                self.optimizer.zero_grad()
            self.window.clear()
            self.look_at_valid()
            if state.plan.seed is not None:
                seed_all(seed_of_rank(state.plan.seed, self.rank))

    def reposition(self, state: State) -> None:
        """Continue where the training was suspended or ended, with the generators as they were then."""
        point = self.suspended_at
        if state.resume_at is None and (point is None or point.iteration != state.iteration):
            self.suspended_at = None
            return  # a finished training, after another one of the same parts
        point = require_suspended_at(point, state)
        if point.from_file:
            set_epoch(self.train, state.epoch)
            rest = resume_iterator(self.train, self.valid, self.epoch_start, state, point)
            self._batches = prefetched(self._copier, self.train, rest)
            self._batches_fetched = state.batch
        point.generators.put_back()
        self.suspended_at = None

    def finish(self, state: State) -> None:
        self.end_validation()  # of one that failed
        try:
            self.saves.settle()
            if self.ranks is not None:
                self.ranks.finish(self, state)
        finally:  # another rank may fail meanwhile
            self._undo.close()
            if not state.error:  # a finished training can be extended: it goes on from these generators
                self.suspended_at = SuspendPoint(state.iteration, Generators.now(self.loader_generators()))
            self.reached.forget()
            if state.resume_at is None or state.error:
                self._batches = iter(())  # ends the workers
            self.inputs = self.target = self.output = self._loss = self._for_backward = None
