"""Rows of words and numbers as text in columns, as Markdown, or as HTML."""

import html
from collections.abc import Sequence
from typing import Any

Rows = Sequence[Sequence[Any]]


def text_table(rows: Rows, left: int = 0) -> list[str]:
    """Lines of text with aligned columns, the first `left` of them to the left and the others to the right.

    >>> text_table([["I", "gap"], [1, "0.25"], [1000, "0"]])
    ['   I   gap', '   1  0.25', '1000     0']
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[n]) for row in cells if n < len(row)) for n in range(max(map(len, cells)))]

    def line(row: Sequence[str]) -> str:
        padded = (c.ljust(w) if n < left else c.rjust(w) for n, (c, w) in enumerate(zip(row, widths, strict=False)))
        return "  ".join(padded).rstrip()

    return [line(row) for row in cells]


def markdown_table(rows: Rows) -> str:
    """A Markdown table of numbers; the first row is its head."""
    head, *body = rows
    lines = [head, ["---:"] * len(head), *body]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def html_table(head: Sequence[str], rows: Rows) -> str:
    """A table as HTML, its text escaped; a dash without rows."""
    if not rows:
        return "<p>–</p>"
    lines = ["".join(f"<th>{html.escape(h)}</th>" for h in head)]
    lines += ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
