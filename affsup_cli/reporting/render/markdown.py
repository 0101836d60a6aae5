"""Reports as Markdown. Text from outside, such as names of classes, images and run folders, is escaped."""

from __future__ import annotations

import re

from affsup_cli.reporting.render.document import Report, Table

_CODE = re.compile(r"`([^`]+)`")
_ENTITIES = {
    "<": "&lt;",
    "&": "&amp;",
    "`": "&#96;",
    "~": "&#126;",
    "]": "&#93;",
}  # a backslash is not enough everywhere
_SPECIAL = re.compile(
    r"(?P<always>[\\*<~|`])"
    r"|(?P<word>(?<![^\W_])_|_(?![^\W_]))"  # an underscore inside a word is plain text
    r"|(?P<link>\](?=[(\[:]))"
    r"|(?P<entity>&(?=#?\w+;))"
    r"|(?P<block>^(?:[#>]|[+=-](?=[\s=-]|$)|\d+(?=[.)](?:\s|$))))"
)


def markdown_text(text: str) -> str:
    """Return text so that Markdown shows it as it is, on one line; only backticks still enclose code."""
    parts: list[str] = []
    end = 0
    line = " ".join(text.splitlines())
    for code in _CODE.finditer(line):
        parts += [_escaped(line[end : code.start()], first=not end), code[0].replace("|", "\\|")]
        end = code.end()
    return "".join([*parts, _escaped(line[end:], first=not end)])


def markdown(report: Report) -> str:
    """Return the page of a report: title, picture, tables, caption, footnotes, notes."""
    content = report.content
    title = markdown_text(report.title)
    parts = [f"# {title}"]
    if ".png" in content.files:
        parts.append(f"![{title}]({report.name}.png)")
    parts += [_table(table) for table in content.tables]
    parts.append(markdown_text(content.caption))
    parts += ["  \n".join(map(markdown_text, content.footnotes))] if content.footnotes else []
    notes = (*report.provenance, *report.notes)
    parts += ["\n".join(f"- {markdown_text(note)}" for note in notes)] if notes else []
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    lines = [table.header, *table.rows]
    head, *rows = ["| " + " | ".join(map(markdown_text, line)) + " |" for line in lines]
    return "\n".join([head, "| " + " | ".join("---" for _ in table.header) + " |", *rows])


def _escaped(text: str, *, first: bool) -> str:
    def escape(found: re.Match[str]) -> str:
        if found["block"] and not first:
            return found[0]
        if found[0] in _ENTITIES:
            return _ENTITIES[found[0]]
        if found["block"] and found[0].isdigit():
            return f"{found[0]}\\"
        return f"\\{found[0]}"

    return _SPECIAL.sub(escape, text)
