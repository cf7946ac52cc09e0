"""The page: one file that needs nothing from elsewhere.

Its style (`page.css`) follows light and dark, and is readable on a telephone. Its one script
(`page.js`) sorts tables; without scripts everything is there, in the order of the archive. A
policy in the page lets a browser load and run nothing else.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reallm_compiler.distribution import VERSION
from reallm_compiler.report.elements import Element, element, join

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the page.

    Attributes:
        anchor: its name in links.
        title: its heading.
        body: what stands below.
    """

    anchor: str
    title: str
    body: Element


def page(title: str, remarks: Sequence[str], parts: Sequence[Part]) -> str:
    """The whole file.

    Args:
        title: of the page.
        remarks: what a reader should know first.
        parts: in their order; empty ones are left out.
    """
    shown = [part for part in parts if part.body]
    links = [element("li", element("a", part.title, href=f"#{part.anchor}")) for part in shown]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy()),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=f"reallm {VERSION}"),
        element("title", title),
        element("style", Element(STYLE)),
    )
    first = [element("p", remark, class_="warning") for remark in remarks]
    body = element(
        "body",
        element("header", element("h1", title), *first),
        element("nav", element("ul", *links), aria_label="parts of the report"),
        element("main", *(_part(part) for part in shown)),
        element("script", Element(SCRIPT)),
    )
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"


def _part(part: Part) -> Element:
    heading = element("h2", part.title, id=f"{part.anchor}-title")
    return join(
        [
            element(
                "section",
                heading,
                part.body,
                id=part.anchor,
                aria_labelledby=f"{part.anchor}-title",
            ),
            Element("\n"),
        ]
    )


def _policy() -> str:
    """What the page may load or run: its own style, and the one script by its digest."""
    digest = b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
