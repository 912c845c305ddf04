"""docs/reference/security.md held against the tests that it names, and against the lists that it answers."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "security.md"
SHOWN = re.compile(r"\[`(test_\w+)`\]\(([^)]+)\)")
NUMBER = re.compile(r"\d+\.\d+\.\d+")

# The requirements of levels 1 and 2 of ASVS 5.0.0, section by section.
ASVS = """
1.1:1-2 1.2:1-9 1.3:1-11 1.4:1-3 1.5:1-2 2.1:1-3 2.2:1-3 2.3:1-4 2.4:1 3.2:1-2 3.3:1-4 3.4:1-6 3.5:1-5 3.7:1-2
4.1:1-3 4.2:1 4.3:1-2 4.4:1-4 5.1:1 5.2:1-3 5.3:1-2 5.4:1-3 6.1:1-3 6.2:1-12 6.3:1-4 6.4:1-4 6.5:1-5 6.6:1-3 6.8:1-4
7.1:1-3 7.2:1-4 7.3:1-2 7.4:1-5 7.5:1-2 7.6:1-2 8.1:1-2 8.2:1-3 8.3:1 8.4:1 9.1:1-3 9.2:1-4 10.1:1-2 10.2:1-2 10.3:1-4
10.4:1-11 10.5:1-5 10.6:1-2 10.7:1-3 11.1:1-2 11.2:1-3 11.3:1-3 11.4:1-4 11.5:1 11.6:1 12.1:1-3 12.2:1-2 12.3:1-4 13.1:1
13.2:1-5 13.3:1-2 13.4:1-5 14.1:1-2 14.2:1-4 14.3:1-3 15.1:1-3 15.2:1-3 15.3:1-7 16.1:1 16.2:1-5 16.3:1-4 16.4:1-3
16.5:1-3 17.1:1 17.2:1-4 17.3:1-2
"""


def required() -> set[str]:
    found = set()
    for section in ASVS.split():
        name, _, span = section.partition(":")
        first, _, last = span.partition("-")
        found |= {f"{name}.{number}" for number in range(int(first), int(last or first) + 1)}
    return found


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every row with an item, a requirement, how it is met and by what it is shown."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and re.fullmatch(r"API\d+|\d+\.\d+\.\d+", cells[0]):
            yield cells


@cache
def functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    return frozenset(one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))


def complaints(text: str) -> list[str]:
    """What is wrong with the page."""
    found = []
    for item, asks, how, shown in rows(text):
        tests = SHOWN.findall(shown)
        if not asks or not how:
            found.append(f"{item} says too little")
        if not tests and not how.startswith("Not met"):
            found.append(f"{item} is shown by nothing")
        for name, place in tests:
            path = (PAGE.parent / place).resolve()
            if not path.is_file() or name not in functions(path):
                found.append(f"{item} names {name}, which is not in {place}")
    answered = [item for item, *_ in rows(text) if NUMBER.fullmatch(item)]
    _, _, last = text.partition("### What does not apply")
    every = Counter([*answered, *NUMBER.findall(last)])
    found += [f"{item} is answered twice" for item, count in every.items() if count > 1]
    found += [f"{item} is not answered" for item in sorted(required() - set(every))]
    found += [f"{item} is none of levels 1 and 2" for item in sorted(set(every) - required())]
    ten = {item for item, *_ in rows(text)} & {f"API{number}" for number in range(1, 11)}
    return found + [f"API{number} is not answered" for number in range(1, 11) if f"API{number}" not in ten]


def test_every_row_is_shown_by_a_test_that_exists() -> None:
    assert complaints(PAGE.read_text()) == []
    assert len(required()) > 240


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("`test_who_may`](", "`test_who_might`](", "API1 names test_who_might, which is not in"),
        ("test_access_matrix.py", "test_access_table.py", "API1 names test_who_may, which is not in"),
        ("| 6.1.2 |", "| 6.1.9 |", "6.1.2 is not answered"),
        ("| 6.1.2 |", "| 6.1.1 |", "6.1.1 is answered twice"),
        ("Not met: there is no such list", "There is such a list", "6.1.2 is shown by nothing"),
        ("| API7 |", "| API0 |", "API7 is not answered"),
    ],
)
def test_a_row_that_promises_too_much_is_noticed(before: str, after: str, complaint: str) -> None:
    text = PAGE.read_text()
    assert before in text
    assert any(one.startswith(complaint) for one in complaints(text.replace(before, after)))
