"""A model of lm-evaluation-harness: what is generated goes through our engine, what is scored through the target.

The harness finds it by the entry point `lm_eval.models` in its releases after 0.4.13. For 0.4.13 this module is the
command: `python -m slipstream.plugins.lm_eval run --model slipstream ...` is `lm_eval run` with the model known.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

import slipstream
from slipstream.errors import InputError

_OF_HARNESS = frozenset(
    ("max_length", "truncation", "add_bos_token", "prefix_token_id", "softmax_dtype", "logits_cache")
) | {"think_end_token", "enable_thinking", "chat_template_args"}
"""Arguments of the harness's own model that say how prompts are read and answers are cut."""


@register_model("slipstream")
class SlipstreamLM(HFLM):
    """`--model slipstream --model_args pretrained=MODEL,method=METHOD,...`."""

    def __init__(
        self,
        pretrained: str = "tiny",
        method: str = "auto",
        *,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **arguments: Any,
    ) -> None:
        """pretrained, method: as the model and the drafter of `slipstream.load`, which is given all further arguments
        but those by which the harness's own model reads prompts and cuts answers (`max_length`, `add_bos_token` and
        others).

        Raises InputError for a batch of more than one.
        """
        if str(batch_size or 1) != "1":
            raise InputError(f"batch_size is {batch_size}; answers are generated one by one: leave it out")
        of_harness = {name: arguments.pop(name) for name in _OF_HARNESS & arguments.keys()}
        self.door = slipstream.load(pretrained, method, device=_device(device), **arguments)
        super().__init__(pretrained=self.door.target.model, tokenizer=self.door.tokenizer, batch_size=1, **of_harness)
        self._streams = itertools.count()

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
        """context: [1, length]. Returns it with the answer behind it, as the harness's own model does."""
        settings = {name: value for name, value in settings.items() if value is not None}
        answer = self.door.generate(
            context,
            attention_mask=settings.pop("attention_mask", None),
            max_new_tokens=max_length - context.shape[1],
            stop=[one for one in stop if one] or None,
            temperature=settings.pop("temperature", 0.0),
            seed=torch.initial_seed() % 2**64,  # the harness sets it
            stream_id=next(self._streams),
            **settings,
        )
        return torch.cat((context, context.new_tensor([answer.token_ids])), dim=1)

    def get_model_info(self) -> dict[str, Any]:
        """For the harness's record: its own, and the method."""
        info: dict[str, Any] = super().get_model_info()
        return {**info, "slipstream": slipstream.__version__, "method": self.door.method}


def _device(asked: str | None) -> str | None:
    """The harness asks for "cuda:0" where its user has said nothing."""
    return None if asked is not None and asked.startswith("cuda") and not torch.cuda.is_available() else asked


def main() -> None:
    """The harness's own command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
