"""Where bytes lie: one interface (`port`), a directory (`directory`) or any S3 service (`s3`) behind it."""

from ..settings import Settings
from .directory import DirectoryStore
from .port import ObjectStore
from .signing import UrlSigner, load_secrets


async def open_object_store(settings: Settings) -> ObjectStore:
    """The store that the settings ask for; the caller closes it. S3 is not contacted yet: `ready` tells.

    Raises:
        OSError: the data directory cannot be written (directory store only).
    """
    if settings.s3_endpoint_url:
        from .s3 import S3Store  # noqa: PLC0415  # its client takes most of a second to load, and a directory needs none

        return await S3Store.connect(
            endpoint_url=settings.s3_endpoint_url,
            region=settings.s3_region,
            bucket=settings.s3_bucket,
            access_key_id=settings.s3_access_key_id,
            secret_access_key=settings.s3_secret_access_key,
        )
    signer = UrlSigner(load_secrets(settings.data_dir / "keys"), settings.public_url)
    return DirectoryStore(settings.data_dir / "objects", signer)
