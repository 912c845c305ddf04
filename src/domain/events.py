"""Every event there is, by its stored tag, and every aggregate, by its kind. Whoever reads the log starts here."""

from typing import Any, get_args

from msgspec import Struct

from . import (
    administrators,
    api_keys,
    assets,
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
from .kernel import Aggregate

_Work = assets.Event | sessions.Event | models.Event | model_slots.Event | jobs.Event | batches.Event
_Queueing = queues.Event | unique_keys.Event
_Comparing = comparisons.Event | shadows.Event
_Telling = webhooks.Event
_Identity = users.Event | emails.Event | administrators.Event | api_keys.Event | quotas.Event
Event = _Work | _Queueing | _Comparing | _Telling | _Identity

AGGREGATES: dict[str, Aggregate[Any]] = {
    module.AGGREGATE.kind: module.AGGREGATE
    for module in (
        assets,
        sessions,
        models,
        model_slots,
        jobs,
        batches,
        queues,
        unique_keys,
        comparisons,
        shadows,
        users,
        emails,
        administrators,
        api_keys,
        quotas,
        webhooks,
    )
}


def tag_of(event: type[Struct] | Struct) -> str:
    """The name under which an event is stored."""
    return str(event.__struct_config__.tag)


def kind_of(tag: str) -> str:
    """The kind of the aggregate that says events of this tag: what stands before its first point."""
    return tag.partition(".")[0]


def _registry(classes: tuple[type[Struct], ...]) -> dict[str, type[Struct]]:
    """Classes by tag.

    Raises:
        ValueError: two events share a tag, or one's tag names no aggregate; either would make the log unreadable.
    """
    found: dict[str, type[Struct]] = {}
    for event in classes:
        tag = tag_of(event)
        if tag in found:
            raise ValueError(f"{event.__name__} and {found[tag].__name__} are both stored as {tag}")
        if kind_of(tag) not in AGGREGATES:
            raise ValueError(f"{tag} names no aggregate")
        found[tag] = event
    return found


EVENTS = _registry(get_args(Event))
