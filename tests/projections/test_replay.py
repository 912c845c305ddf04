"""The fold without a database: equal to what the projector wrote, and digests that tell rows apart and nothing else."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from msgspec import Struct
from msgspec.structs import replace
from tests.conftest_service import Service
from tests.projections.history import History

from sightline.adapters.event_store.codec import EventMapper
from sightline.domain.events import EVENTS
from sightline.projections import catalogue
from sightline.projections.folding import Poison
from sightline.projections.projection import ReadModel
from sightline.projections.replay import canonical_row, digest, fold_all, in_order
from sightline.projections.verify import stored

MAPPER = EventMapper(EVENTS)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class AnyRow(Struct, frozen=True):
    at: datetime
    value: Any


def test_a_row_is_the_same_however_a_table_rewrites_it() -> None:
    written = {"b": 1.0, "a": [1e300, -0.0, 10**20, {"z": 1, "y": None}], "n": 9007199254740993}
    read = {"n": 9007199254740993, "a": [10**300, 0.0, 1e20, {"y": None, "z": 1}], "b": 1.0}
    there = NOON.astimezone(timezone(timedelta(hours=2)))
    assert canonical_row(AnyRow(there, written)) == canonical_row(AnyRow(NOON, read))
    for other in (written | {"b": 2.0}, written | {"n": "9007199254740993"}, written | {"c": None}):
        assert canonical_row(AnyRow(NOON, other)) != canonical_row(AnyRow(NOON, written))
    assert canonical_row(AnyRow(NOON + timedelta(microseconds=1), 1)) != canonical_row(AnyRow(NOON, 1))


def test_a_digest_depends_on_every_row_and_their_order() -> None:
    rows = [AnyRow(NOON, number) for number in range(3)]
    assert len({digest(one) for one in ([], rows, rows[:2], rows[::-1], [rows[0], *rows])}) == 5
    assert in_order({2: "b", 1: "a"}) == {1: "a", 2: "b"}
    assert list(in_order({2: "b", 1: "a"})) == [1, 2]


async def test_the_fold_equals_the_tables(service: Service) -> None:
    await service.install_models()
    await History(service, 5).run(150)
    await service.caught_up()
    events = await service.services.store.reader.page(after=0, limit=100_000)
    folded = fold_all(MAPPER, events)
    async with service.services.store.pool.connection() as connection, connection.transaction():
        for model in catalogue.ALL_MODELS:
            found = [one async for batch in stored(connection, model, model.table) for one in batch]
            keys = [key if isinstance(key, tuple) else (key,) for key in folded[model.name]]
            assert [key for key, _ in found] == keys, model.name
            if isinstance(model, ReadModel):
                row, _ = await service.reads.get(model, keys[0][0])
                assert row is not None
                assert digest([row]) == digest([folded[model.name][keys[0][0]]])


async def test_a_stream_that_was_set_aside_ends_before_its_poison(service: Service) -> None:
    job_id, other = await service.submit(), await service.submit()
    events = await service.services.store.reader.page(after=0)
    poisoned = [replace_state(one) if one.stream_id == job_id else one for one in events]
    with pytest.raises(Poison) as caught:
        fold_all(MAPPER, poisoned)
    assert caught.value.stream_id == job_id
    assert "MapperDeserialisationError" in caught.value.error
    folded = fold_all(MAPPER, poisoned, {job_id: caught.value.position})
    assert set(folded["jobs"]) == {other}


def replace_state(recorded: Any) -> Any:
    values = vars(recorded) | {"state": b'{"kind": 7}'}
    return type(recorded)(**values)


def test_the_fold_takes_all_of_an_event_or_nothing() -> None:
    """A control for each half: what one model refuses is in none."""
    from sightline.adapters.event_store.codec import Recorded
    from sightline.projections.folding import Fold

    def refuse(_row: object, _event: object, _at: object) -> Any:
        raise AssertionError("no")

    sessions = next(model for model in catalogue.READ_MODELS if model.name == "sessions")
    closed = b'{"type":"session.closed","at":"2026-01-01T00:00:00Z","by":"ada"}'
    recorded = Recorded(UUID(int=1), 1, "session.closed", closed, 1, b"{}", NOON)
    counted = ReadModel(
        "counted", 1, frozenset({"session"}), AnyRow, lambda _row, _event, at: AnyRow(at.recorded_at, 1)
    )
    refusing = replace(sessions, apply=refuse)
    fold = Fold(MAPPER, [counted, refusing])
    with pytest.raises(Poison, match="no"):
        fold.take(recorded)
    assert fold.rows["counted"] == {}
    assert Fold(MAPPER, [counted]).take(recorded)
