"""Context distillation: a student of any size learns what a prompted teacher expects of each token (eq. 2.1, B.5).

    python -m hhh_jax.distill --teacher=runs/pretrain-98k --prompt=short --rows=512 --row_length=64 --output=data/short
    python -m hhh_jax.main --config=configs/distill.py:98k,data=data/short,init=runs/pretrain-98k,data.row_length=64 \\
        --workdir=DIR
"""

import ml_collections

from hhh_jax import config


def get_config(arg: str = "98k") -> ml_collections.ConfigDict:
    return config.parse_arg(arg, "distill")
