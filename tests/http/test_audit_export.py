"""The log as a file, over HTTP: whole, right, and refused in words where it cannot be."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio
from tests.http.door import Door

from sightline.adapters.notes import Signer
from sightline.http.audit_export import AT_ONCE_MAX, AuditExportController
from sightline.projections.bundle.verify import verify
from sightline.workers import notary

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signed(door: Door) -> AsyncIterator[Door]:
    """A door with a notary beside it."""
    stopping = asyncio.Event()
    signing = asyncio.create_task(notary.run(door.services.settings, stopping))
    yield door
    stopping.set()
    with suppress(asyncio.CancelledError):
        await signing


def public_key(door: Door) -> str:
    return Signer.load(door.services.settings.data_dir / "keys").public_key


async def test_what_was_acknowledged_is_in_the_bundle(signed: Door) -> None:
    for _ in range(3):
        made = await signed.client.post("/v1/sessions")
        answer = await signed.client.get("/v1/audit/export")
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/zip")
        report = verify(io.BytesIO(answer.content), public_key(signed))
        assert report.manifest.last >= int(made.headers["Event-Position"])
        assert report.manifest.last == int(answer.headers["Event-Position"])
        assert f"sightline-audit-1-{report.manifest.last}.zip" in answer.headers["Content-Disposition"]
        assert report.content.rows is not None
        assert report.unsigned == 0


async def test_a_part(signed: Door) -> None:
    await signed.client.post("/v1/sessions")
    await signed.client.get("/v1/audit/export")
    answer = await signed.client.get("/v1/audit/export", params={"from": 2, "to": 2})
    report = verify(io.BytesIO(answer.content), public_key(signed))
    assert report.manifest.first == 2
    assert report.content.rows is None


@pytest.mark.parametrize(
    ("query", "status"),
    [("from=0", 422), ("to=0", 422), ("from=x", 422), ("from=9&to=3", 422), ("to=99999999", 422), (f"to={2**63}", 422)],
)
async def test_ranges_that_are_none(signed: Door, query: str, status: int) -> None:
    answer = await signed.client.get(f"/v1/audit/export?{query}")
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")


async def test_a_few_at_once(signed: Door) -> None:
    await signed.client.post("/v1/sessions")
    under_way = AuditExportController.under_way
    answers = await asyncio.gather(*(signed.client.get("/v1/audit/export") for _ in range(AT_ONCE_MAX + 3)))
    statuses = sorted(answer.status_code for answer in answers)
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= AT_ONCE_MAX
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all((one.json()["code"], one.headers["Retry-After"]) == ("too_many_exports", "10") for one in refused)
    assert not under_way, "whatever became of them, their places are free again"
    assert (await signed.client.get("/v1/audit/export")).status_code == 200


async def test_a_client_that_leaves_early_leaves_nothing_behind(signed: Door) -> None:
    await signed.client.post("/v1/sessions")
    transport: Any = signed.client._transport
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/v1/audit/export",
        "raw_path": b"/v1/audit/export",
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "server": ("sightline.test", 80),
        "client": ("127.0.0.1", 1),
    }
    sent: list[dict[str, Any]] = []
    begun = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if len(sent) == 2:
            begun.set()
            await asyncio.Event().wait()  # a socket that takes no more

    await asyncio.wait_for(transport.app(scope, receive, send), 20)
    assert sent[0]["status"] == 200
    assert sent[-1]["more_body"], "it never heard that it was all"
    assert not AuditExportController.under_way
