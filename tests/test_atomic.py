import os
import re

import pytest

from hhh_jax.atomic import new_path, write_error
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
    for error in (OSError(27, "File too large"), RuntimeError("write() failed")):
        message = f"cannot write {path}: .*(too large|failed); mend that and give the same command again"
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


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / "file.0123abcd.tmp").mkdir()
    (tmp_path / "file2.0123abcd.tmp").write_text("of another")
    with new_path(tmp_path / "file", alone=True) as partial:
        partial.write_text("new")
    assert sorted(os.listdir(tmp_path)) == ["file", "file2.0123abcd.tmp"]


def test_a_full_disk_says_how_much_is_free(tmp_path):
    error = write_error(tmp_path / "not/yet/there", OSError(28, "No space left on device"))
    assert re.fullmatch(
        r"cannot write .*/there: No space left on device \([\d.]+ [GMK]iB free\); make room and .* again", str(error)
    )
