"""A page of the log into tables: folded in memory, each table written once. What the transaction around it is, and
which tables they are (the live ones, a rebuild's, a scratch copy) is the caller's.
"""

import gc
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any
from uuid import UUID

import psycopg

from ..adapters.event_store.codec import EventMapper, Recorded
from . import tables
from .folding import Fold, Poison
from .projection import AnyModel, EdgeModel, ReadModel
from .tables import ROWS_PER_WRITE, Target

ROWS_KEPT_MAX = 20_000  # of each model, from one page to the next, so that they need not be read back

# A page makes some ten thousand objects and no cycles among them: looking for cycles at every 700th, as Python does,
# took half of the time.
COLLECT_EVERY_OBJECTS = 100_000


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Let Python look for garbage in cycles once a page or so."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_EVERY_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


class PageWriter:
    """Folds pages that follow one another.

    Args:
        models: read models and edge models.
        targets: by name of the model, where its rows go; the live tables without it.
    """

    def __init__(
        self, mapper: EventMapper, models: Sequence[AnyModel], targets: Mapping[str, Target] | None = None
    ) -> None:
        self._models = {model.name: model for model in models if isinstance(model, ReadModel)}
        self._edge_models = [model for model in models if isinstance(model, EdgeModel)]
        self._targets = targets or {model.name: Target.live(model) for model in models}
        self._fold = Fold(mapper, list(self._models.values()), self._edge_models)
        self._touched: dict[str, dict[UUID, None]] = {}
        self._lines: dict[str, list[bytes]] = {}

    def forget(self) -> None:
        """The tables are not as the last page left them, or it was not committed."""
        self._fold.clear()

    async def write(
        self, connection: psycopg.AsyncConnection, events: Sequence[Recorded], skipped: Container[UUID] = frozenset()
    ) -> list[Poison]:
        """Fold and write one page; events that could not be folded. Of their streams, and of `skipped`, nothing from
        there on is in any table. If this or the transaction fails, `forget` must follow.

        Raises:
            psycopg.Error: the database refuses what the page comes to, or fails.
        """
        self._touched = {name: {} for name in self._models}
        self._lines = {name: [] for name in self._models if self._targets[name].history is not None}
        poisons: dict[UUID, Poison] = {}
        await self._load(connection, events)
        busiest = self._busiest(events)
        async with AsyncExitStack() as stack:
            if busiest is not None:
                copy = await stack.enter_async_context(tables.copying_history(connection, *busiest))
            for start in range(0, len(events), ROWS_PER_WRITE):
                self._take(events[start : start + ROWS_PER_WRITE], skipped, poisons)
                if busiest is not None:
                    lines = self._lines[busiest[0].name]
                    await copy.write(b"".join(lines))
                    lines.clear()
        await self._write_rest(connection)
        self._trim(poisons)
        return list(poisons.values())

    def _take(self, events: Sequence[Recorded], skipped: Container[UUID], poisons: dict[UUID, Poison]) -> None:
        for recorded in events:
            stream_id = recorded.stream_id
            if (skipped and stream_id in skipped) or (poisons and stream_id in poisons):
                continue
            try:
                made = self._fold.take(recorded)
            except Poison as poison:
                poisons[stream_id] = poison
                continue
            for model, row in made:
                self._touched[model.name][stream_id] = None
                if (lines := self._lines.get(model.name)) is not None:
                    lines.append(tables.history_line(row, recorded, stream_id))

    async def _write_rest(self, connection: psycopg.AsyncConnection) -> None:
        """What did not go over the wire while the page was folded."""
        for name, model in self._models.items():
            target = self._targets[name]
            if target.history is not None and self._lines[name]:
                async with tables.copying_history(connection, model, target.history) as copy:
                    await copy.write(b"".join(self._lines[name]))
            if keys := list(self._touched[name]):
                rows = self._fold.rows[name]
                await tables.replace(connection, model, target.table, [rows[key] for key in keys], keys)
        for edge_model in self._edge_models:
            if edges := self._fold.edges[edge_model.name]:
                await tables.add(connection, edge_model, self._targets[edge_model.name].table, edges.values())
                edges.clear()

    async def _load(self, connection: psycopg.AsyncConnection, events: Sequence[Recorded]) -> None:
        """Rows that the page folds on from: of streams that began before it, those that are not in memory."""
        wanted: dict[str, dict[UUID, None]] = {}
        begun: set[UUID] = set()
        for recorded in events:
            stream_id = recorded.stream_id
            if recorded.originator_version == 1:
                begun.add(stream_id)
            elif stream_id not in begun:
                for model in self._fold.models_of(recorded.topic):
                    if stream_id not in self._fold.rows[model.name]:
                        wanted.setdefault(model.name, {})[stream_id] = None
        for name, keys in wanted.items():
            model = self._models[name]
            self._fold.rows[name].update(await tables.load(connection, model, self._targets[name].table, list(keys)))

    def _busiest(self, events: Sequence[Recorded]) -> tuple[ReadModel[Any], str] | None:
        """The model whose history grows most, and its table; that goes over the wire while the page is folded."""
        counted: Counter[str] = Counter()
        for topic, number in Counter(recorded.topic for recorded in events).items():
            counted.update({model.name: number for model in self._fold.models_of(topic) if model.name in self._lines})
        for name, _ in counted.most_common(1):
            history = self._targets[name].history
            return None if history is None else (self._models[name], history)
        return None

    def _trim(self, poisons: Mapping[UUID, Poison]) -> None:
        """Keep what the next page is likely to fold on from, and nothing of a stream that is not whole."""
        for name, rows in self._fold.rows.items():
            for stream_id in poisons:
                rows.pop(stream_id, None)
            if len(rows) > ROWS_KEPT_MAX:
                kept = {key: rows[key] for key in list(self._touched[name])[-ROWS_KEPT_MAX:] if key in rows}
                rows.clear()
                rows.update(kept)
