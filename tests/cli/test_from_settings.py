"""Options derived from settings classes: name, default and help have one owner, mistakes are the settings' words."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from slipstream.cli.from_settings import Own, field_docs, options_from_settings
from slipstream.cli.train import app as train_app
from slipstream.errors import InputError
from slipstream.methods.draft_model.settings import DraftSettings
from slipstream.methods.eagle.settings import EagleSettings
from slipstream.methods.eagle3.settings import Eagle3Settings
from slipstream.methods.hydra.settings import HydraSettings
from slipstream.methods.medusa.settings import MedusaSettings
from slipstream.training.data.answer_settings import AnswerSettings

COMMANDS = {
    "eagle": EagleSettings,
    "eagle3": Eagle3Settings,
    "medusa": MedusaSettings,
    "hydra": HydraSettings,
    "draft": DraftSettings,
    "answers": AnswerSettings,
}


@dataclass(frozen=True, kw_only=True)
class Base:
    rate: float = 0.5
    """Share of it; see `num_parts`."""
    num_parts: int | None = None
    """How many; None: as `rate` says."""


@dataclass(frozen=True, kw_only=True)
class Settings(Base):
    rate: float = 0.25
    """Share of the whole,
    in two lines."""
    fast: bool = True
    """Whether it is fast."""
    heats: tuple[float, ...] = (0.0, 1.0)
    """Each in turn."""
    span: tuple[int, int] = (1, 2)
    """From and to."""
    hidden: int = 7
    """Not for the command line."""
    kind: Annotated[str, typer.Option("--kind", help="As it says here.")] = "plain"

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise InputError(f"rate is {self.rate}; it must be at least 0")


made: list[tuple[Settings, str]] = []
app = typer.Typer()


def parse_span(text: str) -> tuple[int, int]:
    first, last = text.split("-")
    return int(first), int(last)


@app.command()
@options_from_settings(
    panels={"Second": ("rate",), "Third": ("num_parts",)},
    flags={"num_parts": "--parts,-p"},
    own={"span": Own(Annotated[Any, typer.Option("--span", parser=parse_span, help="From-to.")], "1-2")},
    leave_out=("hidden",),
)
def command(settings: Settings, name: Annotated[str, typer.Option("--name")] = "x") -> None:
    """Does it."""
    made.append((settings, name))


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_without_options_the_settings_are_the_defaults() -> None:
    assert invoke().exit_code == 0
    assert made.pop() == (Settings(), "x")


def test_every_field_can_be_given() -> None:
    words = ("--rate", "2", "-p", "3", "--no-fast", "--heats", "0.5", "--heats", "2", "--span", "4-5", "--kind", "odd")
    assert invoke(*words, "--name", "y").exit_code == 0
    given = Settings(rate=2.0, num_parts=3, fast=False, heats=(0.5, 2.0), span=(4, 5), kind="odd")
    assert made.pop() == (given, "y")


def test_the_settings_own_check_is_the_error() -> None:
    done = invoke("--rate", "-1")
    assert isinstance(done.exception, InputError)
    assert str(done.exception) == "rate is -1.0; it must be at least 0"


def test_help_is_the_text_under_the_field_with_flags_for_names_and_default_for_none() -> None:
    options = {one.name: one for one in get_command(app).params}
    assert options["rate"].help == "Share of the whole, in two lines."
    assert options["num_parts"].help == "How many; default: as --rate says."
    assert options["num_parts"].opts == ["--parts", "-p"]
    assert options["fast"].secondary_opts == ["--no-fast"]
    assert options["kind"].help == "As it says here."
    assert "hidden" not in options
    assert field_docs(Base)["rate"] == "Share of it; see `num_parts`."


def test_panels_come_in_their_order() -> None:
    shown = invoke("--help").stdout
    assert shown.index("Second") < shown.index("Third")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_of_what_is_trained_is_an_option_with_a_help_and_the_fields_default(name: str) -> None:
    command = get_command(train_app).commands[name]
    options = {one.name: one for one in command.params}
    for field in fields(COMMANDS[name]):
        if field.name == "tokens_per_step" and name not in ("eagle", "eagle3"):
            assert field.name not in options  # it counts only without a batch size
            continue
        option = options[field.name]
        assert option.help, field.name
        assert "`" not in option.help
        if field.name != "part":
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            assert option.default == default, field.name


@pytest.mark.parametrize("name", [one for one in COMMANDS if one != "answers"])
def test_every_field_stands_in_a_panel(name: str) -> None:
    command = get_command(train_app).commands[name]
    panels = {one.name: one.rich_help_panel for one in command.params}
    assert {one.name for one in fields(COMMANDS[name]) if panels.get(one.name, "") is None} == set()
