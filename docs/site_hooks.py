"""Makes pages of the repository's README and SPEC, and links between them that work in the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"index.md": "README.md", "spec.md": "formats/SPEC.md"}
"""Pages of the site that are files of the repository outside docs/."""


def on_files(files: Any, config: Any) -> Any:  # noqa: ANN401 - mkdocs has no types
    """Adds these files as pages."""
    from mkdocs.structure.files import File

    for page, source in PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:  # noqa: ANN401
    """Points links at the page where the target is in the site; else at nothing but their text."""

    def link(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        path, _, anchor = target.partition("#")
        if not path or "://" in path:
            return found[0]
        source = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
        absolute = (ROOT / source).parent.joinpath(path).resolve()
        known = {(ROOT / origin).resolve(): name for name, origin in PAGES.items()}
        inside = known.get(absolute)
        if inside is None and absolute.is_relative_to(ROOT / "docs") and absolute.suffix == ".md":
            inside = absolute.relative_to(ROOT / "docs").as_posix()
        if inside is None and absolute.suffix in (".png", ".svg"):
            return found[0]
        if inside is None:
            return f"{text} (`{path}` in the repository)" if text != path else f"`{path}`"
        up = "../" * page.file.src_uri.count("/")
        return f"[{text}]({up}{inside}{'#' + anchor if anchor else ''})"

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", link, markdown)
