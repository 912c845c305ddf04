"""The application: what is served, and what every layer adds. It opens nothing; see services."""

from importlib.metadata import version
from typing import Any

from litestar import Litestar, Request, Router, get
from litestar.config.cors import CORSConfig
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, RedocRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import Tag

from .analytics import AnalyticsController
from .assets import AssetController
from .audit import AuditController
from .audit_export import AuditExportController
from .bodies import JsonRequest
from .canonical import CanonicalLine
from .causes import CausesController
from .described import describe_refusals
from .health import HealthController
from .jobs import JobController
from .manners import dependencies, log_epoch, refuse_garbage
from .model_slots import ModelSlotController
from .models import ModelController
from .objects import ObjectController
from .problems import handlers
from .projections import ProjectionController
from .proofs import ProofController
from .seeds import layered_images
from .seeds.layered_images_shapes import FACADE as LAYERED_IMAGES
from .services import Services
from .sessions import SessionController

FACADES = (LAYERED_IMAGES,)
EXPOSED_HEADERS = ["Event-Position", "Log-Epoch", "ETag", "Link", "Location", "Retry-After", "X-Request-ID"]

# The pages of /docs and /redoc take their scripts from a public CDN; nothing else that we serve may run any.
PAGE_CSP = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data: https:; font-src https: data:; worker-src blob:;"
    " style-src 'unsafe-inline' https:; script-src 'unsafe-inline' 'unsafe-eval' https://cdn.jsdelivr.net;"
    " frame-ancestors 'none'"
)

_REDOC = RedocRenderPlugin(path="/redoc")
_JSON = JsonRenderPlugin(path="/openapi.json")


def create_app(services: Services) -> Litestar:
    """The application over opened services."""
    settings = services.settings
    app = Litestar(
        route_handlers=[
            HealthController,
            AssetController,
            SessionController,
            JobController,
            ModelController,
            ModelSlotController,
            AuditController,
            CausesController,
            ProofController,
            AuditExportController,
            AnalyticsController,
            ProjectionController,
            ObjectController,
            *layered_images.ROUTES,
            redoc,
            openapi_json,
        ],
        request_class=JsonRequest,
        request_max_body_size=settings.json_body_bytes_max,
        before_request=refuse_garbage,
        after_request=log_epoch(services),
        dependencies=dependencies(services),
        exception_handlers=handlers(FACADES),
        cors_config=_cors(settings.cors_origins),
        openapi_config=_openapi(),
        logging_config=None,
        debug=False,
    )
    describe_refusals(app.openapi_schema, FACADES)
    # Around the router too, which answers 404 and 405 before any layer of Litestar's.
    app.asgi_handler = CanonicalLine(app.asgi_handler)
    return app


def _cors(origins: list[str]) -> CORSConfig | None:
    if not origins:
        return None
    return CORSConfig(allow_origins=origins, expose_headers=EXPOSED_HEADERS, max_age=600)


def _openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Sightline",
        version=version("sightline"),
        description="Every material is received, processed, inspected and released; every step is an event.",
        openapi_router=Router(
            "/docs", route_handlers=[], include_in_schema=False, response_headers={"Content-Security-Policy": PAGE_CSP}
        ),
        render_plugins=[SwaggerRenderPlugin(path="/"), JsonRenderPlugin(path="/openapi.json")],
        use_handler_docstrings=True,
        tags=[
            Tag("assets", "Bytes that somebody gave us, and whether they are clean."),
            Tag("sessions", "A time in which somebody may change things."),
            Tag("jobs", "Pieces of computing, each done once."),
            Tag("models", "Versions of models, and which of them does a task's work."),
            Tag("audit", "The log, what came of what, and how far the read models are."),
            Tag("analytics", "Figures and rows as tables, for JSON, CSV and Parquet."),
            Tag("layered images", "The paths of the layered-images service, served verbatim."),
            Tag("operations", "For supervisors and monitoring."),
        ],
    )


@get(
    "/redoc",
    include_in_schema=False,
    media_type="text/html; charset=utf-8",
    response_headers={"Content-Security-Policy": PAGE_CSP},
    sync_to_thread=False,
)
def redoc(request: Request[Any, Any, Any]) -> bytes:
    return _REDOC.render(request, request.app.openapi_schema.to_schema())


@get("/openapi.json", include_in_schema=False, media_type="application/json", sync_to_thread=False)
def openapi_json(request: Request[Any, Any, Any]) -> bytes:
    return _JSON.render(request, request.app.openapi_schema.to_schema())
