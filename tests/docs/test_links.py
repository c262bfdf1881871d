"""Links of the pages lead somewhere: to a file of the tree and a heading in it."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
OURS = "unlearn-metrics/unlearn-metrics"
REPOSITORY = re.compile(rf"https://(?:github\.com/{OURS}/(?:blob|tree)|raw\.githubusercontent\.com/{OURS})/main/")
URL = re.compile(r"[a-z]+:")


def tokens(path: Path) -> list[Token]:
    top = MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8"))
    return [token for block in top for token in (block, *(block.children or ()))]


def links(path: Path) -> list[str]:
    found = [t.attrs.get("href") or t.attrs.get("src") for t in tokens(path) if t.type in ("link_open", "image")]
    return [str(link) for link in found]


def anchors(path: Path) -> set[str]:
    """The headings' names in links, as GitHub and the site make them."""
    parsed = tokens(path)
    headings = [parsed[i + 1].content for i, token in enumerate(parsed) if token.type == "heading_open"]
    plain = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def dead(path: Path, link: str) -> bool:
    """Whether a link of a page has no target. Pages elsewhere on the web are not visited."""
    if inside := REPOSITORY.match(link):
        link, path = link[inside.end() :], ROOT / "README.md"
    elif URL.match(link):
        return False
    name, _, heading = unquote(link).partition("#")
    target = path.parent / name if name else path
    if not target.exists():
        return True
    return bool(heading) and heading not in anchors(target)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_of_a_page_lead_somewhere(page):
    assert [link for link in links(page) if dead(page, link)] == []


def test_a_dead_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One `two`, three\n[a](#one-two-three) [b](#two) [c](none.md) [d](page.md) [e](https://a.b/c)\n")
    assert [link for link in links(page) if dead(page, link)] == ["#two", "none.md"]


def test_the_readme_links_as_a_package_index_needs_it():
    """An index shows the README without the tree beside it."""
    assert [link for link in links(ROOT / "README.md") if not URL.match(link)] == []
