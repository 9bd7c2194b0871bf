"""A document of a few kinds of blocks, as Markdown or as one self-contained HTML page."""

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ccc; padding: 0.25rem 0.7rem; text-align: left; vertical-align: top; }
[style="text-align:right"] { font-variant-numeric: tabular-nums; white-space: nowrap; }
blockquote { border-left: 0.4rem solid #D55E00; background: #fdf1e7; padding: 0.1rem 1rem; margin: 0.6rem 0; }
img { max-width: 100%; }
@media print { body { margin: 0; max-width: none; } }
"""


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; a notice is highlighted."""

    text: str
    notice: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under a heading; the columns from index `numbers_from` are aligned to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers_from: int = 1


@dataclass(frozen=True)
class Figure:
    """A PNG with its file name and caption."""

    name: str
    content: bytes
    caption: str


Block = Heading | Paragraph | Table | Figure


def to_markdown(blocks: Sequence[Block]) -> str:
    """The document as Markdown, with links to the figures' files."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def to_html(blocks: Sequence[Block]) -> str:
    """The document as one HTML page that contains its style and figures."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    reader = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table")
    tokens = reader.parse(to_markdown(blocks))
    figures = {block.name: block.content for block in blocks if isinstance(block, Figure)}
    for image in _images(tokens):
        image.attrSet("src", f"data:image/png;base64,{base64.b64encode(figures[str(image.attrGet('src'))]).decode()}")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{reader.renderer.render(tokens, reader.options, {})}</body>\n</html>\n"
    )


def _images(tokens: Sequence[Token]) -> Iterator[Token]:
    for token in tokens:
        if token.type == "image":
            yield token
        yield from _images(token.children or ())


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text, notice):
            return f"> **{_plain(text)}**" if notice else _plain(text)
        case Table(head, rows, numbers_from):
            rule = ["---" if column < numbers_from else "---:" for column in range(len(head))]
            lines = [[_plain(cell) for cell in row] for row in (head, *rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
        case Figure(name, _, caption):
            return f"![{_plain(caption)}]({name})\n\n*{_plain(caption)}*"


def _plain(text: str) -> str:
    """Text on one line, with Markdown's special characters escaped."""
    for sign in "\\`*_|<[]":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
