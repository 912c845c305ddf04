"""Backup and restore of an embedded database; `deploy/backup/` has the same for a server of one's own."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import click
import msgspec
import psycopg
from msgspec.structs import replace

from ..adapters import backup as backups
from ..adapters import logs, restore_audit
from ..adapters import restore as restores
from ..adapters.backup import BackupError
from ..adapters.embedded.parts import Parts
from ..adapters.embedded.postgres import PostgresServer
from ..adapters.erasures import Erasures, ErasuresDamaged
from ..adapters.settings import Settings
from ..commands.people import replay_erasures
from .shared import clear_errors, data_dir_option, given_settings, open_commands

directory = click.Path(path_type=Path, file_okay=False)


@click.group()
def backup() -> None:
    """Copies of the database, and the stream of what is written to it."""


@backup.command()
@data_dir_option
@click.option("--to", type=directory, required=True, help="A directory that does not exist yet.")
def base(data_dir: Path | None, to: Path) -> None:
    """Copy the whole database while it runs, and verify the copy."""
    with _embedded(data_dir) as (given, server), _clear():
        parts = Parts(given)
        with parts:
            verified = backups.base(server, to, say=lambda line: click.echo(line, err=True))
        click.echo(f"{to}: {verified.files} files, {verified.size_bytes / 1e6:.0f} MB, verified.")


@backup.command()
@data_dir_option
@click.option("--to", type=directory, required=True, help="Where the WAL goes; the same directory at every start.")
def wal(data_dir: Path | None, to: Path) -> None:
    """Receive what is written to the database, as it is written, until stopped. Take the first base after its start."""
    with _embedded(data_dir) as (_, server), _clear():
        stopping = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: stopping.set())
        backups.receive(server, to, stopping=stopping)


@backup.command()
@data_dir_option
@click.argument("state", type=click.Choice(["on", "off"]))
def synchronous(data_dir: Path | None, state: str) -> None:
    """Whether each append waits until the receiver has it on its disk: then no loss of this machine loses any."""
    with _embedded(data_dir) as (_, server), _clear():
        backups.set_synchronous(server, state == "on")
        click.echo(f"Appends {'wait' if state == 'on' else 'do not wait'} for the receiver.")


@backup.command()
@data_dir_option
def forget(data_dir: Path | None) -> None:
    """Drop the receiver's slot, so that the server keeps no WAL for one that does not come back."""
    with _embedded(data_dir) as (_, server), _clear():
        backups.drop_slot(server)
        click.echo("The server keeps no WAL for a receiver now.")


@click.command()
@data_dir_option
@click.option("--from", "copy", type=directory, required=True, help="A base backup.")
@click.option("--wal", type=directory, help="What `backup wal` received; without it the base alone is restored.")
@click.option("--to-position", type=click.IntRange(1), help="Up to the end of the batch that holds this position.")
@click.option("--to-time", help="Up to what was committed then: RFC 3339, with zone.")
@click.option("--latest", is_flag=True, help="All there is.")
def restore(
    data_dir: Path | None, copy: Path, wal: Path | None, to_position: int | None, to_time: str | None, latest: bool
) -> None:
    """Make a new data directory from a backup: verify, copy, replay, new epoch, erasures again, audit.

    Put the `keys` of the lost data directory, the list of erasures among them, into the new one before.
    """
    given = given_settings(data_dir=data_dir)
    logs.configure(given)
    target = _target(to_position, to_time, latest=latest)
    timed = restores.Timed(click.echo)
    with clear_errors(), _clear(), restores.restored(copy, wal, given.data_dir, target, timed) as (server, result):
        ready = replace(given, database_url=server.dsn, database_direct_url=server.dsn)
        with timed.step("erasures") as said:
            said.append(_replay_erasures(ready))
        with timed.step("audit") as said:
            audited = restore_audit.audit(server.dsn, given.data_dir / "keys")
            said.append(str(audited))
        with timed.step("stop"):
            server.stop()
    click.echo(f"{'total':<12} {timed.total_s:7.2f} s")
    click.echo(f"Restored to position {result.position} (WAL {result.lsn}), epoch {result.epoch}.")
    click.echo(f"Start it with: sightline up --data-dir {given.data_dir}")


def _target(position: int | None, moment: str | None, *, latest: bool) -> restores.Target:
    if sum((position is not None, moment is not None, latest)) > 1:
        raise click.UsageError("--to-position, --to-time and --latest exclude each other")
    if moment is None:
        return restores.Target(position=position)
    try:
        parsed = msgspec.convert(moment, datetime)
    except msgspec.ValidationError as error:
        raise click.UsageError(f"--to-time {moment!r} is no RFC 3339 time") from error
    if parsed.tzinfo is None:
        raise click.UsageError("--to-time needs a zone, such as Z")
    return restores.Target(moment=parsed)


def _replay_erasures(ready: Settings) -> str:
    """Who was erased since the backup is erased from it as well."""
    erasures = Erasures.of(ready)
    if not erasures.path.exists():
        return f"no list at {erasures.path}: nobody was erased again"

    async def replay() -> str:
        async with open_commands(ready) as commands:
            assert commands.vault is not None
            replayed = await replay_erasures(commands, commands.vault, erasures)
        kept = f", {replayed.kept} stay the only administrators" if replayed.kept else ""
        return f"{replayed.listed} on the list, {replayed.erased} were back and are erased again{kept}"

    return asyncio.run(replay())


@contextmanager
def _embedded(data_dir: Path | None) -> Iterator[tuple[Settings, PostgresServer]]:
    """The settings, and the server of their data directory, whoever runs it."""
    given = given_settings(data_dir=data_dir)
    logs.configure(given)
    if given.database_url:
        raise click.ClickException("the database is a server of your own: back it up with the scripts of deploy/backup")
    with clear_errors():
        yield given, PostgresServer(given.data_dir)


@contextmanager
def _clear() -> Iterator[None]:
    try:
        yield
    except (BackupError, restore_audit.AuditFailed, ErasuresDamaged, psycopg.Error) as error:
        raise click.ClickException(str(error)) from error
