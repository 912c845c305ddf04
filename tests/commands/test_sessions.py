"""Sessions against the real log: 45 minutes from creation, judged by the time of asking."""

from datetime import timedelta

import pytest
from tests.conftest_service import Service, by

from sightline.adapters.ids import uuid7
from sightline.commands import sessions
from sightline.domain.kernel import NotFound
from sightline.domain.sessions import DURATION_S_DEFAULT, SessionIsExpired
from sightline.workers import lifecycle


async def test_a_session_lasts_from_its_creation_and_does_not_slide(bare_service: Service) -> None:
    caller = by()
    create = sessions.CreateSession(session_id=uuid7(), user_id="u", duration_s=DURATION_S_DEFAULT)
    created = await bare_service.run(sessions.create_session, create, caller)
    assert created.state.expires_at == caller.now + timedelta(minutes=45)
    asset_id = await bare_service.asset(uuid7())
    attach = sessions.AttachAsset(session_id=created.stream_id, asset_id=asset_id)
    attached = await bare_service.run(sessions.attach_asset, attach, by(now=caller.now + timedelta(minutes=44)))
    assert attached.state.expires_at == created.state.expires_at


async def test_an_expired_session_refuses_writes_before_the_clock_said_so(bare_service: Service) -> None:
    session_id, asset_id = await bare_service.session(duration_s=60), await bare_service.asset(uuid7())
    late = by(now=lifecycle.now() + timedelta(seconds=60))
    with pytest.raises(SessionIsExpired) as refusal:
        await bare_service.run(
            sessions.attach_asset, sessions.AttachAsset(session_id=session_id, asset_id=asset_id), late
        )
    assert refusal.value.code == "session_expired"
    assert await bare_service.topics(session_id) == ["created"]


async def test_expiring_is_said_once_and_not_before_its_time(bare_service: Service) -> None:
    session_id = await bare_service.session(duration_s=60)
    expire = sessions.ExpireSession(session_id=session_id)
    await bare_service.run(sessions.expire_session, expire)
    assert await bare_service.topics(session_id) == ["created"]
    for _ in range(2):
        await bare_service.run(sessions.expire_session, expire, by(now=lifecycle.now() + timedelta(seconds=60)))
    assert await bare_service.topics(session_id) == ["created", "expired"]
    await bare_service.run(sessions.close_session, sessions.CloseSession(session_id=session_id))
    assert await bare_service.topics(session_id) == ["created", "expired", "closed"]


async def test_no_such_session(bare_service: Service) -> None:
    with pytest.raises(NotFound):
        await bare_service.run(sessions.close_session, sessions.CloseSession(session_id=uuid7()))
