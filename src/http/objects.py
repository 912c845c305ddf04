"""The directory store's own door: whoever holds a signed URL may do that one thing. Another store has its own door."""

from typing import Any

from litestar import Controller, Request, Response, get, put
from litestar.params import FromPath
from litestar.response import Stream

from ..adapters.objects.directory import DirectoryStore
from ..adapters.objects.signing import SignedGrant
from ..domain.kernel import NotFound
from . import downloads
from .auth import takes
from .manners import Parts, now
from .services import Services


class ObjectController(Controller):
    path = "/objects"
    opt = takes(None)
    tags = ("objects",)
    include_in_schema = False  # nobody makes these URLs; they are handed out

    @put("/{key:path}", status_code=201, request_max_body_size=None)
    async def write(self, request: Request[Any, Any, Any], services: Parts, key: FromPath[str]) -> Response[None]:
        """The body is bounded by what was signed, and held to it."""
        store, grant = _granted(request, services, key)
        info = await store.accept(grant, request.stream())
        return Response(None, status_code=201, media_type="text/plain", headers={"ETag": f'"{info.sha256}"'})

    @get("/{key:path}")
    async def read(self, request: Request[Any, Any, Any], services: Parts, key: FromPath[str]) -> Stream:
        _, grant = _granted(request, services, key)
        return await downloads.stream(
            services, grant.key, filename=grant.filename or "download", content_type=grant.content_type
        )


def _granted(request: Request[Any, Any, Any], services: Services, key: str) -> tuple[DirectoryStore, SignedGrant]:
    store = services.objects
    if not isinstance(store, DirectoryStore):
        raise NotFound("objects are served by the object store itself")
    query = request.scope["query_string"].decode("latin-1")
    headers = dict(request.headers.items())
    return store, store.signer.verify(request.method, key.removeprefix("/"), query, headers, now())
