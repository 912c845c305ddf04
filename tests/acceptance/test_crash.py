"""Whatever is killed under load, what was acknowledged is there, and each job is done once."""

import os
import random
import signal
import uuid

import httpx
import pytest
from tests.conftest_parts import wait_for
from tests.conftest_up import Up, is_part

JOBS, KILLS = 30, 6
VICTIMS = ("serve", "work", "project", "tick", "postgres", "valkey-server")


@pytest.fixture
def up(running: Up) -> Up:
    wait_for(running.ready, 20)
    return running


def kill(up: Up, part: str) -> None:
    for pid in sorted(pid for pid, line in up.pids().items() if is_part(line, part))[:1]:
        os.kill(pid, signal.SIGKILL)


def test_kill_9_of_the_worker_during_a_job(up: Up) -> None:
    """The one that is started in its place completes the job after the lease, with exactly one JobCompleted."""
    job = up.post("/v1/jobs", {"kind": "noop", "params": {"sleep_s": 1}})
    up.until_job(job["id"], "processing")
    wait_for(lambda: "job.progressed" in told(up, job["id"]))
    kill(up, "work")
    done = up.until_job(job["id"], "completed", timeout_s=30)
    assert done["attempt"] == 2
    said = [topic for topic in told(up, job["id"]) if topic != "job.progressed"]
    assert said == ["job.submitted", "job.started", "job.retry_scheduled", "job.started", "job.completed"]


def told(up: Up, job_id: str) -> list[str]:
    return [event["type"] for event in up.get("/v1/events", stream=job_id, limit=100)["items"]]


def test_jobs_under_kills_are_neither_lost_nor_done_twice(up: Up) -> None:
    """Each is asked for under a key until it is acknowledged, while its service dies around it again and again."""
    dice = random.Random(1)
    victims = [dice.choice(VICTIMS) for _ in range(KILLS)]
    acknowledged: dict[str, str] = {}
    for number in range(JOBS):
        if number % (JOBS // KILLS) == 2:
            kill(up, victims.pop())
        key = str(uuid.uuid4())
        wait_for(lambda key=key: submit(up, key, acknowledged), 30)  # type: ignore[misc]  # bound per round
    assert not victims
    wait_for(up.ready, 30)
    for job_id in acknowledged.values():
        up.until_job(job_id, "completed", timeout_s=60)
        assert told(up, job_id).count("job.completed") == 1
    log = up.log_of_events()
    assert [event["position"] for event in log] == list(range(1, len(log) + 1))
    submitted = [event["stream_id"] for event in log if event["type"] == "job.submitted"]
    assert len(set(submitted)) == len(submitted)
    assert set(acknowledged.values()) <= set(submitted)
    assert len(set(acknowledged.values())) == JOBS


def submit(up: Up, key: str, acknowledged: dict[str, str]) -> bool:
    body = {"kind": "noop", "params": {"sleep_s": 0.02}, "attempts_max": 20}
    try:
        answer = up.client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
    except httpx.TransportError:
        return False
    if answer.is_success:
        acknowledged[key] = answer.json()["id"]
    return answer.is_success
