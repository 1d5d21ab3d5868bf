"""Which room of the package may import which: lower ones know nothing of higher ones, and nothing is a circle.

Imports are read from the source, those inside functions and under TYPE_CHECKING among them. What a room needs of a
higher one is handed in.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import slipstream

PACKAGE = Path(slipstream.__file__).parent
NAME = "slipstream"

DOOR = {"errors", "files", "text", "core", "target", "runtime", "skipping", "drafting", "engine", "methods", "door"}
"""The door and all that lies below it."""

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "text": {"errors"},
    "prompts": {"errors"},
    "share": {"errors"},
    "files": {"errors"},
    "records": {"errors"},
    "core": {"errors"},
    "target": {"errors", "files", "core"},
    "runtime": {"errors", "files", "records", "core", "target"},
    "skipping": {"errors", "files", "core", "target", "runtime"},
    "drafting": {"errors", "core", "target", "runtime", "skipping"},
    "engine": {"errors", "core", "target", "runtime", "drafting"},
    "methods": {"errors", "files", "core", "target", "runtime", "skipping", "drafting"},
    "door": DOOR - {"door"},
    "search": {*DOOR, "prompts", "records"},
    "training": {*DOOR, "search"},
    "certify": {*DOOR, "prompts", "records"},
    "bench": {*DOOR, "prompts", "records", "share"},
    "report": {"errors", "records"},
    "jobs": {"door", "errors", "share"},
    "plugins": DOOR,
    "server": DOOR,
    "cli": {*DOOR, "prompts", "records", "share", "search", "training", "certify", "bench", "report", "jobs", "server"},
    "start": {"cli"},
}
"""Room -> the rooms that it may import, besides itself."""

TOP = {
    **dict.fromkeys(("__init__", "model", "output", "arguments", "chat_template", "plain_speed", "prompt_ids"), "door"),
    **dict.fromkeys(("hf_generate", "hf_wrapped", "hf_folder"), "door"),
    "__main__": "start",
}
"""Rooms of the modules that lie at the top; others are rooms of their own name."""


class Import(NamedTuple):
    """One import of a module of the package by another."""

    source: str
    line: int
    target: str

    def __str__(self) -> str:
        return f"{_file(self.source).relative_to(PACKAGE.parent)}:{self.line} imports {NAME}.{self.target}"


def _modules() -> set[str]:
    """All modules by dotted name without the package's own; a folder goes by its name, the door is `__init__`."""
    parts = (path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py"))
    return {".".join(one[:-1] if one[-1] == "__init__" and len(one) > 1 else one) for one in parts}


MODULES = _modules()


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _door() -> dict[str, str | None]:
    """What `from slipstream import NAME` reads: the module that it comes from; None: a constant of the door itself."""
    tree = ast.parse(_file("__init__").read_text(encoding="utf-8"))
    homes: dict[str, str | None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{NAME}."):
            homes.update({alias.name: node.module.removeprefix(f"{NAME}.") for alias in node.names})
        elif isinstance(node, ast.Assign):
            homes.update({name.id: None for name in node.targets if isinstance(name, ast.Name)})
    return homes


def _imports() -> Iterator[Import]:
    door = _door()
    for module in sorted(MODULES):
        for node in ast.walk(ast.parse(_file(module).read_text(encoding="utf-8"))):
            names: list[str | None] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [_imported(module, node, alias.name, door) for alias in node.names]
            for name in names:
                if name == NAME or (name is not None and name.startswith(f"{NAME}.")):
                    target = name.removeprefix(NAME).removeprefix(".") or "__init__"
                    if target != module:
                        yield Import(module, node.lineno, target)


def _imported(module: str, node: ast.ImportFrom, name: str, door: dict[str, str | None]) -> str | None:
    """The full name of the module that `from ... import name` reads; None: no module but a constant of the door."""
    base = node.module or ""
    if node.level:
        package = module.split(".") if _file(module).name == "__init__.py" else module.split(".")[:-1]
        inside = package[: len(package) - node.level + 1]
        base = ".".join([NAME, *inside, *([node.module] if node.module else [])])
    if base == NAME and name not in MODULES:
        home = door.get(name, "__init__")
        return None if home is None else f"{NAME}.{home}"
    whole = f"{base}.{name}"
    return whole if whole.removeprefix(f"{NAME}.") in MODULES else base


IMPORTS = list(_imports())


def room(module: str) -> str:
    """Where a module lies."""
    first = module.split(".")[0]
    return TOP.get(first, first)


def test_every_module_lies_in_a_known_room() -> None:
    assert {room(module) for module in MODULES} == set(ALLOWED)


def test_all_imports_are_of_modules_that_exist() -> None:
    assert [str(one) for one in IMPORTS if one.target not in MODULES] == []


def test_no_import_runs_against_the_arrows() -> None:
    wrong = []
    for one in IMPORTS:
        source, target = room(one.source), room(one.target)
        if source != target and target not in ALLOWED[source]:
            wrong.append(f"{one}: {source} may import {', '.join(sorted(ALLOWED[source])) or 'nothing'}")
    assert not wrong, "imports that run up; hand in what is needed instead:\n" + "\n".join(wrong)


def test_the_allowed_arrows_make_no_circle() -> None:
    assert list(TopologicalSorter(ALLOWED).static_order())


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Inside a room, too. The door and a folder's `__init__` that only re-export are read like any other module."""
    graph: dict[str, set[str]] = defaultdict(set)
    for one in IMPORTS:
        graph[one.source].add(one.target)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = error.args[1]
        steps = [next(x for x in IMPORTS if (x.source, x.target) == (b, a)) for a, b in pairwise(circle)]
        raise AssertionError("modules import each other in a circle:\n" + "\n".join(map(str, steps))) from None


def test_a_method_imports_no_other_method_but_what_it_builds_on() -> None:
    """EAGLE-3's head is run as EAGLE's, Hydra's heads are like it in shape, lookahead keeps n-grams as prompt-lookup
    does, `hybrid` puts it beside a drafter with a model, `auto` chooses among all and `export` writes two of them."""
    shared = {"method", "registry", "auto", "export"}
    builds_on = {("eagle3", "eagle"), ("hydra", "eagle"), ("lookahead", "prompt_lookup"), ("hybrid", "prompt_lookup")}
    for one in IMPORTS:
        if room(one.source) == room(one.target) == "methods":
            source, target = one.source.split(".")[1:2], one.target.split(".")[1:2]
            if source and target and source != target and source[0] not in shared and target[0] not in shared:
                assert (source[0], target[0]) in builds_on, str(one)
