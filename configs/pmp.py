"""Preference model pre-training (section 4; C.1), binarized unless data.binarize=false.

    python -m hhh_jax.main --config=configs/pmp.py:98k,task=line_order,init=runs/pretrain-98k --workdir=runs/pmp-98k
    python -m hhh_jax.main --workdir=DIR \\
        --config=configs/ranked.py:98k,task=word_order,init=runs/pmp-98k,init.score_head=keep
"""

import ml_collections

from hhh_jax import config


def get_config(arg: str = "98k") -> ml_collections.ConfigDict:
    return config.parse_arg(arg, "pmp")
