"""Wikitext (the markup of Wikipedia) to sections of plain text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

LEAD = "Introduction"  # our title of what stands before the first heading

# Links to these are not part of the text; a wiki's own names of them come from its dump.
HIDDEN_NAMESPACES = frozenset({"file", "image", "media", "category"})
_HIDDEN_TAGS = frozenset(
    {"categorytree", "ce", "chem", "gallery", "graph", "hiero", "imagemap", "indicator", "inputbox", "mapframe"}
    | {"maplink", "math", "ref", "references", "score", "section", "style", "table", "templatedata", "templatestyles"}
    | {"timeline"}
)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_HEADING = re.compile(r"^=.*=[ \t]*$", re.MULTILINE)
_LANGUAGE = re.compile(r"(?:[a-z]{2,3}(?:-[a-z]+)*|simple)\Z")  # [[fr:Titre]] is the page's translation, no text
_STYLE = re.compile(r"'{2,}|__[A-Z]{3,}__")  # bold, italics, and switches as __NOTOC__
_SURROGATE = re.compile("[\ud800-\udfff]")  # &#55296; is no character
_LEFT_OVER = re.compile(r"\{\{|\}\}|\{\||^\|\}|^\|-|\[\[|\]\]|</?[a-z]+[\s/>]", re.MULTILINE | re.IGNORECASE)

# The parser goes back to whatever is left open, so its time is the square of how much that is.
_MOST_OPEN = 50
_OPENING = re.compile(r"<(?!(?:br|hr|wbr|li|d[dt]|t[dhr]|p)\b)[a-z][^<>]*(?<!/)>", re.IGNORECASE)
_TORN = re.compile(r"<[a-z!][^<>]*(?=<)", re.IGNORECASE)
_LIST_RUN = re.compile(r"^[*#:;]{30,}", re.MULTILINE)


def sections(wikitext: str) -> dict[tuple[str, int], str]:
    """The wikitext of every section, without comments and headings, by (heading, how many of that name came before).

    A section ends where the next heading of any level begins.
    """
    found: dict[tuple[str, int], str] = {}
    seen: Counter[str] = Counter()
    wikitext = _COMMENT.sub("", wikitext)
    starts = [(LEAD, 0, 0)]  # heading, where it begins, where its text begins
    for match in _HEADING.finditer(wikitext):
        line = match[0].rstrip(" \t")
        level = min(len(line) - len(line.lstrip("=")), len(line) - len(line.rstrip("=")), 6)
        if heading := line[level:-level].strip():
            starts.append((heading, match.start(), match.end()))
    for (heading, _, start), (_, end, _) in zip(starts, [*starts[1:], ("", len(wikitext), 0)], strict=True):
        found[heading, seen[heading]] = wikitext[start:end]
        seen[heading] += 1
    return found


def plain(wikitext: str, namespaces: Collection[str] = HIDDEN_NAMESPACES) -> str | None:
    """The text that a reader sees, without references, tables, templates, files, categories and formulas; links keep
    their text. None if markup is left over, as its brackets don't match.

    `namespaces` are those, in small letters, whose links are left out.
    """
    import mwparserfromhell

    if _most_open(wikitext) > _MOST_OPEN:
        return None
    code = mwparserfromhell.parse(_LIST_RUN.sub("", wikitext), skip_style_tags=True)
    text = _STYLE.sub("", "".join(_texts(code, namespaces)))
    if _LEFT_OVER.search(text):
        return None
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r"\( ?[,;] ?", "(", text)  # what a template in brackets leaves behind: (; 1856–1943), ()
    text = re.sub(r" ?\( ?\)", "", text)
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _most_open(wikitext: str) -> int:
    brackets = (abs(wikitext.count(opened) - wikitext.count(closed)) for opened, closed in ("[]", "{}"))
    tags = len(_OPENING.findall(wikitext)) - wikitext.count("</")
    return max(*brackets, tags, len(_TORN.findall(wikitext)))


def _texts(code: Any, namespaces: Collection[str]) -> Iterator[str]:
    from mwparserfromhell import nodes

    for node in code.nodes:
        if isinstance(node, nodes.Text):
            yield node.value
        elif isinstance(node, nodes.Wikilink):
            yield from _link(node, namespaces)
        elif isinstance(node, nodes.HTMLEntity):
            yield _SURROGATE.sub("", node.normalize())
        elif isinstance(node, nodes.Tag):
            name = str(node.tag).strip().lower()
            if name == "br":
                yield "\n"
            elif name not in _HIDDEN_TAGS and node.contents is not None:
                yield from _texts(node.contents, namespaces)
        elif isinstance(node, nodes.ExternalLink | nodes.Heading) and node.title is not None:
            yield from _texts(node.title, namespaces)


def _link(node: Any, namespaces: Collection[str]) -> Iterator[str]:
    target = str(node.title).strip()
    prefix, colon, _ = target.partition(":")
    if colon and (prefix.strip().lower().replace("_", " ") in namespaces or _LANGUAGE.match(prefix)):
        return
    if node.text is not None and str(node.text).strip():
        yield from _texts(node.text, namespaces)
    else:
        yield target.lstrip(":#").replace("_", " ")
