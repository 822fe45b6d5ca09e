"""What the site does with a page's Markdown that a reader of the file does not need."""

import re
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!images|assets)[^)]*\)")
PICTURE = re.compile(r'<img [^>]*alt="([^"]*)"[^>]*src="([^"]+\.svg)"[^>]*>')


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """A link to a file of the repository that is no page (a test, say) becomes its name."""

    def named(link: re.Match[str]) -> str:
        target = (Path(page.file.src_uri).parent / link[0].split("](")[1][:-1].split("#")[0]).as_posix()
        inside = files.get_file_from_path(_normal(target))
        return link[0] if inside else f"`{link[1].strip('`')}`"

    return OUTSIDE.sub(named, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """A picture that is SVG is put into the page, where it has the colours of light or dark."""

    def drawn(image: re.Match[str]) -> str:
        source = _normal((Path(page.file.src_uri).parent / image[2]).as_posix())
        svg = (Path(config.docs_dir) / source).read_text(encoding="utf-8")
        return f'<span class="figure" role="img" aria-label="{image[1]}">{svg}</span>'

    return PICTURE.sub(drawn, html)


def _normal(path: str) -> str:
    """``guides/../images/a.svg`` -> ``images/a.svg``; what leads out of docs/ stays as it is."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)
