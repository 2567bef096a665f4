r"""The dialogue format and the HHH prompt (paper section 2.1): `hhh`, `short`, `two`, or the user's own file.

`hhh.txt` has fourteen fictional conversations of a person with an assistant, about 4,700 words, written for this
project in the paper's form; `short.txt` has one, for contexts of 1024 tokens, and `two.txt` two others without an
introduction, the examples in context alone of figure 20 (right). Prompt, question and response are strings
to concatenate:

    load("hhh").text + as_question("Is glass a liquid?") + " No, it is a solid."

A prompt ends with `SEPARATOR`, a question begins with a blank line and ends in "Assistant:", a response begins with a
space. A context that has several turns goes into `as_question` as "Q1\n\nAssistant: A1\n\nHuman: Q2".
"""

import difflib
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from hhh_jax.errors import UserError

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
SEPARATOR = "-----"

# Where a sampled answer ends. The paper's is "Human:"; a prompted model may also end the whole conversation after its
# answer, as those of the prompt end. Samples for toxicity may hold neither of FORBIDDEN (figures 22 to 24).
STOP_STRINGS = ("Human:", f"\n\n{SEPARATOR}")
FORBIDDEN = ("Human:", SEPARATOR)

# The prompt that the paper's authors published.
ORIGINAL_BYTES = 27361
ORIGINAL_SHA256 = "51dd74e1c2ba9bc14173b20db4d9c3a6b6196b0c477da11811dd42cfe585cfba"

_HERE = Path(__file__).parent
_BETWEEN = re.compile(rf"^{SEPARATOR}[ \t]*$", re.MULTILINE)
_FIRST_TURN = re.compile(r"^Human:", re.MULTILINE)


class DialoguePrompt(NamedTuple):
    """A prompt as it stands before a question.

    Attributes:
      name: `hhh`, `short`, `two` or the path of the user's file.
      text: the prompt, without white space around it.
      sha256: of the file's bytes, hex.
      is_original: the file is the copy that the paper's authors published, byte for byte.
    """

    name: str
    text: str
    sha256: str
    is_original: bool


def load(name: str) -> DialoguePrompt:
    """The prompt `hhh`, `short` or `two`, or that of a UTF-8 text file.

    Of a user's file the white space around the text and an open "Human:" at its end are dropped, and a text that
    separates its conversations gets the separator at its end too. Raises UserError, with the nearest name, for a file
    that is missing, and for one that is empty or is not UTF-8.
    """
    own = {path.stem: path for path in sorted(_HERE.glob("*.txt"))}
    path = own.get(name) or Path(name).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        beside = [str(file) for file in path.parent.glob("*") if file.is_file()]
        near = difflib.get_close_matches(name, [*own, *beside], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"no prompt {name} ({error.strerror}): give {', '.join(own)} or a text file{hint}") from None
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the prompt is not UTF-8 (byte {error.start}); convert the file") from None
    text = text.strip().removesuffix("Human:").rstrip()
    if not text:
        raise UserError(f"{path}: the prompt is empty; give {', '.join(own)} or a file with a text")
    if _BETWEEN.search(text) and not text.endswith(f"\n{SEPARATOR}"):
        text += f"\n\n{SEPARATOR}"
    sha256 = hashlib.sha256(data).hexdigest()
    return DialoguePrompt(name, text, sha256, (len(data), sha256) == (ORIGINAL_BYTES, ORIGINAL_SHA256))


def as_question(text: str) -> str:
    r"""What stands between the prompt and a response: "\n\nHuman: TEXT\n\nAssistant:".

    The empty text gives "\n\nHuman:\n\nAssistant:", the dialogue form of the context in which P(a) is taken.
    """
    return f"{HUMAN} {text.strip()}".rstrip() + ASSISTANT


def conversations(text: str) -> tuple[str, list[str]]:
    """The introduction of a prompt's text (it may be empty) and its conversations, without white space around them."""
    head, *rest = (part.strip() for part in _BETWEEN.split(text))
    turn = _FIRST_TURN.search(head)
    start = turn.start() if turn else len(head)
    return head[:start].rstrip(), [part for part in (head[start:], *rest) if part]


def join(introduction: str, some: Sequence[str]) -> str:
    """Inverse of `conversations`: a prompt's text from an introduction and conversations."""
    return f"\n\n{SEPARATOR}\n\n".join(part for part in (introduction, *some) if part) + f"\n\n{SEPARATOR}"


def pieces(text: str, n_tokens_of: Callable[[str], int], room: int) -> list[str]:
    """A prompt's text in pieces of at most `room` tokens, for distilling what is longer than the context (paper B.5).

    Each piece has the introduction and as many of the following conversations as fit; each conversation is in one
    piece, in order. `n_tokens_of` counts the tokens of a text. Raises UserError for a conversation that doesn't fit.
    """
    introduction, left = conversations(text)
    found: list[str] = []
    number = 0
    while left:
        n = max((n for n in range(1, len(left) + 1) if n_tokens_of(join(introduction, left[:n])) <= room), default=0)
        if not n:
            size = n_tokens_of(join(introduction, left[:1]))
            raise UserError(
                f"conversation {number + 1} of the prompt has {size} tokens with the introduction, and there is room "
                f"for {room}: use a longer context or shorten it"
            )
        found.append(join(introduction, left[:n]))
        left, number = left[n:], number + n
    return found


def choose(
    prompts: Sequence[DialoguePrompt], n_tokens: Sequence[int], item: str, item_tokens: int, context: int
) -> tuple[DialoguePrompt, str]:
    """The first prompt that leaves room for the longest item, and a sentence on it for the record.

    `n_tokens` are the prompts' tokens, `item_tokens` those of the item with the most (question and response), and
    `context` is the model's length. Raises UserError, naming the item, if none fits.
    """
    wanted = f"{prompts[0].name} ({n_tokens[0]} tokens)"
    for prompt, size in zip(prompts, n_tokens, strict=True):
        if size + item_tokens <= context:
            if prompt is prompts[0]:
                return prompt, f"prompt {wanted}"
            return prompt, (
                f"prompt {prompt.name} ({size} tokens) in place of {wanted}, which with item {item} ({item_tokens} "
                f"tokens) exceeds the context of {context}"
            )
    sizes = ", ".join(f"{prompt.name} {size}" for prompt, size in zip(prompts, n_tokens, strict=True))
    raise UserError(
        f"item {item} has {item_tokens} tokens and the prompt {sizes}: together more than the model's context of "
        f"{context}; use a model with a longer context, a shorter prompt or none"
    )
