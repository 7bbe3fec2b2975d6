"""transformers: the model's own forward, greedy, with its dynamic cache and static batches, as `generate` runs it."""

from __future__ import annotations

import time
from typing import Any

from protocol import Timed, serve


class TransformersRunner:
    def __init__(self, options: dict[str, Any]) -> None:
        import torch
        import transformers

        torch.set_num_threads(options["threads"])
        torch.set_grad_enabled(False)
        transformers.logging.set_verbosity_error()
        self._torch = torch
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            options["model"], dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
        self._last: Any = None
        self._cache: Any = None
        self.about = f"transformers {transformers.__version__}, torch {torch.__version__}, {options['threads']} threads"

    def prefill(self, prompt: list[int]) -> float:
        started = time.perf_counter()
        self._extend([prompt])
        return time.perf_counter() - started

    def open_decode(self, prompts: list[list[int]], tokens: int) -> None:
        if len(prompts) > 1 and prompts[0] is prompts[1]:
            self._last, self._cache = self._extend(prompts[:1])
            self._cache.batch_repeat_interleave(len(prompts))
            self._last = self._last.repeat(len(prompts), 1)
        else:
            self._last, self._cache = self._extend(prompts)

    def decode(self, steps: int) -> Timed:
        started = time.perf_counter()
        for _ in range(steps):
            logits = self._model(self._last, past_key_values=self._cache, use_cache=True).logits
            self._last = logits[:, -1].argmax(-1, keepdim=True)
        return steps * len(self._last), time.perf_counter() - started

    def close_decode(self) -> None:
        self._last = self._cache = None

    def mixed(self, prompts: list[list[int]], output_tokens: int) -> Timed:
        started = time.perf_counter()
        self.open_decode(prompts, output_tokens)
        self.decode(output_tokens - 1)
        self.close_decode()
        return output_tokens * len(prompts), time.perf_counter() - started

    def _extend(self, prompts: list[list[int]]) -> tuple[Any, Any]:
        """First tokens [batch, 1] of prompts of equal length, and their cache."""
        output = self._model(self._torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values


if __name__ == "__main__":
    serve(TransformersRunner)
