"""Looking at what somebody sent: counted, hashed, its signature read, pictures decoded in the scanner's child, and
every file shown to a virus scanner where one is configured.
"""

import tempfile
from pathlib import Path

from msgspec import Struct

from ..adapters.images import HOLDS_EICAR, SIGNATURE_BYTES, holds_eicar, sniff
from ..adapters.objects.streams import file_sha256, in_thread
from ..domain.assets import Scan
from .services import Services

IMAGE_ENGINE = "sightline-image"
SIGNATURE_ENGINE = "sightline-signature"
CLAMD_ENGINE = "clamd"
MALWARE = "malware_signature"


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
    """The verdict on a local file. Only pictures are decoded; of a film the signature alone is judged so far.

    Raises:
        ScannerUnavailable: a virus scanner is configured and gave no verdict.
    """
    sha256 = await in_thread(file_sha256, path)
    size_bytes = (await in_thread(path.stat)).st_size
    if purpose == "image":
        found, scan = await _picture(services, path, declared_type)
    else:
        found, scan = await in_thread(_other, path)
    if scan.code is None and services.clamd is not None:
        named = await services.clamd.scan(path)
        scan = Scan(engine=CLAMD_ENGINE, code=MALWARE, detail=f"ClamAV found {named}") if named else scan
    return Examined(sha256, size_bytes, found, scan)


async def examine_object(
    services: Services, key: str, *, size_bytes: int, declared_type: str, purpose: str
) -> Examined:
    """The same for an object, copied to a local file for the while. `size_bytes` is what was announced.

    Raises:
        ObjectMissing: nothing is there.
        TooManyUploads: too many wait to be looked at.
        ScannerUnavailable: as examine().
    """
    async with services.uploads.taken(size_bytes):
        with tempfile.TemporaryDirectory(prefix="sightline-intake-") as directory:
            path = Path(directory) / "file"
            await services.objects.download(key, path)
            return await examine(services, path, declared_type=declared_type, purpose=purpose)


async def _picture(services: Services, path: Path, declared_type: str) -> tuple[str, Scan]:
    verdict = await services.scanner.scan(path, declared_type)
    scan = Scan(
        engine=IMAGE_ENGINE,
        code=verdict.code or None,
        detail=verdict.detail,
        width_px=verdict.width_px or None,
        height_px=verdict.height_px or None,
    )
    return verdict.content_type, scan


def _other(path: Path) -> tuple[str, Scan]:
    with path.open("rb") as file:
        found = sniff(file.read(SIGNATURE_BYTES))
        file.seek(0)
        if holds_eicar(file):
            return found, Scan(engine=SIGNATURE_ENGINE, code=MALWARE, detail=HOLDS_EICAR)
    return found, Scan(engine=SIGNATURE_ENGINE)
