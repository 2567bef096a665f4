"""Language-model pretraining (section 1.2, appendix A).

    python -m hhh_jax.main --config=configs/pretrain.py:98k --workdir=runs/pretrain-98k
    python -m hhh_jax.main --config=configs/pretrain.py:13m,data=corpus.jsonl --workdir=DIR
"""

import ml_collections

from hhh_jax import config


def get_config(arg: str = "98k") -> ml_collections.ConfigDict:
    return config.parse_arg(arg, "pretrain")
