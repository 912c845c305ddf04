"""How far two files lie apart, as numbers or as pictures.

Both were written by a child that ran somebody's model on somebody's file. Whoever took that child over could have
written anything, so no process with a database opens them: they are decoded in a confined child of their own
(`difference_meter.py`).
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec
from msgspec import Struct

from .child import Child, ChildDied
from .images import MEBIBYTE_BYTES

FILE_BYTES_MAX = 256 * MEBIBYTE_BYTES
JSON_BYTES_MAX = 16 * MEBIBYTE_BYTES
PIXELS_MAX = 32_000_000
MEMORY_BYTES_MAX = 2048 * MEBIBYTE_BYTES
TIMEOUT_S = 60.0
OUT_OF_MEMORY = "they need more memory than comparing may use"


class Question(Struct, frozen=True):
    """Attributes:
    unsaid: members of a JSON object, at its top, that are left out.
    """

    first: str
    second: str
    measure: Literal["numbers", "picture"]
    unsaid: list[str]
    cpu_s_max: float


class Measured(Struct, frozen=True):
    """Attributes:
    distance_max: between two numbers, or between two channels of a pixel (of 255); None where it cannot be told.
    psnr_db: of a picture; None where every pixel is equal.
    reason: why there is no distance.
    """

    distance_max: float | None = None
    psnr_db: float | None = None
    reason: str = ""


class Meter:
    """One child, started when first asked. An async context manager: leaving it ends the child.

    Args:
        module, environ: of the child; another one than ours for tests alone.
    """

    def __init__(
        self,
        *,
        timeout_s: float = TIMEOUT_S,
        memory_bytes_max: int = MEMORY_BYTES_MAX,
        module: str = "sightline.adapters.difference_meter",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._child = Child(module, memory_bytes_max=memory_bytes_max, environ=environ)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._child.kill()

    async def measure(
        self, first: Path, second: Path, measure: Literal["numbers", "picture"], *, unsaid: tuple[str, ...] = ()
    ) -> Measured:
        """How far two files below the temporary directory lie apart; whatever they do to the child is an answer too.
        One task at a time may ask.

        Raises:
            ChildDied: no child can be started, which is not the files' fault.
            TimeoutError: likewise.
        """
        await self._child.start()
        question = Question(str(first), str(second), measure, list(unsaid), self._timeout_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                self._child.send([msgspec.msgpack.encode(question)])
                answer = msgspec.msgpack.decode(await self._child.receive(), type=Measured)
        except ChildDied as died:
            return Measured(reason=f"comparing them {died.reason}")
        except msgspec.MsgspecError:
            await self._child.kill()  # somebody else answers in its place
            return Measured(reason="comparing them brought an answer that cannot be read")
        except TimeoutError:
            await self._child.kill()
            return Measured(reason=f"not compared within {self._timeout_s:g} s")
        except BaseException:
            await self._child.kill()  # its answer would be read as the next question's
            raise
        if answer.reason == OUT_OF_MEMORY:
            await self._child.kill()  # what a failed allocation left behind is unknown
        return answer
