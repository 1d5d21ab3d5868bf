"""`slipstream serve`: a server that speaks the OpenAI API."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from importlib.util import find_spec

from slipstream.cli import options
from slipstream.cli.answering import chosen, note
from slipstream.cli.from_settings import options_from_settings
from slipstream.cli.loading import load, note_rounding
from slipstream.errors import InputError
from slipstream.server.settings import ServerSettings

LISTENING, LIMITS = "Server", "Limits"
KEY = "SLIPSTREAM_API_KEY"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@options_from_settings(
    panels={
        LISTENING: ("host", "port", "api_key", "cors_origin"),
        LIMITS: ("most_running", "most_waiting", "keep", "max_tokens", "time_limit", "max_body_kib", "drain"),
    }
)
def serve(
    *,
    settings: ServerSettings,
    model: options.Model = "tiny",
    drafter: options.Method = "auto",
    verification: options.Verification = "coupled",
    drafting: options.DraftingOptions,
    option: options.Further = None,
    loading: options.LoadingOptions,
    verbose: options.Verbose = False,
) -> None:
    """Serve a model by the OpenAI API: chats, completions, streamed or whole.

    Requests take turns cycle by cycle; each gets the tokens that it would get alone. Ctrl-C lets answers under way end.

    Example: slipstream serve -m smollm2 --port 8000, then in Python
    openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
    """
    if any(find_spec(name) is None for name in ("fastapi", "uvicorn", "prometheus_client")):
        raise InputError("serve needs fastapi, uvicorn and prometheus_client: pip install them, or the extra 'server'")
    from slipstream.server.serving import serve as run

    if settings.api_key is None and os.environ.get(KEY):
        settings = replace(settings, api_key=os.environ[KEY])
    loaded = load(
        model,
        drafter,
        option,
        verification=verification,
        **asdict(drafting),
        **asdict(loading),
        keep=settings.keep,
    )
    note(f"{model}, {chosen(loaded.method, drafter)}")
    note_rounding(loaded)
    if settings.host not in _LOOPBACK and settings.api_key is None:
        note(f"anybody who reaches {settings.host} may use this server: set {KEY} to ask for a key")
    run(loaded, model, settings, lambda address: print(f"listening on {address}/v1", flush=True))
