"""The documentation as a site: every page is in it, no link leads nowhere, and a browser fetches nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def linked(page: Path) -> set[str]:
    """The pages that the text of a page links."""
    article = re.findall(r"<article.*?</article>", page.read_text(), re.DOTALL)[0]
    return {(page.parent / name).resolve().name for name in re.findall(r'href="([^"#:]+\.html)', article)}


@pytest.mark.slow
def test_every_page_and_every_config_is_there(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    pages += [path.relative_to(ROOT) for path in (ROOT / "configs").glob("*.yaml")]
    assert [page for page in pages if not (site / page.with_suffix(".html")).is_file()] == []


@pytest.mark.slow
def test_links_out_of_the_folder_lead_to_pages_of_the_site(site: Path) -> None:
    assert {"training.html", "config.html", "quickstart.html", "CHANGELOG.html"} <= linked(site / "index.html")
    assert {"data-sources.html", "translating.html"} <= linked(site / "guides/data.html")
    assert "CONTRIBUTING.html" in linked(site / "architecture.html")
    assert {path.with_suffix(".html").name for path in (ROOT / "configs").glob("*.yaml")} <= linked(
        site / "configs/index.html"
    )


@pytest.mark.slow
def test_a_bar_in_a_table_is_a_bar(site: Path) -> None:
    page = (site / "config.html").read_text()
    assert "&lt;|im_end|&gt;" in page
    assert r"\|" not in page


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^\s>]+")
    assert [found for page in site.rglob("*.html") for found in fetched.findall(page.read_text())] == []
    styles = [path for path in site.rglob("*.css") if re.search(r"(?:url\(|@import)[\s\"']*https?:", path.read_text())]
    assert styles == []
