"""A report's blocks, written as Markdown or as one HTML file."""

import base64
import html
import re

from benchmarks import report

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76em; margin: 2em auto;
       padding: 0 1em; color: #222; }
table { border-collapse: collapse; display: block; overflow-x: auto;
        font-size: 13px; }
td, th { border: 1px solid #ccc; padding: .25em .6em; text-align: left;
         vertical-align: top; }
th { background: #f3f3f3; }
img { max-width: 100%; }
p { max-width: 48em; }
code { background: #f3f3f3; }
"""


def heading(text, level=1):
    """A heading; level 1 is the title."""
    return "heading", level, text


def paragraph(text):
    """A paragraph, in which `code` stands between backticks."""
    return "paragraph", text


def table(header, rows):
    """A table of texts."""
    return "table", tuple(header), tuple(map(tuple, rows))


def image(name, alt):
    """A PNG file beside the report."""
    return "image", name, alt


def markdown(blocks):
    """Blocks as Markdown."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def write_markdown(blocks, path):
    """Write blocks as a file of Markdown."""
    path.write_text(markdown(blocks), "utf-8")


def write_html(blocks, folder, path):
    """Write blocks as HTML with the pictures of `folder` in it."""
    body = "\n".join(_html(block, folder) for block in blocks)
    title = html.escape(next(b[2] for b in blocks if b[0] == "heading"))
    path.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n"
        f"{body}\n</body></html>\n",
        "utf-8",
    )


def _markdown(block):
    kind, *parts = block
    if kind == "heading":
        return f"{'#' * parts[0]} {parts[1]}"
    if kind == "image":
        return f"![{parts[1]}]({parts[0]})"
    if kind == "table":
        return report.table(*parts)
    return parts[0]


def _html(block, folder):
    kind, *parts = block
    if kind == "heading":
        return f"<h{parts[0]}>{_inline(parts[1])}</h{parts[0]}>"
    if kind == "image":
        data = base64.b64encode((folder / parts[0]).read_bytes()).decode()
        alt = html.escape(parts[1])
        return f'<p><img alt="{alt}" src="data:image/png;base64,{data}"></p>'
    if kind == "table":
        header, rows = parts
        return (
            f"<table><thead>{_row(header, 'th')}</thead><tbody>"
            + "".join(_row(row, "td") for row in rows)
            + "</tbody></table>"
        )
    return f"<p>{_inline(parts[0])}</p>"


def _row(cells, tag):
    inner = "".join(f"<{tag}>{_inline(cell)}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"


def _inline(text):
    return re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text))
