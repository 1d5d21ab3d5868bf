"""A server under load: many streams at once, a third of them killed; what it leaves behind, and what it takes.

    python benchmarks/server_load.py --out benchmarks/records/server-load.json

Rounds of 64 streams on the model that ships, sampled with a seed each. Whoever is not killed checks its text against
the one that the same seed gave in the first round. After every round: the server's memory, threads and queue.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from slipstream.records.machine import commit, cpu_name, shown_command, versions

MODEL = "tiny"
SETTLE_S = 1.0
"""Before a round's figures are read: killed streams are given up after the pass under way."""


def main() -> int:
    """Load a server, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1024, help="in all")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--method", default="prompt-lookup")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    command = [sys.executable, "-m", "slipstream", "serve", "-m", MODEL, "-d", options.method, "--total", "6"]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("listening on ").strip()
        found = loaded(url, process.pid, options)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    print(json.dumps(found["summary"], indent=2))
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if found["summary"]["other_texts"] == found["summary"]["failed"] == 0 else 1


def loaded(url: str, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds."""
    rounds: list[dict[str, Any]] = []
    texts: dict[int, str] = {}
    first_s: list[float] = []
    failed = others = killed = 0
    with ThreadPoolExecutor(options.streams) as pool:
        for _ in range(max(1, options.requests // options.streams)):
            began = time.perf_counter()
            answers = list(pool.map(lambda number: stream(url, number, options.max_tokens), range(options.streams)))
            seconds = time.perf_counter() - began
            for number, answer in enumerate(answers):
                failed += "error" in answer
                killed += bool(answer.get("killed"))
                if "text" in answer:
                    others += texts.setdefault(number, answer["text"]) != answer["text"]
                    first_s.append(answer["first_s"])
            time.sleep(SETTLE_S)
            rounds.append({"seconds": seconds, **left_behind(url, pid)})
    summary = {
        "requests": len(rounds) * options.streams,
        "killed": killed,
        "failed": failed,
        "other_texts": others,
        "memory_mib": [rounds[0]["memory_mib"], rounds[-1]["memory_mib"]],
        "threads": [rounds[0]["threads"], rounds[-1]["threads"]],
        "running_and_waiting_at_the_end": rounds[-1]["running"] + rounds[-1]["waiting"],
        "first_token_s": {"median": statistics.median(first_s), "most": max(first_s)},
        "seconds_of_a_round": statistics.median(one["seconds"] for one in rounds),
    }
    return {
        "command": shown_command(["python", *sys.argv]),
        "commit": commit(),
        "cpu": cpu_name(),
        "versions": versions("fastapi", "uvicorn", "openai"),
        "model": MODEL,
        "method": options.method,
        "summary": summary,
        "rounds": rounds,
    }


def stream(url: str, number: int, max_tokens: int) -> dict[str, Any]:
    """One stream; every third is killed after its first tokens."""
    import openai

    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
    messages: Any = [{"role": "user", "content": f"Tell me about the number {number}"}]
    began, text, first_s = time.perf_counter(), "", 0.0
    try:
        chunks = client.chat.completions.create(
            model=MODEL, messages=messages, stream=True, temperature=1.0, seed=number, max_tokens=max_tokens
        )
        for chunk in chunks:
            first_s = first_s or time.perf_counter() - began
            text += chunk.choices[0].delta.content or ""
            if number % 3 == 0:
                chunks.close()
                return {"killed": True}
    except openai.OpenAIError as error:
        return {"error": str(error)}
    return {"text": text, "first_s": first_s}


def left_behind(url: str, pid: int) -> dict[str, float]:
    """Memory, threads and queue of the server (Linux)."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines())
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics") as answer:
        figures = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#"))
    return {
        "memory_mib": round(int(status["VmRSS"].split()[0]) / 1024, 1),
        "threads": int(status["Threads"]),
        "open_files": len(os.listdir(f"/proc/{pid}/fd")),
        "running": float(figures["slipstream_answers_running"]),
        "waiting": float(figures["slipstream_answers_waiting"]),
    }


if __name__ == "__main__":
    raise SystemExit(main())
