"""The Open Inference Protocol at the door: what it answers, what it refuses, and that nothing is ever a 500."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import pytest
import pytest_asyncio
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tests.conftest_service import until
from tests.http.door import Door, client_of

from sightline.adapters.ids import uuid7
from sightline.adapters.inference.model import ModelFile
from sightline.adapters.inference.server import InferenceServer
from sightline.http.serving import open_serving
from sightline.http.turns import Turns

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEADER_LENGTH = "Inference-Header-Content-Length"


def model_bytes(factor: float, *, op: str = "Mul") -> bytes:
    """y = x × factor, for rows of three numbers."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy")
    node = helper.make_node(op, ["x", "factor"], ["y"])
    constant = helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])
    graph = helper.make_graph([node], "g", [x], [y], [constant])
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)])
    return bytes(model.SerializeToString())


def lay_down(directory: Path, name: str, factor: float) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.onnx").write_bytes(model_bytes(factor))


async def registered(door: Door, task: str, factor: float) -> str:
    """The id of a model that multiplies, laid into the cache as a person would, and active."""
    name = f"m{hashlib.sha256(str(factor).encode()).hexdigest()[:8]}"
    lay_down(door.services.models.directory / "local", name, factor)
    body = {"name": name, "framework": "onnx", "hf_repo": f"local/{name}", "task": task}
    made = await door.client.post("/v1/models", json=body)
    model_id: str = made.json()["id"]
    assert (await door.client.post(f"/v1/models/{model_id}/sync")).status_code == 200
    assert (await door.client.post(f"/v1/models/{model_id}/activate")).status_code == 200
    return model_id


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def doubling(door: Door) -> str:
    return await registered(door, "doubling", 2.0)


def asked(rows: list[list[float]], **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [len(rows), 3], "datatype": "FP32", "data": rows}], **more}


async def infer(door: Door, name: str, body: Any, **headers: str) -> httpx.Response:
    return await door.client.post(f"/v2/models/{name}/infer", json=body, headers=headers)


async def test_what_serves_and_that_it_lives(door: Door) -> None:
    server = (await door.client.get("/v2")).json()
    assert (server["name"], server["extensions"]) == ("sightline", ["binary_tensor_data"])
    assert (await door.client.get("/v2/health/live")).json() == {"live": True}
    assert (await door.client.get("/v2/health/ready")).json() == {"ready": True}


async def test_a_model_is_told_asked_by_its_task_and_by_its_version(door: Door, doubling: str) -> None:
    model_id = doubling
    told = (await door.client.get("/v2/models/doubling")).json()
    assert told["versions"] == [model_id]
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert told["parameters"]["execution_provider"] == "CPUExecutionProvider"
    assert told["parameters"]["is_warm"] is True
    for name in ("doubling", model_id, f"doubling/versions/{model_id}", f"{model_id}/versions/{model_id}"):
        answer = await infer(door, name, asked([[1, 2.5, -3]], id="mine"))
        found = answer.json()
        assert answer.status_code == 200, answer.text
        assert (found["id"], found["model_version"]) == ("mine", model_id)
        assert found["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [2.0, 5.0, -6.0]}]
        assert found["parameters"]["execution_provider"] == "CPUExecutionProvider"
        ready = await door.client.get(f"/v2/models/{name}/ready")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)


async def test_asking_whether_it_is_ready_has_it_loaded(door: Door) -> None:
    model_id = await registered(door, "readying", 1.5)
    first = await door.client.get(f"/v2/models/{model_id}/ready")
    assert (first.status_code, list(first.json())) == (400, ["error"])

    async def ready() -> bool:
        return (await door.client.get(f"/v2/models/{model_id}/ready")).status_code == 200

    assert await until(ready)


async def test_another_version_serves_once_it_is_warm_and_the_old_one_goes(door: Door) -> None:
    before = await registered(door, "swapping", 3.0)
    assert (await infer(door, "swapping", asked([[1, 1, 1]]))).json()["outputs"][0]["data"] == [3, 3, 3]
    after = await registered(door, "swapping", 4.0)
    seen: list[tuple[str, float]] = []

    async def swapped() -> bool:
        answer = await infer(door, "swapping", asked([[1, 1, 1]]))
        assert answer.status_code == 200, answer.text  # not one is refused on the way
        seen.append((answer.json()["model_version"], answer.json()["outputs"][0]["data"][0]))
        return seen[-1][0] == after

    assert await until(swapped)
    assert set(seen) <= {(before, 3.0), (after, 4.0)}
    sha256 = hashlib.sha256(model_bytes(3.0)).hexdigest()
    assert not door.services.serving._inference.holds(sha256)


async def test_a_version_that_cannot_be_loaded_does_not_take_the_place_of_one_that_serves(door: Door) -> None:
    before = await registered(door, "staying", 5.0)
    assert (await infer(door, "staying", asked([[1, 1, 1]]))).status_code == 200
    after = await registered(door, "staying", 6.0)
    path = door.services.models.path(hashlib.sha256(model_bytes(6.0)).hexdigest())
    path.write_bytes(b"rubbish")
    await door.services.serving._look("staying")
    refused = await infer(door, after, asked([[1, 1, 1]]))
    assert (refused.status_code, "model_digest_mismatch" in refused.json()["error"]) == (409, True)
    assert (await infer(door, "staying", asked([[1, 1, 1]]))).json()["model_version"] == before


async def test_without_loading_it_first_it_would(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    await registered(door, "leaving", 5.5)
    assert (await infer(door, "leaving", asked([[1, 1, 1]]))).status_code == 200
    await registered(door, "leaving", 6.5)
    door.services.models.path(hashlib.sha256(model_bytes(6.5)).hexdigest()).write_bytes(b"rubbish")

    async def at_once(_: InferenceServer, __: ModelFile) -> None:
        pass

    with monkeypatch.context() as patched:
        patched.setattr(InferenceServer, "load", at_once)
        await door.services.serving._look("leaving")
    assert (await infer(door, "leaving", asked([[1, 1, 1]]))).status_code == 409


def binary_request(array: NDArray[np.float32], **more: Any) -> tuple[bytes, dict[str, str]]:
    tensor = {
        "name": "x",
        "shape": list(array.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": array.nbytes},
    }
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + array.tobytes(), {HEADER_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}


async def test_tensors_as_bytes_there_and_back(door: Door, doubling: str) -> None:
    array = np.arange(9, dtype=np.float32).reshape(3, 3)
    content, headers = binary_request(array, parameters={"binary_data_output": True})
    answer = await door.client.post("/v2/models/doubling/infer", content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    head = int(answer.headers[HEADER_LENGTH])
    [told] = json.loads(answer.content[:head])["outputs"]
    assert "data" not in told
    assert told["parameters"]["binary_data_size"] == array.nbytes
    assert np.array_equal(np.frombuffer(answer.content[head:], np.float32).reshape(3, 3), array * 2)
    content, headers = binary_request(array)
    answer = await door.client.post("/v2/models/doubling/infer", content=content, headers=headers)
    assert answer.json()["outputs"][0]["data"] == (array * 2).ravel().tolist()


async def test_many_at_once_get_their_own_answers(door: Door, doubling: str) -> None:
    answers = await asyncio.gather(*(infer(door, "doubling", asked([[n, n, n]])) for n in range(60)))
    assert [answer.json()["outputs"][0]["data"][0] for answer in answers] == [2.0 * n for n in range(60)]
    assert max(answer.json()["parameters"]["batch_rows"] for answer in answers) > 1


GOOD = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
BAD_TENSORS: dict[str, Any] = {
    "too few": GOOD | {"data": [1, 2]},
    "too many": GOOD | {"data": [1, 2, 3, 4]},
    "ragged": GOOD | {"data": [[1, 2], 3]},
    "nested otherwise": GOOD | {"shape": [3, 1], "data": [[1, 2, 3]]},
    "deeper than its shape": GOOD | {"data": [[[1], [2], [3]]]},
    "another shape": GOOD | {"shape": [1, 4], "data": [1, 2, 3, 4]},
    "another rank": GOOD | {"shape": [3]},
    "no such type": GOOD | {"datatype": "FP31"},
    "another type": GOOD | {"datatype": "FP64"},
    "texts": GOOD | {"datatype": "BYTES", "data": ["a", "b", "c"]},
    "a text for a number": GOOD | {"data": ["NaN", 1, 2]},
    "a truth for a number": GOOD | {"data": [True, 1, 2]},
    "nothing for a number": GOOD | {"data": [None, 1, 2]},
    "an object": GOOD | {"data": [{}, 1, 2]},
    "no list": GOOD | {"data": 1},
    "no data": {"name": "x", "shape": [1, 3], "datatype": "FP32"},
    "too large a number": GOOD | {"data": [10**39, 1, 2]},
    "larger than any": GOOD | {"data": [10**400, 1, 2]},
    "out of range": GOOD | {"datatype": "INT8", "data": [128, 1, 2]},
    "no whole number": GOOD | {"datatype": "INT32", "data": [1.5, 1, 2]},
    "negative dimension": GOOD | {"shape": [-1, 3]},
    "no rows": GOOD | {"shape": [0, 3], "data": []},
    "huge dimension": GOOD | {"shape": [10**30, 3]},
    "huge shape": GOOD | {"shape": [2**31 - 1] * 16},
    "many dimensions": GOOD | {"shape": [1] * 17},
    "no whole dimension": GOOD | {"shape": [1.0, 3]},
    "too many rows": GOOD | {"shape": [33, 3], "data": [0] * 99},
    "an unknown name": GOOD | {"name": "z"},
    "an unknown field": GOOD | {"colour": "red"},
    "bytes that are not there": {k: v for k, v in GOOD.items() if k != "data"}
    | {"parameters": {"binary_data_size": 12}},
    "a size that is none": GOOD | {"parameters": {"binary_data_size": "12"}},
}


@pytest.mark.parametrize("why", BAD_TENSORS)
async def test_bad_tensors_are_told(door: Door, doubling: str, why: str) -> None:
    answer = await infer(door, "doubling", {"inputs": [BAD_TENSORS[why]]})
    assert (answer.status_code, list(answer.json())) == (400, ["error"]), answer.text
    assert (await infer(door, "doubling", {"inputs": [GOOD]})).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"inputs": []}',
        b'{"inputs": [{"name":"x","shape":[1,3],"datatype":"FP32","data":[NaN,1,2]}]}',
        b'{"inputs": [{"name":"x","shape":[1,3],"datatype":"FP32","data":[1e400,1,2]}]}',
        b'{"inputs": [' + b"[" * 10_000,
        b'{"inputs": [{"name":"\\u0000","shape":[1,3],"datatype":"FP32","data":[1,1,2]}]}',
        b"\xff",
        json.dumps({"inputs": [GOOD, GOOD]}).encode(),
        json.dumps({"inputs": [GOOD], "outputs": [{"name": "nothing"}]}).encode(),
        json.dumps({"inputs": [GOOD], "parameters": {"timeout": -1}}).encode(),
        json.dumps({"inputs": [GOOD], "parameters": {"timeout": "soon"}}).encode(),
    ],
)
async def test_bodies_that_are_none(door: Door, doubling: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await door.client.post("/v2/models/doubling/infer", content=body, headers=headers)
    assert (answer.status_code, list(answer.json())) == (400, ["error"]), answer.text


async def test_bytes_that_do_not_fit(door: Door, doubling: str) -> None:
    array = np.ones((1, 3), np.float32)
    content, headers = binary_request(array)
    head = int(headers[HEADER_LENGTH])
    wrong = [
        (content[:-1], headers),
        (content + b"\0", headers),
        (content, headers | {HEADER_LENGTH: "99999"}),
        (content, headers | {HEADER_LENGTH: "-1"}),
        (content, headers | {HEADER_LENGTH: "many"}),
        (content, headers | {HEADER_LENGTH: str(head - 1)}),
    ]
    for body, told in wrong:
        answer = await door.client.post("/v2/models/doubling/infer", content=body, headers=told)
        assert (answer.status_code, list(answer.json())) == (400, ["error"]), answer.text
    large = await door.client.post(
        "/v2/models/doubling/infer", content=content + bytes(9 * 1024 * 1024), headers=headers
    )
    assert (large.status_code, list(large.json())) == (413, ["error"])
    large = await door.client.post("/v2/models/doubling/infer", json={"inputs": [GOOD | {"data": [0] * 600_000}]})
    assert large.status_code == 413
    form = await door.client.post("/v2/models/doubling/infer", data={"inputs": "1"})
    assert (form.status_code, list(form.json())) == (415, ["error"])


@pytest.mark.parametrize("name", ["nothing", str(UUID(int=5)), "..%2f", "x" * 10_000, "depth/versions/1"])
async def test_what_is_not_there(door: Door, name: str) -> None:
    for method, path in (("GET", ""), ("GET", "/ready"), ("POST", "/infer")):
        answer = await door.client.request(method, f"/v2/models/{name}{path}", json=asked([[1, 2, 3]]))
        assert (answer.status_code, list(answer.json())) == (404, ["error"]), answer.text


async def test_versions_that_cannot_serve(door: Door, doubling: str) -> None:
    other = await registered(door, "elsewhere", 7.0)
    assert (await infer(door, f"doubling/versions/{other}", asked([[1, 2, 3]]))).status_code == 404
    body = {"name": "m", "framework": "onnx", "hf_repo": "local/demo", "task": "unsynced"}
    unsynced = (await door.client.post("/v1/models", json=body)).json()["id"]
    answer = await infer(door, unsynced, asked([[1, 2, 3]]))
    assert (answer.status_code, answer.json()["error"]) == (409, "sync the model first")
    torchy: dict[str, Any] = {
        "name": "m",
        "framework": "torch",
        "hf_repo": "local/demo",
        "task": "torchy",
        "activate": True,
    }
    torch = (await door.client.post("/v1/models", json=torchy)).json()["id"]
    assert (await infer(door, torch, asked([[1, 2, 3]]))).status_code == 409


async def test_the_built_in_model_serves_pictures(door: Door) -> None:
    picture = np.random.default_rng(1).random((1, 3, 16, 24)).tolist()
    body = {"inputs": [{"name": "image", "shape": [1, 3, 16, 24], "datatype": "FP32", "data": picture}]}
    answer = await infer(door, "depth", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["shape"] == [1, 1, 16, 24]


class Slow:
    """Bodies that come in two pieces, the second when they may; counts those of which the first was taken."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.going_on = asyncio.Event()
        self.begun = 0

    async def __call__(self) -> AsyncIterator[bytes]:
        self.begun += 1
        yield self.body[:1]
        await self.going_on.wait()
        yield self.body[1:]


async def _send(client: httpx.AsyncClient, slow: Slow, name: str) -> httpx.Response:
    headers = {"Content-Type": "application/json", "Content-Length": str(len(slow.body))}
    return await client.post(f"/v2/models/{name}/infer", content=slow(), headers=headers)


@pytest.mark.parametrize("places", [3, 8])
async def test_so_much_of_bodies_is_in_memory_and_no_more(door: Door, doubling: str, places: int) -> None:
    """The others are not read before there is room; with room for all, the control, all are."""
    slow = Slow(json.dumps(asked([[1, 2, 3]])).encode())
    services = replace(door.services, bodies=Turns(bytes_max=places * len(slow.body)))
    async with client_of(services) as client:
        sent = [asyncio.create_task(_send(client, slow, "doubling")) for _ in range(8)]
        while slow.begun + services.bodies.waiting < 8:  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(0.01)
        assert (slow.begun, services.bodies.waiting) == (places, 8 - places)
        slow.going_on.set()
        assert [one.status_code for one in await asyncio.gather(*sent)] == [200] * 8
    assert slow.begun == 8


async def test_who_finds_no_room_in_time_is_told_when_to_come_back(door: Door, doubling: str) -> None:
    services = replace(door.services, bodies=Turns(bytes_max=1, wait_s_max=0.05))
    async with client_of(services) as client:
        async with services.bodies.taken(1):
            refused = await client.post("/v2/models/doubling/infer", json=asked([[1, 2, 3]]))
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
            assert refused.json().keys() == {"error"}
        assert (await client.post("/v2/models/doubling/infer", json=asked([[1, 2, 3]]))).status_code == 200


async def test_for_a_model_that_there_is_not_no_body_is_read(door: Door, doubling: str) -> None:
    slow = Slow(json.dumps(asked([[1, 2, 3]])).encode())
    slow.going_on.set()
    assert (await _send(door.client, slow, "nobody")).status_code == 404
    assert slow.begun == 0
    assert (await _send(door.client, slow, "doubling")).status_code == 200
    assert slow.begun == 1, "the control"


async def test_a_deadline_that_cannot_be_met_is_503(door: Door) -> None:
    model_id = await registered(door, f"late-{uuid7().hex[:8]}", 8.0)
    answer = await infer(door, model_id, asked([[1, 2, 3]], parameters={"timeout": 1}))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "deadline" not in answer.json()  # the protocol's shape, and no other


async def test_requests_are_counted(door: Door) -> None:
    model_id = await registered(door, "counted", 9.0)
    assert (await infer(door, "counted", asked([[1, 2, 3]]))).status_code == 200
    assert (await infer(door, "counted", {"inputs": []})).status_code == 400
    lines = (await door.client.get("/metrics")).text
    assert f'sightline_inference_requests_total{{model="{model_id}",result="ok"}} 1.0' in lines
    assert f'sightline_inference_requests_total{{model="{model_id}",result="tensor_invalid"}} 1.0' in lines
    assert f'sightline_inference_batch_rows_count{{model="{model_id}"}} 1.0' in lines


async def test_tasks_of_the_settings_are_served_from_the_start(door: Door) -> None:
    await registered(door, "early", 10.0)
    services = door.services
    settings = replace(services.settings, inference_tasks=["early"])
    async with open_serving(settings, services.commands, services.models) as serving:
        assert not serving.is_ready

        async def ready() -> bool:
            return serving.is_ready

        assert await until(ready)
        assert serving.holds(await serving.find("early"))
    async with open_serving(services.settings, services.commands, services.models) as serving:
        assert serving.is_ready  # the control: nothing is wanted
