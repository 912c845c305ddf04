"""What is read again by whoever was late, or is refused by what he remembers: the streams that moved, and no other."""

from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest
from tests.commands.test_transact import NOON, Attach, caller, created

from sightline.commands import transact
from sightline.commands.sessions import CloseSession, CreateSession, close_session, create_session
from sightline.commands.transact import Commands
from sightline.commands.transaction import Loaded, Transaction
from sightline.domain import sessions
from sightline.domain.kernel import InvalidState
from sightline.domain.sessions import AssetAttached, Session


def counted(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> list[UUID]:
    """The streams whose tails are read from here on."""
    stream, read = commands.store.reader.stream, list[UUID]()

    async def noting(stream_id: UUID, **named: Any) -> Any:
        read.append(stream_id)
        return await stream(stream_id, **named)

    monkeypatch.setattr(commands.store.reader, "stream", noting)
    return read


async def touch(tx: Transaction, session_ids: list[UUID]) -> Loaded[Session]:
    """Rests on all of these, and on as many that are new; says something of the first."""
    first, *others = [await tx.load(sessions.AGGREGATE, session_id) for session_id in session_ids]
    for one in others:
        await tx.create(sessions.AGGREGATE, uuid5(one.stream_id, "new"))
        sessions.require_active(one.state, NOON)
    return tx.say(first, [AssetAttached(at=NOON, asset_id=uuid4())])


@pytest.mark.parametrize("asks", [True, False])
async def test_whoever_was_late_reads_only_what_moved(
    commands: Commands, elsewhere: Commands, monkeypatch: pytest.MonkeyPatch, asks: bool
) -> None:
    """The control doubts whatever it rested on, and reads all of it again, one after the other."""
    ids = [await created(commands) for _ in range(20)]
    await elsewhere.execute(Attach(), ids[7], caller())
    taken = uuid5(ids[9], "new")
    await elsewhere.execute(create_session, CreateSession(session_id=taken, user_id=None, duration_s=60), caller())
    if not asks:
        monkeypatch.setattr(transact, "_moved", everything)
    read = counted(commands, monkeypatch)
    receipt = await commands.execute(touch, ids, caller())
    assert receipt.version == 2
    if asks:
        assert read == [ids[7], taken]
    else:
        assert len(read) == 39


async def everything(_: Commands, tx: Transaction) -> set[UUID]:
    return {stream_id for stream_id, _ in tx.seen}


@pytest.mark.parametrize("closed_there", [False, True])
async def test_whoever_is_refused_reads_only_what_moved(
    commands: Commands, elsewhere: Commands, monkeypatch: pytest.MonkeyPatch, closed_there: bool
) -> None:
    """Where nothing did, the refusal stands without another look."""
    ids = [await created(commands) for _ in range(20)]
    await (elsewhere if closed_there else commands).execute(close_session, CloseSession(session_id=ids[5]), caller())
    if closed_there:
        await commands.execute(Attach(), ids[3], caller())  # knows nothing of it
    read = counted(commands, monkeypatch)
    with pytest.raises(InvalidState):
        await commands.execute(touch, ids, caller())
    assert read == ([ids[5]] if closed_there else [])


async def test_more_streams_than_one_question_holds(
    commands: Commands, elsewhere: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transact, "QUESTIONS_MAX", 3)
    ids = [await created(commands) for _ in range(7)]
    for moved in (ids[0], ids[6]):
        await elsewhere.execute(Attach(), moved, caller())
    read = counted(commands, monkeypatch)
    assert (await commands.execute(touch, ids, caller())).version == 3
    assert read == [ids[0], ids[6]]
