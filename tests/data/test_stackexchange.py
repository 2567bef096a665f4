"""Stack Exchange: the paper's scores, one pair a question, every row counted, and XML that can't hurt."""

import math
import re
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import pytest
from source_runs import line_by_line, run, run_blocks, settings

from hhh_jax.data.sources import stackexchange
from hhh_jax.data.sources.stackexchange import SOURCE, score, sites
from hhh_jax.errors import UserError


def row(**fields):
    return "  <row " + " ".join(f"{name}={quoteattr(str(value))}" for name, value in fields.items()) + " />"


def question(number, accepted=None, **more):
    chosen = {} if accepted is None else {"AcceptedAnswerId": accepted}
    fields = {"Title": f"What is {number}?", "Body": f"<p>Tell of {number} & <em>more</em>.</p>\n"}
    return row(Id=number, PostTypeId=1, **chosen, CreationDate="2014-01-21T20:26:05.383", Score=9, **fields | more)


def answer(number, parent, votes, **more):
    return row(Id=number, PostTypeId=2, ParentId=parent, Score=votes, **{"Body": f"<p>It is {number}.</p>\n"} | more)


def posts(path, *rows):
    """A dump as published: a byte-order mark, the rows indented, lines that end as on Windows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\ufeff" + '<?xml version="1.0" encoding="utf-8"?>', "<posts>", *rows, "</posts>"]
    path.write_bytes("\r\n".join(lines).encode("utf-8", "surrogateescape"))
    return path


def test_scores_by_hand():
    # log2(1 + 2) = 1.58, log2(1 + 4) = 2.32, log2(1 + 5) = 2.58, log2(1 + 10) = 3.46, log2(1 + 11) = 3.58
    upvotes = {0: 0, 1: 1, 2: 2, 3: 2, 4: 2, 5: 3, 7: 3, 10: 3, 11: 4, 1023: 10}
    for votes, expected in upvotes.items():
        assert score(votes, False) == expected and score(votes, True) == expected + 1
    assert {score(votes, accepted) for votes in (-1, -50) for accepted in (False, True)} == {-1}


def test_pair_and_counts(tmp_path):
    path = posts(
        tmp_path / "beer" / "Posts.xml",
        question(1, accepted=3),
        answer(2, 1, 2),  # score 2
        answer(3, 1, 2),  # accepted: 3
        question(4),
        answer(5, 4, 3),
        answer(6, 4, 4),  # the same score
        question(7),
        answer(8, 7, 100),
        answer(9, 999, 5),
        row(Id=10, PostTypeId=5, Score=0, Body="<p>about a tag</p>"),
    )
    result = run(SOURCE, [path])
    (pair,) = result.records
    assert pair.context == "Question: What is 1?\n\nTell of 1 & more.\n\n"
    assert (pair.good, pair.bad) == ("Answer: It is 3.", "Answer: It is 2.")
    assert (pair.id, pair.group) == ("beer:1:3>2", "beer:1")
    assert (result.read, result.kept) == (10, 3)
    assert result.reasons == {
        "question with answers of one score": 3,
        "question with fewer than two answers": 2,
        "question missing": 1,
        "neither question nor answer": 1,
    }
    assert result.places("question missing") == [f"{path}:11"]


def test_every_eligible_pair_is_drawn_under_some_seed(tmp_path):
    votes = {2: 0, 3: 0, 4: 1, 5: 50, 6: -3}
    path = posts(tmp_path / "Posts.xml", question(1), *(answer(number, 1, n) for number, n in votes.items()))
    seen = set()
    for seed in range(100):
        result = run(SOURCE, [path], seed=seed)
        (pair,) = result.records
        seen.add(tuple(int(name) for name in re.fullmatch(r".*:1:(\d+)>(\d+)", pair.id).groups()))
        assert result.reasons == {"answer not drawn": 3}
    assert seen == {(a, b) for a in votes for b in votes if score(votes[a], False) > score(votes[b], False)}


def test_order_of_the_rows_and_cuts_between_blocks_do_not_matter(tmp_path):
    rows = [question(n) for n in range(1, 9)] + [answer(100 * n + i, n, i * i) for n in range(1, 9) for i in range(4)]
    forth = posts(tmp_path / "a" / "s" / "Posts.xml", *rows)
    back = posts(tmp_path / "b" / "s" / "Posts.xml", *rows[::-1])
    result = run(SOURCE, [forth])
    assert len(result.records) == 8 and result.records == run(SOURCE, [back]).records
    blocks = SOURCE.blocks([str(forth)], settings(SOURCE))
    cut = run_blocks(SOURCE, (line for block in blocks for line in line_by_line(block)))
    assert cut.records == result.records and cut.drops == result.drops


def test_broken_rows_are_counted_with_their_place(tmp_path):
    path = posts(
        tmp_path / "Posts.xml",
        question(1),
        answer(2, 1, 0),
        answer(3, 1, 9),
        answer(4, 1, 5)[:-9],
        answer(5, 1, 5).replace("It", "\udce9"),
        row(Id=6, PostTypeId=2, ParentId=1, Body="x"),
        row(Id="seven", PostTypeId=2, ParentId=1, Score=1, Body="x"),
        answer(8, 1, 5).replace("It", "&unknown;"),
        answer(9, 1, 5).replace("It", "&#x1;"),
        "a line of another file",
        '<row Id="10" PostTypeId="2" Body="no end/>',
        answer(2, 1, 0),
        row(Id=11),
        answer(12, 1, 5).replace("Score=", 'Score="5" Score='),
        answer(13, 1, 5, Body="x" * (stackexchange.MAX_TEXT + 1)),
    )
    result = run(SOURCE, [path])
    assert [pair.id.rpartition(":")[2] for pair in result.records] == ["3>2"]
    assert {reason: result.places(reason) for reason in result.reasons} == {
        "broken XML": [f"{path}:{line}" for line in (6, 10, 11, 13, 16)],
        "invalid UTF-8": [f"{path}:7"],
        "attribute missing": [f"{path}:8", f"{path}:15"],
        "attribute not a number": [f"{path}:9"],
        "not a row": [f"{path}:12"],
        "id seen before": [f"{path}:14"],
        f"text longer than {stackexchange.MAX_TEXT} characters": [f"{path}:17"],
    }
    assert all(drop.bad == (drop.reason != "id seen before") for drop in result.drops)
    assert [drop.detail for drop in result.drops if drop.reason == "attribute missing"] == ["Score", "PostTypeId"]
    assert result.read == 15 and result.kept == 3


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE posts [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>',
        '<!DOCTYPE posts SYSTEM "file:///etc/passwd">',
        "<!DOCTYPE posts [",
        '<!ENTITY lol SYSTEM "http://example.org/">',
        '<?xml version="1.0"?><!DOCTYPE posts [<!ENTITY a "a">]><posts><row Id="1" Body="&a;"/>',
    ],
)
def test_a_document_type_is_refused_with_its_place(tmp_path, declaration):
    path = posts(tmp_path / "Posts.xml", question(1), declaration, answer(2, 1, 1))
    with pytest.raises(UserError, match=re.escape(f"{path}:4: declares a document type or entity")):
        run(SOURCE, [path])


def test_a_document_type_in_a_post_is_text_and_in_a_row_broken(tmp_path):
    path = posts(
        tmp_path / "Posts.xml",
        question(1, Body="<p>What does &lt;!DOCTYPE html&gt; do?</p>"),
        answer(2, 1, 0),
        answer(3, 1, 1),
        '<row Id="4" PostTypeId="2" Body="<!DOCTYPE html>" />',
        '<row Id="5" PostTypeId="2" Body="" /><!DOCTYPE a [<!ENTITY b "c">]>',
    )
    result = run(SOURCE, [path])
    assert "What does <!DOCTYPE html> do?" in result.records[0].context
    assert result.reasons == {"broken XML": 2}


def test_texts_that_cannot_be_told_apart_give_no_pair(tmp_path):
    path = posts(
        tmp_path / "Posts.xml",
        *(question(1), answer(2, 1, 0, Body="<p>same</p>"), answer(3, 1, 5, Body="<b>same</b>")),
        *(question(4), answer(5, 4, 0, Body="<p> </p>"), answer(6, 4, 5)),
        *(question(7), answer(8, 7, 0, Body="<b>" * 1000 + "x"), answer(9, 7, 5)),
    )
    result = run(SOURCE, [path])
    assert not result.records and result.read == 9
    assert result.reasons == {
        "question with answers of one text": 3,
        "question with empty answer": 3,
        "markup nested too deeply": 3,
    }


def test_text_that_begins_with_a_block_begins_a_line(tmp_path):
    path = posts(
        tmp_path / "Posts.xml",
        question(1, Body=""),
        answer(2, 1, 0, Body="<pre><code>x = 1\n</code></pre>"),
        answer(3, 1, 5, Body="<ul><li>a</li></ul>"),
    )
    (pair,) = run(SOURCE, [path]).records
    assert (pair.context, pair.good, pair.bad) == (
        "Question: What is 1?\n\n",
        "Answer:\n- a",
        "Answer:\n```\nx = 1\n```",
    )


def test_sites_tell_posts_apart(tmp_path):
    rows = (question(1), answer(2, 1, 0), answer(3, 1, 5))
    paths = [
        posts(tmp_path / "2014" / "beer" / "Posts.xml", *rows),
        posts(tmp_path / "2015" / "beer" / "Posts.xml", *rows),
        posts(tmp_path / "law" / "Posts.xml", *rows),
        posts(tmp_path / "stackoverflow.com-Posts.xml", *rows),
    ]
    result = run(SOURCE, paths)
    names = ["2014/beer", "2015/beer", "law", "stackoverflow.com"]
    assert sorted(pair.group for pair in result.records) == [f"{name}:1" for name in names]
    assert sorted(pair.id for pair in result.records) == [f"{name}:1:3>2" for name in names]
    assert (result.read, result.kept) == (12, 12)


def test_names_of_sites(monkeypatch, tmp_path):
    (tmp_path / "beer").mkdir()
    monkeypatch.chdir(tmp_path / "beer")
    assert sites(["Posts.xml"]) == ["beer"]
    assert sites(["-"]) == ["stdin"] and sites(["-"], "law") == ["law"]
    assert sites(["/a/beer/Posts.xml.bz2", "/b/beer/Posts.xml", "/beer/Posts.xml"]) == ["a/beer", "b/beer", "beer"]
    assert sites(["/a/beer/Posts.xml", "/a/beer/ale-Posts.xml"]) == ["beer", "ale"]
    with pytest.raises(UserError, match="given twice"):
        sites(["Posts.xml", "../beer/Posts.xml"])
    with pytest.raises(UserError, match="names one input's site, and there are 2"):
        sites(["a/Posts.xml", "b/Posts.xml"], "law")


@pytest.mark.real_data("stackexchange/beer/Posts.xml")
def test_real_dump_against_a_tree_of_it(real_data):
    path = real_data / "stackexchange" / "beer" / "Posts.xml"
    result = run(SOURCE, [path])
    elements = {element.get("Id"): element for element in ElementTree.parse(path).getroot()}
    scores: dict[str, dict[str, int]] = {}
    for name, element in elements.items():
        if element.get("PostTypeId") == "2":
            question = element.get("ParentId")
            votes = int(element.get("Score"))
            expected = -1 if votes < 0 else math.floor(math.log2(1 + votes) + 0.5)
            if votes >= 0 and question in elements and elements[question].get("AcceptedAnswerId") == name:
                expected += 1
            scores.setdefault(question, {})[name] = expected
    eligible = {name for name, answers in scores.items() if name in elements and len(set(answers.values())) > 1}
    assert {pair.group for pair in result.records} == {f"beer:{name}" for name in eligible}
    for pair in result.records:
        question, good, bad = re.fullmatch(r"beer:(\d+):(\d+)>(\d+)", pair.id).groups()
        assert scores[question][good] > scores[question][bad]
        assert elements[question].get("Title").split() == pair.context.split("\n")[0].split()[1:]
        for text, name in ((pair.good, good), (pair.bad, bad)):
            assert text.startswith("Answer:") and len(text) <= 2 * len(elements[name].get("Body"))
    assert result.read == len(elements) == 2354 and result.kept == 3 * len(result.records)
    assert not any(drop.bad for drop in result.drops)
