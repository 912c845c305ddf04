"""The layered-images service's paths, shapes and statuses, as its own document gives them."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from msgspec.structs import replace
from tests.http.door import Door, client_of, complete, fail, picture

from sightline.projections import jobs as job_rows

pytestmark = pytest.mark.asyncio(loop_scope="module")

JOB_FIELDS = [
    "id",
    "status",
    "mode",
    "num_layers",
    "max_size",
    "feather_radius",
    "painterly_style",
    "painterly_strength",
    "painterly_seed",
    "input_filename",
    "output_dir",
    "result_manifest",
    "error_message",
    "created_at",
    "started_at",
    "completed_at",
    "processing_time",
]
LAYERS = {"Layer_1_background.png": picture((8, 8)), "layer_manifest.json": b"{}"}
MANIFEST: dict[str, Any] = {"layers": [{"name": "background", "order": 1}]}


async def _upload(door: Door, content: bytes, name: str = "image.png", named: str = "image/png") -> httpx.Response:
    return await door.client.post("/api/jobs/upload", files={"file": (name, content, named)})


async def _create(door: Door, **fields: str) -> httpx.Response:
    """As `curl -F`: parts without a type of their own."""
    return await door.client.post("/api/jobs", files={name: (None, value) for name, value in fields.items()})


async def _job(door: Door, **fields: str) -> dict[str, Any]:
    filename = (await _upload(door, picture())).json()["filename"]
    created = await _create(door, filename=filename, **fields)
    assert created.status_code == 201
    job: dict[str, Any] = created.json()
    return job


async def test_root_says_what_this_is(door: Door) -> None:
    answer = await door.client.get("/")
    assert answer.status_code == 200
    assert answer.json().keys() == {"name", "version", "docs", "health"}


async def test_health_tells_the_queue(door: Door) -> None:
    await _job(door)
    await door.caught_up()
    health = (await door.client.get("/health")).json()
    assert health["status"] == "healthy"
    assert health["queue"].keys() == {"pending", "processing", "capacity"}
    assert health["queue"]["pending"] >= 1
    assert health["queue"]["capacity"] == 100


async def test_an_upload_answers_with_the_name_to_use(door: Door) -> None:
    content = picture()
    answer = await _upload(door, content, "hol*iday photo.png")
    body = answer.json()
    assert answer.status_code == 200
    assert list(body) == ["file_id", "filename", "original_filename", "size_bytes"]
    assert body["filename"] == f"{UUID(body['file_id'])}.png"
    assert body["original_filename"] == "hol*iday photo.png"
    assert body["size_bytes"] == len(content)


@pytest.mark.parametrize(
    ("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp")]
)
async def test_every_picture_is_taken(door: Door, kind: str, extension: str) -> None:
    answer = await _upload(door, picture(kind=kind), f"x.{extension}", f"image/{kind.lower()}")
    assert answer.json()["filename"].endswith(f".{extension}")


async def test_an_upload_in_the_log_is_one_append(door: Door) -> None:
    answer = await _upload(door, picture())
    log = await door.client.get("/v1/events", params={"stream": answer.json()["file_id"]})
    items = log.json()["items"]
    assert [one["type"] for one in items] == ["asset.upload_requested", "asset.uploaded", "asset.scanned"]
    assert len({one["causation_id"] for one in items}) == 1
    assert int(answer.headers["Event-Position"]) == items[-1]["position"]


async def test_a_file_over_the_limit_is_413_while_it_comes(door: Door) -> None:
    limit = door.services.settings.upload_size_bytes_max
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        while sent < 4 * limit:
            sent += 1 << 20
            yield bytes(1 << 20)

    before = await door.position()
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = await door.client.post("/api/jobs/upload", content=endless(), headers=headers)
    assert answer.status_code == 413
    assert answer.json().keys() == {"detail"}
    assert sent <= limit + (2 << 20)  # The rest was never read.
    assert await door.position() == before


async def test_what_is_not_a_picture_is_400_and_leaves_nothing(door: Door) -> None:
    before = await door.position(), await door.services.objects.list_page("assets/")
    for content, named in (
        (b"#!/bin/sh\n", "image/png"),
        (b"", "image/png"),
        (picture()[:100], "image/png"),
        (picture(), "text/plain"),
        (picture(), "image/jpeg"),
    ):
        answer = await _upload(door, content, named=named)
        assert answer.status_code == 400, answer.text
        assert answer.json().keys() == {"detail"}
    assert (await door.position(), await door.services.objects.list_page("assets/")) == before


async def test_a_job_is_created_with_defaults(door: Door) -> None:
    filename = (await _upload(door, picture())).json()["filename"]
    created = await _create(door, filename=filename)
    job = created.json()
    assert created.status_code == 201
    assert list(job) == JOB_FIELDS
    assert {name: job[name] for name in JOB_FIELDS[1:6]} == {
        "status": "pending",
        "mode": "photo-realistic",
        "num_layers": 4,
        "max_size": 1024,
        "feather_radius": 2,
    }
    assert job["input_filename"] == filename
    assert datetime.fromisoformat(job["created_at"]).tzinfo is not None
    assert [job[name] for name in ("output_dir", "result_manifest", "error_message", "completed_at")] == [None] * 4


async def test_a_job_takes_its_parameters(door: Door) -> None:
    job = await _job(
        door, mode="photo-realistic", num_layers="2", max_size="256", feather_radius="5", export_layers="true"
    )
    assert (job["num_layers"], job["max_size"], job["feather_radius"]) == (2, 256, 5)


async def test_whoever_creates_a_job_finds_it_at_once(door: Door) -> None:
    for _ in range(5):
        job = await _job(door)
        assert (await door.client.get(f"/api/jobs/{job['id']}")).json() == job


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"num_layers": "1"}, 400),
        ({"num_layers": "6"}, 400),
        ({"mode": "nonsense"}, 400),
        ({"num_layers": "four"}, 400),
        ({"max_size": "255"}, 400),
        ({"feather_radius": "6"}, 400),
        ({"mode": "painterly", "painterly_style": "cubist"}, 400),
        ({"mode": "painterly", "painterly_strength": "1.01"}, 400),
        ({"mode": "painterly", "painterly_seed": "-1"}, 400),
        ({"mode": "painterly", "painterly_seed": str(2**32)}, 400),
        ({"prompt": "a cat"}, 400),
        ({"filename": f"{uuid4()}.png"}, 404),
        ({"filename": "../secret.png"}, 404),
    ],
)
async def test_parameters_that_are_refused(door: Door, fields: dict[str, str], status: int) -> None:
    filename = (await _upload(door, picture())).json()["filename"]
    answer = await _create(door, **({"filename": filename} | fields))
    assert answer.status_code == status
    assert answer.json().keys() == {"detail"}


async def test_a_refusal_says_what_there_is_instead(door: Door) -> None:
    filename = (await _upload(door, picture())).json()["filename"]
    answer = await _create(door, filename=filename, mode="cubist")
    assert "photo-realistic, painterly" in answer.json()["detail"]
    answer = await _create(door, filename=filename, mode="painterly", painterly_style="cubist")
    assert "watercolor" in answer.json()["detail"]


async def test_a_painterly_job_takes_its_parameters(door: Door) -> None:
    fields = {"painterly_style": "ink", "painterly_strength": "0.25", "painterly_seed": str(2**32 - 1)}
    job = await _job(door, mode="painterly", num_layers="3", max_size="512", **fields)
    assert list(job) == JOB_FIELDS
    assert (job["mode"], job["num_layers"], job["max_size"]) == ("painterly", 3, 512)
    assert [job[name] for name in fields] == ["ink", 0.25, 2**32 - 1]
    assert (await door.client.get(f"/api/jobs/{job['id']}")).json() == job
    native = await door.client.get(f"/v1/jobs/{job['id']}")
    assert native.json()["kind"] == "layer-painterly"


async def test_a_painterly_job_has_the_services_defaults(door: Door) -> None:
    job = await _job(door, mode="painterly")
    assert (job["num_layers"], job["painterly_strength"], job["painterly_seed"]) == (4, 0.5, 42)
    assert job["painterly_style"] == "oil"
    changed = replace(door.services.settings, default_painterly_strength=0.75, default_painterly_seed=7)
    async with client_of(replace(door.services, settings=changed)) as client:
        form = {"filename": job["input_filename"], "mode": "painterly"}
        other = (await client.post("/api/jobs", data=form)).json()
    assert (other["painterly_strength"], other["painterly_seed"]) == (0.75, 7)


async def test_painterly_fields_are_nothing_to_the_other_mode(door: Door) -> None:
    job = await _job(door, mode="photo-realistic", painterly_style="oil", painterly_strength="0.5", painterly_seed="1")
    assert [job[name] for name in JOB_FIELDS if name.startswith("painterly")] == [None] * 3


async def test_jobs_are_listed_newest_first(door: Door) -> None:
    made = [(await _job(door))["id"] for _ in range(3)]
    answer = await door.client.get("/api/jobs", params={"skip": 0, "limit": 2})
    body = answer.json()
    assert list(body) == ["jobs", "total"]
    assert [job["id"] for job in body["jobs"]] == made[:0:-1]
    assert body["total"] >= 3
    rest = await door.client.get("/api/jobs", params={"skip": 2, "limit": 1})
    assert [job["id"] for job in rest.json()["jobs"]] == made[:1]


@pytest.mark.parametrize("query", [{"skip": -1}, {"limit": 0}, {"limit": 201}, {"skip": "x"}])
async def test_a_list_is_asked_for_within_bounds(door: Door, query: dict[str, Any]) -> None:
    answer = await door.client.get("/api/jobs", params=query)
    assert answer.status_code == 400
    assert answer.json().keys() == {"detail"}


async def test_the_list_has_both_modes_and_counts_both(door: Door) -> None:
    before = (await door.client.get("/api/jobs")).json()["total"]
    made = [await _job(door, mode=mode) for mode in ("photo-realistic", "painterly")]
    body = (await door.client.get("/api/jobs", params={"limit": 2})).json()
    assert body["jobs"] == made[::-1]
    assert body["total"] == before + 2


async def test_style_presets_are_those_that_can_be_asked_for(door: Door) -> None:
    presets = (await door.client.get("/api/jobs/style-presets")).json()
    assert presets.keys() == {"photo-realistic", "painterly"}
    assert len(presets["painterly"]) == 9
    for style in presets["painterly"]:
        assert (await _job(door, mode="painterly", painterly_style=style))["painterly_style"] == style


async def test_a_completed_job_shows_and_serves_its_files(door: Door) -> None:
    job_id = (await _job(door))["id"]
    await complete(door, UUID(job_id), LAYERS, MANIFEST)
    job = (await door.client.get(f"/api/jobs/{job_id}")).json()
    assert job["status"] == "completed"
    assert job["result_manifest"] == MANIFEST
    stored = await door.services.objects.list_page(job["output_dir"] + "/")
    assert {one.key.rpartition("/")[2] for one in stored} == LAYERS.keys()
    assert job["processing_time"] >= 0
    assert datetime.fromisoformat(job["started_at"]) <= datetime.fromisoformat(job["completed_at"])

    path = f"/api/jobs/{job_id}/download/Layer_1_background.png"
    served = await door.client.get(path)
    assert served.status_code == 200
    assert served.content == LAYERS["Layer_1_background.png"]
    assert served.headers["Content-Type"] == "image/png"
    assert 'filename="Layer_1_background.png"' in served.headers["Content-Disposition"]
    assert served.headers["X-Content-Type-Options"] == "nosniff"
    looked = await door.client.head(path)
    assert looked.status_code == 200
    assert looked.content == b""
    assert looked.headers["Content-Length"] == str(len(served.content))


@pytest.mark.parametrize("name", ["nothing.png", "..%2F..%2Fetc%2Fpasswd", "%2e%2e%2fsecret", "%2Fetc%2Fpasswd", "%00"])
async def test_files_that_are_not_the_jobs_own(door: Door, name: str) -> None:
    job_id = (await _job(door))["id"]
    await complete(door, UUID(job_id), LAYERS, MANIFEST)
    for method in ("GET", "HEAD"):
        answer = await door.client.request(method, f"/api/jobs/{job_id}/download/{name}")
        assert answer.status_code in {400, 404}


async def test_a_failed_job_says_why_and_how_long_it_took(door: Door) -> None:
    job_id = (await _job(door, mode="painterly"))["id"]
    await fail(door, UUID(job_id), "image_undecodable", "the picture cannot be decoded")
    job = (await door.client.get(f"/api/jobs/{job_id}")).json()
    assert (job["status"], job["error_message"]) == ("failed", "the picture cannot be decoded")
    started, ended = (datetime.fromisoformat(job[name]) for name in ("started_at", "completed_at"))
    assert job["processing_time"] == pytest.approx((ended - started).total_seconds(), abs=0.01)
    assert [job[name] for name in ("output_dir", "result_manifest")] == [None, None]
    answer = await door.client.get(f"/api/jobs/{job_id}/download/composite.png")
    assert (answer.status_code, answer.json().keys()) == (400, {"detail"})


async def test_a_bug_of_ours_is_500_and_tells_nothing_of_itself(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr(job_rows, "newest", broken)
    answer = await door.client.get("/api/jobs")
    assert answer.status_code == 500
    assert answer.json().keys() == {"detail"}
    assert "hunter2" not in answer.text


async def test_nothing_is_served_before_the_end(door: Door) -> None:
    job_id = (await _job(door))["id"]
    assert (await door.client.get(f"/api/jobs/{job_id}/download/Layer_1_background.png")).status_code == 400
    assert (await door.client.head(f"/api/jobs/{job_id}/download/Layer_1_background.png")).status_code == 400


async def test_delete_takes_job_and_files_away(door: Door) -> None:
    job_id = (await _job(door))["id"]
    await complete(door, UUID(job_id), LAYERS, MANIFEST)
    assert await door.services.objects.list_page(f"jobs/{job_id}/")
    deleted = await door.client.delete(f"/api/jobs/{job_id}")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (await door.client.get(f"/api/jobs/{job_id}")).status_code == 404
    assert (await door.client.delete(f"/api/jobs/{job_id}")).status_code == 404
    assert await door.services.objects.list_page(f"jobs/{job_id}/") == []


async def test_a_pending_job_is_deleted_too(door: Door) -> None:
    job_id = (await _job(door))["id"]
    assert (await door.client.delete(f"/api/jobs/{job_id}")).status_code == 204
    history = await door.client.get(f"/v1/jobs/{job_id}/history")
    assert [one["type"] for one in history.json()["items"]] == ["job.submitted", "job.cancelled", "job.deleted"]


async def test_jobs_of_other_kinds_are_not_this_services(door: Door) -> None:
    job_id = (await door.client.post("/v1/jobs", json={"kind": "noop"})).json()["id"]
    assert (await door.client.get(f"/api/jobs/{job_id}")).status_code == 404
    assert (await door.client.delete(f"/api/jobs/{job_id}")).status_code == 404
    listed = (await door.client.get("/api/jobs", params={"limit": 200})).json()["jobs"]
    assert job_id not in [job["id"] for job in listed]


async def test_the_same_key_creates_one_job(door: Door) -> None:
    filename = (await _upload(door, picture())).json()["filename"]
    key = {"Idempotency-Key": str(uuid4())}
    made = [await door.client.post("/api/jobs", data={"filename": filename}, headers=key) for _ in range(2)]
    assert made[0].json() == made[1].json()
    uploads = [
        await door.client.post("/api/jobs/upload", files={"file": ("a.png", picture(), "image/png")}, headers=other)
        for other in 2 * [{"Idempotency-Key": str(uuid4())}]
    ]
    assert uploads[0].json() == uploads[1].json()


async def test_the_openapi_document_describes_the_forms(door: Door) -> None:
    paths = (await door.client.get("/openapi.json")).json()["paths"]
    form = paths["/api/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["filename"]
    assert (
        "file"
        in paths["/api/jobs/upload"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    )


async def test_a_full_queue_is_503(door: Door) -> None:
    filename = (await _upload(door, picture())).json()["filename"]
    settings = replace(door.services.settings, facade_jobs_pending_max=0)
    async with client_of(replace(door.services, settings=settings)) as client:
        answer = await client.post("/api/jobs", data={"filename": filename})
        assert (await client.get("/health")).json()["queue"]["capacity"] == 0
    assert answer.status_code == 503
    assert answer.json().keys() == {"detail"}
    assert answer.headers["Retry-After"]
