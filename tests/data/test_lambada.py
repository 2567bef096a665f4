"""LAMBADA: the last word is the target in both versions, and novels are cut as the passages were."""

import json

import pytest
from source_runs import run

from hhh_jax.data import sources
from hhh_jax.data.sources.lambada import CONTEXT_WORDS, FUNCTION_WORDS, TARGET_WORDS
from hhh_jax.errors import UserError

LAMBADA = sources.load("lambada")
ORIGINAL = "`` do you see the lamp ? '' he asked . she did n't want to look at the lamp"
NICE = "“Do you see the lamp?” he asked.\n\nShe didn't want to look at the\n“Lamp"

FILLER = "It was a long day and the rain fell on the roof of the old house by the sea."  # 18 words


def novel(*sentences, filler=3):
    return " ".join([FILLER] * filler + list(sentences))


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(content, encoding="utf-8")
        return path

    return write


def test_both_versions_of_passages(write):
    original = write("lambada_test_plain_text.txt", f"{ORIGINAL}\n{ORIGINAL}\n\n")
    nice = write("lambada_test.jsonl", json.dumps({"text": NICE}) + "\n")
    write("lambada_control_test_data_plain_text.txt", "not read\n")
    write("README", "not read")
    made = run(LAMBADA, [original.parent])
    assert made.read == made.kept == 3 and set(made.splits) == {"test"}
    assert run(LAMBADA, [original]).records[0].id == "lambada_test_plain_text:1"
    prompt = next(record for record in made.records if record.meta["format"] == "original")
    assert prompt.text == ORIGINAL.removesuffix(" lamp") and prompt.meta["target"] == "lamp"
    prompt = next(record for record in made.records if record.meta["format"] == "nice")
    assert prompt.text == NICE.removesuffix("\n“Lamp") and prompt.meta["target"] == "“Lamp"
    assert {record.text for record in run(LAMBADA, [nice], kind="documents").records} == {NICE}


def test_development_is_validation_and_bad_passages_are_dropped(write):
    lines = [
        json.dumps({"text": "Word"}),
        json.dumps({"words": 1}),
        json.dumps({"text": "a b " * 300}),
        "{",
        '{"text": "a b"}',
    ]
    made = run(LAMBADA, [write("lambada_development.jsonl", "\n".join(lines))])
    assert made.splits == ["validation"] and made.read == 5 and all(drop.bad for drop in made.drops)
    path = write("lambada_test.txt", "")
    path.write_bytes(b"fine words\nbad \xff words\n")
    made = run(LAMBADA, [path])
    assert made.kept == 1 and made.places("not UTF-8") == [f"{path}:2"]


def test_an_item_is_fifty_words_of_whole_sentences_and_one_up_to_its_last_word(write):
    path = write("train-novels/Horror/book.txt", novel("She looked out to sea and waited for the rain!", "The end."))
    made = run(LAMBADA, [path.parents[1]])
    (item,) = made.records
    assert item.text == f"{FILLER} {FILLER} {FILLER} She looked out to sea and waited for the"
    assert item.meta == {"target": "rain", "format": "nice"} and made.splits == ["train"]
    assert made.read == 1  # the last sentence has no context


def test_the_context_is_the_fewest_sentences(write):
    long = " ".join(["The dog ran over the green hill to the sea"] * 5) + "."  # 50 words
    path = write("book.md", f"{FILLER} {long} Nobody in the town had ever seen such a hill.")
    (item,) = run(LAMBADA, [path]).records
    assert item.text == f"{long} Nobody in the town had ever seen such a" and item.meta["target"] == "hill"


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("She saw the rain.", f"the target's sentence has less than {TARGET_WORDS} words"),
        ("She looked out to sea and waited for a friend.", "the last word is new to the passage"),
        ("She looked out to sea and waited for more of it.", "the last word is no content word"),
        ("She looked out to sea and there waited for 1984.", "the last word is no content word"),
        ("She looked out to sea " + "and out " * 90 + "at the rain.", "longer than 203 words"),
    ],
)
def test_unfit_sentences_are_counted(write, sentence, reason):
    path = write("book.txt", novel(sentence))
    made = run(LAMBADA, [path])
    assert made.reasons == {reason: 1} and not made.records and not made.drops[0].bad
    seen = run(LAMBADA, [path], seen=False)
    assert len(seen.records) == (reason == "the last word is new to the passage")


def test_items_do_not_overlap_and_chapters_are_apart(write):
    target = "She looked out to sea and waited for the rain."
    text = novel(target) + " " + novel(target) + "\n\n## Chapter 2\n\n" + FILLER + " " + target
    made = run(LAMBADA, [write("book.md", text)])
    assert [item.text.count(FILLER) for item in made.records] == [3, 3]
    assert made.read == made.kept == 2  # the second chapter has no 50 words before a sentence


def test_paragraphs_titles_and_emphasis_of_print(write):
    said = "“Mr. Hall and J. Smith _never_\ncame back to the old house,” she said to the rain."
    text = f"{FILLER} {FILLER} {FILLER}\n\n{said}"
    (item,) = run(LAMBADA, [write("book.md", text)]).records
    assert item.text.endswith(
        "by the sea.\n\n“Mr. Hall and J. Smith never came back to the old house,” she said to the"
    )


def test_novels_in_the_original_version(write):
    filler = "it was a long day , and the rain fell on the roof of mr. hall 's old house by the sea . "
    text = filler * 3 + "`` she looked out to sea and waited for the rain ! '' he said ."
    (item,) = run(LAMBADA, [write("train-novels/Horror/b.txt", text)]).records
    assert item.meta == {"target": "rain", "format": "original"}
    assert item.text == (filler * 3 + "`` she looked out to sea and waited for the").strip()


def test_novels_are_sampled_and_held_out_by_name(write):
    target = "She looked out to sea and waited for the rain."
    paths = [
        write(f"{n}.txt", f"Book {n}.\n\n" + novel(*[f"{FILLER} {FILLER} {FILLER} {target}"] * 5)) for n in range(30)
    ]
    made = run(LAMBADA, paths, per_novel=2, held_out_novels=0.3)
    assert len(made.records) == 60 and made.reasons["more than per_novel"] > 0
    assert 0 < len({item.group for item in made.of("validation")}) < 20
    assert {item.group for item in made.of("validation")}.isdisjoint(item.group for item in made.of("train"))
    other = run(LAMBADA, paths, per_novel=2, seed=1).records
    assert {item.id for item in other} != {item.id for item in made.records}
    whole = run(LAMBADA, paths[:1], kind="documents").records
    assert [document.text for document in whole] == [paths[0].read_text()]


def test_a_novel_that_is_not_utf8_is_dropped(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(b"caf\xe9")
    (drop,) = run(LAMBADA, [path]).drops
    assert drop.reason == "not UTF-8" and drop.place == f"{path}: byte 4" and drop.bad


@pytest.mark.parametrize("name", ["train-novels.tar", "lambada_control_test_data_plain_text.txt"])
def test_other_files_are_refused(write, name):
    with pytest.raises(UserError, match=rf"{name}: not a file of passages or a novel .*; unpack archives first"):
        run(LAMBADA, [write(name, "Some words.")])


@pytest.mark.real_data("lambada/lambada_test.jsonl", "lambada/lambada_test_plain_text.txt")
def test_real_passages(real_data):
    made = run(LAMBADA, [real_data / "lambada"])
    assert made.read == made.kept == 2 * 5153 and set(made.splits) == {"test"}
    targets = {
        name: [r.meta["target"] for r in made.records if r.meta["format"] == name] for name in ("original", "nice")
    }
    assert len(targets["original"]) == len(targets["nice"]) == 5153
    assert all(target.isalpha() for target in targets["original"])
    # What the rules for novels claim of the test set.
    assert sum(target in FUNCTION_WORDS for target in targets["original"]) / 5153 < 0.016
    originals = [r for r in made.records if r.meta["format"] == "original"]
    assert 0.82 < sum(r.meta["target"] in r.text.split() for r in originals) / 5153 < 0.84
    assert max(len(r.text.split()) for r in originals) == 202


@pytest.mark.real_data("text/books")
def test_real_books(real_data):
    made = run(LAMBADA, [real_data / "text" / "books"])
    assert len(made.records) > 4000 and len({item.group for item in made.records}) == 24
    for item in made.records:
        words = item.text.split()
        assert CONTEXT_WORDS + TARGET_WORDS - 1 <= len(words) < 203 and "#" not in item.text
        assert item.meta["target"].lower() in item.text.lower()
