"""The embedded servers, one of each for the whole run, in a directory that ends with it; and how to watch processes."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer


@pytest.fixture(scope="session")
def parts_dir() -> Iterator[Path]:
    """A data directory of the run's own: pytest keeps its temporary ones, and a database is too large for that."""
    with tempfile.TemporaryDirectory(prefix="sightline-tests-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def postgres_server(parts_dir: Path) -> Iterator[PostgresServer]:
    """PostgreSQL with the stated configuration; `superuser_dsn` may CREATE DATABASE (with `vector` in it).

    But that it does not wait for the disk: processes are killed under the tests, and no machine loses its power.
    """
    with PostgresServer(parts_dir) as server:
        with psycopg.connect(server.superuser_dsn, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield server


@pytest.fixture(scope="session")
def valkey_server(parts_dir: Path) -> Iterator[ValkeyServer]:
    with ValkeyServer(parts_dir) as server:
        yield server


def is_running(pid: int) -> bool:
    """Not gone, and not a zombie that its new parent has yet to bury."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """
    Raises:
        TimeoutError: it did not come true.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)
