"""Every decision of every noun, in any order, with any arguments: deciding again on where it led says nothing new."""

import inspect
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.domain import job_histories
from tests.domain.job_histories import LAYER

from sightline.domain import (
    administrators,
    api_keys,
    assets,
    attempts,
    batches,
    comparisons,
    emails,
    jobs,
    model_slots,
    models,
    queues,
    quotas,
    sessions,
    shadows,
    unique_keys,
    users,
    webhooks,
)
from sightline.domain.access import Rights, Role
from sightline.domain.events import AGGREGATES, EVENTS, tag_of
from sightline.domain.kernel import Aggregate, Rejection
from sightline.domain.sealed import Sealed

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
STEPS_MIN, STEPS_MAX = 8, 20
LAST_WORDS = {"delete", "archive", "close", "cancel", "deactivate", "revoke"}
IDS = st.sampled_from([UUID(int=n) for n in range(1, 4)])
DIGESTS = st.sampled_from(["a" * 64, "b" * 64])
SEALED = st.sampled_from([Sealed(UUID(int=8), "AAAA"), Sealed(UUID(int=8), "BBBB")])
APART = comparisons.Difference(name="x", sha256="a" * 64, second_sha256="b" * 64)
RESULT = shadows.Result(comparison_id=UUID(int=5), of_job=UUID(int=1), verdict="failed")
SCANS = st.builds(assets.Scan, engine=st.just("decode"), code=st.sampled_from([None, "broken"]))


def mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """The usual value three times in four, so that walks get somewhere."""
    return st.sampled_from([usual] * 3 * len(others) + list(others))


# Small worlds, so that walks meet: each argument that some decision takes, by its name. What is not here is a bug.
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "active": st.booleans(),
    "amounts": mostly(quotas.Amounts(jobs=1), quotas.Amounts(size_bytes=-1)),
    "asset_id": IDS,
    "attempt": mostly(0, 1, -1),  # counted from the current one
    "attempts_max": mostly(2, 1, 0),
    "batch_id": st.none(),
    "by": st.sampled_from(["ada", "bob"]),
    "callback_url": mostly(None, "https://example.com", "nowhere"),
    "code": st.just("crashed"),
    "counted": st.booleans(),
    "delivery_id": IDS,
    "differences": mostly((APART,), (), (APART,) * 300),
    "content_type": mostly("image/png", "image/jpeg", "text/html"),
    "counts": mostly(batches.Counts(completed=2, failed=1), batches.Counts(completed=2, pending=1)),
    "duration_s": mostly(2700, 60, 0),
    "email": SEALED,
    "error": st.just("no route"),
    "expires_at": mostly(NOON + timedelta(days=1), NOON, NOON + timedelta(days=400)),
    "first": st.just(comparisons.Ran(run_s=0.5)),
    "filename": mostly("sea.png", "", "a\0"),
    "found_content_type": mostly("image/png", "image/jpeg"),
    "framework": mostly("onnx", "abacus"),
    "full_name": SEALED,
    "generation": st.integers(0, 4),
    "hf_repo": mostly(None, "local/demo", "https://x"),
    "hf_revision": st.none(),
    "holder": IDS,
    "holder_over": st.booleans(),
    "inputs": st.lists(IDS, max_size=2).map(tuple),
    "is_shadow": st.booleans(),
    "issuer": mostly(Rights(Role.MANAGER), Rights(Role.MANAGER, frozenset({"jobs:read"}))),
    "job_id": IDS,
    "key": st.just("nightly"),
    "kind": st.just("noop"),
    "kinds": st.just(("noop",)),
    "lease_until": st.just(NOON),
    "limited": st.booleans(),
    "limits": mostly(quotas.Limits(jobs_per_day=1), quotas.Limits(), quotas.Limits(bytes_per_day=-1)),
    "manifest": st.sampled_from([None, {"layers": []}]),
    "member": IDS,
    "message": st.sampled_from(["", "bands"]),
    "model_id": IDS,
    "model_sha256": st.none(),
    "model_version_id": st.none(),
    "name": mostly("depth", ""),
    "not_before": mostly(None, NOON + timedelta(seconds=600), NOON + timedelta(days=91)),
    "now": st.integers(0, 3000).map(lambda s: NOON + timedelta(seconds=s)),
    "object_key": st.just("k"),
    "of_job": IDS,
    "origin": st.just("builtin"),
    "outputs": mostly((LAYER,), (), (LAYER, LAYER)),
    "owner": st.just("ada"),
    "owner_id": IDS,
    "owner_state": mostly(users.User("active", role=Role.OPERATOR), users.User(), users.User("deactivated")),
    "params": st.just({}),
    "password": SEALED,
    "path": st.just("p"),
    "percent": mostly(50, 0, 49, 51, 100, 101),
    "prefix": mostly("0" * 16, "1" * 16, "zz"),
    "previous_synced": st.booleans(),
    "principal": mostly("ada", ""),
    "priority": mostly(5, 0, 10),
    "purpose": mostly("image", "ransom"),
    "reason": mostly("job_failed", "a\0"),
    "receipt": st.none(),
    "ref": mostly(None, "mine", "x" * 201),
    "rerun_job": st.sampled_from([None, UUID(int=4)]),
    "reserved_for": IDS,
    "results": mostly((RESULT,), (), (RESULT, RESULT)),
    "retry_delay_s": mostly(0, 4, 301),
    "retryable": st.booleans(),
    "running_max": mostly(None, 1, 0),
    "request_id": IDS,
    "role": st.sampled_from([Role.OPERATOR, Role.OPERATOR, Role.VIEWER, Role.ADMIN]),
    "sample": mostly((UUID(int=1),), (), (UUID(int=1),) * 2, (UUID(int=2),)),
    "scan": SCANS,
    "scopes": mostly(None, frozenset({"jobs:read"}), frozenset({"jobs:burn"})),
    "secret": SEALED,
    "second": st.just(comparisons.Ran()),
    "secret_sha256": DIGESTS,
    "session_id": st.sampled_from([None, UUID(int=9)]),
    "sha256": DIGESTS,
    "since": mostly(NOON, NOON + timedelta(days=2), NOON.replace(year=1)),
    "size_bytes": mostly(1, 2, 0),
    "size_bytes_max": mostly(None, 1),
    "starts_per_minute_max": mostly(None, 60, 0),
    "synced": st.booleans(),
    "task": mostly("depth", "embed", ""),
    "timeout_s": mostly(600, 1, 0),
    "timings": st.none(),
    "total": mostly(3, 2, 0),
    "tolerance": mostly(comparisons.Tolerance(), comparisons.Tolerance(number_max=float("nan"))),
    "unique_key": mostly(None, "nightly", "a\0"),
    "until": st.just(NOON + timedelta(days=1)),
    "types": mostly(("job.completed",), ("job.failed",), ()),
    "uri": mostly("builtin:depth", None, "file:///"),
    "url": mostly("https://example.com/", "https://example.org/", "nowhere"),
    "user_id": st.sampled_from([None, Sealed(UUID(int=8), "AAAA")]),
    "why": st.sampled_from(["asked", "failing"]),
    "worker": mostly("w1", "w2"),
}

Decision = Callable[..., list[Any]]
Law = Callable[[Any, Any], None]


def decisions_of(*modules: ModuleType) -> list[Decision]:
    """The public functions of a noun that answer with events."""
    functions = [(module, one) for module in modules for _, one in inspect.getmembers(module, inspect.isfunction)]
    own = [one for module, one in functions if one.__module__ == module.__name__]
    answers = [one for one in own if str(inspect.signature(one).return_annotation).startswith("list[")]
    return [one for one in answers if not one.__name__.startswith("_")]


NOUNS: dict[str, list[Decision]] = {
    "asset": decisions_of(assets),
    "session": decisions_of(sessions),
    "model": decisions_of(models),
    "model_slot": decisions_of(model_slots),
    "user": decisions_of(users),
    "email": decisions_of(emails),
    "administrators": decisions_of(administrators),
    "api_key": decisions_of(api_keys),
    "job": decisions_of(jobs, attempts),
    "batch": decisions_of(batches),
    "queue": decisions_of(queues),
    "unique_key": decisions_of(unique_keys),
    "quota": decisions_of(quotas),
    "comparison": decisions_of(comparisons),
    "shadow": decisions_of(shadows),
    "webhook": decisions_of(webhooks),
}


# Where walks begin: at nothing, and for jobs, whose ways are long, further on too.
BEGINNINGS: dict[str, list[tuple[Any, ...]]] = {
    "job": [
        (),
        job_histories.PROCESSING,
        (*job_histories.PROCESSING, job_histories.CANCEL_REQUESTED),
        job_histories.SECOND,
        job_histories.DEAD[:-1],
        job_histories.DEAD,
        (*job_histories.DEAD, job_histories.REQUEUED),
    ]
}


def arguments(decide: Decision) -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments; those with a default are left out at times."""
    said: dict[str, st.SearchStrategy[Any]] = {}
    may_say: dict[str, st.SearchStrategy[Any]] = {}
    for name, parameter in list(inspect.signature(decide).parameters.items())[1:]:
        (said if parameter.default is parameter.empty else may_say)[name] = ARGUMENTS[name]
    return st.fixed_dictionaries(said, optional=may_say)


def steps(decisions: list[Decision]) -> st.SearchStrategy[list[tuple[Decision, dict[str, Any]]]]:
    # After a last word nothing more is said: those come seldom.
    weighed = [decide for decide in decisions for _ in range(1 if decide.__name__ in LAST_WORDS else 8)]
    said = {decide: st.tuples(st.just(decide), arguments(decide)) for decide in decisions}
    return st.lists(st.sampled_from(weighed).flatmap(said.__getitem__), min_size=STEPS_MIN, max_size=STEPS_MAX)


def take(aggregate: Aggregate[Any], state: Any, decide: Decision, said: dict[str, Any]) -> tuple[Any, list[Any]]:
    """One step: it is refused, or says something that can be stored and that it does not say again."""
    try:
        events = decide(state, **said)
    except Rejection as refusal:
        if refusal.code == Rejection.code:
            raise AssertionError("a rejection has a code of its own") from refusal
        return state, []
    assert decide(state, **said) == events
    for event in events:
        assert event.at == said["now"]
        assert msgspec.json.decode(msgspec.json.encode(event), type=EVENTS[tag_of(event)]) == event
        assert tag_of(event).startswith(f"{aggregate.kind}.")
    after = aggregate.fold(state, events)
    assert decide(after, **said) == [], f"{decide.__name__} says it twice"
    return after, events


def job_law(before: jobs.Job, after: jobs.Job) -> None:
    """What holds between any two states of a job, whatever was decided."""
    assert after.attempt >= before.attempt
    assert after.attempt <= after.attempts_max
    assert after.refused >= before.refused
    if jobs.is_terminal(before) and after.status != before.status:
        assert after.status == "deleted" or (before.dead_letter and after.status == "pending")
    if before.attempt == after.attempt and before.status == after.status:
        assert after.percent >= before.percent
    if before.result is not None:
        assert after.result == before.result
    if after.result is not None and before.result is None:
        assert before.status == "processing"
        assert before.cancel_requested_by is None
        assert (after.result.attempt, after.result.worker) == (before.attempt, before.worker)


def asset_law(before: assets.Asset, after: assets.Asset) -> None:
    ranks: list[str | None] = [None, "requested", "uploaded", "clean", "quarantined", "deleted"]
    assert ranks.index(after.status) >= ranks.index(before.status)
    assert {before.status, after.status} != {"clean", "quarantined"}
    assert before.sha256 in {None, after.sha256}


def session_law(before: sessions.Session, after: sessions.Session) -> None:
    if before.status is not None:
        assert after.expires_at == before.expires_at
    if before.status in {"expired", "closed"}:
        assert after.asset_ids == before.asset_ids


def model_law(before: models.ModelVersion, after: models.ModelVersion) -> None:
    assert before.sha256 in {None, after.sha256}
    assert before.status != "archived" or after == before


def slot_law(before: model_slots.ModelSlot, after: model_slots.ModelSlot) -> None:
    assert after.active is not None or before.active is None
    assert model_slots.previous(after) != after.active or after.active is None


def user_law(before: users.User, after: users.User) -> None:
    assert before.status != "deactivated" or after == before
    assert before.email in {None, after.email}
    # Whatever is taken away is taken from every token that was handed out before.
    taken = (before.status, before.role, before.password) != (after.status, after.role, after.password)
    assert after.generation == before.generation + 1 if taken else after.generation >= before.generation


def email_law(before: emails.Email, after: emails.Email) -> None:
    assert before.user_id is None or after.user_id in {None, before.user_id}


def roster_law(before: administrators.Administrators, after: administrators.Administrators) -> None:
    assert after.user_ids or not before.user_ids


def batch_law(before: batches.Batch, after: batches.Batch) -> None:
    assert before.submitted in {None, after.submitted}
    assert before.cancelled in {None, after.cancelled}
    assert before.outcome in {None, after.outcome}
    if after.outcome is not None and after.submitted is not None:
        assert after.outcome.total == after.submitted.total


def quota_law(before: quotas.Quota, after: quotas.Quota) -> None:
    if before.day is not None and after.day is not None:
        assert (after.day, after.amounts, after.reserved_for) == (before.day, before.amounts, before.reserved_for)
        assert before.held or not after.held


def queue_law(before: queues.Queue, after: queues.Queue) -> None:
    assert after.paused == (after.paused_at is not None)
    assert before.kind in {"", after.kind}
    # One word at a time: pausing leaves the limits as they are, and the other way round.
    limits = (before.running_max, before.starts_per_minute_max) == (after.running_max, after.starts_per_minute_max)
    assert limits or (before.paused, before.reason) == (after.paused, after.reason)


def unique_key_law(before: unique_keys.UniqueKey, after: unique_keys.UniqueKey) -> None:
    assert after.holder is not None or before.holder is None
    assert before.owner in {"", after.owner}


def key_law(before: api_keys.ApiKey, after: api_keys.ApiKey) -> None:
    assert before.owner is None or msgspec.structs.replace(after, revoked_at=before.revoked_at) == before
    assert before.revoked_at in {None, after.revoked_at}
    assert after.role is not Role.ADMIN


def comparison_law(before: comparisons.Comparison, after: comparisons.Comparison) -> None:
    assert before.started in {None, after.started}
    assert before.judged in {None, after.judged}


def shadow_law(before: shadows.Shadow, after: shadows.Shadow) -> None:
    assert before.started in {None, after.started}
    assert before.judged in {None, after.judged}
    assert after.judged is None or after.judged.total == len(after.started.sample if after.started else ())


def webhook_law(before: webhooks.Webhook, after: webhooks.Webhook) -> None:
    assert before.status != "deleted" or after == before
    assert before.owner in {"", after.owner}
    assert (after.secret is None) == (after.status in {None, "deleted"})
    assert (after.disabled_reason is None) or after.status in {"disabled", "deleted"}


LAWS: dict[str, Law] = {
    "asset": asset_law,
    "session": session_law,
    "model": model_law,
    "model_slot": slot_law,
    "user": user_law,
    "email": email_law,
    "administrators": roster_law,
    "api_key": key_law,
    "job": job_law,
    "batch": batch_law,
    "queue": queue_law,
    "unique_key": unique_key_law,
    "quota": quota_law,
    "comparison": comparison_law,
    "shadow": shadow_law,
    "webhook": webhook_law,
}


@pytest.mark.parametrize("kind", NOUNS)
def test_deciding_again_says_nothing_new(kind: str) -> None:
    aggregate, decisions, law = AGGREGATES[kind], NOUNS[kind], LAWS[kind]
    beginnings = BEGINNINGS.get(kind, [()])
    spoken: Counter[str] = Counter()
    tags: Counter[str] = Counter()

    @settings(
        max_examples=200 * len(beginnings), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.sampled_from(beginnings), steps(decisions))
    def walk(beginning: tuple[Any, ...], taken: list[tuple[Decision, dict[str, Any]]]) -> None:
        state = aggregate.fold(aggregate.initial, beginning)
        for decide, drawn in taken:
            said = drawn | {"attempt": state.attempt + drawn["attempt"]} if "attempt" in drawn else drawn
            after, events = take(aggregate, state, decide, said)
            law(state, after)
            spoken.update([decide.__name__] if events else [])
            tags.update(map(tag_of, events))
            state = after

    walk()
    # A walk that never got anywhere would prove nothing.
    assert spoken.keys() == {decide.__name__ for decide in decisions}
    assert tags.keys() == {tag for tag in EVENTS if tag.startswith(f"{kind}.")}


def test_every_noun_is_walked() -> None:
    assert NOUNS.keys() == AGGREGATES.keys() == LAWS.keys()
    assert sum(map(len, NOUNS.values())) == 63
    assert {decide.__name__ for decide in NOUNS["job"]} >= {"submit", "start", "complete", "cancel", "time_out"}


def test_a_decision_that_repeats_itself_is_noticed() -> None:
    def nag(session: sessions.Session, *, now: datetime) -> list[Any]:
        return [sessions.SessionExpired(at=now)]

    with pytest.raises(AssertionError, match="says it twice"):
        take(sessions.AGGREGATE, sessions.AGGREGATE.initial, nag, {"now": NOON})


def test_a_job_that_comes_back_to_life_is_noticed() -> None:
    done = jobs.Job("completed", attempt=1, attempts_max=3)
    with pytest.raises(AssertionError):
        job_law(done, jobs.Job("pending", attempt=1, attempts_max=3))
