"""main(): exit codes, one line per user error, logs, the user's modules."""

import dataclasses
import errno
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
from speechlm_jax.errors import EXIT_USAGE, Stopped, UserError

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
        (["stub", "--seed", "one"], "invalid int value: 'one'"),
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


def test_a_missing_import_inside_a_users_module_is_not_hidden(stub, tmp_path, monkeypatch):
    (tmp_path / "my_broken_tasks.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    stub(lambda args: 0)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        cli.main(["stub", "--module", "my_broken_tasks"])


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
