"""The page in one file: what is in it, what cannot be in it, and how much it weighs."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from html.parser import HTMLParser
from importlib.resources import files

import orjson
import pytest

from fsm_train.view.building import MODULES, page, script, style

LIMIT = 250_000
SOURCES = {name: (files("fsm_train.view") / "page" / f"{name}.js").read_text() for name in MODULES}


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts and title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._within = tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._within, []).append(data)


def test_a_page_is_light_without_its_data() -> None:
    """At most 250 kB, of which most are not used."""
    assert len(page({}, "").encode()) < LIMIT / 2


def test_a_page_asks_for_nothing() -> None:
    """It names no address, loads no file, and its policy allows no request and no script but its own."""
    text = page({"runs": []}, "a run")
    elements = Elements(text)

    assert not re.search(r"https?:|//\w+\.|url\(|@import|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|EventSource", text)
    assert not any({"src", "srcset", "action"} & {*attributes} for _, attributes in elements.found)
    assert [attributes["href"] for _, attributes in elements.found if "href" in attributes] == ["#inspector"]
    (policy,) = [attributes["content"] for _, attributes in elements.found if "http-equiv" in attributes]
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (script(), style())]
    assert policy == f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'"


def test_no_text_of_a_log_is_markup() -> None:
    """Names are in the data, which is base64, and in the title, which is escaped."""
    hostile = "</script><script>alert(1)</script>{{script}}\u202e\"'&"
    text = page({"runs": [{"name": hostile}]}, hostile)
    elements = Elements(text)

    assert [tag for tag, _ in elements.found].count("script") == 2
    assert "".join(elements.texts["title"]).strip() == hostile.replace("\u202e", "\\u202e")
    (data,) = re.findall(r'id="data">([^<]*)</script>', text)
    assert orjson.loads(zlib.decompress(base64.b64decode(data)))["runs"] == [{"name": hostile}]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_those_before_it(name: str) -> None:
    """And exactly what they export: the built script has them in this order, in one scope."""
    for names, module in re.findall(r'^import \{([^}]*)\} from "\./(\w+)\.js";$', SOURCES[name], re.MULTILINE):
        assert MODULES.index(module) < MODULES.index(name)
        for imported in names.split(","):
            assert re.search(
                rf"^export (async )?(function|const|class) {imported.strip()}\b", SOURCES[module], re.MULTILINE
            )
    assert "import" not in re.sub(r"^import .*\n", "", SOURCES[name], flags=re.MULTILINE)


def test_no_two_modules_use_one_name() -> None:
    """Since they share a scope in the page."""
    names = [
        found
        for source in SOURCES.values()
        for found in re.findall(r"^(?:export )?(?:async )?(?:function|const|let|class) (\w+)", source, re.MULTILINE)
    ]

    assert sorted(names) == sorted({*names})


def test_the_script_has_no_modules_left() -> None:
    """Neither imports nor exports, nor what could end it; and no source makes markup from text."""
    assert not re.search(r"^\s*(import|export)\b", script(), re.MULTILINE)
    assert "</script" not in script().lower()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", script())


def colours(selector: str) -> dict[str, str]:
    """The colours that the style defines for a theme."""
    block = style()[style().index(selector) :].partition("}")[0]
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [":root {", ':root:not([data-theme="light"])', ':root[data-theme="dark"]'])
def test_colours_can_be_read(theme: str) -> None:
    """Text has the contrast of WCAG AA on the page, on a panel and on what is chosen; a curve that of a graphic."""
    found = colours(theme)

    def contrast(one: str, other: str) -> float:
        light, dark = sorted((luminance(found[one]), luminance(found[other])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for text in ("--ink", "--quiet", "--accent", "--alarm", "--good"):
        assert min(contrast(text, "--paper"), contrast(text, "--panel")) >= 4.5, text
    assert contrast("--accent", "--accent-soft") >= 4.5
    for name in (*(f"--series-{number}" for number in range(1, 9)), "--phase"):
        assert contrast(name, "--panel") >= 3, name


def test_the_page_is_dark_in_the_same_way_by_preference_and_by_choice() -> None:
    """The two places where the dark colours stand have the same."""
    assert colours(':root:not([data-theme="light"])') == colours(':root[data-theme="dark"]')


def test_each_file_says_its_purpose_and_is_short() -> None:
    """As those of the package do."""
    for source in SOURCES.values():
        assert source.startswith("// ")
        assert source.count("\n") <= 400
