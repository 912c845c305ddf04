"""Read models at hand: how far each is, made anew, compared with the log, and streams brought back."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import click
import psycopg
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..adapters import postgres
from ..adapters.event_store.codec import EventMapper
from ..adapters.event_store.reader import LogHole
from ..adapters.settings import Settings
from ..domain.events import EVENTS
from ..domain.kernel import Rejection
from .shared import data_dir_option, migrated, parts


@click.group()
def projections() -> None:
    """Read models: list, rebuild, verify, and streams set aside."""


@projections.command("list")
@data_dir_option
def list_(data_dir: Path | None) -> None:
    """How far every read model is, and what was last done to it."""
    from ..projections import quarantine, upkeep  # noqa: PLC0415  # each process loads only its own floor

    async def work(dsn: str) -> None:
        async with await postgres.connect(dsn) as connection:
            states = await upkeep.overview(connection)
            aside = await quarantine.listed(connection, limit=20)
        table = Table("name", "table", "position", "lag", "rows ≈", "rebuilt", "verified", "now")
        for state in states:
            verified = "never" if state.verified_at is None else f"{'equal' if state.equal else 'DIFFERS'}"
            at = "" if state.verified_at is None else f" at {state.verified_position}"
            rebuilt = "never" if state.rebuilt_at is None else f"{state.rebuilt_at:%Y-%m-%d %H:%M}"
            doing = state.task_error or ("" if state.task is None else f"{state.task} at {state.task_position or 0}")
            numbers = (str(state.position), str(state.lag), str(state.rows))
            table.add_row(state.name, state.table, *numbers, rebuilt, verified + at, doing)
        Console().print(table)
        for stream in aside:
            click.echo(f"set aside: {stream.stream_id} from position {stream.position}: {stream.error}")

    with _ready(data_dir) as ready:
        uvloop.run(work(_direct(ready)))


@projections.command()
@data_dir_option
@click.argument("name")
def rebuild(data_dir: Path | None, name: str) -> None:
    """Fold NAME anew beside the live tables, and put that in their place while reads go on."""
    from ..projections.rebuild import rebuild as rebuild_  # noqa: PLC0415  # as above

    with _ready(data_dir) as ready, _bar(f"Rebuilding {name}") as progress:
        done = asyncio.run(rebuild_(_direct(ready), name, EventMapper(EVENTS), progress=progress))
    click.echo(f"{name} was rebuilt: {done.rows} rows, at position {done.position}.")


@projections.command()
@data_dir_option
@click.argument("name")
@click.option("--at", type=click.IntRange(0), help="Rows as the history has them at this position.")
def verify(data_dir: Path | None, name: str, at: int | None) -> None:
    """Replay the log into scratch tables and compare digests; exit 1 and the first key that differs."""
    from ..projections.verify import verify as verify_  # noqa: PLC0415  # as above

    with _ready(data_dir) as ready, _bar(f"Verifying {name}") as progress:
        verdict = asyncio.run(verify_(_direct(ready), name, EventMapper(EVENTS), at=at, progress=progress))
    for one in verdict.comparisons:
        click.echo(f"{one.table} at position {verdict.position}: {one.rows} rows")
        click.echo(f"  live      {one.live}")
        click.echo(f"  replayed  {one.replayed}")
        if one.differs_at is not None:
            click.echo(f"  the first difference is at {one.differs_at}")
    sys.exit(0 if verdict.equal else 1)


@projections.command()
@data_dir_option
@click.argument("stream", type=click.UUID)
def resume(data_dir: Path | None, stream: UUID) -> None:
    """Fold a stream that was set aside from its first event on, and go on with it; exit 1 if it still cannot be."""
    from ..projections.resume import resume as resume_  # noqa: PLC0415  # as above

    async def work(dsn: str) -> None:
        async with await postgres.connect(dsn) as connection:
            done = await resume_(connection, EventMapper(EVENTS), stream)
        click.echo(f"{stream} is back: {done.events} events folded, at position {done.position}.")

    with _ready(data_dir) as ready:
        uvloop.run(work(_direct(ready)))


@contextmanager
def _ready(data_dir: Path | None) -> Iterator[Settings]:
    """A migrated database; what is refused is one line."""
    with parts(data_dir=data_dir) as ready:
        with psycopg.connect(_direct(ready)) as connection:
            migrated(connection)
        try:
            yield ready
        except (Rejection, LogHole) as error:
            raise click.ClickException(getattr(error, "detail", "") or str(error)) from error


def _direct(ready: Settings) -> str:
    return ready.database_direct_url or ready.database_url


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Where errors go, so that what is printed can be piped."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda position, until: progress.update(task, completed=position, total=until)
