"""Hugging Face's Trainer, which steps on gist batches and evaluates by generation.

The loop, mixed precision, checkpoints, resume, DeepSpeed and logging are the Trainer's own; the
order of the rows is not, because it must follow from the seed alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from gistkit.data.collate import Batch, TrainingRows
from gistkit.data.tokenized import TokenizedRows
from gistkit.model import GistModel
from gistkit.models.base import Adapter
from gistkit.models.inputs import move
from gistkit.training.distributed import first_does, whole_weights, without_zero3
from gistkit.training.objectives import CrossEntropy, Objective, Step
from gistkit.training.safety import SafeTrainer

Evaluate = Callable[[GistModel, int], dict[str, float]]
"""(model, step) -> scores named `{split}_{metric}`."""
WINDOW = 40  # batches


class GistTrainer(SafeTrainer):
    """Trains a GistModel; checkpoints are gist models that `from_pretrained` loads.

    Args:
        evaluate_splits: scores the model whenever the Trainer evaluates.
        objective: what is minimised; the published one by default.
        in_order: keep the order of the data (see `OrderedLengthSampler`).
        adapted: `gist_model.hf_model` inside a LoRA adapter, if only that is trained.
        base: a context in which the adapter does nothing.
        start: a frozen copy of what the run starts from, if that is the objective's teacher.
    """

    def __init__(
        self,
        gist_model: GistModel,
        evaluate_splits: Evaluate | None = None,
        *,
        objective: Objective | None = None,
        in_order: bool = False,
        adapted: nn.Module | None = None,
        base: Callable[[], AbstractContextManager[None]] = nullcontext,
        start: Adapter | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model=adapted or gist_model.hf_model, processing_class=gist_model.tokenizer, **kwargs
        )
        self.base, self.start = base, start
        self.gist_model = gist_model
        self.evaluate_splits = evaluate_splits
        self.objective: Objective = CrossEntropy() if objective is None else objective
        self.in_order = in_order
        # `compute_loss` divides by the step's tokens, whatever the family's own loss does
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective over the batch's labelled tokens, under each example's condition.

        Divided by the labelled tokens of the whole optimizer step, so that neither accumulation
        nor packing changes what is learned.
        """
        step = Step(self.gist_model, model, cast("Batch", inputs), self.base, self.start)
        losses = self.objective(step)
        count = len(losses) if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / count
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Scores named `eval_{split}_{metric}`, logged and handed to the callbacks."""
        if self.evaluate_splits is None:
            return {}
        self._prepare_evaluation()
        self.gist_model.weights_changed()
        self.gist_model.hf_model.eval()
        evaluate, step = self.evaluate_splits, self.state.global_step
        with without_zero3(self.args), whole_weights(self.model_wrapped), torch.no_grad():
            scores = first_does(lambda: evaluate(self.gist_model, step))
        self.gist_model.hf_model.train()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _prepare_evaluation(self) -> None:
        """Outside of training: put the model on its device, in half precision if requested.

        Hugging Face does both in its own evaluation loop. Only parameters are rounded: in bfloat16
        the buffers of rotary embeddings would rotate by wrong angles. Sharded models are left
        unchanged.
        """
        args, model = self.args, self.gist_model.hf_model
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if self.is_in_train or (sharded and self.model_wrapped is not self.model):
            return
        move(model, args.device)
        if args.bf16_full_eval or args.fp16_full_eval:
            dtype = torch.bfloat16 if args.bf16_full_eval else torch.float16
            for parameter in model.parameters():
                parameter.data = parameter.data.to(dtype)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        folder = output_dir or self.args.output_dir
        assert folder is not None
        self.gist_model.save_gist_files(Path(folder))

    def save_merged(self) -> None:
        """Merge the adapter into the weights and save a plain gist model in the output folder."""
        from gistkit.models import lora  # needs an extra

        assert isinstance(self.model, lora.LoraModel)
        lora.merge(self.model)
        if self.args.should_save:
            assert self.args.output_dir is not None
            self.gist_model.save_pretrained(self.args.output_dir)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = train_dataset or self.train_dataset
        assert isinstance(dataset, TrainingRows | TokenizedRows)
        rows, steps = self.args.train_batch_size, self.args.gradient_accumulation_steps
        size = rows * steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if self.in_order:
            return OrderedLengthSampler(dataset.lengths, size, seed)
        if self.args.train_sampling_strategy == "group_by_length":
            return GroupedLengthSampler(dataset.lengths, size, seed)
        return super()._get_train_sampler(dataset)


class OrderedLengthSampler(Sampler[int]):
    """Row numbers, batch after batch; keeps the order of the data but for rows of like length.

    A data set that grows harder is a curriculum only while its order is kept; padding is small only
    if a batch holds like lengths. So rows are sorted by length within windows of the data's order,
    and the batches of a window are shuffled.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = Random(self.seed)
        width = WINDOW * self.batch_size
        for start in range(0, len(self.lengths), width):
            window = range(start, min(start + width, len(self.lengths)))
            rows = sorted(window, key=lambda row: self.lengths[row])
            batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
            full = [batch for batch in batches if len(batch) == self.batch_size]
            rng.shuffle(full)
            for batch in full + batches[len(full) :]:
                yield from batch


class GroupedLengthSampler(Sampler[int]):
    """Hugging Face's grouping by length, in an order that follows from seed and epoch alone.

    The original draws from the global random state, so a run resumed in a later epoch would see
    other batches than an uninterrupted one.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))
