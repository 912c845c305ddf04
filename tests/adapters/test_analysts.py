"""An analyst's session against everything that it might try: it reads the views, and that is all."""

import subprocess
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tests.conftest_analysts import DENIED, MODEL_NAME, PERSON, SECRET, AnalystDatabase, as_analyst, rows
from tests.conftest_log import LogDatabase

from sightline.adapters import analysts, postgres
from sightline.adapters.analysts import AnalystRefused
from sightline.adapters.embedded.binaries import psql_path

VIEWS = {
    "jobs",
    "jobs_history",
    "sessions",
    "sessions_history",
    "models",
    "models_history",
    "model_slots",
    "model_slots_history",
    "model_activations",
    "jobs_by_state_per_day",
    "job_durations_by_model_version",
    "lineage_edges",
    "events",
    "projections",
}


@pytest.fixture
def session(analyst_dsn: str) -> Iterator[psycopg.Connection]:
    """Of one who has already SET away whatever can be SET."""
    with as_analyst(analyst_dsn) as connection:
        for name, value in {
            "statement_timeout": "0",
            "idle_in_transaction_session_timeout": "0",
            "default_transaction_read_only": "off",
            "search_path": "pg_temp, public, pg_catalog",
            "application_name": "sightline",
        }.items():
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        yield connection


def test_every_view_can_be_read(session: psycopg.Connection) -> None:
    found = rows(session, "SELECT relname FROM pg_class WHERE relnamespace = 'analytics'::regnamespace")
    assert {name for (name,) in found} == VIEWS
    for view in VIEWS:
        assert rows(session, f"SELECT * FROM analytics.{view}"), view


# It cannot write


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE analytics.jobs SET owner = 'me'",
        "DELETE FROM analytics.events",
        "INSERT INTO analytics.projections (name) VALUES ('x')",
        "TRUNCATE public.jobs_v1",
        "INSERT INTO public.jobs_v1 SELECT * FROM public.jobs_v1",
        "SELECT FROM analytics.jobs FOR UPDATE",
        "BEGIN; LOCK TABLE analytics.jobs IN SHARE MODE",
        "CREATE TABLE public.mine ()",
        "CREATE TABLE analytics.mine ()",
        "CREATE SCHEMA mine",
        "CREATE TEMP TABLE mine ()",
        "CREATE TEMP VIEW mine AS SELECT 1",
        "CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE FUNCTION analytics.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE OR REPLACE VIEW analytics.jobs AS SELECT 1",
        "DROP VIEW analytics.jobs",
        "ALTER VIEW analytics.jobs SET (security_barrier = false)",
        "ALTER TABLE public.jobs_v1 DISABLE ROW LEVEL SECURITY",
        "CREATE ROLE mine",
        "GRANT sightline_analyst TO postgres",
        "COMMENT ON VIEW analytics.jobs IS 'mine'",
        "CREATE EXTENSION dblink",
        "CREATE PUBLICATION mine",
        "ALTER SYSTEM SET fsync = off",
        "CHECKPOINT",
        "REINDEX TABLE public.jobs_v1",
        "SELECT lo_create(0)",
        "SELECT lo_creat(-1)",
        "SELECT lo_from_bytea(0, 'mine')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT pg_logical_emit_message(false, 'mine', repeat('x', 1000))",
        "SELECT pg_create_restore_point('mine')",
        "SELECT pg_switch_wal()",
        "SELECT pg_replication_origin_create('mine')",
        "DO $$ BEGIN END $$",
        "COPY analytics.jobs FROM STDIN",
        "COPY (SELECT 1) TO '/tmp/mine'",
        "COPY (SELECT 1) TO PROGRAM 'cat'",
        "SET temp_file_limit = -1",
        "SET session_replication_role = replica",
        "SET log_statement = 'none'",
    ],
)
def test_it_cannot_write(session: psycopg.Connection, statement: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        session.execute(statement.encode())
    # An extension that the server does not have cannot be made by anybody.
    wanted = psycopg.errors.FeatureNotSupported if "EXTENSION" in statement else DENIED
    assert isinstance(caught.value, wanted), caught.value


def test_a_grant_and_a_vacuum_of_an_analysts_change_nothing(
    session: psycopg.Connection, analyst_database: AnalystDatabase
) -> None:
    """PostgreSQL answers both with a warning."""
    with analyst_database.service() as service:
        before = rights(service)
        warned: list[str] = []
        session.add_notice_handler(lambda notice: warned.append(notice.message_primary or ""))
        session.execute("VACUUM public.jobs_v1")
        session.execute("GRANT SELECT ON analytics.jobs TO PUBLIC")
        assert len(warned) == 2
        assert rights(service) == before


def rights(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    return rows(connection, "SELECT oid, relacl::text FROM pg_class WHERE relkind IN ('r', 'v') ORDER BY oid")


# It cannot read elsewhere


@pytest.mark.parametrize(
    "query",
    [
        *(f"SELECT FROM public.{name}" for name in ("jobs_v1", "jobs", "events", "receipts", "guards", "log_head")),
        *(f"SELECT FROM public.{name}" for name in ("subject_keys", "analysts", "worker_leases", "jobs_history_v1")),
        "SELECT FROM analytics_source.sessions",
        "SELECT analytics_source.follow()",
        "SELECT analytics_source.my_owners()",
        "SELECT pg_read_file('postgresql.conf')",
        "SELECT pg_ls_dir('.')",
        "SELECT FROM pg_authid",
        "SELECT FROM pg_largeobject",
        "SELECT FROM pg_statistic",
        "SELECT FROM pg_hba_file_rules",
        "SELECT append_batch" + str(("",) * 18).replace("''", "NULL"),
        "SELECT prune_guards(1)",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'sightline'",
    ],
)
def test_it_cannot_read_elsewhere(session: psycopg.Connection, analyst_database: AnalystDatabase, query: str) -> None:
    with analyst_database.service(), pytest.raises(DENIED):  # there is a session of the service to be ended
        session.execute(query.encode())


def test_what_it_may_use_is_only_what_is_documented(session: psycopg.Connection) -> None:
    """Asked of the catalogue, so that a right that some later migration gives to everybody is noticed."""
    tables = rows(
        session,
        "SELECT relnamespace::regnamespace::text || '.' || relname FROM pg_class"
        " WHERE relkind IN ('r', 'v', 'm', 'p', 'S', 'f') AND relnamespace::regnamespace::text !~ '^(pg_|information_)'"
        " AND (CASE WHEN relkind = 'S' THEN has_sequence_privilege(oid, 'SELECT, USAGE, UPDATE')"
        " ELSE has_any_column_privilege(oid, 'SELECT, INSERT, UPDATE, REFERENCES')"
        " OR has_table_privilege(oid, 'DELETE, TRUNCATE, TRIGGER') END)",
    )
    assert {name for (name,) in tables} == {f"analytics.{view}" for view in VIEWS}
    definers = rows(
        session,
        "SELECT proname FROM pg_proc WHERE prosecdef AND has_function_privilege(oid, 'EXECUTE')"
        " AND pronamespace <> 'pg_catalog'::regnamespace",
    )
    assert {name for (name,) in definers} == {"position_at", "sees_all", "is_known", "my_owners", "my_streams"}


def test_queries_of_others_are_hidden(session: psycopg.Connection, analyst_database: AnalystDatabase) -> None:
    with analyst_database.service() as service:
        service.execute("SELECT 'a secret of the service'")
        seen = rows(session, "SELECT query FROM pg_stat_activity WHERE usename = 'sightline'")
        assert {query for (query,) in seen} == {"<insufficient privilege>"}


def test_nothing_sealed_is_in_any_view(session: psycopg.Connection, analyst_database: AnalystDatabase) -> None:
    whole = "\n".join(str(rows(session, f"SELECT * FROM analytics.{view}")) for view in sorted(VIEWS))
    assert MODEL_NAME in whole
    for hidden in (PERSON, "subject", "user_id", "callback_url", SECRET):
        assert hidden not in whole, hidden
    box = analyst_database.service().execute(
        "SELECT data -> 'user_id' ->> 'box' FROM events WHERE topic LIKE 'session.created%'"
    )
    (sealed,) = box.fetchone() or ("",)
    box.connection.close()
    assert sealed
    assert sealed not in whole


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ('{"a": 1, "user_id": "plain"}', {"a": 1}),
        ('{"a": 1, "email": {"subject": "s", "box": "b"}}', {"a": 1}),
        ('{"a": 1, "people": [{"name": {"box": "b", "subject": null}}]}', {"a": 1}),
        ('{"a": {"subject": "physics"}}', {"a": {"subject": "physics"}}),
        ("{}", {}),
    ],
)
def test_what_is_sealed_is_known_by_its_shape(
    analyst_database: AnalystDatabase, data: str, shown: dict[str, object]
) -> None:
    """The view's own expression, on data of every kind that an event may bring."""
    with analyst_database.service() as service:
        (found,) = rows(service, "SELECT pg_get_viewdef('analytics.events')")
        expression = found[0][found[0].index("( SELECT COALESCE(jsonb_object_agg") : found[0].index(" AS data")]
        (one,) = rows(service, f"SELECT {expression} FROM (SELECT '{data}'::json AS data) AS e")
    assert one == (shown,)


# It cannot become somebody else


@pytest.mark.parametrize(
    "role", ["sightline", "sightline_analyst", "sightline_analytics", "sightline_writer", "postgres"]
)
def test_it_cannot_become_another_role(session: psycopg.Connection, role: str) -> None:
    for statement in (f"SET ROLE {role}", f"SET SESSION AUTHORIZATION {role}"):
        with pytest.raises(DENIED):
            session.execute(statement.encode())
    for statement in ("RESET ROLE", "RESET SESSION AUTHORIZATION", "RESET ALL", "DISCARD ALL"):
        session.execute(statement.encode())
    with pytest.raises(DENIED):
        session.execute("SELECT FROM public.jobs_v1")


def test_a_set_role_alone_would_have_been_a_way_out(analyst_database: AnalystDatabase) -> None:
    """The control for why an analyst logs in: RESET ROLE gives the service's rights back."""
    with analyst_database.analyst() as dsn, analyst_database.service() as service:
        name = psycopg.conninfo.conninfo_to_dict(dsn)["user"]
        service.execute(f"GRANT {name} TO CURRENT_USER WITH SET TRUE".encode())
        service.execute(f"SET ROLE {name}".encode())
        with pytest.raises(DENIED):
            service.execute("SELECT FROM public.jobs_v1")
        service.execute("RESET ROLE")
        service.execute("SELECT FROM public.jobs_v1")


def test_connections_are_few(analyst_dsn: str) -> None:
    refused = pytest.raises(psycopg.OperationalError, match="too many connections")
    with as_analyst(analyst_dsn), as_analyst(analyst_dsn), as_analyst(analyst_dsn), refused:
        psycopg.connect(analyst_dsn)


def test_the_servers_other_databases_are_closed(analyst_dsn: str) -> None:
    for name in ("postgres", "template1"):
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            psycopg.connect(make_conninfo(analyst_dsn, dbname=name))


def test_an_analyst_of_another_database_sees_nothing(analyst_dsn: str, log_database: LogDatabase) -> None:
    with log_database.connect() as service:
        service.execute("INSERT INTO lineage_edges_v1 VALUES (%s, %s, 'used', 'asset', 'job', 1, now())", [uuid4()] * 2)
        assert rows(service, "SELECT count(*) FROM analytics.lineage_edges") == [(1,)]
    dbname = psycopg.conninfo.conninfo_to_dict(log_database.dsn)["dbname"]
    with as_analyst(make_conninfo(analyst_dsn, dbname=str(dbname))) as session:
        assert rows(session, "SELECT * FROM analytics.lineage_edges") == []


# Making and dropping them


@pytest.mark.parametrize("name", ["", "sightline", "pg_x", "Ada", "a b", "a" * 64, "x; DROP TABLE jobs", "postgres"])
def test_names_that_cannot_be(analyst_database: AnalystDatabase, name: str) -> None:
    with analyst_database.service() as service, pytest.raises(AnalystRefused):
        analysts.create(service, name, connections_max=1, query_s_max=30)


def test_dropped_means_gone(analyst_database: AnalystDatabase) -> None:
    with analyst_database.service() as service:
        password = analysts.create(service, "leaver", connections_max=1, query_s_max=30, owners=["ada"])
        assert len(password) >= 24
        with pytest.raises(AnalystRefused, match="already"):
            analysts.create(service, "leaver", connections_max=1, query_s_max=30)
        with as_analyst(make_conninfo(analyst_database.log.dsn, user="leaver")) as session:
            session.execute("SET default_transaction_read_only = off")
            session.execute("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC")  # its own, and in the way
            analysts.drop(service, "leaver")
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
        assert "leaver" not in {one.role for one in analysts.listed(service)}
        for name in ("leaver", "sightline", "postgres"):
            with pytest.raises(AnalystRefused, match="no analyst"):
                analysts.drop(service, name)


def test_the_password_counts_where_the_server_asks_for_one(analyst_database: AnalystDatabase) -> None:
    """The embedded socket asks nobody, so what is stored is asked instead: a SCRAM verifier of it, never itself."""
    with analyst_database.service() as service, analyst_database.log.connect(superuser=True) as superuser:
        given = "correct horse battery"
        assert analysts.create(service, "keeper", password=given, connections_max=1, query_s_max=30) == given
        (stored,) = rows(superuser, "SELECT rolpassword FROM pg_authid WHERE rolname = 'keeper'")
        analysts.drop(service, "keeper")
        assert stored[0].startswith("SCRAM-SHA-256$")
        with pytest.raises(AnalystRefused, match="12"):
            analysts.create(service, "keeper", password="short", connections_max=1, query_s_max=30)


def test_psql_as_an_analyst(analyst_dsn: str) -> None:
    """The tool that analysts use, from its command line."""
    script = (
        "SET statement_timeout = 0; SELECT count(*) > 0 FROM analytics.jobs; RESET ROLE; SELECT FROM public.jobs_v1"
    )
    done = subprocess.run(
        [psql_path(), "-XAt", analyst_dsn, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["SET", "t", "RESET"]
    assert "permission denied for table jobs_v1" in done.stderr


def test_a_server_that_nobody_hardened_says_so(analyst_database: AnalystDatabase) -> None:
    """The control for hardening.sql: an analyst of an unhardened database loops, locks and leaves objects behind."""
    with analyst_database.log.connect(superuser=True) as superuser:
        superuser.execute("CREATE DATABASE unhardened TEMPLATE template0 OWNER sightline")
    dsn = make_conninfo(analyst_database.log.dsn, dbname="unhardened")
    try:
        with psycopg.connect(
            make_conninfo(analyst_database.log.superuser_dsn, dbname="unhardened"), autocommit=True
        ) as inside:
            inside.execute("CREATE EXTENSION vector")
            postgres.migrate(dsn)
            with psycopg.connect(dsn, autocommit=True) as service:
                assert not analysts.is_hardened(service)
                analysts.create(service, "loose", connections_max=1, query_s_max=30)
                tries = (
                    "SELECT lo_create(0)",
                    "DO $$ BEGIN END $$",
                    "SELECT pg_advisory_lock(1)",
                    "SELECT pg_notify('x', '')",
                )
                with as_analyst(make_conninfo(dsn, user="loose")) as session:
                    session.execute("SET default_transaction_read_only = off")
                    for statement in tries:
                        session.execute(statement.encode())
                    inside.execute(analysts.hardening(inside, "sightline"))
                    assert analysts.is_hardened(service)
                    for statement in tries:
                        with pytest.raises(DENIED):
                            session.execute(statement.encode())
                analysts.drop(service, "loose")
                assert rows(service, "SELECT count(*) FROM pg_largeobject_metadata") == [(0,)]
    finally:
        with analyst_database.log.connect(superuser=True) as superuser:
            superuser.execute("DROP DATABASE unhardened WITH (FORCE)")
