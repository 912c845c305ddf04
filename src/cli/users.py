"""Users on the command line: the first administrator, and whoever an operator must help without the API."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import click
import msgspec
import psycopg

from ..adapters.event_store.codec import NotStorable
from ..adapters.ids import uuid7
from ..adapters.passwords import Passwords, require_hash
from ..adapters.settings import Settings
from ..adapters.vault import Vault
from ..commands import users as commands_
from ..commands.transact import Commands, Receipt
from ..domain import emails
from ..domain import users as domain
from ..domain.access import Role
from ..domain.kernel import NotFound, Rejection
from ..domain.users import User
from ..projections.users import UserRow
from .shared import data_dir_option, open_commands, operator, parts, run_async

ROLES = click.Choice([role.value for role in Role])
LINE_CHARS_MAX = 8_192
USERS_SHOWN_MAX = 10_000

email_option = click.option("--email", required=True, help="The user's email.")
password_option = click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
hash_option = click.option(
    "--password-hash-stdin", is_flag=True, help="Read an argon2id or bcrypt hash from elsewhere instead."
)


@click.group()
def users() -> None:
    """Who may ask: create users, list them, help them."""


@users.command()
@data_dir_option
@email_option
@click.option("--full-name", required=True, help="The user's name.")
@click.option("--role", type=ROLES, default=Role.VIEWER.value, show_default=True, help="What the user may do.")
@password_option
@hash_option
def create(
    data_dir: Path | None, email: str, full_name: str, role: str, password_stdin: bool, password_hash_stdin: bool
) -> None:
    """Register a user; the first one should be an ADMIN."""
    secret = _secret(password_stdin=password_stdin, password_hash_stdin=password_hash_stdin)

    async def work(commands: Commands) -> None:
        command = commands_.RegisterUser(
            user_id=uuid7(),
            email=email,
            full_name=full_name,
            role=Role(role),
            password_hash=await _hash(secret, emails.normalised(email), is_hash=password_hash_stdin),
        )
        receipt = await commands.execute(commands_.register_user, command, operator())
        click.echo(f"{receipt.stream_id}  {role}  position {receipt.position}")

    _with_commands(data_dir, work)


@users.command(name="list")
@data_dir_option
def list_users(data_dir: Path | None) -> None:
    """Print users, one JSON object per line, as the read model has them."""

    async def work(ready: Settings) -> None:
        async with open_commands(ready) as commands:
            vault = commands.vault
            assert vault is not None
            rows = await asyncio.to_thread(_rows, ready)
            mails = await vault.open_many(commands_.EMAIL, [row.email for row in rows])
            names = await vault.open_many(commands_.FULL_NAME, [row.full_name for row in rows])
            for row, email, name in zip(rows, mails, names, strict=True):
                shown = {"id": row.user_id, "email": email, "full_name": name, "role": row.role, "status": row.status}
                times = {"created_at": row.created_at, "last_login_at": row.last_login_at}
                click.echo(msgspec.json.encode(shown | times))

    with _clear_refusals(), parts(data_dir=data_dir) as ready:
        run_async(work(ready))


@users.command()
@data_dir_option
@email_option
@password_option
@hash_option
def set_password(data_dir: Path | None, email: str, password_stdin: bool, password_hash_stdin: bool) -> None:
    """Give a user another password, which ends every token of his."""
    secret = _secret(password_stdin=password_stdin, password_hash_stdin=password_hash_stdin)

    async def work(commands: Commands) -> None:
        user_id = await _user_id(commands, email)
        hashed = await _hash(secret, emails.normalised(email), is_hash=password_hash_stdin)
        command = commands_.SetPassword(user_id=user_id, password_hash=hashed)
        _tell(await commands.execute(commands_.set_password, command, operator()))

    _with_commands(data_dir, work)


@users.command()
@data_dir_option
@email_option
def deactivate(data_dir: Path | None, email: str) -> None:
    """Deactivate a user for good; the last administrator stays."""

    async def work(commands: Commands) -> None:
        command = commands_.DeactivateUser(user_id=await _user_id(commands, email))
        _tell(await commands.execute(commands_.deactivate_user, command, operator()))

    _with_commands(data_dir, work)


def _tell(receipt: Receipt[User]) -> None:
    click.echo(f"{receipt.stream_id}  {receipt.state.status}  position {receipt.position}")


def _secret(*, password_stdin: bool, password_hash_stdin: bool) -> str:
    if password_stdin == password_hash_stdin:
        raise click.UsageError("give --password-stdin or --password-hash-stdin; an argument would stay in the history")
    secret = sys.stdin.readline(LINE_CHARS_MAX).rstrip("\r\n")
    if not secret:
        raise click.ClickException("standard input is empty")
    return secret


async def _hash(secret: str, email: str, *, is_hash: bool) -> str:
    if is_hash:
        return require_hash(secret)
    password = domain.require_password(secret, email=email)
    passwords = Passwords()
    try:
        return await passwords.hash(password)
    finally:
        passwords.close()


async def _user_id(commands: Commands, email: str) -> UUID:
    """
    Raises:
        NotFound: nobody has registered it.
    """
    vault: Vault | None = commands.vault
    assert vault is not None
    subject = await vault.subject_of(emails.normalised(email))
    if subject is not None:
        claim, _, _ = await commands.state(emails.AGGREGATE, emails.claim_id(subject), read_tail=True)
        if claim.user_id is not None:
            return claim.user_id
    raise NotFound("no user has this email")


def _rows(ready: Settings) -> list[UserRow]:
    with psycopg.connect(ready.database_direct_url or ready.database_url) as connection:
        found = connection.execute(
            "SELECT to_json(u)::text FROM users AS u ORDER BY user_id LIMIT %s", (USERS_SHOWN_MAX,)
        ).fetchall()
    return [msgspec.json.decode(text, type=UserRow) for (text,) in found]


def _with_commands(data_dir: Path | None, work: Callable[[Commands], Awaitable[None]]) -> None:
    async def run(ready: Settings) -> None:
        async with open_commands(ready) as commands:
            await work(commands)

    with _clear_refusals(), parts(data_dir=data_dir) as ready:
        run_async(run(ready))


@contextmanager
def _clear_refusals() -> Iterator[None]:
    try:
        yield
    except psycopg.errors.UndefinedTable as error:
        raise click.ClickException("the database's schema is an older one: run `sightline migrate`") from error
    except (Rejection, NotStorable) as error:
        raise click.ClickException(str(error)) from error
