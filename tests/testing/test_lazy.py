"""What `fsm_train.testing` needs, and when."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fsm_train.testing


def printed(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_simulations_need_no_hypothesis() -> None:
    """Without Hypothesis, and without pytest, callbacks are tried out all the same."""
    code = (
        "import sys; sys.modules['hypothesis'] = sys.modules['pytest'] = sys.modules['torch'] = None\n"
        "from fsm_train.testing import Trace, at, drive, simulate\n"
        "print(simulate([], epochs=2).epoch)"
    )
    assert printed(code) == "2\n"


@pytest.mark.parametrize("name", ["check_callback", "strategies", "MachineModel", "CHECKS"])
@pytest.mark.usefixtures("measured")
def test_without_hypothesis_the_extra_is_named(name: str) -> None:
    """What needs Hypothesis says how to install it."""
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import fsm_train.testing\n"
        f"try: fsm_train.testing.{name}\n"
        "except ImportError as error: print(error)"
    )
    assert printed(code) == f"fsm_train.testing.{name} needs Hypothesis: pip install 'fsm-train[testing]'\n"


def test_checks_need_no_torch() -> None:
    """A callback is checked where torch cannot be imported, and NumPy is not."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from fsm_train.callbacks import early_stopping\n"
        "from fsm_train.testing import CHECKS, check_callback\n"
        "print(len(check_callback(early_stopping(), examples=3).passed) == len(CHECKS), 'numpy' in sys.modules)"
    )
    assert printed(code) == "True False\n"


def test_every_public_name_is_there() -> None:
    """What `__all__` says can be had; anything else is an AttributeError."""
    assert [name for name in fsm_train.testing.__all__ if not hasattr(fsm_train.testing, name)] == []
    assert set(fsm_train.testing.__all__) <= set(dir(fsm_train.testing))
    with pytest.raises(AttributeError, match="module 'fsm_train.testing' has no attribute 'nonsense'"):
        fsm_train.testing.nonsense  # noqa: B018


def test_other_modules_that_are_missing_are_not_blamed_on_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """If something else cannot be imported, that is what is said."""
    monkeypatch.delitem(vars(fsm_train.testing), "MachineModel", raising=False)
    monkeypatch.setitem(sys.modules, "fsm_train.testing.model", None)

    with pytest.raises(ModuleNotFoundError, match=r"fsm_train\.testing\.model"):
        fsm_train.testing.MachineModel  # noqa: B018
