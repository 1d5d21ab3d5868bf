"""Requests made up from the server's own schema: none of them brings it down, and none is answered by status 500."""

from __future__ import annotations

from typing import Any

import pytest

from server.server_process import PATIENCE_S, Served

schemathesis = pytest.importorskip("schemathesis", reason="fuzzing needs schemathesis: pip install schemathesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402

EXAMPLES = 60


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/models/{name}"])
def test_made_up_requests_are_answered_or_refused(path: str, server: Served) -> None:
    schema = schemathesis.openapi.from_url(server.url.removesuffix("/v1") + "/openapi.json")
    operation = schema[path]["GET" if "{" in path else "POST"]

    @given(case=operation.as_strategy())
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        if isinstance(case.body, dict):
            case.body |= {"model": server.name, "max_tokens": 2}
            case.body.pop("max_completion_tokens", None)
        answer = case.call(base_url=server.url.removesuffix("/v1"), timeout=PATIENCE_S)
        assert answer.status_code in (200, 400, 404, 405, 413), (answer.status_code, answer.text)

    ask()
    assert server.send("/health")[0] == 200
    assert server.chat(max_tokens=2, temperature=0).choices[0].finish_reason
