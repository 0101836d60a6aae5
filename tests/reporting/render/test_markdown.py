from __future__ import annotations

import re

import pytest

from affsup_cli.reporting.render.document import Content, Report, Table
from affsup_cli.reporting.render.markdown import markdown, markdown_text

markdown_library = pytest.importorskip("markdown", reason="Python-Markdown comes with mkdocs: affsup[docs]")

HOSTILE = [
    "[click](https://example.org)",
    "![image](x.png)",
    "[ref][1]",
    "[1]: https://example.org",
    "<b>bold</b> <script>alert(1)</script>",
    "*a* **b** _c_ __d__ ~~e~~",
    "`code` and ``more`` and ` one",
    "a | b",
    "# heading",
    "> quote",
    "1. item",
    "- item",
    "&lt;b&gt; &#60;",
    "back\\slash \\* ",
    "two\nlines\n\n# and a heading",
]


def rendered(text: str) -> str:
    return str(markdown_library.markdown(text, extensions=["tables"]))


@pytest.mark.parametrize("name", HOSTILE)
def test_text_from_outside_stays_text(name: str) -> None:
    html = rendered(f"before {markdown_text(name)} after")
    assert set(re.findall(r"<(\w+)", html)) <= {"p", "code"}


@pytest.mark.parametrize("name", HOSTILE)
def test_text_from_outside_is_shown_as_it_is(name: str) -> None:
    if "`" in name:
        pytest.skip("backticks enclose code")
    html = rendered(markdown_text(name))
    shown = re.sub(r"</?p>", "", html)
    for entity, character in (
        ("&#126;", "~"),
        ("&#93;", "]"),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", '"'),
        ("&amp;", "&"),
    ):
        shown = shown.replace(entity, character)
    assert shown.strip() == " ".join(name.splitlines()).strip()


def test_a_table_keeps_its_columns_whatever_stands_in_them() -> None:
    table = Table(("image", "class"), tuple((name, name) for name in HOSTILE))
    content = Content("caption", (table,), (), (), (), {})
    html = rendered(markdown(Report("name", "Title", content, (), (), 0)))
    assert html.count("<tr>") == len(HOSTILE) + 1
    assert html.count("<td>") == 2 * len(HOSTILE)
    assert not re.findall(r"<(?:a|b|script|img|em|strong|del|blockquote)\b", html)


def test_numbers_names_and_commands_stay_readable() -> None:
    for text in (
        "91.34 ± 0.27 (3) ᵃ",
        "+0.26 [-1.50, +2.03] (3)",
        "test_map_50 of voc07",
        "`affsup sweep table3` trains",
    ):
        assert markdown_text(text) == text
