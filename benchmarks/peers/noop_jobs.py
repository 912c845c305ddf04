"""A job that does nothing, for SAQ, arq, Celery and Procrastinate; each as its own documentation sets it up.

Run in `.venv-peers`: `SYSTEM=saq noop_jobs.py fill COUNT` fills a queue; `… wait COUNT` has jobs done one by one and
prints after how many milliseconds each ran, `… told COUNT` after how many its client was told. The workers are started
by p3_jobs.py with each system's own command. A job that is done appends eight bytes, the machine's clock in
nanoseconds, to the file that TIMES names: one short write.
"""

import asyncio
import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1")
DATABASE_URL = os.environ.get("DATABASE_URL", "")
SYSTEM = os.environ.get("SYSTEM", "")
TIMES = os.open(os.environ["TIMES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT) if "TIMES" in os.environ else -1
ENQUEUED_AT_ONCE = 500


def done() -> None:
    os.write(TIMES, struct.pack("=q", time.time_ns()))


async def noop(_: Any, **__: Any) -> None:
    """SAQ's and arq's."""
    done()


# What each system's own command looks for here: `settings`, `WorkerSettings`, `app`.
settings: dict[str, Any] = {}
app: Any = None

if SYSTEM == "saq":
    from saq.queue.redis import RedisQueue

    settings |= {"queue": RedisQueue.from_url(REDIS_URL), "functions": [("noop", noop)], "concurrency": 10}

if SYSTEM == "arq":
    from arq import func  # type: ignore[import-not-found]  # installed in .venv-peers alone
    from arq.connections import RedisSettings, create_pool  # type: ignore[import-not-found]  # likewise

    class WorkerSettings:
        functions = [func(noop, name="noop", keep_result=0)]  # noqa: RUF012  # as arq wants it
        redis_settings = RedisSettings.from_dsn(REDIS_URL)
        max_jobs = 10
        poll_delay = 0.01  # its default of 0.5 s is what it would be waiting for
        queue_read_limit = 1_000


if SYSTEM == "celery":
    from celery import Celery  # type: ignore[import-not-found]  # likewise

    path, _, database = unquote(REDIS_URL).removeprefix("unix://").partition("?db=")
    app = Celery("noop_jobs", broker=f"redis+socket://{path}?virtual_host={database}")
    app.conf.task_ignore_result = True
    app.conf.worker_prefetch_multiplier = 64
    celery_noop: Any = app.task(name="noop")(done)

if SYSTEM == "procrastinate":
    from procrastinate import App, PsycopgConnector  # type: ignore[import-not-found]  # likewise

    app = App(connector=PsycopgConnector(conninfo=DATABASE_URL, max_size=10))
    procrastinate_noop: Any = app.task(name="noop")(done)


async def fill(count: int) -> None:
    starts = range(0, count, ENQUEUED_AT_ONCE)
    rounds = [min(ENQUEUED_AT_ONCE, count - start) for start in starts]
    if SYSTEM == "saq":
        for jobs in rounds:
            await asyncio.gather(*(settings["queue"].enqueue("noop") for _ in range(jobs)))
        await settings["queue"].disconnect()
    elif SYSTEM == "arq":
        pool = await create_pool(WorkerSettings.redis_settings)
        for jobs in rounds:
            await asyncio.gather(*(pool.enqueue_job("noop") for _ in range(jobs)))
        await pool.aclose()
    elif SYSTEM == "celery":
        with app.producer_or_acquire() as producer:
            for _ in range(count):
                celery_noop.apply_async(producer=producer)
    elif SYSTEM == "procrastinate":
        async with app.open_async():
            for jobs in rounds:
                await procrastinate_noop.batch_defer_async(*({} for _ in range(jobs)))


async def wait(count: int) -> list[int]:
    """SAQ's alone: when each job was enqueued, one after another; when it ran is in the file."""
    queue, began = settings["queue"], []
    await queue.connect()
    for number in range(count):
        began.append(time.time_ns())
        await queue.enqueue("noop")
        while os.fstat(TIMES).st_size < 8 * (number + 1):  # noqa: ASYNC110  # what is waited for is another process's
            await asyncio.sleep(0.0005)
        await asyncio.sleep(0.02)
    await queue.disconnect()
    return began


async def told(count: int) -> list[float]:
    """SAQ's alone: milliseconds until each job's result is there, waited for as SAQ does, at its own pace."""
    queue, took_ms = settings["queue"], []
    await queue.connect()
    for _ in range(count):
        began = time.perf_counter()
        await queue.apply("noop")
        took_ms.append((time.perf_counter() - began) * 1000)
    await queue.disconnect()
    return took_ms


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        asyncio.run(fill(int(sys.argv[2])))
    elif sys.argv[1] == "told":
        print(json.dumps(asyncio.run(told(int(sys.argv[2])))))
    else:
        asked = asyncio.run(wait(int(sys.argv[2])))
        stamps = struct.unpack(f"={len(asked)}q", Path(os.environ["TIMES"]).read_bytes())
        print(json.dumps([(ran - one) / 1e6 for one, ran in zip(asked, stamps, strict=True)]))
