from datetime import UTC, datetime
from typing import Any

import pytest
from tests.spec import given

from sightline.domain.kernel import Invalid, InvalidState, NotFound
from sightline.domain.models import (
    AGGREGATE,
    ModelArchived,
    ModelIsActive,
    ModelRegistered,
    ModelSynced,
    ModelSyncFailed,
    ModelSyncStarted,
    archive,
    complete_sync,
    fail_sync,
    register,
    start_sync,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SHA, OTHER_SHA = "a" * 64, "b" * 64
BYTES: dict[str, Any] = {"sha256": SHA, "path": "sha256/aa/model.onnx", "size_bytes": 7265, "origin": "builtin"}


def depth(**changed: Any) -> dict[str, Any]:
    return {
        "name": "depth-heuristic",
        "framework": "onnx",
        "task": "depth",
        "owner": "ada",
        "uri": "builtin:depth-heuristic",
    } | changed


def hub(repo: str | None, revision: str | None = None) -> dict[str, Any]:
    return depth(uri=None, hf_repo=repo, hf_revision=revision)


REGISTERED = ModelRegistered(at=NOON, **depth())
STARTED = ModelSyncStarted(at=NOON, by="ada")
SYNCED = ModelSynced(at=NOON, **BYTES)
FAILED = ModelSyncFailed(at=NOON, error="no route to host")
ARCHIVED = ModelArchived(at=NOON, by="ada")


def test_a_version_is_registered_once() -> None:
    assert given(AGGREGATE).when(register, **depth(), now=NOON).then(REGISTERED).status == "registered"


@pytest.mark.parametrize("repo", ["local/demo", "sentence-transformers/all-MiniLM-L6-v2", "a/b.c"])
def test_a_repository_is_owner_and_name(repo: str) -> None:
    given(AGGREGATE).when(register, **hub(repo, "main"), now=NOON).then(ModelRegistered(at=NOON, **hub(repo, "main")))


@pytest.mark.parametrize(
    "changed",
    [
        *(
            hub(repo)
            for repo in (
                *("https://example.com/a/b", "//example.com/a", "a", "a/b/c", "../b", "a/..", "a/b..c", "a/b\n"),
                *("/b", "a/", "a b/c", "a/b?c", "@x/y", "é/b", "a" * 97 + "/b", ""),
            )
        ),
        *(hub("a/b", revision) for revision in ("", "main\n", "../x", "a b", "/x", "r" * 129)),
        *(
            depth(uri=uri)
            for uri in (
                *("http://169.254.169.254/x", "file:///etc/passwd", "builtin:../x", "builtin:", "builtin:x\n"),
                *("s3://b", "s3://bucket/a/../b", "depth-heuristic"),
            )
        ),
        depth(hf_repo="a/b"),
        depth(uri=None),
        depth(name=""),
        depth(name="n" * 201),
        depth(name="a\0b"),
        depth(name=" a"),
        depth(framework="abacus"),
        depth(task=""),
        depth(task="Depth!"),
    ],
)
def test_a_version_is_refused(changed: dict[str, Any]) -> None:
    given(AGGREGATE).when(register, **changed, now=NOON).refused(Invalid)


def test_a_name_may_be_as_long_as_this() -> None:
    said = depth(name="n" * 200)
    given(AGGREGATE).when(register, **said, now=NOON).then(ModelRegistered(at=NOON, **said))


def test_a_bucket_may_hold_a_model() -> None:
    said = depth(uri="s3://sightline/models/depth.onnx", manifest={"task": "depth"})
    given(AGGREGATE).when(register, **said, now=NOON).then(ModelRegistered(at=NOON, **said))


def test_a_sync_starts_where_one_is_wanted() -> None:
    given(AGGREGATE, REGISTERED).when(start_sync, by="ada", now=NOON).then(STARTED)
    given(AGGREGATE, REGISTERED, STARTED, FAILED).when(start_sync, by="ada", now=NOON).then(STARTED)
    given(AGGREGATE, REGISTERED, STARTED).when(start_sync, by="bob", now=NOON).then()
    given(AGGREGATE, REGISTERED, STARTED, SYNCED).when(start_sync, by="ada", now=NOON).then()
    given(AGGREGATE, REGISTERED, ARCHIVED).when(start_sync, by="ada", now=NOON).refused(InvalidState)
    given(AGGREGATE).when(start_sync, by="ada", now=NOON).refused(NotFound)


def test_a_sync_brings_bytes_that_are_known_by_their_digest() -> None:
    model = given(AGGREGATE, REGISTERED, STARTED).when(complete_sync, **BYTES, now=NOON).then(SYNCED)
    assert (model.status, model.sha256, model.synced_at) == ("synced", SHA, NOON)


def test_of_two_syncs_at_once_the_one_that_works_counts() -> None:
    after = given(AGGREGATE, REGISTERED, STARTED, FAILED).when(complete_sync, **BYTES, now=NOON).then(SYNCED)
    assert after.last_sync_error is None
    given(AGGREGATE, REGISTERED, STARTED, SYNCED).when(fail_sync, error="too late", now=NOON).then()


def test_bytes_never_change_under_a_version() -> None:
    given(AGGREGATE, REGISTERED, STARTED, SYNCED).when(complete_sync, **BYTES, now=NOON).then()
    other = BYTES | {"sha256": OTHER_SHA}
    given(AGGREGATE, REGISTERED, STARTED, SYNCED).when(complete_sync, **other, now=NOON).refused(InvalidState)


def test_a_sync_that_was_never_started_brings_nothing() -> None:
    given(AGGREGATE, REGISTERED).when(complete_sync, **BYTES, now=NOON).refused(InvalidState)
    given(AGGREGATE, REGISTERED, ARCHIVED).when(complete_sync, **BYTES, now=NOON).refused(InvalidState)
    given(AGGREGATE).when(complete_sync, **BYTES, now=NOON).refused(NotFound)


@pytest.mark.parametrize("wrong", [{"sha256": "f00"}, {"sha256": "A" * 64}, {"size_bytes": 0}])
def test_a_sync_without_a_digest_or_bytes_is_refused(wrong: dict[str, Any]) -> None:
    given(AGGREGATE, REGISTERED, STARTED).when(complete_sync, **(BYTES | wrong), now=NOON).refused(Invalid)


def test_a_failed_sync_says_why() -> None:
    said = {"error": "no route\0to host", "now": NOON}
    model = given(AGGREGATE, REGISTERED, STARTED).when(fail_sync, **said).then(FAILED)
    assert (model.status, model.last_sync_error) == ("failed", "no route to host")
    given(AGGREGATE, REGISTERED).when(fail_sync, **said).then()
    given(AGGREGATE).when(fail_sync, **said).refused(NotFound)


def test_a_version_in_use_is_not_archived() -> None:
    history = (REGISTERED, STARTED, SYNCED)
    refusal = given(AGGREGATE, *history).when(archive, active=True, by="ada", now=NOON).refused(ModelIsActive)
    assert refusal.code == "conflict"
    given(AGGREGATE, *history).when(archive, active=False, by="ada", now=NOON).then(ARCHIVED)
    given(AGGREGATE).when(archive, active=False, by="ada", now=NOON).refused(NotFound)
