"""llama.cpp through llama-cpp-python's bindings of its C API: on a GGUF file, or one next to a checkpoint's folder."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf_file import write_gguf
from protocol import Timed, serve

_BATCH_TOKENS, _MICRO_BATCH_TOKENS = 2048, 512  # llama.cpp's defaults


class LlamaCppRunner:
    """One context at a time, made to measure: each sequence has a KV cache of its own."""

    def __init__(self, options: dict[str, Any]) -> None:
        file = Path(options["model"])
        if file.is_dir():
            folder, file = file, file / "model-bf16.gguf"
            if not file.exists():
                write_gguf(folder, file)
        # A warm-up load would only repeat what the first prompt does anyway.
        self._log = llama_cpp.llama_log_callback(lambda level, text, user: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._threads = options["threads"]
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"{file} cannot be loaded")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._context: Any = None
        self._shape = (0, 0)
        self._batch = llama_cpp.llama_batch_init(_BATCH_TOKENS, 0, 1)
        self._rows: list[list[int]] = []  # of each sequence: its last token, and how many are in its cache
        self.about = f"llama-cpp-python {llama_cpp.__version__}, {file.stem}, f16 KV cache, {self._threads} threads"

    def prefill(self, prompt: list[int]) -> float:
        self._fit(1, len(prompt) + 1)
        started = time.perf_counter()
        self._extend(0, prompt)
        return time.perf_counter() - started

    def open_decode(self, prompts: list[list[int]], tokens: int) -> None:
        self._fit(len(prompts), len(prompts[0]) + tokens + 2)
        self._rows = []
        if len(prompts) > 1 and prompts[0] is prompts[1]:
            first = self._extend(0, prompts[0])
            memory = llama_cpp.llama_get_memory(self._context)
            for row in range(1, len(prompts)):
                llama_cpp.llama_memory_seq_cp(memory, 0, row, -1, -1)
            self._rows = [[first, len(prompts[0])] for _ in prompts]
        else:
            self._rows = [[self._extend(row, prompt), len(prompt)] for row, prompt in enumerate(prompts)]

    def decode(self, steps: int) -> Timed:
        started = time.perf_counter()
        for _ in range(steps):
            tokens = self._run([(token, at, row, True) for row, (token, at) in enumerate(self._rows)])
            self._rows = [[token, at + 1] for token, (_, at) in zip(tokens, self._rows, strict=True)]
        return steps * len(self._rows), time.perf_counter() - started

    def close_decode(self) -> None:
        self._rows = []

    def mixed(self, prompts: list[list[int]], output_tokens: int) -> Timed:
        self._fit(len(prompts), len(prompts[0]) + output_tokens + 2)
        started = time.perf_counter()
        self.open_decode(prompts, output_tokens)
        self.decode(output_tokens - 1)
        seconds = time.perf_counter() - started
        self.close_decode()
        return output_tokens * len(prompts), seconds

    def _fit(self, sequences: int, tokens: int) -> None:
        """An empty context for so many sequences of so many tokens."""
        if self._context is not None and self._shape == (sequences, tokens):
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
            return
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        params = llama_cpp.llama_context_default_params()
        padded = -(-tokens // 256) * 256
        params.n_ctx = padded * sequences
        params.n_batch, params.n_ubatch = _BATCH_TOKENS, _MICRO_BATCH_TOKENS
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = self._threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"no context for {sequences} sequences of {tokens} tokens")
        self._shape = (sequences, tokens)

    def _extend(self, row: int, prompt: list[int]) -> int:
        token = -1
        for start in range(0, len(prompt), _BATCH_TOKENS):
            part = prompt[start : start + _BATCH_TOKENS]
            last = start + len(part) == len(prompt)
            entries = [(token, start + at, row, last and at == len(part) - 1) for at, token in enumerate(part)]
            found = self._run(entries)
            token = found[-1] if found else token
        return token

    def _run(self, entries: list[tuple[int, int, int, bool]]) -> list[int]:
        """Compute (token, position, sequence, wanted); the likeliest next token of each that is wanted."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for index, (token, position, row, wanted) in enumerate(entries):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = row
            batch.logits[index] = wanted
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode failed with {code}")
        return [self._likeliest(index) for index, entry in enumerate(entries) if entry[3]]

    def _likeliest(self, index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab,)).argmax())


if __name__ == "__main__":
    serve(LlamaCppRunner)
