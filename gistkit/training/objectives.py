"""What training minimises: a loss for each labelled token of a batch.

An objective reads a `Step` and asks it for what the model predicts under the batch's conditions
and, if it has a teacher, under the full prompt. To add one: a class and a row of `OBJECTIVES`.

Shapes: M labelled tokens of a batch, V vocabulary.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from gistkit.conditions import CONDITIONS, FROM_GIST, FULL_PROMPT, condition_for
from gistkit.data.collate import Batch
from gistkit.errors import OptionError
from gistkit.model import GistModel
from gistkit.models.base import Adapter, Labelled
from gistkit.models.inputs import move

TEACHER = condition_for(FULL_PROMPT)
TEACHERS = ("self", "base", "start")


@dataclass(frozen=True, slots=True)
class Step:
    """A batch, and the model that learns from it.

    Attributes:
        wrapped: the transformers model as the trainer wrapped it (DDP, DeepSpeed, PEFT, ...).
        base: a context in which the model is what it was before LoRA; without LoRA it does nothing.
        start: a frozen copy of the model that the run started from (`frozen`), if it teaches.
    """

    model: GistModel
    wrapped: nn.Module
    batch: Batch
    base: Callable[[], AbstractContextManager[Any]] = nullcontext
    start: Adapter | None = None

    def student(self) -> Labelled:
        """What the model predicts under each example's own condition."""
        return self._labelled(self.batch["conditions"], self.model.adapter, self.wrapped)

    def teacher(self, kind: str) -> Labelled:
        """What the model predicts when it reads the full prompt; no gradient, no dropout.

        Args:
            kind: "self", the model as it is now; "base", without its LoRA weights; "start", as it
                was when the run started.
        """
        if kind == "start":
            assert self.start is not None
            with torch.no_grad():
                return self._labelled(TEACHER, self.start, None)
        training = self.wrapped.training
        self.wrapped.eval()
        try:
            with torch.no_grad(), self.base() if kind == "base" else nullcontext():
                return self._labelled(TEACHER, self.model.adapter, self.wrapped)
        finally:
            self.wrapped.train(training)

    def is_gist(self, documents: Tensor) -> Tensor:
        """Whether tokens of these examples [M] are answered from a gist."""
        gists = [CONDITIONS[name].mode == FROM_GIST for name in self.batch["conditions"]]
        return torch.tensor(gists, device=documents.device)[documents]

    def _labelled(self, condition: Any, adapter: Adapter, wrapped: nn.Module | None) -> Labelled:
        batch = self.batch
        return adapter.labelled(
            batch["input_ids"],
            batch["attention_mask"],
            batch["labels"],
            gist_id=self.model.gist_id,
            condition=condition,
            documents=batch.get("documents"),
            label_documents=batch.get("label_documents"),
            model=wrapped,
        )


def frozen(model: GistModel, device: torch.device) -> Adapter:
    """A copy of the model that training does not touch, in evaluation mode on `device`."""
    copied = deepcopy(model.hf_model).requires_grad_(False)
    return type(model.adapter)(move(copied, device))


class Objective(Protocol):
    def __call__(self, step: Step) -> Tensor:
        """Losses [M] in nats, float32."""
        ...


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """The published objective: the output's tokens, given gist and input (paper, section 3)."""

    def __call__(self, step: Step) -> Tensor:
        return step.student().cross_entropy()


@dataclass(frozen=True, slots=True)
class Distillation:
    """The gist learns to predict what the full prompt does: KL(teacher || student) on the output.

    The teacher is the same model reading the full prompt (Hinton et al. 2015; context distillation:
    Snell et al. 2022). Examples of other conditions learn by cross-entropy; of them, pos_control
    trains the teacher.

    Attributes:
        temperature: of both distributions; the loss is scaled by its square, as Hinton et al. do.
        weight: of the KL; the rest, 1 - weight, is cross-entropy. 1 is distillation alone.
        teacher: "self", "base" or "start" (see `Step.teacher`).
    """

    temperature: float = 1.0
    weight: float = 1.0
    teacher: str = "self"

    def __post_init__(self) -> None:
        for name in ("temperature", "weight"):
            value = getattr(self, name)
            if type(value) not in (int, float):
                raise OptionError(f"training.objective.{name} must be a number, not {value!r}")
        if not self.temperature > 0:
            raise OptionError(
                f"training.objective.temperature must be above 0, not {self.temperature}"
            )
        if not 0 <= self.weight <= 1:
            raise OptionError(
                f"training.objective.weight must be between 0 and 1, not {self.weight}"
            )
        if self.teacher not in TEACHERS:
            raise OptionError(
                f"unknown training.objective.teacher {self.teacher!r}; "
                f"choose one of {', '.join(TEACHERS)}"
            )

    def __call__(self, step: Step) -> Tensor:
        student = step.student()
        entropy = student.cross_entropy()
        taught = step.is_gist(student.documents)
        if not bool(taught.any()):
            return entropy
        logits = step.teacher(self.teacher).logits[taught]
        divergence = self.divergence(student.logits[taught], logits)
        mixed = (1 - self.weight) * entropy[taught] + self.weight * divergence
        return entropy.masked_scatter(taught, mixed)

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL(teacher || student) [M] of logits [M, V], times temperature squared."""
        predicted = functional.log_softmax(student.float() / self.temperature, -1)
        target = functional.log_softmax(teacher.float() / self.temperature, -1)
        divergence = functional.kl_div(predicted, target, reduction="none", log_target=True).sum(-1)
        return divergence * self.temperature**2


@dataclass(frozen=True, slots=True)
class Mix(Distillation):
    """Half distillation, half cross-entropy, unless `weight` says otherwise."""

    weight: float = 0.5


OBJECTIVES: Mapping[str, type[Any]] = MappingProxyType(
    {"cross_entropy": CrossEntropy, "distillation": Distillation, "mix": Mix}
)


def make_objective(raw: str | Mapping[str, Any]) -> Objective:
    """`training.objective`: a name, or a mapping of `name` and settings (raises OptionError)."""
    given = {"name": raw} if isinstance(raw, str) else {**raw}
    name = given.pop("name", "cross_entropy")
    if name not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise OptionError(f"unknown training.objective {name!r}; choose one of {known}")
    kind = OBJECTIVES[name]
    allowed = [field.name for field in fields(kind)]
    for key in given:
        if key not in allowed:
            has = f"{name} has {', '.join(allowed)}" if allowed else f"{name} has no settings"
            raise OptionError(f"unknown key training.objective.{key}; {has}")
    objective: Objective = kind(**{key: value for key, value in given.items() if value is not None})
    return objective
