"""Tables as LaTeX: a float to \\input into an article that uses booktabs."""

from __future__ import annotations

import re

from affsup_cli.reporting.render.document import Report, Table, plain_mark, split_marks, with_minus

_SIZES = ((62, "small"), (80, "footnotesize"), (125, "scriptsize"))
_LONG = 40  # characters of a field from which its column wraps
_COMMANDS = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",  # after \\ a bracket or a star would be its argument
    "*": "{*}",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "γ": r"$\gamma$",
    "λ": r"$\lambda$",
    "–": "--",
    "…": r"\ldots{}",
}
_PART = re.compile(r"\b[LF]_(?:G|S|C|in)\b|.", re.DOTALL)


def latex_tables(report: Report) -> str:
    """Return a report's tables as one float: caption, tables, footnotes in small print."""
    content = report.content
    size = _size(content.tables)
    parts = [
        f"% affsup report {report.name}; needs \\usepackage{{booktabs}}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(report.title.partition(': ')[2] or report.title)}}}",
        rf"\label{{tab:{report.name}}}",
        rf"\{size}",
        r"\setlength{\tabcolsep}{3.5pt}",
    ]
    # A table wider than the line is centred.
    boxes = (f"\\makebox[\\linewidth]{{%\n{_tabular(table)}}}" for table in content.tables)
    parts.append("\n\n\\medskip\n".join(boxes))
    parts += ["", r"\medskip", r"\begin{minipage}{\linewidth}", r"\footnotesize", latex_text(content.caption)]
    fields = [field for table in content.tables for row in (table.header, *table.rows) for field in row]
    marks = {mark for field in fields for mark in split_marks(field)[1]}
    for mark, text in (line.split(" ", 1) for line in content.footnotes):
        if mark in marks:  # others stand at runs that were left out
            parts.append(rf"\par {_superscript(mark)}~{latex_text(text)}")
    parts += [r"\end{minipage}", r"\end{table}"]
    return "\n".join(parts) + "\n"


def latex_text(text: str) -> str:
    """Return text escaped for LaTeX; a character that plain LaTeX lacks is written as its code point."""
    return "".join(_escaped(part) for part in _PART.findall(text))


def _escaped(part: str) -> str:
    """Escape one character or a symbol such as L_G."""
    if len(part) > 1:
        return f"${part[0]}_{{{part[2:]}}}$"
    if part in _COMMANDS:
        return _COMMANDS[part]
    accented = part.isalpha() and part < "\u0100"  # Latin-1
    return part if part.isascii() or accented else f"(U+{ord(part):04X})"


def _field(text: str) -> str:
    """Return a field with minus signs and superscript marks."""
    shown, marks = split_marks(text)
    return latex_text(with_minus(shown)) + "".join(map(_superscript, marks))


def _superscript(mark: str) -> str:
    return rf"\textsuperscript{{{plain_mark(mark)}}}"


def _tabular(table: Table) -> str:
    widths = _widths(table)
    kinds = ["l", "l" if table.grouped else "c", *"c" * (len(widths) - 2)]
    for column, width in enumerate(widths):
        if width > _LONG:
            kinds[column] = r"p{0.3\linewidth}"
    lines = [rf"\begin{{tabular}}{{{''.join(kinds)}}}", r"\toprule", _row(table.header), r"\midrule"]
    for rows in table.groups():
        if table.grouped and rows[0]:
            lines.append(r"\addlinespace")
        for row in rows:
            label, *fields = table.rows[row]
            lines.append(_row((label if row == rows[0] else "", *fields)))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _row(fields: tuple[str, ...]) -> str:
    return " & ".join(map(_field, fields)) + r" \\"


def _widths(table: Table) -> list[int]:
    return [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]


def _size(tables: tuple[Table, ...]) -> str:
    """Return the type size in which the widest table fits the page, estimated from its characters."""
    widest = max(sum(min(width, _LONG) + 2 for width in _widths(table)) for table in tables)
    return next((size for most, size in _SIZES if widest <= most), "tiny")
