"""What a supervisor keeps running: a part or a process, started again with a growing pause whenever it dies."""

import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
from msgspec import Struct, field

from .part import Part, PartError
from .processes import spawn

BACKOFF_S_MIN = 0.1
BACKOFF_S_MAX = 5.0
IDLE_S = 1.0  # a look around even where no signal came
PART_STABLE_S = 2.0  # a database that is killed now and then is not one that cannot start
PROCESS_STABLE_S = 30.0

log = structlog.get_logger(__name__)


class ProcessSpec(Struct, frozen=True, kw_only=True):
    """One process to keep running.

    Attributes:
        env: added to the supervisor's own environment and the parts' addresses.
        ready: whether it serves; asked every 50 ms until it says so once, so it must be quick. An OSError is a no.
            None: ready as soon as it is started.
        log_path: where its output goes; None is the supervisor's own.
        stable_s: one that lived this long is started again after `BACKOFF_S_MIN`, whatever happened before.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], bool] | None = None
    log_path: Path | None = None
    stable_s: float = PROCESS_STABLE_S


class Charge(ABC):
    """Started again for as long as its supervisor lives, after 0.1 s, then twice as long each time, at most 5 s."""

    def __init__(self, name: str, stable_s: float) -> None:
        self.name = name
        self._stable_s = stable_s
        self._starts = 0
        self._started_at = time.monotonic()
        self._restart_at: float | None = None
        self._backoff_s = BACKOFF_S_MIN

    @property
    @abstractmethod
    def pid(self) -> int | None: ...

    @abstractmethod
    def poll(self) -> int | None:
        """None while it runs, else its exit status."""

    @abstractmethod
    def _launch(self) -> None: ...

    def tend(self) -> None:
        """Notice a death; start again when it is time."""
        if self._restart_at is not None:
            if time.monotonic() >= self._restart_at:
                self.launch()
        elif (status := self.poll()) is not None:
            self._died(status=status)

    def launch(self) -> None:
        self._started_at, self._restart_at = time.monotonic(), None
        self._starts += 1
        try:
            self._launch()
        except (OSError, PartError) as error:
            self._died(reason=str(error))
        else:
            log.info("process_started", process=self.name, pid=self.pid, starts=self._starts)

    def wait_s(self) -> float:
        """How long until it needs attention again, unless a signal tells of its death before."""
        return IDLE_S if self._restart_at is None else max(0.0, self._restart_at - time.monotonic())

    def _died(self, **why: object) -> None:
        alive_s = time.monotonic() - self._started_at
        if alive_s >= self._stable_s:
            self._backoff_s = BACKOFF_S_MIN
        log.warning("process_died", process=self.name, alive_s=round(alive_s, 3), again_in_s=self._backoff_s, **why)
        self._restart_at = time.monotonic() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_S_MAX)


class PartCharge(Charge):
    """A part that was started already."""

    def __init__(self, part: Part) -> None:
        super().__init__(part.name, PART_STABLE_S)
        self._part = part
        self._starts = 1

    @property
    def pid(self) -> int | None:
        return self._part.pid

    def poll(self) -> int | None:
        return self._part.poll()

    def _launch(self) -> None:
        self._part.launch()


class ProcessCharge(Charge):
    """A process of `spec`, whose environment is `environ` and what the spec adds."""

    def __init__(self, spec: ProcessSpec, environ: Mapping[str, str]) -> None:
        super().__init__(spec.name, spec.stable_s)
        self.child: subprocess.Popen[bytes] | None = None
        self._spec = spec
        self._environ = {**os.environ, **environ, **spec.env}
        self._ready = False

    @property
    def pid(self) -> int | None:
        return self.child.pid if self.child else None

    def poll(self) -> int | None:
        return self.child.poll() if self.child else None

    def probe(self) -> bool:
        """Whether it has been ready once."""
        if not self._ready and self.child and self._answers():
            self._ready = True
            log.info("process_ready", process=self.name, after_s=round(time.monotonic() - self._started_at, 3))
        return self._ready

    def _answers(self) -> bool:
        try:
            return self._spec.ready is None or self._spec.ready()
        except OSError:
            return False

    def _launch(self) -> None:
        self.child = spawn(self._spec.argv, env=self._environ, log_path=self._spec.log_path)
