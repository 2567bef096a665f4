"""Problems that a language model samples answers to, by name: functions with tests, and passages that lack a last word.

A problem is a `Prompt`. One of kind `code` has `entry_point` and `tests` in its `meta`, one of kind `last_word` the
`target`. Names:

    functions, passages     generated
    a folder                that `hhh_jax.data.prepare` wrote, of lambada, humaneval or quixbugs
    a file FILE.jsonl       of functions, one JSON object a line:

    {"id": "double", "prompt": "def double(x):\\n    return", "entry_point": "double",
     "tests": "def check(candidate):\\n    assert candidate(2) == 4\\n", "text": "def double(x):\\n    return 2 * x\\n"}

`group` and `split` may be given as for pairs and documents (`hhh_jax.data.files`); `text`, the function in full, is
what a language model that is pretrained on the same file reads.
"""

import json
from pathlib import Path

from hhh_jax.data import files, functions, passages, prepared
from hhh_jax.data.records import Document, Prompt
from hhh_jax.errors import UserError

CODE, LAST_WORD = "code", "last_word"
_GENERATED = {functions.NAME: functions.problems, passages.NAME: passages.problems}


def load(name: str, split: str, written: str = "") -> list[Prompt]:
    """The problems of a split.

    Args:
      written: of LAMBADA, `original` or `nice` keeps the passages of that format; empty keeps all.

    Raises UserError for an unknown name, for data that can't be used, and for a split without a problem.
    """
    if name in _GENERATED:
        return list(_GENERATED[name](split))
    if Path(name).is_dir():
        records = prepared.load(Path(name), "prompts", split)
        found = [one for one in records if isinstance(one, Prompt) and written in ("", one.meta.get("format"))]
    elif name.endswith(".jsonl") and Path(name).is_file():
        found = _of_file(name, split)
    else:
        raise UserError(f"no problems named {name!r}; there are {', '.join(_GENERATED)}, a .jsonl file or a folder")
    if not found:
        raise UserError(f"{name}: has no problem{f' of format {written}' if written else ''} in its {split} split")
    return found


def kind(problem: Prompt) -> str:
    """`code` or `last_word`. Raises UserError for a prompt that has neither tests nor a target."""
    if "tests" in problem.meta:
        return CODE
    if "target" in problem.meta:
        return LAST_WORD
    raise UserError(f"{problem.id}: has no tests and no target, so no answer is right; give lambada or code")


def title(name: str) -> str:
    """The name of problems for the results table: a file or folder goes by its own."""
    return name if name in _GENERATED else Path(name).stem


def _of_file(path: str, split: str) -> list[Prompt]:
    found, named = [], []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            fields = [row[field] for field in ("id", "prompt", "entry_point", "tests")]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a problem ({error!r}); see hhh_jax/data/problems.py") from None
        if not all(isinstance(value, str) for value in fields):
            raise UserError(f"{path}:{number}: id, prompt, entry_point and tests have to be text")
        name, text, entry_point, tests = fields
        found.append(Prompt(name, text, str(row.get("group") or name), {"entry_point": entry_point, "tests": tests}))
        named.append(row.get("split"))
    records = [Document(problem.id, problem.text, problem.group) for problem in found]
    return [found[i] for i in files.cut_split(*files.places(records, named), split, path)]
