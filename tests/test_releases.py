"""What a version says of itself: the changelog, the citation, the forms for reports."""

import datetime
import re
from pathlib import Path

import pytest
import yaml

from diffusion import __version__

ROOT = Path(__file__).resolve().parents[1]
CHANGES = (ROOT / "docs/CHANGELOG.md").read_text()
VERSIONS = re.findall(r"^## \[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d{2}-\d{2})$", CHANGES, re.M)
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
FORMS = ROOT / ".github/ISSUE_TEMPLATE"


def test_the_changelog_has_the_form_of_keep_a_changelog():
    headings = re.findall(r"^## (.*)$", CHANGES, re.M)
    assert CHANGES.startswith("# Changelog\n") and headings[0] == "[Unreleased]"
    assert len(VERSIONS) == len(headings) - 1 >= 2
    assert VERSIONS == sorted(VERSIONS, key=lambda v: tuple(map(int, v[:3])), reverse=True)
    dates = [datetime.date.fromisoformat(v[3]) for v in VERSIONS]
    assert dates == sorted(dates, reverse=True)
    for part in re.split(r"^## .*$", CHANGES, flags=re.M)[1:]:
        kinds = re.findall(r"^### (.*)$", part, re.M)
        assert set(kinds) <= set(KINDS) and len(set(kinds)) == len(kinds), kinds
        for kind in re.split(r"^### ", part, flags=re.M)[1:]:
            assert re.search(r"^- ", kind, re.M), f"{kind.splitlines()[0]} has no entry"


def test_the_newest_version_of_the_changelog_is_the_packages():
    assert ".".join(VERSIONS[0][:3]) == __version__


def test_the_citation_is_of_this_version():
    """Required keys and types of CFF 1.2.0 (its guide to the schema); no DOI or address that does not exist."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys() and cited["cff-version"] == "1.2.0"
    known = {"cff-version", "message", "type", "title", "abstract", "authors", "version", "date-released", "license",
             "keywords"}  # fmt: skip
    assert cited.keys() <= known and cited["type"] == "software"
    project = (ROOT / "pyproject.toml").read_text()
    assert cited["version"] == __version__ and cited["date-released"] == VERSIONS[0][3]
    assert cited["license"] == re.search(r'^license = "(.*)"$', project, re.M)[1]
    assert cited["authors"] == [{"name": name} for name in re.findall(r'\{ name = "([^"]*)" \}', project)]
    assert cited["abstract"] == re.search(r'^description = "(.*)"$', project, re.M)[1]
    assert cited["keywords"] == re.findall(r'"(.*?)"', re.search(r"^keywords = \[(.*)\]$", project, re.M)[1])


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml"])
def test_issue_forms_are_valid(name):
    """As GitHub's syntax of issue forms has it: top-level keys, kinds of elements, unique ids and labels."""
    form = yaml.safe_load((FORMS / name).read_text())
    assert {"name", "description", "body"} <= form.keys() <= {"name", "description", "body", "labels", "title"}
    ids, labels = [e["id"] for e in form["body"]], [e["attributes"]["label"] for e in form["body"]]
    assert len(set(ids)) == len(ids) and len(set(labels)) == len(labels)
    for element in form["body"]:
        assert element["type"] in ("textarea", "input", "checkboxes", "dropdown")
        assert element.keys() <= {"type", "id", "attributes", "validations"}
        assert re.fullmatch(r"[\w-]+", element["id"])


def test_a_bug_report_asks_for_the_output_of_doctor():
    body = yaml.safe_load((FORMS / "bug.yml").read_text())["body"]
    (doctor,) = [e for e in body if e["id"] == "doctor"]
    assert "`diffusion doctor`" in doctor["attributes"]["label"] and doctor["validations"] == {"required": True}
    assert yaml.safe_load((FORMS / "config.yml").read_text()) == {"blank_issues_enabled": False}


def test_pages_for_reports_hold_no_address():
    """There is no public address yet; none is invented."""
    for path in (ROOT / "SECURITY.md", ROOT / "CITATION.cff", *sorted((ROOT / ".github").rglob("*.*"))):
        assert not re.search(r"https?://|@\w+\.\w|\bdoi:", path.read_text()), path
