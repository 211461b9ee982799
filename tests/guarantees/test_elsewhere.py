"""What travels to another process and back: errors, callbacks, states, answers."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import attrs
import pytest

import fsm_train
from fsm_train import Callback, CallbackError, Flag, Phase, Scripted, State, Transition, callbacks, on, run, start
from fsm_train.core.callback import factory
from fsm_train.core.origin import call_factory, resolve
from fsm_train.eventlog.errors import EndOfLogError, LogError, OutOfStepError
from fsm_train.schedules import warmup
from fsm_train.testing import CallbackCheckError, at, check_callback, drive
from tests.testing.library_examples import EXAMPLES


def _classes(of: type) -> Iterator[type]:
    for kind in of.__subclasses__():
        yield kind
        yield from _classes(kind)


def _errors() -> list[type[BaseException]]:
    """Each exception class that the package defines."""
    for module in pkgutil.walk_packages(fsm_train.__path__, "fsm_train."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return sorted(
        {kind for kind in _classes(BaseException) if kind.__module__.startswith("fsm_train.")},
        key=lambda kind: kind.__qualname__,
    )


_MADE: dict[str, Callable[[], BaseException]] = {
    "CallbackError": lambda: CallbackError("no", callback="mine", phase=Phase.EPOCH_END, epoch=3, step=7),
    "LogError": lambda: LogError("no", path="run.jsonl", line=4),
    "OutOfStepError": lambda: OutOfStepError("a batch", "the end", path="run.jsonl", line=4),
    "EndOfLogError": lambda: EndOfLogError("a batch", "the end", path="run.jsonl", line=4),
    "CallbackCheckError": lambda: _check_error(),
}


def _check_error() -> CallbackCheckError:
    with pytest.raises(CallbackCheckError) as raised:
        check_callback(undeclared, examples=3)
    return raised.value


@on(Phase.EPOCH_END)
def stop_at_two(state: State) -> Transition | None:
    return Transition(flags=Flag.STOP_TRAINING) if state.epoch == 2 else None


@on(Phase.LOSS_END)
def undeclared(state: State) -> None:
    state.facts["loss"]


@attrs.frozen
class Count:
    times: int = 0


@on(Phase.EPOCH_END, memory=Count())
def counting(state: State, count: Count) -> Transition:
    return Transition(memory=Count(count.times + 1))


@factory
def own_record(first: str, *facts: str, every: int = 1, **more: float) -> Callback[None]:
    """A factory of one's own, with every kind of argument."""

    @on(Phase.BATCH_END, needs=(first, *facts), every=every)
    def own_record(state: State) -> None:
        return None

    return own_record


class Outer:
    """A class with a callback in it: its name has a dot."""

    @on(Phase.EPOCH_END)
    def inner(state: State) -> None:  # noqa: N805 - a function, which `on` makes a callback of
        return None


def test_every_error_of_the_package_survives_pickle_and_copy() -> None:
    """The class, the message, the attributes and the notes come back."""
    for kind in _errors():
        error = _MADE.get(kind.__name__, lambda kind=kind: kind("what is wrong"))()  # type: ignore[misc]
        error.add_note("and a note")
        for back in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert type(back) is kind
            assert (str(back), back.args) == (str(error), error.args)
            assert repr(vars(back)) == repr(vars(error))
            assert back.__notes__ == ["and a note"]


def test_an_error_with_attributes_comes_back_with_them() -> None:
    """Those that a handler reads: which callback it was, where, and in which line."""
    error = pickle.loads(pickle.dumps(_MADE["CallbackError"]()))
    log = pickle.loads(pickle.dumps(_MADE["OutOfStepError"]()))

    assert (error.callback, error.phase, error.epoch, error.step) == ("mine", Phase.EPOCH_END, 3, 7)
    assert (log.path, log.line, log.requested, log.recorded) == ("run.jsonl", 4, "a batch", "the end")


@pytest.mark.parametrize("make", [make for made in EXAMPLES.values() for make in made])
def test_every_callback_of_the_library_comes_back_equal(make: Callable[[], Callback[Any]]) -> None:
    """Pickled and copied, with the same declarations and settings."""
    callback = make()
    back = pickle.loads(pickle.dumps(callback))

    assert back == callback
    assert copy.deepcopy(callback) is copy.copy(callback) is callback


def test_a_callback_that_came_back_answers_the_same() -> None:
    """Also with a memory, and with records and several arguments among its settings."""
    losses = (1.0, 1.1, 1.2)
    for callback, phase in ((callbacks.early_stopping(patience=2), Phase.VALID_END), (counting, Phase.EPOCH_END)):
        curve = [at(phase, valid_loss=loss) for loss in losses]
        back = pickle.loads(pickle.dumps(callback))
        assert drive(back, curve) == drive(callback, curve)

    scheduled = callbacks.schedule(lr=warmup(3), name="mine")
    first = at(Phase.STEP_BEGIN)
    assert pickle.loads(pickle.dumps(scheduled))(first) == scheduled(first)


@pytest.mark.parametrize(
    "callback", [stop_at_two, counting, Outer.inner, own_record("loss", "grad_norm", every=2, a=1.0)]
)
def test_a_callback_of_ones_own_comes_back(callback: Callback[Any]) -> None:
    """One at the top level of a module is found by its name; one of a factory there is made again."""
    assert pickle.loads(pickle.dumps(callback)) == callback


def test_what_is_only_in_a_function_cannot_be_pickled() -> None:
    """It is an error of pickle, and not another callback; a pickler that pickles functions by value can."""

    @on(Phase.EPOCH_END)
    def local(state: State) -> None:
        return None

    @factory
    def make() -> Callback[None]:
        return local

    for callback in (local, make()):
        with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
            pickle.dumps(callback)


def test_a_changed_callback_is_changed_again() -> None:
    """What `attrs.evolve` set stays set, for one of a factory and for one with a name."""
    for callback in (callbacks.early_stopping(), stop_at_two):
        changed = attrs.evolve(callback, every=2, name="mine", order=3)
        assert pickle.loads(pickle.dumps(changed)) == changed


def _another(state: State, memory: object) -> None:
    return None


def test_another_function_is_not_pickled_as_the_first() -> None:
    """A callback with another function, or with settings that its factory refuses, is pickled by its fields."""
    other = attrs.evolve(callbacks.early_stopping(), decide=_another)
    refused = attrs.evolve(other, params={"patience": -1})

    assert pickle.loads(pickle.dumps(other)).decide is _another
    assert pickle.loads(pickle.dumps(refused)) == refused
    assert resolve("fsm_train.callbacks.nothing_of_the_kind") is None
    assert resolve("no_such_package.nothing") is None


def test_variadic_arguments_are_spread_again() -> None:
    """Arguments before them go by position, those after them by keyword."""
    made = own_record("loss", "grad_norm", "elapsed", every=3)

    assert call_factory(own_record, made.params, "own_record") == made
    assert call_factory(own_record, {"first": "loss"}, "mine").name == "mine"


def test_a_state_leaves_its_workload_here() -> None:
    """Where it comes back a run says what is missing; a copy in this process keeps it."""
    final = run(start(Scripted(valid_loss=0.5), epochs=2), [counting])
    back = pickle.loads(pickle.dumps(final))

    assert back == final
    assert back.workload is None
    assert back.memory["counting"] == Count(2)
    assert copy.copy(final).workload is final.workload
    assert copy.deepcopy(final).workload is not final.workload
    with pytest.raises(ValueError, match="Pickle leaves the workload out"):
        run(back)


def test_answers_travel() -> None:
    """A Transition, with its flags, commands and schedules, and UNCHANGED as the same object."""
    clip = callbacks.clip_grad_norm(1.0)(at(Phase.STEP_BEGIN))
    assert clip is not None

    for answer in (clip, Transition(flags=Flag.SKIP_STEP | Flag.SKIP_ZERO, hyper={"lr": (0.1, 0.2)}, reason="so")):
        back = pickle.loads(pickle.dumps(answer))
        assert back == answer
        assert back.memory is answer.memory


def _trial(callback: Callback[Any], loss: float) -> State:
    return run(start(Scripted(loss=loss, valid_loss=[1.0, 2.0, 3.0, 4.0]), epochs=4), [callback])


@on(Phase.EPOCH_END)
def fails(state: State) -> None:
    raise LookupError("no such column")


def test_a_search_over_processes_shows_the_error_of_a_failing_trial() -> None:
    """The pool lives on: the trials beside it give their states."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        trials = [pool.submit(_trial, callback, 0.5) for callback in (callbacks.early_stopping(patience=1), fails)]
        good, bad = trials[0].result(), trials[1].exception()

    assert (good.phase, good.epoch) == (Phase.DONE, 2)
    assert isinstance(bad, CallbackError)
    assert bad.callback == "fails"
    assert "no such column" in str(bad)
