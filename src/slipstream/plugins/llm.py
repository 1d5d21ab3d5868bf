"""Models of `llm`: `llm -m slipstream/tiny "..."` streams. Found by the entry point `llm`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import llm
from llm.parts import TextPart
from pydantic import Field

import slipstream
from slipstream.errors import InputError, SlipstreamError

NAMED = ("tiny", "smollm2")
"""Models that have a name of their own here; others are given as an option: `llm -m slipstream -o model ID`."""

_LOADING = ("model", "drafter", "draft", "dtype", "device")
"""Options that say what is loaded; the rest is of one answer."""


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_models(register: Any) -> None:
    """Called by `llm`."""
    register(SlipstreamModel("slipstream"))
    for name in NAMED:
        register(SlipstreamModel(f"slipstream/{name}", name))


class SlipstreamModel(llm.Model):
    """A model and a drafter of `slipstream.load`. Both stay loaded for the next prompt of one process."""

    can_stream = True

    class Options(llm.Options):
        """What `-o NAME VALUE` takes."""

        model: str | None = Field(default=None, description="Hub id or folder, for the model `slipstream` alone")
        drafter: str = Field(default="auto", description="How to draft; `slipstream methods` lists them")
        draft: str | None = Field(default=None, description="The drafter's artefact, for methods that need one")
        dtype: str | None = Field(default=None, description="float32, bfloat16 or float16; by default as saved")
        device: str | None = Field(default=None, description="cpu or cuda; by default cuda if there is one")
        max_new_tokens: int | None = Field(default=None, description="Tokens of the answer at most")
        temperature: float | None = Field(default=None, description="0 decodes greedily; by default the model's own")
        top_p: float | None = Field(default=None, description="Nucleus of this probability")
        top_k: int | None = Field(default=None, description="Among the k most probable tokens")
        min_p: float | None = Field(default=None, description="Drop tokens below this fraction of the most probable")
        repetition_penalty: float | None = Field(default=None, description="Above 1: fewer repetitions")
        seed: int | None = Field(default=None, description="Same seed, same text")

    def __init__(self, model_id: str, name: str | None = None) -> None:
        self.model_id, self._name = model_id, name
        self._loaded: tuple[dict[str, Any], slipstream.Model] | None = None

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        """Yield the answer's text, cycle by cycle. Raises llm.ModelError for what cannot be answered."""
        settings = prompt.options.model_dump()
        loading = {name: settings.pop(name) for name in _LOADING}
        try:
            output = yield from _texts(self._load(loading).stream(_messages(prompt), **settings))
        except SlipstreamError as error:
            raise llm.ModelError(str(error)) from error
        response.set_usage(input=len(output.prompt_ids), output=len(output.token_ids))
        response.response_json = {"finish_reason": output.finish_reason, "seed": output.seed, "tau": output.stats.tau}

    def _load(self, asked: dict[str, Any]) -> slipstream.Model:
        if self._loaded is None or self._loaded[0] != asked:
            settings = {name: value for name, value in asked.items() if name != "model"}
            self._loaded = asked, slipstream.load(self._place(asked["model"]), threads="auto", **settings)
        return self._loaded[1]

    def _place(self, model: str | None) -> str:
        """What to load: named by this model, or else by the option."""
        if self._name is not None and model is not None:
            raise InputError(f"{self.model_id} is a model by itself; for {model} use -m slipstream -o model {model}")
        if self._name is None and model is None:
            raise InputError("name a model: llm -m slipstream -o model ID, with a hub id or a folder")
        return str(model or self._name)


def _messages(prompt: llm.Prompt) -> list[dict[str, str]]:
    """The conversation up to this prompt. Raises InputError for what is no text."""
    return [{"role": one.role, "content": "".join(map(_text, one.parts))} for one in prompt.messages]


def _text(part: Any) -> str:
    if not isinstance(part, TextPart):
        raise InputError(f"the prompt holds a {type(part).__name__}; text alone is read")
    text: str = part.text
    return text


def _texts(steps: Generator[slipstream.Step, None, slipstream.Output]) -> Generator[str, None, slipstream.Output]:
    """The text of each step, where there is any; returns what the steps return."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            output: slipstream.Output = end.value
            return output
        if step.text:
            yield step.text
