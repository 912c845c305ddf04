"""Logs: one event, one line; JSON where a machine reads them, coloured text on a terminal.

The standard library's loggers (uvicorn, psycopg, redis) end in the same lines. Whatever a stranger put into a field,
it stays inside its line: everything beyond ASCII, line breaks included, is escaped.
"""

import json
import logging
import sys
from typing import Any

import structlog
from structlog.types import Processor

from .settings import Settings

VALUE_CHARS_MAX = 2_000  # of one text; a longer one is cut, so that a line stays a line that tools take
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
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(settings)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _rendering(settings: Settings) -> list[Processor]:
    pretty = settings.log_format == "pretty" or (settings.log_format == "auto" and sys.stderr.isatty())
    if pretty:
        return [_cut, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    return [structlog.processors.format_exc_info, _cut, structlog.processors.JSONRenderer(serializer=to_line)]


def _cut(_: Any, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    for name, value in event.items():
        if isinstance(value, str) and len(value) > VALUE_CHARS_MAX and name != "exception":
            event[name] = value[:VALUE_CHARS_MAX] + "…"
    return event


def to_line(event: Any, **_: Any) -> str:
    """One line of strict JSON, of any event: what JSON has no word for (NaN, a set, an object) is told by its repr."""
    try:
        return json.dumps(event, default=repr, allow_nan=False)
    except (ValueError, TypeError):
        return json.dumps({str(name): _plain(value) for name, value in event.items()})


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | bool | None) else repr(value)
