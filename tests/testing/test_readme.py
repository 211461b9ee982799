"""The README of fsm_train.testing lists what there is."""

from __future__ import annotations

from fsm_train.testing import CHECKS
from tests.testing.hurried import HURRIED
from tests.testing.library import EXAMPLES
from tests.testing.mutants import MUTANTS
from tests.testing.table import README


def test_readme_lists_the_checks() -> None:
    """Each check with the mutant that it finds alone, each mistake and each callback of the library has its row."""
    text = README.read_text()
    checks = [f"| {law.sentence.rstrip('.')} | `{MUTANTS[name].name}` | `{name}` |" for name, law in CHECKS.items()]
    mistakes = [
        f"| {make.__name__.replace('_', ' ')} | " + (f"`{check}` |" if check in CHECKS else "refused when")
        for make, (check, _) in HURRIED.items()
    ]
    library = [f"| `{make().name}` | 200 | " for makes in EXAMPLES.values() for make in makes]

    assert [row for row in (*checks, *mistakes, *library) if f"\n{row}" not in text] == []
