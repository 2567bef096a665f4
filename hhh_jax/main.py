"""One run from the command line.

    python -m hhh_jax.main --config=configs/ranked.py:98k,task=word_order,init=RUN --workdir=DIR \\
        [--config.optim.lr=1e-3]

A stage is a file of configs/; its argument is a rung of a ladder and then key=value. Any field can be set with
--config.SECTION.KEY=VALUE. The same command again goes on where it was, or does nothing if the run is finished.
"""

from collections.abc import Sequence

from absl import flags

from hhh_jax import cli

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run: checkpoints, records and results.", required=True
)


def main(_: Sequence[str]) -> None:
    from hhh_jax import run

    cli.use_compilation_cache()
    run.run(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    cli.start(main)
