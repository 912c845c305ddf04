"""Whose rows an analyst sees: those of its owners, whatever it SETs, asks, or the read models become."""

from collections.abc import Iterator

import psycopg
import pytest
from tests.conftest_analysts import DENIED, AnalystDatabase, as_analyst, rows

from sightline.adapters.event_store.codec import EventMapper
from sightline.domain.events import EVENTS
from sightline.projections.rebuild import rebuild


@pytest.fixture
def session(analyst_dsn: str) -> Iterator[psycopg.Connection]:
    with as_analyst(analyst_dsn) as connection:
        yield connection


@pytest.fixture
def ada(analyst_database: AnalystDatabase) -> Iterator[psycopg.Connection]:
    with analyst_database.analyst("ada") as dsn, as_analyst(dsn) as connection:
        yield connection


def test_a_restricted_analyst_sees_the_rows_of_its_owners(ada: psycopg.Connection, session: psycopg.Connection) -> None:
    for view in ("jobs", "jobs_history", "models", "models_history"):
        assert {owner for (owner,) in rows(ada, f"SELECT owner FROM analytics.{view}")} == {"ada"}
        assert len({owner for (owner,) in rows(session, f"SELECT owner FROM analytics.{view}")}) == 2
    streams = {one for (one,) in rows(ada, "SELECT DISTINCT stream_id FROM analytics.events")}
    owned = rows(
        session,
        "SELECT job_id FROM analytics.jobs WHERE owner = 'ada' UNION ALL SELECT session_id FROM analytics.sessions"
        " UNION ALL SELECT model_id FROM analytics.models WHERE owner = 'ada'",
    )
    assert streams >= {one for (one,) in owned}
    others = rows(session, "SELECT job_id FROM analytics.jobs WHERE owner <> 'ada'")
    assert streams.isdisjoint({one for (one,) in others})
    assert rows(ada, "SELECT count(*) FROM analytics.lineage_edges") > [(0,)]
    assert rows(ada, "SELECT sum(count) FROM analytics.jobs_by_state_per_day") == [(2,)]
    assert rows(ada, "SELECT count(*) FROM analytics.jobs_as_of(9999)") == [(2,)]
    assert rows(ada, "SELECT analytics.position_at(now())") == rows(session, "SELECT analytics.position_at(now())")


def test_row_security_cannot_be_set_away(ada: psycopg.Connection) -> None:
    ada.execute("SET row_security = off")
    with pytest.raises(DENIED, match="row-level security"):
        ada.execute("SELECT FROM analytics.jobs")
    for statement in ("SET ROLE sightline_analyst", "SET SESSION AUTHORIZATION sightline_analyst"):
        with pytest.raises(DENIED):
            ada.execute(statement.encode())


@pytest.mark.parametrize("leak", ["owner::int", "owner::uuid", "('[' || owner)::json ->> 0"])
def test_conditions_see_no_hidden_row(ada: psycopg.Connection, leak: str) -> None:
    """An error message would carry the value of the row it failed on: that of the first that may be seen."""
    for relation in ("jobs", "jobs_history", "jobs_as_of(9999)"):
        with pytest.raises(psycopg.DataError) as caught:
            ada.execute(f"SELECT FROM analytics.{relation} WHERE {leak} IS NOT NULL AND kind = 'noop'".encode())
        assert "ada" in str(caught.value)
    with pytest.raises(psycopg.DataError) as caught:
        ada.execute(b"SELECT FROM analytics.events WHERE actor::int > 0 AND type = 'job.submitted'")
    assert "bob" not in str(caught.value)


@pytest.mark.parametrize("barrier", [True, False])
def test_a_cheap_condition_is_asked_of_seen_rows_alone(
    analyst_database: AnalystDatabase, ada: psycopg.Connection, barrier: bool
) -> None:
    """And the control: without the barrier of the view the planner asks the cheaper condition first."""
    told: list[str] = []
    ada.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
    with analyst_database.log.connect(superuser=True) as superuser:
        superuser.execute(f"ALTER VIEW analytics.events SET (security_barrier = {barrier})".encode())
        superuser.execute(
            "CREATE FUNCTION tell(uuid) RETURNS boolean LANGUAGE plpgsql COST 0.0000001"
            " AS 'BEGIN RAISE NOTICE ''%'', $1; RETURN true; END'"
        )
        try:
            ada.execute("SELECT FROM analytics.events WHERE public.tell(stream_id)")
        finally:
            superuser.execute("DROP FUNCTION tell")
            superuser.execute("ALTER VIEW analytics.events SET (security_barrier = true)")
    assert str(analyst_database.facts.done) in told
    assert (str(analyst_database.facts.waiting) in told) is not barrier


def test_without_row_security_the_checks_are_red(analyst_database: AnalystDatabase) -> None:
    """The control: what a plain view on an unprotected table shows."""
    with analyst_database.service() as service, analyst_database.analyst("ada") as dsn:
        service.execute("ALTER TABLE jobs_v1 DISABLE ROW LEVEL SECURITY")
        try:
            with as_analyst(dsn) as session:
                assert rows(session, "SELECT DISTINCT owner FROM analytics.jobs ORDER BY 1") == [("ada",), ("bob",)]
        finally:
            service.execute("ALTER TABLE jobs_v1 ENABLE ROW LEVEL SECURITY")


# A read model that moves to another table


def test_a_new_table_is_followed_and_protected_or_refused(analyst_database: AnalystDatabase) -> None:
    with analyst_database.service() as service, analyst_database.analyst("ada") as dsn, as_analyst(dsn) as session:
        service.execute("CREATE TABLE jobs_v9 (LIKE jobs_v1 INCLUDING ALL)")
        service.execute("INSERT INTO jobs_v9 SELECT * FROM jobs_v1")
        (view,) = rows(service, "SELECT pg_get_viewdef('jobs')")
        try:
            service.execute(f"CREATE OR REPLACE VIEW jobs AS {view[0].replace('jobs_v1', 'jobs_v9')}".encode())
            assert rows(service, "SELECT * FROM analytics_source.follow()") == [("jobs",)]
            assert rows(service, "SELECT * FROM analytics_source.follow()") == []
            service.execute("UPDATE jobs_v9 SET priority = 1")
            assert rows(session, "SELECT DISTINCT owner, priority FROM analytics.jobs") == [("ada", 1)]
            with pytest.raises(DENIED):
                session.execute("SELECT FROM public.jobs_v9")
        finally:
            service.execute(f"CREATE OR REPLACE VIEW jobs AS {view[0]}".encode())
            service.execute("SELECT analytics_source.follow()")
            service.execute("DROP TABLE jobs_v9")


async def test_a_rebuilt_model_is_as_protected_as_before(
    analyst_database: AnalystDatabase, ada: psycopg.Connection
) -> None:
    query = "SELECT owner, count(*) FROM analytics.{} GROUP BY 1"
    before = [rows(ada, query.format(view)) for view in ("jobs", "jobs_history", "models")]
    for name in ("jobs", "models", "model_slots", "sessions", "lineage_edges"):
        await rebuild(analyst_database.log.dsn, name, EventMapper(EVENTS))
    assert [rows(ada, query.format(view)) for view in ("jobs", "jobs_history", "models")] == before
    with pytest.raises(DENIED):
        ada.execute("SELECT FROM public.jobs_v1")
    ada.execute("SET row_security = off")
    for view in ("jobs", "jobs_history", "lineage_edges", "model_slots"):
        with pytest.raises(DENIED, match="row-level security"):
            ada.execute(f"SELECT FROM analytics.{view}".encode())
