"""What Sightline promises about its commands, said once more as plainly as it can be: dictionaries and functions.

Written from the documents, with no line of the service's, so that the two do not agree by sharing a mistake. A world
is `{noun: {id: row}}`; rows are replaced, never changed: a copy of the tables is a copy of the world. Each noun is a
function of the world `w` and a command `c`, which has a `verb`, its fields, who asks (`actor`), when (`now`), and what
it is about (`noun`, `key`); it says what follows, or refuses, or has nothing to say.
"""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

World = dict[str, dict[Any, Any]]
Row = dict[str, Any]

IMAGES = {"image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff"}
VIDEOS = {"video/mp4", "video/quicktime", "video/x-matroska"}
PURPOSES = {"image": (IMAGES, 50 * 2**20), "video": (VIDEOS, 2 * 2**30)}
MAKE = {"create_session", "request_upload", "register_asset", "register_model", "submit_job"}
PRESENT = {"cancel_job", "requeue_job", "start_job", "report_progress"}  # a deleted job is absent to these
OVER = {"completed", "failed", "cancelled", "expired", "deleted"}
NEW_JOB: Row = dict.fromkeys(["worker", "not_before", "cancel_requested_by", "error_code", "started_at", "finished_at"])
NEW_JOB |= {"attempt": 0, "percent": 0, "message": "", "error_message": "", "dead_letter": False}


class Refused(Exception):
    """The promised refusal, by its code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def new_world(kinds: dict[str, tuple[int, str | None]]) -> World:
    """Nothing was said yet. `kinds`: how many inputs each kind of job takes, and the task whose model it needs."""
    world: World = {noun: {} for noun in (*NOUNS, "receipts")}
    return world | {"kinds": dict(kinds), "pending": dict.fromkeys(kinds, 0)}


def fork(w: World) -> World:
    return {name: dict(table) for name, table in w.items()}


def execute(
    w: World, noun: str, verb: str, said: Row, *,
    actor: str, now: Any, command_id: Any, digest: str = "", versions: frozenset[int] | None = None,
) -> tuple[str, Any, bool]:  # fmt: skip
    """Noun and id of what the command was about, and whether it is a repeat. `versions`: those wanted (If-Match).

    Raises:
        Refused: and nothing happened.
    """
    if command_id in w["receipts"]:  # its first outcome, whatever has become true since
        noun, key, first = w["receipts"][command_id]
        require(first == digest, "idempotency_key_reused")
        return noun, key, True
    after = fork(w)  # all of it or nothing
    c = SimpleNamespace(**said, verb=verb, noun=noun, actor=actor, now=now, versions=versions)
    c.key = said["model_id" if noun == "slot" else f"{noun}_id"]
    if noun == "slot":  # that of the model's task
        require(c.key in w["model"], "not_found")
        c.key = w["model"][c.key]["task"]
    if verb not in MAKE or c.key not in w[noun]:  # what is there already is not made twice
        NOUNS[noun](after, c)
    after["receipts"][command_id] = (noun, c.key, digest)
    w.update(after)
    return noun, c.key, False


def require(holds: object, code: str) -> None:
    if not holds:
        raise Refused(code)


def own(w: World, c: Any) -> Row:
    """The row that a command is about, at a version that its caller accepts; absent is version 0."""
    row: Row = w[c.noun].get(c.key, {"version": 0, "status": None})
    require(c.versions is None or row["version"] in c.versions, "precondition_failed")
    return row


def found(w: World, c: Any) -> Row:
    row = own(w, c)
    require(row["version"], "not_found")
    return row


def say(w: World, c: Any, *, events: int = 1, **changed: Any) -> None:
    """So many events on the command's stream, and what they make of its row; counts a job in or out of the waiting."""
    before = w[c.noun].get(c.key, {"version": 0, "created_at": c.now, "owner": c.actor})
    after = w[c.noun][c.key] = {**before, "updated_at": c.now, **changed, "version": before["version"] + events}
    if c.noun == "job":
        w["pending"][after["kind"]] += (after["status"] == "pending") - (before.get("status") == "pending")


def some(c: Any, names: str) -> Row:
    return {name: getattr(c, name) for name in names.split()}


def status_at(session: Row, now: Any) -> str:
    """Over for writers the moment its time is over, whether or not somebody has said so."""
    return "expired" if session["status"] == "active" and now >= session["expires_at"] else str(session["status"])


def require_open(w: World, session_id: Any, now: Any) -> None:
    require(session_id in w["session"], "not_found")
    require((status := status_at(w["session"][session_id], now)) != "expired", "session_expired")
    require(status == "active", "invalid_state")


def session(w: World, c: Any) -> None:
    if c.verb == "create_session":
        require(1 <= c.duration_s <= 24 * 3600, "rule_violated")
        require(c.user_id is None or 1 <= len(c.user_id) <= 200, "rule_violated")
        row = {"expires_at": c.now + timedelta(seconds=c.duration_s), "last_activity_at": c.now}
        say(w, c, status="active", user_id=c.user_id, asset_ids=[], **row)
    elif c.verb == "attach_asset":
        row = own(w, c)
        require_clean(w, c.asset_id)
        require_open(w, c.key, c.now)
        if c.asset_id not in row["asset_ids"]:
            require(len(row["asset_ids"]) < 100, "rule_violated")
            say(w, c, asset_ids=[*row["asset_ids"], c.asset_id], last_activity_at=c.now)
    elif c.verb == "expire_session":
        row = found(w, c)
        if status_at(row, c.now) == "expired" != row["status"]:
            say(w, c, status="expired")
    elif c.verb == "close_session" and found(w, c)["status"] != "closed":
        say(w, c, status="closed", last_activity_at=c.now)


def require_clean(w: World, asset_id: Any) -> None:
    """Only what was scanned clean feeds a process."""
    status = w["asset"].get(asset_id, {}).get("status", "deleted")
    require(status != "deleted", "not_found")
    require(status == "clean", "asset_not_clean")


def asset(w: World, c: Any) -> None:
    if c.verb in {"request_upload", "register_asset"}:
        require(c.purpose in PURPOSES and 1 <= len(c.filename) <= 255 and c.filename.isprintable(), "rule_violated")
        types, most = PURPOSES[c.purpose]
        require(c.content_type in types, "unsupported_media_type")
        require(c.size_bytes <= (c.size_bytes_max or most), "payload_too_large")
        require(c.size_bytes > 0, "empty_file")
        row = some(c, "purpose filename content_type size_bytes") | {"sha256": None, "quarantine_code": None}
        if c.verb == "request_upload":
            say(w, c, status="requested", **row)
        else:
            say(w, c, **row | uploaded(c, row, c.found_content_type), events=3)
    elif c.verb == "complete_upload":
        row = found(w, c)
        require(row["status"] != "deleted", "not_found")
        if row["status"] == "requested":
            say(w, c, **uploaded(c, row, c.content_type), events=2)
        require(row["status"] == "requested" or row["sha256"] == c.sha256, "invalid_state")
    elif c.verb == "delete_asset" and found(w, c)["status"] != "deleted":
        say(w, c, status="deleted")


def uploaded(c: Any, announced: Row, content_type: str) -> Row:
    """Bytes that are not what was announced are kept and quarantined, whatever the scan says of them."""
    require(len(c.sha256) == 64, "rule_violated")
    code = c.scan["code"] if content_type == announced["content_type"] else "content_type_mismatch"
    code = code if c.size_bytes == announced["size_bytes"] else "size_mismatch"
    return some(c, "sha256 size_bytes") | {"status": "quarantined" if code else "clean", "quarantine_code": code}


def model(w: World, c: Any) -> None:
    if c.verb == "register_model":
        require(c.name and len(c.name) <= 200, "rule_violated")
        require(c.framework in {"onnx", "transformers", "torch"}, "rule_violated")
        require((c.hf_repo is None) != (c.uri is None) and "://" not in (c.hf_repo or ""), "rule_violated")
        row = some(c, "framework task hf_repo uri") | {"sha256": None, "last_sync_error": None}
        return say(w, c, status="registered", name=c.name, **row)
    row = found(w, c)
    if c.verb == "archive_model":
        active = w["slot"].get(row["task"], {}).get("active")
        require(row["status"] == "archived" or active != c.key, "conflict")
        return None if row["status"] == "archived" else say(w, c, status="archived")
    require(row["status"] != "archived", "invalid_state")
    if c.verb == "start_sync" and row["status"] not in {"syncing", "synced"}:
        say(w, c, status="syncing")
    elif c.verb == "complete_sync" and row["status"] != "synced":
        require(row["status"] != "registered", "invalid_state")
        require(c.size_bytes > 0 and len(c.sha256) == 64, "rule_violated")
        say(w, c, status="synced", sha256=c.sha256, last_sync_error=None)
    elif c.verb == "complete_sync":
        require(row["sha256"] == c.sha256, "invalid_state")
    elif c.verb == "fail_sync" and row["status"] == "syncing":
        say(w, c, status="failed", last_sync_error=c.error)
    return None


def slot(w: World, c: Any) -> None:
    """One active version per task, synced before it serves."""
    row = {"active": None, "previous": [], "rolled_back": None, **own(w, c)}
    if c.verb == "activate_model" and row["active"] != c.model_id:
        require(w["model"][c.model_id]["status"] == "synced", "model_not_synced")
        previous = [*row["previous"], row["active"]] if row["active"] else []
        say(w, c, active=c.model_id, previous=previous[-32:], rolled_back=None)
    elif c.verb == "roll_back_model" and found(w, c)["rolled_back"] != c.model_id:  # asked twice, gone back once
        require(row["active"] == c.model_id and row["previous"], "invalid_state")
        *previous, target = row["previous"]
        require(w["model"][target]["status"] == "synced", "model_not_synced")
        say(w, c, active=target, previous=previous, rolled_back=c.model_id)


def job(w: World, c: Any) -> None:
    """What whoever asked for it may ask about it; its worker and the clock speak as attempts."""
    if c.verb == "submit_job":
        return submit(w, c)
    row = found(w, c)
    require(row["status"] != "deleted" or c.verb not in PRESENT, "not_found")
    match c.verb, row["status"]:
        case "delete_job", status if status != "deleted":
            over = status in OVER
            say(w, c, status="deleted", finished_at=row["finished_at"] if over else c.now, events=1 if over else 2)
        case "expire_job", "pending" if row["session_id"] is not None:
            say(w, c, status="expired", finished_at=c.now)
        case "cancel_job", "pending":
            say(w, c, status="cancelled", finished_at=c.now)
        case "cancel_job", "processing" if row["cancel_requested_by"] is None:
            say(w, c, cancel_requested_by=c.actor)
        case "cancel_job", status:
            require(status in {"processing", "cancelled"}, "invalid_state")
        case "requeue_job", status if status != "pending":
            require(row["dead_letter"], "invalid_state")
            most = row["attempt"] + row["tries"]
            say(w, c, status="pending", dead_letter=False, attempts_max=most, not_before=None, finished_at=None)
        case "start_job", status if (status, row["worker"]) != ("processing", c.worker):
            require(status == "pending" and (row["not_before"] or c.now) <= c.now, "invalid_state")
            begun = {"attempt": row["attempt"] + 1, "worker": c.worker, "started_at": c.now}
            say(w, c, status="processing", percent=0, message="", **begun)
        case verb, _ if verb not in {"delete_job", "expire_job", "requeue_job", "start_job"}:
            attempt(w, c, row)
    return None


def submit(w: World, c: Any) -> None:
    require(c.kind in w["kinds"], "unknown_kind")
    inputs, task = w["kinds"][c.kind]
    require(len(c.inputs) == inputs, "rule_violated")
    if c.session_id is not None:
        require_open(w, c.session_id, c.now)
    for asset_id in c.inputs:
        require_clean(w, asset_id)
    sha256 = version = None
    if task is not None:  # pinned now, whatever is activated later
        version = c.model_version_id or w["slot"].get(task, {}).get("active")
        require(version, "no_active_model")
        require(version in w["model"], "not_found")
        require(w["model"][version]["task"] == task, "rule_violated")
        require(w["model"][version]["status"] == "synced", "model_not_synced")
        sha256 = w["model"][version]["sha256"]
    require(task is not None or c.model_version_id is None, "rule_violated")
    require(0 <= c.priority <= 9 and 1 <= c.timeout_s <= 86400 and 1 <= c.attempts_max <= 20, "rule_violated")
    require(w["pending"][c.kind] < c.pending_max, "queue_full")
    row = some(c, "kind inputs session_id priority timeout_s attempts_max") | {"outputs": [], "late": ()}
    row |= {"tries": c.attempts_max, "model_version_id": version, "model_sha256": sha256}
    say(w, c, status="pending", **row, **NEW_JOB)


def attempt(w: World, c: Any, row: Row) -> None:
    """Fenced: from any but the worker and the number that hold the job, a word changes nothing."""
    named = (c.attempt, c.worker) == (row["attempt"], row["worker"])
    holds, wanted = named and row["status"] == "processing", row["cancel_requested_by"] is None
    if c.verb == "report_progress":
        require(0 <= c.percent <= 100, "rule_violated")
        require((holds and wanted) or (named and row["status"] == "completed"), "lease_lost")
        newer = c.percent >= row["percent"] and (c.percent, c.message) != (row["percent"], row["message"])
        return say(w, c, percent=c.percent, message=c.message) if holds and newer else None
    require(1 <= c.attempt <= row["attempt"], "rule_violated")
    if c.verb == "complete_job" and holds and wanted:
        names = [one["name"] for one in c.outputs]
        require(len(set(names)) == len(names) and "/" not in "".join(names), "rule_violated")
        done = {"outputs": names, "error_code": None, "error_message": "", "finished_at": c.now}
        return say(w, c, status="completed", percent=100, **done)
    if c.verb == "complete_job":
        if not (named and row["status"] == "completed") and c.attempt not in row["late"]:  # told once
            say(w, c, late=(*row["late"], c.attempt), updated_at=row["updated_at"])
        return None
    overdue = c.verb != "time_out_job" or c.now >= row["started_at"] + timedelta(seconds=row["timeout_s"])
    if not holds or not overdue:
        return None
    require(c.verb != "confirm_cancel" or not wanted, "invalid_state")
    if not wanted:
        return say(w, c, status="cancelled", finished_at=c.now)
    if c.verb == "lose_lease":
        c.code, c.message, c.retryable = "lease_expired", f"worker {c.worker} was not heard of in time", True
    if c.verb == "time_out_job":
        c.code, c.message, c.retryable = "timeout", f"took longer than {row['timeout_s']} s", False
    failed = {"error_code": c.code, "error_message": c.message}
    if not c.retryable or c.attempt >= row["attempts_max"]:
        return say(w, c, status="failed", dead_letter=c.retryable, finished_at=c.now, **failed)
    require(0 <= c.retry_delay_s <= 300, "rule_violated")
    return say(w, c, status="pending", not_before=c.now + timedelta(seconds=c.retry_delay_s), **failed)


NOUNS = {"session": session, "asset": asset, "model": model, "slot": slot, "job": job}
