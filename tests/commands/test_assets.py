"""Assets against the real log: announced, brought and judged in two steps or in one, and deleted."""

import pytest
from tests.conftest_service import EMPTY_SHA256, Service

from sightline.adapters.ids import uuid7
from sightline.commands import assets, sessions
from sightline.domain.assets import NotClean, Scan
from sightline.domain.kernel import NotFound


def request(asset_id: object) -> assets.RequestUpload:
    return assets.RequestUpload(
        asset_id=asset_id,  # type: ignore[arg-type]  # a UUID
        filename="../../a.png",
        content_type="image/png",
        size_bytes=10,
        purpose="image",
    )


def brought(asset_id: object, code: str | None = None) -> assets.CompleteUpload:
    return assets.CompleteUpload(
        asset_id=asset_id,  # type: ignore[arg-type]  # a UUID
        sha256=EMPTY_SHA256,
        size_bytes=10,
        content_type="image/png",
        scan=Scan(engine="test", code=code),
    )


@pytest.mark.parametrize(("code", "status"), [(None, "clean"), ("infected", "quarantined")])
async def test_an_upload_in_two_steps(bare_service: Service, code: str | None, status: str) -> None:
    asset_id = uuid7()
    requested = await bare_service.run(assets.request_upload, request(asset_id))
    assert (requested.state.status, requested.state.object_key) == ("requested", f"assets/{asset_id}")
    receipt = await bare_service.run(assets.complete_upload, brought(asset_id, code))
    assert (receipt.state.status, len(receipt.events)) == (status, 2)
    again = await bare_service.run(assets.complete_upload, brought(asset_id, code))
    assert (again.version, len(again.events)) == (receipt.version, 0), "a retry says nothing new"


async def test_what_was_never_announced_cannot_be_brought(bare_service: Service) -> None:
    with pytest.raises(NotFound):
        await bare_service.run(assets.complete_upload, brought(uuid7()))
    assert (await bare_service.services.store.reader.head()).position == 0, "nothing half-written"


async def test_an_upload_in_one_request_is_one_append(bare_service: Service) -> None:
    asset_id = await bare_service.asset(uuid7())
    events = await bare_service.events(asset_id)
    assert [one.topic for one in events] == ["asset.upload_requested", "asset.uploaded", "asset.scanned"]
    assert len({one.recorded_at for one in events}) == 1


async def test_a_deleted_asset_feeds_nothing(bare_service: Service) -> None:
    session_id, asset_id = await bare_service.session(), await bare_service.asset(uuid7())
    quarantined = await bare_service.asset(uuid7(), code="infected")
    attach = sessions.AttachAsset(session_id=session_id, asset_id=asset_id)
    await bare_service.run(sessions.attach_asset, attach)
    await bare_service.run(assets.delete_asset, assets.DeleteAsset(asset_id=asset_id))
    with pytest.raises(NotFound):
        await bare_service.run(sessions.attach_asset, attach)
    with pytest.raises(NotClean):
        await bare_service.run(sessions.attach_asset, sessions.AttachAsset(session_id=session_id, asset_id=quarantined))
