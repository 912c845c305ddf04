"""Analysts: roles of the database that may read the views of schema `analytics` and nothing else.

A session is an analyst's because it logged in as one: session_user cannot be changed from inside, and a member of
sightline_analyst may SET ROLE to nobody. Settings of the role (time-outs, read-only) are kindnesses that it can SET
away; what holds is that it has no right to write, few connections, and the watchdog (workers/watchdog.py).
"""

import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from msgspec import Struct
from psycopg import sql

GROUP = "sightline_analyst"
PASSWORD_CHARS_MIN = 12
PASSWORD_CHARS_MAX = 200
OWNERS_MAX = 1_000
HARDENING = Path(__file__).with_name("hardening.sql")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")

ANALYSTS = (
    "SELECT a.role, a.owners, r.rolconnlimit FROM analysts AS a JOIN pg_roles AS r ON r.rolname = a.role"
    " WHERE r.rolcanlogin ORDER BY a.role"
)
IS_ANALYST = (
    "SELECT EXISTS (SELECT FROM pg_auth_members WHERE roleid = 'sightline_analyst'::regrole AND NOT admin_option"
    " AND member = to_regrole(quote_ident(%s)))"
)


class AnalystRefused(Exception):
    """There can be no such analyst; the text says why."""


class Analyst(Struct, frozen=True):
    """Attributes:
    owners: whose rows it sees; None: everybody's.
    """

    role: str
    owners: list[str] | None
    connections_max: int


def create(
    connection: "psycopg.Connection[Any]",
    name: str,
    *,
    password: str | None = None,
    owners: Sequence[str] = (),
    connections_max: int,
    query_s_max: float,
) -> str:
    """Make a role that logs in and may read the views; its password, chosen here unless one is given.

    `connection` is the service's own login, in autocommit. The analyst sees the rows of `owners`, or everybody's.

    Raises:
        AnalystRefused: the name is taken or cannot be one, or this login may not make roles.
    """
    if _NAME.fullmatch(name) is None or name.startswith(("pg_", "sightline")):
        raise AnalystRefused("a name has a to z, 0 to 9 and _, begins with a letter, and is none of our own roles")
    if password is not None and not PASSWORD_CHARS_MIN <= len(password) <= PASSWORD_CHARS_MAX:
        raise AnalystRefused(f"a password has {PASSWORD_CHARS_MIN} to {PASSWORD_CHARS_MAX} characters")
    if len(owners) > OWNERS_MAX or any("\0" in owner or not owner for owner in owners):
        raise AnalystRefused(f"at most {OWNERS_MAX} owners, none of them empty")
    chosen = password or secrets.token_urlsafe(24)
    # Hashed here, so that no log can show it.
    verifier = connection.pgconn.encrypt_password(chosen.encode(), name.encode(), b"scram-sha-256").decode()
    role = sql.Identifier(name)
    timeout = sql.Literal(f"{round(query_s_max * 1000)}ms")
    statements: list[sql.SQL | sql.Composed] = [
        sql.SQL("SELECT analytics_source.protect_database()"),
        sql.SQL("CREATE ROLE {} LOGIN CONNECTION LIMIT {} PASSWORD {}").format(
            role, sql.Literal(connections_max), sql.Literal(verifier)
        ),
        sql.SQL("GRANT sightline_analyst TO {} WITH INHERIT TRUE, SET FALSE, ADMIN FALSE").format(role),
        # For the watchdog: whoever has a role's rights may see what it does, and end it.
        sql.SQL("GRANT {} TO CURRENT_USER WITH INHERIT TRUE, SET FALSE").format(role),
        sql.SQL("ALTER ROLE {} SET search_path = analytics").format(role),
        sql.SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(role),
        sql.SQL("ALTER ROLE {} SET statement_timeout = {}").format(role, timeout),
        sql.SQL("ALTER ROLE {} SET idle_in_transaction_session_timeout = {}").format(role, timeout),
    ]
    try:
        with connection.transaction():
            for statement in statements:
                connection.execute(statement)
            connection.execute(
                "INSERT INTO analysts (role, owners) VALUES (%s, %s)"
                " ON CONFLICT (role) DO UPDATE SET owners = excluded.owners",
                (name, list(owners) or None),
            )
    except psycopg.errors.DuplicateObject as error:
        raise AnalystRefused(f"there is a role {name} already") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise AnalystRefused(f"this login may not make roles (it needs CREATEROLE): {_said(error)}") from error
    return chosen


def drop(connection: "psycopg.Connection[Any]", name: str) -> None:
    """Take an analyst away, with its sessions.

    Raises:
        AnalystRefused: there is none of that name, or another database of the server knows it too.
    """
    if not _scalar(connection, IS_ANALYST, (name,)):
        raise AnalystRefused(f"there is no analyst {name}")
    role = sql.Identifier(name)
    connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(role))  # Or it would be back before it is gone.
    connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (name,))
    try:
        with connection.transaction():
            connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))
            connection.execute("DELETE FROM analysts WHERE role = %s", (name,))
    except psycopg.errors.DependentObjectsStillExist as error:
        raise AnalystRefused(f"{name} can no longer log in, but is known elsewhere: {_said(error)}") from error


def listed(connection: "psycopg.Connection[Any]") -> list[Analyst]:
    """The analysts of this database, by name."""
    return [Analyst(*row) for row in connection.execute(ANALYSTS)]


def is_analyst(connection: "psycopg.Connection[Any]", name: str) -> bool:
    return bool(_scalar(connection, IS_ANALYST, (name,)))


def hardening(connection: "psycopg.Connection[Any]", login: str) -> sql.Composed:
    """What a superuser has to say in this database before an analyst is let in, whoever the service logs in as."""
    text = HARDENING.read_text(encoding="utf-8").replace("{login}", sql.Identifier(login).as_string(connection))
    return sql.Composed([sql.SQL(text)])


def is_hardened(connection: "psycopg.Connection[Any]") -> bool:
    return not _scalar(connection, "SELECT has_language_privilege('public', 'plpgsql', 'USAGE')")


def _scalar(connection: "psycopg.Connection[Any]", query: Any, values: Sequence[Any] = ()) -> Any:
    row = connection.execute(query, values).fetchone()
    return row[0] if row else None


def _said(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error)).split("\n", 1)[0]
