"""Logs: one event, one line; JSON where a machine reads them, coloured text on a terminal.

The standard library's loggers (uvicorn, psycopg, redis) end in the same lines. Whatever a stranger put into a field,
it stays inside its line: everything beyond ASCII, line breaks included, is escaped; and secrets stay out of it, see
redaction.py.
"""

import json
import logging
import re
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import Any

import structlog
from structlog.types import EventDict, Processor

from .redaction import Redactor
from .settings import Settings

# They tell at `info` what the canonical lines tell better.
QUIET = ("uvicorn", "uvicorn.error", "uvicorn.access", "aiobotocore", "botocore", "alembic", "asyncio")


def configure(settings: Settings) -> None:
    """Set up this process's logging, to standard error. Twice is once, with the later settings."""
    level = logging.getLevelNamesMapping().get(settings.log_level.upper(), logging.INFO)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering = _rendering(settings)
    handler = _OneLine(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    structlog.configure(
        processors=[*shared, lambda _, __, event: ((event,), {})],
        logger_factory=lambda name="root": _Told(handler, rendering, name),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(capture=True)
    sys.excepthook = _died
    threading.excepthook = lambda died: _died(died.exc_type, died.exc_value, died.exc_traceback)


class _OneLine(logging.StreamHandler[Any]):
    """The usual handler tells of a line that could not be made by a stack of many lines, the arguments in it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        error = sys.exception()
        line = {"event": "log_failed", "level": "error", "logger": record.name, "error": type(error).__name__}
        with suppress(OSError, ValueError):  # nobody reads what we say
            self.stream.write(f"{json.dumps(line)}\n")


class _Told:
    """Where our own lines end. As records of the standard library, which its formatter copies, each took three times as
    long, a quarter of all that a request costs.
    """

    def __init__(self, handler: _OneLine, rendering: Sequence[Processor], name: str) -> None:
        self.name = name
        self._handler = handler
        self._rendering = rendering

    def _tell(self, event: Any) -> None:
        """As a handler does: whoever tells something is never told that it failed."""
        handler = self._handler
        try:
            for step in self._rendering:
                event = step(self, "", event)
            with handler.lock or nullcontext():
                handler.stream.write(f"{event}\n")
                handler.stream.flush()
        except Exception:  # noqa: BLE001  # as logging.Handler does
            handler.handleError(logging.makeLogRecord({"name": self.name}))

    debug = info = warning = error = critical = _tell


def _died(kind: type[BaseException], error: BaseException | None, stack: TracebackType | None) -> None:
    """What nobody caught: a line as well. Ctrl-C is no death to tell of."""
    if error is not None and not isinstance(error, KeyboardInterrupt):
        structlog.get_logger(__name__).critical("died", exc_info=(kind, error, stack))


def _rendering(settings: Settings) -> list[Processor]:
    redactor = Redactor(settings)

    def plain(_: Any, __: str, event: EventDict) -> EventDict:
        return redactor.plain(event)

    if settings.log_format == "pretty" or (settings.log_format == "auto" and sys.stderr.isatty()):
        # Not the renderer's own stacks: they show the values of variables.
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        return [structlog.processors.format_exc_info, plain, _visible, console]
    return [structlog.processors.format_exc_info, plain, structlog.processors.JSONRenderer(serializer=to_line)]


_CONTROLS = re.compile(r"[^\x20-\x7e\xa1-\u2027\u202f-\ud7ff\ue000-\U0010ffff]")


def _visible(_: Any, __: str, event: EventDict) -> EventDict:
    """For a terminal, which would obey: control characters as escapes. A stack keeps its lines."""

    def escaped(found: re.Match[str]) -> str:
        return ascii(found[0])[1:-1]

    shown: EventDict = {}
    for name, value in event.items():
        lines = value.split("\n") if name == "exception" else [value]
        lines = [_CONTROLS.sub(escaped, line) if isinstance(line, str) else line for line in lines]
        shown[_CONTROLS.sub(escaped, name)] = "\n".join(lines) if name == "exception" else lines[0]
    return shown


def to_line(event: Any, **_: Any) -> str:
    """One line of strict JSON, ASCII alone."""
    return json.dumps(event, allow_nan=False)
