"""What is refused where it is written, and what a callback is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from fsm_train import Callback, Flag, Phase, State, Transition, on
from fsm_train.core.callback import always, factory, memory_classes, of_state_alone, strict_factory
from fsm_train.testing import at


def nothing(state: State) -> None:
    """A callback's function that has nothing to say."""


@attrs.define
class Writable:
    """A record that can be written to."""

    value: int = 0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: on("loss_end")(nothing), "'loss_end' is no phase: write Phase.LOSS_END"),
        (lambda: on("loss_ende")(nothing), "'loss_ende' is no phase: the phases are setup, train_begin"),
        (
            lambda: on(Phase.READY, Phase.DONE)(nothing),
            "callback 'nothing' would never be consulted: name at least one",
        ),
        (lambda: on()(nothing), "would never be consulted"),
        (lambda: on(nothing), "on is given the phases first"),
        (lambda: on(Phase.LOSS_END, needs="loss")(nothing), "needs='loss': give a set of names of facts"),
        (lambda: on(Phase.LOSS_END, needs=[1])(nothing), "give a set of names of facts"),
        (lambda: on(Phase.LOSS_END, every=0)(nothing), "callback 'nothing': every=0, but it counts"),
        (lambda: on(Phase.LOSS_END, every=True)(nothing), "every=True"),
        (lambda: on(Phase.LOSS_END)(lambda: None), "is a function of .state. or of .state, memory., not of 0"),
        (lambda: on(Phase.LOSS_END, memory=1)(nothing), "has a memory, but its function has no parameter for it"),
        (lambda: on(Phase.LOSS_END, memory=[])(lambda s, m: None), "memory is a list .*: use a tuple"),
        (lambda: on(Phase.LOSS_END, memory={"a": 1})(lambda s, m: None), "memory is a dict .*: use a frozen attrs"),
        (lambda: on(Phase.LOSS_END, memory=({1},))(lambda s, m: None), r"memory\[0\] is a set .*: use a sorted tuple"),
        (
            lambda: on(Phase.LOSS_END, memory=Writable())(lambda s, m: None),
            "memory is a Writable, which can be written",
        ),
        (lambda: on(Phase.LOSS_END, memory=object())(lambda s, m: None), "memory is a object .*: use numbers, strings"),
        (lambda: on(Phase.LOSS_END, reads="epoch")(nothing), "reads='epoch': give a set of names, for example"),
        (lambda: on(Phase.LOSS_END, reads=[1])(nothing), "give a set of names, for example"),
        (
            lambda: on(Phase.LOSS_END, reads={"step"})(nothing),
            "kept by batch_size, .*, and not by step. Leave",
        ),
        (lambda: Callback("", (Phase.LOSS_END,), nothing), "a callback without a name: pass name="),
        (lambda: Callback("odd", Phase.LOSS_END, 3), "callback 'odd': decide=3 is not a function"),
    ],
)
def test_nonsense_is_refused_where_it_is_written(make: Callable[[], object], sentence: str) -> None:
    """A sentence names the callback, what was found, and what to write instead."""
    with pytest.raises((TypeError, ValueError), match=sentence):
        make()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Transition(flags="stop"), "flags='stop': raise flags with Flag"),
        (lambda: Transition(hyper=[("lr", 1)]), "give a mapping, for example {'lr': 0.1}"),
        (lambda: Transition(hyper={"lr": "0.1"}), "lr='0.1': a hyper-parameter is a number, or a tuple"),
        (lambda: Transition(hyper={"lr": float("nan")}), "lr=nan: a hyper-parameter is finite"),
        (lambda: Transition(hyper={"lr": ()}), "lr is an empty tuple"),
        (lambda: Transition(commands="clip"), "commands='clip': give a tuple of commands"),
        (lambda: Transition(commands=("clip",)), "'clip' is no command: .* inherits from fsm_train.Command"),
        (lambda: Transition(reason=3), "'reason' must be <class 'str'>"),
    ],
)
def test_nonsense_in_an_answer_is_refused_when_it_is_made(make: Callable[[], object], sentence: str) -> None:
    """A Transition says what is wrong with it."""
    with pytest.raises((TypeError, ValueError), match=sentence):
        make()


def test_single_command_is_told_to_be_a_tuple() -> None:
    """The commonest slip has a sentence of its own."""
    from fsm_train import ClipGradNorm

    with pytest.raises(TypeError, match="give a tuple, also for a single command"):
        Transition(commands=ClipGradNorm(1.0))  # type: ignore[arg-type]


def test_name_is_that_of_the_function() -> None:
    """Without name= a callback is called like its function, and every phase is named once."""
    callback = on(Phase.LOSS_END, Phase.LOSS_END)(nothing)

    assert (callback.name, callback.at) == ("nothing", (Phase.LOSS_END,))


def test_all_phases_may_be_watched_at_once() -> None:
    """`on(*Phase)` is allowed: at those where nobody is consulted it is not."""
    assert on(*Phase)(nothing).at == tuple(Phase)


def test_calling_one_gives_its_answer() -> None:
    """A callback is a function of a state, to try it out."""
    stop = Transition(flags=Flag.STOP_TRAINING)

    assert on(Phase.LOSS_END)(nothing)(at(Phase.LOSS_END)) is None
    assert on(Phase.LOSS_END)(lambda state: stop)(at(Phase.LOSS_END)) == stop


def test_callbacks_are_compared_by_what_they_declare() -> None:
    """Two callbacks made with the same settings are equal, whatever function object decides."""
    from fsm_train.callbacks import early_stopping

    assert early_stopping(patience=2) == early_stopping(patience=2) != early_stopping(patience=3)


def test_unchanged_is_one_value() -> None:
    """UNCHANGED survives copies and pickles as itself."""
    import copy
    import pickle

    from fsm_train import UNCHANGED

    assert pickle.loads(pickle.dumps(UNCHANGED)) is UNCHANGED is copy.deepcopy(UNCHANGED)
    assert repr(UNCHANGED) == "UNCHANGED"


def test_answers_go_by_value() -> None:
    """Answers are compared with ==, commands and all, and nothing was executed for it."""
    from fsm_train import ClipGradNorm

    def answer() -> Any:
        return Transition(hyper={"lr": 1}, commands=(ClipGradNorm(1.0),), reason="why")

    assert answer() == answer()
    assert answer().hyper == {"lr": 1.0}


@attrs.frozen
class Best:
    """A record that a callback remembers."""

    value: float = 0.0


@attrs.frozen
class Pair:
    """One that another is in."""

    first: Best | None = None


def test_records_of_a_memory_are_those_that_are_in_it_or_declared() -> None:
    """In the initial memory, and in the type of the second parameter, also of a class that is made in a function."""

    @attrs.frozen
    class Local:
        value: int = 0

    @on(Phase.EPOCH_END)
    def declares(state: State, seen: tuple[Pair, ...] | Local | None) -> Transition:
        return Transition(memory=Local())

    @on(Phase.EPOCH_END, memory=Best())
    def begins_with_one(state: State, seen) -> None: ...  # type: ignore[no-untyped-def]

    @on(Phase.EPOCH_END)
    def of_a_type_checker(state: State, seen: Unknown) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    class Called:
        def __call__(self, state: State, seen: Best | None) -> None: ...

    assert memory_classes(declares) == {"Pair": Pair, "Best": Best, "Local": Local}
    assert memory_classes(begins_with_one) == {"Best": Best}
    assert memory_classes(of_a_type_checker) == {}
    assert memory_classes(on(Phase.EPOCH_END)(nothing)) == {}
    assert memory_classes(Callback("called", (Phase.EPOCH_END,), Called())) == {}


def test_a_path_among_the_arguments_is_recorded_as_text() -> None:
    """A log has no form for a path, and could not make the callback again."""

    @factory
    def writes(folder: Path | str) -> Callback[None]:
        return on(Phase.EPOCH_END)(nothing)

    assert writes(Path("runs", "a")).params == {"folder": "runs/a"} == writes("runs/a").params


def test_what_a_strict_factory_does_not_declare_is_not_done() -> None:
    """A factory of the library declares nothing in silence; any other one declares only what it says."""

    def stop(*, name: str = "stop") -> Callback[None]:
        return on(Phase.EPOCH_END, raises=Flag.STOP_TRAINING)(nothing)

    strict, plain = strict_factory(stop)(), factory(stop)()

    assert (strict.raises, strict.sets, strict.commands) == (Flag.STOP_TRAINING, frozenset(), frozenset())
    assert (plain.raises, plain.sets, plain.commands) == (Flag.STOP_TRAINING, None, None)
    assert strict.factory == plain.factory


@pytest.mark.parametrize("name", [None, ""])
def test_no_name_is_the_default_name(name: Any) -> None:
    """A name that is passed on and may be None changes neither the callback nor its commands."""
    from fsm_train.callbacks import ema

    setup = at(Phase.SETUP)

    assert ema(name=name) == ema()
    assert ema(name=name)(setup) == ema()(setup)


def test_command_that_is_always_given() -> None:
    """The callback declares its one command, and that it does nothing else."""
    from fsm_train import ClipGradNorm

    callback = always("clip", Phase.STEP_BEGIN, ClipGradNorm(1.0), order=-10)

    assert callback(at(Phase.STEP_BEGIN)) == Transition(commands=(ClipGradNorm(1.0),))
    assert (callback.raises, callback.sets, callback.commands) == (Flag.NONE, frozenset(), {ClipGradNorm})
    assert (callback.name, callback.order) == ("clip", -10)


def test_function_around_that_of_a_callback_is_not_passed_by() -> None:
    """It is asked, although functools.wraps gives it what the function inside has."""

    @functools.wraps(CONSTANT.decide)
    def around(state: State, memory: object) -> None:
        return None

    assert of_state_alone(CONSTANT) is not None
    assert of_state_alone(attrs.evolve(CONSTANT, decide=around)) is None


CONSTANT = on(Phase.LOSS_END)(nothing)
