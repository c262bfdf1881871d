"""What is said of the project in several files agrees."""

import re
import tomllib

import yaml

import unlearn_metrics
from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_version_license_authors_and_repository_are_the_same_everywhere():
    assert PROJECT["version"] == unlearn_metrics.__version__ == CITATION["version"]
    assert PROJECT["license"] == CITATION["license"]
    assert [author["name"] for author in PROJECT["authors"]] == [author["name"] for author in CITATION["authors"]]
    assert PROJECT["urls"]["Homepage"] == CITATION["repository-code"]
    assert all(url.startswith(CITATION["repository-code"]) for url in PROJECT["urls"].values())


def test_the_changelog_has_the_version():
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert unlearn_metrics.__version__ in versions
