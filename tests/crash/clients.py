"""Clients of the API.

    python -m tests.crash.clients DIRECTORY PORT SEED KILLS KEYS LONG_JOBS UPLOADS

Each round brings jobs, every one under an idempotency key sent several times at once until each sending is answered,
and uploads, some of which are cut midway. What was answered goes into the ledger.
"""

import asyncio
import hashlib
import io
import random
import sys
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from tests.crash.ledger import Answers
from tests.crash.plan import DUPLICATES, LEASE_S, Gate

GATE_POLL_S = 0.02
RETRY_S = 0.05
TRIES_MAX = 2_000
AT_ONCE_MAX = 20
ROUNDS_AT_ONCE_MAX = 2
PASSING = {429, 502, 503, 504}
LAYERS = {"num_layers": 2, "max_size": 256}


class Clients:
    """
    Args:
        one_key: whether a repeated request carries the key of the first; otherwise, for the control, one of its own.
    """

    def __init__(self, client: httpx.AsyncClient, answers: Answers, seed: int, *, one_key: bool = True) -> None:
        self._client = client
        self._answers = answers
        self._seed = seed
        self._one_key = one_key
        self._free = asyncio.Semaphore(AT_ONCE_MAX)

    async def round(self, number: int, *, keys: int, long_jobs: int, uploads: int) -> None:
        dice = random.Random(f"{self._seed}/{number}")
        sleeps_s = [dice.uniform(0.5, LEASE_S) if one < long_jobs else dice.uniform(0.0, 0.02) for one in range(keys)]
        works = [self._job(number, f"{self._seed}-{number}-{one}", sleep_s) for one, sleep_s in enumerate(sleeps_s)]
        works += [self._upload(number, one, dice.choice(("whole", "cut", "form"))) for one in range(uploads)]
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
        self._answers.write(what="round", round=number)

    async def _job(self, number: int, key: str, sleep_s: float) -> None:
        body = {"kind": "noop", "params": {"sleep_s": round(sleep_s, 3)}, "attempts_max": 20}
        await asyncio.gather(*(self._submit(number, key, body, n) for n in range(DUPLICATES)))

    async def _submit(self, number: int, key: str, body: dict[str, Any], duplicate: int) -> None:
        header = key if self._one_key else f"{key}-{duplicate}"
        async with self._free:
            answer = await self._ask(number, "POST", "/v1/jobs", json=body, headers={"Idempotency-Key": header})
        if answer is not None:
            position = int(answer.headers["Event-Position"])
            self._answers.write(what="job", round=number, key=key, id=answer.json()["id"], position=position)

    async def _upload(self, number: int, one: int, way: str) -> None:
        data = picture(f"{self._seed}/{number}/{one}")
        async with self._free:
            asset_id = await (self._form(number, data) if way == "form" else self._signed(number, data, way))
            if asset_id is None or one % 2:
                return
            body = {"kind": "layer-photo-realistic", "inputs": [asset_id], "params": LAYERS, "attempts_max": 20}
            key = f"{self._seed}-{number}-layers-{one}"
            answer = await self._ask(number, "POST", "/v1/jobs", json=body, headers={"Idempotency-Key": key})
        if answer is not None:
            position = int(answer.headers["Event-Position"])
            self._answers.write(what="job", round=number, key=key, id=answer.json()["id"], position=position)

    async def _form(self, number: int, data: bytes) -> str | None:
        """In one request. No key: one that is repeated leaves the first one's bytes, or its asset, behind."""
        answer = await self._ask(
            number, "POST", "/api/jobs/upload", files={"file": ("a.png", data, "image/png")}, data={}
        )
        if answer is None:
            return None
        asset_id = str(answer.json()["file_id"])
        self._told(number, answer, asset_id, data)
        return asset_id

    async def _signed(self, number: int, data: bytes, way: str) -> str | None:
        """Announced, brought, looked at; a cut one is brought by half first, and now and then left so."""
        asked = {"filename": "a.png", "content_type": "image/png", "size_bytes": len(data), "purpose": "image"}
        announced = await self._ask(number, "POST", "/v1/assets", json=asked)
        if announced is None:
            return None
        asset_id, grant = str(announced.json()["id"]), announced.json()["upload"]
        if way == "cut":
            await self._cut(grant, data)
            self._answers.write(what="cut", round=number, id=asset_id)
        stored = await self._ask(
            number,
            grant["method"],
            grant["url"],
            headers=grant["headers"],
            content=data,
            taken=(HTTPStatus.PRECONDITION_FAILED,),
        )
        if stored is None:
            return None
        digest = hashlib.sha256(data).hexdigest()
        done = await self._ask(number, "POST", f"/v1/assets/{asset_id}/complete", json={"sha256": digest})
        if done is None:
            return None
        self._told(number, done, asset_id, data)
        return asset_id

    async def _cut(self, grant: dict[str, Any], data: bytes) -> None:
        """Half of the body that was announced, and then nobody is there any more."""

        async def half() -> Any:
            yield data[: len(data) // 2]
            await asyncio.sleep(0.01)
            raise ConnectionAbortedError

        with suppress(httpx.TransportError, ConnectionAbortedError):
            await self._client.request(grant["method"], grant["url"], headers=grant["headers"], content=half())

    def _told(self, number: int, answer: httpx.Response, asset_id: str, data: bytes) -> None:
        position = int(answer.headers["Event-Position"])
        digest = hashlib.sha256(data).hexdigest()
        self._answers.write(what="asset", round=number, id=asset_id, position=position, sha256=digest)

    async def _ask(
        self, number: int, method: str, url: str, *, taken: tuple[int, ...] = (), **request: Any
    ) -> httpx.Response | None:
        """Until it is answered; `taken` are refusals that mean that an earlier sending was carried out."""
        for _ in range(TRIES_MAX):
            try:
                answer = await self._client.request(method, url, **request)
            except httpx.TransportError:
                await asyncio.sleep(RETRY_S)
                continue
            if answer.is_success or answer.status_code in taken:
                return answer
            if answer.status_code not in PASSING and "idempotency_key_in_use" not in answer.text:
                detail = f"{method} {url}: {answer.status_code} {answer.text[:300]}"
                self._answers.write(what="refused", round=number, detail=detail)
                return None
            await asyncio.sleep(RETRY_S)
        self._answers.write(what="refused", round=number, detail=f"{method} {url}: no answer in {TRIES_MAX} tries")
        return None


def picture(name: str) -> bytes:
    """A small photograph of noise; the same name, the same bytes."""
    noise = random.Random(name).randbytes(64 * 48 * 3)
    written = io.BytesIO()
    Image.frombytes("RGB", (64, 48), noise).save(written, "PNG")
    return written.getvalue()


async def run(directory: Path, port: int, seed: int, rounds: int, keys: int, long_jobs: int, uploads: int) -> None:
    """A few rounds at a time, as far as the gate says."""
    answers, gate = Answers(directory / "answers.ledger"), Gate(directory)
    free = asyncio.Semaphore(ROUNDS_AT_ONCE_MAX)
    limits = httpx.Limits(max_connections=2 * AT_ONCE_MAX)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, limits=limits) as client:
        clients = Clients(client, answers, seed)

        async def one(number: int) -> None:
            async with free:
                await clients.round(number, keys=keys, long_jobs=long_jobs, uploads=uploads)

        async with asyncio.TaskGroup() as group:
            for number in range(1, rounds + 1):
                while gate.get() < number:  # noqa: ASYNC110  # another process opens it
                    await asyncio.sleep(GATE_POLL_S)
                group.create_task(one(number))


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), *map(int, sys.argv[2:])))
