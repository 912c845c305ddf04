"""The SQL function alone, one connection: what is appended, what comes back as a row, and under which conditions."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from tests.conftest_log import LogDatabase, assert_whole, command, log_rows, register_arrays

from sightline.adapters import postgres
from sightline.adapters.event_store import wire
from sightline.adapters.event_store.wire import Append, Guard

A, B, C = uuid4(), uuid4(), uuid4()


class Log:
    """One connection, and the batch function on it."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        postgres.adapt(connection)
        register_arrays(connection)
        self.epoch = self.one("SELECT epoch FROM log_head")

    def one(self, query: str) -> Any:
        row = self.connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def call(self, *commands: Append, epoch: UUID | None = None) -> dict[int, tuple[str, int | None, bytes | None]]:
        """Outcome, position and result by the number of the command; 0 is the batch."""
        parameters = wire.parameters(epoch or self.epoch, [wire.render(one) for one in commands])
        rows = self.connection.execute(wire.STATEMENT, parameters).fetchall()
        assert len({n for n, *_ in rows}) == len(rows)
        return {n: (outcome, position, result) for n, outcome, position, result, _ in rows}

    def guard(self, key: str) -> int:
        return int(
            self.one(f"SELECT coalesce((SELECT value FROM guards WHERE key = '{key}' ORDER BY move DESC LIMIT 1), 0)")
        )


@pytest.fixture
def log(log_database: LogDatabase) -> Iterator[Log]:
    with log_database.connect() as connection:
        yield Log(connection)


def losers(rows: dict[int, tuple[str, int | None, bytes | None]]) -> dict[int, str]:
    return {n: outcome for n, (outcome, _, _) in rows.items() if n}


# Expectations


def test_positions_follow_in_the_order_of_the_batch(log: Log, log_database: LogDatabase) -> None:
    assert log.call(command((A, 0), (B, 0), events_each=2), command((C, 0))) == {0: ("appended", 0, None)}
    assert log.call(command((C, 1), events_each=3)) == {0: ("appended", 5, None)}
    assert log_rows(log_database) == [
        (1, A, 1),
        (2, A, 2),
        (3, B, 1),
        (4, B, 2),
        (5, C, 1),
        (6, C, 2),
        (7, C, 3),
        (8, C, 4),
    ]


@pytest.mark.parametrize("version", [0, 1, 3, 2**40])
def test_a_version_that_is_not_the_streams_is_stale(log: Log, log_database: LogDatabase, version: int) -> None:
    log.call(command((A, 0), events_each=2))
    assert losers(log.call(command((A, version)), command((B, 0)))) == {1: "stale"}
    assert losers(log.call(command((C, 0), looks=[(A, version)]))) == {1: "stale"}
    assert log_rows(log_database) == [(1, A, 1), (2, A, 2), (3, B, 1)]


def test_a_stream_that_is_not_there_is_at_version_0(log: Log) -> None:
    assert losers(log.call(command((A, 1)))) == {1: "stale"}
    assert losers(log.call(command((B, 0), looks=[(C, 1)]))) == {1: "stale"}
    assert losers(log.call(command((A, 0), looks=[(B, 0), (C, 0)]))) == {}


def test_one_stale_stream_of_several_refuses_the_whole_command(log: Log, log_database: LogDatabase) -> None:
    log.call(command((A, 0)))
    assert losers(log.call(command((B, 0), (A, 0), (C, 0)))) == {1: "stale"}
    assert log_rows(log_database) == [(1, A, 1)]


def test_an_earlier_neighbour_writes_what_a_later_one_looks_at(log: Log, log_database: LogDatabase) -> None:
    rows = log.call(command((A, 0)), command((B, 0), looks=[(A, 0)]))
    assert losers(rows) == {2: "stale"}
    assert log_rows(log_database) == [(1, A, 1)]


def test_even_if_that_neighbour_loses(log: Log) -> None:
    rows = log.call(command((A, 5)), command((B, 0), looks=[(A, 0)]))
    assert losers(rows) == {1: "stale", 2: "stale"}


def test_a_later_neighbour_may_write_what_an_earlier_one_looked_at(log: Log) -> None:
    assert losers(log.call(command((B, 0), looks=[(A, 0)]), command((A, 0)))) == {}


def test_two_who_look_at_each_others_stream_are_not_both_accepted(log: Log) -> None:
    rows = log.call(command((A, 0), looks=[(B, 0)]), command((B, 0), looks=[(A, 0)]))
    assert losers(rows) == {2: "stale"}


def test_the_same_stream_twice_fails_the_whole_batch(log: Log, log_database: LogDatabase) -> None:
    with pytest.raises(psycopg.errors.UniqueViolation):
        log.call(command((B, 0)), command((A, 0)), command((A, 0)))
    assert log_rows(log_database) == []
    assert log.one("SELECT count(*) FROM receipts") == 0


# Receipts


def test_a_repeat_gets_the_first_outcome_although_it_is_stale_by_now(log: Log, log_database: LogDatabase) -> None:
    first = command((A, 0), events_each=2, result=b'{"kept": "exactly  so"}')
    log.call(command((C, 0)), first)
    log.call(command((A, 2)))
    rows = log.call(command((B, 0)), first)
    assert rows == {0: ("appended", 4, None), 2: ("repeat", 3, b'{"kept": "exactly  so"}')}
    assert [position for position, _, _ in log_rows(log_database)] == [1, 2, 3, 4, 5]


def test_a_repeat_moves_no_guard(log: Log) -> None:
    first = command((A, 0), guards=[Guard("k", 1, 1)])
    log.call(first)
    assert losers(log.call(first)) == {1: "repeat"}
    assert log.guard("k") == 1


def test_a_command_without_events_leaves_a_receipt(log: Log, log_database: LogDatabase) -> None:
    log.call(command((A, 0)))
    silent = command(looks=[(A, 1)])
    assert log.call(silent) == {0: ("appended", 1, None)}
    log.call(command((A, 1)))
    assert log.call(silent) == {0: ("appended", 2, None), 1: ("repeat", 1, None)}
    assert len(log_rows(log_database)) == 2


def test_receipts_of_a_batch_with_losers(log: Log) -> None:
    log.call(command((C, 0), events_each=4))
    commands = [
        command((A, 0), events_each=2),
        command((C, 1)),  # stale
        command(),
        command((B, 0), guards=[Guard("k", 1, 0)]),  # blocked
        command((uuid4(), 0), events_each=3),
    ]
    assert losers(log.call(*commands)) == {2: "stale", 4: "guard"}
    found: dict[UUID, int] = dict(
        log.connection.execute(
            "SELECT command_id, position FROM receipts WHERE command_id = ANY (%s)",
            ([one.command_id for one in commands],),
        ).fetchall()
    )
    assert found == {commands[0].command_id: 6, commands[2].command_id: 6, commands[4].command_id: 9}


def test_the_same_command_id_twice_fails_the_whole_batch(log: Log, log_database: LogDatabase) -> None:
    twin = uuid4()
    with pytest.raises(psycopg.errors.UniqueViolation):
        log.call(command((A, 0), command_id=twin), command((B, 0), command_id=twin))
    assert log_rows(log_database) == []


def test_a_batch_has_one_moment(log: Log) -> None:
    log.call(command((A, 0), events_each=2), command((B, 0)))
    moments = "SELECT recorded_at FROM events UNION SELECT recorded_at FROM receipts"
    assert log.one(f"SELECT count(*) FROM ({moments}) AS both_tables") == 1


# Guards


def up(key: str = "k", limit: int | None = 3, delta: int = 1) -> Guard:
    return Guard(key, delta, limit)


def test_a_limit_is_exact(log: Log) -> None:
    rows = log.call(*(command((uuid4(), 0), guards=[up()]) for _ in range(5)))
    assert rows == {0: ("appended", 0, None), 4: ("guard", None, b'"k"'), 5: ("guard", None, b'"k"')}
    assert log.guard("k") == 3
    assert losers(log.call(command((A, 0), guards=[up()]))) == {1: "guard"}
    assert log.guard("k") == 3


def test_two_guards_move_together_or_not_at_all(log: Log) -> None:
    rows = log.call(command((A, 0), guards=[up("k", 3), up("full", 0)]), command((B, 0), guards=[up("k", 1)]))
    assert rows[1] == ("guard", None, b'"full"')
    assert losers(rows) == {1: "guard"}
    assert (log.guard("k"), log.guard("full")) == (1, 0)


def test_one_key_twice_in_a_command_counts_twice(log: Log) -> None:
    assert losers(log.call(command((A, 0), guards=[up(limit=1), up(limit=1)]))) == {1: "guard"}
    assert losers(log.call(command((A, 0), guards=[up(limit=2), up(limit=2)]))) == {}
    assert log.guard("k") == 2


def test_one_is_blocked_and_others_fit(log: Log, log_database: LogDatabase) -> None:
    rows = log.call(
        command((A, 0), guards=[up(delta=2)]),
        command((B, 0), guards=[up(delta=2)]),  # 4 of 3
        command((C, 0), guards=[up(delta=1)]),
    )
    assert losers(rows) == {2: "guard"}
    assert log.guard("k") == 3
    assert [stream for _, stream, _ in log_rows(log_database)] == [A, C]


def test_what_an_earlier_command_gives_back_a_later_one_may_take(log: Log) -> None:
    log.call(command((A, 0), guards=[up(delta=3)]))
    back, take = command((B, 0), guards=[up(limit=None, delta=-1)]), command((C, 0), guards=[up()])
    assert losers(log.call(take, back)) == {1: "guard"}
    assert log.guard("k") == 2
    assert losers(log.call(command((A, 1), guards=[up()]))) == {}
    back, take = command((B, 1), guards=[up(limit=None, delta=-1)]), command((C, 0), guards=[up()])
    assert losers(log.call(back, take)) == {}
    assert log.guard("k") == 3


def test_a_downward_move_is_never_blocked_and_stops_at_zero(log: Log) -> None:
    log.call(command((A, 0), guards=[up(limit=None, delta=5)]))
    assert losers(log.call(command((B, 0), guards=[up(limit=1, delta=-1)]))) == {}
    assert log.guard("k") == 4
    log.call(command((C, 0), guards=[up(limit=None, delta=-9)]))
    assert log.guard("k") == 0


def test_a_stale_command_moves_no_guard(log: Log) -> None:
    log.call(command((A, 0)))
    assert losers(log.call(command((A, 0), guards=[up()]), command((B, 0), guards=[up()]))) == {1: "stale"}
    assert log.guard("k") == 1


def test_old_moves_are_pruned_and_the_value_stays(log: Log) -> None:
    for _ in range(10):
        log.call(command((uuid4(), 0), guards=[up(limit=None), up("other", None)]))
    assert log.one("SELECT prune_guards(3)") == 14
    assert log.one("SELECT prune_guards(0)") == 4  # the newest is never among them
    assert (log.guard("k"), log.guard("other")) == (10, 10)
    rows = log.call(command((A, 0), guards=[up(limit=11)]), command((B, 0), guards=[up(limit=11)]))
    assert losers(rows) == {2: "guard"}


# Under which conditions


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_another_isolation_level_is_refused(log: Log, level: str) -> None:
    log.connection.execute(f"SET default_transaction_isolation = '{level}'".encode())
    with pytest.raises(psycopg.errors.InvalidTransactionState, match="needs READ COMMITTED"):
        log.call(command((A, 0)))


def test_another_epoch_is_refused(log: Log, log_database: LogDatabase) -> None:
    with pytest.raises(psycopg.Error, match="the log is at epoch") as caught:
        log.call(command((A, 0)), epoch=uuid4())
    assert caught.value.sqlstate == "SL001"
    assert log_rows(log_database) == []


def test_the_head_row_is_locked_and_never_updated(log: Log) -> None:
    before = log.one("SELECT ctid::text FROM log_head")
    for version in range(20):
        log.call(command((A, version)))
    assert log.one("SELECT ctid::text FROM log_head") == before


def test_a_whole_log_stays_whole_through_every_kind_of_loser(log: Log, log_database: LogDatabase) -> None:
    versions = dict.fromkeys((A, B, C), 0)
    for step in range(40):
        batch = [
            command((A, versions[A]), guards=[up(limit=20)]),
            command((B, versions[B] - step % 2), looks=[(C, versions[C])]),
            command((C, versions[C]), looks=[(A, versions[A])]),
        ]
        lost = losers(log.call(*batch))
        for n, stream in enumerate((A, B, C), 1):
            versions[stream] += n not in lost
        assert lost.get(3) == "stale"
    rows = log_rows(log_database)
    assert_whole(rows)
    assert versions == {A: 20, B: 20, C: 0}
    assert len(rows) == 40
