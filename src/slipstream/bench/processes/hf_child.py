"""The process of a peer that is `transformers`: a target of its own, and `slipstream.bench.peers` on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import slipstream
from slipstream.bench.entrants import load_peer
from slipstream.bench.processes.child import serve
from slipstream.records.machine import versions
from slipstream.runtime.threads import settle_threads


class Transformers:
    """One of `PEERS`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        found = versions()
        self.software = ", ".join(f"{name} {found[name]}" for name in ("transformers", "torch"))
        model = slipstream.load(settings["model"], "plain", **settings["loading"])
        settle_threads(model.target, settings["threads"])
        self._peer = load_peer(settings["peer"], settings["options"], model)

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request."""
        how = {name: request[name] for name in ("max_new_tokens", "temperature", "top_p", "top_k", "seed")}
        found = self._peer.generate(request["prompt_ids"], **how)
        return {
            "token_ids": found.token_ids,
            "seconds": found.seconds,
            "prefill_s": found.prefill_s,
            "accept_lengths": found.accept_lengths,
        }


if __name__ == "__main__":
    serve(Transformers)
