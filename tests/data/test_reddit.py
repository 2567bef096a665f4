"""Reddit: chains that differ in the last comment, aliases that tell nothing, and every row counted."""

import gzip
import json
import random
import re
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from source_runs import line_by_line, run, run_blocks, settings

from hhh_jax.data.source import Block
from hhh_jax.data.sources.reddit import SOURCE, SUBREDDITS
from hhh_jax.errors import UserError


def submission(name, author="asker", title="Why?", selftext="", **more):
    fields = {"id": name, "author": author, "subreddit": "askscience", "title": title, "selftext": selftext, "score": 5}
    return fields | {"created_utc": 1439797480, "num_comments": 3, "domain": "self.askscience"} | more


def comment(name, parent, score=1, author="somebody", body=None, thread="s", **more):
    """A comment to another one, or to the submission "s"."""
    parent = f"t3_{parent}" if parent == thread else f"t1_{parent}"
    fields = {"id": name, "author": author, "subreddit": "askscience", "link_id": f"t3_{thread}", "parent_id": parent}
    fields |= {"score": score, "body": f"It is {name}." if body is None else body, "created_utc": 1439797481}
    return fields | {"controversiality": 0, "gilded": 0, "stickied": False, "distinguished": None} | more


def dump(path, *rows):
    """Rows as published: JSON without spaces, or the line given."""
    lines = [row if isinstance(row, str) else json.dumps(row, separators=(",", ":")) for row in rows]
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    if path.suffix == ".zst":
        data = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def ends(result):
    """(good, bad) names of the pairs."""
    return {re.fullmatch(r"t3_\w+:t1_(\w+)>t1_(\w+)", pair.id).groups() for pair in result.records}


def test_chain_and_counts(tmp_path):
    path = dump(
        tmp_path / "both.jsonl",
        comment("c", "b", 20, "third", "Because."),
        comment("b", "s", 3, "second", "Because it is &gt; 3.\n\n\n\n&amp; so"),
        submission("s", "first", "Why is it?", "I ask\r\nmyself."),
        comment("d", "b", 2, "first", "No."),
        comment("e", "b", 3, "third", "Well."),
        comment("x", "y", thread="other"),
    )
    result = run(SOURCE, [path])
    (pair,) = result.records
    assert pair.context == (
        "SUBMISSION by user1: Why is it?\n\nI ask\nmyself.\n\nCOMMENT by user2: Because it is > 3.\n\n& so\n\n"
    )
    bad = {"d": "COMMENT by user1: No.", "e": "COMMENT by user3: Well."}
    assert pair.good == "COMMENT by user3: Because." and pair.group == "t3_s"
    (end,) = ends(result)
    assert end[0] == "c" and pair.bad == bad[end[1]]
    assert result.reasons == {"comment not drawn": 1, "submission missing": 1}
    assert (result.read, result.kept) == (6, 4)
    assert result.places("submission missing") == [f"{path}:6"]


def test_months_compressed_apart_and_in_any_order(tmp_path):
    rng = random.Random(0)
    threads = [f"s{i}" for i in range(20)]
    comments = [comment(f"{t}c{i}", t, 10 * i, thread=t) for t in threads for i in range(4)]
    comments += [comment(f"{t}d{i}", f"{t}c1", 10 * i, thread=t) for t in threads for i in range(4)]
    one = run(SOURCE, [dump(tmp_path / "all.jsonl", *[submission(t) for t in threads], *comments)])
    assert len(one.records) == 20
    for _ in range(3):
        rng.shuffle(comments)
        paths = [
            dump(tmp_path / "RC_2015-08.zst", *comments[:50]),
            dump(tmp_path / "RS_2015-08.gz", *[submission(t) for t in threads]),
            dump(tmp_path / "RC_2015-09.zst", *comments[50:]),
        ]
        other = run(SOURCE, paths)
        assert other.records == one.records and other.reasons == one.reasons
        blocks = SOURCE.blocks([str(path) for path in paths], settings(SOURCE))
        cut = run_blocks(SOURCE, (line for block in blocks for line in line_by_line(block)))
        assert cut.records == one.records


# What the submission, a comment to it, and a good and a bad answer to that say, with their authors; and what becomes of
# it. The two ends are strangers to the chain, and have the same number.
MENTIONS = (
    ("Ann_1", "Ask /u/bob-2 or u/Carl!\n\nsee https://www.reddit.com/user/Ann_1/top, not u/x"),
    ("BOB-2", "I'm u/bob-2, hi /u/ann_1's friend. r/u/dora is u/dora"),
    ("Eve", "u/ann_1 u/Fred u/eve"),
    ("Gus", "u/Hal u/ann_1 u/gus"),
), (
    "SUBMISSION by user1: Ask /u/user2 or u/user3!\n\nsee https://www.reddit.com/user/user1/top, not u/x\n\n"
    "COMMENT by user2: I'm u/user2, hi /u/user1's friend. r/u/user4 is u/user4\n\n",
    "COMMENT by user5: u/user1 u/user6 u/user5",
    "COMMENT by user5: u/user6 u/user1 u/user5",
)  # fmt: skip
AUTHORS_IN_TEXTS = (
    ("Alice_B", "Who is alice_b?\n\nNot Alice_Bo, carl nor Dora7."),
    ("carl", "Alice_B's right, @Carl, carl and (eve-1)."),
    ("Dora7", "Dora7 and user1 thank @carl, Alice_B-like."),
    ("eve-1", "I'm eve-1; Dora7?"),
), (
    "SUBMISSION by user1: Who is user1?\n\nNot Alice_Bo, carl nor user2.\n\n"
    "COMMENT by user3: user1's right, @user3, carl and (user4).\n\n",
    "COMMENT by user2: user2 and user1 thank @user3, user1-like.",
    "COMMENT by user4: I'm user4; user2?",
)  # fmt: skip


@pytest.mark.parametrize(("posts", "written"), [MENTIONS, AUTHORS_IN_TEXTS])
def test_names_are_aliases_by_chain(posts, written, tmp_path):
    (asker, said), *others = posts
    title, _, selftext = said.partition("\n\n")
    answers = [
        comment(name, parent, score, author, body)
        for name, parent, score, (author, body) in zip("abc", "saa", (1, 50, 1), others, strict=True)
    ]
    (pair,) = run(SOURCE, [dump(tmp_path / "all.jsonl", submission("s", asker, title, selftext), *answers)]).records
    assert (pair.context, pair.good, pair.bad) == written


@pytest.mark.parametrize("own_parent", ["t1_a", "t3_z"])
def test_a_comment_that_is_its_own_thread_is_counted(tmp_path, own_parent):
    odd = comment("a", "s", link_id="t1_a", parent_id=own_parent)
    replies = [comment(name, "a", score, link_id="t1_a") for name, score in (("b", 9), ("c", 1))]
    result = run(SOURCE, [dump(tmp_path / "all.jsonl", odd, *replies)])
    assert result.reasons == {"link_id is no submission's name": 3} and all(drop.bad for drop in result.drops)


@pytest.mark.parametrize("gone", [{}, {"author": None}, {"author": "[deleted]"}])
def test_nameless_authors_have_no_number(tmp_path, gone):
    rows = [submission("s", "ann"), comment("a", "s", 9), comment("b", "s", 1)]
    for row in rows[1:]:
        del row["author"]
        row |= gone
    (pair,) = run(SOURCE, [dump(tmp_path / "all.jsonl", *rows)]).records
    assert pair.context.startswith("SUBMISSION by user1: ")
    assert (pair.good, pair.bad) == ("COMMENT by user: It is a.", "COMMENT by user: It is b.")


def test_deleted_posts_and_bots_are_out_with_what_is_below(tmp_path):
    path = dump(
        tmp_path / "all.jsonl",
        submission("s"),
        *(comment("a", "s", 90, body="[deleted]"), comment("b", "s", 80, body="[removed] ")),
        *(comment("c", "s", 70, "AutoModerator"), comment("d", "s", 60, "RemindMeBot"), comment("e", "s", 50, "x_bot")),
        *(comment("f", "s", 40, body="*I am a bot, and this action was performed automatically.*"),),
        *(comment("g", "a", 9), comment("h", "a", 1), comment("i", "h", 1), comment("j", "c", 9)),
        *(comment("k", "nowhere", 9), comment("l", "nowhere", 1), comment("m", "l", 1)),
        *(comment("n", "o", 5), comment("o", "n", 50)),  # each other's parent
        *(comment("p", "s", 30, "Talbot"), comment("q", "s", 10, "botany")),
        submission("t", title="[deleted by user]"),
        *(comment("ta", "t", 9, thread="t"), comment("tb", "t", thread="t")),
        *(submission("u", selftext="[removed]"), comment("ua", "u", 9, thread="u"), comment("ub", "u", thread="u")),
    )
    result = run(SOURCE, [path])
    assert ends(result) == {("p", "q")}
    assert result.reasons == {
        "deleted or removed": 4,
        "by a bot": 4,
        "below what is deleted or removed": 3 + 4,
        "below what is by a bot": 1,
        "parent missing": 3 + 2,
    }
    assert result.kept == 3
    more = run(SOURCE, [path], bots="AutoModerator|Talbot|bot.*", pairs_per_thread=9)
    assert not ends(more) & {("p", "q")} and ends(more) == {("d", "e")}


def test_pinned_hidden_and_equal_comments_are_not_compared(tmp_path):
    path = dump(
        tmp_path / "all.jsonl",
        *(submission("s"), comment("a", "s", 1, score_hidden=True), comment("b", "s", 99, stickied=True)),
        *(comment("c", "s", 50, body="&#x200B; "), comment("d", "s", 70, body="same")),
        *(comment("e", "s", 1, body=" same"), comment("h", "s", 90, body="u/ann"), comment("i", "s", 9, body="u/bob")),
        *(comment("f", "a", 9), comment("g", "a", 1)),
    )
    result = run(SOURCE, [path], pairs_per_thread=9)
    assert ("f", "g") in ends(result) and not {end for pair in ends(result) for end in pair} & {"a", "b", "c"}
    for seed in range(20):
        seen = ends(run(SOURCE, [path], seed=seed))
        assert len(seen) == 1 and not seen & {("d", "e"), ("h", "i")}  # the same text, at least with aliases


def test_difference_and_number_of_pairs(tmp_path):
    scores = [-3, 0, 1, 1, 6, 30]
    comments = [comment(f"c{i}", "s", score) for i, score in enumerate(scores)]
    path = dump(tmp_path / "all.jsonl", submission("s"), *comments)
    for difference in (1, 5, 29, 33):
        eligible = {
            (f"c{i}", f"c{j}") for i, a in enumerate(scores) for j, b in enumerate(scores) if a - b >= difference
        }
        seen = set()
        for seed in range(150):
            result = run(SOURCE, [path], min_difference=difference, seed=seed)
            assert len(ends(result)) == 1
            seen |= ends(result)
        assert seen == eligible
    assert not run(SOURCE, [path], min_difference=34).records
    assert run(SOURCE, [path], min_difference=34).reasons == {"thread without a pair": 7}
    for most in (1, 2, 3, 9):
        result = run(SOURCE, [path], pairs_per_thread=most, min_difference=3)
        used = [name for end in ends(result) for name in end]
        assert len(used) == len(set(used)) == 2 * len(result.records) and 1 <= len(result.records) <= most
        assert result.kept == 1 + len(used)


def test_subreddits(tmp_path):
    assert 45 <= len(SUBREDDITS) <= 55 and len({name.lower() for name in SUBREDDITS}) == len(SUBREDDITS)
    assert not {"amitheasshole", "relationship_advice"} & {name.lower() for name in SUBREDDITS}
    rows = []
    for thread, name in (("s", "AskScience"), ("t", "AmItheAsshole"), ("u", "funny")):
        rows += [submission(thread, subreddit=name)]
        rows += [comment(f"{thread}{i}", thread, 9 * i, thread=thread, subreddit=name) for i in range(2)]
    rows[3]["crosspost_parent_list"] = [{"subreddit": "askscience"}]
    rows[0] = json.dumps({"crosspost_parent_list": [{"subreddit": "funny"}]} | rows[0], indent=None)
    rows.append({"id": "ad", "title": "Buy!", "promoted": True})
    path = dump(tmp_path / "all.jsonl", *rows)
    for subreddits, groups in (
        (None, {"t3_s"}),
        ("funny, AMITHEASSHOLE", {"t3_t", "t3_u"}),
        ("*", {"t3_s", "t3_t", "t3_u"}),
    ):
        result = run(SOURCE, [path], **({} if subreddits is None else {"subreddits": subreddits}))
        assert {pair.group for pair in result.records} == groups
        assert result.reasons["without a subreddit"] == 1
        assert result.reasons["subreddit not on the list"] == 9 - 3 * len(groups)


def test_broken_rows_are_counted_with_their_place(tmp_path):
    whole = json.dumps(comment("z", "s"))
    path = dump(
        tmp_path / "all.jsonl",
        *(submission("s"), comment("a", "s", 9), comment("b", "s", 1)),
        whole[:-20],
        whole.replace("It is", "\udce9"),
        {name: value for name, value in comment("z", "s").items() if name != "parent_id"},
        comment("z", "s", score="many"),
        comment("z", "s", score=None),
        comment("z", "s", author=7),
        comment("z", "s", body="\ud83c"),
        "[]",
        "",
        {"subreddit": "science", "name": "t5_x"},
        comment("a", "s", 900),
        "[" * 100_000,
    )
    result = run(SOURCE, [path])
    assert ends(result) == {("a", "b")}
    assert {reason: result.places(reason) for reason in result.reasons} == {
        "broken JSON": [f"{path}:4", f"{path}:15"],
        "not UTF-8": [f"{path}:5"],
        "no field parent_id": [f"{path}:6"],
        "score is not a number": [f"{path}:7", f"{path}:8"],
        "author is not text": [f"{path}:9"],
        "body has half a surrogate pair": [f"{path}:10"],
        "not a JSON object": [f"{path}:11"],
        "neither comment nor submission": [f"{path}:13"],
        "id seen before": [f"{path}:14"],
    }
    assert all(drop.bad == (drop.reason != "id seen before") for drop in result.drops)
    assert (result.read, result.kept) == (14, 3)


def test_addresses_and_reactions_to_votes_are_left_out(tmp_path):
    body = (
        'See [this](https://x.org/a_(b)?c=1 "title"), ![gif](giphy|x1), ![](x) and http://y.org [1]\n\n'
        "Edit: thanks for the gold!\n\n*EDIT 2*: wow, this blew up\n\nEdit: I meant a goldfish.\n\nEdit: a letter"
    )
    path = dump(tmp_path / "all.jsonl", submission("s"), comment("a", "s", 9, body=body), comment("b", "s", 1))
    (pair,) = run(SOURCE, [path]).records
    assert pair.good == "COMMENT by user2: See this, [gif], [image] and http://y.org [1]\n\nEdit: a letter"


def test_a_long_chain(tmp_path):
    comments = [comment("c0", "s")] + [comment(f"c{i + 1}", f"c{i}") for i in range(3000)]
    ends_ = [comment("a", "c3000", 9), comment("b", "c3000", 1)]
    path = dump(tmp_path / "all.jsonl", submission("s"), *ends_, *comments[::-1])
    result = run(SOURCE, [path])
    assert ends(result) == {("a", "b")} and result.kept == result.read == 3004


@given(st.text(alphabet="[]()! \n\"'u/x#&;~-", max_size=300))
def test_any_text_is_cleaned(text):
    rows = [submission("s"), comment("a", "s", 9, body="x" + text), comment("b", "s", 1, body="other")]
    lines = "\n".join(json.dumps(row) for row in rows)
    result = run_blocks(SOURCE, [Block("x:1", "x", lines.encode())])
    assert len(result.records) == 1 and result.records[0].good.startswith("COMMENT by user2: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_difference": 0}, "min_difference=0: must be at least 1"),
        ({"pairs_per_thread": 0}, "pairs_per_thread=0: must be at least 1"),
        ({"bots": "("}, "not a regular expression"),
    ],
)
def test_senseless_options_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run(SOURCE, [dump(tmp_path / "all.jsonl", submission("s"))], **options)


@pytest.mark.real_data("reddit/comments.jsonl", "reddit/submissions.jsonl")
def test_real_threads_by_brute_force(real_data):
    paths = [Path(real_data, "reddit", name) for name in ("comments.jsonl", "submissions.jsonl")]
    comments = {"t1_" + row["id"]: row for row in map(json.loads, paths[0].read_text(encoding="utf-8").splitlines())}
    (pair,) = run(SOURCE, paths).records  # only one of these subreddits is on the list
    assert pair.group == "t3_57dw9a"
    result = run(SOURCE, paths, subreddits="*", pairs_per_thread=10_000, min_difference=1)
    assert result.read == 2915 and len(result.records) > 500 and not any(drop.bad for drop in result.drops)
    for pair in result.records:
        good, bad = (comments[f"t1_{name}"] for name in re.findall(r"t1_(\w+)", pair.id))
        assert good["parent_id"] == bad["parent_id"] and good["score"] > bad["score"] and pair.group == good["link_id"]
        depth, above = 1, good["parent_id"]
        while above in comments:
            depth, above = depth + 1, comments[above]["parent_id"]
        assert above == pair.group and pair.context.count("COMMENT by user: ") == depth - 1
        assert not {"[deleted]", "[removed]"} & {good["body"], bad["body"]}
    used = [name for end in ends(result) for name in end]
    assert len(used) == len(set(used))
    assert len(run(SOURCE, paths, subreddits="*").records) == 6
