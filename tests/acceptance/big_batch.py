"""`python -m tests.acceptance.big_batch --jobs 10000`: one batch with poison in it, on a running service, and figures.

Every answer on the way is held against what must be so at any time; at the end every job is held against what it was
asked to do. The test beside it is the same with fewer jobs.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from msgspec import Struct
from tests.conftest_parts import wait_for
from tests.conftest_up import Up, free_port

POISON_EVERY = 20  # 5 %
ATTEMPTS_MAX = 2
STATES = ("pending", "processing", "completed", "failed", "cancelled", "expired", "deleted")
BODY_TIMEOUT_S = 60.0


class Figures(Struct, frozen=True, kw_only=True):
    """Attributes:
    submit_s: until the whole batch was acknowledged.
    jobs_per_s: from there to its end, retries of the poison included.
    count_ms: of a GET of the batch, the median, taken when it was over.
    polls: answers that were looked at on the way.
    requeue_s: until all dead letters waited again.
    """

    jobs: int
    poison: int
    submit_s: float
    jobs_per_s: float
    count_ms: float
    polls: int
    requeue_s: float

    def __str__(self) -> str:
        return (
            f"{self.jobs} jobs, {self.poison} of them poison: submitted in {self.submit_s:.2f} s,"
            f" over at {self.jobs_per_s:.0f} jobs/s, counted exactly {self.polls} times on the way"
            f" ({self.count_ms:.1f} ms each at the end), requeued in {self.requeue_s:.2f} s"
        )


class Wrong(AssertionError):
    """An answer says what cannot be."""


def require(what: str, held: bool) -> None:
    """Raises: Wrong: it does not hold."""
    if not held:
        raise Wrong(what)


def looked_at(view: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """The batch as it was answered.

    Raises:
        Wrong: its counts do not sum up to its total, or go back, or say that it is over while a job is not.
    """
    ended = sum(view[state] for state in STATES[2:])
    require(f"the counts of {view} are not its total", sum(view[state] for state in STATES) == view["total"])
    require(f"{view} says how far it is wrongly", view["progress"] == ended * 100 // view["total"])
    over = view["status"] in {"completed", "cancelled"}
    require(f"{view} is over and is not", over == (ended == view["total"]) == (view["finished_at"] is not None))
    require(f"{view} has more dead letters than failures", view["dead_letters"] <= view["failed"])
    if before is not None:
        for state in ("completed", "failed"):
            require(f"{view} has fewer {state} than {before}", view[state] >= before[state])
    return view


def run(up: Up, jobs: int, *, timeout_s: float) -> Figures:
    """Submit, follow to the end, read the reasons, preview, requeue, follow again.

    Raises:
        Wrong: as above, or a job did not become what it should have.
        TimeoutError: it was not over in time.
    """
    poison = {number for number in range(1, jobs + 1) if number % POISON_EVERY == 0}
    members = [{"ref": f"r{n}", "params": {"fail": n in poison}} for n in range(1, jobs + 1)]
    began = time.perf_counter()
    answer = up.client.post(
        "/v1/batches",
        json={"kind": "noop", "defaults": {"attempts_max": ATTEMPTS_MAX}, "jobs": members},
        timeout=BODY_TIMEOUT_S,
    )
    answer.raise_for_status()
    submitted_s = time.perf_counter() - began
    batch_id, least = answer.json()["id"], answer.headers["Event-Position"]
    polls = followed(up, batch_id, least, lambda view: bool(view["status"] == "completed"), timeout_s)
    over_s = time.perf_counter() - began - submitted_s
    view = up.get(f"/v1/batches/{batch_id}")
    require(f"{view} is not {jobs - len(poison)} and {len(poison)}", view["completed"] == jobs - len(poison))
    require(f"{view} has another number of dead letters", view["dead_letters"] == view["failed"] == len(poison))
    dead = checked(up, batch_id, poison, attempts=ATTEMPTS_MAX)
    wait_for(lambda: up.get(f"/v1/batches/{batch_id}")["outcome"] is not None)
    count_ms = sorted(_elapsed_ms(up, f"/v1/batches/{batch_id}") for _ in range(11))[5]
    requeue_s = requeued(up, batch_id, dead, timeout_s)
    checked(up, batch_id, poison, attempts=2 * ATTEMPTS_MAX)
    said = [one["type"] for one in up.get(f"/v1/batches/{batch_id}/history")["items"]]
    require(f"its end was said {said}", said == ["batch.submitted", "batch.completed"])
    return Figures(
        jobs=jobs,
        poison=len(poison),
        submit_s=submitted_s,
        jobs_per_s=jobs / over_s,
        count_ms=count_ms,
        polls=polls,
        requeue_s=requeue_s,
    )


def followed(up: Up, batch_id: str, least: str, reached: Callable[[dict[str, Any]], bool], timeout_s: float) -> int:
    """Look at every answer until one is what is waited for; how many there were."""
    seen: list[dict[str, Any]] = []

    def look() -> bool:
        headers = {"Min-Position": least, "Prefer": "wait=10"}
        answer = up.client.get(f"/v1/batches/{batch_id}", headers=headers, timeout=20)
        answer.raise_for_status()
        seen[:] = [*seen, looked_at(answer.json(), seen[-1] if seen else None)]
        return reached(seen[-1])

    wait_for(look, timeout_s)
    return len(seen)


def checked(up: Up, batch_id: str, poison: set[int], *, attempts: int) -> set[str]:
    """Every job of the batch is what it was asked to be; the ids of its dead letters.

    Raises:
        Wrong: one is not.
    """
    numbers: list[int] = []
    dead: set[str] = set()
    for job in pages(up, f"/v1/batches/{batch_id}/jobs"):
        numbers.append(job["number"])
        require(f"{job} has another's name", job["ref"] == f"r{job['number']}")
        if job["number"] in poison:
            dead.add(job["id"])
            found = (job["status"], job["dead_letter"], job["error_code"], job["error_message"], job["attempt"])
            require(
                f"{found} of {job['id']}", found == ("failed", True, "noop_failed", "it was told to fail", attempts)
            )
        else:
            require(f"{job['id']} is {job['status']}", (job["status"], job["attempt"]) == ("completed", 1))
    require("a job is missing, or there twice", numbers == list(range(1, len(numbers) + 1)))
    return dead


def requeued(up: Up, batch_id: str, dead: set[str], timeout_s: float) -> float:
    """Preview, then do it, then wait until they have died again; seconds that doing it took.

    Raises:
        Wrong: the preview did something, or told of others than were requeued.
    """
    wanted = {"batch_id": batch_id, "code": "noop_failed"}
    preview = up.post("/v1/dead-letters/requeue", {**wanted, "preview": True})
    told = (preview["matching"], preview["requeued"], {one["id"] for one in preview["sample"]} <= dead)
    require(f"the preview tells {told}", told == (len(dead), 0, True))
    require("the preview did something", up.get(f"/v1/batches/{batch_id}")["dead_letters"] == len(dead))
    none = up.post("/v1/dead-letters/requeue", {**wanted, "code": "another"})
    require("another code has dead letters", (none["matching"], none["requeued"]) == (0, 0))
    began = time.perf_counter()
    done = up.client.post("/v1/dead-letters/requeue", json=wanted, timeout=BODY_TIMEOUT_S).json()
    took_s = time.perf_counter() - began
    require(f"requeued {done['requeued']}", (done["requeued"], done["skipped"]) == (len(dead), 0))
    view: dict[str, Any] = {}

    def died_again() -> bool:
        view.update(looked_at(up.get(f"/v1/batches/{batch_id}"), None))
        one = up.get(f"/v1/jobs/{max(dead)}")
        return bool(view["status"] == "completed" and one["attempt"] == 2 * ATTEMPTS_MAX)

    wait_for(died_again, timeout_s)
    return took_s


def pages(up: Up, path: str) -> list[dict[str, Any]]:
    """Every item of a list."""
    found: list[dict[str, Any]] = []
    page = up.get(path, limit=200)
    while True:
        found += page["items"]
        if page["next"] is None:
            return found
        page = up.get(path, limit=200, after=page["next"])


def _elapsed_ms(up: Up, path: str) -> float:
    began = time.perf_counter()
    up.get(path)
    return (time.perf_counter() - began) * 1000


@click.command()
@click.option("--jobs", type=click.IntRange(POISON_EVERY, 10_000), default=10_000, show_default=True)
@click.option("--timeout-s", type=click.IntRange(10, 3_600), default=600, show_default=True)
def main(jobs: int, timeout_s: int) -> None:
    """A batch of so many jobs, one in twenty of them poison."""
    with tempfile.TemporaryDirectory(prefix="sightline-batch-") as directory:
        up = Up(Path(directory) / "data", free_port())
        try:
            up.until_ready()
            click.echo(run(up, jobs, timeout_s=timeout_s))
        finally:
            up.stop()


if __name__ == "__main__":
    main()
