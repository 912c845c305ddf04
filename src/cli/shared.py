"""What every command needs: settings, running parts, and errors that are one line."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import psycopg
import uvloop

from ..adapters import logs, settings
from ..adapters.embedded.part import PartError
from ..adapters.embedded.parts import Parts
from ..adapters.ids import uuid7
from ..adapters.settings import Settings

if TYPE_CHECKING:
    from ..commands.transact import Commands
    from ..domain.kernel import Caller

data_dir_option = click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Where embedded parts keep everything."
)


def tls_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the certificate of the API lies."""
    path = click.Path(dir_okay=False)
    key = click.option("--tls-key", type=path, help="PEM file with its private key, which nobody else may read.")
    return click.option("--tls-cert", type=path, help="PEM file with a certificate and its chain; then it is HTTPS.")(
        key(command)
    )


def given_settings(**overrides: Any) -> Settings:
    try:
        return settings.read(**overrides)
    except settings.SettingsError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def parts(**overrides: Any) -> Iterator[Settings]:
    """Settings with every part's address: another process's parts, ours for a while, or servers elsewhere."""
    given = given_settings(**overrides)
    logs.configure(given)
    with clear_errors(), Parts(given) as ready:
        yield ready


@contextmanager
def clear_errors() -> Iterator[None]:
    """What an operator can do something about is one line, not a stack."""
    try:
        yield
    except (settings.SettingsError, PartError, psycopg.OperationalError, OSError) as error:
        raise click.ClickException(str(error)) from error


@asynccontextmanager
async def open_commands(ready: Settings) -> "AsyncIterator[Commands]":
    """Commands with a vault, for an operator; nobody is told of jobs.

    Raises:
        psycopg.errors.UndefinedTable: the database has no schema yet.
    """
    from ..adapters.event_store.store import open_event_store  # noqa: PLC0415  # each process loads only its own floor
    from ..adapters.vault import Vault  # noqa: PLC0415  # as above
    from ..commands.transact import Commands  # noqa: PLC0415  # as above
    from ..domain.events import EVENTS  # noqa: PLC0415  # as above

    direct = ready.database_direct_url or ready.database_url
    with psycopg.connect(direct) as connection:
        migrated(connection)
    async with open_event_store(ready.database_url, EVENTS, direct_dsn=direct, connections_max=2) as store:
        commands = Commands(store, vault=Vault.of(store.pool, ready))
        try:
            yield commands
        finally:
            await commands.close()


def operator() -> "Caller":
    """Whoever is at the terminal: one command's."""
    from ..domain.kernel import Caller  # noqa: PLC0415  # as above

    command_id = uuid7()
    now, correlation_id = datetime.now(UTC), f"cli:{command_id}"
    return Caller.of_itself("operator", now=now, command_id=command_id, correlation_id=correlation_id)


def run_async(work: Awaitable[None]) -> None:
    async def main() -> None:
        await work

    uvloop.run(main())


async def with_services(ready: Settings, run: Callable[..., Awaitable[None]], name: str) -> None:
    from ..workers import lifecycle  # noqa: PLC0415  # as above

    async with lifecycle.open_services(ready) as services:
        await lifecycle.run_until_stopped(lambda stopping: run(services, stopping), name)


def migrated(connection: "psycopg.Connection[Any]") -> None:
    if scalar(connection, "SELECT to_regclass('projection_checkpoints') IS NULL"):
        raise click.ClickException("the database has no schema yet: run `sightline migrate`, or `sightline up`")


def scalar(connection: "psycopg.Connection[Any]", query: Any) -> Any:
    row = connection.execute(query).fetchone()
    return row[0] if row else None
