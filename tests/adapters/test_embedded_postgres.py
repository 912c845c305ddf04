"""The embedded PostgreSQL: what is in it, who may reach it, and that nothing stops its next start."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from sightline.adapters.embedded import binaries, identity
from sightline.adapters.embedded.part import SOCKET_PATH_BYTES_MAX, PartBusy, PartError
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.processes import RunAs, log_tail, spawn

NOBODY_UID = 65534


@pytest.fixture(scope="module")
def own_dir() -> Iterator[Path]:
    """For the tests that kill: one data directory, so that they pay for one initdb."""
    with tempfile.TemporaryDirectory(prefix="sightline-tests-") as directory:
        yield Path(directory)


def kill_server(server: PostgresServer) -> None:
    assert server.pid
    assert server._process
    os.kill(server.pid, signal.SIGKILL)
    server._process.wait()


def test_the_role_owns_its_database_and_is_no_superuser(postgres_server: PostgresServer) -> None:
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        row = connection.execute(
            "SELECT current_user, rolsuper, rolcreaterole, rolcreatedb, pg_get_userbyid(datdba) "
            "FROM pg_roles, pg_database WHERE rolname = current_user AND datname = current_database()"
        ).fetchone()
        assert row == ("sightline", False, True, False, "sightline")
        connection.execute("CREATE TEMP TABLE point (at vector(3))")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("CREATE DATABASE mine")


def test_a_database_for_a_test_has_vector_too(postgres_server: PostgresServer) -> None:
    with psycopg.connect(postgres_server.superuser_dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE one_test OWNER sightline")
        try:
            with psycopg.connect(postgres_server.dsn, dbname="one_test") as inside:
                assert inside.execute("SELECT '[1,2]'::vector <-> '[1,2]'").fetchone() == (0,)
        finally:
            connection.execute("DROP DATABASE one_test")


def test_the_stated_configuration_is_in_force(own_dir: Path) -> None:
    """On a server of its own: that of the other tests does not wait for the disk."""
    with PostgresServer(own_dir) as server, psycopg.connect(server.superuser_dsn) as connection:
        shown: dict[str, str] = dict(connection.execute("SELECT name, setting FROM pg_settings").fetchall())
        unread = connection.execute("SELECT name, error FROM pg_file_settings WHERE NOT applied").fetchall()
        encoding = connection.execute(
            "SELECT pg_encoding_to_char(encoding), datlocprovider, datlocale FROM pg_database "
            "WHERE datname = 'sightline'"
        ).fetchone()
    durable = {name: shown[name] for name in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums")}
    assert set(durable.values()) == {"on"}
    assert shown["listen_addresses"] == ""
    assert shown["jit"] == "off"
    assert {name for name, _ in unread} <= {"listen_addresses"}  # said on the command line
    assert encoding == ("UTF8", "b", "C.UTF-8")
    assert int(shown["server_version_num"]) // 10_000 == binaries.postgres_bin_dir()[1]
    for program in (binaries.psql_path(), binaries.pgbench_path()):
        assert os.access(program, os.X_OK)


def test_only_its_user_reaches_the_socket(postgres_server: PostgresServer) -> None:
    for directory in (postgres_server.run_dir, postgres_server.data, postgres_server.home):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((postgres_server.home / "password").stat().st_mode) == 0o600
    assert (postgres_server.home / "password").read_text() not in postgres_server.log_path.read_text()


def test_the_same_url_serves_sqlalchemy(postgres_server: PostgresServer) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(postgres_server.dsn.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT current_database()")).scalar() == "sightline"
    engine.dispose()


def test_a_killed_server_loses_nothing_committed(own_dir: Path) -> None:
    with PostgresServer(own_dir) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept (n bigint PRIMARY KEY, filler text)")
            for n in range(200):
                connection.execute("INSERT INTO kept VALUES (%s, repeat('x', 500))", [n])
            kill_server(server)
        assert not server.is_ready()
        server.launch()
        server.wait_ready()
        with psycopg.connect(server.dsn) as connection:
            assert connection.execute("SELECT count(*), max(n) FROM kept").fetchone() == (200, 199)
    assert server.pid is None


def test_children_of_a_killed_server_do_not_stop_its_successor(own_dir: Path) -> None:
    with PostgresServer(own_dir) as server:
        busy = [
            subprocess.Popen(
                [binaries.psql_path(), server.dsn, "-qc", "DO $$ BEGIN LOOP END LOOP; END $$"],
                stderr=subprocess.DEVNULL,
            )
            for _ in range(2)
        ]
        with psycopg.connect(server.superuser_dsn, autocommit=True) as connection:
            running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'DO %'"
            while connection.execute(running).fetchone() != (2,):
                time.sleep(0.01)
        kill_server(server)
        server.launch()
        server.wait_ready()
        for client in busy:
            assert client.wait(60) != 0


def test_a_stale_pid_file_that_names_a_stranger_is_no_hindrance(own_dir: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        server = PostgresServer(own_dir)
        server.start()
        kill_server(server)
        pid_file = server.data / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        server.stop()
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        with server:
            assert server.is_ready()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_server_of_somebody_else_is_left_alone(own_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PostgresServer(own_dir) as server:
        intruder = PostgresServer(own_dir)
        with pytest.raises(PartBusy, match=f"process {os.getpid()}"):
            intruder.start()
        server.release()  # As if the owner had been killed, and its server would not follow.
        monkeypatch.setattr("sightline.adapters.embedded.postgres.LEFTOVER_WAIT_S", 0.2)
        with pytest.raises(PartError, match=f"not ours \\({server.pid}\\)"):
            intruder.start()
        assert server.is_ready()


def test_tcp_on_demand_wants_the_password(own_dir: Path, unused_port: int) -> None:
    with PostgresServer(own_dir, tcp_port=unused_port) as server:
        with psycopg.connect(server.tcp_dsn) as connection:
            assert connection.execute("SELECT inet_server_port()").fetchone() == (unused_port,)
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(server.tcp_dsn.replace(server._password(), "guess"))
        assert PostgresServer(own_dir).is_reachable()  # A guest finds the socket, which the port names.


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_long_path_has_its_socket_elsewhere(own_dir: Path, tmp_path: Path) -> None:
    long = tmp_path / ("d" * 120)
    shutil.copytree(own_dir / "postgres" / "data", long / "postgres" / "data")
    server = PostgresServer(long)
    server.start()
    try:
        short = server.run_dir
        assert len(os.fsencode(long)) > SOCKET_PATH_BYTES_MAX
        assert stat.S_IMODE(short.stat().st_mode) == 0o700
        assert PostgresServer(long).is_reachable()
        kill_server(server)
        server.launch()
        server.wait_ready()
        assert server.run_dir == short
    finally:
        server.stop()
    assert not short.exists()


def test_another_version_is_refused(own_dir: Path) -> None:
    with PostgresServer(own_dir) as server:
        pass
    version = server.data / "PG_VERSION"
    ours = version.read_text()
    version.write_text("12\n")
    try:
        with pytest.raises(PartError, match="made by PostgreSQL 12"):
            server.start()
        assert not server.owned
    finally:
        version.write_text(ours)


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PartError, match="cannot be used"):
        PostgresServer(tmp_path / "file").start()


def test_a_server_that_cannot_start_shows_its_log(own_dir: Path) -> None:
    server = PostgresServer(own_dir)
    with server:
        pass
    (server.data / "postgresql.auto.conf").write_text("shared_buffers = nonsense\n")
    try:
        with pytest.raises(PartError, match="nonsense"):
            server.start()
        assert server.pid is None
        assert not server.owned
    finally:
        (server.data / "postgresql.auto.conf").write_text("")


def test_an_initdb_that_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "postgres" / "data.new" / "base").mkdir(parents=True)
    server = PostgresServer(tmp_path)
    server.claim()
    server._initdb(identity.choose(server.data))
    assert (server.data / "PG_VERSION").exists()
    server.release()


START_AND_STOP = """
import os, pathlib, sys
from sightline.adapters.embedded.postgres import PostgresServer
import psycopg
with PostgresServer(pathlib.Path(sys.argv[1])) as server:
    with psycopg.connect(server.dsn) as connection:
        connection.execute("SELECT '[1]'::vector")
    print(os.geteuid())
"""
# A root without user namespaces, as in a locked-down container: a namespace of its own, in which their number is 0.
WITHOUT_NAMESPACES = (
    """
import ctypes, sys
assert ctypes.CDLL(None).unshare(0x10000000) == 0
print("unshared", flush=True)
sys.stdin.readline()
open("/proc/sys/user/max_user_namespaces", "w").write("0")
"""
    + START_AND_STOP
)

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.mark.parametrize("uid", [NOBODY_UID, 54321])
def test_an_ordinary_user_with_and_without_a_name(own_dir: Path, tmp_path: Path, uid: int) -> None:
    # In a user namespace, without any right of root's: an interpreter under /root would be closed to a real one.
    ordinary = RunAs(uid, uid, namespace=True)
    log = tmp_path / "log"
    assert spawn([sys.executable, "-c", START_AND_STOP, str(own_dir)], run_as=ordinary, log_path=log).wait() == 0, (
        log_tail(log)
    )
    assert log.read_text() == f"{uid}\n"


@only_root
def test_a_directory_of_another_user_is_refused(own_dir: Path) -> None:
    server = PostgresServer(own_dir)
    os.chown(server.home, NOBODY_UID, NOBODY_UID)
    os.chown(server.data, NOBODY_UID, NOBODY_UID)
    try:
        with pytest.raises(PartError, match=f"belongs to user {NOBODY_UID}"):
            server.start()
    finally:
        os.chown(server.home, 0, 0)
        os.chown(server.data, 0, 0)


@only_root
def test_where_namespaces_are_blocked_root_becomes_another_user(tmp_path_for_all: Path) -> None:
    for _ in range(2):  # The second start finds the owner that the first one chose.
        run = [sys.executable, "-c", WITHOUT_NAMESPACES, str(tmp_path_for_all)]
        with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout
            assert child.stdout.readline() == "unshared\n"
            for ids in ("uid_map", "gid_map"):
                Path(f"/proc/{child.pid}/{ids}").write_text("0 0 65536")
            out, _ = child.communicate("go\n", timeout=120)
        assert out == "0\n"
        assert (tmp_path_for_all / "postgres" / "data").stat().st_uid == NOBODY_UID


@only_root
def test_root_with_namespaces_keeps_its_files(postgres_server: PostgresServer) -> None:
    assert postgres_server.data.stat().st_uid == 0
    assert (postgres_server.data / "PG_VERSION").stat().st_uid == 0


@pytest.fixture
def tmp_path_for_all() -> Iterator[Path]:
    """A directory that every user may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="sightline-tests-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)
