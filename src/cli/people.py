"""People whose data is sealed: erase one, erase again after a restore, and give the vault a new sealing key."""

import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from ..adapters.erasures import Erasures, ErasuresDamaged
from ..adapters.event_store.codec import NotStorable
from ..adapters.settings import Settings
from ..adapters.vault import Vault
from ..commands.transact import Commands
from ..domain.kernel import Rejection
from .shared import data_dir_option, open_commands, parts, run_async


@click.group()
def people() -> None:
    """Erase a person, and what belongs to it."""


@people.command()
@data_dir_option
@click.argument("person")
def erase(data_dir: Path | None, person: str) -> None:
    """Destroy the key of PERSON's data, everywhere and for good.

    PERSON is what the data was sealed under: a session's user_id, or a user's email; a user is deactivated first, and
    the email may be registered anew. `-` reads it from standard input, which keeps it out of the shell's history and
    of the list of processes.
    """
    from ..commands.people import erase_person  # noqa: PLC0415  # each process loads only its own floor

    named = sys.stdin.readline().rstrip("\n") if person == "-" else person

    async def work(commands: Commands, vault: Vault, erasures: Erasures) -> None:
        subjects = await erase_person(commands, vault, erasures, named, now=datetime.now(UTC))
        if not subjects:
            click.echo("Nothing is sealed for this person.")
        for subject in subjects:
            click.echo(f"Erased: subject {subject}. Listed in {erasures.path}.")

    _with_vault(data_dir, work)


@people.command()
@data_dir_option
def replay_erasures(data_dir: Path | None) -> None:
    """Erase again everybody on the list: to be run after every restore, before the service starts."""
    from ..commands.people import replay_erasures as replay  # noqa: PLC0415  # as above

    async def work(commands: Commands, vault: Vault, erasures: Erasures) -> None:
        replayed = await replay(commands, vault, erasures)
        click.echo(f"{replayed.listed} on the list, {replayed.erased} were back and are erased again.")
        if replayed.kept:
            click.echo(
                f"{replayed.kept} of them stay administrators, for there is no other: make one with"
                " `sightline users create`, and run this again."
            )

    _with_vault(data_dir, work)


@people.command()
@data_dir_option
def rotate_key(data_dir: Path | None) -> None:
    """Wrap all keys of people with a new sealing key, and destroy the old one.

    A backup taken before cannot be opened with the new one: take a new base backup.
    """

    async def work(_: Commands, vault: Vault, __: Erasures) -> None:
        click.echo(f"{await vault.rotate()} keys are wrapped by the new sealing key.")

    _with_vault(data_dir, work)


def _with_vault(data_dir: Path | None, work: Callable[[Commands, Vault, Erasures], Awaitable[None]]) -> None:
    async def run(ready: Settings) -> None:
        async with open_commands(ready) as commands:
            assert commands.vault is not None
            await work(commands, commands.vault, Erasures.of(ready))

    with _clear_refusals(), parts(data_dir=data_dir) as ready:
        run_async(run(ready))


@contextmanager
def _clear_refusals() -> Iterator[None]:
    try:
        yield
    except (ErasuresDamaged, NotStorable, Rejection) as error:
        raise click.ClickException(str(error)) from error
