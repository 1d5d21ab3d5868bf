"""Figures as SVG text: for files as they are, and for a page that holds several of them."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

from slipstream.report.style import BLACK, FAINT, GRID, INK, NUM_SHADES, PAPER, shade

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIABLES = {INK: "ink", FAINT: "faint", GRID: "grid", PAPER: "paper"}
VARIABLES |= {shade(BLACK, variant): f"black-{variant}" for variant in range(NUM_SHADES)}
"""Colours that the page gives, by light and dark, through CSS variables of these names."""
FONT = re.compile(r"'DejaVu Sans'(, [^;\"]*)?(?=[;\"])")


def svg_text(figure: Figure) -> str:
    """The figure as an SVG document; the same figure gives the same text. Call it inside `style.drawing`."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def inline(document: str, name: str, label: str) -> str:
    """An SVG document as an element of an HTML page.

    Ids that something refers to get the figure's name in front, so that figures cannot take each other's; all other
    ids, the metadata and namespaces go. name: unique on the page. label: what it shows, for those who cannot see it.
    """
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", body)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r'\s+id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour, variable in VARIABLES.items():
        body = re.sub(rf"(?<=: ){colour}\b", f"var(--{variable})", body, flags=re.IGNORECASE)
    body = FONT.sub("var(--figure-font)", body)
    body = re.sub(r"\n\s*", "\n", body)
    return body.replace("<svg", f'<svg role="img" aria-label="{escape(label, quote=True)}"', 1).strip()
