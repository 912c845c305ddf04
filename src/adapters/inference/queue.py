"""Requests for one model that wait for a device: what is there goes, put together where that changes no answer.

Nobody waits for a batch to fill, unless the model's manifest says so: while one runs the next one gathers.
"""

import math
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from .model import Bounds, Overloaded, Request


class RequestQueue:
    """Bounded; in the order of arrival within a kind, and the kind whose first one waits longest goes first.

    Args:
        requests_max: that wait at once; one more is refused.
    """

    def __init__(self, bounds: Bounds, requests_max: int) -> None:
        self.bounds = bounds
        self._requests_max = requests_max
        self._lines: dict[Any, _Line] = {}  # by kind, no line without a request
        self._alone: dict[Request, None] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def since_s(self) -> float:
        """When the request came that goes next, by `time.perf_counter`; of an empty queue, never."""
        first = self._first()
        return math.inf if first is None else first.since_s

    @property
    def is_full(self) -> bool:
        """Whether waiting for others to come would be no use to somebody."""
        return bool(self._alone) or any(line.fills(self.bounds) for line in self._lines.values())

    @property
    def due_s(self) -> float:
        """When the next batch may go, by `time.perf_counter`."""
        return self.since_s if self.is_full else self.since_s + self.bounds.wait_s

    def put(self, request: Request) -> None:
        """Raises: Overloaded: enough wait."""
        if self._count >= self._requests_max:
            raise Overloaded(f"{self._requests_max} requests wait for this model")
        self._lines.setdefault(request.kind, _Line()).add(request)
        self._count += 1

    def put_back(self, requests: Iterable[Request], *, alone: bool = False) -> None:
        """In front of all others, in their order; whoever gave up meanwhile is left out. Not bounded: they were in."""
        for request in reversed([one for one in requests if not one.future.done()]):
            if alone:
                self._alone[request] = None
            else:
                self._lines.setdefault(request.kind, _Line()).add_first(request)
            self._count += 1

    def take(self) -> list[Request]:
        """The next batch; empty where nothing waits. Whose time is over is not in it: somebody else tells them."""
        first = self._first()
        if first is None:
            return []
        if first in self._alone:
            del self._alone[first]
            taken = [first]
        else:
            line = self._lines[first.kind]
            taken = line.take(self.bounds)
            if not line.waiting:
                del self._lines[first.kind]
        self._count -= len(taken)
        return [one for one in taken if is_wanted(one)]

    def discard(self, request: Request) -> None:
        """Take one out that nobody waits for any more; says nothing if it is not here."""
        line = self._lines.get(request.kind)
        if request in self._alone:
            del self._alone[request]
        elif line is not None and request in line.waiting:
            line.remove(request)
            if not line.waiting:
                del self._lines[request.kind]
        else:
            return
        self._count -= 1

    def drain(self) -> list[Request]:
        """Take all of them out."""
        found = [*self._alone, *(one for line in self._lines.values() for one in line.waiting)]
        self._alone.clear()
        self._lines.clear()
        self._count = 0
        return found

    def _first(self) -> Request | None:
        heads = [line.waiting[0] for line in self._lines.values()]
        return min([*heads, *self._alone], key=lambda one: one.since_s, default=None)


def is_wanted(request: Request) -> bool:
    """Whether somebody still waits for it, and in time."""
    return request.until_s > time.perf_counter() and not request.future.done()


class _Line:
    """Requests of one kind, and what they come to."""

    __slots__ = ("rows", "size_bytes", "waiting", "weight")

    def __init__(self) -> None:
        self.waiting: deque[Request] = deque()
        self.rows = self.size_bytes = self.weight = 0

    def fills(self, bounds: Bounds) -> bool:
        return (
            self.rows >= bounds.rows_max or self.size_bytes >= bounds.size_bytes_max or self.weight >= bounds.weight_max
        )

    def add(self, request: Request) -> None:
        self.waiting.append(request)
        self._count(request, 1)

    def add_first(self, request: Request) -> None:
        self.waiting.appendleft(request)
        self._count(request, 1)

    def remove(self, request: Request) -> None:
        self.waiting.remove(request)
        self._count(request, -1)

    def take(self, bounds: Bounds) -> list[Request]:
        """From the front, one at least, as many as fit."""
        taken: list[Request] = []
        rows = size_bytes = weight = 0
        while self.waiting:
            one = self.waiting[0]
            rows, size_bytes, weight = rows + one.rows, size_bytes + one.size_bytes, weight + one.weight
            fits = rows <= bounds.rows_max and size_bytes <= bounds.size_bytes_max and weight <= bounds.weight_max
            if taken and not fits:
                break
            taken.append(self.waiting.popleft())
            self._count(one, -1)
        return taken

    def _count(self, request: Request, sign: int) -> None:
        self.rows += sign * request.rows
        self.size_bytes += sign * request.size_bytes
        self.weight += sign * request.weight
