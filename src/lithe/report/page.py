"""The report's bricks: elements that escape whatever was not built here, tables, figures, and the page around them.

The page is one file: its style is named by hash in its Content-Security-Policy, pictures are data, there is no script,
and nothing is fetched. No element carries a style attribute, so that it also works where a site allows none.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lithe
from lithe.report.scales import brackets

VOID = {"img", "link", "meta"}
COLOURS = 6  # as many as page.css has; the seventh policy has the first colour and a mark of its own
MARKERS = (
    "M0-5A5 5 0 1 1 0 5A5 5 0 1 1 0-5Z",  # disc
    "M-4.4-4.4H4.4V4.4H-4.4Z",  # square
    "M0-6.2L6.2 0L0 6.2L-6.2 0Z",  # diamond
    "M0-5.6L5.8 4.4H-5.8Z",  # triangle
    "M0 5.6L5.8-4.4H-5.8Z",  # triangle on its tip
    "M-5.6-2H-2V-5.6H2V-2H5.6V2H2V5.6H-2V2H-5.6Z",  # cross
    "M0-6L5.7-1.9L3.5 4.9H-3.5L-5.7-1.9Z",  # pentagon
)


class Html(str):
    """Markup; every other string is text and gets escaped where it is put in."""

    __slots__ = ()


def join(*parts: str | float | None, by: str = "") -> Html:
    """Markup and text in a row; None is left out."""
    kept = [part for part in parts if part is not None]
    return Html(by.join(p if isinstance(p, Html) else html.escape(str(p)) for p in kept))


def tag(name: str, /, *children: str | float | None, **attributes: Any) -> Html:
    """One element. `class_` means class, `stroke_width` stroke-width; an attribute of None is left out."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{told}>" if name in VOID else f"<{name}{told}>{join(*children)}</{name}>")


def hue(look: int) -> str:
    """The class that gives a policy its colour."""
    return f"c{look % COLOURS}"


def marker(look: int) -> Html:
    """A policy's mark around the origin: a shape and a colour, so that neither has to be told apart alone."""
    return tag("path", d=MARKERS[look % len(MARKERS)], class_=f"mark {hue(look)}")


def who(name: str, look: int) -> Html:
    """A policy's name behind its mark."""
    key = tag("svg", marker(look), class_="key", viewBox="-7 -7 14 14", aria_hidden="true")
    return tag("span", key, name, class_="who")


def interval(text: str, low: str | None = None, high: str | None = None) -> Html:
    """A figure, and in brackets its interval where there is one."""
    if low is None or high is None:
        return join(text)
    return join(text, " ", tag("span", brackets(low, high), class_="interval"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], label: str, words: int = 1, fills: bool = False) -> Html:
    """A table that scrolls inside its own box. The first `words` columns hold words, the others numbers.

    fills: cells are whole elements `<td>` of the caller's.
    """

    def cell(i: int, content: str) -> Html:
        if i == 0:
            return tag("th", tag("span", content, class_="fit"), scope="row")
        return Html(content) if fills else tag("td", content, class_="word" if i < words else None)

    fitted = [tag("span", name, class_="fit") for name in head]
    names = [tag("th", name, scope="col", class_="word" if i < words else None) for i, name in enumerate(fitted)]
    body = [tag("tr", *(cell(i, content) for i, content in enumerate(row))) for row in rows]
    grid = tag("table", tag("thead", tag("tr", *names)), tag("tbody", *body))
    return tag("div", grid, class_="scroll", role="region", aria_label=label, tabindex="0")


def figure(*parts: str, caption: str, wide: bool = True) -> Html:
    """Drawings with the sentence that says what to see in them."""
    return tag("figure", *parts, tag("figcaption", caption), class_="wide" if wide else None)


def details(summary: str, *parts: str) -> Html:
    """Folded away; print shows it."""
    return tag("details", tag("summary", summary), *parts)


def note(*parts: str) -> Html:
    """Something the reader must know before believing a number."""
    return tag("p", *parts, class_="note", role="note")


def section(title: str, *parts: str | None) -> tuple[str, Html]:
    """(title, section); its anchor is made of the title."""
    return title, tag("section", tag("h2", title), *parts, id=_anchor(title))


def page(title: str, lead: Sequence[str], sections: Sequence[tuple[str, Html]]) -> str:
    """The whole document."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"lithe {lithe.__version__}"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(style)),
    )
    contents = tag("nav", *(tag("a", name, href=f"#{_anchor(name)}") for name, _ in sections), aria_label="Sections")
    header = tag("header", tag("h1", title), *lead, contents)
    main = tag("main", *(body for _, body in sections))
    footer = tag("footer", f"Made by lithe {lithe.__version__}. Every number comes from the files it was given.")
    return "<!doctype html>\n" + tag("html", head, tag("body", header, main, footer), lang="en")


def _anchor(title: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
