"""The log for somebody who does not trust us: one file with all of it, and a check that needs nothing else of ours."""

import os
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import click
import psycopg
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from ..adapters import postgres
from ..adapters.event_store.reader import LogHole
from ..adapters.event_store.tree import TreeDamaged
from ..adapters.notes import KEY_FILE, NoteRefused, Signer
from ..adapters.objects import open_object_store
from ..adapters.objects.port import ObjectStoreError
from ..adapters.settings import Settings
from ..domain.kernel import Rejection
from .shared import clear_errors, data_dir_option, given_settings, migrated, parts, run_async

KEY_BYTES_MAX = 64 * 1024

input_file = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group()
def audit() -> None:
    """Take the log away in one file, and check such a file."""


@audit.command()
@data_dir_option
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The bundle to write.")
@click.option("--from", "first", type=click.IntRange(1), default=1, show_default=True, help="The first position.")
@click.option("--to", "last", type=click.IntRange(1), help="The position to reach at least; the log's end without it.")
@click.option("--with-blobs", is_flag=True, help="The bytes of every object that the rows name, too.")
def export(data_dir: Path | None, out: Path, first: int, last: int | None, with_blobs: bool) -> None:
    """Write a bundle of the log. The service may be running or not.

    A bundle ends at a signed checkpoint: the first one at or past --to.
    """
    with parts(data_dir=data_dir) as ready:
        with psycopg.connect(ready.database_url) as connection:
            migrated(connection)
        if not given_settings(data_dir=data_dir).database_url or (ready.data_dir / "keys" / KEY_FILE).exists():
            run_async(sign(ready))
        with _whole(out) as path, _one_line():
            run_async(_export(ready, path, first=first, last=last, with_blobs=with_blobs))


async def _export(ready: Settings, path: Path, *, first: int, last: int | None, with_blobs: bool) -> None:
    from ..projections.bundle import export as bundle  # noqa: PLC0415  # each command loads only what it needs

    async with AsyncExitStack() as stack:
        objects = None
        if with_blobs:
            objects = await open_object_store(ready)
            stack.push_async_callback(objects.close)
        pool = await stack.enter_async_context(postgres.pool(ready.database_direct_url or ready.database_url))
        prepared = bundle.prepared(pool, first=first, last=last, objects=objects)
        bundled = await stack.enter_async_context(prepared)
        size_bytes = 0
        with path.open("wb") as file, _shown() as progress:
            task = progress.add_task("export", total=None)
            async for part in bundled.stream():
                size_bytes += file.write(part)
                progress.update(task, description=f"export {size_bytes / 1024**2:,.0f} MiB")
            file.flush()
            os.fsync(file.fileno())
    click.echo(f"Positions {bundled.range.first} to {bundled.range.last}, {size_bytes:,} bytes.")


async def sign(ready: Settings) -> None:
    """Be the notary for a moment, where none is: a bundle ends at a signature. Only beside its key: with one made here
    for a log that lies elsewhere, its own notary would refuse to go on.
    """
    from ..workers import notary  # noqa: PLC0415  # as above

    async with await postgres.connect(ready.database_direct_url or ready.database_url) as connection:
        row = await (await connection.execute(notary.LOCK)).fetchone()
        if row is None or not row[0]:
            return
        try:
            signer = Signer.load(ready.data_dir / "keys")
            opened = await notary.open_notary(connection, signer, notary.Kept.of(ready))
            while await opened.step():
                pass
        except (notary.Contradiction, TreeDamaged, LogHole, NoteRefused) as error:
            # What was signed before can still be exported: somebody will want to look at it just then.
            click.echo(f"Nothing is signed any more: {error}", err=True)


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A path to write to, which becomes `out` once all of it is there."""
    path = out.with_name(f".{out.name}.part")
    try:
        yield path
        path.replace(out)
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except (Rejection, LogHole, TreeDamaged, ObjectStoreError) as error:
        raise click.ClickException(str(error)) from error


@audit.command()
@click.argument("bundle", type=input_file)
@click.option("--public-key", "key", required=True, help="The notary's public key: a file such as notary.pub, or it.")
@click.option("--witness", type=input_file, help="A signed checkpoint that was kept elsewhere.")
def verify(bundle: Path, key: str, witness: Path | None) -> None:
    """Check BUNDLE with the public key alone: no database, no network.

    Exit status 0 if all of it is right; 1 if not, with the first position that is wrong.
    """
    from ..projections.bundle.format import BundleRefused  # noqa: PLC0415  # as above
    from ..projections.bundle.verify import verify as check  # noqa: PLC0415  # as above

    with clear_errors(), _shown() as progress:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=of)
            progress.update(tasks[what], completed=done)

        public_key = _text(Path(key)) if "+" not in key or Path(key).is_file() else key
        try:
            report = check(bundle, public_key, _text(witness) if witness else None, progress=tell)
        except BundleRefused as error:
            raise click.ClickException(f"{bundle}: {error}") from error
    for line in report.lines():
        click.echo(line)


def _text(path: Path) -> str:
    """
    Raises:
        click.ClickException: not text, or far too long for a key or a checkpoint.
    """
    try:
        if path.stat().st_size > KEY_BYTES_MAX:
            raise click.ClickException(f"{path} is too long for a key or a checkpoint")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{path} is not text") from error


def _shown() -> Progress:
    """Progress on a terminal; nothing where standard error is none."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())
