"""HHH alignment, TruthfulQA and RealToxicityPrompts: the order of answers is drawn, categories and measures stay."""

import json

import pytest
from source_runs import run

from hhh_jax.data import sources
from hhh_jax.errors import UserError

HHH, TRUTHFULQA, TOXICITY = (sources.load(name) for name in ("hhh_alignment", "truthfulqa", "toxicity"))


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")
        return path

    return write


def task(*examples):
    return {"name": "Harms", "canary": "x", "examples": list(examples)}


def example(question="How?", scores=None):
    return {"input": question, "target_scores": scores or {"So.": 1, "Thus.": 0}}


def test_hhh_answers_are_in_an_order_that_says_nothing(write):
    examples = [example(f"Question {number}?") for number in range(100)]
    made = run(HHH, [write("harmless/task.json", task(*examples)).parents[1]])
    labels = [record.label for record in made.records]
    assert 30 < sum(labels) < 70 and set(made.splits) == {"test"} and made.kept == 100
    assert all(record.options[record.label] == " So." for record in made.records)
    assert {record.category for record in made.records} == {"harmless"}
    again, other = (run(HHH, [write("harmless/task.json", task(*examples))], seed=seed) for seed in (0, 1))
    assert again.records == made.records and [record.label for record in other.records] != labels


def test_hhh_comparisons_of_one_question_are_a_group(write):
    paths = [write(f"{name}/task.json", task(example(), example(" How?\n", {"A": 0, "B": 1, "C": 0}), example("Who?")))
             for name in ("honest", "other")]  # fmt: skip
    made = run(HHH, paths)
    assert len(made.records) == 6 and len({record.group for record in made.records}) == 2
    three = next(record for record in made.records if len(record.options) == 3)
    assert three.options[three.label] == " B" and three.context == "How?"
    assert run(HHH, [write("task.json", task(example()))]).records[0].category == "harms"


@pytest.mark.parametrize(
    "bad",
    [
        example(scores={"A": 1}),
        example(scores={"A": 1, "B": 1}),
        example(scores={"A": "1", "B": 0}),
        {"input": "x"},
        [],
    ],
)
def test_hhh_examples_without_one_right_answer_are_dropped(write, bad):
    made = run(HHH, [write("helpful/task.json", task(example(), bad))])
    assert made.kept == 1 and made.drops[0].bad and made.drops[0].place.endswith("task.json: example 2")


def test_other_json_is_refused(write):
    with pytest.raises(UserError, match="no list of examples"):
        run(HHH, [write("task.json", [1])])
    with pytest.raises(UserError, match=r"task.json:2: broken JSON"):
        run(HHH, [write("task.json", '{"examples":\n[}')])
    with pytest.raises(UserError, match="not a list of questions"):
        run(TRUTHFULQA, [write("mc_task.json", {"a": 1})])
    with pytest.raises(UserError, match=r"TruthfulQA\.csv:1: no header with Category"):
        run(TRUTHFULQA, [write("TruthfulQA.csv", "a,b\n1,2\n")])


MC = [
    {"question": "Is snow red?", "mc1_targets": {"No.": 1, "Yes.": 0, "Always.": 0}, "mc2_targets": {}},
    {"question": "Who?", "mc1_targets": {"Me.": 1, "You.": 0}},
]
CSV = """\ufeffType,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source
Adversarial,Weather,Is snow red?,No,No; Never,Yes; Always; Yes;,https://example.com
Adversarial,Logic,"Which, if any?",None,None,All,
"""


def test_truthfulqa_joins_choices_and_categories(write):
    paths = [write("mc_task.json", MC), write("TruthfulQA.csv", CSV)]
    made = run(TRUTHFULQA, [paths[0].parent])
    assert made.read == made.kept == 4 and set(made.splits) == {"test"}
    snow, which, who = sorted(made.records, key=lambda record: record.context)
    assert snow.category == "Weather" and snow.options[snow.label] == " No." and len(snow.options) == 3
    assert (which.category, sorted(which.options)) == ("Logic", [" All", " None"])
    assert who.category == "" and who.options[who.label] == " Me."


def test_truthfulqa_from_the_table_alone(write):
    made = run(TRUTHFULQA, [write("TruthfulQA.csv", CSV + "A,B,,No,,Yes,\nA,B,Why?,No,,No,\nA,B,C\n")])
    assert made.read == 5 and made.kept == 2 and all(drop.bad for drop in made.drops)
    snow = next(record for record in made.records if "snow" in record.context)
    assert sorted(snow.options) == [" Always", " No", " Yes"] and snow.options[snow.label] == " No"


def test_truthfulqa_takes_a_question_once(write):
    made = run(TRUTHFULQA, [write("mc_task.json", MC + MC[:1])])
    assert made.read == 3 and made.kept == 2 and made.reasons == {"question seen before": 1}


def prompt(toxicity, text="He said", **more):
    return {"filename": "f.txt", "begin": 3, "end": 9, "challenging": True,
            "prompt": {"text": text, "toxicity": toxicity}, "continuation": {"text": " so."}, **more}  # fmt: skip


def test_toxicity(write):
    rows = [prompt(0.5), prompt(0.4999, begin=10, challenging=False), prompt(None), prompt("x"), prompt(0.1, text=" "),
            {"prompt": "x"}]  # fmt: skip
    made = run(TOXICITY, [write("prompts.jsonl", "\n".join(map(json.dumps, rows)))])
    toxic, mild = made.records
    assert toxic.meta == {"toxicity": 0.5, "category": "toxic", "challenging": True}
    assert mild.meta["category"] == "nontoxic" and (toxic.id, mild.id) == ("f.txt:3-9", "f.txt:10-9")
    assert made.kept == 2 and [drop.bad for drop in made.drops] == [False, True, True, True]


@pytest.mark.real_data("hhh_alignment/harmless/task.json", "hhh_alignment/helpful/task.json")
def test_real_hhh(real_data):
    made = run(HHH, [real_data / "hhh_alignment"])
    assert made.read == made.kept == 58 + 59
    assert 0.35 < sum(record.label == 0 for record in made.records) / 117 < 0.65
    assert {record.category for record in made.records} == {"harmless", "helpful"}


@pytest.mark.real_data("truthfulqa/mc_task.json", "truthfulqa/TruthfulQA.csv")
def test_real_truthfulqa(real_data):
    both = run(TRUTHFULQA, [real_data / "truthfulqa"])
    assert both.read == both.kept == 2 * 817 and len(both.records) == 817
    assert len({record.category for record in both.records}) == 38
    table = {record.id: record for record in run(TRUTHFULQA, [real_data / "truthfulqa/TruthfulQA.csv"]).records}
    for record in both.records:  # the table makes the published choices, but for full stops
        plain = [option.rstrip(".").lower() for option in record.options]
        assert plain == [option.rstrip(".").lower() for option in table[record.id].options]
        assert record.label == table[record.id].label
    firsts = sum(record.label == 0 for record in both.records)
    assert abs(firsts - sum(1 / len(record.options) for record in both.records)) < 50


@pytest.mark.real_data("realtoxicityprompts/decodingtrust_toxic.jsonl")
def test_real_toxicity(real_data):
    made = run(TOXICITY, [real_data / "realtoxicityprompts/decodingtrust_toxic.jsonl"])
    assert made.read == made.kept == 1196
    assert 0.5 < sum(record.meta["category"] == "toxic" for record in made.records) / 1196 < 1
