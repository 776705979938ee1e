"""The house keeps its own rules: who imports whom, budgets, words, verbs, the README's tree."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "speechlm_jax"
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if any(path.glob("*.py")))
FILES = sorted(
    path
    for folder in ("speechlm_jax", "configs", "tasks", "launch")
    for path in (ROOT / folder).rglob("*.py")
)
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_bytes()) for path in FILES}

# A library is imported in its room and nowhere else, so that it can be replaced there.
LIBRARY_ROOMS = {
    "librosa": ("audio/",),
    "soundfile": ("audio/",),
    "soxr": ("audio/",),
    "espeakng_loader": ("audio/",),  # GPL-3, an extra
    "optax": ("train/", "speech_tokenizer/"),  # the tokenizer: optax.ctc_loss
    "orbax": ("train/checkpoints.py",),
    "grain": ("data/",),
    "array_record": ("data/",),
    "fsspec": ("bucket.py",),
    "pyarrow": ("data/parquet.py",),
    "seqio": ("data/tasks.py", "data/rates.py", "data/prepare.py"),
    "tensorflow": ("data/tasks.py", "data/prepare.py"),
    "tensorflow_datasets": ("data/tasks.py", "data/prepare.py"),
    "tensorboard": ("train/logs.py",),
    "sentencepiece": ("text.py",),
}
HEAVY = {"seqio", "tensorflow", "tensorflow_datasets", "tensorflow_text", "pyarrow"}

# The chain of `speechlm_jax.__doc__`, and the room where each verb is defined.
VERB_ROOMS = {
    "wav_to_mel": "audio",
    "mel_to_codes": "speech_tokenizer",
    "text_to_codes": "text_to_token",
    "codes_to_ids": "vocab.py",
    "document_to_interleaved": "interleave",
    "ids_to_logits": "lm",
    "codes_to_mel": "speech_decoder",
    "mel_to_wav": "audio",
    "wav_to_reply": "chat",
}


def test_rooms_import_downwards_only():
    # In a process of its own: the tool sets up logging for the whole process.
    call = "import sys, importlinter.cli as cli; sys.exit(cli.lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("library", LIBRARY_ROOMS)
def test_a_library_stays_in_its_room(library):
    rooms = tuple(f"speechlm_jax/{room}" for room in LIBRARY_ROOMS[library])
    strays = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        if name.startswith("speechlm_jax/") and not name.startswith(rooms)
        for node, imported in _imports(tree)
        if imported.split(".")[0] == library
    ]
    assert not strays


def test_library_imports_neither_configs_nor_tasks_nor_what_runs_code_from_data():
    refused = {"configs", "tasks", "launch", "tests", "pickle", "dill", "cloudpickle", "joblib"}
    strays = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        if name.startswith("speechlm_jax/")
        for node, imported in _imports(tree)
        if imported.split(".")[0] in refused
    ]
    assert not strays
    calls = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"eval", "exec"}
    ]
    assert not calls


def test_imports_stand_at_the_top_and_are_absolute():
    inner = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node, imported in _imports(function)
        if imported.split(".")[0] not in HEAVY
    ]
    assert not inner, "only TensorFlow and its like, and pyarrow, are imported inside functions"
    relative = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_budgets(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(TREES[path.relative_to(ROOT).as_posix()]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, f"{node.name}: line {node.lineno}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_opens_with_a_docstring_and_nothing_else(room):
    body = ast.parse((PACKAGE / room / "__init__.py").read_bytes()).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr)
    assert isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str)


def test_no_module_is_called_utils():
    assert not [name for name in TREES if Path(name).stem in {"utils", "helpers", "common", "misc"}]


def test_code_speaks_the_glossary():
    refused = _refused_words()
    assert {"n_q", "grad_accum", "noise_density"} <= refused, "the glossary's tables were not read"
    found = [
        f"{name}:{line}: {word}"
        for name, tree in TREES.items()
        for word, line in _names_given(tree)
        if word in refused
    ]
    assert not found


def test_the_chain_is_the_same_everywhere():
    chain = ast.get_docstring(TREES["speechlm_jax/__init__.py"])
    design = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for text in (chain, design):
        assert [verb for verb in re.findall(r"\b\w+_to_\w+\b", text) if verb in VERB_ROOMS] == [
            *VERB_ROOMS
        ]


@pytest.mark.parametrize("verb", VERB_ROOMS)
def test_a_verb_of_the_chain_is_defined_in_its_room(verb):
    room = VERB_ROOMS[verb]
    if not room.endswith(".py") and room not in ROOMS:
        pytest.skip(f"speechlm_jax/{room} is not written yet")
    defined = [
        name
        for name, tree in TREES.items()
        if name.startswith(f"speechlm_jax/{room}")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == verb
    ]
    assert defined, f"no function {verb} in speechlm_jax/{room}"


def test_readme_tree_lists_every_room():
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("README.md is not written yet")
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme.read_text(encoding="utf-8"), re.M | re.S)
    trees = [block for block in blocks if "speechlm_jax/" in block and "tests/" in block]
    assert len(trees) == 1, "README.md shows the file tree in one fenced block"
    paths = _tree_paths(trees[0])
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing, "the README's tree names what does not exist"
    modules = [path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"]
    unlisted = {*ROOMS, *modules} - {Path(path).stem for path in paths}
    assert not unlisted, "the README's tree leaves these out"


def _imports(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Every import below a node, with the module's full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node, node.module


def _names_given(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The names that a file gives: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def _refused_words() -> set[str]:
    """What stands in backticks in the column "never" of the glossary's tables."""
    words: set[str] = set()
    never = None
    for line in (ROOT / "docs/glossary.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            never = None
        elif "never" in cells:
            never = cells.index("never")
        elif never is not None and never < len(cells):
            words.update(re.findall(r"`(\w+)`", cells[never]))
    return words


def _tree_paths(block: str) -> list[str]:
    """The paths of a drawn tree, by indentation, with or without box-drawing lines.

    A line is `name` or `name/`, then two spaces and what it is for; `a | b` names two.
    """
    paths: list[str] = []
    parents: list[tuple[int, str]] = []
    for line in block.splitlines():
        match = re.match(r"^([\s│├└─|`-]*)([\w.][\w./-]*(?:(?: \| |, )[\w./-]+)*)", line)
        if not match:
            continue
        indent, names = len(match.group(1)), re.split(r" \| |, ", match.group(2))
        while parents and parents[-1][0] >= indent:
            parents.pop()
        prefix = "/".join(name for _, name in parents)
        paths += ["/".join(filter(None, (prefix, name.rstrip("/")))) for name in names]
        if names[-1].endswith("/"):
            parents.append((indent, names[-1].rstrip("/")))
    return paths
