"""Read models on the command line: digests to compare, one line where something is refused, and exit codes."""

import asyncio
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.conftest_log import EVENT_DATA, METADATA, LogDatabase
from tests.projections.test_quarantine import project_log

from sightline.adapters.ids import uuid7
from sightline.cli import main


class Operator:
    """Somebody at a terminal."""

    def __init__(self, dsn: str, data_dir: Path) -> None:
        self._environ = {"SIGHTLINE_DATABASE_URL": dsn, "SIGHTLINE_REDIS_URL": "redis://127.0.0.1:1"}
        self._data_dir = str(data_dir)

    def says(self, *words: str) -> Result:
        given = ["projections", words[0], "--data-dir", self._data_dir, *words[1:]]
        return CliRunner().invoke(main, given, env=self._environ)


@pytest.fixture
def operator(log_database: LogDatabase, tmp_path: Path) -> Operator:
    return Operator(log_database.dsn, tmp_path)


CREATED = (
    '{"type":"session.created","at":"2026-01-01T00:00:00Z","owner":"ada","user_id":null,'
    '"expires_at":"2026-01-01T01:00:00Z"}'
)


@pytest.fixture
def streams(log_database: LogDatabase) -> list[str]:
    """Three sessions, the last of which is closed before it begins and therefore set aside."""
    streams = [str(uuid7()) for _ in range(3)]
    insert = "INSERT INTO events VALUES (%s, %s, 1, %s, %s, %s, now())"
    with log_database.connect(superuser=True) as connection:
        for position, stream in enumerate(streams[:2], 1):
            connection.execute(insert, (position, stream, "session.created", CREATED, METADATA.decode()))
        connection.execute(insert, (3, streams[2], "session.closed", EVENT_DATA.decode(), METADATA.decode()))
    asyncio.run(project_log(log_database.dsn))
    return streams


def test_list_rebuild_verify(operator: Operator, streams: list[str], log_database: LogDatabase) -> None:
    listed = operator.says("list")
    assert listed.exit_code == 0, listed.output
    assert f"set aside: {streams[2]} from position 3" in listed.stdout
    rebuilt = operator.says("rebuild", "sessions")
    assert (rebuilt.exit_code, rebuilt.stdout) == (0, "sessions was rebuilt: 2 rows, at position 3.\n")
    verified = operator.says("verify", "sessions")
    assert verified.exit_code == 0
    digests = re.findall(r"(?:live|replayed) +([0-9a-f]{64})", verified.stdout)
    assert len(digests) == 4
    assert len(set(digests)) == 2, "live and replayed are equal, for the rows and for the history"
    with log_database.connect() as connection:
        connection.execute("UPDATE sessions_v2 SET owner = 'eve' WHERE session_id = %s", (streams[1],))
    found = operator.says("verify", "sessions")
    assert found.exit_code == 1
    assert f"the first difference is at {streams[1]}" in found.stdout
    assert operator.says("verify", "sessions", "--at", "2").exit_code == 0


def test_resume(operator: Operator, streams: list[str], log_database: LogDatabase) -> None:
    refused = operator.says("resume", streams[2])
    assert refused.exit_code == 1
    assert "a session begins with SessionCreated" in refused.stderr
    with log_database.connect(superuser=True) as connection:
        connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        connection.execute(
            "UPDATE events SET topic = 'session.created', data = %s::json WHERE position = 3", (CREATED,)
        )
    resumed = operator.says("resume", streams[2])
    assert (resumed.exit_code, resumed.stdout) == (0, f"{streams[2]} is back: 1 events folded, at position 3.\n")
    assert operator.says("verify", "sessions").exit_code == 0


@pytest.mark.parametrize(
    "words", [("rebuild", "nothing"), ("verify", "nothing"), ("verify", "jobs", "--at", "9"), ("resume", str(uuid7()))]
)
def test_what_is_refused_is_one_line(operator: Operator, words: tuple[str, ...]) -> None:
    result = operator.says(*words)
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (1, 1)
    assert result.stderr.startswith("Error: ")
