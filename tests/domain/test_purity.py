"""The domain is pure: it waits for nothing, reads no clock, makes no id and asks no machine."""

import ast
import sys
from pathlib import Path

import pytest

import sightline.domain

FILES = sorted(Path(sightline.domain.__file__).parent.glob("*.py"))
PURE = {
    *("__future__", "base64", "collections", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools"),
    *(
        "hashlib",
        "hmac",
        "itertools",
        "math",
        "operator",
        "re",
        "statistics",
        "string",
        "types",
        "typing",
        "unicodedata",
        "uuid",
    ),
    "msgspec",
}
IMPURE_NAMES = {"now", "today", "utcnow", "uuid1", "uuid4", "open", "print", "input", "eval", "exec", "__import__"}


def impurities(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.partition(".")[0] not in PURE]
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").partition(".")[0]
            found += (
                [f"{'.' * node.level}{module}"] if node.level > 1 or (not node.level and module not in PURE) else []
            )
            found += [name.name for name in node.names if name.name in IMPURE_NAMES]
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found += [name] if name in IMPURE_NAMES else []
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_domain_is_pure(file: Path) -> None:
    assert impurities(file.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import os",
        "import asyncio",
        "from time import monotonic",
        "from random import random",
        "import psycopg",
        "from ..adapters import settings",
        "from uuid import uuid4",
        "at = datetime.now(UTC)",
        "key = uuid.uuid4()",
        "text = open('x').read()",
    ],
)
def test_what_is_not_pure_is_noticed(source: str) -> None:
    assert impurities(source) != []


def test_the_list_of_what_is_pure_is_of_modules_that_exist() -> None:
    assert PURE - {"msgspec"} <= sys.stdlib_module_names
