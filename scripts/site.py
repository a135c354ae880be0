"""What mkdocs.yml leaves to Python: pages from outside of docs/, links to them, and the folders of the navigation.

Pages are written for people who read them in a checkout. The site has the README as its first page, CONTRIBUTING.md,
CHANGELOG.md and each example of a config besides, and links to these lead to where they lie in the site.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from loraft.version import __version__

ROOT = Path(__file__).parent.parent
PLACES = {"README.md": "index.md", "configs": "configs/index.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
"""Where what lies outside of docs/ is found in the site."""
PLACES |= {name: name for name in ("CHANGELOG.md", "SECURITY.md", "constraints.txt")}
PLACES |= {f"configs/{path.name}": f"configs/{path.stem}.md" for path in sorted((ROOT / "configs").glob("*.yaml"))}


def on_config(config: Any) -> Any:
    """Names the version, and gives each folder of the navigation its pages: those that are named, then the others."""
    config.site_name = f"loraft {__version__}"
    for section in config.nav:
        for title, pages in section.items():
            if isinstance(pages, list):
                section[title] = [page for name in pages for page in ([name] if name[-1] != "/" else rest(name, pages))]
    return config


def rest(folder: str, named: list[str]) -> list[str]:
    """The pages of a folder of the site that a section does not name."""
    inside = [f"{folder}{path.name}" for path in sorted((ROOT / "docs" / folder).glob("*.md"))]
    made = [place for place in PLACES.values() if place.startswith(folder)]
    return [page for page in inside + made if page not in named]


def on_files(files: Any, config: Any) -> Any:
    """Adds what lies outside of docs/."""
    for name, place in PLACES.items():
        files.append(File.generated(config, place, content=as_page(ROOT / name)))
    return files


def as_page(path: Path) -> str:
    """The text of a file, of a config as a page that shows it, of the folder of configs as a list."""
    if path.is_dir():
        names = [name.partition("/")[2] for name in PLACES if name.startswith("configs/")]
        lines = [f"- [{name}](../configs/{name}): {first_sentence(path / name)}" for name in names]
        return "# Examples of configs\n\n" + "\n".join(lines) + "\n"
    text = path.read_text(encoding="utf-8")
    return text if path.suffix != ".yaml" else f"# {path.name}\n\n```yaml\n{text}```\n"


def first_sentence(config: Path) -> str:
    """What a config says of itself first."""
    comment = re.match(r"(?:#.*\n)+", config.read_text(encoding="utf-8"))
    assert comment, f"{config} begins with no comment"
    return re.split(r"(?<=[.?])\s(?=[A-Z])", re.sub(r"\s*#\s?", " ", comment[0]).strip())[0]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links of the checkout into links of the site, and bars that a table escapes inside code into bars.

    The first page stands alone in its section, and has no list of that beside it.
    """
    place = page.file.src_uri
    if place == "index.md":
        page.meta["hide"] = ["navigation"]
    lies = next((name for name, made in PLACES.items() if made == place), f"docs/{place}")
    lies = "configs/" if lies == "configs" else lies

    def moved(link: re.Match[str]) -> str:
        target, mark, anchor = link[1].partition("#")
        if "://" in target or not target:
            return link[0]
        file = os.path.normpath(os.path.join(os.path.dirname(lies), target))
        there = PLACES.get(file, file.removeprefix("docs/"))
        return f"]({os.path.relpath(there, os.path.dirname(place) or '.')}{mark}{anchor})"

    markdown = re.sub(r"\]\(([^)\s]+)\)", moved, markdown)
    rows = (re.sub(r"`[^`]+`", unescaped, line) if line.startswith("|") else line for line in markdown.split("\n"))
    return "\n".join(rows)


def unescaped(code: re.Match[str]) -> str:
    """Code in a table, as it is read on the site."""
    return code[0].replace(r"\|", "|")
