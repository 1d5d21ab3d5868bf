"""The tests that a question brings along for code, in the forms that data sets have.

    "test" + "entry_point"   HumanEval (arXiv:2107.03374): `test` defines check(candidate)
    "test_list" or "tests"   MBPP (arXiv:2108.07732): assert statements; "test_setup_code", "test_imports" run before
    "tests"                  a text: any Python that raises unless the code is right
    none of these            derived from the `>>> call` lines of the prompt's docstrings, where there are any

Derived tests are fewer than a data set's own, and the model has seen them: their pass@k is higher and is not
HumanEval's. The report of scores says which were used.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import doctest
import inspect
from dataclasses import dataclass
from typing import Literal

from slipstream.bench.quality.code_answers import code_of_answer, code_of_prompt, defined, parses
from slipstream.bench.quality.records import Record
from slipstream.bench.quality.sandbox import Job

Origin = Literal["the file's tests", "doctest examples of the prompt"]
SOLUTION_FIELDS = ("canonical_solution", "code", "reference", "references")


@dataclass(frozen=True, slots=True)
class CodeTests:
    """How to test an answer to one question."""

    tests: str
    origin: Origin
    prompt_code: str = ""
    """What an answer goes on from."""
    setup: str = ""
    functions: tuple[str, ...] = ()
    """What an answer has to define."""

    def job(self, answer: str) -> Job:
        """The answer's code and its tests."""
        return Job(
            code=code_of_answer(answer, self.prompt_code, self.functions),
            tests=self.tests,
            prelude=f"{self.prompt_code}\n{self.setup}",
            under_test=self.functions,
        )


def code_tests(record: Record) -> CodeTests | None:
    """The tests of a question, None if it has none."""
    prompt_code = code_of_prompt(record.prompt)
    fields = record.fields
    match fields:
        case {"test": str(test), "entry_point": str(entry)}:
            return CodeTests(f"{test}\n\ncheck({entry})\n", "the file's tests", prompt_code, functions=(entry,))
    given = fields.get("test_list") or fields.get("tests")
    if given:
        tests = given if isinstance(given, str) else "\n".join(map(str, given))
        imports = fields.get("test_imports") or []
        setup = "\n".join([*map(str, imports), str(fields.get("test_setup_code") or "")])
        functions = _under_test(record, tests, setup, prompt_code)
        return CodeTests(tests + "\n", "the file's tests", prompt_code, setup, functions)
    tests = "\n".join(examples(prompt_code))
    if not tests:
        return None
    return CodeTests(tests, "doctest examples of the prompt", prompt_code, functions=_last_function(prompt_code))


def solution(record: Record) -> str | None:
    """The record's own answer, or None; a whole function or only its body, as the file has it."""
    for name in SOLUTION_FIELDS:
        value = record.fields.get(name)
        text = value[0] if isinstance(value, list) and value else value
        if isinstance(text, str) and text.strip():
            return text
    return None


def examples(prompt_code: str) -> list[str]:
    """The doctest examples of the last function's docstring as assert statements.

    `>>> f(1)` with the literal 2 below it becomes `assert f(1) == 2`; `>>> f(1) == 2` becomes itself. Statements, and
    results that are no literals (an exception, a printed line), are left out.
    """
    found = []
    for example in _doctests(prompt_code):
        call, wanted = _expression(example.source.strip()), example.want.strip()
        if call is None:
            continue
        if wanted and _is_literal(wanted):
            found.append(f"assert ({ast.unparse(call)}) == ({wanted})")
        elif not wanted and isinstance(call.body, ast.Compare):
            found.append(f"assert {ast.unparse(call)}")
    return found


def _doctests(prompt_code: str) -> list[doctest.Example]:
    functions = _last_function(prompt_code)
    for node in ast.parse(prompt_code).body if functions else ():
        if isinstance(node, ast.FunctionDef) and node.name in functions and ast.get_docstring(node):
            # As written comes second: it is right where the author forgot that "\n" in a docstring breaks the line.
            as_written = inspect.cleandoc(ast.get_source_segment(prompt_code, node.body[0]) or "")
            for text in (ast.get_docstring(node) or "", as_written.strip("\"'")):
                with contextlib.suppress(ValueError):  # lines that doctest refuses, such as >>> without a space
                    return doctest.DocTestParser().get_examples(text)
    return []


def _last_function(prompt_code: str) -> tuple[str, ...]:
    """The function that a prompt breaks off in."""
    if not parses(prompt_code):
        return ()
    return tuple(node.name for node in ast.parse(prompt_code).body if isinstance(node, ast.FunctionDef))[-1:]


def _expression(source: str) -> ast.Expression | None:
    try:
        return ast.parse(source, mode="eval")
    except SyntaxError:
        return None


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return False
    return True


def _under_test(record: Record, tests: str, setup: str, prompt_code: str) -> tuple[str, ...]:
    """What the answer has to define: `entry_point`, else what the prompt breaks off in or the file's solution defines.

    Where the file says none of it, the functions that the tests call and that are neither theirs nor Python's.
    """
    if isinstance(entry := record.fields.get("entry_point"), str):
        return (entry,)
    called = _called(tests)
    known = {*defined(solution(record) or ""), *_last_function(prompt_code)}
    return tuple(sorted(called & known or called - set(dir(builtins)) - _bound(tests) - _bound(setup)))


def _called(code: str) -> set[str]:
    calls = (node.func for node in _nodes(code) if isinstance(node, ast.Call))
    return {function.id for function in calls if isinstance(function, ast.Name)}


def _bound(code: str) -> set[str]:
    """The names that code defines or imports."""
    imported = (node for node in _nodes(code) if isinstance(node, ast.alias))
    return defined(code) | {(node.asname or node.name) for node in imported}


def _nodes(code: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(code))) if parses(code) else []
