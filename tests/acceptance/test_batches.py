"""A batch with poison in it on a running service: counted exactly, its dead letters told, requeued; and one cancelled.

The same with 10,000 jobs: `python -m tests.acceptance.big_batch`.
"""

from typing import Any

import pytest
from tests.acceptance import big_batch
from tests.acceptance.big_batch import Wrong, looked_at
from tests.conftest_parts import wait_for
from tests.conftest_up import Up

JOBS = 400


@pytest.fixture
def up(running: Up) -> Up:
    wait_for(running.ready)
    return running


def test_a_batch_with_poison(up: Up) -> None:
    figures = big_batch.run(up, JOBS, timeout_s=300)
    assert (figures.jobs, figures.poison) == (JOBS, JOBS // 20)


def test_a_cancelled_batch_ends_and_its_running_job_too(up: Up) -> None:
    body = {"kind": "noop", "defaults": {"params": {"sleep_s": 600}}, "jobs": [{}] * JOBS}
    batch_id = up.post("/v1/batches", body)["id"]

    def view() -> dict[str, Any]:
        answer = up.client.get(f"/v1/batches/{batch_id}")
        return looked_at(answer.json(), None) if answer.status_code == 200 else {"processing": 0, "outcome": None}

    wait_for(lambda: bool(view()["processing"]), 20)
    up.post(f"/v1/batches/{batch_id}/cancel", {})
    wait_for(lambda: view()["outcome"] is not None, 20)
    last = view()
    assert (last["status"], last["cancelled"], last["outcome"]["cancelled"]) == ("cancelled", JOBS, JOBS)


WHOLE: dict[str, Any] = {
    "total": 4,
    "status": "processing",
    "progress": 50,
    "finished_at": None,
    "pending": 1,
    "processing": 1,
    "completed": 1,
    "failed": 1,
    "dead_letters": 1,
    "cancelled": 0,
    "expired": 0,
    "deleted": 0,
}


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"pending": 2}, "not its total"),
        ({"completed": 0, "processing": 2, "progress": 25}, "fewer completed"),
        ({"progress": 51}, "how far"),
        ({"status": "completed"}, "over and is not"),
        ({"dead_letters": 2}, "more dead letters"),
    ],
)
def test_an_answer_that_cannot_be_is_noticed(changed: dict[str, Any], wrong: str) -> None:
    """The control."""
    looked_at(WHOLE, WHOLE)
    with pytest.raises(Wrong, match=wrong):
        looked_at(WHOLE | changed, WHOLE)
