"""The Python standard library of the running interpreter: real prose and code on every machine.

Every source file has one role, chosen by a hash of its path inside the library (so the same under every
version of Python): pretraining or finetuning tasks, and there train, validation or test. What serves a task
is never pretrained on. What some installations lack or add isn't used, so that all of one version give the same:
test folders, and what distributions leave out or pack apart (Tk and IDLE, distutils, lib2to3, ensurepip). Nor are
`encodings` (a hundred near copies) and `_sysconfigdata*` (it names the machine).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hhh_jax.data.records import Counts, Document
from hhh_jax.errors import UserError

# Percent of the files, in this order. Tasks need most of them: docstrings of a definition are scarce.
SHARES = {
    ("pretraining", "train"): 35,
    ("pretraining", "validation"): 2,
    ("pretraining", "test"): 2,
    ("tasks", "train"): 35,
    ("tasks", "validation"): 10,
    ("tasks", "test"): 16,
}
_SALT = "f"  # of the letters, the one that spreads the few long modules best over the roles
# The language reference as one table of prose: larger than any module, so it would swamp a task's split.
TOPICS = "pydoc_data/topics.py"
_SKIPPED = {
    "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings",
    "tkinter", "turtledemo", "turtle.py", "idlelib", "distutils", "_distutils_system_mod.py", "lib2to3", "ensurepip",
    "macholib", "sitecustomize.py",
}  # fmt: skip
_MIN_FILES, _MIN_BYTES = 300, 5_000_000
_MIN_CHARACTERS = 40  # of a document
_MIN_SHARED = 30  # characters of a line that counts as copied

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Module:
    """One source file: its path inside the library (with /), its text and its role."""

    path: str
    text: str
    purpose: str
    split: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        """The syntax tree; parsed once."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules
            return ast.parse(self.text)

    @functools.cached_property
    def definitions(self) -> list[tuple[Definition, bool]]:
        """Every function, method and class in order, and whether it is inside a function."""
        return list(_definitions(self.tree, False))

    @functools.cached_property
    def lines(self) -> list[str]:
        """The source lines; `lines[node.lineno - 1]` is where a node starts."""
        return re.split(r"\r\n|\r|\n", self.text)


def _definitions(node: ast.AST, inner: bool) -> Iterator[tuple[Definition, bool]]:
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):  # all that holds statements
        for child in getattr(node, field, ()):
            if isinstance(child, Definition):
                yield child, inner
            yield from _definitions(child, inner or isinstance(child, FunctionNode))


@dataclass(frozen=True)
class Library:
    """All modules of a standard library in order of path, the SHA-256 of what was read, and its counts."""

    modules: tuple[Module, ...]
    sha: str
    counts: Counts


def role(path: str) -> tuple[str, str]:
    """(purpose, split) of the file at `path` inside the library, by a hash of the path."""
    if path == TOPICS:
        return "pretraining", "train"
    place = int.from_bytes(hashlib.sha256(f"{_SALT} {path}".encode()).digest()[:8]) % sum(SHARES.values())
    for purpose_and_split, share in SHARES.items():
        place -= share
        if place < 0:
            return purpose_and_split
    raise AssertionError("the shares cover every place")


@functools.cache
def read_library(root: str | None = None) -> Library:
    """Read every module under `root` (default: the running interpreter's library), once in a process.

    Raises UserError if the sources are missing or were stripped.
    """
    folder = Path(root or sysconfig.get_paths()["stdlib"])
    modules, counts, digest, size = [], Counts(), hashlib.sha256(), 0
    for path in _source_files(folder):
        raw = (folder / path).read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            counts.drop("not UTF-8")
            continue
        counts.keep()
        digest.update(f"{path}\0{len(raw)}\0".encode() + raw)
        size += len(raw)
        modules.append(Module(path, text, *role(path)))
    if len(modules) < _MIN_FILES or size < _MIN_BYTES:
        raise UserError(
            f"the standard library in {folder} has {len(modules)} source files of {size} bytes, too little "
            f"to learn from (at least {_MIN_FILES} of {_MIN_BYTES}); use a Python whose library is whole"
        )
    return Library(tuple(modules), digest.hexdigest(), counts)


def _source_files(folder: Path) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith("config-")]
        for name in names:
            if name.endswith(".py") and name not in _SKIPPED and not name.startswith("_sysconfigdata"):
                found.append((Path(parent) / name).relative_to(folder).as_posix())
    return sorted(found)


def modules(purpose: str, split: str) -> list[Module]:
    """The modules with this role. Raises UserError if the library was stripped."""
    return [m for m in read_library().modules if (m.purpose, m.split) == (purpose, split)]


def documents(split: str) -> list[Document]:
    """The pretraining documents of a split, code and prose, in order of path and line; group is the file."""
    return [document for module in modules("pretraining", split) for document in module_documents(module)]


def module_documents(module: Module) -> Iterator[Document]:
    """A module's functions and methods (source, dedented), and the prose outside of them: docstrings of the
    module and its classes, and comment blocks. No line is in two documents; short ones are left out."""
    in_functions = {line for node in functions(module) for line in line_numbers(node)}
    prose = [*docstrings(module), *comments(module)]
    if module.path == TOPICS:
        prose += _long_strings(module)
    texts = list(functions_source(module))
    texts += [(line, reflow(text)) for line, text in prose if line not in in_functions]
    for line, text in sorted(texts):
        if len(text) >= _MIN_CHARACTERS:
            yield Document(f"{module.path}:{line}", text, module.path)


@functools.cache
def shared_lines() -> frozenset[str]:
    """Lines of 30 characters or more (as `bare_line`) that stand in files of different roles: copied text.

    Tasks leave them out, so that no test item has been seen in training or in pretraining.
    """
    roles: dict[str, tuple[str, str]] = {}
    shared = set()
    for module in read_library().modules:
        role_here = (module.purpose, module.split)
        for line in map(bare_line, module.lines):
            if len(line) >= _MIN_SHARED and roles.setdefault(line, role_here) != role_here:
                shared.add(line)
    return frozenset(shared)


def bare_line(line: str) -> str:
    """A line without indentation, comment signs and quotes: the same words are equal wherever they stand."""
    return line.strip(" \t\f#\"'")


def copied(lines: Iterable[str]) -> bool:
    """Whether one of `lines` is in `shared_lines`."""
    return any(bare_line(line) in shared_lines() for line in lines)


def functions(module: Module) -> list[FunctionNode]:
    """Functions and methods that aren't inside another function, in order."""
    return [node for node, inner in module.definitions if isinstance(node, FunctionNode) and not inner]


def functions_source(module: Module) -> Iterator[tuple[int, str]]:
    """(line, source) of every such function, dedented, docstring included."""
    for node in functions(module):
        yield node.lineno, dedent("\n".join(module.lines[number - 1] for number in line_numbers(node)))


def line_numbers(node: ast.stmt | ast.expr) -> range:
    """The numbers of the source lines of a node, from 1."""
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def docstrings(module: Module) -> Iterator[tuple[int, str]]:
    """(line of the definition, cleaned docstring) of the module, its classes and its functions, in order."""
    nodes: list[ast.Module | Definition] = [module.tree, *(node for node, _ in module.definitions)]
    for node in nodes:
        text = ast.get_docstring(node)
        if text:
            yield getattr(node, "lineno", 0), text


def comments(module: Module) -> Iterator[tuple[int, str]]:
    """(line, text) of every block of whole-line comments, with `#` and the indentation removed."""
    block: list[str] = []
    for number, line in enumerate([*module.lines, ""], start=1):
        match = re.match(r"\s*#+ ?(.*)", line)
        if match:
            block.append(match[1])
        elif block:
            yield number - len(block), "\n".join(block)
            block = []


def _long_strings(module: Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 200:
            yield node.lineno, node.value


def paragraphs(text: str) -> list[list[str]]:
    """The lines of every blank-line separated paragraph of `text`, without its first line's indentation."""
    return [dedent(paragraph).split("\n") for paragraph in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n"))]


def is_prose(paragraph: list[str]) -> bool:
    """Whether every line starts with a letter: no list, table, example or heading."""
    return all(line[:1].isalpha() for line in paragraph)


def reflow(text: str) -> str:
    """`text` with every paragraph of prose on one line."""
    return "\n\n".join((" " if is_prose(lines) else "\n").join(lines) for lines in paragraphs(text))


def dedent(text: str) -> str:
    """`text` without the indentation of its first line, as far as the other lines have it."""
    lines = text.split("\n")
    margin = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[min(margin, len(line) - len(line.lstrip())) :].rstrip() for line in lines)
