"""MkDocs hook: pages of the repository outside docs/, reports and benchmarks, become pages of the site.

Links between them and the pages of docs/ are written as paths in the repository, so that they work there too.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent.parent
SHOWN = (
    "benchmarks/README.md",
    *(f"{folder}/*.{kind}" for folder in ("reports", "benchmarks/results/*") for kind in ("md", "csv", "png")),
)
RENAMED = {"reports/README.md": "reports/results.md"}  # as index.html it would replace the one of `affsup report`
REPORTS_PAGE = "reports/index.html"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's pages, and what they show, under their paths in the repository."""
    for path in sorted(found for pattern in SHOWN for found in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, RENAMED.get(name, name), abs_src_path=str(path)))
    files.append(File.generated(config, REPORTS_PAGE, abs_src_path=str(ROOT / REPORTS_PAGE)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that are right in the repository into those that are right in the site."""
    if page.file.src_uri.startswith(("reports/", "benchmarks/")):
        markdown = markdown.replace("](../docs/", "](../")
    else:
        markdown = re.sub(r"\]\(\.\./((?:\.\./)*(?:reports|benchmarks)/)", r"](\1", markdown)
    return markdown.replace("reports/README.md", "reports/results.md")
