"""A language-modeling step in PyTorch: a GPT-NeoX of transformers, AdamW (fused) behind clipping, on full rows.

Settings: ``model`` (``n_layer``, ``d_model``, ``head_dim``, ``vocab_size``), ``rows``, ``row_length``, ``dtype``
(parameters stay float32, matmuls run in it), ``compile`` and ``warm_up`` (steps). Rows are of one document each, so
that attention is causal and nothing else. Answers have ``seconds``, ``cpu_seconds`` and ``tokens``; the first one
``compile_seconds``.
"""

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from hhh_jax.bench.harness.contender import Channel


def main() -> None:
    channel = Channel()
    settings = channel.settings
    m = settings["model"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape_and_form: dict[str, Any] = {
        "vocab_size": m["vocab_size"], "hidden_size": m["d_model"], "num_hidden_layers": m["n_layer"],
        "num_attention_heads": m["d_model"] // m["head_dim"], "intermediate_size": 4 * m["d_model"], "rotary_pct": 1.0,
        "use_parallel_residual": False, "max_position_embeddings": settings["row_length"],
        "tie_word_embeddings": False, "attn_implementation": "sdpa", "use_cache": False,
    }  # fmt: skip
    config = GPTNeoXConfig(**shape_and_form)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    shape = settings["rows"], settings["row_length"]
    tokens = torch.randint(2, m["vocab_size"], shape, device=device)

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=settings["dtype"] == "bfloat16"):
            loss: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
        return loss

    forward = torch.compile(loss_of) if settings["compile"] else loss_of

    def run(steps: int) -> dict[str, float]:
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(steps):
            loss = forward(tokens)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        loss.item()
        return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}

    first = run(1)["seconds"]
    if settings.get("warm_up", 1):
        run(settings.get("warm_up", 1))
    channel.answer(compile_seconds=first)
    while steps := channel.steps():
        channel.answer(**run(steps), tokens=steps * tokens.numel())


if __name__ == "__main__":
    main()
