"""The table of situations in examples/README.md: `python -m tests.situations.table` writes it.

Rule of this file: the code of a situation is read, and not run.

A line is one of code: blank lines, comments and docstrings are not counted, nor what stands in `setup` and what both
loops use. What one of them alone uses is, wherever it stands.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from tests.generated import write_block

HERE = Path(__file__).parent
README = HERE.parents[1] / "examples" / "README.md"

SITUATIONS = (
    *(
        "mnist",
        "super_resolution",
        "vae",
        "diffusion",
        "word_lm",
        "nanogpt",
        "ctc",
        "detection",
        "segmentation",
        "full_batch_graph",
    ),
    *("mixed_precision", "swa"),
    *("torchvision_reference", "timm", "hf_no_trainer", "two_stages", "distillation", "multi_task", "k_fold"),
    *("siamese", "simclr", "moco", "dino", "sparse_embeddings", "neural_style", "early_exit"),
    *("continual", "curriculum", "adversarial", "dann", "gradnorm", "lookahead", "maml"),
    *("forward_forward", "ensemble", "population", "time_budget"),
    *("dcgan", "wgan_gp", "darts"),
    *("reinforce", "actor_critic", "ppo", "dqn", "dpo", "pruning", "quantization"),
    *("lbfgs", "sam", "muon", "pcgrad", "dp_sgd"),
    *("profiler", "predictions"),
)
"""The names of the modules, in the order of the table."""


EQUAL = "to the last bit"


def situation(name: str) -> ModuleType:
    """The module of this situation."""
    return importlib.import_module(f"tests.situations.{name}")


def row(name: str) -> str:
    """What it is, the lines of both loops, whether they end with the same, and what is no plain use of the library."""
    module, source = situation(name), (HERE / f"{name}.py").read_text()
    text = " ".join((module.__doc__ or "").split()).rstrip(".")
    counted = f"{lines_of(source, 'plain')} | {lines_of(source, 'machine')}"
    return f"| [`{name}`](../tests/situations/{name}.py) | {text} | {counted} | {EQUAL} | {module.TRICK or 'none'} |"


def table() -> str:
    rows = "\n".join(map(row, SITUATIONS))
    head = "| situation | what it is | plain loop | fsm_train | equal | trick |\n|---|---|---|---|---|---|"
    return f"{head}\n{rows}"


def lines_of(source: str, name: str) -> int:
    """The lines that a situation needs for one of its two loops, "plain" or "machine"."""
    tree = ast.parse(source)
    definitions = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    other = "machine" if name == "plain" else "plain"
    own = _used_by(name, definitions) - _used_by(other, definitions) - _used_by("setup", definitions)
    loop = definitions[name]
    in_both = [node for node in loop.body if isinstance(node, ast.Return) or _sets_up(node)]
    uncounted = {loop.lineno, *(number for node in in_both for number in _lines(node))}
    text = source.splitlines()
    numbers = {number for helper in own for number in _lines(definitions[helper])} - uncounted
    return sum(1 for number in numbers if text[number - 1].strip() and not text[number - 1].strip().startswith("#"))


def _lines(node: ast.AST) -> set[int]:
    """The numbers of the lines of this code, without those of docstrings."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])  # type: ignore[attr-defined]
    numbers = set(range(first, node.end_lineno + 1))  # type: ignore[attr-defined]
    for inner in ast.walk(node):
        if isinstance(inner, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(inner) is not None:
            docstring = inner.body[0]
            numbers -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return numbers


def _sets_up(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and ast.unparse(node.value) == "setup()"


def _used_by(name: str, definitions: dict[str, ast.FunctionDef | ast.ClassDef]) -> set[str]:
    """The definitions of the module that this one uses, directly or through others, and itself."""
    used: set[str] = set()
    ahead = [name]
    while ahead:
        if (current := ahead.pop()) not in used:
            used.add(current)
            ahead += [other for other in _names(definitions[current]) if other in definitions]
    return used


def _names(node: ast.AST) -> Iterator[str]:
    return (inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))


if __name__ == "__main__":
    write_block(README, "situations", table())
