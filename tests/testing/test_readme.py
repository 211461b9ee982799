"""The README of the testing tools shows what is true."""

from __future__ import annotations

import re

from fsm_train.testing import CHECKS
from tests.testing.common_mistakes import MISTAKES
from tests.testing.library_examples import EXAMPLES
from tests.testing.mutant_callbacks import MUTANTS
from tests.testing.readme_tables import README


def test_code_in_the_readme_runs() -> None:
    """All its Python, in one session."""
    session: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)

    for block in blocks:
        exec(block, session)

    assert len(blocks) >= 5


def test_readme_lists_the_checks() -> None:
    """Each check with the mutant that it finds alone, each mistake and each callback of the library has its row."""
    text = README.read_text()
    checks = [f"| {law.sentence.rstrip('.')} | `{MUTANTS[name].name}` | `{name}` |" for name, law in CHECKS.items()]
    mistakes = [
        f"| {make.__name__.replace('_', ' ')} | " + (f"`{check}` |" if check in CHECKS else "refused when")
        for make, (check, _) in MISTAKES.items()
    ]
    library = [f"| `{make().name}` | 200 | " for makes in EXAMPLES.values() for make in makes]

    assert [row for row in (*checks, *mistakes, *library) if f"\n{row}" not in text] == []
