"""main(): exit codes, one line per user error, logs, the user's modules."""

import argparse
import dataclasses
import errno
import io
import json
import logging
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from speechlm_jax import config as configs
from speechlm_jax.cli import main as cli
from speechlm_jax.cli import options
from speechlm_jax.errors import EXIT_NO_READER, EXIT_USAGE, Stopped, UserError

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class _Config:
    total_steps: int = 10


def _raise(error: BaseException) -> Callable[..., int]:
    def run(args):
        raise error

    return run


@pytest.fixture
def stub(monkeypatch) -> Iterator[Callable[[Callable[..., int]], None]]:
    """Adds a sub-command `stub` whose run() is the given function."""

    def install(run: Callable[..., int]) -> None:
        def add_parser(subparsers):
            parser = options.add_command(
                subparsers, "stub", run=run, details="Details.", example="speechlm stub a b"
            )
            parser.add_argument("things", nargs="*")
            parser.set_defaults(more="things")
            options.add_seed(parser)

        module = types.ModuleType("speechlm_jax.cli.stub")
        module.add_parser = add_parser
        monkeypatch.setitem(options.COMMANDS, "stub", "does nothing")
        monkeypatch.setitem(sys.modules, "speechlm_jax.cli.stub", module)

    root, ours = logging.getLogger(), logging.getLogger("speechlm")
    before = root.handlers[:], root.level, ours.level
    yield install
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a.wav: is empty; record it again"), 2, "a.wav: is empty; record it again"),
        (Stopped(), 75, "saved"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_exception_becomes_one_line_and_an_exit_code(stub, capsys, error, code, line):
    stub(_raise(error))
    assert cli.main(["stub"]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("speechlm: ") and line in err
    assert err.count("\n") == 1


def test_a_bug_of_ours_keeps_its_traceback(stub):
    stub(_raise(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["stub"])


def test_the_return_value_is_the_exit_code_and_the_result_is_json(stub, capsys):
    stub(lambda args: options.show({"seed": args.seed, "path": Path("a/b")}))
    assert cli.main(["stub", "--seed", "3"]) == 0
    assert json.loads(capsys.readouterr().out) == {"seed": 3, "path": "a/b"}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["tarin"], "did you mean 'train'?"),
        ([], "COMMAND"),
        (["stub", "--sede", "1"], "--sede"),
        (["stub", "--seed", "one"], "'one' is no whole number from 0 to 4294967295"),
        (["stub", "--quiet", "--verbose"], "not allowed with"),
    ],
)
def test_a_wrong_command_line_is_a_user_error(stub, capsys, argv, expected):
    stub(lambda args: 0)
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("speechlm: error: ") and expected in err and err.count("\n") == 1


def test_an_unknown_config_field_names_the_nearest(stub, capsys):
    stub(lambda args: options.show(configs.override(_Config(), args.things)))
    assert cli.main(["stub", "total_step=3"]) == 2
    assert "did you mean 'total_steps'?" in capsys.readouterr().err
    assert cli.main(["stub", "total_steps=3"]) == 0
    assert json.loads(capsys.readouterr().out)["total_steps"] == 3


def test_arguments_of_a_list_may_stand_on_both_sides_of_an_option(stub, capsys):
    stub(lambda args: options.show({"things": args.things}))
    assert cli.main(["stub", "a", "--seed", "1", "b", "c"]) == 0
    assert json.loads(capsys.readouterr().out) == {"things": ["a", "b", "c"]}


def test_module_imports_registrations_from_anywhere(stub, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_lab_for_this_test").mkdir()
    (tmp_path / "my_lab_for_this_test/tasks.py").write_text('RESULT = {"loaded": 1}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    stub(lambda args: options.show(vars(sys.modules["my_lab_for_this_test.tasks"]).get("RESULT")))
    assert cli.main(["stub", "--module", "my_lab_for_this_test.tasks"]) == 0
    assert json.loads(capsys.readouterr().out) == {"loaded": 1}
    assert cli.main(["stub", "--module", "my_lab_for_this_test.task"]) == 2
    assert "--module my_lab_for_this_test.task" in capsys.readouterr().err
    assert cli.main(["stub", "--module", "absent/tasks.py"]) == 2
    assert "absent/tasks.py: no such file" in capsys.readouterr().err


def test_a_missing_import_inside_a_users_module_is_not_hidden(stub, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_broken_tasks.py").write_text("\nimport a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    stub(lambda args: 0)
    assert cli.main(["stub", "--module", "my_broken_tasks"]) == 2
    told = capsys.readouterr().err
    assert "a_package_that_is_not_there" in told and "(my_broken_tasks.py:2)" in told


def test_logs_are_text_or_json_and_obey_quiet(stub, capsys):
    def run(args):
        logging.getLogger("speechlm.train").info("step %d", 5, extra={"loss": 0.5})
        logging.getLogger("another.package").info("chatter")
        return 0

    stub(run)
    assert cli.main(["stub"]) == 0
    assert capsys.readouterr().err.rstrip().endswith("step 5")
    assert cli.main(["stub", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert cli.main(["stub", "--log-json"]) == 0
    record = json.loads(capsys.readouterr().err)
    assert (record["level"], record["message"], record["loss"]) == ("info", "step 5", 0.5)


def test_with_json_logs_an_error_is_json_too(stub, capsys):
    stub(_raise(UserError("a.wav: is empty")))
    assert cli.main(["stub", "--log-json"]) == 2
    record = json.loads(capsys.readouterr().err)
    assert (record["level"], record["message"]) == ("error", "a.wav: is empty")


def test_help_and_mistakes_need_no_jax():
    code = (
        "import sys\n"
        "from speechlm_jax.cli import main\n"
        "assert main.main(['no-such-command']) == 2\n"
        "try: main.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'jax', 'numpy', 'tensorflow', 'flax'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in options.COMMANDS)


def test_a_missing_extra_is_named():
    code = (
        "import sys\n"
        "sys.modules['safetensors'] = None\n"
        "from speechlm_jax.cli import main\n"
        "sys.exit(main.main(['convert', 'here']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "safetensors is not installed; `pip install -e '.[hf]'`" in done.stderr


def test_the_console_script_starts_once_more_with_large_pages(tmp_path):
    """As `speechlm` and as a module; what a user has set stays."""
    code = (
        "import os, sys, speechlm_jax.cli.main as m\n"
        "m.main = lambda: print(os.environ.get(m.MALLOC), sys.argv[1:])\n"
        "m.entry()"
    )
    script = tmp_path / "speechlm"
    script.write_text(code, encoding="utf-8")
    clean = {key: value for key, value in os.environ.items() if key != cli.MALLOC}
    for given, wanted in ({}, "glibc.malloc.hugetlb=1"), ({cli.MALLOC: "x=1"}, "x=1"):
        done = subprocess.run(
            [sys.executable, script, "a", "b c"], env=clean | given, capture_output=True, text=True
        )
        expected = wanted if sys.platform == "linux" else given.get(cli.MALLOC)
        assert done.stdout == f"{expected} ['a', 'b c']\n", done.stderr


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/rows")

    monkeypatch.setattr(cli, "parse", full)
    assert cli.main([]) == EXIT_USAGE
    told = "runs/rows: No space left on device; make room, then run it again"
    assert capsys.readouterr().err == f"speechlm: error: {told}\n"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), "a/b: No such file"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a/b"), "a/b: Is a directory; give a"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied; al"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), "File name too long; give"),
        (OSError(errno.EIO, "Input/output error", "a\nb\udcff"), r"a\nb\udcff: Input/output error"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_the_files_name(stub, capsys, kind, told):
    stub(_raise(kind))
    assert cli.main(["stub"]) == EXIT_USAGE
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1 and len(err) < 1100
    assert cli.main(["stub", "--verbose"]) == EXIT_USAGE
    assert "Traceback" in capsys.readouterr().err


def test_a_system_error_without_a_file_is_a_bug_of_ours(stub):
    stub(_raise(OSError(errno.EBADF, "Bad file descriptor")))
    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main(["stub"])


@pytest.mark.parametrize(
    "argv", [["stub", "\udcff"], ["stub", "--module", "a\udcff.py"], ["\udcff"]]
)
def test_an_argument_that_is_not_utf8_is_one_line(stub, capsys, argv):
    stub(lambda args: 0)
    assert cli.main(argv) == EXIT_USAGE
    err = capsys.readouterr().err
    assert r"\udcff" in err and "is not UTF-8" in err and err.count("\n") == 1


def test_a_result_that_the_terminal_cannot_write_is_json_all_the_same(stub, monkeypatch):
    said = {"text": "caf\u00e9", "half": "\ud800"}
    stub(lambda args: options.show(said))
    for encoding in ("ascii", "latin-1", "utf-8"):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
        assert cli.main(["stub"]) == 0
        assert json.loads(written.getvalue().decode(encoding)) == said


@pytest.mark.parametrize("what", [["--help"], ["plan", "--help"], ["--version"]])
def test_a_reader_that_has_gone_is_no_error(what):
    read, write = os.pipe()
    os.close(read)
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-m", "speechlm_jax.cli.main", *what],
        cwd=ROOT, env=buffered, stdout=write, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (EXIT_NO_READER, "")


@pytest.mark.parametrize("seed", ["-1", "4294967296", "1.5", "nan", "9" * 5000, "\u0663"])
def test_a_seed_is_a_number_that_jax_tells_from_others(stub, capsys, seed):
    stub(lambda args: 0)
    assert cli.main(["stub", "--seed", seed]) == EXIT_USAGE
    assert "is no whole number from 0 to 4294967295" in capsys.readouterr().err


def test_a_path_may_begin_with_the_users_folder_and_is_not_empty(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert options.place("~/a b.wav") == Path("/home/ann/a b.wav")
    with pytest.raises(argparse.ArgumentTypeError, match="is empty"):
        options.place("")


MODULE = 'RESULT = {"loaded": 1}\n'


@pytest.mark.parametrize(
    "name", ["my lab.py", " my lab .py", "json.py", "1-lab.py", "a/my lab.py", "~/my lab.py",
             "./json.py", "a.b.py"],
)  # fmt: skip
def test_a_module_file_has_any_name(stub, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = Path(name).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MODULE)
    before = set(sys.modules)
    stub(lambda args: 0)
    assert cli.main(["stub", "--module", name]) == 0, capsys.readouterr().err
    (key,) = (key for key in set(sys.modules) - before if key.startswith("_speechlm_"))
    assert sys.modules[key].RESULT == {"loaded": 1}
    assert cli.main(["stub", f"--module={path.resolve()}"]) == 0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("json", "is a module of Python; for a file give json.py"),
        ("my_folder", "is a folder; name a module in it, e.g. my_folder.tasks"),
        ("my_folder.inner", "is a folder; name a module in it, e.g. my_folder.inner.tasks"),
        ("my_folder/", "is a folder; give a file in it"),
        (".", "is a folder; give a file in it"),
        ("no.such.thing", "no module 'no'"),
        ("no such.py", "no such.py: no such file"),
        ("", "no such file, and no module is called so"),
        ("notes.txt", "is not a Python file"),
        ("numpy", "for the one here give its file, numpy.py"),
        ("x" * 5000 + ".py", "no such file"),
    ],
)
def test_a_module_that_is_none_is_one_line(stub, tmp_path, monkeypatch, capsys, name, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "my_folder/inner").mkdir(parents=True)
    for file in ("json.py", "numpy.py", "notes.txt"):
        (tmp_path / file).touch()
    stub(lambda args: 0)
    assert cli.main(["stub", "--module", name]) == EXIT_USAGE
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = (\n", "SyntaxError: '(' was never closed (bad.py:1)"),
        ("\nx = y\n", "NameError: name 'y' is not defined (bad.py:2)"),
        ("def f():\n    return {}['a']\nf()\n", "KeyError: 'a' (bad.py:2)"),
        ("raise SystemExit(3)\n", "ends the process"),
        ("import sys\nsys.setrecursionlimit(200)\ndef f(): f()\nf()\n", "RecursionError"),
        ("\x00", "null bytes"),
    ],
)
def test_what_fails_inside_a_module_is_named_with_its_line(
    stub, tmp_path, monkeypatch, capsys, text, told
):
    monkeypatch.chdir(tmp_path)
    limit = sys.getrecursionlimit()
    (tmp_path / "bad.py").write_text(text)
    stub(lambda args: 0)
    try:
        assert cli.main(["stub", "--module", "bad.py"]) == EXIT_USAGE
        err = capsys.readouterr().err
        assert err.startswith("speechlm: error: ") and err.count("\n") == 1
        assert "bad.py" in err and told in err
        assert cli.main(["stub", "--verbose", "--module", "bad.py"]) == EXIT_USAGE
        assert "Traceback" in capsys.readouterr().err or "exit" in text.lower()
    finally:
        sys.setrecursionlimit(limit)


def test_what_is_not_there_is_told_before_a_module_is_run(stub, tmp_path, monkeypatch, capsys):
    (tmp_path / "loud.py").write_text("raise AssertionError('it was run')\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["prepare", "a", "--module", "loud.py", "--run", "/nope"]) == EXIT_USAGE
    assert "/nope: holds no run" in capsys.readouterr().err
