"""HellaSwag: both published forms make the same records, endings are joined so that they read on."""

import gzip
import json

import pytest
from source_runs import run

from hhh_jax.data import sources
from hhh_jax.errors import UserError

HELLASWAG = sources.load("hellaswag")
ROOF = {
    "ind": 24, "activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.", "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he", "split": "val", "split_type": "indomain", "label": 3,
    "endings": ["is using wrap.", "'s ripping tiles off.", ", holding a cube.", "starts pulling up roofing."],
    "source_id": "activitynet~v_1",
}  # fmt: skip
TV = {
    "ind": 7, "ctx": "[header] How to exercise [title] Sit down. [step] Be comfortable.", "activity_label": "Sports",
    "ctx_a": "[header] How to exercise [title] Sit down. [step] Be comfortable.", "ctx_b": "", "split": "train",
    "split_type": "zeroshot", "label": "1", "endings": ["[step] No. [title] Never. [step] A", "Yes.", "C", "D"],
    "source_id": "wikihow~2",
}  # fmt: skip
ROOF_PREPARED = {
    "doc_id": 0, "ind": 24, "query": "Roof shingle removal: A man is sitting on a roof. He", "choices": ROOF["endings"],
    "gold": 3,
}  # fmt: skip
TV_PREPARED = {
    "doc_id": 1, "ind": 7, "query": "Sports: How to exercise. Sit down. Be comfortable.",
    "choices": [" No. Never. A", "Yes.", "C", "D"], "gold": 1,
}  # fmt: skip


def write(path, *rows):
    data = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_both_forms_make_the_same_choices(tmp_path):
    original = run(HELLASWAG, [write(tmp_path / "original.jsonl", ROOF, TV)], kind="choices")
    prepared = run(HELLASWAG, [write(tmp_path / "prepared.jsonl.gz", ROOF_PREPARED, TV_PREPARED)], kind="choices")
    by_id = {record.id: record for record in prepared.records}
    for record in original.records:
        other = by_id[record.id]
        assert (record.context, record.options, record.label) == (other.context, other.options, other.label)
    roof = next(record for record in original.records if "roof" in record.context)
    assert roof.context == ROOF_PREPARED["query"] and roof.category == "activitynet indomain" and roof.label == 3
    assert roof.options == (
        " is using wrap.", "'s ripping tiles off.", ", holding a cube.", " starts pulling up roofing.",
    )  # fmt: skip
    how_to = next(record for record in original.records if "How to" in record.context)
    assert how_to.context == TV_PREPARED["query"] and how_to.options[0] == " No. Never. A"
    assert by_id[how_to.id].category == "wikihow" and by_id[how_to.id].group == "Sports: How to exercise"


def test_official_text_is_the_published_context(tmp_path):
    made = run(HELLASWAG, [write(tmp_path / "a.jsonl", ROOF, TV, ROOF_PREPARED)], kind="choices", text="official")
    assert [record.context for record in made.of("test")] == [ROOF["ctx"]]
    assert made.of("train")[0].options[0] == " [step] No. [title] Never. [step] A"
    assert made.of("test")[0].options[1] == " 's ripping tiles off."
    assert len(made.records) == 2 and made.kept == 2 and made.drops[0].bad


def test_pairs_set_the_right_ending_against_one_that_the_seed_draws(tmp_path):
    rows = [{**ROOF, "ctx_a": f"Man {number} sits."} for number in range(60)]
    path = write(tmp_path / "a.jsonl", *rows)
    one, same, other = (run(HELLASWAG, [path], seed=seed).records for seed in (0, 0, 1))
    assert one == same != other
    assert {pair.good for pair in one} == {" starts pulling up roofing."}
    assert {pair.bad for pair in one} == {" is using wrap.", "'s ripping tiles off.", ", holding a cube."}
    assert [pair.id for pair in one] == [pair.id for pair in other]


def test_splits_are_the_rows_or_the_files(tmp_path):
    test_row = {key: value for key, value in ROOF.items() if key != "label"} | {"split": "test"}
    made = run(HELLASWAG, [write(tmp_path / "hellaswag_all.jsonl", ROOF, TV, test_row)])
    assert sorted(made.splits) == ["test", "train"] and list(made.reasons.values()) == [1]
    assert "not published" in made.drops[0].reason and not made.drops[0].bad
    prepared = [write(tmp_path / f"{name}.jsonl", {**ROOF_PREPARED, "query": f"A: {name}"}) for name in
                ("hellaswag_train_docs", "hellaswag_val_docs", "docs")]  # fmt: skip
    assert sorted(run(HELLASWAG, prepared).splits, key=str) == [None, "test", "train"]


def test_prepared_videos_are_runs_of_an_activity(tmp_path):
    rows = [{**ROOF_PREPARED, "query": f"{activity}: Scene {number}. He"} for number, activity in enumerate("AABBA")]
    made = run(HELLASWAG, [write(tmp_path / "hellaswag_train.jsonl", *rows)])
    groups = {pair.context: pair.group for pair in made.records}
    names = [groups[row["query"]] for row in rows]
    assert names[0] == names[1] != names[2] == names[3] != names[4] != names[0]
    assert not any("/" in name for name in names)  # the same wherever the file is


@pytest.mark.parametrize(
    "change", [{"label": 4}, {"label": "x"}, {"endings": "abc"}, {"endings": ["a", "", "b", "c"]}, {"ctx_b": None},
               {"split": None}, {"source_id": 3}]
)  # fmt: skip
def test_damaged_rows_are_dropped(tmp_path, change):
    made = run(HELLASWAG, [write(tmp_path / "a.jsonl", {**ROOF, **change}, TV)])
    assert made.kept == len(made.records) == 1 and made.drops[0].bad and made.drops[0].place.endswith("a.jsonl:1")


def test_wrong_options_are_refused(tmp_path):
    with pytest.raises(UserError, match="must be prepared or official"):
        run(HELLASWAG, [write(tmp_path / "a.jsonl", ROOF)], text="raw")


@pytest.mark.real_data("hellaswag/hellaswag_val_head5000.jsonl.gz", "hellaswag/hellaswag_train_olmes_docs.jsonl.gz")
def test_real_files_of_both_forms(real_data):
    made = run(HELLASWAG, [real_data / "hellaswag"])
    assert made.read == made.kept == 44905
    train, test = made.of("train"), made.of("test")
    assert len(train) == 39905 and len(test) == 5000
    assert not any("[" in pair.context for pair in test) and not any("  " in pair.context for pair in train + test)
    assert {pair.group for pair in test}.isdisjoint(pair.group for pair in train)
    choices = run(HELLASWAG, [real_data / "hellaswag/hellaswag_val_head5000.jsonl.gz"], kind="choices")
    labels = [record.label for record in choices.records]
    assert all(1100 < labels.count(label) < 1400 for label in range(4))
    assert {record.category for record in choices.records} == {
        f"{domain} {kind}" for domain in ("activitynet", "wikihow") for kind in ("indomain", "zeroshot")
    }
