"""Looking at what somebody sent: counted, hashed, its signature read, pictures decoded in the scanner's child."""

import tempfile
from pathlib import Path

from msgspec import Struct

from ..adapters.images import SIGNATURE_BYTES, sniff
from ..adapters.objects.streams import file_sha256, in_thread
from ..domain.assets import Scan
from .services import Services

IMAGE_ENGINE = "sightline-image"
SIGNATURE_ENGINE = "sightline-signature"


class Examined(Struct, frozen=True):
    """What was found of one file.

    Attributes:
        content_type: by its signature, "" where it shows none that we know.
    """

    sha256: str
    size_bytes: int
    content_type: str
    scan: Scan


async def examine(services: Services, path: Path, *, declared_type: str, purpose: str) -> Examined:
    """The verdict on a local file. Only pictures are decoded; of a film the signature alone is judged so far."""
    sha256 = await in_thread(file_sha256, path)
    size_bytes = (await in_thread(path.stat)).st_size
    if purpose != "image":
        found = sniff(await in_thread(_head, path))
        return Examined(sha256, size_bytes, found, Scan(engine=SIGNATURE_ENGINE))
    verdict = await services.scanner.scan(path, declared_type)
    scan = Scan(
        engine=IMAGE_ENGINE,
        code=verdict.code or None,
        detail=verdict.detail,
        width_px=verdict.width_px or None,
        height_px=verdict.height_px or None,
    )
    return Examined(sha256, size_bytes, verdict.content_type, scan)


async def examine_object(services: Services, key: str, *, declared_type: str, purpose: str) -> Examined:
    """The same for an object, copied to a local file for the while.

    Raises:
        ObjectMissing: nothing is there.
    """
    with tempfile.TemporaryDirectory(prefix="sightline-intake-") as directory:
        path = Path(directory) / "file"
        await services.objects.download(key, path)
        return await examine(services, path, declared_type=declared_type, purpose=purpose)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(SIGNATURE_BYTES)
