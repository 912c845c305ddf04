"""Texts become vectors and a photograph is judged, from the door to the log and back, on a running service."""

import io
import os
import subprocess
import sys
from http import HTTPStatus

import numpy as np
import pytest
from tests.acceptance.test_jobs import upload
from tests.conftest_parts import wait_for
from tests.conftest_up import Up

from sightline.adapters import minilm


@pytest.fixture(scope="module")
def built(running: Up) -> Up:
    """The service after an operator built MiniLM beside it."""
    wait_for(running.ready)
    command = [sys.executable, "-m", "sightline", "models", "build-minilm", "--data-dir", str(running.data_dir)]
    subprocess.run(command, check=True, capture_output=True, timeout=60, env=os.environ)
    return running


TEXTS = ["A man is eating food.", "A man eats something.", "The stock market fell sharply today."]


def test_texts_become_vectors(built: Up) -> None:
    submitted = built.post("/v1/jobs", {"kind": "embed", "params": {"texts": TEXTS}})
    assert submitted["model_sha256"] == minilm.SHA256
    job = built.until_job(submitted["id"], "completed")
    assert (job["manifest"]["count"], job["manifest"]["truncated"]) == (3, [])
    [artifact] = built.get(f"/v1/jobs/{job['id']}/artifacts")["items"]
    vectors = np.load(io.BytesIO(built.client.get(artifact["url"]).content))
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.5
    receipt = built.get(f"/v1/jobs/{job['id']}/receipt")
    assert receipt["model_sha256"] == minilm.SHA256
    assert receipt["provider"] in {"CPUExecutionProvider", "CUDAExecutionProvider"}
    assert receipt["runtime"].startswith("onnxruntime ")
    assert {"tokenise", "infer"} <= receipt["timings"].keys()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"kind": "embed", "params": {"texts": ["a\\u0000b"]}}', HTTPStatus.BAD_REQUEST, "malformed_json"),
        (b'{"kind": "embed", "params": {"texts": ["\\ud800"]}}', HTTPStatus.BAD_REQUEST, "malformed_json"),
        (b'{"kind": "embed", "params": {"texts": ["\xff"]}}', HTTPStatus.BAD_REQUEST, "malformed_json"),
        (b'{"kind": "embed", "params": {"texts": []}}', HTTPStatus.UNPROCESSABLE_ENTITY, "rule_violated"),
        (b'{"kind": "embed", "params": {}}', HTTPStatus.UNPROCESSABLE_ENTITY, "rule_violated"),
        (
            b'{"kind": "embed", "params": {"texts": ["%s"]}}' % (b"x" * 8193),
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "rule_violated",
        ),
        (
            b'{"kind": "embed", "params": {"texts": ["%s"]}}' % (b"x" * 10_000_000),
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "payload_too_large",
        ),
        (b'{"kind": "inspect", "params": {"top_k": 0}}', HTTPStatus.UNPROCESSABLE_ENTITY, "rule_violated"),
    ],
    ids=["nul", "surrogate", "not-utf-8", "none", "missing", "long", "10-megabytes", "top-k"],
)
def test_what_the_door_refuses(built: Up, body: bytes, status: int, code: str) -> None:
    answer = built.client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_photograph_is_judged_and_the_answer_says_by_whom(running: Up) -> None:
    wait_for(running.ready)
    submitted = running.post("/v1/jobs", {"kind": "inspect", "inputs": [upload(running)], "params": {"top_k": 2}})
    job = running.until_job(submitted["id"], "completed")
    assert job["manifest"]["heuristic"] is True
    assert {one["label"] for one in job["manifest"]["labels"]} == {"blurred", "well_exposed"}
    assert job["manifest"]["model"]["name"] == "photo-quality-heuristic"
    [artifact] = running.get(f"/v1/jobs/{job['id']}/artifacts")["items"]
    assert running.client.get(artifact["url"]).json() == job["manifest"]
