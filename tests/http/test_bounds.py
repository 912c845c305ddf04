"""Walks of the whole application: every field has bounds, every answer its headers, every path its methods."""

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
from litestar import Litestar
from msgspec import inspect
from msgspec.structs import replace
from tests.http.door import Door, client_of

from sightline.http import bodies, manners
from sightline.http.bodies import DEPTH_MAX, is_deeper
from sightline.http.canonical import SECURITY_HEADERS
from sightline.projections.bundle.export import prepared

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNKNOWN = str(UUID(int=7))
HUGE = 10**30
JSON = {"Content-Type": "application/json"}
ORIGIN = "https://app.example.org"


def app_of(door: Door) -> Litestar:
    transport: Any = door.client._transport
    app: Litestar = transport.app
    return app


def handlers(app: Litestar) -> Iterator[tuple[str, str, Any, Any]]:
    """Method, path with example ids, handler, and what Litestar knows of its parameters."""
    for route in app.routes:
        for method, (handler, model) in getattr(route, "route_handler_map", {}).items():
            if method != "OPTIONS":
                yield str(method), example(route.path), handler, model


def example(path: str) -> str:
    for kind, value in (("uuid", UNKNOWN), ("int", "1"), ("str", "x"), ("path", "x")):
        path = "/".join(value if one.endswith(f":{kind}}}") else one for one in path.split("/"))
    return path


def unbounded(kind: inspect.Type, where: str) -> Iterator[str]:
    """What a body could make as large as it likes."""
    match kind:
        case inspect.Metadata(type=inner):
            yield from unbounded(inner, where)
        case inspect.UnionType(types=types):
            for one in types:
                yield from unbounded(one, where)
        case inspect.StrType(max_length=None, pattern=None):
            yield f"{where}: text"
        case inspect.IntType(ge=None, gt=None) | inspect.IntType(le=None, lt=None):
            yield f"{where}: integer"
        case inspect.ListType() | inspect.SetType() | inspect.VarTupleType():
            if kind.max_length is None:
                yield f"{where}: list"
            yield from unbounded(kind.item_type, f"{where}[]")
        case inspect.StructType():
            if not kind.forbid_unknown_fields:
                yield f"{where}: unknown fields"
            for field in kind.fields:
                yield from unbounded(field.type, f"{where}.{field.encode_name}")


async def test_every_field_of_every_body_has_bounds(door: Door) -> None:
    found, walked = [], 0
    for method, path, handler, _ in handlers(app_of(door)):
        field = handler.parsed_fn_signature.parameters.get("data")
        if field is not None:
            walked += 1
            found += list(unbounded(inspect.type_info(field.annotation), f"{method} {path}"))
    assert [one for one in found if one != "POST /api/login: unknown fields"] == []  # which its seed ignored
    assert walked >= 10


async def test_the_walk_finds_what_has_none() -> None:
    """The control."""

    class Loose(msgspec.Struct):
        text: str
        number: int
        items: list[str] | None

    found = list(unbounded(inspect.type_info(Loose), "x"))
    assert found == ["x: unknown fields", "x.text: text", "x.number: integer", "x.items: list", "x.items[]: text"]


async def test_every_query_parameter_has_bounds(door: Door) -> None:
    asked = 0
    for method, path, _, model in handlers(app_of(door)):
        if method != "GET":
            continue
        for name in (parameter.field_alias for parameter in model.expected_query_params):
            takes_text = (await door.client.get(path, params={name: "zzz"})).status_code < 400
            for value in ("x" * 1_000, str(HUGE), f"-{HUGE}", "1e400", "NaN"):
                answer = await door.client.get(path, params={name: value})
                refused = 400 <= answer.status_code < 500
                assert refused or (takes_text and len(value) < 100), (path, name, value, answer.text)
                asked += 1
    assert asked > 100


async def test_long_names_in_paths_are_nothing_that_there_is(door: Door) -> None:
    for method, path, _, _ in handlers(app_of(door)):
        if "/x" in path or UNKNOWN in path:
            long = path.replace("/x", "/" + "x" * 10_000).replace(UNKNOWN, "9" * 10_000)
            answer = await door.client.request(method, long)
            assert 400 <= answer.status_code < 500, (method, path, answer.text)
            assert len(answer.content) < 5_000


async def test_every_path_refuses_what_is_no_text(door: Door) -> None:
    for method, path, _, _ in handlers(app_of(door)):
        for spoiled in (f"{path}?limit=%00", f"{path}?%ff=1", f"{path}?x=%ed%a0%80", f"{path}%00", f"{path}%ff"):
            answer = await door.client.request(method, spoiled)
            assert 400 <= answer.status_code < 500, (method, spoiled, answer.text)


async def test_unknown_parameters_are_told(door: Door) -> None:
    for method, path, _, _ in handlers(app_of(door)):
        if path.startswith("/v1/"):
            answer = await door.client.request(method, path, params={"limt": "1"}, json={})
            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (422, "validation_failed"), (method, path)
            assert [one["parameter"] for one in problem["errors"]] == ["limt"]
    twice = (await door.client.get("/v1/jobs?limit=1&limit=2")).json()
    assert twice["errors"] == [{"detail": "sent more than once", "parameter": "limit"}]
    assert (await door.client.get("/v1/jobs?" + "&".join(f"x{n}=1" for n in range(51)))).status_code == 400
    assert (await door.client.get("/api/jobs?limt=1")).status_code == 200  # as the seed did


async def test_without_the_check_they_are_ignored(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(manners, "STRICT_PATHS", "/nowhere")
    assert (await door.client.get("/v1/jobs?limt=1")).status_code == 200


# JSON


def _nested(depth: int) -> bytes:
    """A body of this depth, in a field where anything may stand."""
    inner = b'{"a":' * ((depth - 2) // 2) + b"[" * ((depth - 1) // 2)
    closing = b"]" * ((depth - 1) // 2) + b"}" * ((depth - 2) // 2)
    return b'{"kind":"noop","params":{"a":' + inner + b'"[[{{"' + closing + b"}}"


async def test_depth(door: Door) -> None:
    """Far below where anything recurses too deep; brackets in texts are none."""
    for depth, code in ((DEPTH_MAX, "rule_violated"), (DEPTH_MAX + 1, "malformed_json"), (900, "malformed_json")):
        body = _nested(depth)
        assert is_deeper(body, depth - 1)
        assert not is_deeper(body, depth)
        answer = await door.client.post("/v1/jobs", content=body, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == ({"r": 422, "m": 400}[code[0]], code)
    broken = (b"[" * 100_000, b"]" * 40, b'"' + b"[" * 40, b"{" * 500_000 + b"}" * 500_000)
    for odd in (*broken, b'"\\' * 50_000 + b"[" * 40):
        assert (await door.client.post("/v1/jobs", content=odd, headers=JSON)).status_code == 400
    quoted = json.dumps({"kind": "noop", "params": {}, "inputs": [], "x": '\\"[' * 1_000}).encode()
    assert not is_deeper(quoted, 3)


@pytest.mark.parametrize("piece", [b'"', b"\\", b'"\\', b'\\"', b'"[', b'["', b'"\\"[', b"[]", b"[{", b"a", b'"a"'])
async def test_no_body_takes_long_to_look_at(piece: bytes) -> None:
    """Whatever it holds: sixteen times as much takes sixteen times as long, not two hundred and fifty-six. In this
    thread's own time of the processor, and the best of several, which a busy machine does not change.
    """

    def took_s(size_bytes: int) -> float:
        whole = b"[" * (DEPTH_MAX + 1) + piece * (size_bytes // len(piece))
        started = time.thread_time()
        is_deeper(whole, DEPTH_MAX)
        return time.thread_time() - started

    assert min(took_s(1_600_000) for _ in range(5)) < 100 * min(took_s(100_000) for _ in range(9))


async def test_without_the_bound_deep_json_goes_on(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: it is this bound that refuses."""
    monkeypatch.setattr(bodies, "DEPTH_MAX", 10_000)
    answer = await door.client.post("/v1/jobs", content=_nested(100), headers=JSON)
    assert answer.json()["code"] == "rule_violated"


NUMBERS = ["1e400", "-1e400", "NaN", "Infinity", "-Infinity", "0x10", "01", "1.", ".5", "+1", "1_0", str(HUGE)]
NUMBERS += ["1" + "0" * 5_000, "-" + "9" * 400 + ".5"]


@pytest.mark.parametrize("number", NUMBERS)
async def test_numbers_that_are_none_or_too_large(door: Door, number: str) -> None:
    before = await door.position()
    for body in (
        f'{{"kind":"noop","priority":{number}}}',
        f'{{"kind":"noop","params":{{"sleep_s":{number}}}}}',
        f'{{"kind":"noop","params":{{"a":{number}}}}}',
    ):
        answer = await door.client.post("/v1/jobs", content=body.encode(), headers=JSON)
        assert answer.status_code in {400, 422}, answer.text
    assert await door.position() == before


async def test_of_two_fields_of_one_name_the_last_counts(door: Door) -> None:
    """As in every reader that we know of; and minus nothing is nothing."""
    body = b'{"kind":"nonsense","kind":"noop","params":{"sleep_s":-0}}'
    answer = await door.client.post("/v1/jobs", content=body, headers=JSON)
    assert answer.status_code == 201
    assert answer.json()["params"]["sleep_s"] == 0


async def test_an_answer_tells_no_refused_value_back(door: Door) -> None:
    """Names are told back, masked where they look like a secret, and never at length."""
    for body in (
        {"filename": "a", "content_type": "image/png", "size_bytes": 1, "purpose": "canary-value"},
        {"filename": {"canary-value": 1}, "content_type": "canary-value", "size_bytes": "canary-value"},
    ):
        assert "canary-value" not in (await door.client.post("/v1/assets", json=body)).text
    named = await door.client.post("/v1/sessions", json={"n" * 100_000: 1})
    assert len(named.content) < 5_000
    secret = await door.client.post("/v1/sessions", json={"sl_CanaryCanaryCanary": 1})
    assert secret.status_code == 422
    assert "Canary" not in secret.text


# Headers


async def test_every_answer_has_its_headers(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.http.audit_export.prepared", partial(prepared, wait_s=0.05))  # nobody signs here
    for method, path, _, _ in handlers(app_of(door)):
        for asked in ("HEAD" if path == "/v1/stream" else method, "BREW", "OPTIONS"):  # which goes on for ever
            headers = (await door.client.request(asked, path)).headers
            for name in ("X-Request-ID", *SECURITY_HEADERS):
                assert name in headers, (asked, path, name)
            assert headers["Cache-Control"] == "no-store"
            assert "Strict-Transport-Security" not in headers  # clients reach this one without TLS


async def test_hsts_where_clients_reach_us_by_tls(door: Door) -> None:
    behind_tls = replace(door.services, settings=replace(door.services.settings, base_url="https://api.example.org"))
    async with client_of(behind_tls) as client:
        for path in ("/livez", "/nothing", "/docs"):
            assert (await client.get(path)).headers["Strict-Transport-Security"] == "max-age=31536000"


async def test_every_path_names_its_methods(door: Door) -> None:
    methods: dict[str, set[str]] = {}
    for method, path, _, _ in handlers(app_of(door)):
        methods.setdefault(path, {"OPTIONS"}).add(method)
    for path, known in methods.items():
        if path == "/docs/x":  # any name below /docs is one path to Litestar, and the pages' files lie there
            continue
        refused = await door.client.request("BREW", path)
        assert refused.status_code == 405
        assert set(refused.headers["Allow"].split(", ")) == known, path
        options = await door.client.options(path)
        assert options.status_code == 204
        assert set(options.headers["Allow"].split(", ")) == known, path


async def test_head_is_get_without_a_body(door: Door) -> None:
    made = await door.client.post("/v1/sessions")
    await door.get("/v1/sessions", made)
    for path in ("/v1/sessions", f"/v1/sessions/{made.json()['id']}", "/v1/nothing", f"/v1/jobs/{UNKNOWN}", "/docs"):
        whole, head = await door.client.get(path), await door.client.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b"")
        for name in ("Content-Type", "ETag", "Event-Position"):
            assert head.headers.get(name) == whole.headers.get(name)
        if path != "/v1/nothing" and UNKNOWN not in path:
            assert head.headers["Content-Length"] == str(len(whole.content))


async def test_a_header_that_was_sent_twice(door: Door) -> None:
    request = door.client.build_request("POST", "/v1/sessions")
    request.headers = httpx.Headers([*request.headers.raw, (b"Idempotency-Key", b"a"), (b"idempotency-key", b"b")])
    answer = await door.client.send(request)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


# CORS


def _sharing(door: Door, *origins: str) -> httpx.AsyncClient:
    return client_of(replace(door.services, settings=replace(door.services.settings, cors_origins=list(origins))))


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"}


async def test_a_page_of_a_known_origin_may_ask_and_read(door: Door) -> None:
    async with _sharing(door, ORIGIN) as client:
        preflight = await client.options("/v1/jobs", headers={"Origin": ORIGIN, **PREFLIGHT})
        assert preflight.status_code == 204
        assert preflight.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
        allowed = preflight.headers["Access-Control-Allow-Headers"].lower()
        assert "authorization" in allowed
        assert "idempotency-key" in allowed
        assert "Access-Control-Allow-Credentials" not in preflight.headers
        for path in ("/v1/jobs", "/nothing", f"/v1/jobs/{UNKNOWN}"):
            answer = await client.get(path, headers={"Origin": ORIGIN})
            assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
            assert answer.headers["Vary"] == "Origin"
            exposed = answer.headers["Access-Control-Expose-Headers"]
            for name in ("Event-Position", "ETag", "Link", "Retry-After", "RateLimit", "X-Required-Roles"):
                assert name in exposed


@pytest.mark.parametrize(
    "origin", ["https://app.example.org.evil.test", "http://app.example.org", "null", ORIGIN + ":1"]
)
async def test_a_page_of_another_origin_may_not(door: Door, origin: str) -> None:
    async with _sharing(door, ORIGIN) as client:
        assert (await client.options("/v1/jobs", headers={"Origin": origin, **PREFLIGHT})).status_code == 400
        assert "Access-Control-Allow-Origin" not in (await client.get("/v1/jobs", headers={"Origin": origin})).headers


async def test_for_every_origin_there_are_no_credentials(door: Door) -> None:
    async with _sharing(door, "*") as client:
        for headers in ({"Origin": ORIGIN}, {"Origin": ORIGIN, "Cookie": "a=b"}):
            answer = await client.get("/v1/jobs", headers=headers)
            assert "Access-Control-Allow-Origin" in answer.headers
            assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_without_the_setting_no_page_may(door: Door) -> None:
    answer = await door.client.get("/v1/jobs", headers={"Origin": ORIGIN})
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
