"""Learn to Summarize: the preferred summary is good, a post is in one split, the paper's shuffle is said to leak."""

import json

import pytest
from source_runs import run

from hhh_jax.data import sources
from hhh_jax.data.records import SPLITS
from hhh_jax.data.shards import fraction
from hhh_jax.errors import UserError

SUMMARIZE = sources.load("summarize")
POST = {"post": " My cat sleeps all day.\n", "title": "Lazy cat", "subreddit": "cats"}
ARTICLE = {"article": "It rained.", "title": "Rain", "site": "cnn", "id": "a1"}


def row(info=POST, texts=(" Cat sleeps.", " Dog barks."), choice=0, split="train", worker="w1", **more):
    summaries = [{"text": text, "policy": "ref", "note": None} for text in texts]
    return {"info": info, "split": split, "summaries": summaries, "choice": choice, "worker": worker,
            "batch": "batch3", "extra": {"confidence": 5}, **more}  # fmt: skip


@pytest.fixture
def comparisons(tmp_path):
    """Writes rows as a published file, and gives its folder."""

    def write(*rows):
        path = tmp_path / "comparisons" / "batch3.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{json.dumps(row) if isinstance(row, dict) else row}\n" for row in rows))
        return [path.parent]

    return write


def test_the_chosen_summary_is_good(comparisons):
    made = run(SUMMARIZE, comparisons(row(choice=1)))
    (pair,) = made.records
    assert pair.context == "SUBREDDIT: r/cats\n\nTITLE: Lazy cat\n\nPOST: My cat sleeps all day.\n\nTL;DR:"
    assert (pair.good, pair.bad) == (" Dog barks.", " Cat sleeps.") and made.splits == ["train"]


def test_articles_and_edits_have_their_own_forms(comparisons):
    edited = {**POST, "subreddit": "r/cats", "article": None}  # as exports to tables have it
    inputs = comparisons(row(ARTICLE, split="valid1"), row(edited, ("Cat sleeps.", "\u00a0Dog barks."), split="valid2"))
    made = run(SUMMARIZE, inputs)
    (article,), (post,) = made.of("validation"), made.of("test")
    assert article.context == "Article:\n\nIt rained.\n\nTL;DR:"
    assert post.context.startswith("SUBREDDIT: r/cats\n\n") and (post.good, post.bad) == (" Cat sleeps.", " Dog barks.")


def test_judgments_of_other_people_are_other_pairs_of_one_group(comparisons):
    other = dict(texts=(" Dog barks.", " Cat sleeps."))
    made = run(SUMMARIZE, comparisons(row(), row(worker="w2"), row(**other, choice=0), row(**other, choice=1)))
    assert len(made.records) == 4 and len({pair.group for pair in made.records}) == 1


def test_a_post_is_in_one_split_only(comparisons):
    made = run(SUMMARIZE, comparisons(row(), row(split="valid2"), row(split="valid1"), row(ARTICLE)))
    assert len(made.of("test")) == 1 and len(made.of("train")) == 1 and not made.of("validation")
    assert made.reasons == {"its post is in a later split too": 2} and made.kept == 2


def test_the_paper_shuffles_training_pairs_which_leaks(comparisons):
    rows = [row(worker=f"w{number}") for number in range(1000)]
    made = run(SUMMARIZE, comparisons(*rows, row(split="valid1")), split="paper")
    assert made.kept == 1000 and list(made.reasons.values()) == [1]
    assert 250 < len(made.of("test")) < 375 and 0 < len(made.of("validation")) < 30  # 29 of 93, 1 of 100
    places = {split: [fraction(pair.id) for pair in made.of(split)] for split in SPLITS}
    assert max(places["test"]) < 29 / 93 <= min(places["train"]) and max(places["train"]) < 0.99
    assert all(pair.id.startswith("leaky:") and pair.group == pair.id for pair in made.records)
    assert "LEAKY" in SUMMARIZE.about
    assert run(SUMMARIZE, comparisons(*rows), split="paper").of("test") == made.of("test")  # not by the other rows


def test_rows_that_are_no_comparison_are_dropped_and_counted(comparisons):
    bad = [row(choice=2), row(choice=True), row(split="valid3"), row({"title": "?"}), row(texts=(" a",)), "{", "[]",
           row(texts=(" a", " b", " c")), row({**POST, "subreddit": None}), {**row(), "summaries": None}]  # fmt: skip
    made = run(SUMMARIZE, comparisons(row(), *bad))
    assert made.read == 11 and made.kept == 1 and all(drop.bad for drop in made.drops)
    unwanted = [row(texts=(" a", "  ")), row(texts=(" a", "a ")), {**row(), "summary": {}, "summaries": None}]
    del unwanted[-1]["summaries"]
    made = run(SUMMARIZE, comparisons(*unwanted))
    assert made.kept == 0 and len(made.reasons) == 3 and not any(drop.bad for drop in made.drops)


def test_wrong_options_are_refused(comparisons):
    with pytest.raises(UserError, match="must be published or paper"):
        run(SUMMARIZE, comparisons(row()), split="random")


@pytest.mark.real_data(
    "learn_to_summarize/comparisons/batch18.json", "learn_to_summarize/comparisons/batch0_cnndm.json"
)
def test_real_comparisons(real_data):
    made = run(SUMMARIZE, [real_data / "learn_to_summarize"])
    assert made.read == 1116 and made.reasons == {"a summary is empty": 12}
    assert len(made.of("test")) == 983 and len(made.of("validation")) == 121
    assert len({pair.group for pair in made.records}) == 160
    first = next(pair for pair in made.records if "caught us making out" in pair.context and "sunday" in pair.good)
    assert first.context.startswith("SUBREDDIT: r/AskReddit\n\nTITLE: My girlfriends grandma caught us")
    assert first.bad.startswith((" Me and my gf got caught", " Girlfriends grandma caught"))
