"""A log that was restored is another log: whoever remembers the one before is told so, and nobody else may say it."""

from uuid import UUID, uuid4

import psycopg
import pytest
from tests.conftest_log import LogDatabase, command, log_rows

from sightline.adapters.event_store.store import EventStore
from sightline.adapters.event_store.writer import Appended, Stale


def renew(database: LogDatabase) -> UUID:
    with database.connect() as connection:
        (epoch,) = connection.execute("SELECT renew_epoch()").fetchone() or (None,)
    assert isinstance(epoch, UUID)
    return epoch


async def test_what_was_decided_before_is_decided_again(store: EventStore, log_database: LogDatabase) -> None:
    told: list[UUID] = []
    store.epochs.append(told.append)
    before, stream = store.writer.epoch, uuid4()
    assert isinstance(await store.append(command((stream, 0))), Appended)
    after = renew(log_database)
    assert after != before
    assert isinstance(await store.append(command((stream, 1)), epoch=before), Stale)
    assert told == [after]
    assert store.writer.epoch == after
    assert isinstance(await store.append(command((stream, 1))), Appended)
    assert len(log_rows(log_database)) == 2


async def test_a_read_tells_before_an_append_would(store: EventStore, log_database: LogDatabase) -> None:
    told: list[UUID] = []
    store.epochs.append(told.append)
    for read in (store.reader.head(), store.reader.receipt(uuid4())):
        after = renew(log_database)
        await read
        assert told[-1] == store.writer.epoch == after
    await store.reader.head()
    assert len(told) == 2, "each epoch is told once"


@pytest.mark.parametrize("question", ["SELECT renew_epoch()", "UPDATE log_head SET epoch = gen_random_uuid()"])
def test_a_stranger_may_not_renew_it(log_database: LogDatabase, question: str) -> None:
    with log_database.connect(superuser=True) as superuser:
        superuser.execute("CREATE ROLE passer_by")
        try:
            superuser.execute("SET ROLE passer_by")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                superuser.execute(question.encode())
        finally:
            superuser.execute("RESET ROLE")
            superuser.execute("DROP ROLE passer_by")
