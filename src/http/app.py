"""The application: what is served, and what every layer adds. It opens nothing; see services."""

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from inspect import getclosurevars
from typing import Any

from litestar import Litestar, Request, Router, get
from litestar.config.cors import CORSConfig
from litestar.handlers.base import BaseRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, RedocRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import Tag

from .analytics import AnalyticsController
from .api_keys import ApiKeyController
from .assets import AssetController
from .audit import AuditController
from .audit_export import AuditExportController
from .auth import Guard, is_automatic, require_declared, takes
from .batches import BatchController
from .bodies import JsonRequest
from .canonical import CanonicalLine
from .causes import CausesController
from .comparisons import ComparisonController, RerunController
from .dead_letters import DeadLetterController
from .described import describe, operation_id
from .health import HealthController
from .inference import FACADE as INFERENCE
from .inference import InferenceController
from .jobs import JobController
from .limits import LimitGuard, require_policies
from .live import BatchStreamController, JobStreamController, StreamController
from .login import LoginController
from .manners import AnyRequest, dependencies, log_epoch, refuse_garbage
from .model_slots import ModelSlotController
from .models import ModelController
from .objects import ObjectController
from .patience import Patience
from .problems import handlers
from .projections import ProjectionController
from .proofs import ProofController
from .queues import QueueController
from .quotas import QuotaController
from .seeds import flowviz, layered_images
from .seeds.flowviz import FACADE as FLOWVIZ
from .seeds.layered_images_shapes import FACADE as LAYERED_IMAGES
from .services import Services
from .sessions import SessionController
from .shadows import ShadowController, ShadowStartController
from .users import UserController
from .waiting import WaitingController
from .webhooks import WebhookController, callbacks
from .websocket import route as websocket_route

FACADES = (LAYERED_IMAGES, FLOWVIZ, INFERENCE)
EXPOSED_HEADERS = [
    "Event-Position",
    "Log-Epoch",
    "ETag",
    "Link",
    "Location",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-ID",
    "X-Required-Roles",
]

# The pages of /docs and /redoc take their scripts from a public CDN; nothing else that we serve may run any.
PAGE_CSP = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data: https:; font-src https: data:; worker-src blob:;"
    " style-src 'unsafe-inline' https:; script-src 'unsafe-inline' 'unsafe-eval' https://cdn.jsdelivr.net;"
    " base-uri 'none'; frame-ancestors 'none'"
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
            JobStreamController,
            BatchStreamController,
            StreamController,
            websocket_route(services),
            BatchController,
            WaitingController,
            DeadLetterController,
            QueueController,
            ModelController,
            ModelSlotController,
            InferenceController,
            ComparisonController,
            RerunController,
            ShadowStartController,
            ShadowController,
            AuditController,
            CausesController,
            ProofController,
            AuditExportController,
            AnalyticsController,
            ProjectionController,
            QuotaController,
            ObjectController,
            LoginController,
            UserController,
            ApiKeyController,
            WebhookController,
            callbacks,
            *layered_images.ROUTES,
            *flowviz.ROUTES,
            redoc,
            openapi_json,
        ],
        request_class=JsonRequest,
        request_max_body_size=settings.json_body_bytes_max,
        before_request=_admission(
            Guard(services),
            LimitGuard(services),
        ),
        after_request=log_epoch(services),
        dependencies=dependencies(services),
        exception_handlers=handlers(FACADES),
        cors_config=_cors(settings.cors_origins),
        openapi_config=_openapi(),
        logging_config=None,
        debug=False,
    )
    _allow_every_method(app)
    require_declared(app)
    require_policies(app)
    app.state["openapi"] = describe(app, FACADES, authenticated=settings.auth_enabled)
    # Around the router too, which answers 404 and 405 before any layer of Litestar's.
    patience = Patience(app.asgi_handler, FACADES, services.keys_under_way)
    app.asgi_handler = CanonicalLine(patience, is_https=settings.public_url.startswith("https:"))
    return app


def _allow_every_method(app: Litestar) -> None:
    """Litestar's own answer to OPTIONS names the methods that the path had when its first handler was added: the route
    that it speaks of was replaced since.
    """
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            if is_automatic(handler):
                getclosurevars(handler.fn).nonlocals["self"].methods = route.methods


def _admission(*guards: Callable[[AnyRequest, BaseRouteHandler], Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """What comes before a handler, and before anything of the body is read.

    The guards are called here and not by Litestar, which copies the handler for each: a sixth of a request's time.
    """

    async def admit(request: AnyRequest) -> None:
        await refuse_garbage(request)
        for guard in guards:
            await guard(request, request.route_handler)

    return admit


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
            "/docs",
            route_handlers=[],
            opt=takes(None),
            include_in_schema=False,
            response_headers={"Content-Security-Policy": PAGE_CSP},
        ),
        render_plugins=[SwaggerRenderPlugin(path="/"), JsonRenderPlugin(path="/openapi.json")],
        use_handler_docstrings=True,
        operation_id_creator=operation_id,
        tags=[
            Tag("assets", "Bytes that somebody gave us, and whether they are clean."),
            Tag("sessions", "A time in which somebody may change things."),
            Tag("jobs", "Pieces of computing, each done once."),
            Tag("batches", "Many jobs in one request, followed as one thing."),
            Tag("queues", "What is said of all jobs of a kind, and how they fare."),
            Tag("models", "Versions of models, and which of them does a task's work."),
            Tag("comparisons", "Jobs run again, and how their outputs lie to those of before."),
            Tag("inference", "Models asked directly, by the Open Inference Protocol."),
            Tag("audit", "The log, what came of what, and how far the read models are."),
            Tag("analytics", "Figures and rows as tables, for JSON, CSV and Parquet."),
            Tag("users", "Who may ask, in which role, and with which keys."),
            Tag("food lots", "The paths of the food-lots service, served verbatim."),
            Tag("layered images", "The paths of the layered-images service, served verbatim."),
            Tag("webhooks", "Where things are told as they happen, and what came of telling them."),
            Tag("quotas", "How much may be asked for in a day."),
            Tag("operations", "For supervisors and monitoring."),
        ],
    )


@get(
    "/redoc",
    access=None,
    include_in_schema=False,
    media_type="text/html; charset=utf-8",
    response_headers={"Content-Security-Policy": PAGE_CSP},
    sync_to_thread=False,
)
def redoc(request: Request[Any, Any, Any]) -> bytes:
    return _REDOC.render(request, request.app.state["openapi"])


@get("/openapi.json", access=None, include_in_schema=False, media_type="application/json", sync_to_thread=False)
def openapi_json(request: Request[Any, Any, Any]) -> bytes:
    return _JSON.render(request, request.app.state["openapi"])
