"""The routes: the OpenAI API under /v1, health, and figures for Prometheus."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import slipstream
from slipstream.engine.engine import Engine
from slipstream.errors import SlipstreamError
from slipstream.methods.registry import build_drafter
from slipstream.model import Model
from slipstream.server.answers import Answers, ClientLeftError
from slipstream.server.api_errors import ApiError, failed, refused
from slipstream.server.asking import Asked, of_chat, of_completion
from slipstream.server.forms import ChatForm, CompletionForm, Form
from slipstream.server.metrics import Metrics
from slipstream.server.pages import add_page
from slipstream.server.settings import ServerSettings
from slipstream.server.wire import ChatAsk, CompletionAsk
from slipstream.server.worker import Piece, Worker

_CLIENT_LEFT = 499  # nobody reads it
_DONE = b"data: [DONE]\n\n"


def make_app(model: Model, name: str, settings: ServerSettings) -> FastAPI:
    """The server of one model, which has a tokenizer. name: the one by which requests ask for it.

    Its worker starts and ends with the app, and is `app.state.worker`.
    """
    metrics = Metrics()
    worker = Worker(
        _engines(model, settings),
        metrics,
        most_running=settings.most_running,
        most_waiting=settings.most_waiting,
        time_limit_s=settings.time_limit,
    )

    @asynccontextmanager
    async def run_worker(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            await run_in_threadpool(worker.close)

    app = FastAPI(
        title="Slipstream",
        version=slipstream.__version__,
        lifespan=run_worker,
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"description": "What is wrong, in the API's form of errors."}},
    )
    app.state.worker = worker
    _add_limits(app, settings)
    _add_errors(app)
    _add_routes(app, Service(model, name, settings, worker), metrics)
    add_page(app)
    return app


def _engines(model: Model, settings: ServerSettings) -> dict[str, Engine]:
    """By method: the model's own, and plain decoding, which is what drafts are compared with."""
    engines = {model.method: model.engine}
    if "plain" not in engines:
        engines["plain"] = Engine(model.target, build_drafter("plain", model.target, {}), keep=settings.keep)
    return engines


class Service:
    """What the routes share."""

    def __init__(self, model: Model, name: str, settings: ServerSettings, worker: Worker) -> None:
        self.model, self.name, self.settings, self.worker = model, name, settings, worker
        self.created = int(time.time())

    async def answer(
        self,
        ask: ChatAsk | CompletionAsk,
        request: Request,
        read: Callable[[Model, Any, int], list[Asked]],
        form_of: type[Form],
    ) -> Response:
        """The answers to a request, whole or streamed. read: what it asks the engine."""
        if ask.model != self.name:
            message = f"the model {ask.model!r} is not served; this server has {self.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        if ask.stream_options is not None and not ask.stream:
            raise ApiError(400, "stream_options are for stream=true; set it", param="stream_options")
        asked = await run_in_threadpool(read, self.model, ask, self.settings.max_tokens)
        answers, form = Answers(self.worker, asked), form_of(self.model, self.name, asked)
        if ask.stream:
            with_usage = ask.stream_options is not None and ask.stream_options.include_usage
            return Events(answers, _events(answers, form, request, with_usage))
        try:
            return Json(form.whole(await _all_pieces(answers, request)))
        except ClientLeftError:
            return Response(status_code=_CLIENT_LEFT)
        finally:
            answers.cancel()

    def card(self) -> dict[str, Any]:
        """The model, as `/v1/models` lists it."""
        card = {"id": self.name, "object": "model", "created": self.created, "owned_by": "slipstream"}
        return {**card, "slipstream": {"methods": list(dict.fromkeys((self.model.method, "plain")))}}


async def _all_pieces(answers: Answers, request: Request) -> list[list[Piece]]:
    found: list[list[Piece]] = [[] for _ in answers.asked]
    async for index, piece in answers.pieces(request):
        found[index].append(piece)
    return found


async def _events(answers: Answers, form: Form, request: Request, with_usage: bool) -> AsyncIterator[bytes]:
    """Server-sent events. An error is the last of them; a client that leaves is told nothing."""
    counted: list[list[Piece]] = [[] for _ in answers.asked]
    try:
        async for index, piece in answers.pieces(request):
            yield _event(form.chunk(index, piece, is_first=not counted[index]))
            counted[index].append(piece)
    except ApiError as error:
        yield _event(error.body)
    except ClientLeftError:
        return
    else:
        if with_usage:
            yield _event(form.usage_chunk(counted))
    yield _DONE


def _event(content: Any) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


class Events(StreamingResponse):
    """A stream of events that gives up its answers when it ends, however it does."""

    def __init__(self, answers: Answers, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.cancel()


class Json(JSONResponse):
    """JSON that can be sent whatever its strings hold, half a surrogate pair too."""

    def render(self, content: Any) -> bytes:
        """In ASCII."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


# -- routes ------------------------------------------------------------------------------------------------------------


def _add_routes(app: FastAPI, service: Service, metrics: Metrics) -> None:
    guarded = [Depends(_key_check(service.settings.api_key))]

    async def chat_completions(ask: ChatAsk, request: Request) -> Any:
        return await service.answer(ask, request, of_chat, ChatForm)

    async def completions(ask: CompletionAsk, request: Request) -> Any:
        return await service.answer(ask, request, of_completion, CompletionForm)

    async def models() -> Any:
        return Json({"object": "list", "data": [service.card()]})

    async def one_model(name: str) -> Any:
        if name != service.name:
            raise ApiError(404, f"the model {name!r} is not served", param="model", code="model_not_found")
        return Json(service.card())

    async def health() -> Any:
        worker = service.worker
        well = worker.is_alive and not worker.is_stopping
        return Json({"status": "ok" if well else "stopping", "model": service.name}, status_code=200 if well else 503)

    async def figures() -> Any:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, route, method, dependencies in (
        ("/v1/chat/completions", chat_completions, "POST", guarded),
        ("/v1/completions", completions, "POST", guarded),
        ("/v1/models", models, "GET", guarded),
        ("/v1/models/{name:path}", one_model, "GET", guarded),
        ("/health", health, "GET", []),
        ("/metrics", figures, "GET", guarded),
    ):
        app.add_api_route(path, route, methods=[method], dependencies=dependencies, response_model=None)


def _key_check(key: str | None) -> Callable[[Request], None]:
    """A dependency that lets requests with the key through."""

    def check(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if key is not None and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            raise ApiError(
                401, "the API key is wrong or missing; send Authorization: Bearer KEY", code="invalid_api_key"
            )

    return check


# -- errors and limits -------------------------------------------------------------------------------------------------


def _add_errors(app: FastAPI) -> None:
    def of_api(request: Request, error: Any) -> Response:
        return _error_response(error)

    def of_ours(request: Request, error: Any) -> Response:
        return _error_response(refused(error))

    def of_check(request: Request, error: Any) -> Response:
        return _error_response(_invalid(error.errors()))

    def of_http(request: Request, error: Any) -> Response:
        unread = error.status_code == 400  # FastAPI's own, of a body that cannot be parsed
        message = "the body is no JSON in UTF-8, or is nested too deeply" if unread else str(error.detail)
        return _error_response(ApiError(error.status_code, message))

    def of_bug(request: Request, error: Any) -> Response:
        return _error_response(failed())

    for kind, handler in (
        (ApiError, of_api),
        (SlipstreamError, of_ours),
        (RequestValidationError, of_check),
        (HTTPException, of_http),
        (Exception, of_bug),
    ):
        app.add_exception_handler(kind, handler)


def _error_response(error: ApiError) -> Response:
    return Json(error.body, status_code=error.status, headers=error.headers)


def _invalid(found: Sequence[Any]) -> ApiError:
    """For a body that is no JSON or not what the API takes: its first fault."""
    first = found[0]
    parts = [part for part in first["loc"] if part != "body"]
    place = [str(part) for part in parts if isinstance(part, int) or part.isidentifier()]  # others name types
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first['ctx']['error']} at character {place[-1]}")
    if not place:
        return ApiError(400, f"the body must be a JSON object, sent as application/json: {first['msg']}")
    name = ".".join(place)
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{name} is not served; leave it out", param=place[0])
    return ApiError(400, f"{name}: {first['msg']}", param=place[0])


def _add_limits(app: FastAPI, settings: ServerSettings) -> None:
    app.add_middleware(BodyLimit, most_bytes=settings.max_body_kib * 1024)
    if settings.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origin),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )


class BodyLimit:
    """Refuses bodies above a size, before they are read whole."""

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app, self._most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._most_bytes:
            await _error_response(self._too_large())(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most_bytes:
                raise HTTPException(413, self._too_large().message)
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the request is larger than {self._most_bytes} bytes; send a smaller one")
