import bz2
import json
import os
import re
from collections import Counter
from xml.sax.saxutils import escape

import pytest

from hhh_jax.data import streams
from hhh_jax.data.source import Block, Drop, Row
from hhh_jax.data.sources import wikipedia
from hhh_jax.errors import UserError

OPTIONS = dict(wikipedia.SOURCE.options)
HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>enwiki</dbname>
    <case>first-letter</case>
    <namespaces>
      <namespace key="-2" case="first-letter">Media</namespace>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Talk</namespace>
      <namespace key="6" case="first-letter">Bild</namespace>
    </namespaces>
  </siteinfo>
"""
TAIL = "</mediawiki>\n"
GOOD = "The '''aardvark''' is a [[mammal]].<ref>B & C</ref>\n\n== Diet ==\nIt eats [[ant|ants]].\n\n== Use ==\nNone.\n"
BAD = GOOD.replace("It eats [[ant|ants]]", "it eats {{x}} my homework")


def revision(number, text, comment=None, parent=None, text_tag=None):
    parent = f"\n      <parentid>{parent}</parentid>" if parent else ""
    comment = f"\n      <comment>{escape(comment)}</comment>" if comment else ""
    text_tag = text_tag or f'<text bytes="{len(text.encode())}" sha1="x" xml:space="preserve">{escape(text)}</text>'
    return f"""    <revision>
      <id>{number}</id>{parent}
      <timestamp>2010-06-19T12:44:38Z</timestamp>
      <contributor>
        <username>A</username>
        <id>7</id>
      </contributor>
      <minor />{comment}
      <origin>{number}</origin>
      <model>wikitext</model>
      <format>text/x-wiki</format>
      {text_tag}
      <sha1>x</sha1>
    </revision>
"""


def page(number, title, revisions, ns="<ns>0</ns>", redirect=""):
    head = f"  <page>\n    <title>{title}</title>\n    {ns}\n    <id>{number}</id>\n{redirect}"
    return head + "".join(revisions) + "  </page>\n"


def history(number=12, title="Aardvark", before=BAD, after=GOOD, comment="rvv", **kwargs):
    first, second, third = number * 100 + 1, number * 100 + 2, number * 100 + 3
    revisions = [revision(first, GOOD, "new"), revision(second, before, "haha", first)]
    return page(number, title, [*revisions, revision(third, after, comment, second)], **kwargs)


def dump(*pages):
    return (HEAD + "".join(pages) + TAIL).encode()


def read(raw, tmp_path, size=streams.BLOCK_BYTES, bad_rows="drop", **options):
    """(rows, drops, journal) of a dump, in blocks of about `size` bytes."""
    path = tmp_path / "dump.xml"
    path.write_bytes(raw)
    with streams.journal(bad_rows) as journal, streams.open_input(str(path)) as stream:
        found = [
            item for block in wikipedia.cut(stream, size) for item in wikipedia.read(block, {**OPTIONS, **options})
        ]
    rows = [item for item in found if isinstance(item, Row)]
    return rows, [item for item in found if isinstance(item, Drop)] + journal.drops, journal


def titles(rows):
    return [row.fields["record"]["group"] for row in rows]


def reasons(drops):
    return Counter(drop.reason for drop in drops)


def test_the_section_after_is_better_than_before(tmp_path):
    rows, drops, _ = read(dump(history()), tmp_path)
    assert [(made.record, made.split) for made in wikipedia.SOURCE.join("12/1203/1", rows, OPTIONS)] == [
        (
            wikipedia.Pair(
                id="12/1203/1",
                context="PAGE TITLE: Aardvark\nSECTION TITLE: Diet\nSECTION BODY: ",
                good="It eats ants.",
                bad="it eats my homework.",
                group="Aardvark",
            ),
            None,
        )
    ]
    assert rows[0].place == f"{tmp_path}/dump.xml: revision 3 (Aardvark, id 1203)"
    assert reasons(drops) == {"no revert of vandalism": 2}
    assert json.loads(json.dumps(rows[0].fields)) == rows[0].fields


def test_an_edit_counts_once_for_every_section_that_it_changed(tmp_path):
    before = "poop\n\n== Diet ==\nIt eats [[ant|ants]]{{cn}}.\n\n== Usage ==\nNone.\n"
    rows, drops, _ = read(dump(history(before=before)), tmp_path)
    assert [row.fields["record"]["context"] for row in rows] == [
        "PAGE TITLE: Aardvark\nSECTION TITLE: Introduction\nSECTION BODY: "
    ]
    assert rows[0].fields["record"]["good"] == "The aardvark is a mammal."
    assert reasons(drops) == {
        "no revert of vandalism": 2, "sides are equal after cleaning": 1, "section is on one side only": 2,
    }  # fmt: skip
    assert [drop.detail for drop in drops if drop.reason == "section is on one side only"] == ["Use", "Usage"]


TEXT_DELETED = '<text bytes="5" deleted="deleted" />'
STUB = '<text bytes="5" id="77" location="tt:77" />'
BLANK = '<text bytes="0" sha1="x" xml:space="preserve" />'
NOT_OURS = {
    "not an article": [history(ns="<ns>1</ns>")],
    "page is a redirect": [history(redirect='    <redirect title="B" />\n')],
    "no revert of vandalism": [history(comment="rv, not vandalism"), history(13, comment=None)],
    "revision before it is missing": [
        page(1, "A", [revision(2, GOOD, "rvv")]),
        page(2, "B", [revision(3, BAD), revision(5, GOOD, "rvv", parent=4)]),
    ],
    "revision longer than 3000 bytes": [history(before="x" * 3000)],
    "a side's text was deleted": [page(1, "A", [revision(1, "", text_tag=TEXT_DELETED), revision(2, GOOD, "rvv")])],
    "a side's text is missing": [page(1, "A", [revision(1, "", text_tag=STUB), revision(2, GOOD, "rvv")])],
    "section is on one side only": [page(1, "A", [revision(1, "== D ==\na"), revision(2, "== E ==\na", "rvv")])],
    "a side is empty after cleaning": [
        history(before="", after="x"),
        history(13, before="{{x}}", after="x"),
        page(1, "A", [revision(1, "", text_tag=BLANK), revision(2, "x", "rvv")]),
    ],
    "a side is a redirect": [history(before="#REDIRECT [[B]]")],
    "sections are equal": [history(before=GOOD)],
    "sides are equal after cleaning": [history(before=GOOD.replace("eats", "''eats''"))],
    "unbalanced markup": [history(before=GOOD.replace("eats", "{{eats"))],
    "section longer than 50000 characters": [history(before="x " * 30_000, after="x")],
    "not wikitext": [history().replace("<model>wikitext<", "<model>wikibase-item<")],
}


@pytest.mark.parametrize("reason", NOT_OURS)
def test_what_is_no_pair_is_counted(reason, tmp_path):
    limit = 3000 if "3000" in reason else 10**6
    rows, drops, _ = read(dump(*NOT_OURS[reason]), tmp_path, revision_limit=limit)
    assert rows == []
    counts = reasons(drops)
    assert counts[reason] >= len(NOT_OURS[reason])
    assert set(counts) <= {reason, "no revert of vandalism"}
    assert not any(drop.bad for drop in drops)


def test_dumps_of_before_2011_give_neither_namespace_nor_parent(tmp_path):
    old = re.sub(r".*<(parentid|ns|model|format|sha1|origin)>.*\n", "", history() + history(13, "Talk:Aardvark"))
    rows, drops, _ = read(dump(old), tmp_path)
    assert [row.fields["record"]["id"] for row in rows] == ["12/1203/1"]
    assert reasons(drops) == {"no revert of vandalism": 4, "not an article": 1}


def test_a_wiki_has_its_own_names_of_files(tmp_path):
    rows, _, _ = read(dump(history(before="[[Bild:A.jpg|x]]Old", after="[[Bild:A.jpg|x]]New")), tmp_path)
    assert rows[0].fields["record"]["good"] == "New"


@pytest.fixture(scope="module")
def long_dump():
    """Pages with one, few and many revisions."""
    edits, parent = [], 50_000
    for number in range(40):
        edits += [
            revision(parent + 1, f"{BAD} {number}", "x", parent),
            revision(parent + 2, f"{GOOD} {number} &", "rvv", parent + 1),
        ]
        parent += 2
    many = page(7, "Many &amp; more", [revision(50_000, GOOD), *edits])
    return dump(history(), page(5, "One", [revision(500, GOOD)]), many, history(14, "Last", comment="ce"))


@pytest.mark.parametrize("size", [700, 1500, 5000, 20_000])
def test_blocks_cut_between_revisions_lose_nothing(size, long_dump, tmp_path):
    whole = read(long_dump, tmp_path)
    assert len(whole[0]) == 41 * 1 + 40 * 1  # each of the 40 changed two sections
    assert read(long_dump, tmp_path, size)[:2] == whole[:2]
    with streams.open_input(str(tmp_path / "dump.xml")) as stream:
        blocks = list(wikipedia.cut(stream, size))
    assert len(blocks) > 1
    assert b"".join(block.data for block in blocks) == long_dump[: long_dump.rindex(b"</page>") + 7]
    assert max(len(block.data) + len(block.context) for block in blocks) < size + 2 * 1500 + len(HEAD) + 1500


def test_compressed_input_and_several_files(tmp_path):
    (tmp_path / "a.xml.bz2").write_bytes(bz2.compress(dump(history())))
    (tmp_path / "b.xml").write_bytes(dump(history(15, "Bee")))
    with streams.journal() as journal:
        names = [str(tmp_path / "a.xml.bz2"), str(tmp_path / "b.xml")]
        blocks = list(wikipedia.SOURCE.blocks(names, OPTIONS))
    assert [block.name for block in blocks] == names
    assert set(journal.inputs) == set(names)
    assert [type(item) for block in blocks for item in wikipedia.read(block, OPTIONS)] == [Drop, Drop, Row] * 2


def test_standard_input(tmp_path, monkeypatch):
    path = tmp_path / "dump.xml"
    path.write_bytes(dump(history()))
    with open(path) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        (block,) = wikipedia.SOURCE.blocks(["-"], OPTIONS)
    assert block.place == "-: revision 1"


BROKEN = {
    "an end tag is missing": (("    </revision>\n    <revision>\n      <id>1203<", "<revision>\n<id>1203<"), 1),
    "the last revision has no end": (("    </revision>\n  </page>\n  <page>", "  </page>\n  <page>"), 1),
    "a tag is torn": (("<comment>rvv</comment>\n      <origin>1203<", "<comment>rvv</comment><origi\n>1203<"), 1),
    "an entity is unknown": (("my homework", "my &lol; homework"), 1),
    "an id is no number": (("<id>1203</id>", "<id>12o3</id>"), 1),
    "no page begins": (("  <page>\n    <title>Aardvark</title>", "    <title>Aardvark</title>"), 3),
    "a title is missing": (("    <title>Aardvark</title>\n", ""), 1),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_xml_is_counted_and_the_next_page_is_read(what, tmp_path):
    (old, new), lost = BROKEN[what]
    text = dump(history(), history(15, "Bee")).decode()
    assert old in text
    rows, drops, _ = read(text.replace(old, new, 1).encode(), tmp_path)
    assert titles(rows) == ["Bee"]
    bad = [drop for drop in drops if drop.bad]
    assert len(bad) == lost
    assert all(drop.place.startswith(f"{tmp_path}/dump.xml: revision ") for drop in bad)
    assert len(rows) + len(drops) == 6


def test_a_revision_without_main_content_is_broken_xml(tmp_path):
    other = '<text bytes="1">x</text><content><role>other</role></content>'
    odd = page(1, "A", [revision(1, BAD), revision(2, "", "rvv", text_tag=other)])
    rows, drops, _ = read(dump(odd, history(15, "Bee")), tmp_path)
    assert titles(rows) == ["Bee"]
    assert reasons(drops)["broken XML"] == 1


def test_invalid_utf8_is_broken_xml(tmp_path):
    raw = dump(history(), history(15, "Bee")).replace(b"my homework", b"my h\xf6mework", 1)
    rows, drops, _ = read(raw, tmp_path)
    assert titles(rows) == ["Bee"]
    assert reasons(drops)["broken XML"] == 1


@pytest.mark.parametrize("keep", ["</page>\n", "<text"])
def test_a_dump_that_breaks_off_is_counted_once(keep, tmp_path):
    raw = dump(history(), history(15, "Bee"))
    raw = raw[: raw.rindex(keep.encode()) + len(keep)]
    rows, drops, _ = read(raw, tmp_path)
    assert titles(rows)[0] == "Aardvark"
    assert reasons(drops)["the dump breaks off"] == 1
    with streams.journal("drop") as journal, streams.open_input(str(tmp_path / "dump.xml")) as stream:
        assert list(wikipedia.cut(stream))
    assert journal.inputs[stream.name]["damage"] == "the dump breaks off: it doesn't end in </mediawiki>"
    assert sum(drop.bad for drop in drops) == 1
    with pytest.raises(UserError, match=r"dump\.xml: revision [67]: the dump breaks off.*--bad_rows=drop"):
        read(raw, tmp_path, bad_rows="error")


def test_a_torn_bz2_is_counted_once(tmp_path):
    raw = bz2.compress(dump(*(history(n, f"P{n}", before=BAD + os.urandom(3000).hex()) for n in range(10, 200))))
    rows, drops, _ = read(raw[:-1000], tmp_path)
    assert rows
    assert [drop.reason for drop in drops if drop.bad] == ["broken compression"]


def test_a_revision_without_end_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(wikipedia, "MAX_LINE", 20_000)
    many = page(3, "Ant", [revision(301, GOOD), revision(302, "x" * 70_000), revision(303, GOOD, "rvv", 302)])
    rows, drops, journal = read(dump(many, history(15, "Bee")), tmp_path, size=5000)
    assert titles(rows) == ["Bee"]
    assert len(journal.drops) == 1
    assert journal.drops[0].place.endswith(": revision 2")
    assert reasons(drops)["revision before it is missing"] == 1
    assert len(rows) + len(drops) == 6


def test_edits_after_an_overlong_revision_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(wikipedia, "MAX_LINE", 20_000)
    long = revision(301, "x" * 70_000)
    ant = page(3, "Ant", [long, revision(302, BAD, parent=301), revision(303, GOOD, "rvv", 302)])
    rows, drops, _ = read(dump(ant, history(15, "Bee")), tmp_path, size=5000)
    assert titles(rows) == ["Ant", "Bee"]
    assert [drop.reason for drop in drops if drop.bad] == ["revision longer than 0 MiB"]


def test_entities_defined_before_an_overlong_revision_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(wikipedia, "MAX_LINE", 20_000)
    raw = dump(page(3, "Ant", [revision(301, "x" * 70_000)]), history(15, "Bee"))
    with pytest.raises(UserError, match=r"dump\.xml: after revision 1: <!DOCTYPE, which"):
        read(LAUGHS.encode() + raw, tmp_path, size=5000)


LAUGHS = '<!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;">]>\n'


@pytest.mark.parametrize(("at", "number"), [("<mediawiki", 0), ("  <page>\n    <title>Bee", 3), ("poop", 5)])
@pytest.mark.parametrize("what", [LAUGHS, '<!ENTITY x SYSTEM "file:///etc/passwd">', "<![CDATA[x]]>"])
def test_what_could_define_entities_is_refused(what, at, number, tmp_path):
    text = dump(history(), history(15, "Bee", before=f"{BAD} poop")).decode()
    declared = re.escape(re.match(r"<!\w*", what)[0])
    with pytest.raises(UserError, match=rf"dump\.xml: after revision {number}: {declared}, which"):
        read(text.replace(at, what + at, 1).encode(), tmp_path)


@pytest.mark.parametrize("raw", [b"", b"text", b"<mediawiki>", b"<html><siteinfo></siteinfo></html>"])
def test_what_is_no_dump_is_an_error(raw, tmp_path):
    with pytest.raises(UserError, match=r"dump\.xml: not a MediaWiki dump"):
        read(raw, tmp_path)


TALK = "([[User talk:1.2.3.4|talk]])"
REVERTS = [
    "rvv", "RVV.", "rv v", "rv/v", "rv-v", "rvvandalism", "rv vandalism", "rv vand", "rvt vandalism", "Rev. vandal",
    "revert vandalism by anon", "Reverted vandalism", "reverting vandalism", "Vandalism reverted", "rv vandalizm",
    "rv; please do not vandalize Wikipedia", "rv: don't vandalise", "rv vandalism, not constructive",
    "undid vandalism", "restored text deleted by vandal", "rolled back vandalism", "BOT - rv possible vandalism",
    "/* Diet */ rv vandalism", "rv to pre-vandalism version", "rv vandlism", "rv test/vandalism",
    f"Undid revision 123 by [[Special:Contributions/1.2.3.4|1.2.3.4]] {TALK} vandalism",
    f"Reverted 2 edits by [[Special:Contributions/1.2.3.4|1.2.3.4]] {TALK} identified as [[WP:VAND|vandalism]] to last "
    "revision by [[User:B|B]]. ([[WP:TW|TW]])",
    f"Reverted 1 edit by [[Special:Contributions/1.2.3.4|1.2.3.4]] {TALK} identified as test/vandalism using "
    "[[WP:STiki|STiki]]",
    "Reverting possible vandalism by [[Special:Contributions/1.2.3.4|1.2.3.4]] to version by B. False positive? "
    "[[User:ClueBot NG/FalsePositives|Report it]]. Thanks, [[User:ClueBot NG|ClueBot NG]]. (123) (Bot)",
    f"Reverted edits by [[Special:Contributions/1.2.3.4|1.2.3.4]] {TALK} to last version by B ([[WP:HG|HG]]) (3.4.9)",
    f"Reverted edits by [[Special:Contributions/1.2.3.4|1.2.3.4]] {TALK} to last revision by B (using [[WP:H|Huggle]])",
]  # fmt: skip
OTHERS = [
    "", "ce", "typo", "not vandalism", "rv, not vandalism", "rv - this isn't vandalism", "rv: this is not really a "
    "vandal", "rv non-vandalism", "reverted, no vandalism", "undid: wasn't obvious vandalism", "rv false vandalism "
    "claim", "rv; never was vandalism", "reverted anti-vandal bot", "rv good faith vandalism", "rv AGF vandalism?",
    "/* Vandalism */ rv unsourced", "/* Vandals */ restored the source", "rm vandalism", "add [[vandalism]]", "rv",
    "revert", "rv van Gogh", "revert to Vanderbilt", "the hg19 genome reverted", "overview", "curvv", "Revvved",
    f"Reverted edits by [[Special:Contribs/1.2.3.4|1.2.3.4]] {TALK} to last version by ClueBot NG",
    "Undid revision 12 by [[Special:Contributions/AntiVandalBot|AntiVandalBot]] ([[User talk:AntiVandalBot|talk]])",
    f"Reverted [[WP:AGF|good faith]] edits by [[Special:Contributions/1.2.3.4|1.2.3.4]] {TALK} ([[WP:HG|HG]]) (3.4.9)",
    f"Reverted edits by [[Special:Contributions/1.2.3.4|1.2.3.4]] {TALK}: unsourced ([[WP:HG|HG]]) (3.4.10)",
]  # fmt: skip


@pytest.mark.parametrize("comment", REVERTS)
def test_comments_that_revert_vandalism(comment, tmp_path):
    assert wikipedia.reverts_vandalism(comment)
    assert len(read(dump(history(comment=comment)), tmp_path)[0]) == 1  # the first look at bytes lets it pass


@pytest.mark.parametrize("comment", OTHERS)
def test_other_comments(comment):
    assert not wikipedia.reverts_vandalism(comment)


@pytest.mark.real_data("wikipedia_edits/bigbench_which_wiki_edit_task.json")
def test_published_comments(real_data):
    """Read by eye: of 571 edits 61 revert something; 5 say vandalism, and 4 are Huggle's without another reason."""
    task = json.loads((real_data / "wikipedia_edits/bigbench_which_wiki_edit_task.json").read_text())
    comments = [max(example["target_scores"], key=example["target_scores"].get) for example in task["examples"]]
    found = [comment for comment in comments if wikipedia.reverts_vandalism(comment)]
    assert len(comments) == 571
    assert Counter(re.findall(r"(?i)vandalism|HG|Huggle", comment)[0] for comment in found) == {
        "vandalism": 4, "Vandalism": 1, "HG": 2, "Huggle": 2,
    }  # fmt: skip


def test_a_block_stands_alone():
    """`read` needs nothing but the block: what workers get is what a block says."""
    text = dump(history()).decode()
    cut = text.index("    <revision>\n      <id>1203")
    start = text.index("    <revision>\n      <id>1202")
    head = text[: text.index("    <revision>")]
    block = Block("d: revision 3", "d", text[cut:].encode(), 3, (head + text[start:cut]).encode())
    (row,) = wikipedia.read(block, OPTIONS)
    assert row.place == "d: revision 3 (Aardvark, id 1203)"
