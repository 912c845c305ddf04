"""Analysts and their files on the command line."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # it comes without types
import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import make_conninfo
from tests.conftest_analysts import MODEL_NAME, AnalystDatabase
from tests.conftest_log import LogDatabase
from tests.conftest_up import free_port

from sightline.adapters.embedded.parts import Parts
from sightline.adapters.settings import Settings
from sightline.cli import main
from sightline.projections.analytics import REPORTS


class Operator:
    """Somebody at a terminal, on a database of its own server."""

    def __init__(self, dsn: str, data_dir: Path) -> None:
        self.environ = {"SIGHTLINE_DATABASE_URL": dsn, "SIGHTLINE_REDIS_URL": "redis://127.0.0.1:1"}
        self._where = ["--data-dir", str(data_dir)]

    def says(self, *words: str, stdin: str = "") -> Result:
        return CliRunner().invoke(main, [*words[:2], *self._where, *words[2:]], input=stdin, env=self.environ)

    def psql(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "sightline", "psql", *self._where, *words],
            env=os.environ | self.environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def operator(analyst_database: AnalystDatabase, tmp_path: Path) -> Operator:
    return Operator(analyst_database.log.dsn, tmp_path)


def is_refused(result: Result, words: str) -> bool:
    lines = result.stderr.strip().splitlines()
    return result.exit_code == 1 and len(lines) == 1 and words in lines[0] and isinstance(result.exception, SystemExit)


def test_an_analysts_life(operator: Operator) -> None:
    made = operator.says("analyst", "create", "carol", "--owner", "ada")
    assert made.exit_code == 0, made.output
    assert len(made.stdout.strip()) >= 24
    assert made.stderr == ""
    assert is_refused(operator.says("analyst", "create", "carol"), "already")
    assert "carol  ada" in operator.says("analyst", "list").stdout

    asked = operator.psql("--as-analyst", "carol", "-XAt", "-c", "SELECT DISTINCT owner FROM jobs")
    assert asked.stdout == "ada\n"
    escape = "RESET ROLE; RESET SESSION AUTHORIZATION; SELECT current_user, session_user; SELECT FROM public.jobs_v1"
    tried = operator.psql("--as-analyst", "carol", "-XAt", "-c", escape)
    assert tried.stdout.split() == ["RESET", "RESET", "carol|carol"]
    assert "permission denied" in tried.stderr

    assert operator.says("analyst", "drop", "carol").exit_code == 0
    assert is_refused(operator.says("analyst", "drop", "carol"), "no analyst")
    assert "there is no analyst carol" in operator.psql("--as-analyst", "carol").stderr


@pytest.mark.parametrize(
    ("name", "password", "words"),
    [("Carol", "long enough it is\n", "a name has"), ("carol", "short\n", "12"), ("postgres", "", "already")],
)
def test_who_cannot_be(operator: Operator, name: str, password: str, words: str) -> None:
    options = ["--password-stdin"] if password else []
    assert is_refused(operator.says("analyst", "create", name, *options, stdin=password), words)


def test_a_database_without_the_schema_is_one_line(empty_database: LogDatabase, tmp_path: Path) -> None:
    operator = Operator(empty_database.dsn, tmp_path)
    for words in (("analyst", "list"), ("analytics", "dictionary"), ("analyst", "create", "carol")):
        assert is_refused(operator.says(*words), "sightline migrate")


def test_the_same_rows_in_three_formats(operator: Operator, tmp_path: Path) -> None:
    for made_as in ("csv", "parquet", "json"):
        out = tmp_path / f"models.{made_as}"
        done = operator.says("analytics", "export", "model-rows", "--format", made_as, "--out", str(out))
        assert done.exit_code == 0, done.output
        assert "3 rows as of position" in done.stderr
    header, *rows = csv.reader(io.StringIO((tmp_path / "models.csv").read_bytes().decode(), newline=""))
    table = pq.read_table(tmp_path / "models.parquet")
    items = json.loads((tmp_path / "models.json").read_text())["items"]
    assert header == table.schema.names == list(items[0])
    names = [row[header.index("name")] for row in rows]
    assert f"'{MODEL_NAME}" in names
    assert MODEL_NAME in table["name"].to_pylist()
    assert [one["name"] for one in items] == table["name"].to_pylist()


def test_what_cannot_be_exported_leaves_no_file(operator: Operator, tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    for words in (("nothing",), ("jobs", "--from", "yesterday"), ("jobs", "--to", "2026-01-01T00:00:00")):
        assert operator.says("analytics", "export", *words, "--out", str(out)).exit_code == 2
    assert is_refused(operator.says("analytics", "export", "jobs", "--out", str(tmp_path / "no" / "x")), "No such file")
    assert list(tmp_path.iterdir()) == []


def test_the_names_of_all_reports(operator: Operator) -> None:
    said = CliRunner().invoke(main, ["analytics", "reports"]).stdout.splitlines()
    assert [line.split()[0] for line in said] == list(REPORTS)


def test_what_to_say_on_a_server_of_ones_own(operator: Operator) -> None:
    assert 'TO "sightline"' in operator.says("analyst", "harden").stdout


def test_from_elsewhere_with_a_password(tmp_path: Path) -> None:
    """The embedded database on TCP, made and asked as the how-to says."""
    settings = Settings(data_dir=tmp_path, redis_url="redis://127.0.0.1:1", database_tcp_port=free_port())
    with Parts(settings) as ready:
        operator = Operator(ready.database_url, tmp_path)
        assert CliRunner().invoke(main, ["migrate"], env=operator.environ).exit_code == 0
        password = "correct horse battery"
        made = operator.says("analyst", "create", "carol", "--password-stdin", stdin=f"{password}\n")
        assert (made.exit_code, made.stdout, made.stderr) == (0, "", "")
        port = settings.database_tcp_port

        def url(user: str, word: str) -> str:
            return make_conninfo("", host="127.0.0.1", port=port, dbname="sightline", user=user, password=word)

        with psycopg.connect(url("carol", password)) as session:
            assert session.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
        for user, word in (("carol", "wrong"), ("sightline", password), ("postgres", password)):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(url(user, word))
