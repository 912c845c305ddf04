"""A table beside the live one, alike in everything that readers and the projector rely on, and its way into the place.

`CREATE TABLE … (LIKE … INCLUDING ALL)` leaves out grants, row security with its policies, storage parameters, triggers
and the names of indexes; they are copied here. Taking the place is: the view is replaced, the old table dropped, the
new one renamed. So a table is always named by the version of its row, which is how migrations and `alembic check` know
it; that it is another table shows in its generation alone.
"""

import re
from collections.abc import Sequence
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg import sql

from ..domain.kernel import Rejection

SUFFIX = "_rebuild"

INDEXES: LiteralString = """
SELECT c.relname, pg_get_indexdef(i.indexrelid), k.conname, pg_get_constraintdef(k.oid)
FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
LEFT JOIN pg_constraint AS k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u')
WHERE i.indrelid = %s::regclass ORDER BY c.relname
"""
GRANTS: LiteralString = """
SELECT coalesce(quote_ident(r.rolname), 'PUBLIC'), a.privilege_type, a.is_grantable, NULL
FROM pg_class AS c, aclexplode(c.relacl) AS a LEFT JOIN pg_roles AS r ON r.oid = a.grantee
WHERE c.oid = %(table)s::regclass AND a.grantee <> c.relowner
UNION ALL
SELECT coalesce(quote_ident(r.rolname), 'PUBLIC'), a.privilege_type, a.is_grantable, quote_ident(t.attname)
FROM pg_attribute AS t, aclexplode(t.attacl) AS a LEFT JOIN pg_roles AS r ON r.oid = a.grantee
WHERE t.attrelid = %(table)s::regclass AND NOT t.attisdropped
"""
POLICIES: LiteralString = """
SELECT quote_ident(polname), polpermissive,
    CASE polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE'
    ELSE 'ALL' END,
    CASE WHEN polroles = '{0}' THEN 'PUBLIC'
    ELSE (SELECT string_agg(quote_ident(rolname), ', ') FROM pg_roles WHERE oid = ANY (polroles)) END,
    pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)
FROM pg_policy WHERE polrelid = %s::regclass
"""
DEPENDENTS: LiteralString = """
SELECT DISTINCT r.ev_class::regclass::text FROM pg_depend AS d JOIN pg_rewrite AS r ON r.oid = d.objid
JOIN pg_class AS c ON c.oid = r.ev_class
WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
AND d.refobjid = %s::regclass AND c.oid <> %s::regclass AND c.relnamespace <> 'analytics_source'::regnamespace
"""


class TableInUse(Rejection):
    """Something reads the table itself instead of its view, and would keep reading the old one."""

    code = "projection_in_use"


async def create(connection: psycopg.AsyncConnection, table: str) -> str:
    """An empty table like `table`, and its name. What an interrupted rebuild left under that name goes."""
    made = table + SUFFIX
    names = {"made": sql.Identifier(made), "table": sql.Identifier(table)}
    await _run(connection, "DROP TABLE IF EXISTS {made}", **names)
    await _run(connection, "CREATE TABLE {made} (LIKE {table} INCLUDING ALL EXCLUDING INDEXES)", **names)
    for number, (_, definition, constraint, constrains) in enumerate(await _all(connection, INDEXES, (table,))):
        index = sql.Identifier(f"{made}_{number}")
        if constraint is None:
            text = re.sub(r"INDEX \S+ ON (?:ONLY )?\S+ ", "INDEX {index} ON {made} ", _literal(definition), count=1)
            await _run(connection, text, index=index, **names)
        else:
            await _run(
                connection,
                f"ALTER TABLE {{made}} ADD CONSTRAINT {{index}} {_literal(constrains)}",
                index=index,
                **names,
            )
    await _copy_rights(connection, table, names)
    return made


async def _copy_rights(connection: psycopg.AsyncConnection, table: str, names: dict[str, sql.Identifier]) -> None:
    made = names["made"]
    found = await _all(
        connection,
        "SELECT relrowsecurity, relforcerowsecurity, coalesce(array_to_string(reloptions, ', '), ''),"
        " quote_ident(pg_get_userbyid(relowner)), relowner = current_user::regrole"
        " FROM pg_class WHERE oid = %s::regclass",
        (table,),
    )
    [(secured, forced, options, owner, ours)] = found
    for grantee, *_ in await _all(connection, GRANTS, {"table": made.as_string(connection)}):
        await _run(connection, f"REVOKE ALL ON {{made}} FROM {_literal(grantee)}", made=made)  # default privileges
    for grantee, privilege, grantable, column in await _all(connection, GRANTS, {"table": table}):
        on = "" if column is None else f" ({_literal(column)})"
        option = " WITH GRANT OPTION" if grantable else ""
        await _run(connection, f"GRANT {privilege}{on} ON {{made}} TO {_literal(grantee)}{option}", made=made)
    for name, permissive, command, roles, using, check in await _all(connection, POLICIES, (table,)):
        kind = "PERMISSIVE" if permissive else "RESTRICTIVE"
        text = f"CREATE POLICY {_literal(name)} ON {{made}} AS {kind} FOR {command} TO {_literal(roles)}"
        text += "" if using is None else f" USING ({_literal(using)})"
        text += "" if check is None else f" WITH CHECK ({_literal(check)})"
        await _run(connection, text, made=made)
    for (definition,) in await _all(
        connection,
        "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal",
        (table,),
    ):
        await _run(connection, re.sub(r" ON \S+ ", " ON {made} ", _literal(definition), count=1), made=made)
    if options:
        await _run(connection, f"ALTER TABLE {{made}} SET ({options})", made=made)
    if secured:
        await _run(connection, "ALTER TABLE {made} ENABLE ROW LEVEL SECURITY", made=made)
    if forced:
        await _run(connection, "ALTER TABLE {made} FORCE ROW LEVEL SECURITY", made=made)
    if not ours:
        await _run(connection, f"ALTER TABLE {{made}} OWNER TO {_literal(owner)}", made=made)


async def require_free(connection: psycopg.AsyncConnection, view: str, table: str) -> None:
    """
    Raises:
        TableInUse: another view than this one reads the table.
    """
    others = [name for (name,) in await _all(connection, DEPENDENTS, (table, view))]
    if others:
        raise TableInUse(f"{', '.join(others)} reads {table} itself, not the view {view}")


async def take_place(connection: psycopg.AsyncConnection, places: Sequence[tuple[str, str]]) -> None:
    """Put the tables that `create` made in the place of others; each of `places` is a view and the table behind it.
    Within a transaction.

    Raises:
        psycopg.errors.LockNotAvailable: somebody has been reading for longer than lock_timeout.
    """
    for view, _ in places:
        # Readers lock the view first and the table then; so do we, or each could wait for the other.
        await _run(connection, "LOCK TABLE {view} IN ACCESS EXCLUSIVE MODE", view=sql.Identifier(view))
    for view, table in places:
        [(definition, options)] = await _all(
            connection,
            "SELECT pg_get_viewdef(oid), coalesce(' WITH (' || array_to_string(reloptions, ', ') || ')', '')"
            " FROM pg_class WHERE oid = %s::regclass",
            (view,),
        )
        behind = re.sub(rf"\b{re.escape(view)}_v\d+\b", table + SUFFIX, _literal(definition))
        await _run(connection, f"CREATE OR REPLACE VIEW {{view}}{options} AS {behind}", view=sql.Identifier(view))
    await connection.execute("SELECT analytics_source.follow()")  # the analysts' views, which end on the same tables
    for _, table in places:
        await _drop_and_rename(connection, table)


async def _drop_and_rename(connection: psycopg.AsyncConnection, table: str) -> None:
    indexes = [name for name, *_ in await _all(connection, INDEXES, (table,))]
    made = table + SUFFIX
    names = {"made": sql.Identifier(made), "table": sql.Identifier(table)}
    await _run(connection, "DROP TABLE {table}", **names)
    await _run(connection, "ALTER TABLE {made} RENAME TO {table}", **names)
    for number, name in enumerate(indexes):
        before, after = sql.Identifier(f"{made}_{number}"), sql.Identifier(name)
        await _run(connection, "ALTER INDEX {before} RENAME TO {after}", before=before, after=after)


async def discard(connection: psycopg.AsyncConnection, table: str) -> None:
    """Drop what `create` made, if it is there still."""
    await _run(connection, "DROP TABLE IF EXISTS {made}", made=sql.Identifier(table + SUFFIX))


def _literal(text: str) -> str:
    """The catalogue's own text within a template."""
    return text.replace("{", "{{").replace("}", "}}")


async def _run(connection: psycopg.AsyncConnection, text: str, **names: sql.Identifier) -> None:
    # The catalogue's own text, quoted by the server itself: not of anybody's input.
    template: Any = text
    await connection.execute(sql.SQL(template).format(**names))


async def _all(connection: psycopg.AsyncConnection, query: LiteralString, values: Any) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query, values)).fetchall()


async def delete(connection: psycopg.AsyncConnection, table: str, key: str, value: UUID) -> None:
    """The rows of one key."""
    query = sql.SQL("DELETE FROM {} WHERE {} = %s").format(sql.Identifier(table), sql.Identifier(key))
    await connection.execute(query, (value,))


async def count(connection: psycopg.AsyncConnection, table: str) -> int:
    """How many rows there are, counted."""
    cursor = await connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table)))
    row = await cursor.fetchone()
    return int(row[0]) if row else 0
