"""The Python in prompts and answers.

A prompt may hold the beginning of a module (HumanEval: imports, helpers, and the head of one function), alone or after
an instruction. An answer may hold a fenced block, a whole function, or only the body that goes on from the prompt, with
prose around it and cut off by the token budget.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Collection, Iterator

FENCE = re.compile(r"```[ \t]*(?P<language>[\w+-]*)[^\n]*\n(?P<code>.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
PYTHON = ("", "python", "py", "python3")
STATEMENT = re.compile(r"(?:from\s+[\w.]+\s+import\b|import\s+\w|(?:async\s+)?def\s+\w+\s*\(|class\s+\w|@\w)")


def code_of_prompt(prompt: str) -> str:
    """The module that a prompt begins, without the words before it; "" if it holds none.

    The words need not end with a line: "Complete the code I provided.import math" is how some files begin.
    """
    if fences := blocks(prompt):
        return next((code for code in fences if parses(code)), "")
    starts = (match.start() for match in STATEMENT.finditer(prompt))
    begins = (prompt[start:] for start in starts if start == 0 or prompt[start - 1] in "\n.:!?")
    return next((code for code in begins if parses(code)), "")


def code_of_answer(answer: str, prompt_code: str, functions: Collection[str]) -> str:
    """The module that answers: `prompt_code` followed by what the answer adds to it.

    In this order: the first fenced block that defines one of `functions`; the answer from its first statement on, if it
    defines one; the answer (or its first block) as the body of the last function of `prompt_code`. Lines at the end
    that do not parse are left out. Where nothing parses, the answer stands as it is, and running it says what is wrong.
    """
    fences = blocks(answer)
    for text in [*fences, *_from_statements(answer)]:
        code = parsing_beginning(text)
        if defines(code, functions):
            return f"{prompt_code}\n\n{code}\n"
    text = fences[0] if fences else answer
    for body in _as_body(text):
        lines = body.splitlines()
        for end in range(len(lines), 0, -1):
            code = prompt_code.rstrip() + "\n" + "\n".join(lines[:end]) + "\n"
            if prompt_code and parses(code) and _same_functions(code, prompt_code):
                return code
    return f"{prompt_code}\n\n{parsing_beginning(text) or text}\n"


def blocks(text: str) -> list[str]:
    """The fenced blocks of Python, the last one also when its end is missing."""
    return [match["code"] for match in FENCE.finditer(text) if match["language"].lower() in PYTHON]


def parses(code: str) -> bool:
    """Whether this is Python, and not nothing."""
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return bool(code.strip())


def parsing_beginning(text: str) -> str:
    """The longest beginning, in whole lines, that is Python; "" if there is none."""
    lines = textwrap.dedent(text).splitlines()
    beginnings = ("\n".join(lines[:end]) for end in range(len(lines), 0, -1))
    return next(filter(parses, beginnings), "")


def defines(code: str, functions: Collection[str]) -> bool:
    """Whether one of these is defined in `code`, as a function, a class or a value."""
    return not set(functions).isdisjoint(defined(code))


def defined(code: str) -> set[str]:
    """The functions, classes and values that a module's own statements define; none if it does not parse."""
    if not parses(code):
        return set()
    names: set[str] = set()
    for node in ast.parse(code).body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Assign():
                names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return names


def _from_statements(answer: str) -> Iterator[str]:
    """The answer from each line on that opens like a module, the first ones first."""
    for match in re.finditer(r"^(?=\S)", answer, re.MULTILINE):
        if STATEMENT.match(answer, match.start()):
            yield answer[match.start() :]


def _as_body(text: str) -> Iterator[str]:
    """The lines of a function's body, as they are and with the indentation that decoding may have stripped off."""
    text = text.strip("\n")
    yield text
    yield "    " + text.lstrip()
    yield textwrap.indent(textwrap.dedent(text), "    ")


def _same_functions(code: str, prompt_code: str) -> bool:
    """Whether the last function got a body, rather than code after it."""
    last = ast.parse(code).body
    before = ast.parse(prompt_code).body
    return len(last) == len(before) and ast.dump(last[-1]) != ast.dump(before[-1])
