"""Generated input in the formats in which datasets are published, of any size, the same on every machine of a Python.

Words are runs of the Python standard library's text; what surrounds them is as in the real files, and so are the
shares that decide what `prepare` has to do: a Stack Exchange question has 1.7 answers on average, 1 of 10 Reddit
comments is in a subreddit that is wanted, 1 of 15 Wikipedia edits reverts vandalism.
"""

import bz2
import gzip
import html
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from xml.sax.saxutils import escape, quoteattr

from hhh_jax.data import stdlib

_SITE = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">\n  <siteinfo>\n'
    '    <dbname>enwiki</dbname>\n    <namespaces>\n      <namespace key="0" case="first-letter" />\n'
    '      <namespace key="6" case="first-letter">File</namespace>\n    </namespaces>\n  </siteinfo>\n'
)
_COMMENTS = ("typo", "copyedit", "/* History */ expand", "+ref", "", "fixed link", "rv unsourced")


class Words:
    """Runs of words of the standard library, drawn by a seed."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self._words = " ".join(document.text for document in stdlib.documents("train")).split()

    def __call__(self, least: int, most: int) -> str:
        """Between `least` and `most` words that follow each other somewhere."""
        size = self.random.randint(least, most)
        start = self.random.randrange(len(self._words) - size)
        return " ".join(self._words[start : start + size])


def stackexchange(words: Words) -> Iterator[str]:
    """Posts.xml: a question, then its answers."""
    rng, number = words.random, 0

    def row(**fields: Any) -> str:
        return "  <row " + " ".join(f"{name}={quoteattr(str(value))}" for name, value in fields.items()) + " />\r\n"

    def body() -> str:
        parts = [f"<p>{escape(words(20, 80))} <em>{escape(words(1, 3))}</em></p>" for _ in range(rng.randint(1, 4))]
        if rng.random() < 0.3:
            parts.append(f"<pre><code>{escape(words(10, 60))}\n{escape(words(5, 20))}\n</code></pre>")
        if rng.random() < 0.3:
            parts.append(f'<p><a href="https://example.org/{rng.random()}">{escape(words(2, 5))}</a></p>')
        if rng.random() < 0.2:
            parts.append("<ul>" + "".join(f"<li>{escape(words(5, 20))}</li>" for _ in range(4)) + "</ul>")
        if rng.random() < 0.15:
            parts.append(f"<blockquote>\n  <p>{escape(words(10, 40))}</p>\n</blockquote>")
        return "\n\n".join(parts) + "\n"

    yield '\ufeff<?xml version="1.0" encoding="utf-8"?>\r\n<posts>\r\n'
    while True:
        question, answers = number + 1, rng.choice((0, 1, 1, 2, 2, 2, 4))
        number += 1 + answers
        more: dict[str, Any] = {"OwnerUserId": rng.randrange(9999), "CommentCount": 1}
        more |= {"CreationDate": "2014-01-21T20:26:05.383", "LastActivityDate": "2014-01-22T08:14:12.017"}
        accepted = {"AcceptedAnswerId": question + 1} if answers and rng.random() < 0.5 else {}
        title, tags = words(6, 12), f"<{words(1, 1)}><{words(1, 1)}>"
        fields = {"Id": question, "PostTypeId": 1, **accepted, "Score": 3, "ViewCount": 795, "Body": body(), **more}
        text = row(**fields, Title=title, Tags=tags, AnswerCount=answers)
        for answer in range(question + 1, number + 1):
            score = int(rng.expovariate(0.3))
            text += row(Id=answer, PostTypeId=2, ParentId=question, Score=score, Body=body(), **more)
        yield text


def reddit(words: Words) -> Iterator[str]:
    """Comments as Pushshift's RC files have them, with the submissions that they belong to."""
    rng = words.random
    for thread in itertools.count():
        name = f"t{thread:x}"
        subreddit = "askscience" if rng.random() < 0.1 else rng.choice(("pics", "funny", "gaming", "AskReddit"))
        shared: dict[str, Any] = {"subreddit": subreddit, "subreddit_id": "t5_2qm4e", "created_utc": 1439797480}
        shared |= {"gilded": 0, "author_flair_text": None, "distinguished": None, "stickied": False}
        post = {"id": name, "author": f"asker{thread}", "title": words(5, 20), "selftext": words(0, 100), "score": 5}
        rows: list[dict[str, Any]] = [post | shared | {"domain": f"self.{subreddit}", "num_comments": 20}]
        comments: list[str] = []
        for number in range(rng.randint(5, 35)):
            parent = f"t1_{rng.choice(comments)}" if comments and rng.random() < 0.6 else f"t3_{name}"
            comments.append(f"{name}c{number}")
            fields: dict[str, Any] = {"id": comments[-1], "link_id": f"t3_{name}", "parent_id": parent}
            fields |= {"body": words(3, 70), "author": f"user_{rng.randrange(10**6)}"}
            fields["score"] = int(rng.expovariate(0.1))
            rows.append(fields | shared | {"controversiality": 0, "edited": False, "retrieved_on": 1440797480})
        yield "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


def wikipedia(words: Words) -> Iterator[str]:
    """Full histories of pages, in which one edit of fifteen reverts the one before as vandalism."""
    rng, revision = words.random, 0

    def paragraph() -> str:
        reference = f"<ref>{{{{cite web|url=https://example.org|title={words(2, 6)}}}}}</ref>"
        return f"{words(30, 90)} [[{words(1, 2)}|{words(1, 3)}]] '''{words(1, 2)}'''.{reference} {words(20, 60)}"

    yield _SITE
    for page in itertools.count(1):
        sections = [f"== {words(1, 3)} ==\n{paragraph()}\n\n{paragraph()}\n" for _ in range(rng.randint(2, 12))]
        title = html.escape(f"{words(1, 3)} {page}")
        text = f"  <page>\n    <title>{title}</title>\n    <ns>0</ns>\n    <id>{page}</id>\n"
        parent, before, reverts = "", sections, False
        for _ in range(rng.randint(5, 40)):
            revision += 1
            place = rng.randrange(len(sections))
            if reverts:
                sections, comment = before, "Reverted vandalism by [[Special:Contributions/1.2.3.4|1.2.3.4]]"
            else:
                comment, before = rng.choice(_COMMENTS), sections
                sections = [*sections[:place], f"{sections[place]}{words(2, 30)}\n", *sections[place + 1 :]]
            reverts = not reverts and rng.random() < 1 / 14
            body = html.escape("\n".join(sections), quote=False)
            text += (
                f"    <revision>\n      <id>{revision}</id>\n{parent}"
                f"      <timestamp>2010-06-19T12:44:38Z</timestamp>\n"
                f"      <contributor>\n        <username>Someone</username>\n        <id>7</id>\n      </contributor>\n"
                f"      <comment>{html.escape(comment)}</comment>\n      <model>wikitext</model>\n"
                f"      <format>text/x-wiki</format>\n"
                f'      <text bytes="{len(body)}" xml:space="preserve">{body}</text>\n'
                f"      <sha1>phoiac9h4m842xq45sp7s6u21eteeq1</sha1>\n    </revision>\n"
            )
            parent = f"      <parentid>{revision}</parentid>\n"
        yield text + "  </page>\n"


def _rows(row: Callable[[Words, int], dict[str, Any]]) -> Callable[[Words], Iterator[str]]:
    """A generator of JSON lines."""
    return lambda words: (json.dumps(row(words, number)) + "\n" for number in itertools.count())


def _comparison(words: Words, number: int) -> dict[str, Any]:
    info = {"id": f"t3_{number}", "post": words(100, 400), "title": words(5, 15), "subreddit": "relationships"}
    summaries = [{"text": f" {words(15, 50)}", "policy": "sup2", "note": ""} for _ in range(2)]
    judged = {"choice": number % 2, "worker": "x", "batch": "batch3", "extra": {"confidence": 5}}
    return {"info": info, "split": "train", "summaries": summaries} | judged


def _question(words: Words, number: int) -> dict[str, Any]:
    first, second = words(10, 30), words(1, 3)
    return {
        "ind": number, "activity_label": words(1, 3), "ctx_a": first, "ctx_b": second, "ctx": f"{first} {second}",
        "split": "train", "split_type": "indomain", "label": number % 4, "endings": [words(8, 25) for _ in range(4)],
        "source_id": f"activitynet~v_{number}",
    }  # fmt: skip


def _dialogue(words: Words, number: int) -> dict[str, Any]:
    shared = "".join(f"\n\nHuman: {words(5, 40)}\n\nAssistant: {words(10, 60)}" for _ in range(2))
    last = f"{shared}\n\nHuman: {words(5, 30)}\n\nAssistant: "
    return {"chosen": last + words(10, 80), "rejected": last + words(10, 80)}


def _toxic(words: Words, number: int) -> dict[str, Any]:
    def text() -> dict[str, Any]:
        scores = ("toxicity", "severe_toxicity", "profanity", "insult", "threat", "flirtation", "identity_attack")
        return {"text": words(5, 15)} | {name: words.random.random() for name in scores}

    place = {"filename": f"{number:07}.txt", "begin": 340, "end": 564, "challenging": False}
    return place | {"prompt": text(), "continuation": text()}


def _web(words: Words, number: int) -> dict[str, Any]:
    return {"text": words(100, 1200), "meta": {"pile_set_name": "Pile-CC"}, "url": f"https://example.org/{number}"}


def _utilitarianism(words: Words) -> Iterator[str]:
    while True:
        first, second = (words(10, 25).replace('"', '""') for _ in range(2))
        yield f'"{first}","{second}"\n'


def _novel(words: Words) -> Iterator[str]:
    """Sentences in paragraphs, as a book."""
    while True:
        sentences = (words(6, 25).strip(".").capitalize() for _ in range(words.random.randint(2, 8)))
        yield ". ".join(sentences) + ".\n\n"


class Dump(NamedTuple):
    """One source's generated input: the file's name, what writes its text, how much of it, and options of `prepare`."""

    file: str
    text: Callable[[Words], Iterator[str]]
    megabytes: int = 3
    options: Mapping[str, Any] = MappingProxyType({})


DUMPS = {
    "stackexchange": Dump("site/Posts.xml", stackexchange, 24),
    "wikipedia": Dump("pages-meta-history.xml.bz2", wikipedia, 24),
    "reddit": Dump("RC_2015-08.zst", reddit, 24),
    "text": Dump("00.jsonl.zst", _rows(_web), 24),
    "summarize": Dump("comparisons/batch3.json", _rows(_comparison)),
    "hellaswag": Dump("hellaswag_train.jsonl", _rows(_question)),
    "ethics": Dump("utilitarianism/util_train.csv", _utilitarianism, options={"task": "utilitarianism"}),
    "hh_rlhf": Dump("helpful-base/train.jsonl.gz", _rows(_dialogue)),
    "lambada": Dump("train-novels/Adventure/novel.txt", _novel),
    "toxicity": Dump("prompts.jsonl", _rows(_toxic)),
}
"""Sources whose published input is large or that are worth one; the others' is below a few MB in all."""

ENDS = {"stackexchange": "</posts>\r\n", "wikipedia": "</mediawiki>\n"}


def write(name: str, folder: Path, size: int, words: Words) -> tuple[Path, int]:
    """Writes at least `size` bytes of a source's input, before compression; returns the file and how many they are."""
    path, written = folder / DUMPS[name].file, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with _open(path) as file:
        for text in DUMPS[name].text(words):
            data = text.encode()
            if written >= size:
                break
            file.write(data)
            written += len(data)
        end = ENDS.get(name, "").encode()
        file.write(end)
    return path, written + len(end)


def _open(path: Path) -> Any:
    if path.suffix == ".zst":
        import zstandard

        return zstandard.open(path, "wb")
    openers: dict[str, Any] = {".bz2": bz2.open, ".gz": gzip.open}
    return openers.get(path.suffix, open)(path, "wb")
