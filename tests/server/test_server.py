"""The server by the official client: answers are the model's own, alone or beside each other, streamed or whole."""

from __future__ import annotations

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import slipstream
from byte_model import END
from server.server_process import METHOD, PATIENCE_S, Served, openai, serving

NEVER_ENDS = {str(END): -100}
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 1.0, "seed": 5},
    "negative seed": {"temperature": 1.0, "seed": -5},
    "nucleus": {"temperature": 0.8, "top_p": 0.7, "seed": 5},
    "penalties": {"temperature": 0.7, "seed": 1, "presence_penalty": 1.5, "frequency_penalty": 0.5},
}


def message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ours(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value % 2**64 if name == "seed" else value for name, value in settings.items()}


@pytest.mark.parametrize("name", SAMPLING)
def test_a_chat_is_answered_as_by_the_model_alone(name: str, server: Served, alone: slipstream.Model) -> None:
    settings = SAMPLING[name]
    found = server.chat(max_tokens=30, **settings)
    expected = alone.generate("Hello, hello", max_new_tokens=30, **ours(settings))
    choice = found.choices[0]
    assert (choice.message.content, choice.message.role) == (expected.text, "assistant")
    assert choice.finish_reason == {"eos": "stop", "length": "length"}[expected.finish_reason]
    assert found.usage.prompt_tokens == len(expected.prompt_ids)
    assert found.usage.completion_tokens == len(expected.token_ids)
    assert found.usage.total_tokens == len(expected.prompt_ids) + len(expected.token_ids)
    assert (found.object, found.model) == ("chat.completion", server.name)


@pytest.mark.parametrize("name", ["greedy", "seeded"])
def test_streamed_chunks_add_up_to_the_answer(name: str, server: Served) -> None:
    settings = {"max_tokens": 30, **SAMPLING[name]}
    whole = server.chat(**settings)
    chunks = list(server.chat(stream=True, stream_options={"include_usage": True}, **settings))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content for choice in choices) == whole.choices[0].message.content
    assert choices[0].delta.role == "assistant"
    assert [choice.finish_reason for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(choices) > 1


def test_requests_beside_each_other_get_what_they_get_alone(server: Served, alone: slipstream.Model) -> None:
    texts = [f"Number {number} of several, and {'more ' * number}" for number in range(8)]
    settings = {"temperature": 1.0, "max_tokens": 40}

    def ask(number: int) -> str:
        return str(server.chat(texts[number], seed=number, **settings).choices[0].message.content)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    expected = [
        alone.generate(text, seed=seed, temperature=1.0, max_new_tokens=40).text for seed, text in enumerate(texts)
    ]
    assert found == expected


def test_a_conversation_goes_on(server: Served, alone: slipstream.Model) -> None:
    messages: list[Any] = [{"role": "developer", "content": "Be brief."}]
    for turn in ("One", "Two", "Three"):
        messages.append({"role": "user", "content": turn})
        answer = server.client().chat.completions.create(
            model=server.name, messages=messages, max_tokens=20, temperature=0
        )
        messages.append(answer.choices[0].message)
    plain: list[dict[str, str]] = [{"role": "system", "content": "Be brief."}]
    for turn in ("One", "Two", "Three"):
        plain.append({"role": "user", "content": turn})
        plain.append({"role": "assistant", "content": alone.generate(plain, max_new_tokens=20, temperature=0).text})
    assert [one.content for one in messages[2::2]] == [one["content"] for one in plain[2::2]]


def test_several_answers_differ_and_are_those_of_the_streams(server: Served, alone: slipstream.Model) -> None:
    found = server.chat(n=3, temperature=1.0, seed=9, max_tokens=20)
    expected = [
        alone.generate("Hello, hello", temperature=1.0, seed=9, stream_id=stream, max_new_tokens=20)
        for stream in range(3)
    ]
    assert [choice.message.content for choice in found.choices] == [one.text for one in expected]
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert len({one.text for one in expected}) == 3
    assert found.usage.completion_tokens == sum(len(one.token_ids) for one in expected)
    assert found.usage.prompt_tokens == len(expected[0].prompt_ids)
    streamed = ["", "", ""]
    for chunk in server.chat(n=3, temperature=1.0, seed=9, max_tokens=20, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content
    assert streamed == [one.text for one in expected]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_it(stream: bool, server: Served, alone: slipstream.Model) -> None:
    whole = alone.generate("Hello, hello", max_new_tokens=60, temperature=0).text
    stop = next(one for one in whole[4:] if one.isprintable() and one.isascii() and one not in whole[:4])
    found = server.chat(max_tokens=60, temperature=0, stop=[stop, "never there"], stream=stream)
    if stream:
        chunks = [chunk.choices[0] for chunk in found]
        text, reason = "".join(chunk.delta.content for chunk in chunks), chunks[-1].finish_reason
    else:
        text, reason = found.choices[0].message.content, found.choices[0].finish_reason
    assert (text, reason) == (whole[: whole.index(stop)], "stop")


def test_a_bias_rules_tokens_out_or_in(server: Served, alone: slipstream.Model) -> None:
    (token,) = alone.encode_raw("a")
    found = server.chat(max_tokens=12, temperature=0, logit_bias={str(token): 100})
    assert found.choices[0].message.content == "a" * 12
    assert server.chat(max_tokens=200, temperature=0, logit_bias=NEVER_ENDS).choices[0].finish_reason == "length"


def test_logprobs_are_the_models_own(server: Served, alone: slipstream.Model) -> None:
    found = server.chat(max_tokens=10, temperature=0, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    expected = alone.generate("Hello, hello", max_new_tokens=10, temperature=0, logprobs=3).logprobs
    assert expected is not None
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected])
    assert [[top.logprob for top in one.top_logprobs] for one in found] == [
        pytest.approx([logprob for _, logprob in one.top]) for one in expected
    ]
    assert all(bytes(one.bytes) == one.token.encode() for one in found)


def test_completions_continue_text_and_ids_without_a_template(server: Served, alone: slipstream.Model) -> None:
    settings = {"model": server.name, "max_tokens": 15, "temperature": 0}
    client = server.client()
    ids = alone.encode_raw("Hello")
    expected = alone.generate(ids, max_new_tokens=15, temperature=0)
    for prompt in ("Hello", ids, ["Hello"], [ids]):
        found = client.completions.create(prompt=prompt, **settings)
        assert found.choices[0].text == expected.text
        assert found.usage.prompt_tokens == 5
    both = client.completions.create(prompt=["Hello", "Bye"], n=2, logprobs=1, **settings)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text == expected.text
    assert both.usage.prompt_tokens == 8
    logprobs = both.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == len(expected.token_ids)
    streamed = "".join(
        chunk.choices[0].text for chunk in client.completions.create(prompt="Hello", stream=True, **settings)
    )
    assert streamed == expected.text


def test_the_model_is_listed_and_no_other(server: Served) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == [server.name]
    with pytest.raises(openai.NotFoundError) as caught:
        server.client().chat.completions.create(model="gpt-4", messages=message("Hi"))
    assert caught.value.code == "model_not_found"
    assert server.send("/v1/models/other")[0] == 404
    assert server.send("/v1/nothing") == (
        404,
        {"error": {"message": "Not Found", "type": "not_found_error", "param": None, "code": None}},
    )


REFUSED: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "unknown field": ({"temprature": 1}, "temprature is not served", "temprature"),
    "tools": ({"tools": [{"type": "function"}]}, "tools is not served", "tools"),
    "response format": (
        {"response_format": {"type": "json_object"}},
        "response_format is not served",
        "response_format",
    ),
    "wrong type": ({"temperature": "hot"}, "temperature: ", "temperature"),
    "text for a number": ({"max_tokens": "5"}, "max_tokens: ", "max_tokens"),
    "truth for a number": ({"n": True}, "n: ", "n"),
    "huge number": ({"max_tokens": 10**400}, "max_tokens: ", "max_tokens"),
    "range": ({"temperature": 3}, "temperature: ", "temperature"),
    "no messages": ({"messages": []}, "messages: ", "messages"),
    "role": ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role: ", "messages"),
    "content": ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "messages"),
    "picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content",
        "messages",
    ),
    "half a pair": ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content", "messages"),
    "two budgets": ({"max_tokens": 5, "max_completion_tokens": 6}, "one setting", None),
    "bias of no token": ({"logit_bias": {"99999": 1}}, "logit_bias names '99999'", None),
    "bias of a word": ({"logit_bias": {"hello": 1}}, "logit_bias names 'hello'", None),
    "idle logprobs": ({"top_logprobs": 3}, "logprobs=true", None),
    "idle options": ({"stream_options": {"include_usage": True}}, "stream=true", "stream_options"),
    "too long": ({"messages": [{"role": "user", "content": "word " * 2000}]}, "context is 4096", None),
    "other method": (
        {"slipstream": {"method": "medusa"}},
        "'medusa' is not served; choose from layer-skip, plain",
        "slipstream",
    ),
    "whole trace": ({"slipstream": {"trace": True}}, "traces are for streams", None),
    "empty stop": ({"stop": ""}, "stop", "stop"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_said_in_the_form_of_the_api(name: str, server: Served) -> None:
    change, words, param = REFUSED[name]
    status, body = server.send("/v1/chat/completions", {"model": server.name, "messages": message("Hi"), **change})
    assert status == 400
    assert words in body["error"]["message"]
    assert (body["error"]["type"], body["error"]["param"]) == ("invalid_request_error", param)


def test_a_prompt_that_fills_the_context_has_a_code_of_its_own(server: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.chat("word " * 2000)
    assert caught.value.code == "context_length_exceeded"


BODIES: dict[str, tuple[bytes, int, str]] = {
    "no JSON": (b'{"model": ', 400, "the body is no JSON"),
    "no object": (b"[1, 2]", 400, "JSON object"),
    "nothing": (b"", 400, "JSON object"),
    "deep": (b'{"messages": ' + b"[" * 20_000, 400, "body"),
    "deep and closed": (b'{"messages": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400, ""),
    "no number": (
        b'{"temperature": NaN, "model": "x", "messages": [{"role": "user", "content": "x"}]}',
        400,
        "temperature",
    ),
    "no UTF-8": (b'{"model": "\xff\xfe"}', 400, "body"),
    "large": (b'{"model": "' + b"x" * 70_000 + b'"}', 413, "larger than 65536 bytes"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused_and_the_server_goes_on(name: str, server: Served) -> None:
    body, expected, words = BODIES[name]
    status, answer = server.send("/v1/chat/completions", body)
    assert status == expected
    assert words in answer["error"]["message"]
    assert server.send("/health") == (200, {"status": "ok", "model": server.name})


def test_what_asks_for_nothing_is_accepted(server: Served) -> None:
    harmless = {
        "response_format": {"type": "text"},
        "tools": [],
        "store": False,
        "user": "me",
        "extra_body": {"parallel_tool_calls": True, "modalities": ["text"], "stop": None, "top_p": 1},
    }
    assert server.chat(max_tokens=3, temperature=0, **harmless).choices[0].message.content


def test_traces_say_which_tokens_were_drafted(server: Served) -> None:
    settings = {"max_tokens": 40, "temperature": 0, "stream": True}
    chunks = list(server.chat(**settings, extra_body={"slipstream": {"trace": True}}))
    kept = 0
    for chunk in chunks:
        trace = chunk.slipstream
        draft = trace["draft"]
        assert "".join(text for text, _ in trace["parts"]) == chunk.choices[0].delta.content
        assert len(trace["parts"]) == trace["num_tokens"]
        assert [drafted for _, drafted in trace["parts"]].count(True) == trace["num_accepted"] == len(draft["path"])
        assert len(draft["tokens"]) == len(draft["parents"]) == trace["num_drafted"]
        assert [draft["parents"][node] for node in draft["path"]] == [-1, *draft["path"]][: len(draft["path"])]
        kept += trace["num_accepted"]
    assert kept > 0
    plain = list(server.chat(**settings, extra_body={"slipstream": {"trace": True, "method": "plain"}}))
    texts = ["".join(chunk.choices[0].delta.content for chunk in one) for one in (chunks, plain)]
    assert texts[0] == texts[1]
    assert all(chunk.slipstream["num_drafted"] == 0 for chunk in plain)


def wait_until(holds: Any, seconds: float = PATIENCE_S) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def is_idle(server: Served) -> bool:
    return server.figure("slipstream_answers_running") == server.figure("slipstream_answers_waiting") == 0


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_is_given_up_when_its_client_leaves(stream: bool, server: Served) -> None:
    before = server.figure("slipstream_answers_total", reason="cancelled")
    settings = {"max_tokens": 4000, "temperature": 0, "logit_bias": NEVER_ENDS}
    if stream:
        chunks = server.chat(stream=True, **settings)
        next(iter(chunks))
        chunks.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            server.client(timeout=0.4).chat.completions.create(model=server.name, messages=message("Hello"), **settings)
    wait_until(lambda: server.figure("slipstream_answers_total", reason="cancelled") > before)
    wait_until(lambda: is_idle(server))


def test_figures_add_up(server: Served) -> None:
    names = ("prompt_tokens", "generated_tokens", "cycles", "drafted_tokens", "accepted_tokens")
    before = {name: server.figure(f"slipstream_{name}_total") for name in names}
    usage = server.chat(max_tokens=30, temperature=0).usage
    after = {name: server.figure(f"slipstream_{name}_total") - before[name] for name in names}
    assert (after["prompt_tokens"], after["generated_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
    assert after["cycles"] + after["accepted_tokens"] == pytest.approx(usage.completion_tokens, abs=1)
    assert 0 < after["accepted_tokens"] <= after["drafted_tokens"]
    assert server.figure("slipstream_tau") > 1
    assert 0 < server.figure("slipstream_acceptance_rate") < 1
    assert server.figure("slipstream_first_token_seconds_count") > 0
    assert server.figure("slipstream_token_seconds_count") > 0


def test_many_streams_of_which_a_third_is_killed_leave_nothing_behind(server: Served, alone: slipstream.Model) -> None:
    settings = {"temperature": 1.0, "max_tokens": 24, "logit_bias": NEVER_ENDS}

    def ask(number: int) -> str | None:
        chunks = server.chat(f"Question {number}", seed=number, stream=True, **settings)
        found = ""
        for chunk in chunks:
            found += chunk.choices[0].delta.content
            if number % 3 == 0:
                chunks.close()
                return None
        return found

    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(ask, range(64)))
    wait_until(lambda: is_idle(server))
    bias = [[[END], -100.0]]
    for number in (1, 2, 31, 62):
        expected = alone.generate(
            f"Question {number}", seed=number, temperature=1.0, max_new_tokens=24, sequence_bias=bias
        )
        assert found[number] == expected.text
    assert sum(one is None for one in found) == 22
    expected = alone.generate("Hello, hello", max_new_tokens=20, temperature=0)
    assert server.chat(max_tokens=20, temperature=0).choices[0].message.content == expected.text


@pytest.fixture(scope="module")
def narrow(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with a key, one place, no queue, and little time."""
    limits = ("--most-running", "1", "--most-waiting", "1", "--time-limit", "3", "--drain", "1")
    cache = str(tmp_path_factory.mktemp("cache"))
    with serving(folder, *METHOD, *limits, SLIPSTREAM_CACHE=cache, SLIPSTREAM_API_KEY="sesame") as served:
        yield served


def narrow_ask(narrow: Served, **more: Any) -> Any:
    client = narrow.client(api_key="sesame")
    settings = {"max_tokens": 4000, "temperature": 0, "logit_bias": NEVER_ENDS}
    return client.chat.completions.create(model=narrow.name, messages=message("Hi"), **{**settings, **more})


def test_a_key_is_asked_for(narrow: Served) -> None:
    assert narrow_ask(narrow, max_tokens=2).choices[0].message.content is not None
    with pytest.raises(openai.AuthenticationError):
        narrow.chat(max_tokens=2)
    assert narrow.send("/v1/models")[0] == 401
    assert narrow.send("/v1/models", Authorization="Bearer sesamE")[0] == 401
    assert narrow.send("/health")[0] == 200


def test_beyond_the_queue_requests_are_told_when_to_come_again(narrow: Served) -> None:
    running = narrow_ask(narrow, stream=True)
    next(iter(running))
    waiting = threading.Thread(target=lambda: narrow_ask(narrow, max_tokens=1))
    waiting.start()
    caught = None
    until = time.monotonic() + 2
    while caught is None and time.monotonic() < until:
        try:
            narrow_ask(narrow, max_tokens=1, n=2)
        except openai.RateLimitError as error:
            caught = error
    assert caught is not None
    assert caught.code == "queue_full"
    assert int(caught.response.headers["retry-after"]) >= 1
    running.close()
    waiting.join(30)
    assert narrow_ask(narrow, max_tokens=2).choices[0].finish_reason == "length"


def test_an_answer_that_takes_too_long_ends_with_an_error(narrow: Served) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        narrow_ask(narrow, max_tokens=4000)
    assert (caught.value.status_code, caught.value.code) == (504, "time_limit")
    with pytest.raises(openai.APIError, match="took longer than 3 s"):
        list(narrow_ask(narrow, max_tokens=4000, stream=True))


@pytest.mark.parametrize(("max_tokens", "drain"), [(60, 60), (4000, 1)])
def test_a_stopped_server_ends_its_streams_cleanly(max_tokens: int, drain: int, folder: Path, tmp_path: Path) -> None:
    """Those that can end in time are whole, others end with an error; the process is gone then."""
    with serving(folder, *METHOD, "--drain", str(drain), SLIPSTREAM_CACHE=str(tmp_path)) as served:
        settings = {"temperature": 0, "logit_bias": NEVER_ENDS, "stream": True}
        chunks = iter(served.chat(max_tokens=max_tokens, **settings))
        next(chunks)
        served.process.send_signal(signal.SIGTERM)
        if max_tokens == 60:
            assert list(chunks)[-1].choices[0].finish_reason == "length"
        else:
            with pytest.raises(openai.APIError, match="the server is stopping"):
                list(chunks)
        assert served.process.wait(timeout=PATIENCE_S) == -signal.SIGTERM


def test_the_schema_names_the_routes(server: Served) -> None:
    status, schema = server.send("/openapi.json")
    assert status == 200
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics"} <= set(schema["paths"])
    assert json.dumps(schema["components"]["schemas"]["ChatAsk"])


@pytest.mark.usefixtures("real_smollm2")
def test_smollm2_holds_a_conversation(tmp_path: Path) -> None:
    import os

    with serving("smollm2", "-d", "prompt-lookup", SLIPSTREAM_CACHE=os.environ["SLIPSTREAM_CACHE"]) as served:
        messages: list[Any] = message("What is the capital of France? Answer in one sentence.")
        client = served.client()
        first = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=20, temperature=0)
        assert "Paris" in first.choices[0].message.content
        messages += [first.choices[0].message, *message("In which country is it?")]
        second = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=20, temperature=0)
        assert "France" in second.choices[0].message.content
