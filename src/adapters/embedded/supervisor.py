"""Keeps the parts and the processes of one `sightline up` running, and ends them together.

Not a general init system: one list of processes, one rule for each (`charges`). SIGTERM, SIGINT or SIGHUP ends the
processes first and then the parts, in less than 10 s; a second one does not wait for the processes. Where the
supervisor itself is killed the kernel ends its children (`processes` says what they must do for that).
"""

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import structlog

from ..settings import Settings
from .charges import Charge, PartCharge, ProcessCharge, ProcessSpec
from .parts import Parts
from .processes import kill

GRACE_S = 6.0  # for the processes; with what the parts may take the whole stop stays below 10 s
PROBE_S = 0.05
REAPED_AT_ONCE_MAX = 1000
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = structlog.get_logger(__name__)


class StopRequested(BaseException):
    """Thrown into whatever start-up is doing when it is told to stop; not an Exception, so that nothing swallows it."""


class Supervisor:
    """The main thread of a process that has no other children: those it would bury with the orphans.

    Args:
        parts: made with `attach=False`: what another process owns would end with it.
        plan: the processes to run, given the settings with the parts' addresses. Called once the parts are up, so
            it is also the place for what must happen before the processes start, such as migrations.
        on_ready: called once, when every process has been ready.
        grace_s: between SIGTERM and SIGKILL for the processes.
    """

    def __init__(
        self,
        parts: Parts,
        plan: Callable[[Settings], Sequence[ProcessSpec]],
        *,
        on_ready: Callable[[], None] = lambda: None,
        grace_s: float = GRACE_S,
    ) -> None:
        self._parts = parts
        self._plan = plan
        self._on_ready = on_ready
        self._grace_s = grace_s
        self._starting = True
        self._stop_requests = 0
        self._processes: list[ProcessCharge] = []

    def run(self) -> int:
        """Start, keep, stop. Returns the exit status of a stop that was asked for, 0; in the main thread only.

        Raises:
            PartError: the parts did not start.
        """
        with _wakeup(self._on_signal) as wakeup:
            try:
                settings = self._parts.start()
                for part in self._parts.owned:
                    log.info("process_started", process=part.name, pid=part.pid, starts=1)
                self._processes = [ProcessCharge(spec, self._parts.environ) for spec in self._plan(settings)]
                self._starting = False
                self._keep(wakeup)
            except StopRequested:
                log.info("stopped_while_starting")
            finally:
                self._starting = False
                self._stop(wakeup)
        return 0

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in STOP_SIGNALS:
            self._stop_requests += 1
            if self._starting:
                self._starting = False
                raise StopRequested

    def _keep(self, wakeup: socket.socket) -> None:
        for process in self._processes:
            process.launch()
        charges: list[Charge] = [*map(PartCharge, self._parts.owned), *self._processes]
        unready = True
        while not self._stop_requests:
            for charge in charges:
                charge.tend()
            _reap_strangers({charge.pid for charge in charges})
            if unready and sum(process.probe() for process in self._processes) == len(self._processes):
                unready = False
                self._on_ready()
            _wait(wakeup, PROBE_S if unready else min((charge.wait_s() for charge in charges), default=PROBE_S))

    def _stop(self, wakeup: socket.socket) -> None:
        began = time.monotonic()
        running = [process for process in self._processes if process.child and process.poll() is None]
        for process in running:
            assert process.child
            process.child.terminate()
        while any(process.poll() is None for process in running):
            if time.monotonic() - began > self._grace_s or self._stop_requests > 1:
                break
            _wait(wakeup, PROBE_S)
        for process in running:
            if process.child and process.poll() is None:
                log.warning("process_killed", process=process.name, pid=process.pid, grace_s=self._grace_s)
                kill(process.child)
        self._parts.stop()
        log.info("stopped", after_s=round(time.monotonic() - began, 3))


@contextmanager
def _wakeup(handler: Callable[[int, FrameType | None], None]) -> Iterator[socket.socket]:
    """Signals go to `handler` and end a wait on the socket: whichever thread the kernel picks, none is missed."""
    receiver, sender = socket.socketpair()
    with receiver, sender:
        receiver.settimeout(0)
        sender.settimeout(0)
        numbers = (*STOP_SIGNALS, signal.SIGCHLD)
        before_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, handler) for number in numbers}
        try:
            yield receiver
        finally:
            for number, old in before.items():
                signal.signal(number, old)
            signal.set_wakeup_fd(before_fd)


def _wait(wakeup: socket.socket, timeout_s: float) -> None:
    select.select([wakeup], [], [], timeout_s)
    with suppress(BlockingIOError):
        wakeup.recv(4096)


def _reap_strangers(own: set[int | None]) -> None:
    """As a container's first process we inherit orphans (a killed database's children), and bury them."""
    for _ in range(REAPED_AT_ONCE_MAX):
        try:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if dead is None or dead.si_pid in own:
            return  # Ours are reaped by whoever tends them, and the rest in the next round.
        os.waitpid(dead.si_pid, os.WNOHANG)
