"""What every command needs: settings, running parts, and errors that are one line."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import psycopg
import uvloop

from ..adapters import logs, settings
from ..adapters.embedded.part import PartError
from ..adapters.embedded.parts import Parts
from ..adapters.settings import Settings

data_dir_option = click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Where embedded parts keep everything."
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
