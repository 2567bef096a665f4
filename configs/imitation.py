"""Imitation learning: language modeling on the response tokens of the good side (section 3).

    python -m hhh_jax.main --config=configs/imitation.py:98k,task=word_order,init=runs/pretrain-98k --workdir=DIR

Same start, pairs, order and number of updates as configs/ranked.py and configs/binary.py.
"""

import ml_collections

from hhh_jax import config


def get_config(arg: str = "98k") -> ml_collections.ConfigDict:
    return config.parse_arg(arg, "imitation")
