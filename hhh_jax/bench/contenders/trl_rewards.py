"""TRL's `RewardTrainer` on a GPT-NeoX of transformers with the same shape, in its own training loop.

Settings: ``pairs`` and ``batch`` as of `jax_step`, ``tokenizer`` (a file), ``model`` (``n_layer``, ``d_model``,
``head_dim``, ``vocab_size``), ``dtype``, ``compile`` and ``order``: ``drawn`` takes pairs in a drawn order, ``grouped``
puts pairs of like length into a batch, as ``train_sampling_strategy="group_by_length"`` does (sorted within 50
batches), but takes the batches in a drawn order, so that a few of them are a fair sample. Answers have ``seconds`` and
``cpu_seconds``.
"""

import tempfile
import time
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    GPTNeoXConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import RewardConfig, RewardTrainer

from hhh_jax.bench.contenders.jax_step import read_pairs
from hhh_jax.bench.harness.contender import Channel
from hhh_jax.data.tokenizer import END_OF_CONTEXT, PAD

WINDOW = 50  # batches, as LengthGroupedSampler takes


class Requests(TrainerCallback):
    """Does as many steps as are asked for, from within the training loop, and says how long they took."""

    def __init__(self, channel: Channel, warm_up: int) -> None:
        self._channel, self._left, self._ready = channel, warm_up, False
        self._start = {"seconds": 0.0, "cpu_seconds": 0.0}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self._left -= 1
        if self._left:
            return control
        now = {"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}
        spent = {name: now[name] - self._start[name] for name in now}
        self._channel.answer(**(spent if self._ready else {"threads": torch.get_num_threads()}))
        self._ready = True
        self._left = self._channel.steps()
        control.should_training_stop = not self._left
        self._start = {"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}
        return control


def dataset(pairs: str, batch: int, grouped: bool) -> Dataset:
    """The pairs in the columns that TRL takes as tokenized, repeated for as long as any benchmark takes."""
    rng = np.random.default_rng(0)
    rows = [
        {"chosen_ids": [*pair.context, *pair.good], "rejected_ids": [*pair.context, *pair.bad]}
        for pair in read_pairs(pairs)
    ]
    size = np.array([max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows])
    order: list[int] = []
    while len(order) < 1000 * batch:
        drawn = rng.permutation(len(rows))
        if grouped:
            windows = [drawn[i : i + WINDOW * batch] for i in range(0, len(drawn), WINDOW * batch)]
            drawn = np.concatenate([window[np.argsort(-size[window])] for window in windows])
            drawn = drawn[: len(drawn) // batch * batch].reshape(-1, batch)
            drawn = rng.permutation(drawn).reshape(-1)
        order += drawn.tolist()
    return Dataset.from_list(rows).select(order)


def main() -> None:
    channel = Channel()
    settings = channel.settings
    m = settings["model"]
    shape_and_form: dict[str, Any] = {
        "vocab_size": m["vocab_size"], "hidden_size": m["d_model"], "num_hidden_layers": m["n_layer"],
        "num_attention_heads": m["d_model"] // m["head_dim"], "intermediate_size": 4 * m["d_model"], "rotary_pct": 1.0,
        "use_parallel_residual": False, "max_position_embeddings": 8192, "num_labels": 1, "tie_word_embeddings": False,
    }  # fmt: skip
    config = GPTNeoXConfig(**shape_and_form)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=settings["tokenizer"], eos_token=END_OF_CONTEXT, pad_token=PAD)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = RewardConfig(
            output_dir=scratch, per_device_train_batch_size=settings["batch"], max_steps=1000,
            bf16=settings["dtype"] == "bfloat16", use_cpu=not torch.cuda.is_available(),
            torch_compile=settings.get("compile", False), gradient_checkpointing=False, max_length=None,
            train_sampling_strategy="sequential", report_to="none", save_strategy="no", disable_tqdm=True,
            logging_strategy="no", dataloader_num_workers=0, remove_unused_columns=False,
        )  # fmt: skip
        data = dataset(settings["pairs"], settings["batch"], settings["order"] == "grouped")
        requests = Requests(channel, settings.get("warm_up", 2))
        trainer = RewardTrainer(model, arguments, train_dataset=data, processing_class=tokenizer, callbacks=[requests])
        trainer.train()


if __name__ == "__main__":
    main()
