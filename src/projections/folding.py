"""The fold itself, in memory: events in, rows and edges out. Projector, rebuild, replay and bundle all rest on it."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from ..adapters.event_store.codec import EventMapper, Recorded
from ..domain.events import kind_of
from .projection import EdgeModel, ReadModel

ERROR_CHARS_MAX = 1_000


class Poison(Exception):
    """An event that cannot be folded, or whose rows the database refuses.

    Attributes:
        error: why, in one line.
    """

    def __init__(self, recorded: Recorded, error: BaseException) -> None:
        self.stream_id = recorded.stream_id
        self.position = recorded.position
        self.topic = recorded.topic
        said = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        self.error = said.replace("\0", "")[:ERROR_CHARS_MAX].encode(errors="replace").decode()
        super().__init__(f"{self.topic} of stream {self.stream_id} at position {self.position}: {self.error}")


class Fold:
    """Rows and edges as far as events were taken.

    Attributes:
        rows: of each read model, by key; whoever folds on from somewhere fills in those that exist.
        edges: of each edge model, by key; the first one under a key counts.
    """

    def __init__(
        self, mapper: EventMapper, models: Sequence[ReadModel[Any]], edge_models: Sequence[EdgeModel[Any]] = ()
    ) -> None:
        self._decode = mapper.event
        self.rows: dict[str, dict[UUID, Any]] = {model.name: {} for model in models}
        self.edges: dict[str, dict[tuple[Any, ...], Any]] = {model.name: {} for model in edge_models}
        self._models = models
        self._edge_models = edge_models
        self._by_topic: dict[str, list[tuple[ReadModel[Any], dict[UUID, Any]]]] = {}

    def take(self, recorded: Recorded) -> list[tuple[ReadModel[Any], Any]]:
        """Fold one event; the rows that it made, each with its model.

        Raises:
            Poison: the event does not decode, or a model refuses it; then nothing of it is in any model.
        """
        folded = self._folded(recorded.topic)
        stream_id = recorded.stream_id
        try:
            event = self._decode(recorded)
            made = [(model, model.apply(rows.get(stream_id), event, recorded)) for model, rows in folded]
            edges = [(model, edge) for model in self._edge_models for edge in model.edges(event, recorded)]
        except MemoryError:
            raise  # about this process, not about the event
        except Exception as error:
            raise Poison(recorded, error) from error
        for (_, rows), (_, row) in zip(folded, made, strict=True):
            rows[stream_id] = row
        for model, edge in edges:
            self.edges[model.name].setdefault(tuple(getattr(edge, name) for name in model.key), edge)
        return made

    def models_of(self, topic: str) -> list[ReadModel[Any]]:
        """Which read models fold events of this tag."""
        return [model for model, _ in self._folded(topic)]

    def _folded(self, topic: str) -> list[tuple[ReadModel[Any], dict[UUID, Any]]]:
        found = self._by_topic.get(topic)
        if found is None:
            kind = kind_of(topic)
            found = [(model, self.rows[model.name]) for model in self._models if kind in model.kinds]
            self._by_topic[topic] = found
        return found

    def clear(self) -> None:
        """Forget all rows and edges."""
        for rows in self.rows.values():
            rows.clear()
        for edges in self.edges.values():
            edges.clear()
