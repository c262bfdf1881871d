"""The site is built without a warning, and loads nothing from elsewhere."""

import re
import subprocess
import sys

import pytest

from tests import ROOT

LOADS = re.compile(r"""(?:<(?:script|img|iframe|source)[^>]*\ssrc|<link[^>]*\shref)=["'](?:https?:)?//[^"']*""")
STYLE = re.compile(r"""(?:url\(|@import)\s*["']?(?:https?:)?//[^"')]*""")


@pytest.mark.slow
def test_the_site_is_built_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert len(pages) > 20
    assert {path.name: LOADS.findall(page) for path, page in pages.items() if LOADS.findall(page)} == {}
    styles = {path.name: STYLE.findall(path.read_text(encoding="utf-8")) for path in tmp_path.rglob("*.css")}
    assert {name: found for name, found in styles.items() if found} == {}


def test_what_loads_from_elsewhere_is_seen():
    assert LOADS.findall('<script defer src="https://cdn.example/a.js">') != []
    assert LOADS.findall("<link rel='stylesheet' href='//fonts.example/b.css'>") != []
    assert STYLE.findall("@import url(https://fonts.example/c)") != []
    assert LOADS.findall('<a href="https://example.org">') == []
