"""A picture of where one process's CPU time goes, with what the standard library has: a timer of the process's own CPU
time, and at each tick the stack of the main thread.

As a program it runs our API process under that timer: `python -m benchmarks.flames SAMPLES.json`. SIGUSR1 forgets what
was sampled so far, such as the start.
"""

import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import msgspec

from . import measure

TICK_S = 0.001
DEPTH_MAX = 80
CHARS_WIDE = 300  # of the smallest letters fit into the picture's width
SMALLEST = 0.004  # share of the width below which a frame is not drawn

Stack = tuple[str, ...]

# By the file in which a frame's code lies; the deepest frame that matches says whose time it is.
PARTS = (
    ("/uvicorn/", "uvicorn, httptools, sockets"),
    ("/litestar/", "Litestar"),
    ("/structlog/", "the canonical log line"),
    ("/logging/", "the canonical log line"),
    ("/sightline/adapters/logs", "the canonical log line"),
    ("/sightline/adapters/redaction", "the canonical log line"),
    ("/prometheus_client/", "metrics"),
    ("/jwt/", "authentication"),
    ("/sightline/adapters/tokens", "authentication"),
    ("/sightline/commands/authentication", "authentication"),
    ("/sightline/http/auth", "authentication"),
    ("/redis/", "hints to Valkey"),
    ("/sightline/adapters/hints", "hints to Valkey"),
    ("/psycopg", "event store"),
    ("/sightline/adapters/event_store/", "event store"),
    ("/sightline/commands/", "commands and domain"),
    ("/sightline/domain/", "commands and domain"),
    ("/sightline/", "our HTTP layer"),
)
ELSEWHERE = "the event loop"


class Sampler:
    """Counts stacks until stopped."""

    def __init__(self) -> None:
        self.stacks: Counter[Stack] = Counter()
        self._names: dict[CodeType, str] = {}

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self._tick)
        signal.signal(signal.SIGUSR1, lambda *_: self.stacks.clear())
        signal.setitimer(signal.ITIMER_PROF, TICK_S, TICK_S)

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _tick(self, _: int, frame: FrameType | None) -> None:
        stack: list[str] = []
        while frame is not None and len(stack) < DEPTH_MAX:
            code = frame.f_code
            name = self._names.get(code)
            if name is None:
                name = self._names[code] = f"{code.co_filename}:{code.co_qualname}"
            stack.append(name)
            frame = frame.f_back
        self.stacks[tuple(reversed(stack))] += 1


def read(path: Path) -> dict[Stack, int]:
    """Stacks from the outermost frame in, with their samples."""
    samples = msgspec.json.decode(path.read_bytes(), type=list[tuple[list[str], int]])
    return {tuple(stack): count for stack, count in samples}


def by_part(stacks: Mapping[Stack, int]) -> dict[str, float]:
    """Shares of the samples."""
    found: Counter[str] = Counter()
    for stack, count in stacks.items():
        found[_part(stack)] += count
    total = sum(found.values())
    return {part: count / total for part, count in found.items()}


def _part(stack: Stack) -> str:
    for name in reversed(stack):
        for mark, part in PARTS:
            if mark in name:
                return part
    return ELSEWHERE


def draw(stacks: Mapping[Stack, int], name: str, title: str) -> None:
    """A flame graph, results/NAME.png: width is time, what lies above was called by what lies below."""
    total = sum(stacks.values())
    boxes: list[tuple[float, int, float, str]] = []
    common = _shared_frames(list(stacks)) - 1  # how the process was started is nothing to see
    _layout(sorted((stack[common:], count) for stack, count in stacks.items()), 0, 0.0, total, boxes)
    top = max(level for _, level, _, _ in boxes) + 1
    colours = {part: f"C{number}" for number, part in enumerate(dict.fromkeys([*(p for _, p in PARTS), ELSEWHERE]))}
    with measure.picture(name, size=(18, 0.24 * top + 1), dpi=110) as axes:
        for left, level, width, frame in boxes:
            part = _part((frame,))
            axes.barh(level, width, left=left, height=0.94, align="edge", color=colours[part], alpha=0.55, linewidth=0)
            shown = _short(frame)[: int(width * CHARS_WIDE)]
            axes.text(left + 0.0007, level + 0.45, shown, fontsize=6, va="center", clip_on=True)
        for part, colour in colours.items():
            axes.barh(0, 0, color=colour, alpha=0.55, label=part)
        axes.legend(loc="upper left", ncols=2, fontsize=7)
        axes.set_xlim(0, 1)
        axes.set_yticks([])
        axes.set_xlabel("share of the process's CPU time")
        axes.set_title(f"{title} ({total} samples)")


def _shared_frames(stacks: Sequence[Stack]) -> int:
    """How many outermost frames are the same in all of them."""
    levels = takewhile(lambda level: len(set(level)) == 1, zip(*stacks, strict=False))
    return max(1, sum(1 for _ in levels))


def _layout(
    rows: list[tuple[Stack, int]], level: int, left: float, total: int, boxes: list[tuple[float, int, float, str]]
) -> None:
    """One level of the graph: neighbours with the same frame become one box, and what they called lies on it."""
    groups: dict[str, list[tuple[Stack, int]]] = {}
    for stack, count in rows:
        if len(stack) > level:
            groups.setdefault(stack[level], []).append((stack, count))
    for name, each in groups.items():
        width = sum(count for _, count in each) / total
        if width >= SMALLEST:
            boxes.append((left, level, width, name))
            _layout(each, level + 1, left, total, boxes)
        left += width


def _short(name: str) -> str:
    file, _, function = name.rpartition(":")
    module = Path(file)
    return f"{module.stem}.{function}"


def main(path: Path) -> None:
    """Serve as `sightline serve` does, and leave the samples at `path` when told to stop."""
    from sightline.adapters import settings  # noqa: PLC0415  # only the sampled process needs the service
    from sightline.http import server  # noqa: PLC0415  # as above

    sampler = Sampler()
    sampler.start()
    server.serve(settings.read())
    sampler.stop()
    samples: list[Any] = list(sampler.stacks.items())
    path.write_bytes(msgspec.json.encode(samples))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
