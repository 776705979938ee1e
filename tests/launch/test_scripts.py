"""The scripts and the page that describes them."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
ENTRIES = [
    LAUNCH / "run",
    LAUNCH / "slice",
    LAUNCH / "gke/submit",
    LAUNCH / "train.sh",
    *sorted({*LAUNCH.glob("worker/*.sh")} - {LAUNCH / "worker/kept.sh"}),
]
WORDS = ["plain", "two words", "it's", 'a "b"', "$HOME `id` \\ *", "", "a='b c'", "new\nline"]


def test_shellcheck_is_content():
    beside = Path(sys.executable).with_name("shellcheck")  # the extra `dev` brings it
    shellcheck = beside if beside.exists() else shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        [shellcheck, "-x", "-a", *ENTRIES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_library_is_sourced_by_an_entry():
    sourced = set(re.findall(r"lib/\w+\.sh", "".join(path.read_text() for path in ENTRIES)))
    sourced |= set(re.findall(r"lib/\w+\.sh", (LAUNCH / "lib/shell.sh").read_text()))
    assert sourced == {f"lib/{path.name}" for path in LAUNCH.glob("lib/*.sh")}


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.name)
def test_an_entry_can_be_run_and_stops_at_the_first_failure(path):
    assert os.access(path, os.X_OK)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text


@pytest.mark.parametrize("path", [*ENTRIES, *LAUNCH.glob("lib/*.sh")], ids=lambda path: path.name)
def test_functions_are_short_and_lines_too(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 110
    starts = [number for number, line in enumerate(lines) if re.match(r"\w+\(\) \{$", line)]
    for start in starts:
        assert lines.index("}", start) - start <= 30, lines[start]


def test_quoted_words_are_read_back_by_a_shell():
    script = '. launch/lib/words.sh; quoted "$@"'
    line = subprocess.run(
        ["bash", "-c", script, "-", *WORDS], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    again = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True
    ).stdout
    assert again.split("\0")[:-1] == WORDS


@pytest.mark.parametrize(
    ("name", "library"), [("settings", "slice_settings"), ("gke/settings", "gke_settings")]
)
def test_the_example_names_every_setting(name, library):
    example = (LAUNCH / f"{name}.example").read_text(encoding="utf-8")
    script = f". launch/lib/shell.sh; . launch/lib/settings.sh; . launch/lib/{library}.sh"
    script += '; printf "%s\\n" "$settings_file" "${SETTINGS[@]}"'
    file, *known = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert file == f"launch/{name}"
    assert f"/{file}\n" in (ROOT / ".gitignore").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^(\w+)=", example, re.M)) == sorted(known)


VERSIONS = [("3 2 57", 2), ("4 3 48", 2), ("4 4 20", 0), ("5 0 17", 0)]


@pytest.mark.parametrize(("version", "code"), VERSIONS)
def test_an_old_bash_is_refused_in_one_line(version, code):
    """BASH_VERSINFO itself cannot be set."""
    text = (LAUNCH / "lib/bash.sh").read_text(encoding="utf-8")
    text = text.replace("BASH_VERSINFO", "PRETENDED").replace("BASH_VERSION", "PRETENDED")
    done = subprocess.run(
        ["bash", "-c", f"PRETENDED=({version}); {text}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert done.stderr.count("bash 4.4 or newer is needed") == done.stderr.count("\n") == code // 2


def test_an_old_bash_gets_as_far_as_the_refusal():
    """The check itself is POSIX shell, and comes before every other file that is sourced."""
    subprocess.run(["sh", "-n", LAUNCH / "lib/bash.sh"], check=True)
    for entry in ("run", "slice", "gke/submit"):
        text = (LAUNCH / entry).read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert lines[0] == "set -euo pipefail"
        assert re.fullmatch(r'cd "\$\(dirname "\$0"\)/[./]+"', lines[1])
        assert lines[2] == ". launch/lib/bash.sh"


def test_every_command_of_the_page_is_known(stand_ins):
    """Every gcloud, kubectl and xpk command of the README, with each of its flags."""
    text = (LAUNCH / "README.md").read_text(encoding="utf-8")
    text += "".join(path.read_text(encoding="utf-8") for path in LAUNCH.glob("gke/*"))
    commands = re.findall(r"^(?: {4}|#   )((?:gcloud|kubectl|xpk) .*(?:(?<=\\)\n.*)*)", text, re.M)
    assert len(commands) >= 10
    for command in commands:
        tool, *words = shlex.split(re.sub(r"\\\n#? *", " ", command), comments=True)
        stand_ins.known(tool, words)


def test_scripts_that_the_page_names_exist():
    text = (LAUNCH / "README.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"launch/([\w/.]*\w)", text)) - {"settings", "gke/settings"}:
        assert (LAUNCH / name).exists(), name


SETTINGS_FILE = """
# a comment
runtime = two words   # another
results=back #3
modules= my lab.py , other.py
\tbucket=gs://a#b
restarts=7\r
"""


def test_a_setting_keeps_its_blanks_and_its_hashes(tmp_path):
    (tmp_path / "settings").write_text(SETTINGS_FILE, newline="")
    script = """
      . launch/lib/shell.sh; . launch/lib/settings.sh; . launch/lib/slice_settings.sh
      read_settings "$1"; printf '<%s>' "$runtime" "$results" "$modules" "$bucket" "$restarts" """
    done = subprocess.run(
        ["bash", "-euc", script, "-", tmp_path / "settings"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "<two words><back><my lab.py , other.py><gs://a#b><7>"


def test_modules_with_blanks_travel(cloud):
    for name in ("my lab.py", "other.py"):
        (cloud.tree / name).touch()
    done = cloud.launch("slice", "--dry-run", "modules=my lab.py, other.py", "sync")
    packed = next(line for line in done.stdout.splitlines() if line.startswith("tar "))
    assert ["my lab.py", "-C"] == shlex.split(packed)[shlex.split(packed).index("my lab.py") :][:2]
    missing = cloud.launch("slice", "--dry-run", "modules=my lab.py,no such.py", "sync", code=2)
    assert missing.stderr == "launch: modules: there is no no such.py\n"
