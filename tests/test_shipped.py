"""Shipped files are found by name, and a file is imported once by whatever path."""

import sys

import pytest

from speechlm_jax import shipped
from speechlm_jax.errors import UserError


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A tree of shipped files, and another folder to stand in."""
    (tmp_path / "top/tasks").mkdir(parents=True)
    (tmp_path / "top/configs").mkdir()
    (tmp_path / "top/tasks/quickstart.py").write_text("LOADS = []\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(shipped, "root", lambda: tmp_path / "top")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def test_the_real_root_holds_what_ships():
    assert (shipped.root() / "speechlm_jax").is_dir() or shipped.root().name == "_shipped"
    assert all(shipped.find(name).is_file() for name in shipped.names())


def test_find_prefers_the_users_file(checkout):
    assert shipped.find("tasks/quickstart.py") == checkout / "top/tasks/quickstart.py"
    (checkout / "elsewhere/tasks").mkdir()
    (checkout / "elsewhere/tasks/quickstart.py").touch()
    assert shipped.find("tasks/quickstart.py").resolve() == (
        checkout / "elsewhere/tasks/quickstart.py"
    )


def test_find_names_the_nearest(checkout):
    with pytest.raises(UserError, match="did you mean 'tasks/quickstart.py'"):
        shipped.find("tasks/quikstart.py")
    with pytest.raises(UserError, match="these ship: tasks/quickstart.py"):
        shipped.find("zzz")


def test_a_file_is_imported_once(checkout):
    module = shipped.import_file("tasks/quickstart.py")
    module.LOADS.append(1)
    again = shipped.import_module(str(checkout / "top/tasks/../tasks/quickstart.py"))
    assert again is module and again.LOADS == [1]
    assert "quickstart" not in sys.modules and "tasks.quickstart" not in sys.modules


def test_a_file_that_fails_leaves_no_half_module(checkout):
    path = checkout / "broken.py"
    path.write_text("raise ValueError\n")
    before = set(sys.modules)
    with pytest.raises(UserError, match=r"broken.py: ValueError \(broken.py:1\)"):
        shipped.import_file(path)
    assert set(sys.modules) == before
