"""Runs of MLflow, read back by its own client: of a database on the disk, and of a stand-in that needs no MLflow."""

from __future__ import annotations

import importlib.util
import socket
import sys
from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import Any

import pytest

from fsm_train import CallbackError, Phase, Scripted, extend, run, start
from fsm_train.callbacks import early_stopping
from fsm_train.cli import main
from fsm_train.sinks import mlflow

from .stand_ins import fake_mlflow
from .tracked import EXPORTED, SEEN, VALID_LOSSES, breaks, callbacks, in_pieces, suspends, whole

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of MLflow itself

REAL = ["real"] if importlib.util.find_spec("mlflow") else []


@pytest.fixture(params=["stand-in", *REAL], scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a store. Nothing outside of this machine is reached."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setattr(socket.socket, "connect", _refuse)
        if request.param == "stand-in":
            for name, module in fake_mlflow().items():
                patch.setitem(sys.modules, name, module)
        yield uri


def _refuse(*_: object) -> None:
    raise AssertionError("a connection was asked for")


class Saved:
    """The newest run of an experiment.

    Attributes:
        status, params, tags: as MLflow has them.
        count: how many runs there are.
    """

    def __init__(self, store: str, experiment: str) -> None:
        self._client = sys.modules["mlflow"].MlflowClient(store)
        found = self._client.get_experiment_by_name(experiment).experiment_id
        newest, *others = self._client.search_runs([found], order_by=["attributes.start_time DESC"])
        self.status: str = newest.info.status
        self.name: str = newest.info.run_name
        self.params: dict[str, str] = newest.data.params
        self.tags: dict[str, str] = newest.data.tags
        self.count = 1 + len(others)
        self._run_id = newest.info.run_id

    def metric(self, name: str) -> list[tuple[int, str]]:
        """Steps and values, as text so that NaN equals itself."""
        return [(m.step, repr(m.value)) for m in self._client.get_metric_history(self._run_id, name)]


def sink(store: str, experiment: str, **more: Any) -> Any:
    return mlflow(experiment, **{"run": "first", "tracking_uri": store, **SEEN, **more})


def test_metrics_are_the_training(store: str) -> None:
    """Over the optimizer steps, to the last bit: metrics, rates, the epoch, and facts of batches; NaN too."""
    final = whole(sink(store, "whole"))
    saved = Saved(store, "whole")

    assert saved.metric("train_loss") == [(4 * n, repr(m["train_loss"])) for n, m in enumerate(final.history, 1)]
    assert saved.metric("loss") == [(n, repr(1 / n)) for n in range(2, 13, 2)]
    assert dict(saved.metric("valid_loss"))[4] == repr(nan)
    assert float(dict(saved.metric("valid_loss"))[9]) > 1e308  # an infinity is the largest number there
    assert VALID_LOSSES[3] == float("inf")
    assert [step for step, _ in saved.metric("lr/1")] == [4, 8, 12]
    assert float(dict(saved.metric("epoch"))[12]) == 3
    assert (saved.name, saved.status, saved.tags["ended"]) == ("first", "FINISHED", "all 3 epochs done")


def test_settings_are_parameters(store: str) -> None:
    """The plan, those of callbacks and of the user, long ones cut; and tags."""
    config = {f"n{number}": number for number in range(150)}
    whole(sink(store, "settings", config={**config, "top@5": "x" * 600}, tags={"team": "vision"}), epochs=1)
    saved = Saved(store, "settings")

    assert (saved.params["plan.epochs"], saved.params["plan.seed"]) == ("1", "0")
    assert saved.params["early_stopping.monitor"] == "valid_loss"
    assert (saved.params["hyper.lr/1"], saved.params["n149"], saved.params["top_5"]) == ("0.2", "149", "x" * 500)
    assert saved.tags["team"] == "vision"


def test_names_that_mlflow_refuses_are_changed(store: str) -> None:
    """A metric at 5 is no reason to switch it off."""
    work = Scripted(batches=2, **{"valid_top@5": 0.5})
    assert not run(start(work, epochs=1), sinks=[sink(store, "names", facts=[])]).notes

    assert Saved(store, "names").metric("valid_top_5") == [(2, "0.5")]


@pytest.mark.parametrize("same_object", [True, False])
def test_a_resumed_training_goes_on_in_its_run(store: str, same_object: bool) -> None:
    """It is found by its name, also by another process; each number is there, and those after the place again."""
    experiment = f"pieces {same_object}"
    first = sink(store, experiment)
    in_pieces(lambda: first if same_object else sink(store, experiment))
    whole(sink(store, f"whole {same_object}"))
    saved, expected = Saved(store, experiment), Saved(store, f"whole {same_object}")

    assert (saved.count, saved.status) == (1, "FINISHED")
    for name in ("train_loss", "valid_loss", "loss"):
        assert set(saved.metric(name)) == set(expected.metric(name))
        assert len(saved.metric(name)) > len(expected.metric(name))
    assert saved.params["callbacks"] == f"{saved.params['callbacks from step 5']}, suspends"


def test_a_new_training_is_a_new_run(store: str) -> None:
    """Of the same object, and of the same name."""
    twice = sink(store, "new", run="it's new")
    whole(twice, epochs=1)
    whole(twice, epochs=2)

    assert Saved(store, "new").count == 2
    assert len(Saved(store, "new").metric("train_loss")) == 2


def test_a_resumed_training_without_a_run_gets_one(store: str) -> None:
    """As where its first part was not tracked, or nobody gave a name."""
    for name in ("first", None):
        first = whole(further=[suspends(5)])
        run(first, callbacks(), sinks=[sink(store, f"late {name}", run=name)])
        assert [step for step, _ in Saved(store, f"late {name}").metric("train_loss")] == [8, 12]


def test_a_run_of_the_program_is_used_by_its_id(store: str) -> None:
    """Nothing is made then."""
    whole(sink(store, "own"), epochs=1)
    client = sys.modules["mlflow"].MlflowClient(store)
    own = client.create_run(client.get_experiment_by_name("own").experiment_id, run_name="own", tags={})
    whole(sink(store, "own", run_id=own.info.run_id), epochs=1)

    assert Saved(store, "own").count == 2
    assert len(client.get_metric_history(own.info.run_id, "train_loss")) == 1


def test_settings_that_changed_are_added(store: str) -> None:
    """MLflow keeps a parameter as it was: the other value has the step in its name."""
    both = sink(store, "changed", facts=[])

    def work() -> Scripted:
        return Scripted(valid_loss=0.5)

    final = run(start(work(), epochs=1), [early_stopping(patience=3)], sinks=[both])
    longer = run(extend(final, epochs=1), [early_stopping(patience=5)], sinks=[both])
    saved = Saved(store, "changed")

    assert (longer.notes, saved.count) == ((), 1)
    assert (saved.params["early_stopping.patience"], saved.params["early_stopping.patience from step 3"]) == ("3", "5")
    assert (saved.params["plan.epochs"], saved.params["plan.epochs from step 3"]) == ("1", "2")


def test_a_training_that_does_not_end_well_says_so(store: str) -> None:
    """FAILED, or KILLED where it was suspended or cut off, with the reason."""
    with pytest.raises(CallbackError):
        whole(sink(store, "failed"), further=[breaks])
    assert Saved(store, "failed").status == "FAILED"
    assert Saved(store, "failed").tags["ended"].startswith("failed in epoch 2/3: CallbackError: callback 'breaks'")
    assert whole(sink(store, "suspended"), further=[suspends(5)]).phase is Phase.SUSPENDED
    assert Saved(store, "suspended").status == "KILLED"
    assert Saved(store, "suspended").tags["ended"] == "suspended in epoch 2/3: suspends: time is up"
    cut_off = sink(store, "cut off")
    cut_off.open(start(Scripted(), epochs=1), [])
    assert Saved(store, "cut off").status == "RUNNING"
    cut_off.close()
    cut_off.close()
    assert (Saved(store, "cut off").status, Saved(store, "cut off").tags["ended"]) == (
        "KILLED",
        "cut off before its end",
    )


def test_an_exported_log_is_the_run(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers, parameters and end are those that were written live; a refusal is said."""
    log = tmp_path / "run.jsonl"
    whole(sink(store, "live"), log=log)
    arguments = ["export", str(log), "mlflow", store, *EXPORTED, "--project"]

    assert main([*arguments, "exported"]) == 0
    live, exported = Saved(store, "live"), Saved(store, "exported")
    for name in ("train_loss", "valid_loss", "loss", "grad_norm", "lr/0", "lr/1", "epoch"):
        assert exported.metric(name) == live.metric(name)
    assert (exported.params, exported.status) == (live.params, live.status)
    assert (exported.tags["ended"], exported.name) == (live.tags["ended"], "run")
    database = store.removeprefix("sqlite:///")
    assert main(["export", str(log), "mlflow", database, "--project", "by file", "--run", "second"]) == 0
    assert Saved(store, "by file").name == "second"
    capsys.readouterr()
    assert main([*arguments, ""]) == 2
    assert capsys.readouterr().err.startswith("fsm-train: experiment=''")


def test_what_mlflow_raises_switches_it_off(store: str) -> None:
    """With a note; the training continues."""
    with pytest.warns(RuntimeWarning, match="the sink MlflowRun raised"):
        final = whole(sink(store, "gone", run_id="no such run"))

    assert (final.epoch, len(final.notes)) == (3, 1)


@pytest.mark.parametrize(("name", "error"), [(3, TypeError), ('it\'s "mine"', ValueError)])
def test_a_name_by_which_no_run_is_found_is_refused(store: str, name: Any, error: type[Exception]) -> None:
    """At once, and not where the training resumes."""
    with pytest.raises(error, match="run="):
        sink(store, "named", run=name)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and with what to install."""
    monkeypatch.setitem(sys.modules, "mlflow", None)

    with pytest.raises(ModuleNotFoundError, match=r"mlflow\(…\) needs mlflow: pip install 'fsm-train\[mlflow\]'"):
        mlflow("digits")
    with pytest.raises(TypeError, match="experiment=PosixPath"):
        mlflow(Path("digits"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="experiment=''"):
        mlflow("")
