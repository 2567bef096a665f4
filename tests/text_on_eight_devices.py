"""Run by test_sample with eight fake devices: scores and samples on one of them and on a mesh of all eight.

Prints ``[largest difference of a score, of a sample's log-probability, whether all tokens are equal]`` as JSON.
"""

import json

import jax
import numpy as np
import reference
from jax.sharding import AxisType, Mesh

from hhh_jax import sharding
from hhh_jax.data.tokenizer import train_tokenizer
from hhh_jax.sample import Decoding, Prompt, sample
from hhh_jax.scoring import Scorer, compute_prefix, score_branches

MODEL = reference.tiny(n_layer=2, vocab_size=272)  # two heads, for a mesh of two along tensor
TOKENIZER = train_tokenizer(["one two three four five six seven eight nine ten eleven twelve"] * 3, 272)


def on_mesh(mesh: Mesh) -> tuple[np.ndarray, list]:
    rng = np.random.default_rng(0)
    params = {"params": jax.tree.map(lambda x: x[None], reference.random_params(MODEL))}
    placed = jax.device_put(params, sharding.state_shardings(jax.eval_shape(lambda x: x, params), mesh))["params"]
    scorer = Scorer(MODEL, placed, 1, mesh, 3, 64, 1)
    prefix = compute_prefix(scorer, rng.integers(2, 272, 20))
    items = [(rng.integers(2, 272, 5), [rng.integers(2, 272, n) for n in (3, 1, 4)]) for _ in range(9)]
    scores = score_branches(scorer, items, ("logp", "reward"), prefix)
    prompts = [Prompt(str(i), rng.integers(2, 272, 6)) for i in range(5)]
    samples = sample(scorer, TOKENIZER, prompts, Decoding(n=2, max_new_tokens=5, top_p=0.9), prefix)
    return np.concatenate([scores.logp_GxN, scores.reward_GxN]), [one for some in samples for one in some]


def main() -> None:
    devices = np.array(jax.devices())
    assert devices.size == 8
    one = Mesh(devices[:1].reshape(1, 1, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    scores, samples = on_mesh(one)
    other_scores, other_samples = on_mesh(sharding.make_mesh(2, 2, 2))
    both = list(zip(samples, other_samples, strict=True))
    same = all(a.tokens.tolist() == b.tokens.tolist() for a, b in both)
    logps = max(float(np.abs(a.logps - b.logps).max()) for a, b in both) if same else 1.0
    print(json.dumps([float(np.abs(scores - other_scores).max()), logps, same]))


main()
