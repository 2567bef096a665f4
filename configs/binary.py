"""Binary discrimination: eq. 3.1 on pairs of a right and a wrong response to the same context (section 3; C.2).

    python -m hhh_jax.main --config=configs/binary.py:98k,task=order_label,init=runs/pretrain-98k --workdir=DIR

The objective is configs/ranked.py's: what is binary is how the pairs are built.
"""

import ml_collections

from hhh_jax import config


def get_config(arg: str = "98k") -> ml_collections.ConfigDict:
    return config.parse_arg(arg, "binary")
