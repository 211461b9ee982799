"""Stand-ins for the libraries of mlflow and wandb, as far as the sinks call them.

The tests that use them run with the real libraries too, where these are installed, and expect the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

Metric = SimpleNamespace


class FakeClient:
    """What `mlflow.MlflowClient` does, in memory. A parameter that is changed and a bad name are errors, as there."""

    stores: dict[str | None, FakeClient] = {}  # noqa: RUF012 -- one for all, as servers are

    def __new__(cls, uri: str | None = None) -> FakeClient:
        if uri not in cls.stores:
            store = cls.stores[uri] = super().__new__(cls)
            store.experiments, store.runs, store.ids = {}, {}, itertools.count()
        return cls.stores[uri]

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = True
        return name

    def create_run(self, experiment_id: str, run_name: str | None, tags: Mapping[str, str]) -> Any:
        run_id = f"run-{next(self.ids)}"
        info = SimpleNamespace(run_id=run_id, run_name=run_name, status="RUNNING", experiment_id=experiment_id)
        data = SimpleNamespace(params={}, tags=dict(tags))
        self.runs[run_id] = SimpleNamespace(info=info, data=data, metrics={})
        return self.runs[run_id]

    def get_run(self, run_id: str) -> Any:
        return self.runs[run_id]

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].info.status = status

    set_terminated = update_run

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.runs[run_id].data.tags[key] = value

    def search_runs(self, experiment_ids: Sequence[str], named: str = "", **_: object) -> list[Any]:
        runs = [run for run in reversed(self.runs.values()) if run.info.experiment_id in experiment_ids]
        return [run for run in runs if not named or run.info.run_name == named.partition(" = ")[2][1:-1]]

    def log_batch(self, run_id: str, metrics: Sequence[Any] = (), params: Sequence[Any] = ()) -> None:
        run = self.runs[run_id]
        assert len(metrics) + len(params) <= 100
        for metric in metrics:
            assert "@" not in metric.key
            run.metrics.setdefault(metric.key, []).append(metric)
        for param in params:
            assert run.data.params.setdefault(param.key, param.value) == param.value

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        return list(self.runs[run_id].metrics[key])


def fake_mlflow() -> dict[str, ModuleType]:
    mlflow, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    FakeClient.stores.clear()
    mlflow.MlflowClient = FakeClient  # type: ignore[attr-defined]
    entities.Metric = lambda key, value, timestamp, step: Metric(**locals())  # type: ignore[attr-defined]
    entities.Param = lambda key, value: SimpleNamespace(key=key, value=value)  # type: ignore[attr-defined]
    return {"mlflow": mlflow, "mlflow.entities": entities}


class FakeRun:
    """What a run of wandb does, in memory."""

    def __init__(self, **init: Any) -> None:
        self.init = init
        assert init.keys() <= {"id", "resume", "reinit", "project", "name", "mode", "dir"}
        self.id: str = init["id"] or f"made-up-{id(self)}"
        self.rows: list[dict[str, float]] = []
        self.summary: dict[str, Any] = {}
        self.axes: dict[str, str | None] = {}
        self.config = FakeConfig()
        self.preempting = False
        self.exit_code: int | None = None

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes[name] = step_metric

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def mark_preempting(self) -> None:
        self.preempting = True

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class FakeConfig(dict[str, Any]):
    def update(self, settings: Mapping[str, Any], allow_val_change: bool) -> None:  # type: ignore[override]
        assert allow_val_change
        super().update(settings)


@contextmanager
def fake_wandb() -> Iterator[tuple[ModuleType, list[FakeRun]]]:
    wandb, runs = ModuleType("wandb"), list[FakeRun]()

    def init(**arguments: Any) -> FakeRun:
        runs.append(FakeRun(**arguments))
        return runs[-1]

    wandb.init = init  # type: ignore[attr-defined]
    yield wandb, runs
