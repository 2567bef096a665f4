"""Ranked preference modeling: eq. 3.1 on pairs of which one side is better (section 3; C.2).

    python -m hhh_jax.main --config=configs/ranked.py:98k,task=word_order,init=runs/pretrain-98k --workdir=DIR
    python -m hhh_jax.main --config=configs/ranked.py:13m,data=pairs.jsonl,init=DIR --workdir=DIR
"""

import ml_collections

from hhh_jax import config


def get_config(arg: str = "98k") -> ml_collections.ConfigDict:
    return config.parse_arg(arg, "ranked")
