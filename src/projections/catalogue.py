"""Every read model there is, and the projector over all of them."""

from typing import Any

from ..adapters.event_store.codec import EventMapper
from .api_keys import API_KEYS
from .assets import ASSETS
from .batches import BATCHES
from .comparisons import COMPARISONS
from .jobs import JOBS
from .lineage import LINEAGE
from .model_slots import MODEL_SLOTS
from .models import MODELS
from .projection import AnyModel, EdgeModel, ReadModel
from .projector import Projector
from .queues import QUEUES
from .quotas import QUOTAS
from .sessions import SESSIONS
from .shadows import SHADOWS
from .users import USERS
from .webhooks import WEBHOOKS

READ_MODELS: tuple[ReadModel[Any], ...] = (
    ASSETS,
    SESSIONS,
    MODELS,
    MODEL_SLOTS,
    JOBS,
    BATCHES,
    QUEUES,
    COMPARISONS,
    SHADOWS,
    USERS,
    API_KEYS,
    QUOTAS,
    WEBHOOKS,
)
EDGE_MODELS: tuple[EdgeModel[Any], ...] = (LINEAGE,)
ALL_MODELS: tuple[AnyModel, ...] = (*READ_MODELS, *EDGE_MODELS)


def projector(mapper: EventMapper) -> Projector:
    return Projector(mapper, READ_MODELS, EDGE_MODELS)
