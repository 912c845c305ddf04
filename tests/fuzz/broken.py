"""Services that break their word in one way each, for the harness to find; and one that keeps it."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import uvicorn
from tests.conftest_parts import wait_for
from tests.conftest_up import free_port

Flaw = Literal["none", "raises", "lies", "takes what is forbidden", "refuses everything"]
NAME = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}, "required": ["name"]}
COUNT = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}
DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "Broken", "version": "1"},
    "paths": {
        "/names": {
            "post": {
                "operationId": "name",
                "requestBody": {"required": True, "content": {"application/json": {"schema": NAME}}},
                "responses": {
                    "200": {"description": "Counted", "content": {"application/json": {"schema": COUNT}}},
                    "400": {"description": "Refused", "content": {"application/json": {"schema": {}}}},
                    "401": {"description": "Refused", "content": {"application/json": {"schema": {}}}},
                },
            }
        }
    },
}


def _fits(body: bytes) -> bool:
    try:
        value = json.loads(body)
    except ValueError:
        return False
    name = value.get("name") if isinstance(value, dict) else None
    return isinstance(name, str) and len(name) <= 3


def _answer(flaw: Flaw, scope: Any, body: bytes) -> tuple[int, Any]:
    if scope["path"] == "/openapi.json":
        return 200, DOCUMENT
    if scope["method"] != "POST":
        return 405, {}
    if flaw == "refuses everything":
        return 401, {}
    if not _fits(body):
        return (200, {"count": 1}) if flaw == "takes what is forbidden" else (400, {})
    if flaw == "raises":
        return 500, {}
    return 200, {"count": "many" if flaw == "lies" else 1}


@contextmanager
def served(flaw: Flaw) -> Iterator[str]:
    """The URL of a service that answers over HTTP for as long as the context lasts."""

    async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message.get("more_body"):
                break
        status, answer = _answer(flaw, scope, body)
        headers = [(b"content-type", b"application/json"), (b"allow", b"POST")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    config = uvicorn.Config(app, port=free_port(), lifespan="off", ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{config.port}"
    finally:
        server.should_exit = True
        thread.join()
