"""Unique keys: for each rule what it yields, what it refuses, and when it is silent."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from tests.spec import given

from sightline.domain import unique_keys
from sightline.domain.unique_keys import JobExists, UniqueKeyTaken, unique_key_id

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
FIRST, SECOND = UUID(int=1), UUID(int=2)
SAID: dict[str, Any] = {"owner": "ada", "kind": "noop", "key": "nightly", "now": NOON}


def taken(job_id: UUID) -> UniqueKeyTaken:
    return UniqueKeyTaken(at=NOON, owner="ada", kind="noop", key="nightly", job_id=job_id)


def test_whoever_comes_first_takes_it() -> None:
    said = {"job_id": FIRST, "holder_over": True} | SAID
    assert given(unique_keys.AGGREGATE).when(unique_keys.take, **said).then(taken(FIRST)).holder == FIRST


def test_the_next_is_told_who_holds_it() -> None:
    said = {"job_id": SECOND, "holder_over": False} | SAID
    refusal = given(unique_keys.AGGREGATE, taken(FIRST)).when(unique_keys.take, **said).refused(JobExists)
    assert refusal.extra == {"job_id": FIRST}
    assert str(FIRST) in refusal.detail


def test_it_is_taken_over_from_a_job_that_is_over() -> None:
    said = {"job_id": SECOND, "holder_over": True} | SAID
    state = given(unique_keys.AGGREGATE, taken(FIRST)).when(unique_keys.take, **said).then(taken(SECOND))
    assert (state.owner, state.holder) == ("ada", SECOND)


def test_whoever_holds_it_need_not_take_it_again() -> None:
    said = {"job_id": FIRST, "holder_over": False} | SAID
    given(unique_keys.AGGREGATE, taken(FIRST)).when(unique_keys.take, **said).then()


def test_no_two_keys_share_a_stream() -> None:
    keys = (("a/b", "k", "c"), ("a", "k", "b/c"), ("a", "k/b", "c"), ("a", "k", "b"), ("a", "j", "b"), ("b", "k", "b"))
    assert len({unique_key_id(*key) for key in keys}) == len(keys)
