"""Wikipedia edits whose comment says that they revert vandalism: the section after is better than before (C.1).

Reads full-history dumps (``pages-meta-history*.xml``, as bz2, or 7z by ``7z x -so FILE | ... --input=-``). A row is an
edit, one that reverts vandalism a row for each section that it changed. MediaWiki escapes every ``<`` of a text, so
revisions are found as bytes, and only edits with such a comment are parsed: damage stays where it is, and an edit that
it hides is not one of ours. A dump with a DOCTYPE, which could define entities, is refused.

    PAGE TITLE: Aardvark
    SECTION TITLE: Diet
    SECTION BODY: The aardvark feeds on ants.
"""

from __future__ import annotations

import dataclasses
import html
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple
from xml.etree.ElementTree import ParseError

from hhh_jax.data import wikitext
from hhh_jax.data.records import Pair
from hhh_jax.data.source import Block, Drop, Options, Row, Source, as_row, one_by_one
from hhh_jax.data.streams import BLOCK_BYTES, MAX_LINE, Input, current_journal, open_input
from hhh_jax.errors import UserError

MAX_SECTION = 50_000  # characters of wikitext; a context of 1024 tokens holds a tenth

_PAGE, _PAGE_END, _REVISION, _REVISION_END = b"<page>", b"</page>", b"<revision>", b"</revision>"
_SITE_END, _DUMP_END = b"</siteinfo>", b"</mediawiki>"
_TAG = re.compile(rb"</?(?:page|revision)>")
_COMMENT_XML = re.compile(rb"<comment[^>]*>([^<]*)</comment>")
_HINT = re.compile(rb"vand|rv|HG|huggle", re.IGNORECASE)  # every comment that `reverts_vandalism` has one
_MOST_HEAD = 2**20
_MALFORMED = (ParseError, LookupError, ValueError, TypeError, AttributeError, StopIteration)
_NOT_TEXT = re.compile(rb"<!(?!--)\w*")

# What a comment says in its own words: without the section it names, and without whom it reverts.
_MOST_COMMENT = 1000  # characters; MediaWiki allows 500
_NAMES = re.compile(r"/\*.*?\*/|\[\[\s*:?(?:special:contrib|user)[^\]]*\]\]", re.IGNORECASE)
_LINK = re.compile(r"\[\[(?:[^\]|]*\|)?([^\]|]*)\]\]")
_REVERT = re.compile(
    r"\brv[tv]?\b|\brev\b|\brevert|\bundid\b|\bundo|\brolle?d?(?:ing)?[ -]?back|\brestor", re.IGNORECASE
)
_VANDAL = re.compile(r"\bvand(?:al|el|l)|\bvand\b", re.IGNORECASE)
_SHORT = re.compile(r"\brv(?:[ /-]?v\b|[ /-]?vand)", re.IGNORECASE)  # rvv, rv/v, rv-v
_HUGGLE = re.compile(r"\bHG\b|\b[Hh]uggle\b")  # a tool against vandalism; other reasons stand after a colon
_REASON = re.compile(r":\s+\w")
_DENIED = re.compile(
    r"good[ -]?faith|\bAGF\b"
    r"|(?:(?<!\bdo )\bnot|\b(?:is|was|are|were)n['’]?t|\bnon?|\bnever|\bfalse|\banti)[\s-]+(?:\w+\s+){0,3}vand",
    re.IGNORECASE,
)
_REDIRECT = re.compile(r"\s*#redirect", re.IGNORECASE)


def reverts_vandalism(comment: str) -> bool:
    """Whether an English edit comment says that the edit reverts vandalism, suspected or sure.

    That is "rvv" and its like; a word for reverting together with one for vandalism; or a revert by Huggle that gives
    no other reason. Names of users and sections don't count, nor do "not vandalism" and "good faith". A plain rollback
    ("Reverted edits by A to last version by B") says nothing of vandalism; a removal ("rm vandalism") is no revert.
    """
    words = _LINK.sub(r"\1", _NAMES.sub("", comment[:_MOST_COMMENT]))
    if _DENIED.search(words):
        return False
    if _SHORT.search(words):
        return True
    huggle = _HUGGLE.search(words) and not _REASON.search(words)
    return bool(_REVERT.search(words) and (_VANDAL.search(words) or huggle))


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    """The dumps in order, cut at ends of pages and revisions."""
    for name in inputs:
        with open_input(name) as stream:
            yield from cut(stream)


def cut(stream: Input, size: int = BLOCK_BYTES) -> Iterator[Block]:
    """Blocks of about `size` bytes; `context` has the dump's head and, where a page goes on, its head and its last
    revision; `first` counts revisions from 1.

    A revision of more than MAX_LINE bytes is left out and counted, as is the one in which a dump breaks off.
    """
    data = stream.read_full(size)
    while _SITE_END not in data and len(data) < _MOST_HEAD and (more := stream.read_full(size)):
        data += more
    site = _site(data)
    if b"<mediawiki" not in site:
        raise UserError(f"{stream.name}: not a MediaWiki dump, which begins with <mediawiki> and its <siteinfo>")
    number, page, last, overlong, context = 1, b"", b"", False, b""
    while data:
        end = max(data.rfind(tag) + len(tag) if tag in data else 0 for tag in (_REVISION_END, _PAGE_END))
        if not end and len(data) > MAX_LINE:
            if not overlong:
                place = f"{stream.name}: revision {number}"
                current_journal().drop(f"revision longer than {MAX_LINE // 2**20} MiB", place)
            overlong, page, last = True, _head(data) or page, b""
            context, number = site + page, number + data.count(_REVISION)
            data = data[-len(_REVISION_END) :]  # may begin its end
        elif end:
            block = Block(f"{stream.name}: revision {number}", stream.name, data[:end], number, context)
            yield block
            number, overlong = number + block.data.count(_REVISION), False
            page, last = _state(block.data, page, last)
            context, data = site + page + last, data[end:]
        more = stream.read_full(size)
        if not more:
            break
        data += more
    if _DUMP_END not in data and not stream.broken:
        place = f"{stream.name}: revision {number}"
        detail = f"it doesn't end in {_DUMP_END.decode()}"
        current_journal().end_early(stream.name, "the dump breaks off", place, detail)


def _state(data: bytes, page: bytes, last: bytes) -> tuple[bytes, bytes]:
    """The head of the page that goes on after `data` and its last revision; empty if none does."""
    opened, closed = data.rfind(_PAGE), data.rfind(_PAGE_END)
    if closed > opened:
        return b"", b""
    start = data.rfind(_REVISION, max(opened, 0))
    return _head(data) or page, data[start:] if start >= 0 else b""


def _head(data: bytes) -> bytes:
    """From the last <page> of `data` to its first revision, if there is one."""
    opened = data.rfind(_PAGE)
    return data[opened : data.find(_REVISION, opened)] if opened >= 0 else b""


class _Edit(NamedTuple):
    """A revision as bytes, with its page's head and the revision before it, if known; `whole` unless it has no end."""

    page: bytes
    before: bytes
    after: bytes
    place: str
    whole: bool


def _edits(block: Block) -> Iterator[_Edit]:
    data = block.context + block.data
    page, page_start, before, start, number = b"", -1, b"", -1, block.first - 1
    for match in itertools.chain(_TAG.finditer(data), [None]):
        tag = match[0] if match else _PAGE_END
        place = f"{block.name}: revision {number}"
        if start >= 0 and tag != _REVISION_END:
            yield _Edit(page, before, data[start : start + 1000], place, False)
            before, start = b"", -1
        if match is None:
            return
        if tag == _REVISION:
            start = match.start()
            if page_start >= 0:  # an overlong revision's rest may stand between the context and the next one
                end = start if page_start >= len(block.context) else min(start, len(block.context))
                page, page_start = data[page_start:end], -1
            number += start >= len(block.context)
        elif tag == _REVISION_END:
            if start >= len(block.context):
                yield _Edit(page, before, data[start : match.end()], place, True)
            before, start = data[start : match.end()] if start >= 0 else b"", -1
        else:
            page, page_start, before = b"", match.start() if tag == _PAGE else -1, b""


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    """A row for every section that an edit against vandalism changed; other edits are drops."""
    _refuse_entities(block)
    site = _site(block.context or block.data)
    for edit in _edits(block):
        reason = _unwanted(edit, options["revision_limit"])
        if reason is None:
            yield from _pairs(edit, site)
        else:
            yield reason


def _site(data: bytes) -> bytes:
    """The dump's head, up to the end of its <siteinfo>; empty without one."""
    end = data.find(_SITE_END)
    return data[: end + len(_SITE_END)] if end >= 0 else b""


def _refuse_entities(block: Block) -> None:
    data = block.context + block.data  # what is parsed; before an overlong revision, no block has the dump's head
    if bad := _NOT_TEXT.search(data):
        number = block.first - 1 + data.count(_REVISION, len(block.context), bad.start())
        raise UserError(
            f"{block.name}: after revision {number}: {bad[0].decode()}, which could define entities and which "
            "MediaWiki never writes; the dump was tampered with or is something else: fetch it again"
        )


def _unwanted(edit: _Edit, limit: int) -> Drop | None:
    """Why the edit isn't one of ours, as far as its bytes tell."""
    if not edit.whole:
        return Drop("revision without an end", edit.place, bad=True)
    if not edit.page:
        return Drop("revision outside of a page", edit.place, bad=True)
    if b"<ns>" in edit.page and b"<ns>0</ns>" not in edit.page:
        return Drop("not an article", edit.place)
    if b"<redirect" in edit.page:
        return Drop("page is a redirect", edit.place)
    comment = _COMMENT_XML.search(edit.after)
    if not comment or not _HINT.search(comment[1]):
        return Drop("no revert of vandalism", edit.place)
    if not reverts_vandalism(html.unescape(comment[1].decode(errors="replace"))):
        return Drop("no revert of vandalism", edit.place)
    if not edit.before:
        return Drop("revision before it is missing", edit.place)
    if max(len(edit.before), len(edit.after)) > limit:
        return Drop(f"revision longer than {limit} bytes", edit.place)
    return None


def _pairs(edit: _Edit, site: bytes) -> Iterator[Row | Drop]:
    import mwxml

    xml = site + edit.page + edit.before + edit.after + _PAGE_END + _DUMP_END
    try:
        dump = mwxml.Dump.from_file(io.BytesIO(xml))
        page = next(dump.pages)
        before, after = page
        title = page.title.strip()
        parent = int(after.parent_id or before.id)  # dumps of before 2012 don't give it
        mains = [revision.slots.contents["main"] for revision in (before, after)]
    except _MALFORMED + (mwxml.errors.MalformedXML,) as error:
        yield Drop("broken XML", edit.place, str(error)[:200], bad=True)
        return
    place = f"{edit.place} ({title}, id {after.id})"
    if page.namespace != 0:  # dumps of before 2011 have no <ns>
        yield Drop("not an article", place)
        return
    if parent != before.id:
        yield Drop("revision before it is missing", place)
        return
    texts = []
    for revision, main in zip((before, after), mains, strict=True):
        text = _text(revision, main)
        if isinstance(text, str):
            texts.append(text)
        else:
            yield Drop(text.reason, place)
            return
    yield from _section_rows(page.id, after.id, title, texts[0], texts[1], place, _hidden(dump.site_info))


def _text(revision: Any, main: Any) -> str | Drop:
    if revision.deleted.text:
        return Drop("a side's text was deleted")
    if main.model not in (None, "wikitext"):
        return Drop("not wikitext")
    if main.text is None and main.bytes:
        return Drop("a side's text is missing")  # as in dumps of stubs
    text = main.text or ""
    return Drop("a side is a redirect") if _REDIRECT.match(text) else text


def _hidden(site_info: Any) -> frozenset[str]:
    """The site's names of files, media and categories, in small letters."""
    names = {space.name.lower() for space in site_info.namespaces or () if space.id in (-2, 6, 14) and space.name}
    return wikitext.HIDDEN_NAMESPACES | names


def _section_rows(
    page_id: int, revision_id: int, title: str, before: str, after: str, place: str, hidden: frozenset[str]
) -> Iterator[Row | Drop]:
    sections = wikitext.sections(before), wikitext.sections(after)
    changed = [
        key for key in dict.fromkeys([*sections[1], *sections[0]]) if sections[0].get(key) != sections[1].get(key)
    ]
    if not changed:
        yield Drop("sections are equal", place)
    for key in changed:
        if key not in sections[0] or key not in sections[1]:
            yield Drop("section is on one side only", place, key[0])
            continue
        if max(len(side[key]) for side in sections) > MAX_SECTION:
            yield Drop(f"section longer than {MAX_SECTION} characters", place, key[0])
            continue
        heading = wikitext.plain(key[0], hidden)
        bad, good = (wikitext.plain(side[key], hidden) for side in sections)
        if bad is None or good is None or heading is None:
            yield Drop("unbalanced markup", place, key[0])
        elif not bad or not good:
            yield Drop("a side is empty after cleaning", place, key[0])
        elif bad == good:
            yield Drop("sides are equal after cleaning", place, key[0])
        else:
            context = f"PAGE TITLE: {title}\nSECTION TITLE: {heading}\nSECTION BODY: "
            name = f"{page_id}/{revision_id}/{list(sections[1]).index(key)}"
            row = as_row(Pair(name, context, good, bad, title), None, place)
            yield dataclasses.replace(row, key=name)  # rows of a page need not meet, and there can be many


SOURCE = Source(
    name="wikipedia",
    about="Wikipedia edits that revert vandalism; the section after is better than before",
    licence="CC BY-SA 3.0 and 4.0 and GFDL, by its contributors; https://dumps.wikimedia.org, pages-meta-history",
    kinds=("pairs",),
    blocks=blocks,
    read=read,
    join=one_by_one,
    options=MappingProxyType({"revision_limit": 1_000_000}),
)
