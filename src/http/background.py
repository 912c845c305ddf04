"""Work that goes on after its request was answered: a few tasks of this process, ended with it."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from ..domain.kernel import Rejection

TASKS_MAX = 4

log = structlog.get_logger(__name__)


class TooManyTasks(Rejection):
    """This process has enough to do beside answering."""

    code = "too_many_tasks"


class Background:
    """Tasks nobody waits for; what they fail with is logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self, work: Coroutine[Any, Any, Any], begun: asyncio.Event, name: str) -> None:
        """Run `work`; return once it has set `begun`.

        Raises:
            TooManyTasks: TASKS_MAX run already.
            Exception: what the work failed with before that.
        """
        if len(self._tasks) >= TASKS_MAX:
            work.close()
            raise TooManyTasks(f"{TASKS_MAX} tasks run in this process already")
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        waiting = asyncio.create_task(begun.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not begun.is_set():
            await task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("background_task_failed", task=task.get_name(), error=repr(task.exception()))

    async def close(self) -> None:
        """Cancel what still runs."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
