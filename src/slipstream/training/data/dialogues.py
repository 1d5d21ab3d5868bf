"""Training text for draft heads: token ids of conversations, and which of them an answer holds.

A head learns what the *target* says, so answers that the target wrote itself teach it more than those of the data:
`regenerate` lets the target answer every user turn anew.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipstream.drafting.recipe import Dialogue as Dialogue
from slipstream.errors import ArtifactError, InputError
from slipstream.target.target import Target
from slipstream.text import TEMPLATE_ERRORS
from slipstream.training.data.batched_decoding import answer_together
from slipstream.training.data.corpus import Example
from slipstream.training.data.encoded import write_atomically

logger = logging.getLogger(__name__)

Messages = list[dict[str, str]]


def usable_dialogues(dialogues: Iterable[Dialogue], max_length: int) -> list[Dialogue]:
    """The dialogues cut to `max_length`, without those that teach nothing: a row learns the token after the next."""
    cut = [Dialogue(one.token_ids[:max_length], one.answer[:max_length]) for one in dialogues]
    usable = [dialogue for dialogue in cut if any(dialogue.answer[2:])]
    if len(usable) < len(cut):
        logger.warning(
            "%d of %d dialogues hold no answer within %d tokens and are left out",
            len(cut) - len(usable),
            len(cut),
            max_length,
        )
    return usable


def encode(example: Example, tokenizer: Any) -> Dialogue:
    """Token ids of one example, and where its answers are.

    An answer's place is found by rendering the conversation up to it and with it: what the template adds is the answer,
    whatever the template looks like. Where a template rewrites earlier turns, only what stays equal is marked. A turn
    without text is no answer. Raises InputError, which names the example's place, for what the template refuses.
    """
    segments = example.segments
    if getattr(tokenizer, "chat_template", None) is None or segments[0][0] == "text":
        return _encode_plain(segments, tokenizer)
    messages = [{"role": role, "content": content} for role, content in segments]
    ids = render(messages, tokenizer, place=example.place)
    answer = [False] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and message["content"]:
            before, after = messages[:index], messages[: index + 1]
            start = _common(ids, render(before, tokenizer, answering=True, place=example.place)) if index else 0
            end = _common(ids, render(after, tokenizer, place=example.place))
            answer[start:end] = [True] * (end - start)
    return Dialogue(tuple(ids), tuple(answer))


def _encode_plain(segments: Sequence[tuple[str, str]], tokenizer: Any) -> Dialogue:
    """Text as it is, one line break between the segments; of a conversation only the answers count."""
    ids: list[int] = []
    answer: list[bool] = []
    for number, (role, content) in enumerate(segments):
        part = tokenizer.encode(content if number == 0 else "\n" + content, add_special_tokens=number == 0)
        ids += part
        answer += [bool(content) and role in ("assistant", "text")] * len(part)
    return Dialogue(tuple(ids), tuple(answer))


def render(messages: Messages, tokenizer: Any, *, answering: bool = False, place: str = "") -> list[int]:
    """Token ids of messages under the chat template. answering: with the opening of the next answer.

    place: file and line, for the InputError that is raised where the template refuses the messages.
    """
    try:
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=answering, return_dict=True)
    except TEMPLATE_ERRORS as error:
        roles = ", ".join(message["role"] for message in messages)
        where = f"{place}: " if place else ""
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{where}the target's chat template refuses a conversation of roles {roles}: {reason}"
        ) from error
    ids: list[int] = list(encoded["input_ids"])
    return ids


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# --- answers by the target ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RegenerateSettings:
    """How the target answers the data's user turns."""

    max_new_tokens: int = 256
    """Tokens of an answer at most."""
    temperature: float = 0.0
    """0: the greedy answer; else sampled from the whole distribution at this temperature."""
    batch_size: int = 16
    """Answers written at once."""
    max_turns: int = 2
    """Turns of a conversation that are answered; each gives one dialogue."""
    seed: int = 0
    """Of sampled answers."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size", "max_turns"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of regenerated answers is {getattr(self, name)}; it must be at least 1")
        if self.temperature < 0:
            raise InputError(f"temperature of regenerated answers is {self.temperature}; it must be at least 0")


def regenerate(
    target: Target,
    tokenizer: Any,
    examples: Sequence[Example],
    store: Path,
    settings: RegenerateSettings | None = None,
) -> Iterator[Dialogue]:
    """Yield the target's own answers to the user turns of conversations, in batches, turn by turn.

    Each answer is appended to the JSON-lines file `store` as it is made, and read back from there when the work is
    taken up again. Later turns are asked after the target's own earlier answers. Examples of plain text, and turns
    that leave no room in the target's context, are left out.
    """
    settings = settings or RegenerateSettings()
    asked = [[content for role, content in example.segments if role == "user" and content] for example in examples]
    histories: list[Messages] = [[] for _ in examples]
    done: dict[tuple[int, int], list[int]] = {}
    for turn in range(settings.max_turns):
        open_ = [index for index, turns in enumerate(asked) if len(turns) > turn]
        for index in open_:
            histories[index].append({"role": "user", "content": asked[index][turn]})
        prompts = {
            index: render(histories[index], tokenizer, answering=True, place=examples[index].place) for index in open_
        }
        room = (target.context_length or 1 << 30) - settings.max_new_tokens
        wanted = {(index, turn): prompt for index, prompt in prompts.items() if len(prompt) < room}
        done.update(answer_prompts(target, wanted, store, settings))
        for index in open_:
            ids = done.get((index, turn), [])
            histories[index].append({"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)})
            if ids:
                prompt = prompts[index]
                yield Dialogue((*prompt, *ids), (*[False] * len(prompt), *[True] * len(ids)))


def answer_prompts(
    target: Target, prompts: Mapping[tuple[int, int], list[int]], store: Path, settings: RegenerateSettings
) -> dict[tuple[int, int], list[int]]:
    """The target's answer to each prompt, end-of-sequence token included, by (example, turn).

    Answers that `store` holds are taken from there; the others are made in batches of similar length and appended.
    """
    done = stored_answers(store)
    missing = sorted((key for key in prompts if key not in done), key=lambda key: len(prompts[key]))
    for first in range(0, len(missing), settings.batch_size):
        batch = missing[first : first + settings.batch_size]
        answers = answer_together(
            target,
            [prompts[key] for key in batch],
            [settings.temperature] * len(batch),
            num_rows=len(batch),
            max_new_tokens=settings.max_new_tokens,
            seed=hash((settings.seed, *batch[0])) % 2**63,
        )
        for key, ids in zip(batch, answers, strict=True):
            done[key] = ids
            _append(store, *key, ids)
        logger.info("%d of %d answers", min(first + len(batch), len(missing)), len(missing))
    return {key: done[key] for key in prompts}


def stored_answers(store: Path) -> dict[tuple[int, int], list[int]]:
    """The answers in a store by (example, turn). Raises ArtifactError for a file of anything else."""
    if not store.is_file():
        return {}
    lines = store.read_text(encoding="utf-8").split("\n")
    if lines.pop():  # the last line was being written when the work was interrupted
        store.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    try:
        records = [json.loads(line) for line in lines]
        return {(record["example"], record["turn"]): record["ids"] for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{store} does not hold regenerated answers ({error}); delete it") from error


def write_answers(store: Path, answers: Mapping[tuple[int, int], list[int]]) -> None:
    """A whole store at once, or nothing of it."""
    write_atomically(store, "".join(_line(*key, ids) for key, ids in sorted(answers.items())).encode())


def _append(store: Path, index: int, turn: int, ids: list[int]) -> None:
    with store.open("a", encoding="utf-8") as file:
        file.write(_line(index, turn, ids))


def _line(index: int, turn: int, ids: list[int]) -> str:
    return json.dumps({"example": index, "turn": turn, "ids": ids}) + "\n"
