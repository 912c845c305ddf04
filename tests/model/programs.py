"""Programs for the state machine: a few bytes become steps, and a step becomes a command about things that exist.

Bytes, since drawing them costs next to nothing and they shrink well; a step prints as what it says.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from hypothesis import strategies as st
from tests.model.reference import Row, World

from sightline.adapters.ids import uuid7

STEP_BYTES = 5
RECENT = 5  # things that a step may mean: few, so that steps meet
NEVER_WAS = 248  # from this on `which` is something that never was
FITTING = 192  # below it, a job or a model that fits the verb
SHA256 = ["a" * 64, "b" * 64]

# The more often a verb stands here, the more often it is said; what ends a thing for good is said seldom.
VERBS = (
    *["submit_job"] * 7,
    *["start_job"] * 9,
    *["complete_job"] * 5,
    *["fail_job"] * 6,
    *["report_progress"] * 4,
    *["cancel_job", "confirm_cancel", "lose_lease", "time_out_job", "requeue_job"] * 2,
    *["create_session", "attach_asset", "register_asset", "request_upload", "complete_upload"] * 2,
    *["register_model", "start_sync", "complete_sync", "activate_model"] * 2,
    *["roll_back_model", "fail_sync", "archive_model"],
    *["expire_job", "delete_job", "expire_session", "close_session", "delete_asset"],
)
KEYED = {"submit_job", "cancel_job", "requeue_job", "delete_job", "create_session", "attach_asset", "close_session"}
KEYED |= {"register_asset", "request_upload", "complete_upload", "delete_asset", "register_model", "archive_model"}
KEYED |= {"activate_model", "roll_back_model", "start_sync"}
CREATES = {"create_session": "session", "request_upload": "asset", "register_asset": "asset"}
CREATES |= {"register_model": "model", "submit_job": "job"}
# What a verb is most often said to: a job or a model in this state, if there is one.
FITS = {"start_job": "pending", "expire_job": "pending", "requeue_job": "failed", "delete_job": "cancelled"}
FITS |= dict.fromkeys(["complete_job", "fail_job", "report_progress", "confirm_cancel"], "processing")
FITS |= {"start_sync": "registered", "activate_model": "synced"} | dict.fromkeys(
    ["complete_sync", "fail_sync"], "syncing"
)
FITS |= dict.fromkeys(["lose_lease", "time_out_job", "cancel_job"], "processing")


class Step(NamedTuple):
    """One command in outline.

    Attributes:
        which: of the recent things.
        how: its arguments, small ones first: the usual, then the odd.
        who: on which side it is executed, and as which worker.
        if_match: which version the caller wants, if any.
    """

    verb: str
    which: int
    how: int
    who: int
    if_match: int


def _step(five: Sequence[int]) -> Step:
    verb, which, how, who, if_match = five
    return Step(VERBS[verb % len(VERBS)], which, how, who, if_match)


def _steps(data: bytes) -> list[Step]:
    return [_step(data[n : n + STEP_BYTES]) for n in range(0, len(data) - STEP_BYTES + 1, STEP_BYTES)]


def steps(most: int, least: int = 1) -> st.SearchStrategy[list[Step]]:
    return st.binary(min_size=least * STEP_BYTES, max_size=most * STEP_BYTES).map(_steps)


class Author:
    """Turns steps into the fields of commands, by what the reference knows to be there."""

    def __init__(self, world: World, task: str) -> None:
        self.world = world
        self.task = task
        self.now: Any = None
        self.ids: dict[str, list[UUID]] = {noun: [] for noun in ("session", "asset", "model", "job")}

    def fields(self, step: Step) -> Row:
        """The command's fields; an id that it creates is known from now on."""
        write: Callable[[Step], Row] = getattr(self, f"_{step.verb}", self._about_job)
        return write(step)

    def one(self, noun: str, which: int) -> UUID:
        ids = self.ids[noun]
        return ids[-1 - which % min(len(ids), RECENT)] if ids and which < NEVER_WAS else uuid7()

    def fresh(self, noun: str, which: int) -> UUID:
        """A new id, or now and then one that is taken."""
        if which >= NEVER_WAS and self.ids[noun]:
            return self.one(noun, which - NEVER_WAS)
        self.ids[noun].append(uuid7())
        return self.ids[noun][-1]

    def fitting(self, noun: str, step: Step) -> UUID:
        ids, rows = self.ids[noun], self.world[noun]
        fitting = [one for one in ids if one in rows and rows[one]["status"] == FITS.get(step.verb)]
        if fitting and step.which < FITTING:
            return fitting[-1 - step.which % min(len(fitting), RECENT)]
        return self.one(noun, step.which)

    def _create_session(self, step: Step) -> Row:
        user_id = odd(step.how, None, "ada", "", "x" * 201)
        duration_s = odd(step.how // 4, 60, 3, 2700, 0, 86401)
        return {"session_id": self.fresh("session", step.which), "user_id": user_id, "duration_s": duration_s}

    def _attach_asset(self, step: Step) -> Row:
        return {"session_id": self.one("session", step.which), "asset_id": self.one("asset", step.how)}

    def _expire_session(self, step: Step) -> Row:
        return {"session_id": self.one("session", step.which)}

    _close_session = _expire_session

    def _announced(self, step: Step) -> Row:
        return {
            "asset_id": self.fresh("asset", step.which),
            "filename": odd(step.how, "sea.png", "a\tb", ""),
            "content_type": odd(step.how // 3, "image/png", "text/html"),
            "size_bytes": odd(step.how // 5, 1, 2, 0, 60 * 1024 * 1024),
            "purpose": odd(step.how // 7, "image", "ransom"),
            "size_bytes_max": odd(step.how // 11, None, 1),
        }

    _request_upload = _announced

    def _arrived(self, step: Step) -> Row:
        sha256 = odd(step.who // 8, SHA256[0], SHA256[1], "x")
        return {"sha256": sha256, "scan": {"engine": "test", "code": odd(step.who // 16, None, "image_undecodable")}}

    def _register_asset(self, step: Step) -> Row:
        found = odd(step.who // 4, "image/png", "image/jpeg")
        return self._announced(step) | self._arrived(step) | {"found_content_type": found}

    def _complete_upload(self, step: Step) -> Row:
        asset_id = self.one("asset", step.which)
        announced = self.world["asset"].get(asset_id, {}).get("size_bytes", 1)
        came = {"size_bytes": announced + odd(step.how, 0, 1), "content_type": odd(step.how // 4, "image/png", "")}
        return {"asset_id": asset_id} | came | self._arrived(step)

    def _delete_asset(self, step: Step) -> Row:
        return {"asset_id": self.one("asset", step.which)}

    def _register_model(self, step: Step) -> Row:
        uri = odd(step.how // 3, "builtin:depth", None)
        return {
            "model_id": self.fresh("model", step.which),
            "name": odd(step.how, "depth", ""),
            "framework": odd(step.how // 5, "onnx", "abacus"),
            "task": odd(step.how // 7, self.task, f"{self.task}-other"),
            "hf_repo": odd(step.how // 11, None if uri else "local/demo", "local/demo", "https://x"),
            "uri": uri,
        }

    def _about_model(self, step: Step) -> Row:
        return {"model_id": self.fitting("model", step)}

    _start_sync = _archive_model = _activate_model = _about_model

    def _roll_back_model(self, step: Step) -> Row:
        active = self.world["slot"].get(self.task, {}).get("active")
        return {"model_id": active if active is not None and step.which < 160 else self.one("model", step.which)}

    def _complete_sync(self, step: Step) -> Row:
        sha256, size_bytes = odd(step.how, SHA256[0], SHA256[1], "x"), odd(step.how // 3, 1, 0)
        found = {"sha256": sha256, "size_bytes": size_bytes, "path": "depth.onnx", "origin": "builtin"}
        return {"model_id": self.fitting("model", step)} | found

    def _fail_sync(self, step: Step) -> Row:
        return {"model_id": self.fitting("model", step), "error": "no route"}

    def _submit_job(self, step: Step) -> Row:
        plain, seeing, elsewhere = list(self.world["kinds"])
        kind = odd(step.how, plain, seeing, plain, seeing, plain, elsewhere, "abacus", usual=2)
        needs = self.world["kinds"].get(kind, (0, None))[0] + odd(step.how // 5, 0, 1)
        waiting = self.world["pending"].get(kind, 0)
        model_id = self.one("model", step.if_match) if step.who // 2 % 16 == 1 else None
        return {
            "job_id": self.fresh("job", step.which),
            "kind": kind,
            "inputs": tuple(self.one("asset", step.who + n) for n in range(needs)),
            "session_id": odd(step.how // 7, None, self.one("session", step.who), usual=1),
            "model_version_id": model_id,
            "priority": odd(step.how // 11, 5, 0, 10),
            "timeout_s": odd(step.how // 13, 600, 5, 0),
            "attempts_max": odd(step.how // 17, 2, 1, 0),
            "pending_max": odd(step.if_match // 8, 10_000, waiting + 1, waiting),
        }

    def _about_job(self, step: Step) -> Row:
        return {"job_id": self.fitting("job", step)}

    def worker(self, step: Step) -> str:
        """Whoever holds the job; at times somebody else."""
        holder = self.world["job"].get(self.fitting("job", step), {}).get("worker")
        return holder if holder is not None and step.who % 8 < 6 else f"w{step.who % 3}"

    def _start_job(self, step: Step) -> Row:
        return self._about_job(step) | {"worker": f"w{step.who % 3}", "lease_until": self.now + timedelta(seconds=10)}

    def _attempt(self, step: Step) -> Row:
        job_id = self.fitting("job", step)
        attempt = self.world["job"].get(job_id, {}).get("attempt", 0) + odd(step.if_match // 4, 0, -1, 1)
        return {"job_id": job_id, "attempt": attempt, "worker": self.worker(step)}

    _confirm_cancel = _time_out_job = _attempt

    def _report_progress(self, step: Step) -> Row:
        percent, message = odd(step.how, 50, 10, 60, 100, 101, usual=2), odd(step.how // 5, "", "bands", usual=1)
        return self._attempt(step) | {"percent": percent, "message": message}

    def _complete_job(self, step: Step) -> Row:
        names = odd(step.how, ["a.png"], [], ["a.png", "b.png"], ["a.png", "a.png"], ["a/b"])
        outputs = [
            {"name": name, "object_key": name, "sha256": SHA256[0], "size_bytes": 1, "content_type": "image/png"}
            for name in names
        ]
        made = {"outputs": outputs, "manifest": {"layers": len(names)}, "timings": {"run": 0.5}, "receipt": {}}
        return self._attempt(step) | made

    def _lose_lease(self, step: Step) -> Row:
        return self._attempt(step) | {"retry_delay_s": odd(step.how // 4, 0, 4, 301, usual=2)}

    def _fail_job(self, step: Step) -> Row:
        failure = {"code": "runner_died", "message": "gone", "retryable": step.how % 4 < 3}
        return self._lose_lease(step) | failure


def odd(byte: int, *values: Any, usual: int = 12) -> Any:
    """One of `values`: the first `usual` times as often as each other."""
    return values[max(byte % (len(values) + usual - 1) - usual + 1, 0)]
