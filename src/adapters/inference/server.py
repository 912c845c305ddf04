"""The inference server: which models are loaded, and one call for whoever wants an answer of one.

In a process of its own per device runs what strangers made; in this one wait the requests. See `lane.py`, `queue.py`.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import structlog
from msgspec import Struct
from prometheus_client import Counter

from ...domain.kernel import Rejection
from .. import metrics
from ..child import Child
from .lane import Lane, Model
from .messages import Loaded, Tensor
from .model import (
    DeadlineExceeded,
    InferenceDied,
    Inferred,
    ModelFile,
    ModelUnusable,
    Overloaded,
    Request,
    bounds_of,
    request_of,
)
from .queue import RequestQueue

RUNTIME_MODULE = "sightline.adapters.inference.runtime"
DEATHS_MAX = 4  # of its process under one model within DEATHS_S: one more, and it is not run for REFUSED_S
DEATHS_S = 60.0
REFUSED_S = 15.0
DEATHS_KEPT = 64
REFUSED_MAX = 64  # models remembered as such
CANCELLED = "cancelled"
LOOK_S = 0.02  # between looks at whose time is over
LATE = "no answer within the time that was given"
LABELS_MAX = 4_096  # of models and results

log = structlog.get_logger(__name__)


class Capacity(Struct, frozen=True, kw_only=True):
    """Bounds of a server.

    Attributes:
        devices: CUDA's names of them, one child each; without any there is one child, with what it finds.
        threads: cores that one operator may use, in each child.
        memory_bytes_max: of each child's address space; 0 sets none, which CUDA needs.
        models_max, models_bytes_max: that are loaded at once; bytes of their files.
        requests_max: that wait for one model.
        batch_rows_max, batch_bytes_max: of one run; a model may say less.
    """

    devices: tuple[str, ...] = ()
    threads: int = 1
    cuda_graphs: bool = False
    memory_bytes_max: int = 4 * 1024**3
    models_max: int = 4
    models_bytes_max: int = 2 * 1024**3
    requests_max: int = 256
    batch_rows_max: int = 32
    batch_bytes_max: int = 8 * 1024**2


class InferenceServer:
    """Opened without doing anything: the first model starts the children.

    Args:
        readable: the model cache.
        module: the child's program.
    """

    def __init__(
        self,
        capacity: Capacity,
        *,
        readable: Sequence[Path],
        module: str = RUNTIME_MODULE,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._capacity = capacity
        self._models: OrderedDict[str, Model] = OrderedDict()  # the least recently used one first
        self._refused: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._deaths: deque[tuple[float, str]] = deque(maxlen=DEATHS_KEPT)
        environs = [{"CUDA_VISIBLE_DEVICES": one} for one in capacity.devices] or [{}]
        self._lanes = [
            Lane(
                Child(
                    module,
                    memory_bytes_max=capacity.memory_bytes_max,
                    environ={**(environ or {}), **own},
                    readable=readable,
                ),
                threads=capacity.threads,
                cuda_graphs=capacity.cuda_graphs,
                models=self._models.values,
                on_death=self._count_death,
                on_lost=self._lose,
            )
            for own in environs
        ]
        self._loads: set[asyncio.Task[Loaded]] = set()
        self._under_way: set[Request] = set()
        self._look: asyncio.TimerHandle | None = None

    @property
    def pids(self) -> list[int]:
        """Of the children that run now."""
        return [lane.pid for lane in self._lanes if lane.pid is not None]

    @property
    def is_ready(self) -> bool:
        """Whether all that was loaded can be asked: false while a child is being replaced, until it has them again."""
        loaded = [sha256 for sha256, model in self._models.items() if model.loaded is not None]
        return all(lane.is_ready for lane in self._lanes) and all(map(self.holds, loaded))

    def holds(self, sha256: str) -> bool:
        """Whether the model is loaded and warm on every device."""
        model = self._models.get(sha256)
        return model is not None and model.loaded is not None and all(lane.holds(model) for lane in self._lanes)

    async def load(self, file: ModelFile) -> Loaded:
        """The model, loaded and warm; at once if it is.

        Raises:
            ModelUnusable: it cannot be, or not now.
            Overloaded: there is no room for it, since all models that are loaded have work.
        """
        model = self._models.get(file.sha256)
        if model is None:
            self._require_not_refused(file.sha256)
            self._make_room(file)
            model = self._models[file.sha256] = Model(file)
            model.loading = asyncio.create_task(self._load(model))
            self._loads.add(model.loading)
            model.loading.add_done_callback(self._loaded)
        self._models.move_to_end(file.sha256)
        model.is_leaving = False
        if model.loaded is None and model.loading is not None:
            return await asyncio.shield(model.loading)  # others wait for it too
        assert model.loaded is not None, "it is loading, or loaded"
        return model.loaded

    async def infer(
        self, file: ModelFile, inputs: Sequence[Tensor], *, outputs: tuple[str, ...] = (), timeout_s: float
    ) -> Inferred:
        """What the model makes of these tensors, maybe together with others' and apart from them again.

        Raises:
            TensorRefused, ModelFailed, AnswerTooLarge: for what was sent.
            ModelUnusable: for the model.
            Overloaded, InferenceDied, DeadlineExceeded: for the moment; it may be asked again.
        """
        result = CANCELLED
        began_s = time.perf_counter()
        try:
            model = self._models.get(file.sha256)
            if model is None or model.loaded is None:
                model = await self._loaded_within(file, timeout_s)
            self._models.move_to_end(file.sha256)
            model.is_leaving = False
            left_s = timeout_s - (time.perf_counter() - began_s)
            found = await self._asked(model, inputs, outputs, left_s)
            result = "ok"
            return found
        except Rejection as rejection:
            result = rejection.code
            raise
        finally:
            _requests(file.label, result).inc()

    async def _loaded_within(self, file: ModelFile, timeout_s: float) -> Model:
        try:
            async with asyncio.timeout(timeout_s):
                await self.load(file)
        except TimeoutError:
            raise DeadlineExceeded(LATE) from None
        model = self._models.get(file.sha256)
        if model is None:
            raise ModelUnusable("it was let go meanwhile")
        return model

    async def _asked(
        self, model: Model, inputs: Sequence[Tensor], outputs: tuple[str, ...], timeout_s: float
    ) -> Inferred:
        assert model.loaded is not None, "it is loaded"
        request = request_of(model.loaded, model.queue.bounds, inputs, outputs, timeout_s=timeout_s)
        model.queue.put(request)
        model.under_way += 1
        self._under_way.add(request)
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._look_after_all)
        try:
            for lane in self._lanes if len(self._lanes) == 1 else sorted(self._lanes, key=lambda one: one.in_flight):
                lane.pump()
            return await request.future
        finally:
            self._under_way.discard(request)
            model.under_way -= 1
            model.queue.discard(request)
            if model.is_leaving and not model.under_way:
                self._let_go(model)

    def _look_after_all(self) -> None:
        """Tell those whose time is over; one timer for all, since one for each would cost more than the queue."""
        now_s = time.perf_counter()
        for request in self._under_way:
            if request.until_s <= now_s and not request.future.done():
                request.future.set_exception(DeadlineExceeded(LATE))
        self._look = asyncio.get_running_loop().call_later(LOOK_S, self._look_after_all) if self._under_way else None

    def release(self, sha256: str) -> None:
        """Let a model go once the requests that are under way have their answers; unless it is wanted again."""
        model = self._models.get(sha256)
        if model is not None and not model.under_way and model.loaded is not None:
            self._let_go(model)
        elif model is not None:
            model.is_leaving = True

    async def close(self) -> None:
        """No process and no task afterwards; whoever waits is told so."""
        for lane in self._lanes:
            await lane.close()
        if self._look is not None:
            self._look.cancel()
        for model in self._models.values():
            self._refuse_waiting(model, InferenceDied("the service ends"))
        if self._loads:
            await asyncio.wait(self._loads)

    async def _load(self, model: Model) -> Loaded:
        try:
            found = await asyncio.gather(*(lane.load(model) for lane in self._lanes))
        except BaseException as error:
            self._let_go(model)
            if isinstance(error, ModelUnusable):
                self._refuse(model, error.detail)
            raise
        capacity = self._capacity
        bounds = bounds_of(
            found[0],
            model.file.serving,
            rows_max=capacity.batch_rows_max,
            size_bytes_max=capacity.batch_bytes_max,
        )
        model.queue = RequestQueue(bounds, capacity.requests_max)
        model.loaded = found[0]
        log.info("model_loaded", model=model.file.label, providers=found[0].providers, rows_max=bounds.rows_max)
        return model.loaded

    def _loaded(self, task: "asyncio.Task[Loaded]") -> None:
        self._loads.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("model_not_loaded", error=repr(task.exception()))

    def _make_room(self, file: ModelFile) -> None:
        """Let the least recently used models go, of those that have no work.

        Raises:
            Overloaded: that is not enough.
        """
        capacity = self._capacity
        if file.size_bytes > capacity.models_bytes_max:
            raise ModelUnusable(f"its file has more than {capacity.models_bytes_max} bytes")
        idle = [one for one in self._models.values() if one.loaded is not None and not one.under_way]
        while (
            len(self._models) >= capacity.models_max
            or sum(one.file.size_bytes for one in self._models.values()) + file.size_bytes > capacity.models_bytes_max
        ):
            if not idle:
                raise Overloaded("all models that are loaded have work, and there is no room for another")
            self._let_go(idle.pop(0))

    def _let_go(self, model: Model) -> None:
        if self._models.get(model.file.sha256) is model:
            del self._models[model.file.sha256]
        for lane in self._lanes:
            lane.unload(model)

    def _require_not_refused(self, sha256: str) -> None:
        until_s, reason = self._refused.get(sha256, (0.0, ""))
        left_s = until_s - time.monotonic()
        if left_s > 0:
            raise ModelUnusable(reason, retry_after_s=max(1, round(left_s)))

    def _count_death(self, model: Model) -> None:
        """A model that ends its process again and again takes all others with it: it rests for a while."""
        now_s, sha256 = time.monotonic(), model.file.sha256
        self._deaths.append((now_s, sha256))
        if sum(now_s - when < DEATHS_S and who == sha256 for when, who in self._deaths) > DEATHS_MAX:
            self._lose(model, "its process died under it several times; it rests for a while")

    def _lose(self, model: Model, reason: str) -> None:
        log.warning("model_lost", model=model.file.label, reason=reason)
        self._refuse(model, reason)
        self._let_go(model)
        self._refuse_waiting(model, ModelUnusable(reason))

    def _refuse(self, model: Model, reason: str) -> None:
        """Loading costs the others on the device: what failed is not tried again at once."""
        self._refused.pop(model.file.sha256, None)
        self._refused[model.file.sha256] = (time.monotonic() + REFUSED_S, reason)
        while len(self._refused) > REFUSED_MAX:
            self._refused.popitem(last=False)

    @staticmethod
    def _refuse_waiting(model: Model, error: Rejection) -> None:
        for request in model.queue.drain():
            if not request.future.done():
                request.future.set_exception(error)


@lru_cache(maxsize=LABELS_MAX)
def _requests(label: str, result: str) -> Counter:
    return metrics.INFERENCE_REQUESTS.labels(label, result)
