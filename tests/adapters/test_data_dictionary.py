"""The data dictionary is the database's own word, both ways."""

import re
from collections.abc import Iterator

import psycopg
import pytest
from tests.conftest_analysts import AnalystDatabase
from tests.conftest_log import ROOT

from sightline.adapters import dictionary

PAGE = ROOT / "docs" / "reference" / "data-dictionary.md"
ROW = re.compile(r"^\| `(?P<name>[^`]+)` \|.*\| (?P<meaning>.*) \|$", re.MULTILINE)


@pytest.fixture
def connection(analyst_database: AnalystDatabase) -> Iterator[psycopg.Connection]:
    with analyst_database.service() as opened:
        yield opened


def test_the_page_is_what_the_database_says(connection: psycopg.Connection) -> None:
    """`sightline analytics dictionary > docs/reference/data-dictionary.md` makes it so."""
    assert PAGE.read_text() == dictionary.rendered(connection)


def test_everything_has_a_meaning() -> None:
    meanings = [found["meaning"].strip() for found in ROW.finditer(PAGE.read_text())]
    assert len(meanings) > 150
    assert all(meanings)
    assert all(len(section.split("\n")[2]) > 10 for section in PAGE.read_text().split("\n## ")[1:])


def test_a_column_that_nobody_documented_is_noticed(connection: psycopg.Connection) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL ROLE sightline_analytics")
        connection.execute("COMMENT ON COLUMN analytics.jobs.owner IS NULL")
        said = dictionary.rendered(connection)
    assert said != PAGE.read_text()
    assert "" in [found["meaning"].strip() for found in ROW.finditer(said)]


def test_a_page_that_says_more_is_noticed(connection: psycopg.Connection) -> None:
    assert PAGE.read_text().replace("| `owner` |", "| `owned` |", 1) != dictionary.rendered(connection)


@pytest.mark.parametrize(
    ("column", "kind", "unit"),
    [
        ("duration_s", "double precision", "seconds"),
        ("size_bytes", "bigint", "bytes"),
        ("progress_percent", "smallint", "percent"),
        ("created_at", "timestamp with time zone", "time"),
        ("owner", "text", ""),
    ],
)
def test_units_are_in_the_names(column: str, kind: str, unit: str) -> None:
    assert dictionary.unit_of(column, kind) == unit
