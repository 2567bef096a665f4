"""Direct preference optimization: contrast as in ranked preference modeling, without a score head.

    python -m hhh_jax.main --config=configs/dpo.py:98k,task=word_order,init=runs/pretrain-98k --workdir=DIR

Rafailov et al. 2023. The loss of a pair is softplus(-beta * ((log p(good) - log p_0(good)) - (the same of bad))), of
whole responses with their end-of-context, where p_0 is the model that the run starts from; ``objective.beta`` is 0.1 as
theirs. Pairs are ranked by beta * (log p - log p_0). The state keeps p_0: one more copy of the parameters in memory and
checkpoints, one more forward pass in each update, and two instead of one where pairs are scored. Same start, pairs,
order and number of updates as configs/ranked.py, configs/binary.py and configs/imitation.py.
"""

import ml_collections

from hhh_jax import config


def get_config(arg: str = "98k") -> ml_collections.ConfigDict:
    return config.parse_arg(arg, "dpo")
