"""Every history that was ever stored still makes the row that it always made."""

import pytest
from tests.domain.corpus import ALL, NAMES, History, digest

from sightline.adapters.event_store.codec import EventMapper
from sightline.domain.events import EVENTS
from sightline.projections.catalogue import READ_MODELS


@pytest.mark.parametrize(("kind", "history"), ALL, ids=NAMES)
def test_a_history_makes_the_row_that_it_always_made(kind: str, history: History) -> None:
    models = [one for one in READ_MODELS if kind in one.kinds]
    if history.row is None:
        assert models == []  # It is read by other nouns' commands alone.
        return
    [model] = models
    mapper, row = EventMapper(EVENTS), None
    for recorded in history.recorded():
        row = model.apply(row, mapper.event(recorded), recorded)
    assert digest(row) == history.row, f"{kind}.json, {history.history}: {row}"
