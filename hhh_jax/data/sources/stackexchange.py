"""Stack Exchange: two answers to a question, the one with the better score against the other (C.1).

    python -m hhh_jax.data.prepare --source=stackexchange --input=beer/Posts.xml,law/Posts.xml --output=DIR
    7z x -so law.7z Posts.xml | python -m hhh_jax.data.prepare --source=stackexchange --input=- --option=site=law ...

The dump has a post a line, a ``<row .../>`` whose attributes are the post's fields; each line is parsed by itself, by
expat. A document type is refused, hence no entity is ever defined, expanded or fetched.

An answer's score is the paper's: log2(1 + upvotes), rounded, and 1 more if the asker accepted it; -1 if the upvotes are
negative. Upvotes are the dump's net votes, all that it has. Where a negative answer was accepted, it keeps -1, as the
paper's sentence says literally.

A question gives one pair: an answer drawn among all, and one drawn among those of another score. They are drawn by
hashes of the seed and the posts' names, so that other questions don't matter; a question whose answers all have one
score gives none. Only posts that end in a pair are turned from HTML into text, by `hhh_jax.data.html_text`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any
from xml.parsers import expat

from hhh_jax.data.html_text import MarkupError, html_to_text
from hhh_jax.data.records import Pair
from hhh_jax.data.source import Block, Drop, Made, Options, Row, Source
from hhh_jax.data.streams import line_blocks, lines
from hhh_jax.errors import UserError

QUESTION, ANSWER = "1", "2"  # PostTypeId
MAX_TEXT = 2**17  # characters of markup; the sites allow 30000 of what was typed
_AROUND = (b"<?xml", b"<posts>", b"</posts>")
_BLOCK = re.compile(r"```|> |- |\d+\. ")  # code, a quotation or a list, which begin a line
_FORBIDDEN = (b"<!DOCTYPE", b"<!ENTITY")


def score(upvotes: int, accepted: bool) -> int:
    """The paper's score of an answer."""
    return -1 if upvotes < 0 else round(math.log2(1 + upvotes)) + accepted


def sites(inputs: Sequence[str], site: str = "") -> list[str]:
    """Names of the inputs' sites: what stands before ``-Posts.xml`` in a file's name or else its folder, with as many
    folders before it as tell the inputs apart; `site` is that of a single input.

    Raises UserError if an input is given twice, or `site` with several.
    """
    if site:
        if len(inputs) > 1:
            raise UserError(f"--option=site={site}: names one input's site, and there are {len(inputs)}")
        return [site]
    paths = [_site_path(name) for name in inputs]
    for index, name in enumerate(inputs):
        if paths[index] in paths[:index]:
            raise UserError(f"--input: {name}: given twice")
    return [_shortest(path, paths) for path in paths]


def _site_path(name: str) -> tuple[str, ...]:
    if name == "-":
        return ("stdin",)
    folder, file = os.path.split(os.path.abspath(name))
    parts = tuple(part for part in folder.split(os.sep) if part)
    stem = file.partition(".xml")[0]
    if stem.lower() == "posts":
        return parts or (stem,)
    return (*parts, stem.removesuffix("-Posts"))


def _shortest(path: tuple[str, ...], paths: Sequence[tuple[str, ...]]) -> str:
    size = 1
    while size < len(path) and sum(other[-size:] == path[-size:] for other in paths) > 1:
        size += 1
    return "/".join(path[-size:])


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    """Blocks of lines, each with its site's name as context."""
    names = dict(zip(inputs, sites(inputs, options["site"]), strict=True))
    for block in line_blocks(inputs):
        yield dataclasses.replace(block, context=names[block.name].encode())


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    """Questions and answers, by site and question. Raises UserError at a document type or entity declaration."""
    site, rows = block.context.decode(), _Rows()
    for place, line in lines(block):
        line = line.strip()
        if line.startswith(b"<row"):
            try:
                attributes = rows.attributes(line)
            except expat.ExpatError as error:
                yield _broken(line, place, str(error))
            else:
                yield _post(attributes, site, place)
        elif any(word in line for word in _FORBIDDEN):
            raise UserError(f"{place}: declares a document type or entity, which no dump does; don't trust this file")
        elif line and not line.startswith(_AROUND):
            yield Drop("not a row", place, line[:80].decode(errors="replace"), bad=True)


class _Rows:
    """Reads rows, each as a document of its own. Whole ones share a parser, as children of one element, because a new
    parser for each costs as much as reading it."""

    def __init__(self) -> None:
        self._found: list[dict[str, str]] = []
        self._shared = self._parser(b"<posts>")

    def _parser(self, begin: bytes) -> expat.XMLParserType:
        parser = expat.ParserCreate("utf-8")
        parser.Parse(begin, False)
        parser.StartElementHandler = lambda _, attributes: self._found.append(attributes)
        return parser

    def attributes(self, line: bytes) -> dict[str, str]:
        """Attributes of the row. Raises ExpatError."""
        self._found.clear()
        if line.endswith(b"/>") and line.count(b"<") == 1:  # one element at most, and nothing beside it
            with contextlib.suppress(expat.ExpatError):
                self._shared.Parse(line, False)
                if self._found:
                    return self._found[0]
            self._shared = self._parser(b"<posts>")
            self._found.clear()
        self._parser(b"").Parse(line, True)
        return self._found[0]


def _broken(line: bytes, place: str, error: str) -> Drop:
    try:
        line.decode()
    except UnicodeDecodeError as invalid:
        return Drop("invalid UTF-8", place, f"byte {invalid.start + 1} of the line", bad=True)
    return Drop("broken XML", place, error, bad=True)


def _post(post: dict[str, str], site: str, place: str) -> Row | Drop:
    try:
        kind = post["PostTypeId"]
        if kind == QUESTION:
            fields: dict[str, Any] = {"id": int(post["Id"]), "title": post["Title"], "html": post["Body"]}
            if "AcceptedAnswerId" in post:
                fields["accepted"] = int(post["AcceptedAnswerId"])
            question = fields["id"]
        elif kind == ANSWER:
            fields = {"id": int(post["Id"]), "votes": int(post["Score"]), "html": post["Body"]}
            question = int(post["ParentId"])
        else:
            return Drop("neither question nor answer", place)
    except KeyError as error:
        return Drop("attribute missing", place, error.args[0], bad=True)
    except ValueError as error:
        return Drop("attribute not a number", place, str(error), bad=True)
    if len(post["Body"]) > MAX_TEXT:
        return Drop(f"text longer than {MAX_TEXT} characters", place, bad=True)
    return Row(f"{site}:{question}", fields, place)


def join(key: str, rows: Sequence[Row], options: Options) -> Iterator[Made | Drop]:
    """The pair of a question."""
    posts: dict[int, Row] = {}
    for row in rows:
        if row.fields["id"] in posts:
            yield Drop("id seen before", row.place)
        else:
            posts[row.fields["id"]] = row
    question = next((row for row in posts.values() if "title" in row.fields), None)
    answers = [row for row in posts.values() if "title" not in row.fields]
    if question is None:
        yield from (Drop("question missing", row.place, key) for row in answers)
        return
    drawn = _draw(f"{options['seed']} {key}", question, answers)
    if drawn is None:
        reason = "answers of one score" if len(answers) > 1 else "fewer than two answers"
        yield from (Drop(f"question with {reason}", row.place) for row in posts.values())
        return
    used = (question, *drawn)
    yield from (Drop("answer not drawn", row.place) for row in answers if all(row is not other for other in drawn))
    try:
        body, good, bad = (html_to_text(row.fields["html"]) for row in used)
    except MarkupError as error:
        yield from (Drop("markup nested too deeply", row.place, str(error)) for row in used)
        return
    if not (good and bad) or good == bad:
        reason = "answers of one text" if good == bad else "empty answer"
        yield from (Drop(f"question with {reason}", row.place) for row in used)
        return
    better, worse = (row.fields["id"] for row in drawn)
    title = " ".join(question.fields["title"].split())
    context = f"Question: {title}\n\n{body}".rstrip() + "\n\n"
    yield Made(Pair(f"{key}:{better}>{worse}", context, _answer(good), _answer(bad), key))


def _draw(seed: str, question: Row, answers: Sequence[Row]) -> tuple[Row, Row] | None:
    """Two answers of distinct scores, the better one first."""
    accepted = question.fields.get("accepted")
    scores = {row.fields["id"]: score(row.fields["votes"], row.fields["id"] == accepted) for row in answers}
    if len(set(scores.values())) < 2:
        return None
    order = sorted(answers, key=lambda row: hashlib.sha256(f"{seed} {row.fields['id']}".encode()).digest())
    first = order[0]
    second = next(row for row in order if scores[row.fields["id"]] != scores[first.fields["id"]])
    return (first, second) if scores[first.fields["id"]] > scores[second.fields["id"]] else (second, first)


def _answer(text: str) -> str:
    return f"Answer:\n{text}" if _BLOCK.match(text) else f"Answer: {text}"


SOURCE = Source(
    name="stackexchange",
    about="Stack Exchange questions, each with two answers of distinct scores (C.1)",
    licence="CC BY-SA (2.5, 3.0 or 4.0 by date of the post), of the posts' authors; archive.org/details/stackexchange",
    kinds=("pairs",),
    blocks=blocks,
    read=read,
    join=join,
    options=MappingProxyType({"site": ""}),
)
