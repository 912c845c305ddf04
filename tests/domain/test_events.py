"""Stored names are a contract: what was written yesterday is read today, every word of it."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from sightline.domain import events
from sightline.domain.events import AGGREGATES, EVENTS, kind_of, tag_of

# One or more stored bodies for each tag. Never edit one: when an event gets a field, add a body that has it.
GOLDEN: dict[str, list[dict[str, Any]]] = json.loads(Path(__file__).with_name("golden_events.json").read_text())
BODIES = [(tag, body) for tag, bodies in GOLDEN.items() for body in bodies]


def lost(event: type[Struct], body: dict[str, Any]) -> dict[str, Any]:
    """What of a stored body is not in the event that it decodes to. A body is never read by halves."""
    read = json.loads(msgspec.json.encode(msgspec.json.decode(json.dumps(body), type=event)))
    return {name: value for name, value in body.items() if name not in read or read[name] != value}


@pytest.mark.parametrize(("tag", "body"), BODIES, ids=[tag for tag, _ in BODIES])
def test_what_was_stored_is_still_read(tag: str, body: dict[str, Any]) -> None:
    assert lost(EVENTS[tag], body) == {}


def test_every_event_has_a_stored_example_and_every_example_an_event() -> None:
    assert GOLDEN.keys() == EVENTS.keys()


@pytest.mark.parametrize(("tag", "body"), BODIES, ids=[tag for tag, _ in BODIES])
def test_some_example_says_every_field_of_its_event(tag: str, body: dict[str, Any]) -> None:
    said = set[str]().union(*(example.keys() for example in GOLDEN[tag]))
    assert said == {"type", *EVENTS[tag].__struct_fields__}
    assert body["type"] == tag


def test_a_renamed_field_would_be_noticed() -> None:
    class Renamed(Struct, frozen=True, tag="job.cancelled"):
        at: str
        cancelled_by: str = ""

    assert lost(Renamed, GOLDEN["job.cancelled"][0]) == {"by": "ada"}


def test_a_new_field_needs_a_default() -> None:
    class Grown(Struct, frozen=True, tag="job.cancelled"):
        at: str
        by: str
        why: str

    with pytest.raises(msgspec.ValidationError, match="why"):
        lost(Grown, GOLDEN["job.cancelled"][0])


def test_every_tag_names_its_aggregate_and_is_written_with_it() -> None:
    assert {kind_of(tag) for tag in EVENTS} == AGGREGATES.keys()
    assert all(tag_of(event) == tag for tag, event in EVENTS.items())


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
