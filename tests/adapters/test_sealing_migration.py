"""The migration that seals: what a running installation has survives, and its keys are not dropped by a downgrade."""

from uuid import UUID

import pytest
from tests.adapters.event_store.test_append_only import run
from tests.conftest_log import LogDatabase

ROWS = (
    "INSERT INTO sessions_v1 SELECT id::uuid, 'local', user_id, 'active', now(), now() + interval '1 h', now(),"
    " ARRAY[id::uuid], 1, 1 FROM (VALUES"
    " ('00000000-0000-0000-0000-000000000001', 'ada \"quoted\" é'), ('00000000-0000-0000-0000-000000000002', NULL)"
    ") AS given (id, user_id)"
)
USERS = "SELECT session_id, user_id FROM sessions ORDER BY session_id"


def test_sessions_survive_and_plain_text_is_not_kept_beside_them(empty_database: LogDatabase) -> None:
    run(empty_database, "0004")
    with empty_database.connect() as connection:
        connection.execute(ROWS)
        before = connection.execute("SELECT * FROM sessions ORDER BY session_id").fetchall()
    run(empty_database, "0005")
    with empty_database.connect() as connection:
        after = connection.execute("SELECT * FROM sessions ORDER BY session_id").fetchall()
        assert [(*row[:2], *row[3:]) for row in after] == [(*row[:2], *row[3:]) for row in before]
        assert [row[2] for row in after] == [{"subject": None, "box": 'ada "quoted" é'}, None]
        assert connection.execute("SELECT to_regclass('sessions_v1')").fetchone() == (None,)
        connection.execute(
            "UPDATE sessions_v2 SET user_id = jsonb_build_object('subject', gen_random_uuid(), 'box', 'AAAA')"
            " WHERE user_id IS NULL"
        )
    run(empty_database, "0004", down=True)
    with empty_database.connect() as connection:
        assert connection.execute(USERS).fetchall() == [(UUID(int=1), 'ada "quoted" é'), (UUID(int=2), None)]


def test_a_downgrade_that_would_erase_everybody_is_refused(empty_database: LogDatabase) -> None:
    run(empty_database, "0005")
    with empty_database.connect() as connection:
        connection.execute("INSERT INTO subject_keys VALUES (gen_random_uuid(), sha256('a'), 'k', 'w', now())")
    with pytest.raises(RuntimeError, match="sealed"):
        run(empty_database, "0004", down=True)
    with empty_database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM subject_keys").fetchone() == (1,)
