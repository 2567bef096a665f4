"""Language modeling on, from a checkpoint, on other documents (the paper's code models are such).

    python -m hhh_jax.main --config=configs/lm_finetune.py:98k,data=corpus.txt,init=runs/pretrain-98k --workdir=DIR
"""

import ml_collections

from hhh_jax import config


def get_config(arg: str = "98k") -> ml_collections.ConfigDict:
    return config.parse_arg(arg, "lm_finetune")
