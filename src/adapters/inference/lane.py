"""The parent's end of one inference child, which has one device: what it is sent, what it answers, and its deaths.

The child answers in order. Two things are on their way to it at most: one that runs and one that waits in the pipe, so
that it need not wait for this process between two batches. While one runs another is sent only if it is full; else it
waits here, and gathers.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

import structlog

from .. import metrics
from ..child import Child, ChildDied
from .messages import (
    Asked,
    Failed,
    Load,
    Loaded,
    Pieces,
    Ran,
    Run,
    Said,
    Tensor,
    Unload,
    decode_said,
    encode,
    size_bytes,
)
from .model import AnswerTooLarge, Bounds, InferenceDied, Inferred, ModelFailed, ModelFile, ModelUnusable, Request
from .queue import RequestQueue

IN_FLIGHT_MAX = 2
RUN_S_MAX = 60.0  # of one batch
LOAD_S_MAX = 120.0
RESTART_PAUSES_S = (0.1, 0.5, 2.0, 5.0)  # after starts that failed; the last one again and again
OUT_OF_MEMORY = "out_of_memory"

log = structlog.get_logger(__name__)


class Model:
    """One model that is loaded, or about to be.

    Attributes:
        loaded: what the child said of it; None before.
        queue: of its requests; none run before it is loaded.
        under_way: requests that were taken in and have no answer.
        is_leaving: to be let go once none is under way.
        measured: histograms: seconds in the queue, rows of a batch, seconds of its input, of itself, of its output.
    """

    def __init__(self, file: ModelFile) -> None:
        self.file = file
        self.loaded: Loaded | None = None
        self.queue = RequestQueue(Bounds(1, 0, None, 0.0), 0)
        self.under_way = 0
        self.is_leaving = False
        self.loading: asyncio.Task[Loaded] | None = None
        self.measured = [
            one.labels(file.label)
            for one in (
                metrics.INFERENCE_QUEUE_SECONDS,
                metrics.INFERENCE_BATCH_ROWS,
                metrics.INFERENCE_INPUT_SECONDS,
                metrics.INFERENCE_INFER_SECONDS,
                metrics.INFERENCE_OUTPUT_SECONDS,
            )
        ]

    @property
    def provider(self) -> str:
        return self.loaded.providers[0] if self.loaded is not None else ""


class _Sent:
    """Something that was asked, or will be, and has no answer."""

    def __init__(
        self,
        asked: Asked,
        model: Model,
        batch: list[Request] | None = None,
        told: "asyncio.Future[Loaded] | None" = None,
    ) -> None:
        self.asked = asked
        self.model = model
        self.batch = batch or []
        self.told = told
        self.sent_s = 0.0


class Lane:
    """One child, started when it is first needed and again whenever it died.

    Args:
        models: all that are to be loaded, for a child that begins anew.
        on_death: told of the model under which the child died.
        on_lost: told of a model that a new child could not load again, and why.
    """

    def __init__(
        self,
        child: Child,
        *,
        threads: int,
        cuda_graphs: bool,
        models: Callable[[], Iterable[Model]],
        on_death: Callable[[Model], None],
        on_lost: Callable[[Model, str], None],
    ) -> None:
        self._child = child
        self._threads = threads
        self._cuda_graphs = cuda_graphs
        self._models = models
        self._on_death = on_death
        self._on_lost = on_lost
        self._orders: deque[_Sent] = deque()  # loads and unloads, one of each for each model
        self._sent: deque[_Sent] = deque()
        self._holds: set[str] = set()
        self._is_up = False
        self._spares = False  # whether the next death is nobody's fault
        self._living: asyncio.Task[None] | None = None
        self._overrun: asyncio.TimerHandle | None = None
        self._reminder: asyncio.TimerHandle | None = None

    @property
    def is_ready(self) -> bool:
        """False while the child is being replaced."""
        return self._is_up or self._living is None

    @property
    def pid(self) -> int | None:
        return self._child.pid

    @property
    def in_flight(self) -> int:
        """How much the child was asked and has not answered."""
        return len(self._sent)

    def holds(self, model: Model) -> bool:
        """Whether it is loaded and warm here."""
        return model.file.sha256 in self._holds

    async def load(self, model: Model) -> Loaded:
        """Have the child load a model and run it once.

        Raises:
            ModelUnusable: it cannot be loaded; or the child died of it, or cannot be started.
        """
        told: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        self._orders.append(self._load_of(model, told))
        if self._living is None:
            self._living = asyncio.create_task(self._live(), name="inference-lane")
        self.pump()
        return await told

    def unload(self, model: Model) -> None:
        """Let it go here; whoever waits for its load is told."""
        for one in [one for one in self._orders if one.model is model]:
            self._orders.remove(one)
            _tell(one, ModelUnusable("it was let go before it was loaded"))
        is_loading = any(one.model is model and isinstance(one.asked, Load) for one in self._sent)
        if is_loading or self.holds(model):
            self._holds.discard(model.file.sha256)
            self._orders.append(_Sent(Unload(model.file.sha256), model))
            self.pump()

    def pump(self) -> None:
        """Send what may be sent now."""
        if not self._is_up or self._child.pid is None:
            return
        while self._orders:
            self._send(self._orders.popleft())
        while len(self._sent) < IN_FLIGHT_MAX and (model := self._next()) is not None:
            if batch := model.queue.take():
                self._send(_Sent(_run_of(model, batch), model, batch))
        if not self._sent:
            self._remind()

    async def close(self) -> None:
        """No child and no task afterwards. Whoever waits for an answer is told by the server."""
        if self._living is not None:
            self._living.cancel()
            await asyncio.wait({self._living})
        self._is_up = False
        for timer in (self._overrun, self._reminder):
            if timer is not None:
                timer.cancel()
        await self._child.kill()
        for one in (*self._orders, *self._sent):
            _tell(one, InferenceDied("the service ends"))

    def _next(self) -> Model | None:
        """The model whose first request waits longest, among those that may go: while something runs, full batches."""
        now_s = time.perf_counter()
        waiting = [
            one
            for one in self._models()
            if len(one.queue) and self.holds(one) and one.queue.due_s <= now_s and (not self._sent or one.queue.is_full)
        ]
        return min(waiting, key=lambda one: one.queue.since_s, default=None)

    def _remind(self) -> None:
        """Look again when the first batch that waits for company has waited long enough."""
        due_s = min((one.queue.due_s for one in self._models() if len(one.queue) and self.holds(one)), default=None)
        if self._reminder is not None:
            self._reminder.cancel()
            self._reminder = None
        if due_s is not None:
            wait_s = max(0.0, due_s - time.perf_counter())
            self._reminder = asyncio.get_running_loop().call_later(wait_s, self.pump)

    def _send(self, one: _Sent) -> None:
        one.sent_s = time.perf_counter()
        self._sent.append(one)
        with suppress(RuntimeError, OSError):  # it has just died, which whoever listens to it will find
            self._child.send([encode(one.asked)])
        if len(self._sent) == 1:
            self._watch()

    def _watch(self) -> None:
        """End the child where what it works on takes too long."""
        if self._overrun is not None:
            self._overrun.cancel()
            self._overrun = None
        if self._sent:
            limit_s = LOAD_S_MAX if isinstance(self._sent[0].asked, Load) else RUN_S_MAX
            self._overrun = asyncio.get_running_loop().call_later(limit_s, self._child.interrupt)

    async def _live(self) -> None:
        failures = 0
        while True:
            try:
                await self._child.start()
            except (ChildDied, TimeoutError, OSError) as error:
                log.warning("inference_not_started", error=repr(error))
                while self._orders:
                    _tell(self._orders.popleft(), InferenceDied("no process to run it can be started now"))
                await asyncio.sleep(RESTART_PAUSES_S[min(failures, len(RESTART_PAUSES_S) - 1)])
                failures += 1
                continue
            failures = 0
            self._begin()
            try:
                while True:
                    said = decode_said(await self._child.receive())
                    self._take(self._sent.popleft(), said)
                    self._watch()
                    self.pump()
            except ChildDied as died:
                self._bury(died.reason)
            except Exception as error:  # noqa: BLE001  # a graph may have made of the child what it likes: it is not believed
                log.warning("inference_talks_nonsense", error=repr(error))
                await self._child.kill()
                self._bury("did not answer as it should")

    def _begin(self) -> None:
        """A child that knows no model yet."""
        self._is_up, self._spares = True, False
        ordered = {one.model.file.sha256 for one in self._orders}
        self._orders.extend(self._load_of(one) for one in self._models() if one.file.sha256 not in ordered)
        self.pump()

    def _load_of(self, model: Model, told: "asyncio.Future[Loaded] | None" = None) -> _Sent:
        file = model.file
        asked = Load(file.sha256, file.path, self._threads, self._cuda_graphs, file.serving.warm_up)
        return _Sent(asked, model, told=told)

    def _take(self, one: _Sent, said: Said) -> None:
        match one.asked, said:
            case Load(), Loaded():
                self._holds.add(one.model.file.sha256)
                if one.told is not None and not one.told.done():
                    one.told.set_result(said)
            case Load(), Failed(message=message):
                self._give_up(one, message)
            case Run(), Ran():
                self._share(one, said)
            case Run(), Failed():
                self._fail(one, said)
            case Unload(), _:
                self._holds.discard(one.model.file.sha256)  # it may have been loading when it was let go
            case _:
                raise ValueError(f"{type(said).__name__} answers no {type(one.asked).__name__}")
        if isinstance(said, Failed) and said.code == OUT_OF_MEMORY:
            self._spares = True
            self._child.interrupt()  # what a failed allocation left behind is unknown

    def _share(self, one: _Sent, ran: Ran) -> None:
        """Each request its rows."""
        rows = [request.rows for request in one.batch]
        total = sum(rows)
        for output in ran.outputs:
            if size_bytes(output.datatype, output.shape) != output.data.nbytes:
                raise ValueError("an output's bytes do not fit its shape")
        if len(one.batch) == 1:
            answers = [ran.outputs]
        elif all(output.shape[:1] == (total,) for output in ran.outputs):
            answers = [list(one) for one in zip(*(_split(each, rows) for each in ran.outputs), strict=True)]
        else:
            # Its first dimension is not that of its inputs after all.
            one.model.queue.bounds = Bounds(1, one.model.queue.bounds.size_bytes_max, None, 0.0)
            one.model.queue.put_back(one.batch, alone=True)
            return
        measured = one.model.measured
        for histogram, value in zip(measured[1:], (total, ran.input_s, ran.infer_s, ran.output_s), strict=True):
            histogram.observe(value)
        for request, outputs in zip(one.batch, answers, strict=True):
            queue_s = one.sent_s - request.since_s
            measured[0].observe(queue_s)
            if not request.future.done():
                request.future.set_result(Inferred(outputs, one.model.provider, total, queue_s, ran.infer_s))

    def _fail(self, one: _Sent, failed: Failed) -> None:
        """One request may be at fault: each runs again by itself."""
        if len(one.batch) > 1:
            one.model.queue.put_back(one.batch, alone=True)
        elif failed.code == "answer_too_large":
            _tell(one, AnswerTooLarge(failed.message))
        elif failed.code == "model_unusable":
            _tell(one, ModelUnusable(failed.message))
        else:
            _tell(one, ModelFailed(failed.message))

    def _bury(self, reason: str) -> None:
        """Whoever it died of is told; the others wait for the next child."""
        log.warning("inference_died", reason=reason, spared=self._spares)
        self._is_up = False
        self._holds.clear()
        sent, self._sent = self._sent, deque()
        self._watch()
        if sent and not self._spares:
            culprit = sent.popleft()
            self._on_death(culprit.model)
            if isinstance(culprit.asked, Load):
                self._give_up(culprit, f"the process that loaded it {reason}")
            elif len(culprit.batch) > 1:
                culprit.model.queue.put_back(culprit.batch, alone=True)
            else:
                _tell(culprit, InferenceDied(f"the process under it {reason}"))
        for one in reversed(sent):
            one.model.queue.put_back(one.batch)
            if isinstance(one.asked, Load):
                self._orders.appendleft(one)

    def _give_up(self, one: _Sent, reason: str) -> None:
        _tell(one, ModelUnusable(reason))
        if one.told is None:
            self._on_lost(one.model, reason)


def _tell(one: _Sent, error: Exception) -> None:
    for future in (one.told, *(request.future for request in one.batch)):
        if future is not None and not future.done():
            future.set_exception(error)


def _run_of(model: Model, batch: list[Request]) -> Run:
    first = batch[0]
    inputs = []
    for number, tensor in enumerate(first.inputs):
        shape = tensor.shape
        if len(batch) > 1:
            shape = (sum(request.rows for request in batch), *shape[1:])
        inputs.append(Pieces(tensor.name, tensor.datatype, shape, [request.inputs[number].data for request in batch]))
    return Run(model.file.sha256, inputs, first.outputs)


def _split(output: Tensor, rows: list[int]) -> list[Tensor]:
    """Along the first dimension; no byte is copied."""
    row_bytes = output.data.nbytes // output.shape[0]
    found, at = [], 0
    for count in rows:
        data = output.data[at : at + count * row_bytes]
        found.append(Tensor(output.name, output.datatype, (count, *output.shape[1:]), data))
        at += count * row_bytes
    return found
