"""Analysts: who they are, what they may read, and tables for those who would rather have a file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..adapters import analysts
from ..adapters.analysts import AnalystRefused
from ..adapters.dictionary import rendered
from ..adapters.settings import Settings
from ..adapters.tabular import TABLES
from ..projections.analytics import REPORTS, Window, opened
from .shared import data_dir_option, migrated, parts, run_async, scalar

HARDEN_HINT = (
    "This server still lets every role loop, lock and leave large objects behind. Have a superuser say what"
    " `sightline analyst harden` prints, in this database."
)


@click.group()
def analyst() -> None:
    """Roles of the database that may read schema `analytics`, and nothing else."""


@analyst.command()
@data_dir_option
@click.argument("name")
@click.option("--owner", "owners", multiple=True, help="Whose rows alone to show; may be said again. None: all rows.")
@click.option("--connections-max", type=click.IntRange(1, 20), help="Sessions that it may have at a time.")
@click.option("--password-stdin", is_flag=True, help="Read its password from stdin, instead of choosing one.")
def create(
    data_dir: Path | None, name: str, owners: tuple[str, ...], connections_max: int | None, password_stdin: bool
) -> None:
    """Make an analyst, and print the password once."""
    password = sys.stdin.readline().rstrip("\n") if password_stdin else None
    with parts(data_dir=data_dir, analyst_connections_max=connections_max) as ready, _connected(ready) as connection:
        with _refusals():
            chosen = analysts.create(
                connection,
                name,
                password=password,
                owners=owners,
                connections_max=ready.analyst_connections_max,
                query_s_max=ready.analyst_query_s_max,
            )
        if not analysts.is_hardened(connection):
            click.echo(HARDEN_HINT, err=True)
    if not password_stdin:
        click.echo(chosen)


@analyst.command()
@data_dir_option
@click.argument("name")
def drop(data_dir: Path | None, name: str) -> None:
    """Take an analyst away, with the sessions it has."""
    with parts(data_dir=data_dir) as ready, _connected(ready) as connection, _refusals():
        analysts.drop(connection, name)
    click.echo(f"{name} is no more.")


@analyst.command(name="list")
@data_dir_option
def list_(data_dir: Path | None) -> None:
    """The analysts of this database, and whose rows they see."""
    with parts(data_dir=data_dir) as ready, _connected(ready) as connection:
        for one in analysts.listed(connection):
            click.echo(f"{one.role}  {'all rows' if one.owners is None else ', '.join(one.owners)}")


@analyst.command()
@data_dir_option
def harden(data_dir: Path | None) -> None:
    """Print what a superuser says in a database of your own server; the embedded one has said it."""
    with parts(data_dir=data_dir) as ready, _connected(ready) as connection:
        click.echo(analysts.hardening(connection, connection.info.user).as_string(connection))


@click.group()
def analytics() -> None:
    """What analysts are given as files, and what its columns mean."""


class Moment(click.ParamType[datetime]):
    """A day, or a time with zone, as the API takes them."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither a day nor a time", param, ctx)
        if moment.tzinfo is not None:
            return moment
        if len(value) != len("2026-01-01"):
            self.fail("the time needs a zone, such as Z", param, ctx)
        return moment.replace(tzinfo=UTC)


@analytics.command()
@data_dir_option
@click.argument("name", type=click.Choice(list(REPORTS)), metavar="NAME")
@click.option("--format", "made_as", type=click.Choice(list(TABLES)), default="csv", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write.")
@click.option("--from", "since", type=Moment(), help="From this day or time on.")
@click.option("--to", "until", type=Moment(), help="Before this day or time.")
def export(
    data_dir: Path | None, name: str, made_as: str, out: Path, since: datetime | None, until: datetime | None
) -> None:
    """Write a report to a file, whole or not at all; `sightline analytics reports` has their names."""
    with parts(data_dir=data_dir) as ready:
        with _connected(ready):
            pass
        run_async(_export(ready.database_url, name, Window(since, until), made_as, out))


async def _export(dsn: str, name: str, window: Window, made_as: str, out: Path) -> None:
    partial = out.with_name(f"{out.name}.part")
    try:
        with partial.open("wb") as file:
            async with opened(dsn, name, window) as report:
                count = await report.pour(TABLES[made_as](report.columns, file))
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    click.echo(f"{out}: {count} rows as of position {report.position}.", err=True)


@analytics.command()
def reports() -> None:
    """The reports that can be exported."""
    for name, report in REPORTS.items():
        click.echo(f"{name:18} {report.title}")


@analytics.command()
@data_dir_option
def dictionary(data_dir: Path | None) -> None:
    """Print what every view and column means, as the database has it, in Markdown."""
    with parts(data_dir=data_dir) as ready, _connected(ready) as connection:
        click.echo(rendered(connection), nl=False)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except AnalystRefused as refused:
        raise click.ClickException(str(refused)) from refused


def analyst_url(ready: Settings, name: str) -> str:
    """The database, to be logged in to as an analyst, whose password psql asks for where the server wants one.

    Not by SET ROLE: RESET ROLE would lead back out.

    Raises:
        click.ClickException: there is no such analyst.
    """
    with _connected(ready) as connection:
        if not analysts.is_analyst(connection, name):
            raise click.ClickException(f"there is no analyst {name}: `sightline analyst create {name}` makes one")
    words = {key: value for key, value in conninfo_to_dict(ready.database_url).items() if key != "password"}
    return make_conninfo("", **(words | {"user": name}))


def _connected(ready: Settings) -> "psycopg.Connection[Any]":
    connection = psycopg.connect(ready.database_direct_url or ready.database_url, autocommit=True)
    try:
        migrated(connection)
        if scalar(connection, "SELECT to_regnamespace('analytics') IS NULL"):
            raise click.ClickException("the database has no schema `analytics` yet: run `sightline migrate`")
    except BaseException:
        connection.close()
        raise
    return connection
