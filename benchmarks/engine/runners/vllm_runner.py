"""vLLM's CPU build: its own engine, in this process, stepped as its server steps it; prefix caching on."""

from __future__ import annotations

import os
from typing import Any

from protocol import serve
from stepped import SteppedRunner

_GIB = 1 << 30


class VllmRunner(SteppedRunner):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        pool_gib = -(-options["pool_tokens"] * options["kv_token_bytes"] // _GIB)
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, pool_gib)),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, options["cores"])),
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        import vllm
        from vllm.sampling_params import RequestOutputKind

        self._vllm = vllm
        self._delta = RequestOutputKind.DELTA
        llm = vllm.LLM(
            options["model"],
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=options["context"],
            max_num_seqs=64,
            enable_prefix_caching=True,
            seed=0,
        )
        self._engine = llm.llm_engine
        self.about = f"vllm {vllm.__version__}, {len(options['cores'])} threads"

    def add(self, name: str, prompt: list[int], tokens: int) -> None:
        params = self._vllm.SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False, output_kind=self._delta
        )
        self._engine.add_request(name, self._vllm.TokensPrompt(prompt_token_ids=prompt), params)

    def step(self) -> list[tuple[str, int]]:
        found = [(output.request_id, len(output.outputs[0].token_ids)) for output in self._engine.step()]
        return [(name, tokens) for name, tokens in found if tokens]

    def abort(self, names: list[str]) -> None:
        self._engine.abort_request(names)

    def busy(self) -> bool:
        return bool(self._engine.has_unfinished_requests())


if __name__ == "__main__":
    serve(VllmRunner)
