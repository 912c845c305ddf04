"""The how-to's questions, asked in psql by an analyst of a database where the answers are known."""

import re
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest
from tests.conftest_analysts import DURATION_S, MODEL_NAME, AnalystDatabase, as_analyst
from tests.conftest_log import ROOT

from sightline.adapters.embedded.binaries import psql_path

QUESTIONS = re.findall(r"```sql\n(.*?)```", (ROOT / "docs/how-to/ask-the-data-in-sql.md").read_text(), re.DOTALL)


@pytest.fixture
def session(analyst_dsn: str) -> Iterator[psycopg.Connection]:
    with as_analyst(analyst_dsn) as connection:
        yield connection


def psql(dsn: str, query: str) -> list[list[str]]:
    done = subprocess.run(
        [psql_path(), "-XAt", "-F", "\t", dsn, "-c", query], capture_output=True, text=True, timeout=120, check=True
    )
    return [line.split("\t") for line in done.stdout.splitlines()]


def question(about: str) -> str:
    (one,) = [query for query in QUESTIONS if about in query]
    return str(one)


def test_jobs_by_state_per_day(analyst_dsn: str, session: psycopg.Connection) -> None:
    (day,) = session.execute("SELECT (created_at AT TIME ZONE 'UTC')::date::text FROM analytics.jobs").fetchone() or ()
    answer = psql(analyst_dsn, question("jobs_by_state_per_day"))
    assert answer == [[day, "completed", "1"], [day, "deleted", "1"], [day, "pending", "1"]]


def test_durations_by_model_version(analyst_dsn: str, analyst_database: AnalystDatabase) -> None:
    second = analyst_database.facts.models[1]
    answer = psql(analyst_dsn, question("job_durations_by_model_version"))
    assert answer == [[MODEL_NAME, str(second), "1", str(DURATION_S)]]


def test_which_model_was_active_when(
    analyst_dsn: str, session: psycopg.Connection, analyst_database: AnalystDatabase
) -> None:
    facts = analyst_database.facts
    times = [
        recorded_at
        for (recorded_at,) in session.execute(
            "SELECT recorded_at FROM analytics.events WHERE position = ANY (%s) ORDER BY position", (facts.activated,)
        )
    ]
    tick = timedelta(microseconds=1)
    expected = {times[0] - tick: [], times[0]: [0], times[1] - tick: [0], times[1]: [1], times[1] + 1e6 * tick: [1]}
    for moment, numbers in expected.items():
        query = question("model_activations").replace("2026-01-01 12:00:00Z", moment.isoformat())
        active = [row[2] for row in psql(analyst_dsn, query) if row[0] == facts.task]
        assert active == [str(facts.models[n]) for n in numbers]


def test_what_a_row_was_at_a_position(analyst_dsn: str, analyst_database: AnalystDatabase) -> None:
    facts = analyst_database.facts
    as_of = question("jobs_as_of").partition("\n\n")[0].replace("01980000-0000-7000-8000-000000000000", str(facts.done))

    def status_at(position: int) -> list[str]:
        return [row[1] for row in psql(analyst_dsn, as_of.replace("(42)", f"({position})"))]

    assert status_at(facts.done_at) == ["completed"]
    assert status_at(facts.done_at - 1) == ["processing"]
    assert status_at(facts.done_at - 2) == ["pending"]
    assert status_at(facts.done_at - 3) == []
    assert status_at(0) == []
    assert status_at(2**62) == ["completed"]


def test_as_of_a_time_is_as_of_its_position(session: psycopg.Connection, analyst_database: AnalystDatabase) -> None:
    facts = analyst_database.facts
    for position in (0, facts.activated[0], facts.done_at - 1, facts.done_at):
        query = (
            "SELECT status FROM analytics.jobs_as_of(analytics.position_at("
            "(SELECT recorded_at FROM analytics.events WHERE position = %s))) WHERE job_id = %s"
        )
        by_time = session.execute(query, (position, facts.done)).fetchall()
        by_position = "SELECT status FROM analytics.jobs_as_of(%s) WHERE job_id = %s"
        assert by_time == session.execute(by_position, (position, facts.done)).fetchall()


def test_now_is_the_last_state_of_each_history(session: psycopg.Connection) -> None:
    for noun, key in (
        ("jobs", "job_id"),
        ("sessions", "session_id"),
        ("models", "model_id"),
        ("model_slots", "slot_id"),
    ):
        columns = [
            name
            for (name,) in session.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0",
                (f"analytics.{noun}",),
            )
        ]
        listed = ", ".join(columns)
        now = session.execute(f"SELECT {listed} FROM analytics.{noun} ORDER BY {key}".encode()).fetchall()
        history = f"SELECT {listed} FROM analytics.{noun}_history WHERE upper_inf(valid_positions) ORDER BY {key}"
        assert now
        assert session.execute(history.encode()).fetchall() == now
        as_of = f"SELECT {listed} FROM analytics.{noun}_as_of(1000000) ORDER BY {key}"
        assert session.execute(as_of.encode()).fetchall() == now


def test_ranges_follow_one_another(session: psycopg.Connection) -> None:
    overlapping = session.execute(
        "SELECT count(*), count(*) FILTER (WHERE a.valid_positions && b.valid_positions)"
        " FROM analytics.jobs_history AS a JOIN analytics.jobs_history AS b"
        " ON a.job_id = b.job_id AND a.position < b.position"
    ).fetchone()
    assert overlapping is not None
    assert overlapping[0] > 0
    assert overlapping[1] == 0


def test_a_clock_that_was_set_back_is_no_error(analyst_database: AnalystDatabase, session: psycopg.Connection) -> None:
    """The time of a later state lies before that of an earlier one; a range of those is not one."""
    job_id = uuid4()
    with analyst_database.service() as service:
        for position, hours in ((900, 2), (901, 1), (902, 3)):
            service.execute(
                "INSERT INTO jobs_history_v1 SELECT %s, %s, timestamptz '2026-01-01Z' + %s * interval '1 hour', row"
                " FROM jobs_history_v1 LIMIT 1",
                (job_id, position, hours),
            )
        try:
            query = "SELECT isempty(valid_times) FROM analytics.jobs_history WHERE job_id = %s ORDER BY position"
            assert session.execute(query, (job_id,)).fetchall() == [(True,), (False,), (False,)]
            with pytest.raises(psycopg.DataError):  # the control
                service.execute("SELECT tstzrange(now(), now() - interval '1 hour')")
        finally:
            service.execute("DELETE FROM jobs_history_v1 WHERE job_id = %s", (job_id,))


def test_one_row_as_of_a_position_is_one_look_up(session: psycopg.Connection) -> None:
    plan = "\n".join(
        line
        for (line,) in session.execute(
            "EXPLAIN (COSTS OFF) SELECT * FROM analytics.jobs_as_of(analytics.position_at(now()))"
            " WHERE job_id = '01980000-0000-7000-8000-000000000000'"
        )
    )
    assert "Index Cond: (job_id = " in plan or "Recheck Cond: (job_id = " in plan, plan
    assert "position_at" not in plan.replace("InitPlan", "")  # asked for once, not once a row
