"""ETHICS: label words, groups of consecutive rows, headers or none, and which files are read."""

from collections import Counter

import pytest
from source_runs import run

from hhh_jax.data import sources
from hhh_jax.errors import UserError

ETHICS = sources.load("ethics")
COMMONSENSE = "label,input,is_short,edited\n0,I fed the cat.,True,False\n1,I kicked the cat.,True,False\n"
COMMONSENSE += '1,"AITA | I said ""no"".\n\n&#x200B;\nAm I?",False,False\n'
DEONTOLOGY = "label,scenario,excuse\n" + "".join(
    f"{label},Did you feed the {pet}?,No because {why}\n"
    for pet in ("cat", "dog")
    for label, why in ((1, "it ate."), (0, "I slept."), (1, "it left."), (0, "no."))
)
JUSTICE = "label,scenario\n" + "".join(
    f"{label},I usually walk {who} but I didn't today because {why}\n"
    for who in ("home with Ann", "the dog at noon")
    for label, why in ((1, "it rained."), (0, "it is blue."), (1, "I was ill."), (0, "of cheese."))
)
VIRTUE = "label,scenario\n" + "".join(
    f"{int(trait == 'kind')},{who} helped. [SEP] {trait}\n"
    for who in ("Ann", "Bob")
    for trait in ("cruel", "kind", "lazy", "vain", "sly")
)
UTIL = "I won.,I lost.\nI lost.,I lost twice.\nI ate cake. ,I ate mud.\n"


@pytest.fixture
def folder(tmp_path):
    """The published folder, with files of every task."""
    files = {
        "commonsense/cm_train.csv": COMMONSENSE, "commonsense/cm_test.csv": COMMONSENSE,
        "commonsense/cm_test_hard.csv": COMMONSENSE.replace("cat", "dog"), "commonsense/cm_ambig.csv": '"AITA?"\n',
        "deontology/deontology_train.csv": DEONTOLOGY.replace("0,Did you feed the dog?,No because no.\n", ""),
        "deontology/deontology_test.csv": DEONTOLOGY, "justice/justice_train.csv": JUSTICE,
        "justice/justice_test.csv": JUSTICE, "virtue/virtue_test.csv": VIRTUE,
        "virtue/virtue_train.csv": VIRTUE + "0,Ann helped. [SEP] loud\n", "utilitarianism/util_train.csv": UTIL,
        "utilitarianism/util_test.csv": UTIL, "README.md": "ETHICS",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_commonsense(folder):
    made = run(ETHICS, [folder], task="commonsense")
    assert made.read == made.kept == 6 and sorted(made.splits) == ["test"] * 3 + ["train"] * 3
    fed, kicked, aita = made.of("test")
    assert (fed.context, fed.good, fed.bad) == ("I fed the cat.\nWrong:", " no", " yes")
    assert (kicked.good, kicked.bad) == (" yes", " no") and fed.group == kicked.group != aita.group
    assert aita.context == 'AITA | I said "no".\n\n\nAm I?\nWrong:'
    assert [label.category for label in run(ETHICS, [folder], kind="labels").of("test")] == ["short", "short", "long"]


def test_hard_test_set(folder):
    made = run(ETHICS, [folder], test="hard")
    assert [pair.context[:13] for pair in made.of("test")][:2] == ["I fed the dog", "I kicked the "]
    assert made.of("test")[0].id == "commonsense_test_hard:1" and len(made.of("train")) == 3


def test_deontology(folder):
    made = run(ETHICS, [folder], task="deontology", kind="labels")
    test, train = made.of("test"), made.of("train")
    first = next(label for label in test if label.id == "deontology_test:1")
    assert first.context == "Did you feed the cat?\nNo because it ate.\nReasonable:" and first.label == 1
    groups = {label.id.rpartition(":")[2]: label.group for label in test}
    assert len({groups[number] for number in "1234"}) == len({groups[number] for number in "5678"}) == 1
    assert len(train) == 7 and {label.group for label in train} == set(groups.values()) == {groups["1"], groups["5"]}
    pairs = run(ETHICS, [folder], task="deontology")
    answers = {pair.id: (pair.good, pair.bad) for pair in pairs.of("test")}
    assert answers["deontology_test:1"] == (" yes", " no") and answers["deontology_test:2"] == (" no", " yes")
    assert {(p.id, p.context, p.group) for p in pairs.records} == {(r.id, r.context, r.group) for r in made.records}


def test_justice_groups_in_train_are_runs_of_rows_that_are_alike(folder):
    made = run(ETHICS, [folder], task="justice")
    assert [pair.group.rpartition(" ")[2] for pair in made.of("test")] == ["1"] * 4 + ["2"] * 4
    groups = [pair.group for pair in made.of("train")]
    assert len(set(groups[:4])) == len(set(groups[4:])) == 1 and groups[0] != groups[4]


def test_virtue(folder):
    made = run(ETHICS, [folder], task="virtue")
    test = {pair.id: pair for pair in made.of("test")}
    assert test["virtue_test:2"].context == "Ann helped.\nKind:" and test["virtue_test:2"].good == " yes"
    sizes = Counter(pair.group for pair in test.values())
    assert list(sizes.values()) == [5, 5]
    groups = {pair.id.rpartition(":")[2]: pair.group for pair in made.of("train")}
    assert groups["1"] == groups["11"] != groups["6"]  # one situation, wherever its rows are


def test_utilitarianism(folder):
    made = run(ETHICS, [folder], task="utilitarianism")
    train = made.of("train")
    assert [(pair.context, pair.good, pair.bad) for pair in train][2] == ("", "I ate cake.", "I ate mud.")
    assert train[0].group == train[1].group != train[2].group  # linked by a text that they share
    assert len({pair.group for pair in made.of("test")}) == 3
    with pytest.raises(UserError, match="no labels"):
        run(ETHICS, [folder], task="utilitarianism", kind="labels")


@pytest.mark.parametrize(
    ("task", "name", "content"),
    [
        ("utilitarianism", "util_train.csv", "Baseline,Less_pleasant\n" + UTIL),
        ("deontology", "deontology_train.csv", DEONTOLOGY.partition("\n")[2]),
        ("commonsense", "cm_train.csv", COMMONSENSE.partition("\n")[2]),
    ],
)
def test_headers_are_told_from_rows(tmp_path, folder, task, name, content):
    other = tmp_path / "other"
    other.mkdir()
    (other / name).write_text(content)
    made, usual = run(ETHICS, [other], task=task), run(ETHICS, [folder / task], task=task)
    assert {r.context + r.good for r in usual.of("train")} <= {r.context + r.good for r in made.records}


def test_files_named_by_folder_are_known(tmp_path):
    for split in ("train", "test", "test_hard"):
        path = tmp_path / "data" / "justice" / f"{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(JUSTICE)
    assert sorted(run(ETHICS, [tmp_path], task="justice").splits) == ["test"] * 8 + ["train"] * 8
    assert run(ETHICS, [tmp_path / "data/justice/test_hard.csv"], task="justice", test="hard").read == 8


def test_what_is_not_read_is_said(folder):
    for name, chosen in (("cm_test_hard.csv", {}), ("cm_ambig.csv", {}), ("cm_test.csv", {"test": "hard"})):
        with pytest.raises(UserError, match=r"not a train or \w+ test file \(.csv\) of commonsense"):
            run(ETHICS, [folder / "commonsense" / name], **chosen)
    with pytest.raises(UserError, match=r"none of its \d+ files is a train or easy test file"):
        run(ETHICS, [folder / "virtue"])
    for chosen in ({"task": "ethics"}, {"test": "medium"}):
        with pytest.raises(UserError, match="must be"):
            run(ETHICS, [folder], **chosen)
    (folder / "commonsense" / "cm_train.csv").write_text("text,label\nI won.,1\n")
    with pytest.raises(UserError, match=r"cm_train.csv:1: neither a header nor a row"):
        run(ETHICS, [folder])


def test_damaged_training_rows_are_dropped_test_groups_refused(folder):
    train, test = folder / "deontology/deontology_train.csv", folder / "deontology/deontology_test.csv"
    train.write_text(DEONTOLOGY + "2,Who?,Me.\n1,Who?\n0,Why?,Because.\n")
    made = run(ETHICS, [train], task="deontology")
    assert made.read == 11 and made.kept == 9 and all(drop.bad for drop in made.drops)
    assert [drop.place.rpartition(":")[2] for drop in made.drops] == ["10", "11"]
    for content, message in (
        (DEONTOLOGY.replace("1,Did you feed the dog", "x,Did you feed the dog"), r"test.csv:6: label is not in 0\.\.1"),
        (DEONTOLOGY + DEONTOLOGY.splitlines()[1], "test.csv:10: the file ends within a group of 4"),
        (DEONTOLOGY.replace("0,Did you feed the cat?,No because no.\n", ""), "test.csv:5: not of the situation"),
    ):
        test.write_text(content)
        with pytest.raises(UserError, match=message):
            run(ETHICS, [test], task="deontology")


REAL = {"commonsense": (0, 3885, 3964), "deontology": (18164, 3596, 3536), "justice": (21791, 2704, 2052),
        "utilitarianism": (13738, 4808, 4272), "virtue": (28245, 4975, 4780)}  # fmt: skip


@pytest.mark.real_data("ethics/virtue/virtue_train.csv")
@pytest.mark.parametrize("task", REAL)
def test_real_files(real_data, task):
    easy, hard = (run(ETHICS, [real_data / "ethics"], task=task, test=test) for test in ("easy", "hard"))
    assert (len(easy.of("train")), len(easy.of("test")), len(hard.of("test"))) == REAL[task]
    assert not easy.drops and not hard.drops and easy.of("train") == hard.of("train")
    groups = {pair.group for pair in easy.of("train")}
    shared = {pair.group for pair in easy.of("test")} & groups
    assert len(shared) == {"deontology": 326, "virtue": 912}.get(task, 0)  # situations
    if task in ("deontology", "justice", "virtue"):
        for made in (easy, hard):
            assert set(Counter(pair.group for pair in made.of("test")).values()) == {5 if task == "virtue" else 4}
