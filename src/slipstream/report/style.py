"""What all figures share: colours, fonts, and one stable look for every entrant. Needs matplotlib to draw.

The colours are Okabe and Ito's, told apart by all eyes. A method has the same colour in every figure, its variants
lighter shades of it; peers are grey and hatched.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slipstream.errors import InputError
from slipstream.records.schema import Entrant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSTALL = "pip install matplotlib"

BLUE, SKY, GREEN, YELLOW = "#0072B2", "#56B4E9", "#009E73", "#F0E442"
ORANGE, VERMILLION, PURPLE, BLACK = "#E69F00", "#D55E00", "#CC79A7", "#15181C"
GREY, BROWN, INDIGO = "#6F7680", "#8C510A", "#332288"

INK, FAINT, GRID, PAPER = "#24292F", "#667080", "#E1E4E8", "#FEFEFE"
"""Text, text of less weight, lines behind the data, background. The page replaces them by its own, light or dark."""

METHOD_COLOURS = {
    "plain": GREY,
    "auto": BROWN,
    "layer-skip": GREEN,
    "eagle2": BLUE,
    "eagle": ORANGE,
    "eagle3": INDIGO,
    "hydra": PURPLE,
    "medusa": VERMILLION,
    "draft-model": BLACK,
    "prompt-lookup": YELLOW,
    "lookahead": SKY,
}
PEER_LOOKS = {
    "hf-plain": ("#9AA1AB", ""),
    "hf-assisted": ("#9AA1AB", "///"),
    "hf-prompt-lookup": ("#C3C8CE", "\\\\\\"),
    "hf-early-exit": ("#C3C8CE", "xxx"),
    "hf-compiled": ("#9AA1AB", "..."),
    "llama-cpp": ("#7F8893", "+++"),
    "llama-cpp-q4": ("#DDE0E4", "ooo"),
    "openvino": ("#7F8893", "|||"),
    "openvino-prompt-lookup": ("#DDE0E4", "***"),
}
NUM_SHADES = 4
OTHER_LOOK = ("#B0B6BE", "---")
WIDTH = 12.0
"""Inches of a figure that fills the page."""

STYLE: dict[str, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "text.parse_math": False,  # names and tokens may hold dollar signs
    "axes.titlesize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "figure.facecolor": PAPER,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small files, and fonts of the reader's machine for all scripts
}


@dataclass(frozen=True, slots=True)
class Look:
    """How an entrant is drawn, everywhere."""

    colour: str
    hatch: str


def looks(entrants: Sequence[Entrant]) -> dict[str, Look]:
    """The look of every entrant by name: the method's colour, lighter for its second and further variants."""
    found: dict[str, Look] = {}
    seen: dict[str, int] = {}
    for entrant in entrants:
        if entrant.kind == "peer" or entrant.method not in METHOD_COLOURS:
            found[entrant.name] = Look(*PEER_LOOKS.get(entrant.name, OTHER_LOOK))
            continue
        variant = seen[entrant.method] = seen.get(entrant.method, -1) + 1
        found[entrant.name] = Look(shade(METHOD_COLOURS[entrant.method], variant), "")
    return found


def shade(colour: str, variant: int) -> str:
    """A method's colour for its n-th variant, counted from 0: mixed with more and more white."""
    share = 0.27 * min(variant, NUM_SHADES - 1)
    channels = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(one + (255 - one) * share):02X}" for one in channels)


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """The settings under which figures are made and saved. name: of the figure; the same one gives the same file.

    A token may be in a script that the font lacks: the reader's machine has one for it, so that is no warning here.
    Raises InputError without matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InputError(f"figures need matplotlib, which is not installed; run: {INSTALL}") from error
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, without a window or global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def tight(figure: Any) -> None:
    """No space between panels but what their labels need."""
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.03)


def number(axes: Axes, value: float, place: float, text: str) -> None:
    """A bar's number, to its right. (Blanks in front would be lost in a page.)"""
    axes.annotate(text, (value, place), (2.5, 0), textcoords="offset points", va="center", fontsize=7)


def panels(number: int, columns: int, inches: float, *, first_apart: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with so many small panels that share their axes, the last line perhaps not full.

    columns: at most. inches: height of a line of panels. first_apart: the first panel has axes of its own.
    """
    columns = min(columns, number)
    lines = -(-number // columns)
    figure = new_figure(min(WIDTH, 0.4 + 2.7 * columns), 0.55 + inches * lines)
    tight(figure)
    grid = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel())
    if first_apart:
        place = grid[0].get_subplotspec()
        grid[0].remove()
        grid[0] = figure.add_subplot(place)
        if number > 1:
            grid[1].tick_params(labelleft=True)
    for axes in grid[number:]:
        axes.set_visible(False)
    for index, axes in enumerate(grid[:number]):
        axes.tick_params(labelsize=7, labelbottom=index + columns >= number)
    return figure, grid[:number]
