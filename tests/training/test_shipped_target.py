"""The demo target inside the package: small enough, complete, loadable."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(str(files("slipstream"))) / "demo" / "tiny" / "target"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER)


def test_weights_stay_below_24_mb() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size < 24e6


def test_ends_an_answer_by_itself(tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    assert model.dtype == torch.bfloat16
    messages = [{"role": "user", "content": "Tom has 3 apples and buys 2 more. How many apples does he have?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.to(torch.float32).generate(**prompt, max_new_tokens=150, do_sample=False)[0].tolist()
    assert out[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id


@pytest.mark.parametrize("text", ["def f(x):\n    return x\n", "naïve 漢字 🙂 \t\r\n", "3.14 + 2 = 5.14"])
def test_tokenizer_round_trips(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text
