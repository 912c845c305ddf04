"""Tables as files: what is written can be read again, by readers that are not ours."""

import csv
import io
import json
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]  # it comes without types
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # as above
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.adapters import tabular
from sightline.adapters.tabular import TABLES, Column

COLUMNS = [
    Column("name", "text"),
    Column("params", "json"),
    Column("id", "uuid"),
    Column("inputs", "uuids"),
    Column("count", "integer"),
    Column("p95_s", "float"),
    Column("done", "boolean"),
    Column("day", "date"),
    Column("at", "time"),
]
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=2)))
ROW = ('é, "q"\r\nline', '{"a":[1,null]}', "0-1", ["x", "y"], -5, -0.25, True, date(2026, 1, 2), AT)
EMPTY = (None,) * len(COLUMNS)


def made(kind: str, *pages: list[tuple[Any, ...]]) -> bytes:
    file = io.BytesIO()
    table = TABLES[kind](COLUMNS, file)
    for page in pages:
        table.write(page)
    table.finish()
    return file.getvalue()


def test_csv_is_what_rfc_4180_says() -> None:
    written = made("csv", [ROW], [EMPTY]).decode()
    assert written.count("\r\n") == 4  # header, two rows, and the one within the quotes
    header, row, empty = list(csv.reader(io.StringIO(written, newline=""), strict=True))
    assert header == [column.name for column in COLUMNS]
    assert row == [
        ROW[0],
        '{"a":[1,null]}',
        "0-1",
        '["x","y"]',
        "-5",
        "-0.25",
        "true",
        "2026-01-02",
        "2026-01-02T01:04:05.678901Z",
    ]
    assert empty == [""] * len(COLUMNS)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_text_begins_like_a_formula(start: str) -> None:
    name = f'{start}HYPERLINK("http://evil.example")'
    (_, row) = csv.reader(io.StringIO(made("csv", [(name, *EMPTY[1:])]).decode(), newline=""))
    assert row[0] == f"'{name}"


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_every_other_text_comes_back_as_it_was(text: str) -> None:
    (_, row) = csv.reader(io.StringIO(made("csv", [(text, *EMPTY[1:])]).decode(), newline=""))
    assert row[0] == (f"'{text}" if text.startswith(tabular.FORMULA) else text)


def test_parquet_has_the_types_that_the_columns_say() -> None:
    table = pq.read_table(io.BytesIO(made("parquet", [ROW], [EMPTY])))
    assert [(one.name, one.type) for one in table.schema] == [
        ("name", pa.string()),
        ("params", pa.string()),
        ("id", pa.string()),
        ("inputs", pa.list_(pa.string())),
        ("count", pa.int64()),
        ("p95_s", pa.float64()),
        ("done", pa.bool_()),
        ("day", pa.date32()),
        ("at", pa.timestamp("us", tz="UTC")),
    ]
    first, second = table.to_pylist()
    assert tuple(first.values()) == ROW
    assert first["at"].tzname() == "UTC"
    assert tuple(second.values()) == EMPTY


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_without_rows_has_its_columns(kind: str) -> None:
    written = made(kind)
    match kind:
        case "csv":
            assert written == b"name,params,id,inputs,count,p95_s,done,day,at\r\n"
        case "parquet":
            empty = pq.read_table(io.BytesIO(written))
            assert (empty.num_rows, empty.schema) == (0, pq.read_schema(io.BytesIO(made("parquet", [ROW]))))
        case _:
            assert json.loads(written) == {"items": [], "next": None}


def test_json_holds_json() -> None:
    first, second = json.loads(made("json", [ROW], [EMPTY]))["items"]
    assert first["params"] == {"a": [1, None]}
    assert datetime.fromisoformat(first["at"]) == AT.astimezone(UTC)
    assert set(second.values()) == {None}


def test_long_texts_end_a_row_group_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory has a bound, whatever the rows hold."""
    monkeypatch.setattr(tabular, "GROUP_CHARS_MAX", 1_000)
    page = [("x" * 400, *EMPTY[1:])] * 3
    file = pq.ParquetFile(io.BytesIO(made("parquet", page, page, page)))
    assert file.metadata.num_row_groups == 3
    assert file.metadata.num_rows == 9


def test_parquet_costs_nothing_before_it_is_asked_for() -> None:
    code = "import sys, sightline.cli, sightline.http.app; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
