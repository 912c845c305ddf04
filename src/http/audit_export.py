"""The log as one file that is checked elsewhere, streamed while the service runs."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Annotated, ClassVar

from litestar import Controller, get
from litestar.background_tasks import BackgroundTask
from litestar.params import QueryParameter
from litestar.response import Stream

from ..domain.kernel import Rejection
from ..projections.bundle.export import prepared
from .auth import takes
from .manners import POSITION_MAX, Parts

AT_ONCE_MAX = 2  # each has the rows of all read models on disk
RETRY_AFTER_S = 10

Position = Annotated[int, QueryParameter(name="from", ge=1, le=POSITION_MAX, description="The first position.")]
LastPosition = Annotated[
    int | None,
    QueryParameter(name="to", ge=1, le=POSITION_MAX, description="The position to reach at least; none is the end."),
]


class TooManyExports(Rejection):
    code = "too_many_exports"


class AuditExportController(Controller):
    path = "/v1/audit"
    opt = takes("audit:export")
    tags = ("audit",)
    under_way: ClassVar[set[object]] = set()  # of this process

    @get(
        "/export",
        operation_id="audit_export",
        summary="The log in one file, to be checked offline",
        produces=("application/zip",),
    )
    async def export(self, services: Parts, first: Position = 1, last: LastPosition = None) -> Stream:
        """An audit bundle: `sightline audit verify` checks it with the public key alone. It goes on to the first signed
        checkpoint at or past `to`. Its directory comes last: an answer that was cut is no bundle.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(self._one_of_few())
            export = await stack.enter_async_context(prepared(services.store.pool, first=first, last=last))
            opened = stack.pop_all()
        body = export.stream()

        async def end() -> None:
            await body.aclose()
            await opened.aclose()

        async def parts() -> AsyncIterator[bytes]:
            try:
                async for part in body:
                    if part:
                        yield part
            finally:
                await end()

        name = f"sightline-audit-{export.range.first}-{export.range.last}.zip"
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Event-Position": str(export.range.last)}
        # The task is for a client that leaves before the first part; the other way out is a part that fails.
        return Stream(parts(), headers=headers, media_type="application/zip", background=BackgroundTask(end))

    @contextmanager
    def _one_of_few(self) -> Iterator[None]:
        if len(self.under_way) >= AT_ONCE_MAX:
            raise TooManyExports(f"{AT_ONCE_MAX} bundles are being made", retry_after_s=RETRY_AFTER_S)
        self.under_way.add(export := object())
        try:
            yield
        finally:
            self.under_way.discard(export)
