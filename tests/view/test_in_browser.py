"""The page in a real browser: what the keys do, what is shown, and what hostile logs cannot do.

These tests run where FSM_TRAIN_BROWSER is set, as in `.ci/run`; they need the extra `browser`, chromium, chromedriver.
"""

from __future__ import annotations

import os
import random
import re
import unicodedata
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from fsm_train import Phase, Scripted, State, Transition, on, run, start
from fsm_train.callbacks import early_stopping, record
from fsm_train.cli import main
from fsm_train.view.packing import PHASES, packed_run

from ..eventlog.log_files import library, logged
from ..eventlog.mutations import mutated
from .browser import Page, chromium
from .unpacking import ints, states

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not os.environ.get("FSM_TRAIN_BROWSER"), reason="a browser is tried with FSM_TRAIN_BROWSER=1"),
]

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u202e\u2066{{data}}"


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs and pages that the tests look at."""
    folder = tmp_path_factory.mktemp("pages")
    logged(folder / "one.jsonl", epochs=20)
    logged(folder / "other.jsonl", [*library()[:3], early_stopping(patience=1)], epochs=20)
    hostile(folder / "hostile.jsonl")
    one, other = str(folder / "one.jsonl"), str(folder / "other.jsonl")
    assert main(["view", one, "--what-if", "early_stopping.patience=1..9"]) == 0
    assert main(["view", one, other, "-o", str(folder / "two.html")]) == 0
    assert main(["view", str(folder / "hostile.jsonl")]) == 0
    return folder


def hostile(path: Path) -> None:
    """A training whose names, texts and numbers are as bad as a log allows."""

    @on(Phase.EPOCH_END, memory=())
    def says(state: State, memory: tuple[object, ...]) -> Transition:
        """Say and remember what could break a page."""
        return Transition(memory=(HOSTILE, 1 << 200, -inf, nan, ("deep",) * 3), reason="\x1b[2J" + HOSTILE * 40)

    class Named(str):
        __slots__ = ()

    names = {
        f"valid_{HOSTILE}": 1e308,
        "valid___proto__": nan,
        "valid_constructor": -inf,
        "valid_" + "long" * 100: -0.0,
    }
    work = Scripted(loss=[1.0, nan, inf, 5e-324, 1e308, -1e308] * 2, odd=[nan] * 12, **names)
    run(start(work, epochs=4), [says, record("odd", "loss")], log=path)


def test_keys_move_the_cursor(driver: Any, folder: Path) -> None:
    """A line, a decision, a step, an epoch; to the first line, and to the last."""
    page = Page(driver, folder / "one.html")
    run_ = packed_run(folder / "one.jsonl")
    packed = run_.packed()
    last = run_.numbers[-1]
    steps = [row for row, _ in enumerate(run_.numbers) if row in ints(packed["groups"]["counters"][3]["rows"])]
    decisions = [int(row) for row in ints(packed["decisions"])]

    assert page.line == last
    for keys, number in (
        (["k", "k"], last - 2),
        (["j"], last - 1),
        (["\ue012"], last - 2),  # the left arrow
        (["\ue014", "\ue014", "j"], last),  # the right one; there is no line after the last
        (["\ue011"], 1),  # home
        (["k"], 1),
        (["n"], run_.numbers[decisions[0]]),
        (["n"], run_.numbers[decisions[1]]),
        (["N"], run_.numbers[decisions[0]]),
        (["\ue011", "s", "s"], run_.numbers[steps[2]]),
        (["S"], run_.numbers[steps[1]]),
        (["\ue010"], last),  # end
        (["N"], run_.numbers[decisions[-1]]),
    ):
        page.press(*keys)
        assert page.line == number, keys
        assert page.phase == PHASES[int(ints(packed["phases"])[run_.numbers.index(number)])]
    page.press("e", "E")
    page.check()


def test_the_state_at_each_line_is_that_of_the_log(driver: Any, folder: Path) -> None:
    """All of it, to the last bit: the script unpacks what was packed."""
    page = Page(driver, folder / "one.html")
    rows = states(packed_run(folder / "one.jsonl").packed())
    titles = {"Counters": "counters", "Hyper-parameters": "hyper", "Metrics": "metrics"}

    page.press("\ue011")
    for row in rows:
        table = page.table()
        for title, part in titles.items():
            shown = {name.partition(".")[2]: cells for name, cells in table.items() if name.startswith(f"{title}.")}
            assert {name: float(text) for name, (text,) in shown.items()} == row[part]
        assert table["Control.flags"] == [row["state"]["flags"] or "none"]
        page.press("j")
    page.check()


def test_what_changed_says_what_it_was(driver: Any, folder: Path) -> None:
    """And each callback says what it said, and what it remembers."""
    page = Page(driver, folder / "one.html")
    page.press("N")

    assert "early_stopping" in page.text("#said")
    assert "STOP_TRAINING" in page.text("#said")
    changed = page.js("return [...document.querySelectorAll('.values tr.changed-row')].map((row) => row.innerText)")
    assert any("flags" in row and "none → STOP_TRAINING" in row.replace("\t", " ") for row in changed)
    assert "Best(value=1, bad=2) → Best(value=1, bad=3)" in page.text("#memory")


def test_two_runs_stand_beside_each_other(driver: Any, folder: Path) -> None:
    """`d` goes to where they differ first, and again to what happened then; each run has a column."""
    page = Page(driver, folder / "two.html")
    assert "{patience=3} against {patience=1}" in page.text("#differences")

    page.press("d")
    assert page.line == 1
    page.press("d")
    assert page.phase == "valid_end"
    assert page.table()["Control.flags"] == ["none", "STOP_TRAINING"]
    page.press("r", "\ue010")
    assert page.line == packed_run(folder / "other.jsonl").numbers[-1]
    assert page.table()["Counters.epoch"] == ["3", "3"]
    page.check()


def test_the_mouse_moves_the_cursor(driver: Any, folder: Path) -> None:
    """Where it is pressed on a curve; a phase of the machine and a what-if lead to their lines."""
    from selenium.webdriver import ActionChains

    page = Page(driver, folder / "one.html")
    plot = driver.find_element("css selector", ".plot")
    ActionChains(driver, duration=0).move_to_element(plot).click().perform()
    assert 1 < page.line < packed_run(folder / "one.jsonl").numbers[-1]

    page.click(".setting", "early_stopping.patience=1")
    assert page.phase == "valid_end"
    page.press("\ue011")
    page.click(".phase-button", "step_begin")
    assert page.phase == "step_begin"
    assert page.js("return document.querySelector('[aria-current=step]').textContent") == "step_begin"
    page.click(".chip", "batch_size")
    assert page.js("return document.querySelectorAll('.panel').length") == 3
    for key in ("+", "+", "-", "0", "x", "x", "x", "l", "l", "g"):
        page.press(key)
    assert page.js("return document.activeElement.id") == "line"
    page.check()


def test_a_hostile_log_is_shown_as_text(driver: Any, folder: Path) -> None:
    """No element, script or request comes from it, no letter turns a line around, and all of it is there to read."""
    page = Page(driver, folder / "hostile.html")
    for key in ("\ue011", *"jjjnnnesk", "\ue010"):
        page.press(key)

    tags = set(page.js("return [...document.querySelectorAll('*')].map((one) => one.tagName.toLowerCase())"))
    assert not tags & {"img", "iframe", "object", "link"}
    assert page.js("return document.scripts.length") == 2
    text = page.js("return document.documentElement.innerText") + page.js("return document.body.textContent")
    assert not [c for c in set(text) if unicodedata.category(c) in ("Cf", "Cc", "Cs") and c not in "\n\t\u00ad"]
    assert "</script><img src=x onerror=alert(1)>" in page.text("#memory")
    assert "\\u202e" in page.text("#memory")
    assert str(1 << 200) in page.text("#memory")
    assert "NaN" in page.text("#state")
    page.check()


def test_damaged_logs_that_can_be_read_can_be_looked_at(driver: Any, tmp_path: Path) -> None:
    """Whatever is in them, the script finds its way: it was written for what a log may have, not for what one has."""
    good, log, opened = tmp_path / "good.jsonl", tmp_path / "mutated.jsonl", 0
    logged(good, epochs=3)
    for number in range(60):
        draw = random.Random(f"mutation {number}")
        log.write_bytes(mutated(good.read_bytes(), draw))
        if main(["view", str(log)]) == 0:
            opened += 1
            page = Page(driver, log.with_suffix(".html"))
            page.press("\ue011", *"jjnse+", "\ue010", *"kNxxl")
            page.check()
    assert opened > 5


@pytest.mark.parametrize("name", ["one", "two", "hostile"])
def test_a_narrow_screen_scrolls_down_alone(driver: Any, folder: Path, name: str) -> None:
    """400 pixels are enough, whatever the names are."""
    page = Page(driver, folder / f"{name}.html", width=400, height=800)

    assert not page.overflows()
    page.press("N")
    assert not page.overflows()
    page.check()


def test_light_and_dark(driver: Any, folder: Path) -> None:
    """As the system prefers it, and the other way with `t`."""

    def brightness(page: Page) -> int:
        return sum(map(int, re.findall(r"\d+", page.js("return getComputedStyle(document.body).backgroundColor"))[:3]))

    for dark in (False, True):
        page = Page(driver, folder / "one.html", dark=dark)
        assert (brightness(page) < 300) is dark
        page.press("t")
        assert (brightness(page) < 300) is not dark
        page.check()


def test_the_keyboard_reaches_everything_that_can_be_pressed(driver: Any, folder: Path) -> None:
    """Each in turn with Tab; each has a name, and shows that it is the one."""
    page = Page(driver, folder / "two.html")
    reached = []
    for _ in range(200):
        page.press("\ue004")
        name, outline, tag = page.js(
            "const one = document.activeElement; const style = getComputedStyle(one);"
            "return [(one.getAttribute('aria-label') || one.textContent || one.labels?.[0]?.textContent || '').trim(),"
            "style.outlineStyle, one.tagName]"
        )
        if tag == "BODY":
            break
        assert name
        assert outline != "none", name
        reached.append(name)
    else:
        pytest.fail("Tab goes on and on")

    buttons = page.js(
        "return [...document.querySelectorAll('main button:not(:disabled), header button')]"
        ".filter((one) => one.offsetParent).length"
    )
    assert len(reached) >= buttons
    page.press("?")
    assert page.js("return document.getElementById('help').open")
    page.press("\ue00c")
    assert not page.js("return document.getElementById('help').open")


def test_a_curve_shows_what_is_no_number(driver: Any, folder: Path) -> None:
    """In the colour of an alarm, which is nowhere else on a curve."""
    page = Page(driver, folder / "hostile.html")
    code = """
        const colour = getComputedStyle(document.documentElement).getPropertyValue("--alarm");
        const rgb = colour.match(/[0-9a-f]{2}/g).map((part) => parseInt(part, 16));
        return [...document.querySelectorAll(".panel")].map((panel) => {
            const canvas = panel.querySelector("canvas");
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            let found = 0;
            for (let i = 0; i < pixels.length; i += 4) {
                if (rgb.every((part, k) => Math.abs(part - pixels[i + k]) < 12)) found++;
            }
            return [panel.getAttribute("aria-label"), found];
        });
    """
    alarms = dict(page.js(code))

    assert alarms["loss"] > 10
    assert alarms["__proto__"] > 10
    page.check()
