"""A cold replay: the whole log folded in memory, without a database."""

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from ..adapters.event_store.codec import EventMapper, Recorded
from . import catalogue
from .canonical import Digest, canonical_row, digest
from .folding import Fold

__all__ = ["Digest", "canonical_row", "digest", "fold_all", "in_order"]


def fold_all(
    mapper: EventMapper, events: Iterable[Recorded], quarantined: Mapping[UUID, int] | None = None
) -> dict[str, dict[Any, Any]]:
    """What every read model and edge model holds after `events`: by name, rows by key, in the order of their keys.

    `events` is the log from position 1, in order; `quarantined` has the streams that were set aside, and the position
    from which on each is skipped.

    Raises:
        Poison: an event of a stream that is not quarantined cannot be folded.
    """
    fold = Fold(mapper, catalogue.READ_MODELS, catalogue.EDGE_MODELS)
    skipped = quarantined or {}
    for recorded in events:
        if recorded.position < skipped.get(recorded.stream_id, recorded.position + 1):
            fold.take(recorded)
    return {name: in_order(rows) for name, rows in (fold.rows | fold.edges).items()}


def in_order(rows: Mapping[Any, Any]) -> dict[Any, Any]:
    """The same rows, by key."""
    return {key: rows[key] for key in sorted(rows)}
