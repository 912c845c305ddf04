"""Every route × every role × {own, other's}, and every way of having no good credential: R17.

The table of access_table.py says again, in words of its own, what each route's declaration should come to; neither is
made from the other. A route that is not listed there, or listed and not served, fails.
"""

import re
import secrets
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import pytest
import pytest_asyncio
from litestar import Litestar
from tests.conftest_log import LogDatabase
from tests.conftest_service import by
from tests.http.access_table import ANY, OWNED, PUBLIC, TABLE
from tests.http.door import Door, opened, settings_for
from tests.http.identity import SECRET
from tests.http.live_clients import handshaken

from sightline.adapters.egress_rules import Rules
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.ids import uuid7
from sightline.adapters.standard_webhooks import new_secret
from sightline.adapters.tokens import Tokens
from sightline.commands import api_keys, assets, batches, comparisons, jobs, sessions, users, webhooks
from sightline.domain.access import Rights, Role
from sightline.domain.assets import Scan
from sightline.domain.comparisons import Tolerance
from sightline.domain.kernel import Caller
from sightline.http import auth
from sightline.http.app import create_app
from sightline.http.services import open_services
from sightline.http.sessions import SessionController

pytestmark = pytest.mark.asyncio(loop_scope="module")

FILLED = {"name:str": "jobs", "task:str": "nothing", "position:int": "1", "filename:str": "x.png", "kind:str": "jobs"}


class Person(NamedTuple):
    """Somebody with one of everything."""

    user_id: UUID
    actor: str
    token: str
    ids: dict[str, str]


def listed(app: Litestar) -> set[str]:
    """Every method and path that is served, Litestar's automatic OPTIONS aside."""
    found = set()
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            if not auth.is_automatic(handler):
                found |= {f"{method} {route.path}" for method in handler.http_methods}
        if hasattr(route, "route_handler"):
            found.add(f"WEBSOCKET {route.path}")
    return found


def as_actor(actor: str) -> Caller:
    return by(actor)


async def person(door: Door, role: Role, name: str) -> Person:
    services = door.services
    execute = services.commands.execute
    user_id = uuid7()
    actor = f"user:{user_id}"
    register = users.RegisterUser(
        user_id=user_id,
        email=f"{name}@example.org",
        full_name=name,
        role=role,
        password_hash="$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$U1vCZtyPnmQ1yNnHrw0wAWeaBJ4GBlSRVdRZ4Fxe1n8",
    )
    await execute(users.register_user, register, by("system"))
    session = sessions.CreateSession(session_id=uuid7(), user_id=None, duration_s=600)
    await execute(sessions.create_session, session, as_actor(actor))
    job = jobs.SubmitJob(job_id=uuid7(), kind="noop", pending_max=1_000)
    await execute(jobs.submit_job, job, as_actor(actor))
    batch = batches.SubmitBatch(batch_id=uuid7(), kind="noop", members=[batches.JobOfBatch()], pending_max=1_000)
    await execute(batches.submit_batch, batch, as_actor(actor))
    asset = assets.RegisterAsset(
        asset_id=uuid7(),
        filename="picture.png",
        content_type="image/png",
        found_content_type="image/png",
        size_bytes=1,
        sha256="0" * 64,
        scan=Scan(engine="test", width_px=1, height_px=1, code=None),
        purpose="image",
    )
    await execute(assets.register_asset, asset, as_actor(actor))
    refuse = comparisons.RefuseComparison(
        comparison_id=uuid7(), of_job=job.job_id, candidate=uuid7(), tolerance=Tolerance(), reason="a test"
    )
    await execute(comparisons.refuse_comparison, refuse, as_actor(actor))
    webhook = webhooks.RegisterWebhook(
        webhook_id=uuid7(),
        url="https://hooks.example/",
        types=("job.completed",),
        kinds=None,
        secret=new_secret(),
        rules=Rules(),
    )
    await execute(webhooks.register_webhook, webhook, as_actor(actor))
    key_id = await api_key(door, user_id, actor)
    ids = {
        "session_id": str(session.session_id),
        "job_id": str(job.job_id),
        "batch_id": str(batch.batch_id),
        "comparison_id": str(refuse.comparison_id),
        "shadow_id": str(uuid7()),
        "asset_id": str(asset.asset_id),
        "root_id": str(job.job_id),
        "key_id": str(key_id),
        "webhook_id": str(webhook.webhook_id),
        "delivery_id": str(uuid7()),
        "principal": actor,
        "user_id": str(user_id),
        "model_id": str(uuid7()),
    }
    return Person(user_id, actor, token(user_id), ids)


async def api_key(door: Door, user_id: UUID, actor: str) -> UUID:
    issue = api_keys.IssueApiKey(
        name="a key",
        owner_id=user_id,
        issuer=Rights(Role.ADMIN),
        role=Role.VIEWER,
        scopes=None,
        expires_at=datetime.now(UTC) + timedelta(days=1),
        prefix=secrets.token_hex(8),
        secret_sha256="0" * 64,
    )
    return (await door.services.commands.execute(api_keys.issue_api_key, issue, as_actor(actor))).stream_id


def token(user_id: UUID, generation: int = 1, *, lifetime_s: int = 600) -> str:
    return Tokens([SECRET.encode()], lifetime_s=lifetime_s).issue(user_id, generation)[0]


class House(NamedTuple):
    """A door with authentication, somebody in each role, and somebody else whose things they may want."""

    door: Door
    people: dict[Role, Person]
    other: Person


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(
    door_database: LogDatabase, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[House]:
    settings = settings_for(
        door_database,
        valkey_server.url,
        tmp_path_factory.mktemp("house"),
        auth_enabled=True,
        secret_key=SECRET,
        rate_limits_enabled=False,
    )
    async with opened(settings) as door:
        people = {role: await person(door, role, role.lower()) for role in Role}
        other = await person(door, Role.OPERATOR, "other")
        await door.caught_up()
        yield House(door, people, other)


# They take what the tests below look at: whoever asks for them is somebody else.
ENDING = {"POST /v1/auth/logout", "DELETE /v1/assets/{asset_id:uuid}"}
NOUNS = {
    "sessions": "session_id",
    "jobs": "job_id",
    "batches": "batch_id",
    "comparisons": "comparison_id",
    "assets": "asset_id",
    "api-keys": "key_id",
    "webhooks": "webhook_id",
}


def path_of(row: str, ids: dict[str, str]) -> str:
    """A row's path with somebody's ids in it."""
    path = row.partition(" ")[2]
    for placeholder in re.findall(r"\{(.*?)\}", path):
        name = placeholder.partition(":")[0]
        if name == "stream_id":
            name = NOUNS.get(path.split("/")[2], "")
        nobodys = name == "user_id" or not name
        filled = str(uuid7()) if nobodys else ids.get(name) or FILLED.get(placeholder, "nothing")
        path = path.replace(f"{{{placeholder}}}", filled)
    if path == "/v1/stream" or (path != "/v1/events" and path.endswith("/events")):
        return f"{path}?after=nothing"  # else it goes on for ever
    return f"{path}?from=nothing" if path == "/v1/audit/export" else path  # else it waits for somebody to sign


def names_an_owner(row: str) -> bool:
    found = {name.partition(":")[0] for name in re.findall(r"\{(.*?)\}", row)}
    shared = row.startswith(("GET /v1/users", "GET /v1/models")) and "stream_id" in found
    return bool(found & OWNED) and not shared


async def ask(house: House, row: str, ids: dict[str, str], headers: dict[str, str]) -> httpx.Response:
    if row.startswith("WEBSOCKET "):
        return await handshaken(house.door, path_of(row, ids), headers)
    return await house.door.client.request(row.partition(" ")[0], path_of(row, ids), headers=headers)


async def wrong_with(house: House, row: str) -> list[str]:
    """What of a row's promises is not kept."""
    wrong = []
    for role, one in house.people.items():
        asking = await person(house.door, role, secrets.token_hex(8)) if row in ENDING else one
        for whose, ids in (("own", asking.ids), ("other", house.other.ids)):
            if whose == "other" and not names_an_owner(row):
                continue
            answer = await ask(house, row, ids, {"Authorization": f"Bearer {asking.token}"})
            reaches = TABLE[row].get(role, set()) if TABLE[row] is not PUBLIC else ANY
            may = whose in reaches if names_an_owner(row) else bool(reaches)
            if may != (answer.status_code not in {401, 403}) and not _by_signature(answer):
                wrong.append(f"{role} {whose}: {answer.status_code}")
            if not may and row.startswith("HEAD "):
                continue
            wanted = [one for one in Role if (TABLE[row].get(one, set()) >= ANY if reaches else one in TABLE[row])]
            if not may and answer.headers.get("X-Required-Roles") != ", ".join(wanted):
                wrong.append(f"{role} {whose}: X-Required-Roles {answer.headers.get('X-Required-Roles')}, not {wanted}")
    return wrong


def _by_signature(answer: httpx.Response) -> bool:
    """Objects are for whoever has a signed URL, and nobody in this table has."""
    return answer.request.url.path.startswith("/objects/") and answer.json().get("code") == "signature_invalid"


async def test_every_route_is_listed(house: House) -> None:
    assert listed(create_app(house.door.services)) == TABLE.keys()


@pytest.mark.parametrize("row", TABLE)
async def test_who_may(house: House, row: str) -> None:
    assert await wrong_with(house, row) == []


@pytest.mark.parametrize("row", [row for row, may in TABLE.items() if may])
async def test_nobody_without_a_good_credential(house: House, row: str, gone: dict[str, dict[str, str]]) -> None:
    """Anonymous, expired, taken back, deactivated: taken back in another process, whose caches these are not."""
    for why, headers in gone.items():
        answer = await ask(house, row, house.other.ids, headers)
        assert answer.status_code == 401, (why, answer.text)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer"), why


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gone(house: House) -> dict[str, dict[str, str]]:
    """Headers that are not good any more, by why."""
    found: dict[str, dict[str, str]] = {"anonymous": {}}
    admin = house.people[Role.ADMIN]
    found["expired"] = _bearer(token(admin.user_id, lifetime_s=-1))
    found["of a generation to come"] = _bearer(token(admin.user_id, 2))
    found["two at once"] = _bearer(admin.token) | {"X-API-Key": "sl_0_0"}
    async with open_services(house.door.services.settings) as elsewhere:
        ends: dict[str, Callable[[UUID], tuple[Any, Any]]] = {
            "logged out": lambda one: (users.revoke_tokens, users.RevokeTokens(user_id=one)),
            "deactivated": lambda one: (users.deactivate_user, users.DeactivateUser(user_id=one)),
            "another role": lambda one: (users.change_role, users.ChangeRole(user_id=one, role=Role.MANAGER)),
        }
        for why, end in ends.items():
            ending = await person(house.door, Role.ADMIN, secrets.token_hex(8))
            found[why] = _bearer(ending.token)
            known = await house.door.client.get("/v1/auth/me", headers=found[why])
            assert known.status_code == 200, "it is in the cache of this process"
            handler, command = end(ending.user_id)
            await elsewhere.commands.execute(handler, command, by("system"))
    return found


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("row", "breaking"),
    [("GET /v1/jobs/{job_id:uuid}", "_require_own"), ("POST /v1/jobs/{job_id:uuid}/requeue", "require")],
)
async def test_a_door_that_lets_everybody_in_is_found(
    house: House, monkeypatch: pytest.MonkeyPatch, row: str, breaking: str
) -> None:
    if breaking == "require":
        monkeypatch.setattr(auth, "require", lambda *_: "any")
    else:
        monkeypatch.setattr(auth, "require_own", lambda *_, **__: None)
    assert await wrong_with(house, row)


async def test_a_route_that_says_nothing_is_not_served(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SessionController, "opt", {})
    with pytest.raises(LookupError, match="declares no access"):
        create_app(house.door.services)


# What no path names: ids in bodies, and lists.


async def test_a_body_reaches_only_what_is_ones_own(house: House) -> None:
    mine = await person(house.door, Role.OPERATOR, secrets.token_hex(8))
    theirs = (await person(house.door, Role.OPERATOR, secrets.token_hex(8))).ids
    asking = _bearer(mine.token)
    client = house.door.client
    fed = {"kind": "layer-photo-realistic", "inputs": [theirs["asset_id"]]}
    into = {"kind": "noop", "session_id": theirs["session_id"]}
    attached = f"/v1/sessions/{mine.ids['session_id']}/assets"
    form = {"filename": f"{theirs['asset_id']}.png", "mode": "photo-realistic"}
    answers = [
        await client.post("/v1/jobs", json=fed, headers=asking),
        await client.post("/v1/jobs", json=into, headers=asking),
        await client.post(attached, json={"asset_id": theirs["asset_id"]}, headers=asking),
        await client.post("/api/jobs", data=form, headers=asking),
    ]
    assert [answer.status_code for answer in answers] == [403] * 4
    own = {"kind": "noop", "session_id": mine.ids["session_id"]}
    assert (await client.post("/v1/jobs", json=own, headers=asking)).status_code == 201, "the control"


@pytest.mark.parametrize("noun", ["jobs", "sessions", "assets"])
async def test_a_list_shows_what_one_may_see(house: House, noun: str) -> None:
    async def owners(role: Role) -> set[str]:
        answer = await house.door.client.get(f"/v1/{noun}?limit=200", headers=_bearer(house.people[role].token))
        return {item["owner"] for item in answer.json()["items"]}

    await house.door.caught_up()
    for role in (Role.OPERATOR, Role.VIEWER):
        assert await owners(role) == {house.people[role].actor}
    for role in (Role.ADMIN, Role.MANAGER, Role.AUDITOR):
        assert len(await owners(role)) > 2


async def test_the_seeds_list_counts_ones_own(house: House) -> None:
    asked: dict[Role, str] = {}
    for role in (Role.VIEWER, Role.OPERATOR):
        one = house.people[role]
        job = jobs.SubmitJob(
            job_id=uuid7(), kind="layer-photo-realistic", inputs=(UUID(one.ids["asset_id"]),), pending_max=1_000
        )
        await house.door.services.commands.execute(jobs.submit_job, job, as_actor(one.actor))
        asked[role] = str(job.job_id)
    await house.door.caught_up()
    for role, job_id in asked.items():
        listed = (await house.door.client.get("/api/jobs", headers=_bearer(house.people[role].token))).json()
        assert ([one["id"] for one in listed["jobs"]], listed["total"]) == ([job_id], 1)
    everything = await house.door.client.get("/api/jobs", headers=_bearer(house.people[Role.ADMIN].token))
    assert everything.json()["total"] == len(asked)
