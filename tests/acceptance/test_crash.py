"""A worker that is killed during a job: another one does it. Everything else that may be killed: tests/crash."""

import os
import signal

import pytest
from tests.conftest_parts import wait_for
from tests.conftest_up import Up, is_part


@pytest.fixture
def up(running: Up) -> Up:
    wait_for(running.ready)
    return running


def test_kill_9_of_the_worker_during_a_job(up: Up) -> None:
    """The one that is started in its place completes the job after the lease, with exactly one JobCompleted."""
    job = up.post("/v1/jobs", {"kind": "noop", "params": {"sleep_s": 1}})
    up.until_job(job["id"], "processing")
    wait_for(lambda: "job.progressed" in told(up, job["id"]))
    for pid in [pid for pid, line in up.pids().items() if is_part(line, "work")]:
        os.kill(pid, signal.SIGKILL)
    done = up.until_job(job["id"], "completed")
    assert done["attempt"] == 2
    said = [topic for topic in told(up, job["id"]) if topic != "job.progressed"]
    assert said == ["job.submitted", "job.started", "job.retry_scheduled", "job.started", "job.completed"]


def told(up: Up, job_id: str) -> list[str]:
    return [event["type"] for event in up.get("/v1/events", stream=job_id, limit=100)["items"]]
