"""The tutorial as a reader has it: the file in a checkout, and what each of its cells shows in a real kernel.

A kernel takes packages that are no part of the development environment. `.ci/run` installs them, and says so in
FSM_TRAIN_NOTEBOOK, where nothing is skipped.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

TUTORIAL = Path(__file__).parents[2] / "examples" / "tutorial.ipynb"

needs_a_kernel = pytest.mark.skipif(
    "FSM_TRAIN_NOTEBOOK" not in os.environ,
    reason="needs pip install 'fsm-train[notebook]', and FSM_TRAIN_NOTEBOOK=1 to say that it is there",
)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_file_holds_no_output() -> None:
    """What a cell showed once is no part of the repository: it would differ in each run, and be out of date."""
    cells = code_cells(json.loads(TUTORIAL.read_text()))

    assert len(cells) > 10
    assert [(cell["outputs"], cell["execution_count"], cell["metadata"]) for cell in cells] == [([], None, {})] * len(
        cells
    )


def test_each_cell_is_explained() -> None:
    """A heading or a sentence stands before it, or before the cell of which it shows the result."""
    cells = json.loads(TUTORIAL.read_text())["cells"]
    kinds = "".join(cell["cell_type"][0] for cell in cells)

    assert kinds.startswith("mm")
    assert "ccc" not in kinds
    assert all("".join(cell["source"]).strip() for cell in cells)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The code cells of the tutorial after they ran from top to bottom, in a folder that has nothing else."""
    import nbformat
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patched:
        for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
            patched.setenv(name, str(folder / name.lower()))
        notebook = nbformat.read(TUTORIAL, as_version=4)
        nbformat.validate(notebook)
        NotebookClient(
            notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        ).execute()
    return code_cells(notebook)


def streams(cell: Any, name: str) -> str:
    return "".join(
        output["text"] for output in cell["outputs"] if output["output_type"] == "stream" and output["name"] == name
    )


def shown(cells: list[Any], kind: str) -> list[str]:
    """What the cells show in this form, one after the other."""
    return [output["data"][kind] for cell in cells for output in cell["outputs"] if kind in output.get("data", {})]


@needs_a_kernel
def test_it_reads_well(executed: list[Any]) -> None:
    """No cell fails or warns, and at the end stands an accuracy that is worth the reading."""
    assert [cell["source"] for cell in executed if streams(cell, "stderr")] == []
    assert [output for cell in executed for output in cell["outputs"] if output["output_type"] == "error"] == []
    (accuracy,) = re.findall(r"^test accuracy (0\.\d{3})$", streams(executed[-1], "stdout"), re.MULTILINE)
    assert 0.94 <= float(accuracy) <= 1.0


@needs_a_kernel
def test_results_show_themselves(executed: list[Any]) -> None:
    """A workload, a range test, states and an ablation are tables, most of them with drawings; so is a history."""
    tables = shown(executed, "text/html")
    captions = [re.findall("<caption>(.*?)</caption>", table) for table in tables]
    drawings = [table.count("<svg") for table in tables]

    assert [caption for found in captions for caption in found] == [
        *("Supervised", "LrFound", "State at done", "State at done", "State at done"),
        "valid_loss over 6 seeds, smaller is better",
    ]
    assert [count for count, found in zip(drawings, captions, strict=True) if found] == [0, 1, 4, 2, 4, 3]
    assert any("<th>valid_accuracy</th>" in table and 'class="dataframe"' in table for table in tables)


@needs_a_kernel
def test_pictures_are_shown_once(executed: list[Any]) -> None:
    """Each call of a plot is one picture."""
    calls = [cell["source"] for cell in executed if re.search(r"plot\w*\(.*\);$", cell["source"])]

    assert len(shown(executed, "image/png")) == len(calls) == 3


@needs_a_kernel
def test_progress_is_shown_below_its_bar(executed: list[Any]) -> None:
    """A row for each epoch, under one header, and at the end no bar is left."""
    (cell,) = [cell for cell in executed if "progress()" in cell["source"]]
    printed = streams(cell, "stdout")

    assert len(re.findall(r"^ ?\d+/20 ", printed, re.MULTILINE)) == 20
    assert len(re.findall(r"^epoch ", printed, re.MULTILINE)) == 1
    assert "━" not in json.dumps(cell["outputs"], ensure_ascii=False)
