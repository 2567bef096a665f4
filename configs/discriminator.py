"""The per-token discriminator: was this token written by a person or by a model? (Appendix D.)

    python -m hhh_jax.thirds --checkpoint=runs/pretrain-98k --source=stdlib --output=data/thirds
    python -m hhh_jax.main --config=configs/discriminator.py:98k,data=data/thirds,init=runs/pretrain-98k --workdir=DIR
"""

import ml_collections

from hhh_jax import config


def get_config(arg: str = "98k") -> ml_collections.ConfigDict:
    return config.parse_arg(arg, "discriminator")
