"""The docs: every page is in the site, every link leads somewhere, generated blocks are current."""

import ast
import importlib.util
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
MOUNTED = {ROOT / source: page for page, source in SITE["extra"]["mounted"].items()}
PAGES = sorted([*MOUNTED, *(ROOT / "docs").rglob("*.md")])
REFERENCE = [*sorted((ROOT / "docs/reference").glob("*.md")), ROOT / "docs/architecture.md"]


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs/make_reference.py"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def listed(nav: Any) -> Iterator[str]:
    """The pages of `nav`, at any depth."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from listed(part)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|^ {4}.*?$|`[^`\n]*`", "", text, flags=re.M | re.S)


def test_the_site_lists_every_page_once_in_four_groups():
    found = [MOUNTED.get(page) or page.relative_to(ROOT / "docs").as_posix() for page in PAGES]
    assert sorted(listed(SITE["nav"])) == sorted(found)
    groups = [name for part in SITE["nav"] for name in part]
    assert groups == ["Home", "Tutorial", "How-to", "Reference", "Explanation"]


def test_pages_outside_docs_are_in_the_site_too():
    readmes = {ROOT / f"{folder}/README.md" for folder in ("tasks", "launch", "benchmarks")}
    assert readmes | {*ROOT.glob("*.md")} == {*MOUNTED}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files_of_the_repository(page):
    """So they work where the repository is browsed; the site's own links follow from them."""
    text = without_code(page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text)
    assert not [target for target in targets if not (page.parent / target).is_file()]


@pytest.mark.parametrize("page", REFERENCE, ids=named)
def test_generated_blocks_are_what_the_code_gives(page, reference):
    text = page.read_text(encoding="utf-8")
    assert reference["updated"](text) == text, "run `python docs/make_reference.py`"


def test_the_reference_has_every_command_every_option_and_every_field(reference):
    """Against a help and a class that were read by hand."""
    commands, configs = reference["block"]("commands"), reference["block"]("configs")
    assert "\n## speechlm plan\n" in commands and "| `--topology" in commands
    assert commands.count("`--log-json`") == 1, "options of every command stand once"
    assert "(default: ~/.cache/speechlm_jax/plans)" in commands, "nothing of this machine"
    assert "\n## ExecutionConfig\n" in configs and "`model.transformer.execution`" in configs
    assert "| `batch_size` | whole number | `8` | rows a step, over all hosts. |" in configs


def test_a_command_of_commands_is_shown_with_them(reference):
    options = reference["options"]
    subparsers = options.Parser(prog="speechlm").add_subparsers()
    whole = {
        "run": print,
        "details": "Details.\n  one  1\n  two  2\nMore.",
        "example": "speechlm train now",
    }
    parser = options.add_command(subparsers, "train", **whole)
    parser.add_argument_group("Hosts", "on each").add_argument("--host", metavar="I", help="which")
    inner = parser.add_subparsers().add_parser("now", description="At *once*, x | y.")
    inner.add_argument("--why", choices=("a", "b"), help="100%% of a_b")
    lines = "\n".join(reference["section"](parser, heading="##"))
    assert "\n## speechlm train\n" in lines and "\nspeechlm train now\n" in lines
    assert "Details.\n\n```\none  1\ntwo  2\n```\n\nMore.\n" in lines, "a list stays a list"
    assert "\nHosts: on each:\n\n| argument | meaning |\n| --- | --- |\n| `--host I`" in lines
    assert "\n### speechlm train now\n" in lines and r"At \*once\*, x &#124; y." in lines
    assert reference["markdown"]("`a|b` <c>") == "<code>a&#124;b</code> &lt;c>"
    assert "| `--why {a,b}` | 100% of a_b |" in lines and "--quiet" not in lines


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_in_a_page_imports_what_there_is(page):
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("speechlm_jax"):
                missing = {alias.name for alias in node.names} - given(str(node.module))
                assert not missing, f"from {node.module} import"


def given(module: str) -> set[str]:
    """The names that a module or a package gives, without importing it: some bring TensorFlow."""
    path = ROOT / module.replace(".", "/")
    if path.is_dir():
        return {file.stem for file in path.glob("*")}
    body = ast.parse(path.with_suffix(".py").read_bytes()).body
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
    return names


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="`make docs` installs MkDocs")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'href="tutorial/"' in home and 'src="images/report.png"' in home
