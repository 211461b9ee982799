"""A workload around another one: everything passes through that the proxy does not define."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from fsm_train import Command, Operation, Phase, Scripted, on, run, start
from fsm_train.core.phase import BATCH_PHASES
from fsm_train.core.workload import Workload
from fsm_train.testing import simulate
from fsm_train.worlds.proxy import WorkloadProxy
from tests.diabetes_training import workload


class InOneGo(Scripted):
    """Has its own answer to what a workload answers by default."""

    informed = frozenset(Operation)

    def fused(self, operations: tuple[Operation, ...]) -> Callable[[], int]:
        return lambda: len(operations)

    def carries(self, kind: type[Command]) -> bool:
        return False


def test_training_is_the_same_through_a_proxy() -> None:
    """A proxy that defines nothing changes nothing."""
    through = run(start(WorkloadProxy(Scripted(batches=2, loss=0.5, valid_loss=1.0)).as_workload(), epochs=2))

    assert through == simulate([], epochs=2, batches=2, loss=0.5, valid_loss=1.0)


def test_defaults_of_the_protocol_do_not_hide_the_workload() -> None:
    """What a workload has answers of its own to is asked of it, also where the protocol has a default."""
    proxy = WorkloadProxy(InOneGo()).as_workload()

    assert proxy.informed == frozenset(Operation)
    assert proxy.carries(Command) is False
    assert proxy.fused((Operation.STEP,))() == 1


def test_operation_that_is_not_defined_is_the_method_of_the_workload() -> None:
    """No call stands between the interpreter and an operation that the proxy leaves alone."""
    work = Scripted()

    assert WorkloadProxy(work).forward == work.forward


def test_interrupt_is_that_of_the_workload() -> None:
    """A signal that is noted on either is seen on both."""
    work = Scripted()
    proxy = WorkloadProxy(work)

    work.interrupt = "SIGTERM"
    assert proxy.interrupt == "SIGTERM"
    proxy.interrupt = None
    assert work.interrupt is None


def test_subclass_sees_what_it_defines() -> None:
    """A method that a proxy defines is called in place of the workload's."""

    class Counting(WorkloadProxy):
        steps = 0

        def step(self) -> bool:
            self.steps += 1
            return self.wrapped.step()

    proxy = Counting(Scripted(batches=3))
    final = run(start(proxy.as_workload(), epochs=2))

    assert (proxy.steps, final.step, final.phase) == (6, 6, Phase.DONE)


@pytest.mark.parametrize("watched", [(), (Phase.LOSS_END,), (Phase.BATCH_BEGIN, Phase.BATCH_END), BATCH_PHASES])
@pytest.mark.parametrize("name", ["fetch", "forward", "loss", "backward", "step"])
@pytest.mark.parametrize("by_name", [False, True])
def test_operation_of_a_proxy_is_done_whoever_looks(name: str, watched: tuple[Phase, ...], by_name: bool) -> None:
    """Also where the workload would do several at once, and whether it is defined or found by its name."""
    done = []

    class Noting(WorkloadProxy):
        if by_name:

            def __getattr__(self, asked: str) -> Any:
                found = super().__getattr__(asked)
                return (lambda: (done.append(name), found())[1]) if asked == name else found

    def noted(self: Any) -> object:
        done.append(name)
        return getattr(self.wrapped, name)()

    kind = Noting if by_name else type("Defining", (WorkloadProxy,), {name: noted})
    callbacks = [on(*watched, name="look")(lambda state: None)] if watched else []
    run(start(kind(workload()).as_workload(), epochs=2), callbacks)

    assert len(done) == 2 * (4 + (name == "fetch"))


def test_proxies_nest() -> None:
    """A proxy around a proxy passes through both."""
    work = Scripted()

    assert WorkloadProxy(WorkloadProxy(work).as_workload()).hyper() == work.hyper()


def test_proxy_is_copied_with_its_workload() -> None:
    """A copy asks for attributes before there is a workload, and does not look for it without end."""
    proxy = WorkloadProxy(Scripted())

    assert copy.copy(proxy).wrapped is proxy.wrapped
    with pytest.raises(AttributeError, match="nonsense"):
        proxy.nonsense  # noqa: B018


def test_proxy_needs_no_default_of_the_protocol() -> None:
    """Each attribute of the protocol is found through a proxy."""
    proxy = WorkloadProxy(Scripted())

    assert [name for name in vars(Workload) if name[0] != "_" and not hasattr(proxy, name)] == []
