"""Plans of the discriminator's study and of what is beyond the paper: whole, consistent, and made of valid configs."""

from pathlib import Path

import pytest

from hhh_jax import config, study
from hhh_jax.errors import UserError

STUDIES = Path(__file__).parents[1] / "configs" / "studies"


def planned(name: str, arg: str = "") -> list[study.Planned]:
    module = study.load_study(f"{STUDIES / name}.py")
    runs = module.runs(module.get_config(arg))
    study.check_plan(runs)
    for run in runs:
        if run.config is not None:
            config.check(run.config)
    return runs


@pytest.mark.parametrize("arg", ["", "data=DIR"])
def test_the_discriminators_study_judges_every_size(arg):
    runs = {run.name: run for run in planned("discriminator", arg)}
    sizes = [name.removeprefix("pretrain-") for name in runs if name.startswith("pretrain-")]
    writer = runs["rows"].after
    assert writer == f"pretrain-{sizes[-1]}"
    for size in sizes:
        assert runs[f"discriminator-{size}"].after == f"pretrain-{size}"
        job = runs[f"evaluate-discriminator-{size}"]
        assert job.job.arguments["writer"] == f"{study.RUN}{writer}" and set(study.needs(job)) > {"rows", writer}
    assert (runs["rows"].job.arguments["source"] == "counting") == (arg == "")


@pytest.mark.parametrize("arg", ["", "data=DIR"])
def test_beyond_shares_runs_among_its_questions(arg):
    runs = {run.name: run for run in planned("beyond", arg)}
    module = study.load_study(f"{STUDIES / 'beyond'}.py")
    c = module.get_config(arg)
    assert len(study.needs(runs["joint_fit"])) == len(c.rungs) * len(c.pairs) >= 12
    flips = [runs[name].config.data.flip for name in study.needs(runs["label_noise"])]
    assert sorted(flips) == [0.0, 0.1, 0.2, 0.3, 0.4]
    for name, run in runs.items():
        if run.config is not None and run.config.data.flip:
            assert run.config.labels.intervention == f"flip_{100 * run.config.data.flip:.0f}", name
    proxies = [run for name, run in runs.items() if name.startswith("best_of_n")]
    assert len(proxies) == len(c.best_of_n.proxies)
    assert all(runs[run.after].config.data.source == "symbols:T0" for run in proxies)
    sources = {run.config.data.source for run in runs.values() if run.config is not None}
    assert sources == ({"symbols", "symbols:T0"} | ({"DIR/text", "DIR/summarize"} if arg else set()))


@pytest.mark.parametrize("name", ["discriminator", "beyond"])
def test_other_arguments_are_refused(name):
    for arg in ("full", "data=", "data"):
        with pytest.raises(UserError, match="data=DIR"):
            planned(name, arg)
