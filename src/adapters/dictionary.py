"""The data dictionary: what every view, column and function of schema `analytics` means, as the database says it.

The comments in the database are the source; docs/reference/data-dictionary.md is this text, and a test holds it so.
"""

import re
from itertools import groupby
from typing import Any

import psycopg

HEAD = """# Data dictionary

What analysts may read: the views and functions of schema `analytics`, and nothing else. The database says the same of
itself (`\\d+ analytics.jobs` in psql), and `sightline analytics dictionary` prints this page from it. Times are
`timestamptz`; ends of names are units: `_s` seconds, `_bytes`, `_percent`; `position` counts events of the log. How to
ask is in [Ask the data in SQL](../how-to/ask-the-data-in-sql.md).
"""

VIEWS = """
SELECT c.relname, obj_description(c.oid, 'pg_class'), a.attname, format_type(a.atttypid, a.atttypmod),
    col_description(c.oid, a.attnum)
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'analytics'::regnamespace ORDER BY c.relname, a.attnum
"""
FUNCTIONS = """
SELECT p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), obj_description(p.oid, 'pg_proc')
FROM pg_proc AS p WHERE p.pronamespace = 'analytics'::regnamespace ORDER BY p.proname
"""
_UNITS = (
    (r"_s$", "seconds"),
    (r"_bytes$", "bytes"),
    (r"_percent$", "percent"),
    (r"position$", "events"),
    (r"^lag_events$", "events"),
    (r"^day$", "day, UTC"),
    (r"^timings$", "seconds"),
)


def rendered(connection: "psycopg.Connection[Any]") -> str:
    """The whole page, Markdown."""
    lines = [HEAD]
    for (name, meaning), columns in groupby(connection.execute(VIEWS).fetchall(), key=lambda row: row[:2]):
        lines += [f"## {name}\n", f"{_said(meaning)}\n", "| column | type | unit | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{column}` | {kind} | {unit_of(column, kind)} | {_said(text)} |" for *_, column, kind, text in columns
        ]
        lines.append("")
    lines += ["## Functions\n", "| function | result | meaning |", "|---|---|---|"]
    lines += [
        f"| `{name}({arguments})` | {result} | {_said(meaning)} |"
        for name, arguments, result, meaning in connection.execute(FUNCTIONS)
    ]
    return "\n".join(lines) + "\n"


def unit_of(column: str, kind: str) -> str:
    """What a column is measured in; nothing for what is not measured."""
    if kind in ("timestamp with time zone", "tstzrange"):
        return "time"
    return next((unit for pattern, unit in _UNITS if re.search(pattern, column)), "")


def _said(meaning: str | None) -> str:
    return (meaning or "").replace("|", "\\|")
