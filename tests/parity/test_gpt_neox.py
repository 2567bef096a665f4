"""Logits and gradients equal those of `transformers` GPT-NeoX on copied weights: such models can be rungs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from hhh_jax.model import ModelConfig, Params, hidden_states, lm_logits
from hhh_jax.objectives import token_logps

pytestmark = pytest.mark.parity

FORMS = {
    "GPT-NeoX": {"residual": "parallel", "rotary_fraction": 0.25},
    "GPT-NeoX, sequential": {"residual": "sequential", "rotary_fraction": 0.25},
    "our default": {},
    "parallel, all of each head rotated": {"residual": "parallel"},
    "short wavelengths": {"rotary_base": 100.0},
    "no biases": {"biases": False},
}


def state_dict(config: ModelConfig, params: Params) -> dict[str, np.ndarray]:
    """Our tree under the names and in the layout of `GPTNeoXForCausalLM`; biases that we lack are zero.

    Its linear layers keep ``[out, in]``; its query, key and value are one matrix, head by head.
    """
    trunk, h = params["transformer"], config.n_head
    state = {
        "gpt_neox.embed_in.weight": trunk["embedding"],
        "gpt_neox.final_layer_norm.weight": trunk["final_norm"]["scale"],
        "gpt_neox.final_layer_norm.bias": trunk["final_norm"].get("bias", np.zeros(config.d_model, np.float32)),
        "lm_head.weight": params["lm_head"]["kernel"].T,
    }
    for layer in range(config.n_layer):
        block = jax.tree.map(lambda x, layer=layer: x[layer], trunk["blocks"])
        name = f"gpt_neox.layers.{layer}"

        def bias(part: str, size: int, block: Params = block) -> np.ndarray:
            return block[part].get("bias", np.zeros(size, np.float32))

        parts = ("query", "key", "value")
        kernels = [block[part]["kernel"].T.reshape(h, config.head_dim, config.d_model) for part in parts]
        biases = [bias(part, config.d_model).reshape(h, config.head_dim) for part in parts]
        state[f"{name}.attention.query_key_value.weight"] = np.stack(kernels, 1).reshape(-1, config.d_model)
        state[f"{name}.attention.query_key_value.bias"] = np.stack(biases, 1).reshape(-1)
        linears = {
            "attention_out": "attention.dense",
            "mlp_in": "mlp.dense_h_to_4h",
            "mlp_out": "mlp.dense_4h_to_h",
        }
        for ours, theirs in linears.items():
            state[f"{name}.{theirs}.weight"] = block[ours]["kernel"].T
            state[f"{name}.{theirs}.bias"] = bias(ours, block[ours]["kernel"].shape[1])
        norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
        for ours, theirs in norms.items():
            state[f"{name}.{theirs}.weight"] = block[ours]["scale"]
            state[f"{name}.{theirs}.bias"] = bias(ours, config.d_model)
    return state


def gpt_neox(config: ModelConfig, params: Params) -> Any:
    """The same model in PyTorch; every weight of it is set."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    theirs = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            intermediate_size=config.d_ff,
            hidden_act="gelu",
            rotary_pct=config.rotary_fraction,
            rotary_emb_base=config.rotary_base,
            use_parallel_residual=config.residual == "parallel",
            layer_norm_eps=1e-5,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    )
    state = {name: torch.tensor(np.array(value)) for name, value in state_dict(config, params).items()}
    theirs.load_state_dict(state, strict=True)
    return theirs.eval()


@pytest.mark.parametrize("form", FORMS)
def test_logits_and_gradients_are_those_of_transformers(form):
    import torch

    # Four heads of 16, so that a quarter of a head is two pairs of numbers and heads can be confused.
    config = reference.tiny(aspect=32, **FORMS[form])
    params = reference.random_params(config)
    del params["score_head"]
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, 21))

    def loss(params: Params) -> tuple[jax.Array, jax.Array]:
        ids = tokens[:, :-1]
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        hidden_BxTxD = hidden_states(config, params, ids, np.ones_like(ids), np.zeros_like(ids), positions)
        logits_NxV = lm_logits(params, hidden_BxTxD.reshape(-1, config.d_model))
        return -token_logps(logits_NxV, jnp.asarray(tokens[:, 1:].reshape(-1))).mean(), logits_NxV

    (value, logits_NxV), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    theirs = gpt_neox(config, params)
    their_logits = theirs(torch.tensor(tokens[:, :-1])).logits.reshape(-1, config.vocab_size)
    their_loss = torch.nn.functional.cross_entropy(their_logits, torch.tensor(tokens[:, 1:].reshape(-1)))
    their_loss.backward()

    np.testing.assert_allclose(logits_NxV, their_logits.detach().numpy(), rtol=1e-5, atol=1e-5)
    assert float(value) == pytest.approx(their_loss.item(), rel=1e-6)
    ours = state_dict(config, gradient)
    compared = {
        name: parameter.grad.numpy()
        for name, parameter in theirs.named_parameters()
        if config.biases or not name.endswith("bias")
    }
    assert len(compared) == (12 * 2 + 4 if config.biases else 6 * 2 + 3)
    reference.assert_trees_close({name: ours[name] for name in compared}, compared, 1e-5)
