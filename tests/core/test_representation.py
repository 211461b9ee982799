"""What is looked at in a terminal or a notebook fits its screen, and is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from fsm_train import Supervised
from fsm_train.ablation import Ablation, Variant
from fsm_train.core.representation import HEIGHT, WIDTH, Html, html_table, properties
from fsm_train.lr_finder import LrFound

X, Y = torch.zeros(4, 3), torch.zeros(4, 1)


def supervised(**settings: object) -> Supervised:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Supervised(model, optimizer, nn.MSELoss(), **{"train": [(X, Y)] * 2, **settings})


def ablation(callbacks: int, seeds: int = 1) -> Ablation:
    names = ["all", *(f"without a_callback_with_a_long_name_{i}" for i in range(callbacks)), "none"]
    base, bad = (0.5,) * seeds, (math.nan,) * seeds
    rows = [Variant(name, base if i % 3 else bad, base, name.partition(" ")[2] or None) for i, name in enumerate(names)]
    return Ablation("valid_loss", "min", tuple(range(seeds)), tuple(rows))


def long_names(count: int) -> dict[str, object]:
    return {f"a_metric_with_a_long_name_{i}": lambda output, target: 0.0 for i in range(count)}


@pytest.mark.parametrize(
    "thing",
    [
        supervised(),
        supervised(valid=[(X, Y)], metrics=long_names(50), sensors=dict.fromkeys(long_names(50), lambda work: 0.0)),
        ablation(2),
        ablation(2, seeds=3),
        ablation(100),
        LrFound((), (), ()),
        LrFound((1e-3, 1e-2), (1.0, 2.0), (1.0, 2.0)),
        LrFound(tuple(1e-7 * 2**i for i in range(25)), (0.5,) * 25, (0.5,) * 25),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_it_fits_a_screen(thing: object) -> None:
    """No line is wider than 80 characters, and there are fewer than 24: a prompt is below them."""
    lines = repr(thing).splitlines()

    assert max(map(len, lines)) <= WIDTH
    assert len(lines) < HEIGHT
    assert thing._repr_html_().startswith("<table>")


def test_supervised_shows_its_parts() -> None:
    """Model, optimizer, loss, data and device stand in it by the names of the settings."""
    assert repr(supervised(valid=[(X, Y)], metrics={"mae": lambda output, target: 0.0})).splitlines() == [
        "Supervised(",
        "  model: Linear of 4 parameters, 4 of them trained",
        "  optimizer: SGD, lr 0.1, momentum 0.9, dampening 0, weight_decay 0",
        "  loss_fn: MSELoss",
        "  train: list of 2 batches",
        "  valid: list of 1 batch",
        "  metrics: mae",
        "  device: cpu",
        ")",
    ]


def test_supervised_shows_each_group() -> None:
    """A hyper-parameter of several groups is shown with all of its values."""
    model = nn.Linear(3, 1)
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.01}]

    assert "lr (0.1, 0.01)" in repr(Supervised(model, torch.optim.SGD(groups), nn.functional.mse_loss, [(X, Y)]))


def test_loader_without_a_length_is_named() -> None:
    """Of what can only be iterated, the kind is shown."""

    class Generated:
        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            yield X, Y

    assert "  train: Generated\n" in repr(supervised(train=Generated()))


def test_ablation_shows_what_each_variant_did() -> None:
    """Mean and spread, difference and verdict."""
    table = (Variant("all", (1.0, 1.2), (1.0, 1.2)), Variant("without a", (2.0, 2.3), (1.0, 1.2), "a"))

    assert repr(Ablation("valid_loss", "min", (0, 1), table)).splitlines() == [
        "Ablation of valid_loss over 2 seeds",
        "all                         1.1000 ± 0.1414",
        "without a                   2.1500 ± 0.2121     +1.0500  worse without",
    ]


def test_ablation_draws_its_differences_in_a_notebook() -> None:
    """On one scale; what is not finite is no drawing, and a single seed has no error to draw."""
    base = (1.0, 1.2)
    rows = (
        *(Variant("all", base, base), Variant("without a", (2.0, 2.3), base, "a")),
        *(Variant("without b", (math.inf, 1.0), base, "b"), Variant("none", (2.0, 1.0), base)),
    )
    html = Ablation("valid_loss", "min", (0, 1), rows)._repr_html_()

    assert [row.count("<svg") for row in html.split("<tr>")[2:]] == [0, 1, 0, 1]
    assert "valid_loss over 2 seeds, smaller is better" in html
    one = Ablation("valid_accuracy", "max", (0,), (Variant("all", (1.0,), (1.0,)), Variant("none", (0.5,), (1.0,))))
    assert "valid_accuracy over 1 seed, larger is better" in one._repr_html_()
    assert "M3.0,7H3.0" in one._repr_html_()
    for table in (html, one._repr_html_()):
        ElementTree.fromstring(table)


def test_rates_are_drawn_in_a_notebook() -> None:
    """The losses over the rates, and where there is a suggestion, where it is."""
    falling, rising = (3.0, 2.0, 1.0, 4.0), (1.0, 2.0, 3.0, 4.0)
    for losses, dotted in ((falling, 1), (rising, 0)):
        html = LrFound((0.0, 1e-2, 1e-1, 1.0), losses, losses)._repr_html_()
        assert (html.count("<svg"), html.count("stroke-dasharray")) == (1, dotted)
        ElementTree.fromstring(html)


def test_rates_are_summed_up() -> None:
    """Instead of some hundred numbers: what to use, what was tried, and where the loss was lowest."""
    found = LrFound((1e-3, 1e-2, 1e-1, 1.0), (3.0, 2.0, 1.0, 4.0), (3.0, 2.0, 1.0, 4.0))

    assert repr(found).splitlines() == [
        "LrFound(",
        "  suggestion: 0.01",
        "  rates: 4 from 0.001 to 1",
        "  lowest smoothed loss: 1 at 0.1",
        ")",
    ]


def test_html_is_escaped() -> None:
    """A name cannot bring markup into a notebook."""
    table = html_table("<c>", [("<n>", "<script>&")], head=("<h>", "v"))

    assert table == (
        "<table><caption>&lt;c&gt;</caption><tr><th>&lt;h&gt;</th><th>v</th></tr>"
        "<tr><th>&lt;n&gt;</th><td>&lt;script&gt;&amp;</td></tr></table>"
    )


def test_a_drawing_is_not_escaped() -> None:
    """It is HTML already; and the last cell of a row that is shorter than others fills it."""
    table = html_table("c", [("a", "1"), ("b", Html("<svg/>"), "2"), ("empty",)])

    assert table == (
        '<table><caption>c</caption><tr><th>a</th><td colspan="2">1</td></tr>'
        "<tr><th>b</th><td><svg/></td><td>2</td></tr><tr><th>empty</th></tr></table>"
    )


def test_each_part_has_one_line() -> None:
    """A value of several lines is put on one."""
    assert properties("Thing", [("part", "a\n  b")]) == "Thing(\n  part: a b\n)"
