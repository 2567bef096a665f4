import itertools
from pathlib import Path

import pytest

from hhh_jax.data import stdlib
from hhh_jax.data.records import SPLITS
from hhh_jax.data.stdlib import Module
from hhh_jax.errors import UserError

SOURCE = '''"""A module about nothing, which is long enough.

It has two paragraphs of prose,
one of them on two lines.
"""

# A comment block outside of functions,
# on two lines.

CONSTANT = 1


class Thing:
    """A class that has a docstring of some length."""

    def method(self):
        """Do it, and say that it has been done."""
        # inside, so part of the function
        def inner():
            return "not a document of its own"

        return inner


if CONSTANT:
    async def wait(seconds):
        return await something(seconds, seconds)
'''


ROLES = {
    "abc.py": ("pretraining", "train"),
    "doctest.py": ("pretraining", "validation"),
    "enum.py": ("pretraining", "test"),
    "argparse.py": ("tasks", "train"),
    "functools.py": ("tasks", "validation"),
    "difflib.py": ("tasks", "test"),
    "email/charset.py": ("tasks", "test"),
}


def module(text=SOURCE, path="m.py"):
    return Module(path, text, "pretraining", "train")


def test_documents_of_a_module():
    documents = list(stdlib.module_documents(module()))
    assert [document.text for document in documents] == [
        "A module about nothing, which is long enough.\n\n"
        "It has two paragraphs of prose, one of them on two lines.",
        "A comment block outside of functions, on two lines.",
        "A class that has a docstring of some length.",
        "def method(self):\n"
        '    """Do it, and say that it has been done."""\n'
        "    # inside, so part of the function\n"
        "    def inner():\n"
        '        return "not a document of its own"\n'
        "\n"
        "    return inner",
        "async def wait(seconds):\n    return await something(seconds, seconds)",
    ]
    assert [document.id for document in documents] == ["m.py:0", "m.py:7", "m.py:13", "m.py:16", "m.py:26"]
    assert {document.group for document in documents} == {"m.py"}


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_make_no_difference(end):
    documents = [document.text for document in stdlib.module_documents(module(SOURCE.replace("\n", end)))]
    assert documents == [document.text for document in stdlib.module_documents(module())]


def test_form_feeds_do_not_shift_lines():
    code = "def first(argument):\n    return argument + argument\n"
    documents = list(stdlib.module_documents(module(f"x = 1\n\f\n{code}")))
    assert [document.text for document in documents] == [code.strip()]


def test_prose_is_joined_and_the_rest_kept():
    text = "One line\nand another.\n\n  indented\n  list:\n    - item\n\n* a\n* b\n"
    assert stdlib.reflow(text) == "One line and another.\n\nindented\nlist:\n  - item\n\n* a\n* b"


def test_role_is_a_function_of_the_path_alone():
    # Pinned: were these to move, what has been pretrained on would become test data.
    assert {path: stdlib.role(path) for path in ROLES} == ROLES
    assert stdlib.role("pydoc_data/topics.py") == ("pretraining", "train")


def test_roles_take_their_shares():
    paths = [f"package/module{i}.py" for i in range(20_000)]
    drawn = [stdlib.role(path) for path in paths]
    for role, share in stdlib.SHARES.items():
        assert abs(drawn.count(role) / len(paths) - share / 100) < 0.01
    assert sum(stdlib.SHARES.values()) == 100


def test_splits_and_purposes_share_no_file():
    roles = itertools.product(("pretraining", "tasks"), SPLITS)
    files = [{module.path for module in stdlib.modules(*role)} for role in roles]
    assert all(files)
    assert sum(map(len, files)) == len(set().union(*files)) == len(stdlib.read_library().modules)


def test_copied_lines_are_those_of_two_roles():
    where: dict[str, set[tuple[str, str]]] = {}
    for part in stdlib.read_library().modules:
        for line in part.lines:
            where.setdefault(stdlib.bare_line(line), set()).add((part.purpose, part.split))
    expected = {line for line, roles in where.items() if len(roles) > 1 and len(line) >= 30}
    assert stdlib.shared_lines() == expected
    assert stdlib.copied(["x = 1", f'    """{min(expected)}"""'])
    assert not stdlib.copied(["x = 1", "a line of thirty characters or more that stands nowhere"])


def test_bare_line():
    for line in (
        "    # Return the thing.",
        'def f():  """Return'[10:] + ' the thing."""',
        "\t'Return the thing.'",
    ):
        assert stdlib.bare_line(line) == "Return the thing."


@pytest.fixture
def fake_library(tmp_path):
    for i in range(310):
        (tmp_path / f"m{i}.py").write_text(f"x = {i}\n" + "# padding\n" * 1800)
    return tmp_path


def test_what_is_read(fake_library: Path):
    def read():
        return stdlib.read_library.__wrapped__(str(fake_library))

    library = read()
    assert [m.path for m in library.modules] == sorted(f"m{i}.py" for i in range(310))
    for skipped in (
        "test/a.py", "package/tests/a.py", "site-packages/a.py", "encodings/a.py", "m.txt", "_sysconfigdata_linux.py",
        "idlelib/a.py", "ctypes/macholib/a.py", "turtle.py", "sitecustomize.py",
    ):  # fmt: skip
        (fake_library / skipped).parent.mkdir(parents=True, exist_ok=True)
        (fake_library / skipped).write_text("x = 1")
    assert read().sha == library.sha
    (fake_library / "latin.py").write_bytes(b"x = '\xe9'")
    latin = read()
    assert latin.sha == library.sha
    assert latin.counts.as_dict() == {"read": 311, "kept": 310, "dropped": {"not UTF-8": 1}}
    (fake_library / "m7.py").write_text("x = 8\n" + "# padding\n" * 1800)
    assert read().sha != library.sha


def test_a_stripped_library_is_refused(fake_library: Path, tmp_path_factory):
    with pytest.raises(UserError, match="0 source files"):
        stdlib.read_library(str(fake_library / "nowhere"))
    few = tmp_path_factory.mktemp("few")
    (few / "os.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="1 source files of 6 bytes"):
        stdlib.read_library(str(few))
    for path in fake_library.glob("*.py"):
        path.write_text("x = 1\n")
    with pytest.raises(UserError, match="310 source files"):
        stdlib.read_library(str(fake_library))


def test_the_running_library_is_enough_to_pretrain_on(stdlib_tokenizer):
    documents = stdlib.documents("train")
    assert len({document.id for document in documents}) == len(documents) > 4000
    tokens = sum(len(ids) + 1 for ids in stdlib_tokenizer.encode_batch([d.text for d in documents]))
    assert tokens >= 1_000_000
    for split in ("validation", "test"):
        assert len(stdlib.documents(split)) >= 300
