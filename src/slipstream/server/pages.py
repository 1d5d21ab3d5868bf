"""The page at `/`: static files, which speak to the server that they came from and to nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

from slipstream.server.api_errors import ApiError

_FOLDER = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Serve the page; no key is asked for it, since it holds nothing that is secret."""
    files = {file.name: file for file in sorted(_FOLDER.iterdir())}

    async def page() -> Any:
        return _response(files["index.html"])

    async def part(name: str) -> Any:
        if name not in files:
            raise ApiError(404, "Not Found")
        return _response(files[name])

    app.add_api_route("/", page, include_in_schema=False, response_model=None)
    app.add_api_route("/page/{name}", part, include_in_schema=False, response_model=None)


def _response(file: Path) -> Response:
    return Response(file.read_bytes(), media_type=_TYPES[file.suffix], headers=_HEADERS)
