"""PostgreSQL with pgvector, from a wheel's binaries under our own launcher.

The superuser `postgres` makes the role `sightline`, its database of the same name, and the extension `vector` in it
and in `template1`. Connections through the socket need no password: its directory lets nobody else in.
"""

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import psycopg
from psycopg import sql

from .. import analysts
from . import binaries, identity
from .part import POLL_S, START_TIMEOUT_S, STOP_TIMEOUT_S, Part, PartError
from .processes import RunAs, kill, log_tail, spawn

ROLE = "sightline"
DATABASE = "sightline"
SUPERUSER = "postgres"
PORT = 5432  # names the socket; TCP listens only where a port is asked for
ROLE_CONNECTIONS_MAX = 180  # below max_connections, which leaves room for roles that the schema makes
CONNECT_TIMEOUT_S = 2
INITDB_TIMEOUT_S = 60.0
LEFTOVER_WAIT_S = 5.0
PORT_LINE, STATUS_LINE = 3, 7  # of postmaster.pid, from 0
CONFIGURATION = Path(__file__).with_name("postgresql.conf")
ACCESS = "local all,replication all trust\nhost all,replication all 127.0.0.1/32 scram-sha-256\n"


class PostgresServer(Part):
    """PostgreSQL on a unix socket under `data_dir/postgres`.

    Args:
        tcp_port: listen on 127.0.0.1 as well, there with a password (`tcp_dsn`); 0 is no TCP.
        prefix: words before the server's own command line, of a program that becomes it (`nice`, `env`, `numactl`).
    """

    name: ClassVar[str] = "postgres"
    socket_name: ClassVar[str] = f".s.PGSQL.{PORT:05}"  # as long as with any port

    def __init__(self, data_dir: Path, *, tcp_port: int = 0, prefix: Sequence[str | Path] = ()) -> None:
        super().__init__(data_dir)
        self._tcp_port = tcp_port
        self._prefix = prefix

    @property
    def dsn(self) -> str:
        """The role `sightline` on its database; `postgresql+psycopg` in front makes it a URL of SQLAlchemy."""
        return self._url(ROLE, DATABASE)

    @property
    def superuser_dsn(self) -> str:
        """The superuser on the database `postgres`, from where CREATE DATABASE can be said."""
        return self._url(SUPERUSER, "postgres")

    @property
    def tcp_dsn(self) -> str:
        """As `dsn`, over TCP, with the password."""
        return f"postgresql://{ROLE}:{self._password()}@127.0.0.1:{self._port}/{DATABASE}"

    def launch(self) -> None:
        """
        Raises:
            PartError: the directory is another user's or another version's, or a server of it will not end.
        """
        run_as = identity.choose(self.data)
        identity.open_the_way(self.home, run_as)
        self.make_run_dir(*identity.owner_ids(run_as))
        if not self.data.exists():
            self._initdb(run_as)
        self._check_version()
        self._clear_leftovers()
        self._write(self.data / "postgresql.conf", CONFIGURATION.read_text(encoding="utf-8"), run_as)
        self._write(self.data / "pg_hba.conf", ACCESS, run_as)
        options = {
            "port": self._tcp_port or PORT,
            "listen_addresses": "127.0.0.1" if self._tcp_port else "",
            "unix_socket_directories": self.run_dir,
        }
        flags = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        # SIGQUIT when the owner dies: the server takes its children with it at once and replays at the next start.
        self._process = spawn(
            [*self._prefix, binaries.postgres_program("postgres"), "-D", self.data, *flags],
            env=_environ(),
            cwd=self.home,
            log_path=self.log_path,
            death_signal=signal.SIGQUIT,
            run_as=run_as,
        )

    def start(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        super().start(timeout_s=timeout_s)
        try:
            self._bootstrap()
        except BaseException:
            self.stop()
            raise

    def is_ready(self) -> bool:
        """As the server itself says in its pid file, which costs no connection; `pg_ctl` asks in the same way."""
        lines = self._pid_file()
        return self.poll() is None and lines[:1] == [str(self.pid)] and lines[STATUS_LINE:] == ["ready"]

    def is_reachable(self) -> bool:
        try:
            with psycopg.connect(self.dsn, connect_timeout=CONNECT_TIMEOUT_S):
                return True
        except psycopg.OperationalError:
            return False

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Fast shutdown (sessions end, a checkpoint is written), then an immediate one, then SIGKILL."""
        if self._process:
            for how, share in ((signal.SIGINT, 0.8), (signal.SIGQUIT, 0.2)):
                self._process.send_signal(how)
                try:
                    self._process.wait(timeout_s * share)
                    break
                except subprocess.TimeoutExpired:
                    continue
            kill(self._process)
            self._process = None
        if self.owned:
            self.remove_run_dir()
            self.release()

    @property
    def _port(self) -> int:
        lines = [] if self.owned else self._pid_file()  # Another owner may have asked for TCP, or not.
        return int(lines[PORT_LINE]) if lines[PORT_LINE:] else self._tcp_port or PORT

    def _url(self, user: str, database: str) -> str:
        return f"postgresql://{user}@/{database}?host={quote(str(self.run_dir), safe='')}&port={self._port}"

    def _pid_file(self) -> list[str]:
        try:
            return [line.strip() for line in (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()]
        except OSError:
            return []

    def _password(self) -> str:
        return (self.home / "password").read_text(encoding="ascii")

    def _write(self, path: Path, text: str, run_as: RunAs | None) -> None:
        path.write_text(text, encoding="utf-8")
        os.chown(path, *identity.owner_ids(run_as))

    def _initdb(self, run_as: RunAs | None) -> None:
        """Beside its final place, so that one that was cut off is never taken for a database."""
        fresh = self.home / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        os.chown(fresh, *identity.owner_ids(run_as))
        # The builtin locale sorts by code point on every machine: no index goes wrong when the C library changes.
        locale = ["--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=builtin"]
        initdb = spawn(
            [
                binaries.postgres_program("initdb"),
                "-D",
                fresh,
                "-U",
                SUPERUSER,
                "--auth=trust",
                "--no-instructions",
                *locale,
            ],
            env=_environ(),
            cwd=self.home,
            log_path=self.log_path,
            run_as=run_as,
        )
        try:
            status = initdb.wait(INITDB_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            status = kill(initdb)
        if status != 0:
            raise PartError(f"initdb ended with status {status}; {self.log_path}:\n{log_tail(self.log_path)}")
        fresh.rename(self.data)

    def _check_version(self) -> None:
        made_by = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        major = binaries.postgres_bin_dir()[1]
        if made_by != str(major):
            raise PartError(
                f"{self.data} was made by PostgreSQL {made_by}, and the one installed is {major}: "
                f"pg_dump it with {made_by} and restore into a new data directory, or install the package of before"
            )

    def _clear_leftovers(self) -> None:
        """Wait until nothing of an earlier server on this directory is left, and remove its pid file.

        An owner that was killed takes its server along, but not before its lock is free; a killed server leaves
        children that end when they next look; and after a restart of the machine the pid file may name a stranger,
        for whose sake PostgreSQL would refuse to start. We hold the lock, so none of them is wanted.

        Raises:
            PartError: a server that we did not start goes on.
        """
        deadline = time.monotonic() + LEFTOVER_WAIT_S
        patience = deadline - LEFTOVER_WAIT_S * 0.9
        while left := list(_servers_on(self.data)):
            main = self._pid_file()[:1]
            if any([str(pid)] == main for pid in left):
                if time.monotonic() > deadline:
                    raise PartError(f"a PostgreSQL that is not ours ({main[0]}) runs on {self.data}; stop it first")
            elif time.monotonic() > patience:
                for pid in left:  # Its server is gone: it can commit nothing, and holds shared memory.
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _bootstrap(self) -> None:
        """Role, extension, rights, database; repeated until the database, made last, is there."""
        with psycopg.connect(self.superuser_dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                self._harden()
                return
            password = self.home / "password"
            if not password.exists():
                password.touch(mode=0o600)
                password.write_text(secrets.token_urlsafe(24), encoding="ascii")
            # Hashed here, so that no log can show it.
            verifier = connection.pgconn.encrypt_password(self._password().encode(), ROLE.encode(), b"scram-sha-256")
            known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone()
            connection.execute(
                sql.SQL("{} ROLE {} LOGIN CREATEROLE CONNECTION LIMIT {} PASSWORD {}").format(
                    sql.SQL("ALTER" if known else "CREATE"),
                    sql.Identifier(ROLE),
                    sql.Literal(ROLE_CONNECTIONS_MAX),
                    sql.Literal(verifier.decode()),
                )
            )
            template = self._url(SUPERUSER, "template1")
            with psycopg.connect(template, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as inside:
                inside.execute("CREATE EXTENSION IF NOT EXISTS vector")
                inside.execute(analysts.hardening(inside, ROLE))
            # Analysts belong in one database, and not in those that come with the server.
            connection.execute("REVOKE CONNECT ON DATABASE postgres, template1 FROM PUBLIC")
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(DATABASE), sql.Identifier(ROLE))
            )

    def _harden(self) -> None:
        """A database that was made before hardening was known is hardened at its next start; a standby has it."""
        database = self._url(SUPERUSER, DATABASE)
        with psycopg.connect(database, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as inside:
            standby = inside.execute("SELECT pg_is_in_recovery()").fetchone()
            if standby == (False,) and not analysts.is_hardened(inside):
                inside.execute(analysts.hardening(inside, ROLE))


def _environ() -> dict[str, str]:
    """Nothing of ours: PG* variables would change the server, and secrets are none of its business."""
    return {"LC_ALL": "C.UTF-8", "PATH": os.environ.get("PATH", os.defpath)}


def _servers_on(data: Path) -> Iterator[int]:
    """Living PostgreSQL processes, of any kind, that work in `data`: all of them do, from their first moment on."""
    inside = data.resolve()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                # By its name, not by `exe`, which an ending process loses before it lets go of the shared memory.
                if (entry / "comm").read_text() == "postgres\n" and (entry / "cwd").readlink() == inside:
                    yield int(entry.name)
            except OSError:
                continue  # Another user's, a zombie, or gone.
