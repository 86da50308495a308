"""The model that writes labels: a causal language model, asked for answers and for probabilities of tokens."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from lora_cls.modeling.adapter import adapt
from lora_cls.modeling.classifier import SequenceClassifier
from lora_cls.modeling.quiet import quiet_transformers
from lora_cls.recipe import Recipe
from lora_cls.text.tokens import pad

VOCABULARY_CHUNK = 32768  # rows of the output embedding that are held in fp32 at a time


class LabelWriter(SequenceClassifier):
    """A causal language model, its adapters, and no head of our own: the answer's tokens carry the labels.

    Parameters
    ----------
    backbone : the causal language model, or a PeftModel around it
    dtype : see `SequenceClassifier`

    Rows are padded on the left here, so that every row's answer ends with the batch and logits are computed for the
    last positions only: those of a whole prompt, times 262,144 tokens of Gemma's vocabulary, would fill any memory.
    """

    def __init__(self, backbone: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__(backbone, "last_token", 0.0, dtype)
        self._accepts = set(inspect.signature(self.base.forward).parameters)
        # The last positions are a slice of the hidden state, and a bf16 product of one takes 190 times as long on a CPU
        # as of its copy (3.5 s for 18 ms, 144 rows by 49,152 tokens, torch 2.13).
        self.base.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, n_last: int = 1) -> torch.Tensor:
        """Logits of the next token at the last positions, Tensor of shape (n_rows, n_last, vocabulary)."""
        options: dict[str, Any] = {}
        if "position_ids" in self._accepts:  # models that count positions count padding, too, unless they are told
            options["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        if "logits_to_keep" in self._accepts:
            options["logits_to_keep"] = n_last
        with self._mixed(input_ids.device):
            found = self.base(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options)
        return found.logits[:, -n_last:]

    @torch.no_grad()
    def write(
        self, prompts: Sequence[np.ndarray], n_tokens: int, end_ids: Sequence[int], columns: np.ndarray, pad_id: int
    ) -> list[tuple[list[int], np.ndarray]]:
        """The most probable continuation of every prompt, token by token.

        Parameters
        ----------
        n_tokens : an answer stops after so many at the latest
        end_ids : and after any of these tokens

        Returns
        -------
        list of (ids, log_proba)
            `ids`: the answer without its end. `log_proba`: of the tokens `columns`, ndarray of shape (n_steps,
            n_columns), float32; before each token of the answer and, if there was room, after its last.
        """
        from transformers import GenerationConfig, LogitsProcessorList

        ids, mask = self._batch(prompts, pad_id)
        settings = GenerationConfig(
            do_sample=False, num_beams=1, use_cache=True, max_new_tokens=n_tokens, eos_token_id=list(end_ids),
            pad_token_id=pad_id,
        )  # fmt: skip
        steps: list[np.ndarray] = []

        def record(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            steps.append(_log_proba(logits, columns))
            return logits

        layer = self.base.get_output_embeddings()
        with self._mixed(ids.device), quiet_transformers(), _exact_output(layer):
            written = self.base.generate(
                input_ids=ids, attention_mask=mask, generation_config=settings,
                logits_processor=LogitsProcessorList([record]),
            )  # fmt: skip
        answers = []
        for i, row in enumerate(written[:, ids.shape[1] :].tolist()):
            stop = next((t for t, token in enumerate(row) if token in end_ids), len(row))
            answers.append((row[:stop], np.array([step[i] for step in steps[: stop + 1]])))
        return answers

    @torch.no_grad()
    def log_proba(self, rows: Sequence[np.ndarray], n_last: int, columns: np.ndarray, pad_id: int) -> np.ndarray:
        """Log-probabilities of some tokens to be next, at the last positions of every row.

        The output embedding is multiplied in fp32: 16-bit logits of 16 and more lie 0.06 to 0.13 apart, and scores
        made of them would be full of ties.

        Returns
        -------
        ndarray of shape (n_rows, n_last, n_columns), float32
        """
        ids, mask = self._batch(rows, pad_id)
        with _exact_output(self.base.get_output_embeddings()):
            logits = self(ids, mask, n_last)
        return _log_proba(logits, columns)

    def _batch(self, rows: Sequence[np.ndarray], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        device = next(self.parameters()).device
        ids, mask = pad(rows, pad_id, side="left")
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)

    def _mixed(self, device: torch.device) -> Any:
        return torch.autocast(device.type, dtype=self.dtype) if self.dtype is not None else nullcontext()


def _log_proba(logits: torch.Tensor, columns: np.ndarray) -> np.ndarray:
    """Log-probabilities of the tokens `columns`, on the last axis."""
    chosen = logits[..., torch.from_numpy(columns).to(logits.device)].float()
    found: np.ndarray = (chosen - logits.float().logsumexp(-1, keepdim=True)).cpu().numpy()
    return found


@contextmanager
def _exact_output(layer: Any) -> Iterator[None]:
    """Within it, a plain output layer computes in fp32, a part of the vocabulary at a time."""
    if type(layer) is not nn.Linear:  # quantized or adapted by name: as it is
        yield
        return

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            parts = [hidden.float() @ weight.float().T for weight in layer.weight.split(VOCABULARY_CHUNK)]
            logits = torch.cat(parts, dim=-1)
            return logits if layer.bias is None else logits + layer.bias.float()

    layer.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del layer.forward


def build_writer(base: Any, recipe: Recipe, dtype: torch.dtype | None = None) -> LabelWriter:
    """Attach adapters to a loaded causal language model; see `lora_cls.modeling.adapter.build_model`."""
    from transformers import GenerationConfig

    base.generation_config = GenerationConfig()  # a model's own may sample, or shun repeated tokens
    return LabelWriter(adapt(base, recipe, task_type="CAUSAL_LM"), dtype)
