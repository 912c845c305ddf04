"""A photograph becomes layers, from the door to the log and back, on a running service."""

import hashlib
import io
from typing import Any

import psycopg
import pytest
from PIL import Image
from tests.conftest_parts import wait_for
from tests.conftest_up import Up

from sightline.adapters.embedded.postgres import PostgresServer

LAYERS = {"num_layers": 3, "max_size": 256}


@pytest.fixture
def up(running: Up) -> Up:
    wait_for(running.ready)
    return running


def upload(up: Up) -> str:
    """Announce, bring, have it looked at."""
    picture = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(picture, "PNG")
    data = picture.getvalue()
    announced = {"filename": "a.png", "content_type": "image/png", "size_bytes": len(data), "purpose": "image"}
    asset = up.post("/v1/assets", announced)
    grant = asset["upload"]
    up.client.request(grant["method"], grant["url"], headers=grant["headers"], content=data).raise_for_status()
    digest = hashlib.sha256(data).hexdigest()
    done = up.post(f"/v1/assets/{asset['id']}/complete", {"sha256": digest, "size_bytes": len(data)})
    assert done["status"] == "clean"
    return str(done["id"])


def test_a_picture_becomes_layers_and_its_events_tell_how(up: Up) -> None:
    asset_id = upload(up)
    submitted = up.post("/v1/jobs", {"kind": "layer-photo-realistic", "inputs": [asset_id], "params": LAYERS})
    job = up.until_job(submitted["id"], "completed")
    assert abs(sum(layer["coverage_percent"] for layer in job["manifest"]["layers"]) - 100) <= 0.5
    for artifact in up.get(f"/v1/jobs/{job['id']}/artifacts")["items"]:
        data = up.client.get(artifact["url"]).content
        assert hashlib.sha256(data).hexdigest() == artifact["sha256"]
    own = [event for event in up.log_of_events() if event["stream_id"] == job["id"]]
    told = [event["type"] for event in own if event["type"] != "job.progressed"]
    assert told == ["job.submitted", "job.started", "job.completed"]
    assert [event["version"] for event in own] == list(range(1, len(own) + 1))
    causes = {event["causation_id"] for event in own[2:]}
    assert causes == {f"event:{own[1]['position']}"}
    assert len({event["correlation_id"] for event in own}) == 1


def test_the_log_pages_whole_and_cannot_be_changed(up: Up) -> None:
    up.post("/v1/jobs", {"kind": "noop"})
    log: list[dict[str, Any]] = up.log_of_events()
    assert [event["position"] for event in log] == list(range(1, len(log) + 1))
    with psycopg.connect(PostgresServer(up.data_dir).dsn, autocommit=True) as owner:
        for statement in ("UPDATE events SET topic = 'x'", "DELETE FROM events", "TRUNCATE events"):
            with pytest.raises(psycopg.Error):
                owner.execute(statement)
    assert up.log_of_events()[: len(log)] == log
