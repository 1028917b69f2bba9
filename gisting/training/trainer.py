"""Hugging Face's Trainer, which steps on gist batches and evaluates by generation.

The loop, mixed precision, checkpoints, resume, DeepSpeed and logging are the Trainer's own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from gisting.data.collate import TrainingRows
from gisting.model import GistModel
from gisting.training.sampler import OrderedLengthSampler

Evaluate = Callable[[GistModel, int], dict[str, float]]
"""(model, step) -> scores named `{split}_{metric}`."""


class GistTrainer(Trainer):
    """Trains a GistModel; checkpoints are gist models that `from_pretrained` loads.

    Args:
        gist_model: what is trained.
        evaluate_splits: scores the model whenever the Trainer evaluates.
        in_order: keep the order of the data (see `OrderedLengthSampler`).
        kwargs: the Trainer's own.
    """

    def __init__(
        self,
        gist_model: GistModel,
        evaluate_splits: Evaluate | None = None,
        *,
        in_order: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=gist_model.hf_model, processing_class=gist_model.tokenizer, **kwargs)
        self.gist_model = gist_model
        self.evaluate_splits = evaluate_splits
        self.in_order = in_order

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy of the output under each row's condition (paper, section 3)."""
        more = {}
        if self.model_accepts_loss_kwargs and num_items_in_batch is not None:
            more["num_items_in_batch"] = num_items_in_batch
        output: Any = self.gist_model.adapter.forward(
            inputs["input_ids"],
            inputs["attention_mask"],
            gist_id=self.gist_model.gist_id,
            condition=inputs["conditions"],
            labels=inputs["labels"],
            loss_only=True,
            model=model,
            **more,
        )
        loss = output["loss"]
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Scores named `eval_{split}_{metric}`, logged and handed to the callbacks."""
        if self.evaluate_splits is None:
            return {}
        self.gist_model.hf_model.eval()
        with torch.no_grad():
            scores = self.evaluate_splits(self.gist_model, self.state.global_step)
        self.gist_model.hf_model.train()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        folder = output_dir or self.args.output_dir
        assert folder is not None
        self.gist_model.save_gist_files(Path(folder))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = train_dataset or self.train_dataset
        assert isinstance(dataset, TrainingRows)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        if self.in_order:
            seed = self.args.data_seed or self.args.seed
            return OrderedLengthSampler(dataset.lengths, size, seed)
        if self.args.train_sampling_strategy == "group_by_length":
            return LengthGroupedSampler(size, lengths=dataset.lengths)
        return super()._get_train_sampler(dataset)
