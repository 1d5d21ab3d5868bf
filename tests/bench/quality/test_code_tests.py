"""Tests are taken from the fields that data sets have, or from the examples in a prompt."""

from __future__ import annotations

from slipstream.bench.quality.code_tests import code_tests, examples
from slipstream.bench.quality.records import Record

HEAD = 'def double(x):\n    """Twice x.\n\n    >>> double(2)\n    4\n    >>> double([1])\n    [1, 1]\n    """\n'


def record(prompt: str, **fields: object) -> Record:
    return Record(1, (prompt,), "", fields)


def test_humaneval_fields_call_check_on_the_entry_point():
    found = code_tests(record(HEAD, test="def check(candidate):\n    assert candidate(1) == 2", entry_point="double"))
    assert found.tests.endswith("check(double)\n")
    assert (found.origin, found.functions, found.prompt_code) == ("the file's tests", ("double",), HEAD)


def test_mbpp_asserts_say_what_the_answer_has_to_define():
    found = code_tests(
        record(
            "Write a function to double a number.",
            test_list=["assert double(1) == 2", "assert isclose(double(0.5), 1.0)", "assert set(double([1])) == {1}"],
            test_imports=["from math import isclose"],
        )
    )
    assert found.tests.count("assert") == 3
    assert found.functions == ("double",)
    assert "from math import isclose" in found.setup


def test_a_function_named_like_a_builtin_is_under_test_if_the_solution_defines_it():
    asserts = ["assert sum(10, 15) == 6"]
    assert code_tests(record("Write one.", test_list=asserts)).functions == ()
    assert code_tests(record("Write one.", test_list=asserts, code="def sum(a, b): ...")).functions == ("sum",)


def test_a_text_of_tests_is_taken_as_it_is():
    assert code_tests(record("Write one.", tests="assert double(1) == 2")).tests == "assert double(1) == 2\n"


def test_examples_of_the_prompt_are_the_last_resort():
    found = code_tests(record(f"Complete this.\n{HEAD}"))
    assert found.origin == "doctest examples of the prompt"
    assert found.tests.splitlines() == ["assert (double(2)) == (4)", "assert (double([1])) == ([1, 1])"]


def test_only_examples_with_a_literal_result_become_tests():
    lines = [">>> x = 3", ">>> f(1)  # one", "2", ">>> f(2) == 4", ">>> f(0)", "Traceback ...", ">>> f(3)", "<object>"]
    code = 'def f(x):\n    """\n    ' + "\n    ".join(lines) + '\n    """\n'
    assert examples(code) == ["assert (f(1)) == (2)", "assert f(2) == 4"]


def test_examples_with_an_unescaped_line_break_are_read_as_written():
    code = 'def f(x):\n    """\n    >>> f("a\\nb")\n    \'b\\na\'\n    """\n'
    assert examples(code) == ["assert (f('a\\nb')) == ('b\\na')"]


def test_a_question_without_any_of_it_has_no_tests():
    assert code_tests(record("def f(x):\n    '''Says x ➞ y'''\n")) is None
