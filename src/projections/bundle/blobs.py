"""Which objects the log names: one function of rows, by which export lists them and verify derives them again."""

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from ...domain.upcasts import generations
from ..assets import AssetRow
from ..jobs import JobRow
from .format import BlobLine

# What says that a stream's objects are no more.
TOMBSTONES = frozenset([*generations("asset.deleted"), *generations("job.deleted")])


def named_by(row: Any, tombstones: Mapping[UUID, int]) -> Iterator[BlobLine]:
    """The objects that a row of a read model names, with the position of the event that deleted them.

    Models are not among them: their files lie in a cache beside the store, and the log names their digests.
    """
    match row:
        case AssetRow(asset_id=asset_id, sha256=str(sha256)):
            yield BlobLine(row.object_key, sha256, row.size_bytes, asset_id, tombstones.get(asset_id))
        case JobRow(job_id=job_id):
            for one in row.outputs:
                yield BlobLine(one.object_key, one.sha256, one.size_bytes, job_id, tombstones.get(job_id))
