"""Commands on editing sessions."""

from uuid import UUID

from msgspec import Struct

from ..domain import assets, sessions
from ..domain.sessions import Session
from .transaction import Loaded, Transaction

USER_ID = "session.user_id"  # what the seal is bound to


class CreateSession(Struct, frozen=True, kw_only=True):
    session_id: UUID
    user_id: str | None
    duration_s: int


class AttachAsset(Struct, frozen=True, kw_only=True):
    session_id: UUID
    asset_id: UUID


class ExpireSession(Struct, frozen=True, kw_only=True):
    session_id: UUID


class CloseSession(Struct, frozen=True, kw_only=True):
    session_id: UUID


async def create_session(tx: Transaction, command: CreateSession) -> Loaded[Session]:
    session = await tx.create(sessions.AGGREGATE, command.session_id)
    user_id = None
    if command.user_id is not None:
        person = sessions.require_user_id(command.user_id)
        user_id = await tx.seal(USER_ID, person=person, text=person)
    events = sessions.create(
        session.state,
        owner=tx.caller.actor,
        user_id=user_id,
        duration_s=command.duration_s,
        now=tx.caller.now,
    )
    return tx.say(session, events)


async def attach_asset(tx: Transaction, command: AttachAsset) -> Loaded[Session]:
    session = await tx.load(sessions.AGGREGATE, command.session_id)
    assets.require_clean(await tx.look(assets.AGGREGATE, command.asset_id))
    return tx.say(session, sessions.attach_asset(session.state, asset_id=command.asset_id, now=tx.caller.now))


async def expire_session(tx: Transaction, command: ExpireSession) -> Loaded[Session]:
    session = await tx.load(sessions.AGGREGATE, command.session_id)
    return tx.say(session, sessions.expire(session.state, now=tx.caller.now))


async def close_session(tx: Transaction, command: CloseSession) -> Loaded[Session]:
    session = await tx.load(sessions.AGGREGATE, command.session_id)
    return tx.say(session, sessions.close(session.state, by=tx.caller.actor, now=tx.caller.now))
