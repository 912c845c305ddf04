"""Which model version a name stands for, and its change without a gap: the new one is loaded and warm before it serves.

A name is a task, which stands for its active version, or the id of a version. What a task stands for is kept here and
looked after beside the requests, so that none of them waits for the log or for a load that its own task does not need.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
import structlog
from msgspec import Struct

from ..adapters import builtin
from ..adapters.inference.messages import Loaded, Tensor
from ..adapters.inference.model import Inferred, ModelFile, ModelUnusable, serving_of
from ..adapters.inference.server import Capacity, InferenceServer
from ..adapters.models import ModelCache, ModelUnavailable
from ..adapters.settings import MEBIBYTE_BYTES, Settings
from ..commands.transact import Commands
from ..domain import model_slots, models
from ..domain.kernel import NotFound, Rejection
from ..domain.model_slots import ModelNotSynced

FOLLOW_S = 0.5  # between looks at what is active; a change takes so long, and the load
TASKS_MAX = 64  # that are followed; the one that was asked for least recently is left
FILES_MAX = 256  # versions whose files are remembered
BODIES_BYTES_MAX = 256 * MEBIBYTE_BYTES  # of requests that are being answered; decoded, each takes as much again
BATCH_BYTES_MAX = 15 * MEBIBYTE_BYTES  # what a frame to the child holds, its envelope aside
SERVED_FRAMEWORK = "onnx"

log = structlog.get_logger(__name__)


class NotReady(Rejection):
    """It is being loaded."""

    code = "model_not_ready"


class Served(Struct, frozen=True):
    """A version, and its file.

    Attributes:
        name: that it was asked for by.
        is_active: the name is a task's, and this its active version.
    """

    name: str
    version_id: UUID
    file: ModelFile
    is_active: bool


class Serving:
    """Names of models in front of an inference server.

    Args:
        inference: that runs them.
        wanted: tasks that are served from the start; nothing is ready before they are.
    """

    def __init__(
        self, commands: Commands, cache: ModelCache, inference: InferenceServer, *, wanted: Sequence[str] = ()
    ) -> None:
        self._commands = commands
        self._cache = cache
        self._inference = inference
        self._wanted = wanted
        self._tasks: OrderedDict[str, Served] = OrderedDict()
        self._changing: dict[str, asyncio.Task[None]] = {}
        self._told: dict[str, str] = {}  # what went wrong with a task last, so that it is told once
        self._files: OrderedDict[UUID, ModelFile] = OrderedDict()  # a version's never change
        self._loading: set[asyncio.Task[Any]] = set()

    async def find(self, name: str, version: str | None = None) -> Served:
        """What a name stands for now, not loaded perhaps.

        Raises:
            NotFound: no such model, or not of this version; nothing was ever active for this task.
            ModelNotSynced: there is nothing to be served.
            ModelUnusable: it is of another framework, or its file is not here.
        """
        version_id, named_id = _uuid(version), _uuid(name)
        if version is not None and (version_id is None or named_id not in {None, version_id}):
            raise NotFound("no such version of this model")
        wanted = version_id or named_id
        if wanted is not None:
            file, task = await self._file(wanted)
            if named_id is None and task != name:
                raise NotFound("no such version of this model")
            return Served(name, wanted, file, is_active=False)
        kept = self._tasks.get(name)
        if kept is not None:
            self._tasks.move_to_end(name)
            return kept
        active = await self._active(name)
        if active is None:
            raise NotFound("no such model")
        file, _ = await self._file(active)
        return Served(name, active, file, is_active=True)

    async def load(self, served: Served) -> Loaded:
        """Have it loaded and warm; a task that was asked for is followed from here on.

        Raises:
            ModelUnusable, Overloaded: as the server says.
        """
        loaded = await self._inference.load(served.file)
        self._keep(served)
        return loaded

    async def infer(
        self, served: Served, inputs: Sequence[Tensor], outputs: tuple[str, ...], timeout_s: float
    ) -> Inferred:
        """What it makes of these tensors, the wait for its load included; see InferenceServer.infer()."""
        found = await self._inference.infer(served.file, inputs, outputs=outputs, timeout_s=timeout_s)
        self._keep(served)
        return found

    def holds(self, served: Served) -> bool:
        """Whether it is loaded and warm."""
        return self._inference.holds(served.file.sha256)

    def begin(self, served: Served) -> None:
        """The same, waiting for nothing; what goes wrong is in the log, and told to whoever asks for an answer."""
        task = asyncio.create_task(self.load(served), name="model-load")
        self._loading.add(task)
        task.add_done_callback(self._over)

    @property
    def is_ready(self) -> bool:
        """Whether every task that is served, or should be, can be asked now."""
        return self._inference.is_ready and all(name in self._tasks for name in self._wanted)

    async def follow(self) -> None:
        """For ever: look at what is active for the tasks that are served, and serve it."""
        while True:
            await self._look_at_all()
            await asyncio.sleep(FOLLOW_S)

    async def close(self) -> None:
        """No process and no task afterwards."""
        await self._inference.close()
        if left := {*self._loading, *self._changing.values()}:
            await asyncio.wait(left)

    async def _look_at_all(self) -> None:
        """Begin the changes that are due, each in a task of its own: one may take long to load."""
        for name in [*self._tasks, *(one for one in self._wanted if one not in self._tasks)]:
            if name not in self._changing:
                self._changing[name] = task = asyncio.create_task(self._look(name), name=f"serve-{name}")
                task.add_done_callback(partial(self._looked, name))
        await asyncio.sleep(0)

    async def _look(self, name: str) -> None:
        """Serve what is active; where it cannot be, what was goes on."""
        try:
            active, before = await self._active(name), self._tasks.get(name)
            if active is None or (before is not None and before.version_id == active):
                return
            file, _ = await self._file(active)
            served = Served(name, active, file, is_active=True)
            await self._inference.load(file)
            self._change(before, served)
            self._told.pop(name, None)
        except (Rejection, psycopg.Error, OSError) as error:
            if self._told.get(name) != repr(error):
                self._told[name] = repr(error)
                log.warning("model_not_served", task=name, error=repr(error))

    def _looked(self, name: str, _: "asyncio.Task[None]") -> None:
        del self._changing[name]

    def _change(self, before: Served | None, now: Served) -> None:
        """From here on requests go to the new one; those under way end where they are, and then the old one goes."""
        if before is None:
            self._keep(now)
            return
        if now.name in self._tasks:  # else nobody asked for so long that it was left
            self._tasks[now.name] = now
        log.info("model_changed", task=now.name, before=str(before.version_id), now=str(now.version_id))
        if before.file.sha256 not in {one.file.sha256 for one in self._tasks.values()}:
            self._inference.release(before.file.sha256)

    def _keep(self, served: Served) -> None:
        if served.is_active and served.name not in self._tasks:
            self._tasks[served.name] = served
            while len(self._tasks) > TASKS_MAX:
                left, _ = self._tasks.popitem(last=False)
                self._told.pop(left, None)

    async def _active(self, task: str) -> UUID | None:
        """Of the log as it is now; another process may have changed it."""
        return (await self._commands.today(model_slots.AGGREGATE, model_slots.slot_id(task))).active

    async def _file(self, version_id: UUID) -> tuple[ModelFile, str]:
        """Of a version, with its task."""
        model, _, _ = await self._commands.state(models.AGGREGATE, version_id, read_tail=False)
        if model.status != "synced":  # another process may have synced it since
            model, _, _ = await self._commands.state(models.AGGREGATE, version_id, read_tail=True)
        if model.status is None or model.status == "archived":
            raise NotFound("no such model")
        if model.status != "synced" or model.sha256 is None:
            raise ModelNotSynced("sync the model first")
        if model.framework != SERVED_FRAMEWORK:
            raise ModelUnusable(f"only {SERVED_FRAMEWORK} models are served, and this is one of {model.framework}")
        kept = self._files.get(version_id)
        if kept is not None:
            return kept, model.task
        try:
            path = await asyncio.to_thread(self._cache.ensure, model.sha256)
        except ModelUnavailable as error:
            raise ModelUnusable(str(error)) from error
        shipped = {one.sha256: one.serving for one in builtin.manifests().values()}
        serving = serving_of(model.manifest or {"serving": shipped.get(model.sha256)})
        file = ModelFile(model.sha256, str(path.absolute()), model.size_bytes or 0, str(version_id), serving)
        self._files[version_id] = file
        while len(self._files) > FILES_MAX:
            self._files.popitem(last=False)
        return file, model.task

    def _over(self, task: "asyncio.Task[Loaded]") -> None:
        self._loading.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("model_not_served", error=repr(task.exception()))


@asynccontextmanager
async def open_serving(settings: Settings, commands: Commands, cache: ModelCache) -> AsyncIterator[Serving]:
    """Serving that follows what is active; nothing runs before the first model is asked for."""
    capacity = Capacity(
        devices=tuple(settings.inference_devices),
        threads=settings.inference_threads,
        cuda_graphs=settings.inference_cuda_graphs,
        memory_bytes_max=settings.inference_memory_mb_max * MEBIBYTE_BYTES,
        models_max=settings.inference_models_max,
        models_bytes_max=settings.inference_models_mb_max * MEBIBYTE_BYTES,
        requests_max=settings.inference_requests_max,
        batch_rows_max=settings.inference_batch_rows_max,
        batch_bytes_max=min(settings.inference_request_mb_max * MEBIBYTE_BYTES, BATCH_BYTES_MAX),
    )
    inference = InferenceServer(capacity, readable=[cache.directory])
    serving = Serving(commands, cache, inference, wanted=settings.inference_tasks)
    following = asyncio.create_task(serving.follow(), name="serving-follow")
    try:
        yield serving
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        await serving.close()


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text) if text is not None else None
    except ValueError:
        return None
