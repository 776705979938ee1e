"""A hook of MkDocs: pages from outside docs/, and links between files as links between pages.

A link in a Markdown file is a path from that file to another file of the repository, so that it
works where the repository is browsed. `mkdocs.yml` names the pages that lie outside docs/.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
TARGET = re.compile(r"(?<=\]\()(?!\w+:|#)[^)#\s]+")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files that `extra.mounted` names."""
    for page, source in config.extra["mounted"].items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns the page with each link to a file of the repository turned into one to its page.

    A link to a file that is no page stays as it is: MkDocs then refuses it.
    """
    mounted: dict[str, str] = config.extra["mounted"]
    pages = {source: name for name, source in mounted.items()}
    uri = page.file.src_uri
    folder = posixpath.dirname(mounted.get(uri, f"docs/{uri}"))

    def to_page(found: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(folder, found[0]))
        target = pages.get(path, path.removeprefix("docs/"))
        return posixpath.relpath(target, posixpath.dirname(uri) or ".")

    return TARGET.sub(to_page, markdown)
