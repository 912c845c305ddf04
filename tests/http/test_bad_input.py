"""Whatever a stranger sends, the answer is a 4xx with a code, and the log is as long as before."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from tests.http.door import Door, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNKNOWN = str(UUID(int=7))
JSON = {"Content-Type": "application/json"}

# Every route that takes a JSON body, with one that it would take.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/assets": {"filename": "a.png", "content_type": "image/png", "size_bytes": 10},
    "/v1/sessions": {"user_id": "ada"},
    f"/v1/sessions/{UNKNOWN}/assets": {"asset_id": UNKNOWN},
    f"/v1/assets/{UNKNOWN}/complete": {"sha256": "0" * 64, "size_bytes": 10},
    "/v1/jobs": {"kind": "noop", "params": {"sleep_s": 0}, "inputs": []},
    "/v1/models": {"name": "m", "framework": "onnx", "hf_repo": "local/demo"},
    "/v1/model-slots/depth/rollback": {"model_id": UNKNOWN},
}

HUGE = 10**30


def _nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    return opening * depth + b"1" + closing * depth


RAW_BODIES = {
    "nothing but space": b"   ",
    "not JSON": b"{",
    "trailing words": b"{} {}",
    "an array": b"[]",
    "a number": b"1",
    "null byte": b"\0",
    "invalid UTF-8": b'{"name": "\xff\xfe"}',
    "invalid UTF-8 in a field nobody reads": b'{"zzz": "\xff"}',
    "escaped NUL": b'{"name": "a\\u0000b", "user_id": "\\u0000", "kind": "\\u0000", "filename": "\\u0000"}',
    "half a surrogate pair": b'{"name": "\\ud800", "user_id": "\\ud800", "kind": "\\ud800", "filename": "\\ud800"}',
    "5,000 arrays deep": _nested(5_000, b"[", b"]"),
    "5,000 objects deep": _nested(5_000, b'{"params":', b"}"),
    "5,000 deep where anything may stand": b'{"kind":"noop","params":{"a":' + _nested(5_000, b"[", b"]") + b"}}",
    "not a number": b'{"size_bytes": NaN, "priority": NaN}',
    "infinite": b'{"size_bytes": 1e999, "priority": 1e999}',
    "byte order mark": b"\xef\xbb\xbf{}",
}


def _spoiled(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`body` with one thing wrong at a time."""
    yield "an unknown field", body | {"is_admin": True}
    for name, value in body.items():
        wrong: list[Any] = [[[]], {"a": 1}, HUGE, -HUGE, True]
        if isinstance(value, str):
            wrong += [1, "", "x" * 100_000]
        if isinstance(value, int):
            wrong += ["10", -1, 1.5]
        if isinstance(value, dict):
            wrong = ["x", 1, [], {"unknown": 1}, {"sleep_s": HUGE}, {"sleep_s": "NaN"}, {"sleep_s": -1}]
        if isinstance(value, list):
            wrong = ["x", {}, [1], [UNKNOWN] * 101, [UNKNOWN]]
        yield from ((f"{name} = {json.dumps(one)[:30]}", body | {name: one}) for one in wrong)


SPOILED = [(path, what, body) for path, good in BODIES.items() for what, body in _spoiled(good)]


async def _refused(door: Door, method: str, path: str, **sent: Any) -> dict[str, Any]:
    """The problem that came back; nothing was appended."""
    before = await door.position()
    answer = await door.client.request(method, path, **sent)
    assert 400 <= answer.status_code < 500, answer.text
    assert await door.position() == before
    problem: dict[str, Any] = answer.json()
    if path.startswith(("/api/", "/health")):
        assert list(problem) == ["detail"]
        assert problem["detail"]
    else:
        assert answer.headers["Content-Type"].startswith("application/problem+json")
        assert problem["status"] == answer.status_code
        assert problem["detail"].startswith(problem["code"])
    assert "Traceback" not in answer.text
    return problem | {"http_status": answer.status_code}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("what", RAW_BODIES)
async def test_bodies_that_are_not_what_they_should_be(door: Door, path: str, what: str) -> None:
    await _refused(door, "POST", path, content=RAW_BODIES[what], headers=JSON)


@pytest.mark.parametrize(("path", "what", "body"), SPOILED, ids=[f"{path} {what}" for path, what, _ in SPOILED])
async def test_fields_that_are_wrong(door: Door, path: str, what: str, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    problem = await _refused(door, "POST", path, content=content, headers=JSON)
    assert problem["http_status"] in {404, 409, 413, 415, 422}


@pytest.mark.parametrize("path", BODIES)
async def test_another_content_type_is_415(door: Door, path: str) -> None:
    for named in ("text/plain", "application/xml", "multipart/form-data; boundary=x", "nonsense", ""):
        content = json.dumps(BODIES[path]).encode()
        problem = await _refused(door, "POST", path, content=content, headers={"Content-Type": named})
        assert problem["code"] == "unsupported_media_type"


@pytest.mark.parametrize("path", BODIES)
async def test_a_body_over_the_limit_is_413(door: Door, path: str) -> None:
    content = b'{"name": "' + b"x" * door.services.settings.json_body_bytes_max + b'"}'
    problem = await _refused(door, "POST", path, content=content, headers=JSON)
    assert problem["http_status"] == 413


async def test_the_bodies_above_are_good_ones_otherwise(door: Door) -> None:
    """The control: each refusal above has the cause that it names."""
    taken = {path: (await door.client.post(path, json=body)).status_code for path, body in BODIES.items()}
    assert taken == {
        "/v1/assets": 201,
        "/v1/sessions": 201,
        f"/v1/sessions/{UNKNOWN}/assets": 404,
        f"/v1/assets/{UNKNOWN}/complete": 404,
        "/v1/jobs": 201,
        "/v1/models": 201,
        "/v1/model-slots/depth/rollback": 404,
    }


READS = [
    "/v1/assets",
    "/v1/sessions",
    "/v1/jobs",
    "/v1/models",
    "/v1/events",
    f"/v1/jobs/{UNKNOWN}",
    f"/v1/jobs/{UNKNOWN}/history",
    f"/v1/trace/job/{UNKNOWN}",
    "/v1/model-slots/depth/history",
    "/api/jobs",
]
QUERIES = ["limit=0", "limit=-1", "limit=201", f"limit={HUGE}", "limit=x", "limit=NaN", "limit=%00"]
EVENT_QUERIES = [
    "after=-1",
    f"after={HUGE}",
    "after=x",
    "stream=x",
    "since=yesterday",
    "actor=%00",
    "actor=%ff",
    "type=" + "x" * 101,
    "type=%ed%a0%80",
    "correlation=",
]


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("path", [path for path in READS if UNKNOWN not in path])
async def test_queries_of_lists(door: Door, path: str, query: str) -> None:
    await _refused(door, "GET", f"{path}?{query}")


@pytest.mark.parametrize("query", EVENT_QUERIES)
async def test_queries_of_the_log(door: Door, query: str) -> None:
    await _refused(door, "GET", f"/v1/events?{query}")


@pytest.mark.parametrize("at", ["x", "-1", "1.5", "2024-01-01T00:00:00", "%00", "%ff", "9" * 41, "²"])
async def test_times_that_are_none(door: Door, at: str) -> None:
    made = await door.client.post("/v1/sessions")
    await _refused(door, "GET", f"/v1/sessions/{made.json()['id']}?at={at}")


PATHS = [
    "/v1/jobs/x",
    "/v1/jobs/%00",
    "/v1/jobs/%ff",
    f"/v1/jobs/{HUGE}",
    f"/v1/jobs/{UNKNOWN}",
    f"/v1/jobs/{UNKNOWN}/",
    f"/v1/jobs/{UNKNOWN}/artifacts/..%2f..%2fetc%2fpasswd",
    f"/v1/jobs/{UNKNOWN}/artifacts/%2e%2e",
    f"/v1/jobs/{UNKNOWN}/receipt",
    f"/v1/assets/{UNKNOWN}",
    f"/v1/assets/{UNKNOWN}/content",
    f"/v1/sessions/{UNKNOWN}",
    f"/v1/sessions/{UNKNOWN}/history",
    f"/v1/models/{UNKNOWN}",
    "/v1/model-slots/" + "x" * 100,
    "/v1/model-slots/%00",
    "/v1/model-slots/%ff/history",
    f"/v1/trace/jobs/{UNKNOWN}",
    f"/v1/trace/nonsense/{UNKNOWN}",
    f"/v1/trace/%00/{UNKNOWN}",
    f"/v1/trace/jobs/{UNKNOWN}?direction=up",
    f"/v1/trace/jobs/{UNKNOWN}?depth=21",
    "/objects/../../etc/passwd",
    "/objects/assets/x",
    "/objects/assets/x?signature=x&expires=1",
    "/objects/%2e%2e/%2e%2e/etc/passwd?expires=1&signature=00",
    "/objects/assets/x?expires=" + str(HUGE) + "&signature=é",
    "/api/jobs/x",
    "/api/jobs/%00",
    "/api/jobs/%ff",
    f"/api/jobs/{UNKNOWN}",
    f"/api/jobs/{UNKNOWN}/download/..%2f..%2fetc%2fpasswd",
    f"/api/jobs/{UNKNOWN}/download/%2e%2e",
    f"/api/jobs/{UNKNOWN}/download/%00",
    "/nothing/here",
    "/%ff",
    "/%00",
]


@pytest.mark.parametrize("path", PATHS)
async def test_paths(door: Door, path: str) -> None:
    await _refused(door, "GET", path)


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/v1/jobs"), ("DELETE", "/v1/events"), ("PATCH", "/api/jobs"), ("POST", "/health"), ("BREW", "/v1/jobs")],
)
async def test_methods(door: Door, method: str, path: str) -> None:
    assert (await _refused(door, method, path))["http_status"] == 405


@pytest.mark.parametrize(
    "headers",
    [
        {"Min-Position": "x"},
        {"Min-Position": "-1"},
        {"Min-Position": str(HUGE)},
    ],
)
async def test_headers_of_queries(door: Door, headers: dict[str, str]) -> None:
    assert (await _refused(door, "GET", "/v1/jobs", headers=headers))["code"] == "malformed_request"


@pytest.mark.parametrize(
    "headers",
    [
        {"Idempotency-Key": ""},
        {"Idempotency-Key": "x" * 256},
        {"Idempotency-Key": b"\xff"},
        {"Idempotency-Key": "a b"},
    ],
)
async def test_headers_of_commands(door: Door, headers: dict[str, Any]) -> None:
    assert (await _refused(door, "POST", "/v1/sessions", headers=headers))["code"] == "malformed_request"


@pytest.mark.parametrize("tag", ["1", '"1', "x", '"1", x', ""])
async def test_entity_tags_that_are_none(door: Door, tag: str) -> None:
    made = await door.client.post("/v1/sessions")
    path = f"/v1/sessions/{made.json()['id']}/close"
    assert (await _refused(door, "POST", path, headers={"If-Match": tag}))["http_status"] in {400, 412}


BOUNDARY = "sightline"
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def _part(head: bytes, value: bytes) -> bytes:
    return b"--sightline\r\n" + head + b"\r\n\r\n" + value + b"\r\n"


FILE_HEAD = b'Content-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png'
END = b"--sightline--\r\n"
FORMS = {
    "no body": b"",
    "no parts": END,
    "no end": _part(FILE_HEAD, picture()),
    "cut within the file": _part(FILE_HEAD, picture())[:200],
    "cut within a header": b'--sightline\r\nContent-Disposition: form-data; name="fi',
    "no file": _part(b'Content-Disposition: form-data; name="other"', b"x") + END,
    "a file that is a value": _part(b'Content-Disposition: form-data; name="file"', picture()) + END,
    "two files": 2 * _part(FILE_HEAD, picture()) + END,
    "no bytes": _part(FILE_HEAD, b"") + END,
    "not a picture": _part(FILE_HEAD, b"hello, world" * 10) + END,
    "half a picture": _part(FILE_HEAD, picture((400, 400), "JPEG")[:-900]) + END,
    "another picture than it says": _part(FILE_HEAD, picture(kind="JPEG")) + END,
    "a text": _part(FILE_HEAD.replace(b"image/png", b"text/plain"), picture()) + END,
    "a charset that is none": _part(FILE_HEAD + b"; charset=nonsense", b"x") + END,
    "a name that is not UTF-8": _part(FILE_HEAD.replace(b"a.png", b"\xff"), picture()) + END,
    "a header without end": b"--sightline\r\nX: " + b"x" * 100_000,
    "a thousand parts": _part(b'Content-Disposition: form-data; name="a"', b"x") * 1_000 + END,
    "a value without end": _part(b'Content-Disposition: form-data; name="a"', b"x" * 100_000) + END,
    "a header that is none": _part(b"nonsense", b"x") + END,
}


@pytest.mark.parametrize("what", FORMS)
async def test_uploads(door: Door, what: str) -> None:
    await _refused(door, "POST", "/api/jobs/upload", content=FORMS[what], headers=MULTIPART)


@pytest.mark.parametrize("named", ["", "multipart/form-data", "multipart/form-data; boundary=", "application/json"])
async def test_uploads_that_are_no_forms(door: Door, named: str) -> None:
    content = _part(FILE_HEAD, picture()) + END
    await _refused(door, "POST", "/api/jobs/upload", content=content, headers={"Content-Type": named})


async def test_the_upload_above_is_a_good_one_otherwise(door: Door) -> None:
    content = _part(FILE_HEAD, picture()) + END
    answer = await door.client.post("/api/jobs/upload", content=content, headers=MULTIPART)
    assert answer.status_code == 200


JOB_FORMS: dict[str, dict[str, str]] = {
    "no fields": {},
    "an unknown field": {"zzz": "1"},
    "too few layers": {"num_layers": "1"},
    "too many layers": {"num_layers": "6"},
    "10^30 layers": {"num_layers": str(HUGE)},
    "no number of layers": {"num_layers": "four"},
    "half a layer": {"num_layers": "2.5"},
    "an unknown mode": {"mode": "cubist"},
    "an unknown style": {"mode": "painterly", "painterly_style": "cubist"},
    "too large": {"max_size": "2049"},
    "too small": {"max_size": "255"},
    "too soft": {"feather_radius": "6"},
    "no truth": {"export_layers": "perhaps"},
    "too strong": {"painterly_strength": "1.1"},
    "no number of strength": {"painterly_strength": "nan"},
    "a seed below zero": {"painterly_seed": "-1"},
    "an unknown file": {"filename": f"{UNKNOWN}.png"},
    "a file elsewhere": {"filename": "../../etc/passwd"},
    "a file of no name": {"filename": ""},
    "a NUL": {"filename": "a\0.png"},
    "a long name": {"filename": "x" * 10_000},
}


@pytest.mark.parametrize("encoding", ["multipart", "urlencoded"])
@pytest.mark.parametrize("what", JOB_FORMS)
async def test_job_forms(door: Door, what: str, encoding: str) -> None:
    uploaded = await door.client.post("/api/jobs/upload", files={"file": ("a.png", picture(), "image/png")})
    fields = {"filename": uploaded.json()["filename"]} | JOB_FORMS[what]
    if what == "no fields":
        fields = {}
    sent: dict[str, Any] = (
        {"data": fields} if encoding == "urlencoded" else {"files": {name: (None, one) for name, one in fields.items()}}
    )
    assert (await _refused(door, "POST", "/api/jobs", **sent))["http_status"] in {400, 404}
