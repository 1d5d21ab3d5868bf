"""The code in an answer is found whatever stands around it."""

from __future__ import annotations

import contextlib

import pytest

from slipstream.bench.quality.code_answers import code_of_answer, code_of_prompt

HEAD = 'from typing import List\n\n\ndef double(x: int) -> int:\n    """Twice x."""\n'


def value(code: str, call: str):
    names: dict[str, object] = {}
    exec(code, names)
    return eval(call, names)


@pytest.mark.parametrize(
    "prompt",
    [
        HEAD,
        f"Complete the code I provided.\n{HEAD}",
        f"Complete the code I provided.{HEAD}",
        f"Go on with this code from my class:\n```python\n{HEAD}```\nThanks.",
        f"def is a word that begins a function. import means\nbringing in.\n\n{HEAD}",
    ],
)
def test_the_code_of_a_prompt_is_found_without_the_words(prompt):
    assert code_of_prompt(prompt).strip() == HEAD.strip()


def test_a_prompt_without_code_has_none():
    assert code_of_prompt("Write a function that doubles a number.") == ""


@pytest.mark.parametrize(
    "answer",
    [
        "    return 2 * x\n",
        "return 2 * x",
        "y = x\n    return 2 * y",
        "    return 2 * x\n\nprint(double(3))\nThis doubles x.",
        "    if x:\n        return 2 * x\n    return 0\n    and that",
        "```python\ndef double(x):\n    return 2 * x\n```",
        "Sure! Here it is:\n\n```py\nimport math\n\ndef double(x):\n    return 2 * x\n```\nIt works.",
        "First\n```\nan example\n```\nthen\n```python\ndef double(x):\n    return 2 * x\n```\n",
        "```python\ndef double(x):\n    return 2 * x\n",
        "```\n    return 2 * x\n```",
        "Here is the function:\ndef double(x):\n    return 2 * x\n\nIt returns twice x.",
        HEAD + "    return 2 * x\n",
        "    def helper(y):\n        return 2 * y\n    return helper(x)\n",
        "```\ndouble = lambda x: 2 * x\n```",
    ],
)
def test_an_answer_becomes_a_module_that_runs(answer):
    assert value(code_of_answer(answer, HEAD, ["double"]), "double(21)") == 42


@pytest.mark.parametrize("answer", ["", "I cannot do that.", "    return 2 *", "```python\n```", "```\n%%%\n```"])
def test_an_answer_without_code_is_no_solution(answer):
    with contextlib.suppress(SyntaxError):
        assert value(code_of_answer(answer, HEAD, ["double"]), "double(21)") != 42
