"""Options of a command derived from settings classes, so that an option has one owner.

A parameter of the command that is annotated with a dataclass becomes one option a field: the field's name is the
flag's, its default the default, the text under it the help. The command is given the dataclass, made and so checked.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from textwrap import dedent
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import typer


class Own(NamedTuple):
    """An option that the command words itself, in place of the one that would be derived."""

    annotation: Any
    default: Any


def options_from_settings(
    *,
    panels: Mapping[str, Sequence[str]] | None = None,
    flags: Mapping[str, str] | None = None,
    metavars: Mapping[str, str] | None = None,
    own: Mapping[str, Own] | None = None,
    leave_out: Sequence[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command, whose parameters are settings classes or options of its own.

    panels: heading in the help: the fields under it, in the order of the help. flags: field: its flag, where that is
    not the field's name; several with commas between. metavars: field: what the help shows in place of its type. own:
    field: the option to use. leave_out: fields that keep their default. Fields of a class may also be annotated as
    options themselves.
    """
    words = _Words(flags or {}, metavars or {}, own or {}, frozenset(leave_out))
    panel_of = {name: panel for panel, names in (panels or {}).items() for name in names}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        classes = {name: kind for name, kind in hints.items() if is_dataclass(kind) and isinstance(kind, type)}
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.name in classes:
                parameters += _parameters(classes[parameter.name], panel_of, words)
            else:
                parameters.append(_parameter(parameter.name, hints[parameter.name], parameter.default))

        @wraps(command)
        def run(**given: Any) -> None:
            made = {name: _made(kind, given) for name, kind in classes.items()}
            command(**made, **given)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def field_docs(kind: type) -> dict[str, str]:
    """The text under each field of a class, its bases' included; the class's own goes first."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__[:-1]):
        body = ast.parse(dedent(inspect.getsource(one))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


class _Words(NamedTuple):
    """What `options_from_settings` is told of the options, by field."""

    flags: Mapping[str, str]
    metavars: Mapping[str, str]
    own: Mapping[str, Own]
    leave_out: frozenset[str]


def _parameters(kind: type, panel_of: Mapping[str, str], words: _Words) -> Iterator[inspect.Parameter]:
    hints, docs = get_type_hints(kind, include_extras=True), field_docs(kind)
    names = {field.name: words.flags.get(field.name, _flag(field.name, hints[field.name])) for field in fields(kind)}
    place = {name: number for number, name in enumerate(panel_of)}
    for field in sorted(fields(kind), key=lambda field: place.get(field.name, -1)):
        if field.name in words.leave_out:
            continue
        hint, default = hints[field.name], _default(field)
        if field.name in words.own:
            hint, default = words.own[field.name]
        elif get_origin(hint) is not Annotated:
            option = typer.Option(
                *names[field.name].split(","),
                metavar=words.metavars.get(field.name),
                help=_help(docs.get(field.name, ""), names),
                rich_help_panel=panel_of.get(field.name),
            )
            hint = Annotated[_listed(hint), option]
        yield _parameter(field.name, hint, list(default) if isinstance(default, tuple) else default)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _default(field: Field[Any]) -> Any:
    assert field.default_factory is MISSING, "an option's default is a plain value"
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _listed(hint: Any) -> Any:
    """A tuple of any length is an option that may be repeated."""
    return list[get_args(hint)[0]] if get_origin(hint) is tuple else hint  # type: ignore[misc]


def _made(kind: type, given: dict[str, Any]) -> Any:
    values = {field.name: given.pop(field.name) for field in fields(kind) if field.name in given}
    tuples = {field.name for field in fields(kind) if isinstance(field.default, tuple)}
    return kind(**{name: tuple(value) if name in tuples else value for name, value in values.items()})


def _flag(name: str, hint: Any) -> str:
    words = name.replace("_", "-")
    return f"--{words}/--no-{words}" if hint is bool else f"--{words}"


def _help(text: str, names: Mapping[str, str]) -> str:
    """A field's text as help: `field` is its flag, and None is what comes without the option."""
    text = re.sub(r"`(\w+)`", lambda match: re.split("[/,]", names.get(match[1], match[1]))[0], text)
    return re.sub(r"\bNone(?=[:,])", "default", text)
