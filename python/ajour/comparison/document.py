"""What every page is made of: the frame with its style, tiles, and tables that a phone shows as cards."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

CSS = Path(__file__).with_name("page.css")


def document(title: str, body: str) -> str:
    """The whole HTML text; `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS.read_text(encoding='utf-8')}</style></head>\n<body>"
        f"{body}</body></html>\n"
    )


def tile_list(tiles: Sequence[tuple[str, str]]) -> str:
    """A tile for each (value, what it is), as text."""
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(text)}</span></li>" for value, text in tiles)
    return f'<ul class="tiles">{items}</ul>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], why: bool = False) -> str:
    """Cells are HTML. The last column is prose if `why`. On a phone each row is a card, its cells named by `head`."""
    last = len(head) - 1 if why else None
    first = "".join(_head(cell, place == last) for place, cell in enumerate(head))
    body = "".join(
        "<tr>" + "".join(_cell(cell, head[place], place == last) for place, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table></div>'


def _head(cell: str, prose: bool) -> str:
    return f'<th class="left">{escape(cell)}</th>' if prose else f"<th>{escape(cell)}</th>"


def _cell(cell: str, name: str, prose: bool) -> str:
    """The name is for phones; a cell without content is left out there."""
    kind = " ".join(word for word, so in (("why", prose), ("empty", not cell)) if so)
    return f'<td data-name="{escape(name)}"' + (f' class="{kind}"' if kind else "") + f"><div>{cell}</div></td>"
