"""Proofs for auditors: what the notary signed, and that an event, or an earlier checkpoint, is in it.

Every proof is checked here before it is given out: one that does not hold means that the log or its tree was changed,
and that is said instead.
"""

import base64
from typing import Annotated, Any, LiteralString

from litestar import Controller, Request, Response, get
from litestar.params import FromPath, QueryParameter
from msgspec import Struct
from psycopg import AsyncConnection

from ..adapters.event_store.reader import LogHole
from ..adapters.event_store.tree import TileReader, TreeDamaged, leaf_hashes
from ..adapters.notes import read_public_keys
from ..domain.kernel import NotFound, Rejection
from ..domain.merkle import verify_consistency, verify_inclusion
from ..projections.bundle.export import NotSigned
from .auth import takes
from .manners import POSITION_MAX, Parts, found
from .problems import FieldError, FieldsRefused

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"

CHECKPOINT: LiteralString = (
    "SELECT tree_size, root, note FROM notary_checkpoints WHERE %s::bigint IS NULL OR tree_size = %s"
    " ORDER BY tree_size DESC LIMIT 1"
)
HEAD: LiteralString = "SELECT coalesce((SELECT position FROM events ORDER BY position DESC LIMIT 1), 0)"

Signed = Annotated[
    int | None,
    QueryParameter(ge=1, le=POSITION_MAX, description="Of a signed checkpoint; the last one if not given."),
]
From = Annotated[int, QueryParameter(name="from", ge=0, le=POSITION_MAX, description="Events of the earlier tree.")]
To = Annotated[
    int | None,
    QueryParameter(
        name="to",
        ge=0,
        le=POSITION_MAX,
        description="Events of the later tree; the last checkpoint's if not given.",
        schema_extra={"minimum": 0},  # Litestar tells no bound of an optional parameter that is 0
    ),
]


class LogDamaged(Rejection):
    """A proof does not hold: what was signed is not what is stored."""

    code = "log_damaged"


class CheckpointView(Struct, frozen=True):
    """Attributes:
    tree_size: events that it covers, which is the position of the last of them.
    root: of the tree, base64.
    note: the signed text.
    """

    tree_size: int
    root: str
    note: str


class InclusionView(Struct, frozen=True):
    """That an event is in a signed tree; RFC 9162, 2.1.3. Hashes are base64.

    Attributes:
        index: of its leaf, its position less one.
        proof: the siblings from the leaf to the root.
        checkpoint: the signed note that has the root.
    """

    position: int
    index: int
    tree_size: int
    leaf_hash: str
    proof: list[str]
    checkpoint: str


class ConsistencyView(Struct, frozen=True, rename={"from_size": "from", "to_size": "to"}):
    """That one tree is the beginning of another; RFC 9162, 2.1.4. Hashes are base64.

    Attributes:
        checkpoint: the last signed note; it covers both.
    """

    from_size: int
    to_size: int
    from_root: str
    to_root: str
    proof: list[str]
    checkpoint: str


class ProofController(Controller):
    path = "/v1/audit"
    opt = takes("audit:read")
    tags = ("audit",)

    @get("/checkpoint", summary="What was signed last", media_type=TEXT, produces=(TEXT, JSON), refuses=(404,))
    async def checkpoint(
        self, request: Request[Any, Any, Any], services: Parts, tree_size: Signed = None
    ) -> Response[CheckpointView] | Response[str]:
        """The signed note (C2SP tlog-checkpoint) as text: keep it elsewhere, and the log cannot be rewritten unseen.
        With `Accept: application/json` in an object.
        """
        async with services.store.pool.connection() as connection:
            signed = await _signed(connection, tree_size)
        if JSON in request.headers.get("accept", ""):
            answer = found(signed, signed.tree_size)
            answer.media_type = JSON
            return answer
        return Response(signed.note, media_type=TEXT, headers={"Event-Position": str(signed.tree_size)})

    @get(
        "/key",
        operation_id="proof_key",
        summary="The notary's public keys",
        media_type=TEXT,
        refuses=(404,),
        sync_to_thread=True,
    )
    def key(self, services: Parts) -> Response[str]:
        """Verifier keys (C2SP signed-note), one a line; the one that signs now is the first. A key that comes from
        where the log comes from proves little: compare it with the one that you were given another way.
        """
        keys = read_public_keys(services.settings.data_dir / "keys")
        if not keys:
            raise NotFound("no notary has run here")
        return Response(keys, media_type=TEXT)

    @get("/proof/{position:int}", operation_id="proof_inclusion", summary="That an event is in the log")
    async def proof(
        self, services: Parts, position: FromPath[int], tree_size: Signed = None
    ) -> Response[InclusionView]:
        """The event's leaf is hashed from what is stored now, so that the proof speaks of that, not of some index."""
        async with services.store.pool.connection() as connection:
            if not 1 <= position <= await _head(connection):
                raise NotFound("no such event")
            signed = await _signed(connection, tree_size, position)
            if position > signed.tree_size:
                if tree_size is not None:
                    raise NotFound("no such event in that tree")
                raise NotSigned(f"what is signed ends at {signed.tree_size}, before {position}")
            try:
                (leaf,) = await leaf_hashes(connection, after=position - 1, until=position)
                hashes = await TileReader(connection, signed.tree_size).inclusion_proof(position - 1)
            except (LogHole, TreeDamaged) as error:
                raise LogDamaged(str(error)) from error
        root = base64.b64decode(signed.root)
        if not verify_inclusion(leaf, position - 1, signed.tree_size, hashes, root):
            raise LogDamaged(f"event {position} is not the one that was signed, or the tree around it is not")
        return found(
            InclusionView(
                position, position - 1, signed.tree_size, _text(leaf), [_text(one) for one in hashes], signed.note
            ),
            signed.tree_size,
        )

    @get("/consistency", summary="That nothing was rewritten between two sizes of the log", refuses=(404,))
    async def consistency(self, services: Parts, old: From = 0, new: To = None) -> Response[ConsistencyView]:
        """Any two sizes up to the last checkpoint's."""
        async with services.store.pool.connection() as connection:
            signed = await _signed(connection, None)
            new = signed.tree_size if new is None else new
            if new > signed.tree_size:
                if new > await _head(connection):
                    raise NotFound("the log has not so many events")
                raise NotSigned(f"what is signed ends at {signed.tree_size}, before {new}")
            if old > new:
                raise FieldsRefused([FieldError("larger than `to`", parameter="from")])
            reader = TileReader(connection, signed.tree_size)
            later = TileReader(connection, new)
            try:
                hashes = await later.consistency_proof(old)
                old_root, new_root = await later.root(0, old), await later.root(0, new)
                joined = await reader.consistency_proof(new)
            except (LogHole, TreeDamaged) as error:
                raise LogDamaged(str(error)) from error
        last_root = base64.b64decode(signed.root)
        if not (
            verify_consistency(old, old_root, new, new_root, hashes)
            and verify_consistency(new, new_root, signed.tree_size, last_root, joined)
        ):
            raise LogDamaged(f"the tree of {new} events is not the beginning of the one that was signed")
        return found(
            ConsistencyView(old, new, _text(old_root), _text(new_root), [_text(one) for one in hashes], signed.note),
            signed.tree_size,
        )


async def _signed(connection: AsyncConnection, tree_size: int | None, position: int = 0) -> CheckpointView:
    """The checkpoint of this size, or the last one.

    Raises:
        NotFound: none has this size.
        NotSigned: there is none at all, and somebody waits for `position` to be covered.
    """
    row = await (await connection.execute(CHECKPOINT, (tree_size, tree_size))).fetchone()
    if row is not None:
        return CheckpointView(row[0], _text(row[1]), row[2])
    if tree_size is not None:
        raise NotFound("no such checkpoint")
    if position:
        raise NotSigned("nothing is signed yet; is the notary running?")
    raise NotFound("nothing is signed yet")


async def _head(connection: AsyncConnection) -> int:
    row = await (await connection.execute(HEAD)).fetchone()
    return int(row[0]) if row else 0


def _text(hashed: bytes) -> str:
    return base64.b64encode(hashed).decode()
