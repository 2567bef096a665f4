import os

import pytest

from hhh_jax.atomic import new_path
from hhh_jax.errors import UserError


def test_a_file_or_folder_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with new_path(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.parent == tmp_path
    with new_path(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "a").write_text("1")
        assert not (tmp_path / "folder").exists()
    assert path.read_text() == "new" and (tmp_path / "folder" / "a").read_text() == "1"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError), new_path(path) as partial:
        partial.write_text("new")
        raise KeyError
    for error in (OSError(28, "No space left on device"), RuntimeError("write() failed")):
        message = f"cannot write {path}: .*(No space left|failed).*; mend that and give the same command to go on"
        with pytest.raises(UserError, match=message), new_path(path) as partial:
            partial.mkdir()
            (partial / "a").write_text("new")
            raise error
    absent = tmp_path / "absent" / "file"
    with pytest.raises(UserError, match=f"cannot write {absent}: No such file"), new_path(absent) as partial:
        partial.write_text("new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_two_that_write_the_same_do_not_meet(tmp_path):
    with new_path(tmp_path / "file") as one, new_path(tmp_path / "file") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "file").read_text() == "one"  # the outer one ends last
