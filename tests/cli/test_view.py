"""`fsm-train view`: a page for one log or several."""

from __future__ import annotations

import base64
import re
import zlib
from pathlib import Path
from typing import Any

import orjson
import pytest

from fsm_train.cli import main

from ..eventlog.log_files import logged

Captured = pytest.CaptureFixture[str]


def data_of(page: Path) -> Any:
    (data,) = re.findall(r'id="data">([^<]*)</script>', page.read_text())
    return orjson.loads(zlib.decompress(base64.b64decode(data)))


def test_view_writes_a_page_beside_the_log(log: str, capsys: Captured) -> None:
    """And prints its path."""
    assert main(["view", log]) == 0

    page = Path(log).with_suffix(".html")
    assert capsys.readouterr().out == f"{page}\n"
    (run,) = data_of(page)["runs"]
    assert (run["name"], run["replay"]["verdict"], run["what_if"]) == ("run.jsonl", "agrees", [])


def test_view_shows_several_runs_beside_each_other(log: str, other: str, tmp_path: Path, capsys: Captured) -> None:
    """With the first difference of each to the first; those of one name are called by their paths."""
    page = tmp_path / "both.html"
    assert main(["view", log, other, log, "-o", str(page), "--json"]) == 0

    data = data_of(page)
    assert [run["name"] for run in data["runs"]] == [log, "other.jsonl", log]
    assert [difference and difference["what"] for difference in data["differences"]] == ["early_stopping", None]
    written = orjson.loads(capsys.readouterr().out)
    assert written == {"page": str(page), "bytes": page.stat().st_size, "lines": [run["rows"] for run in data["runs"]]}


def test_view_marks_what_would_have_been(log: str, tmp_path: Path) -> None:
    """The verdicts of each combination of settings."""
    page = tmp_path / "page.html"
    settings = ["--what-if", "early_stopping.patience=1..2", "--what-if", "early_stopping.min_delta=0.0,0.5"]
    assert main(["view", log, "-o", str(page), *settings]) == 0

    (run,) = data_of(page)["runs"]
    assert [mark["label"] for mark in run["what_if"]] == ["1, 0.0", "1, 0.5", "2, 0.0", "2, 0.5"]


def test_view_overwrites_no_log(log: str, capsys: Captured) -> None:
    """Nor does it show more runs than one can tell apart, or settings that there are not."""
    before = Path(log).read_bytes()
    for arguments, sentence in (
        ([log, "-o", log], "is one of the logs"),
        ([log] * 9, "at most 8 beside each other"),
        ([log, "--what-if", "nobody.patience=1"], "there is no callback 'nobody'"),
    ):
        assert main(["view", *arguments]) == 2
        assert sentence in capsys.readouterr().err
    assert Path(log).read_bytes() == before


@pytest.mark.parametrize("named", [False, True], ids=["beside the log", "by -o"])
def test_view_replaces_its_own_page_and_no_file_of_somebody_else(log: str, named: bool, capsys: Captured) -> None:
    """A page is made again as the training goes on; a report of one's own may have the same name."""
    page = Path(log).with_suffix(".html")
    command = ["view", log, *(["-o", str(page)] if named else [])]
    page.write_text("<h1>My report</h1>")

    assert main(command) == 2
    assert f"{page} is there, and no page of fsm-train view: give another -o, or remove it" in capsys.readouterr().err
    assert page.read_text() == "<h1>My report</h1>"

    page.unlink()
    assert main(command) == 0
    first = data_of(page)
    logged(Path(log), epochs=1)
    assert main(command) == 0
    assert data_of(page) != first


def test_a_compressed_log_has_a_page_too(tmp_path: Path) -> None:
    """Without both of its suffixes."""
    import gzip

    logged(tmp_path / "run.jsonl", epochs=1)
    (tmp_path / "run.jsonl.gz").write_bytes(gzip.compress((tmp_path / "run.jsonl").read_bytes()))
    assert main(["view", str(tmp_path / "run.jsonl.gz")]) == 0
    assert (tmp_path / "run.html").exists()
