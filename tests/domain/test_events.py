"""Stored names are a contract: what was written yesterday is read today, every word of it, and comes to the same."""

import json
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from tests.domain.corpus import (
    ALL,
    HISTORIES,
    NAMES,
    SHAPES,
    History,
    bodies,
    broken,
    digest,
    missing,
    shape_of,
    state_of,
)

from sightline.domain import events
from sightline.domain.events import AGGREGATES, EVENTS, kind_of, tag_of
from sightline.domain.upcasts import UPCASTS, Upcast, generation_of, generations, name_of, upcast

BODIES = [(tag, body) for tag, found in bodies().items() for body in found]
TAGS = [tag for tag, _ in BODIES]


# What was stored is read


def lost(event: type[Struct], body: dict[str, Any]) -> dict[str, Any]:
    """What of a stored body is not in the event that it decodes to. A body is never read by halves."""
    read = json.loads(msgspec.json.encode(msgspec.json.decode(json.dumps(body), type=event)))
    return {name: value for name, value in body.items() if name not in read or read[name] != value}


@pytest.mark.parametrize(("tag", "body"), BODIES, ids=TAGS)
def test_what_was_stored_is_still_read(tag: str, body: dict[str, Any]) -> None:
    newest, payload = upcast(tag, dict(body))
    assert lost(EVENTS[newest], payload) == {}
    assert (newest, payload) == (tag, body) or generation_of(newest) > generation_of(tag)


@pytest.mark.parametrize("tag", EVENTS)
def test_some_example_says_every_field_of_its_event(tag: str) -> None:
    said = set[str]().union(*(example.keys() for example in bodies()[tag]))
    assert said == {"type", *EVENTS[tag].__struct_fields__}


def test_every_tag_that_was_ever_written_has_an_example() -> None:
    assert missing(bodies(), EVENTS, UPCASTS) == set()
    assert bodies().keys() == {*EVENTS, *UPCASTS}
    forgotten = {tag: found for tag, found in bodies().items() if tag != "session.created"}
    assert missing(forgotten, EVENTS, UPCASTS) == {"session.created"}
    assert missing(bodies(), EVENTS, {**UPCASTS, "job.deleted": Upcast("job.deleted.2", dict)}) == set()
    assert missing(bodies(), EVENTS | {"job.deleted.2": Struct}, UPCASTS) == {"job.deleted.2"}


def test_a_renamed_field_would_be_noticed() -> None:
    class Renamed(Struct, frozen=True, tag="job.cancelled"):
        at: str
        cancelled_by: str = ""

    assert lost(Renamed, bodies()["job.cancelled"][0]) == {"by": "ada"}


def test_a_new_field_needs_a_default() -> None:
    class Grown(Struct, frozen=True, tag="job.cancelled"):
        at: str
        by: str
        why: str

    with pytest.raises(msgspec.ValidationError, match="why"):
        lost(Grown, bodies()["job.cancelled"][0])


# It comes to the same


@pytest.mark.parametrize(("kind", "history"), ALL, ids=NAMES)
def test_a_history_comes_to_what_it_always_did(kind: str, history: History) -> None:
    state = state_of(kind, history)
    assert digest(state) == history.state, f"{kind}.json, {history.history}: {state}"


def test_an_upcast_that_changes_its_mind_is_noticed() -> None:
    def forget(payload: dict[str, Any]) -> dict[str, Any]:
        return payload | {"user_id": None}

    history = HISTORIES["session"][0]
    state = state_of("session", history, {"session.created": Upcast("session.created.2", forget)})
    assert digest(state) != history.state


def test_an_added_field_changes_no_digest_and_anything_else_does() -> None:
    class Old(Struct):
        a: int

    class Grown(Struct):
        a: int
        b: str = ""
        c: list[int] = []

    assert digest(Old(1)) == digest(Grown(1)) != digest(Grown(1, "b"))
    assert digest(Old(1)) != digest(Old(2))


# A shape changes only by growing


@pytest.mark.parametrize("tag", EVENTS)
def test_an_event_keeps_its_shape(tag: str) -> None:
    """Where this fails: an added field goes into shapes.json, and into a history; for anything else the event gets a
    new generation (docs/how-to/change-an-event.md) and what is pinned stays.
    """
    now = shape_of(EVENTS[tag])
    assert broken(SHAPES.get(tag, {}), now) == [], "a new generation is needed"
    assert now == SHAPES.get(tag), f"pin it: {json.dumps(now)}"


def test_no_shape_is_kept_of_an_event_that_is_not() -> None:
    assert SHAPES.keys() == EVENTS.keys()


class Artifact(Struct):
    name: str
    size: int = 0


class Made(Struct, tag="job.made"):
    at: str
    by: str | None
    artifacts: list[Artifact] = []
    share: float = 1.0


def changed(**annotations: Any) -> type[Struct]:
    given = {"at": str, "by": str | None, "artifacts": (list[Artifact], []), "share": (float, 1.0)} | annotations
    kept = [
        (name, *kind) if isinstance(kind, tuple) else (name, kind) for name, kind in given.items() if kind is not None
    ]
    return msgspec.defstruct("Made", kept, tag="job.made", kw_only=True)


class LargerArtifact(Artifact):
    colour: str = ""


class OtherArtifact(Artifact):
    size: str = ""  # type: ignore[assignment]  # the very mistake


def test_growing_is_no_break() -> None:
    before = shape_of(Made)
    assert broken(before, shape_of(changed())) == []
    assert broken(before, shape_of(changed(more=(str, "")))) == []
    assert broken(before, shape_of(changed(artifacts=(list[LargerArtifact], [])))) == []


@pytest.mark.parametrize(
    "change",
    [
        {"at": int},
        {"by": str},
        {"by": None},
        {"share": float},
        {"share": (float, 0.5)},
        {"more": str},
        {"artifacts": (list[OtherArtifact], [])},
        {"artifacts": (dict[str, Artifact], {})},
    ],
    ids=str,
)
def test_every_other_change_is_noticed(change: dict[str, Any]) -> None:
    assert broken(shape_of(Made), shape_of(changed(**change))) != []


def test_the_change_that_sealing_made_would_have_been_noticed() -> None:
    class SessionCreated(Struct, tag="session.created"):
        user_id: str | None

    assert broken(shape_of(SessionCreated), SHAPES["session.created.2"]) != []


# Tags and generations


def test_every_tag_names_its_aggregate_and_is_written_with_it() -> None:
    assert {kind_of(tag) for tag in EVENTS} == AGGREGATES.keys()
    assert all(tag_of(event) == tag for tag, event in EVENTS.items())


def test_every_earlier_generation_leads_to_the_next_and_at_last_to_an_event() -> None:
    assert UPCASTS.keys().isdisjoint(EVENTS)
    for tag, step in UPCASTS.items():
        assert (name_of(step.tag), generation_of(step.tag)) == (name_of(tag), generation_of(tag) + 1)
        assert step.tag in {*EVENTS, *UPCASTS}
    later = [tag for tag in EVENTS if generation_of(tag) > 1]
    assert {step.tag for step in UPCASTS.values()} >= set(later)


def test_a_tag_says_its_name_and_generation() -> None:
    assert (name_of("session.created"), generation_of("session.created")) == ("session.created", 1)
    assert (name_of("session.created.12"), generation_of("session.created.12")) == ("session.created", 12)
    assert generations("session.created") == ["session.created", "session.created.2"]
    assert generations("session.created.2") == ["session.created.2"]
    assert generations("job.submitted") == ["job.submitted"]


def test_generations_are_chained_and_a_circle_ends() -> None:
    chain = {
        "job.made": Upcast("job.made.2", lambda payload: payload | {"b": payload["a"]}),
        "job.made.2": Upcast("job.made.3", lambda payload: payload | {"c": payload["b"]}),
    }
    assert upcast("job.made", {"a": 1}, chain) == ("job.made.3", {"a": 1, "b": 1, "c": 1, "type": "job.made.3"})
    assert upcast("job.made.3", {"a": 1}, chain) == ("job.made.3", {"a": 1, "type": "job.made.3"})
    upcast("a", {}, {"a": Upcast("b", dict), "b": Upcast("a", dict)})


def test_every_event_is_frozen_and_says_when() -> None:
    for event in EVENTS.values():
        assert event.__struct_config__.frozen
        assert "at" in event.__struct_fields__


def test_two_events_cannot_share_a_tag() -> None:
    class Copy(Struct, frozen=True, tag="job.deleted"):
        at: str

    with pytest.raises(ValueError, match="both stored as"):
        events._registry((EVENTS["job.deleted"], Copy))


def test_an_event_cannot_be_of_no_aggregate() -> None:
    class Stray(Struct, frozen=True, tag="weather.changed"):
        at: str

    with pytest.raises(ValueError, match="no aggregate"):
        events._registry((Stray,))
