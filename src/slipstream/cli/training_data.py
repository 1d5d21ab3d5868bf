"""What commands that train a drafter read: the target, and dialogues from files or answered anew by the target."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.cli.answering import note

if TYPE_CHECKING:
    from slipstream.target.target import Target
    from slipstream.training.data.corpus import Example
    from slipstream.training.data.dialogues import Dialogue, RegenerateSettings

Data = Annotated[
    list[Path],
    typer.Option(
        "--data",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="JSON lines of messages, or of token ids that the target answered; may be repeated.",
    ),
]
Answers = Annotated[
    str, typer.Option("--answers", metavar="KIND", help="target: answered anew by the target; data: as they are.")
]
AnswerTokens = Annotated[
    int, typer.Option("--answer-tokens", min=1, help="Tokens of an answer by the target, at most.")
]
AnswerTemperature = Annotated[
    float, typer.Option("--answer-temperature", min=0.0, help="Of answers by the target; 0: greedy.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use only so many examples.")]


def load_target(model: str, dtype: str | None, device: str | None) -> tuple[Target, Any]:
    """The target on this process's device, and its tokenizer.

    A half-precision target stays so; what is trained on it is trained in float32.
    """
    from accelerate import PartialState

    from slipstream.cli.loading import hide_progress_bars
    from slipstream.errors import InputError
    from slipstream.runtime.executor import suited_executor
    from slipstream.target.loading import load_model, load_tokenizer
    from slipstream.target.target import Target

    if device not in (None, "cpu", "cuda", "auto"):
        raise InputError(
            f"--device is {device!r}; use cpu, cuda or auto, and choose among GPUs with CUDA_VISIBLE_DEVICES"
        )
    if not sys.stderr.isatty():
        hide_progress_bars()
    state = PartialState(cpu=device == "cpu")
    if device == "auto" and state.num_processes > 1:
        raise InputError(
            f"--device auto spreads one target over all devices, but {state.num_processes} processes were started; "
            "start one, or leave --device out so that each holds a target of its own"
        )
    place = device if device in ("cuda", "auto") else state.device
    loaded = load_model(model, dtype=dtype, device=place, attention=None)
    return Target(loaded, suited_executor("exact", "auto", loaded)), load_tokenizer(model)


def read_dialogues(
    target: Target,
    tokenizer: Any,
    data: list[Path],
    out: Path,
    *,
    answers: str,
    how: dict[str, Any],
    limit: int | None,
    max_length: int,
) -> list[Dialogue]:
    """The usable dialogues of data files. out: where answers by the target are kept. how: `RegenerateSettings` of them.

    Raises InputError if none is usable.
    """
    from slipstream.errors import InputError, unknown_choice
    from slipstream.training.data.corpus import read_examples
    from slipstream.training.data.dialogues import encode, usable_dialogues
    from slipstream.training.data.token_lines import holds_token_lines, read_token_lines

    if answers not in ("data", "target"):
        raise unknown_choice("answers", answers, ("data", "target"))
    answered = [path for path in data if holds_token_lines(path)]
    if answered and answers == "target":
        raise InputError(f"{answered[0]} holds answers by the target already; add --answers data")
    dialogues = [dialogue for path in answered for dialogue in read_token_lines(path, target)][:limit]
    room = None if limit is None else limit - len(dialogues)
    examples = [example for path in data if path not in answered for example in read_examples(path)][:room]
    if answers == "data":
        dialogues += [encode(example, tokenizer) for example in examples]
    else:
        dialogues = _answered(target, tokenizer, examples, out, how)
    usable = usable_dialogues(dialogues, max_length)
    if not usable:
        names = ", ".join(str(path) for path in data)
        raise InputError(f"{names}: no answer within {max_length} tokens; give dialogues of user and assistant")
    return usable


def _answered(
    target: Target, tokenizer: Any, examples: list[Example], out: Path, how: dict[str, Any]
) -> list[Dialogue]:
    """The target's own answers. Once made they are the same for any number of processes that go on with them."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from slipstream.training.data.dialogues import RegenerateSettings, regenerate

    state = PartialState(cpu=target.device.type == "cpu")
    settings = RegenerateSettings(**how)
    key = hashlib.sha256(repr((target.hash, examples, how)).encode()).hexdigest()[:16]
    out.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        note(f"the target answers {len(examples)} examples")
    whole = out / f"answers-{key}.jsonl"
    (there,) = broadcast_object_list([whole.is_file()])
    if not there:
        _answer_in_shares(target, tokenizer, examples, whole, settings)
    return list(regenerate(target, tokenizer, examples, whole, settings))


def _answer_in_shares(
    target: Target, tokenizer: Any, examples: list[Example], whole: Path, settings: RegenerateSettings
) -> None:
    """Each process answers its share of the examples, kept in a file of its own; all shares are put into `whole`."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from slipstream.runtime.heartbeat import together
    from slipstream.training.data.dialogues import regenerate, stored_answers, write_answers

    state = PartialState()
    part = whole.with_name(f"{whole.stem}-{state.process_index + 1}of{state.num_processes}.jsonl")
    with together():
        with state.split_between_processes(list(range(len(examples)))) as own:
            for _ in regenerate(target, tokenizer, [examples[index] for index in own], part, settings):
                pass
        found = {(own[index], turn): ids for (index, turn), ids in stored_answers(part).items()}
        shares = gather_object([found])
        if state.is_main_process:
            write_answers(whole, {key: ids for share in shares for key, ids in share.items()})
        state.wait_for_everyone()
