"""A sample of what cosmic-ray's operators make of src/."""

from __future__ import annotations

import random
import re
from collections import defaultdict

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from tests.support.database import ROOT
from tests.support.mutants.modules import EQUIVALENT, TESTS
from tests.support.mutants.mutant import Mutant

# Operators of numbers are of little use on SQL and sessions; `|` stands in annotations, which nothing runs.
_OPERATORS = re.compile(
    r"core/(ReplaceComparisonOperator_|Replace(And|Or)With|ReplaceTrueWith|ReplaceFalseWith|AddNot|ReplaceBreak"
    r"|ReplaceContinue|NumberReplacer|ZeroIteration|RemoveDecorator)"
)


def sample(number: int, seed: str, modules: str = "") -> list[Mutant]:
    """Return so many mutants of modules whose path contains `modules`; of one seed always the same.

    Among them those of lines that are argued to be equivalent.
    """
    draw = random.Random(seed)
    lines = [
        (path, line, found) for path in _modules(modules) for line, found in sorted(_places(path).items())
    ]
    drawn = sorted(draw.sample(lines, min(number, len(lines))))
    return [_mutant(path, line, *draw.choice(found)) for path, line, found in drawn]


def _modules(part: str) -> list[str]:
    return [path for path in sorted(f"src/usage_rollup/{module}" for module in TESTS) if part in path]


def _places(path: str) -> dict[int, list[tuple[str, int]]]:
    """Return, by the line, which operators find something in a module, and as which of all they find."""
    tree = get_ast((ROOT / path).read_text("utf-8"))
    found = defaultdict(list)
    for name in filter(_OPERATORS.match, sorted(operator_names())):
        operator = get_operator(name)()
        places = [place for node in ast_nodes(tree) for place in operator.mutation_positions(node)]
        for occurrence, ((line, _), _) in enumerate(places):
            found[line].append((name, occurrence))
    return found


def _mutant(path: str, line: int, operator: str, occurrence: int) -> Mutant:
    text = (ROOT / path).read_text("utf-8")
    new = mutate_code(text, get_operator(operator)(), occurrence)
    module = path.removeprefix("src/usage_rollup/")
    mistake, said = operator.removeprefix("core/"), text.splitlines()[line - 1].strip()
    name = f"{path}:{line} {mistake} {occurrence}"
    why = EQUIVALENT.get(f"{module}: {said}") or EQUIVALENT.get(f"{module} {mistake}: {said}", "")
    return Mutant(name, path, text, new, TESTS[module], why)
