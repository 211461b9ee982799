"""Suspended or killed anywhere, and gone on with in a fresh process: the same training to the last bit."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from fsm_train import restore
from tests.checkpoints.awkward_training import Spec
from tests.checkpoints.comparison import differences, suspended_everywhere, train_through
from tests.checkpoints.processes import all_or_some, each_in_a_fresh_process, signalled
from tests.how_long import of_all


def _gone_on_with_from_everywhere(folder: Path, specs: list[Spec], every: int) -> None:
    expected, jobs = {}, []
    for i, spec in enumerate(specs):
        expected[spec] = train_through(spec)
        end = suspended_everywhere(spec, folder / str(i))
        assert differences(expected[spec], (end, [])) == [], spec
        jobs += [(spec, path) for path in all_or_some((folder / str(i)).iterdir(), every)]
    for (spec, path), end in zip(jobs, each_in_a_fresh_process(jobs), strict=True):
        assert differences(expected[spec], end) == [], (spec, path.name)


@pytest.mark.long
@pytest.mark.parametrize("variant", ["everything", "float16", "scheduler", "awkward"])
def test_every_boundary(variant: str, tmp_path: Path) -> None:
    """Left at each batch, in and after each validation and after each epoch: no bit differs, at the end or before."""
    _gone_on_with_from_everywhere(tmp_path, [Spec(variant)], every=7)


LOADERS = ["own generator", "unbatched", "weighted", "list", "reproducible", "stream"]


@pytest.mark.long
def test_every_kind_of_loader(tmp_path: Path) -> None:
    """Whatever gives the batches, going on in the middle of an epoch gives the same ones."""
    _gone_on_with_from_everywhere(tmp_path, [Spec(loader=loader, epochs=2) for loader in LOADERS], every=11)


STATEFUL = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # by torchdata itself


@pytest.mark.long
@STATEFUL
def test_stateful_loader(tmp_path: Path) -> None:
    """A loader that keeps its place itself is asked for it."""
    pytest.importorskip("torchdata.stateful_dataloader")
    _gone_on_with_from_everywhere(tmp_path, [Spec(loader="stateful", epochs=2)], every=5)


@pytest.mark.long
def test_loaders_with_workers(tmp_path: Path) -> None:
    """With workers too, where augmentation is seeded for each batch or a stream is read from its beginning."""
    specs = [Spec(loader=loader, epochs=2, workers=2) for loader in ("reproducible", "stream")]
    _gone_on_with_from_everywhere(tmp_path, specs, every=17)


@pytest.mark.unmeasured
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning")
def test_number_of_workers_may_change(tmp_path: Path) -> None:
    """What `reproducible` gives is the same for 0, 1, 2 and 4 workers, and after going on with another number."""
    expected = train_through(Spec(loader="reproducible", epochs=2))
    for workers in (1, 2, 4):
        assert differences(expected, train_through(Spec(loader="reproducible", epochs=2, workers=workers))) == []
    suspended_everywhere(Spec(loader="reproducible", epochs=2), tmp_path)
    paths = sorted(tmp_path.iterdir())[4::9]
    jobs = [(Spec(loader="reproducible", epochs=2, workers=i % 3), path) for i, path in enumerate(paths)]
    for end in each_in_a_fresh_process(jobs):
        assert differences(expected, end) == []


@pytest.mark.unmeasured
@STATEFUL
@pytest.mark.parametrize("loader", ["shuffled", "stateful"])
def test_augmentation_in_workers_is_said_to_be_inexact(
    loader: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without `reproducible`, what goes on in the middle of an epoch differs, and whoever restores it is told."""
    if loader == "stateful":
        pytest.importorskip("torchdata.stateful_dataloader")
    spec = Spec(loader=loader, epochs=1, workers=2)
    expected = train_through(spec)
    suspended_everywhere(spec, tmp_path)
    inside, over = (sorted(tmp_path.iterdir())[i] for i in (4, -1))

    state = restore(inside, spec.make()[0])
    (end,) = each_in_a_fresh_process([(spec, inside)])

    assert differences(expected, end) != []
    assert "random augmentation in the loader's 2 workers" in state.notes[0]
    assert state.notes[0] in caplog.text
    assert restore(over, spec.make()[0]).notes == ()


@pytest.mark.long
def test_kills_at_random_moments(tmp_path: Path) -> None:
    """Killed with SIGKILL again and again, the training ends as if it had never been."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw, kills, trainings = random.Random(seed), 0, 0
    while kills < of_all(100, few=4):
        spec = Spec(("everything", "awkward")[trainings % 2], epochs=2, saves=str(tmp_path / str(trainings)), slow=0.01)
        trainings += 1
        result = signalled(spec, signal.SIGKILL, draw.uniform(0.0, 0.5))
        while result.status == -signal.SIGKILL:
            kills += 1
            result = signalled(spec, signal.SIGKILL, draw.uniform(0.1, 0.5))
        assert result.status == 0, seed
        assert differences(train_through(spec), (result.end, [])) == [], seed
    print(f"{kills} kills, {trainings} trainings")
