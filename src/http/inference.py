"""The Open Inference Protocol, version 2, over HTTP: models asked directly, beside the jobs that use them.

A facade with the protocol's own words: a refusal is `{"error": …}`; 400 is whatever is wrong with a request, and what
is not ready. Rejections that only last a while are 503, with Retry-After.
"""

from importlib.metadata import version as version_of
from typing import Any, Literal

from litestar import Controller, Request, Response, get, post
from litestar.params import FromPath
from msgspec import Struct

from ..adapters.inference.messages import Loaded, Port
from ..adapters.settings import MEBIBYTE_BYTES
from . import bodies
from .auth import takes
from .inference_tensors import InferAnswer, InferAsked, answer_of, tensors_of, timeout_of
from .manners import Parts, wait_asked_s
from .problems import Facade, Fault, Malformed, TooLarge, WrongMediaType
from .services import Services
from .serving import NotReady, Served

PLATFORM = "onnx_onnxv1"
HEADER_LENGTH = "Inference-Header-Content-Length"
OCTETS = "application/octet-stream"
JSON = "application/json"

FACADE = Facade(
    ("/v2",),
    dict.fromkeys(
        ("model_not_ready", "validation_failed", "tensor_invalid", "model_failed", "answer_too_large", "rule_violated"),
        400,
    ),
    shape=Fault,
)


class ServerAnswer(Struct, frozen=True):
    name: str
    version: str
    extensions: list[str]


class LiveAnswer(Struct, frozen=True):
    live: Literal[True] = True


class ReadyAnswer(Struct, frozen=True):
    ready: Literal[True] = True


class ModelReadyAnswer(Struct, frozen=True):
    name: str
    ready: Literal[True] = True


class TensorTold(Struct, frozen=True):
    """Attributes:
    shape: -1 where any number will do.
    """

    name: str
    datatype: str
    shape: list[int]


class ModelTold(Struct, frozen=True):
    """Attributes:
    name: as it was asked for: a task, or the id of a version.
    versions: the one that answers.
    parameters: `execution_provider` that runs it really, `runtime`, `sha256` of its file, `is_warm`.
    """

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorTold]
    outputs: list[TensorTold]
    parameters: dict[str, str | bool]


class InferenceController(Controller):
    path = "/v2"
    opt = takes("models:read")
    tags = ("inference",)

    @get("/", access=None, summary="What serves")
    async def server(self) -> ServerAnswer:
        return ServerAnswer("sightline", version_of("sightline"), ["binary_tensor_data"])

    @get("/health/live", access=None, summary="It answers")
    async def live(self) -> LiveAnswer:
        return LiveAnswer()

    @get("/health/ready", access=None, summary="What is served can be asked")
    async def ready(self, services: Parts) -> ReadyAnswer:
        """400 while the process that runs models is replaced, and before those of the settings are loaded and warm."""
        if not services.serving.is_ready:
            raise NotReady("models are being loaded")
        return ReadyAnswer()

    @get("/models/{name:str}", summary="What a model takes and gives", refuses=(409,))
    async def model(self, services: Parts, name: FromPath[str]) -> ModelTold:
        return await _told(services, await services.serving.find(name))

    @get("/models/{name:str}/versions/{version:str}", summary="The same of one version", refuses=(409,))
    async def version(self, services: Parts, name: FromPath[str], version: FromPath[str]) -> ModelTold:
        return await _told(services, await services.serving.find(name, version))

    @get("/models/{name:str}/ready", summary="Whether a model is loaded and warm", refuses=(409,))
    async def model_ready(self, services: Parts, name: FromPath[str]) -> ModelReadyAnswer:
        """Asking has it loaded; until it is warm the answer is 400."""
        return _ready(services, await services.serving.find(name))

    @get("/models/{name:str}/versions/{version:str}/ready", summary="The same of one version", refuses=(409,))
    async def version_ready(self, services: Parts, name: FromPath[str], version: FromPath[str]) -> ModelReadyAnswer:
        return _ready(services, await services.serving.find(name, version))

    @post(
        "/models/{name:str}/infer",
        status_code=200,
        summary="Ask a model",
        access="models:infer",
        request_max_body_size=None,  # read below, within bounds of its own
        takes_json=InferAsked,
        produces=(JSON, OCTETS),
        refuses=(409,),
    )
    async def infer(
        self, request: Request[Any, Any, Any], services: Parts, name: FromPath[str]
    ) -> Response[InferAnswer]:
        return await _inferred(request, services, name, None)

    @post(
        "/models/{name:str}/versions/{version:str}/infer",
        status_code=200,
        summary="Ask one version of a model",
        access="models:infer",
        request_max_body_size=None,  # likewise
        takes_json=InferAsked,
        produces=(JSON, OCTETS),
        refuses=(409,),
    )
    async def version_infer(
        self, request: Request[Any, Any, Any], services: Parts, name: FromPath[str], version: FromPath[str]
    ) -> Response[InferAnswer]:
        return await _inferred(request, services, name, version)


async def _told(services: Services, served: Served) -> ModelTold:
    loaded: Loaded = await services.serving.load(served)
    return ModelTold(
        name=served.name,
        versions=[str(served.version_id)],
        platform=PLATFORM,
        inputs=[_tensor(one) for one in loaded.inputs],
        outputs=[_tensor(one) for one in loaded.outputs],
        parameters={
            "execution_provider": loaded.providers[0],
            "runtime": loaded.runtime,
            "sha256": served.file.sha256,
            "is_warm": loaded.warm,
        },
    )


def _tensor(port: Port) -> TensorTold:
    return TensorTold(port.name, port.datatype, list(port.shape))


def _ready(services: Services, served: Served) -> ModelReadyAnswer:
    if not services.serving.holds(served):
        services.serving.begin(served)
        raise NotReady("the model is being loaded")
    return ModelReadyAnswer(served.name)


async def _inferred(
    request: Request[Any, Any, Any], services: Services, name: str, version: str | None
) -> Response[Any]:
    served = await services.serving.find(name, version)  # nobody's body is read for a model that there is not
    async with services.bodies.taken(bodies.announced_bytes(request, _body_bytes_max(request, services))):
        return await _answered(request, services, served)


async def _answered(request: Request[Any, Any, Any], services: Services, served: Served) -> Response[Any]:
    settings = services.settings
    asked, binary = await _read(request, services)
    waits_s = wait_asked_s(request)
    timeout_s = timeout_of(asked, None if waits_s is None else max(1.0, waits_s), settings.inference_timeout_s)
    outputs = tuple(one.name for one in asked.outputs)
    found = await services.serving.infer(served, tensors_of(asked, binary), outputs, timeout_s)
    told: dict[str, str | int] = {
        "execution_provider": found.execution_provider,
        "batch_rows": found.batch_rows,
        "queue_us": round(found.queue_s * 1e6),
        "infer_us": round(found.infer_s * 1e6),
    }
    answer = InferAnswer(served.name, str(served.version_id), told, [], asked.id)
    body, json_bytes = answer_of(answer, asked, found.outputs)
    if json_bytes is None:
        return Response(body, media_type=JSON)
    return Response(body, media_type=OCTETS, headers={HEADER_LENGTH: str(json_bytes)})


def _body_bytes_max(request: Request[Any, Any, Any], services: Services) -> int:
    """JSON, and where it says that bytes are behind it, those too."""
    settings = services.settings
    binary_max = settings.inference_request_mb_max * MEBIBYTE_BYTES if HEADER_LENGTH in request.headers else 0
    return settings.json_body_bytes_max + binary_max


async def _read(request: Request[Any, Any, Any], services: Services) -> tuple[InferAsked, bytes]:
    """The request's JSON, and the bytes behind it.

    Raises:
        Malformed, MalformedJson, WrongMediaType, FieldsRefused, TooLarge: it is none, or more than it may be.
    """
    settings = services.settings
    length = request.headers.get(HEADER_LENGTH)
    named = request.content_type[0].lower()
    if length is None and named not in bodies.JSON_TYPES:
        raise WrongMediaType(f"this path takes {JSON}, or bytes behind it with {HEADER_LENGTH}")
    json_bytes_max = settings.json_body_bytes_max
    if length is None:
        body = await bodies.read_bounded(request, json_bytes_max)
        return bodies.decode(body, InferAsked), b""
    if not (length.isascii() and length.isdecimal() and len(length) < 10):  # noqa: PLR2004  # a gigabyte has ten
        raise Malformed(f"{HEADER_LENGTH} is a number of bytes")
    json_bytes = int(length)
    if json_bytes > json_bytes_max:
        raise TooLarge(f"at most {json_bytes_max} bytes of JSON")
    body = await bodies.read_bounded(request, json_bytes + settings.inference_request_mb_max * MEBIBYTE_BYTES)
    if json_bytes > len(body):
        raise Malformed(f"{HEADER_LENGTH} is more than there is")
    asked: InferAsked = bodies.decode(body[:json_bytes], InferAsked)
    return asked, body[json_bytes:]
