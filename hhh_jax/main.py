"""One run from the command line.

    python -m hhh_jax.main --config=configs/ranked.py:98k,task=word_order,init=RUN --workdir=DIR \\
        [--config.optim.lr=1e-3]

A stage is a file of configs/; its argument is a rung of a ladder and then key=value. Any field can be set with
--config.SECTION.KEY=VALUE. The same command again goes on where it was, or does nothing if the run is finished.
SIGTERM, or a first Ctrl-C, saves and stops after the update in progress.

On several hosts start it on each. TPU VMs, SLURM and indexed Kubernetes jobs are recognized; elsewhere give
--coordinator=HOST:PORT --num_processes=N --process_id=I.
"""

from collections.abc import Sequence

from absl import flags

from hhh_jax import cli

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run: checkpoints, records and results; gs:// will do.", required=True
)
cli.define_process_flags()


def main(_: Sequence[str]) -> None:
    from hhh_jax import run
    from hhh_jax.distributed import StopSignal

    cli.use_compilation_cache()
    with StopSignal() as stop:
        run.run(_CONFIG.value, _WORKDIR.value, stop=stop)


if __name__ == "__main__":
    cli.start(main)
