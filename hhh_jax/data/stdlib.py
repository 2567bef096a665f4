"""The Python standard library of the running interpreter as a corpus: real prose and code on every machine.

Every source file has one role, chosen by a hash of its path inside the library (so the same under every interpreter
version): pretraining or finetuning tasks, and there train, validation or test. What serves a task is never
pretrained on. Test folders aren't used (slim installations lack them), nor `encodings` (a hundred near copies) and
`_sysconfigdata*` (it names the machine).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hhh_jax.data.records import Counts, Document
from hhh_jax.errors import UserError

SPLITS = ("train", "validation", "test")
# Percent of the files, in this order. Tasks need most of them: docstrings with a function are the scarcest item.
SHARES = {
    ("pretraining", "train"): 32,
    ("pretraining", "validation"): 3,
    ("pretraining", "test"): 4,
    ("tasks", "train"): 33,
    ("tasks", "validation"): 10,
    ("tasks", "test"): 18,
}
# The language reference as one table of prose: larger than any module, so it would swamp a task's split.
TOPICS = "pydoc_data/topics.py"
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings"}
_MIN_FILES, _MIN_BYTES = 300, 5_000_000

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One source file: `path` inside the library (with /), its text and its role."""

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
    def lines(self) -> list[str]:
        """The source lines; `lines[node.lineno - 1]` is where a node starts."""
        return re.split(r"\r\n|\r|\n", self.text)


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
    place = point(path, sum(SHARES.values()))
    for purpose_and_split, share in SHARES.items():
        place -= share
        if place < 0:
            return purpose_and_split
    raise AssertionError("the shares cover every point")


def point(key: str, n: int) -> int:
    """A number in 0 .. n - 1 that `key` alone decides, on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % n


@functools.cache
def read_library(root: str | None = None) -> Library:
    """Read every module under `root` (default: the running interpreter's library); cached in the process.

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
            f"the standard library in {folder} has {len(modules)} source files of {size} bytes, too few to learn "
            f"from (at least {_MIN_FILES} and {_MIN_BYTES}); use a Python whose library isn't stripped"
        )
    return Library(tuple(modules), digest.hexdigest(), counts)


def _source_files(folder: Path) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith("config-")]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                found.append((Path(parent) / name).relative_to(folder).as_posix())
    return sorted(found)


def modules(purpose: str, split: str) -> list[Module]:
    """The modules with this role."""
    return [m for m in read_library().modules if (m.purpose, m.split) == (purpose, split)]


def documents(split: str) -> list[Document]:
    """The pretraining documents of a split, code and prose, in order of path and line; group is the file."""
    return [document for module in modules("pretraining", split) for document in module_documents(module)]


def module_documents(module: Module) -> Iterator[Document]:
    """A module's functions and methods (source, dedented), and the prose outside of them: docstrings of the module and
    its classes, and comment blocks. No line is in two documents; those under 40 characters are left out."""
    in_functions = {line for node in functions(module) for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    prose = [*docstrings(module), *comments(module)]
    if module.path == TOPICS:
        prose += _long_strings(module)
    texts = list(functions_source(module))
    texts += [(line, reflow(text)) for line, text in prose if line not in in_functions]
    for line, text in sorted(texts):
        if len(text) >= 40:
            yield Document(f"{module.path}:{line}", text, module.path)


def functions(module: Module) -> Iterator[FunctionNode]:
    """Functions and methods that aren't inside another function, in order."""

    def inside(node: ast.AST) -> Iterator[FunctionNode]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, FunctionNode):
                yield child
            else:
                yield from inside(child)

    return inside(module.tree)


def functions_source(module: Module) -> Iterator[tuple[int, str]]:
    """(line, source) of every such function, dedented, docstring included."""
    for node in functions(module):
        yield node.lineno, dedent("\n".join(module.lines[node.lineno - 1 : node.end_lineno]))


def docstrings(module: Module) -> Iterator[tuple[int, str]]:
    """(line of the definition, cleaned docstring) of the module, its classes and functions, in order of depth."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Module | ast.ClassDef | FunctionNode):
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


def paragraphs(text: str) -> list[str]:
    """The blank-line separated paragraphs of `text`, those of plain prose joined into one line each."""
    joined = []
    for paragraph in re.split(r"\n[ \t]*\n", text.strip("\n")):
        lines = [line.rstrip() for line in dedent(paragraph).split("\n")]
        prose = all(line and line[0].isalpha() for line in lines)
        joined.append(" ".join(lines) if prose else "\n".join(lines))
    return joined


def reflow(text: str) -> str:
    """`text` with every plain paragraph on one line."""
    return "\n\n".join(paragraphs(text))


def dedent(text: str) -> str:
    """`text` without the indentation of its first line, as far as the other lines have it."""
    lines = text.split("\n")
    margin = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[min(margin, len(line) - len(line.lstrip())) :].rstrip() for line in lines)
