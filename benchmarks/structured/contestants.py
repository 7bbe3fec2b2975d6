"""The grammar libraries behind one small face, so that one walk over the samples measures each of them alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Refused(Exception):
    """The library does not take this schema, and says why."""


class Walk(Protocol):
    """One instance on its way through a compiled schema."""

    def fill(self, mask: np.ndarray[Any, Any]) -> None:
        """Write the bits of the tokens allowed next into `mask`, int32 [words]."""

    def consume(self, token_id: int) -> bool: ...


class Contestant(Protocol):
    def compile(self, schema: Any) -> object:
        """Raises Refused."""

    def walk(self, compiled: Any) -> Walk: ...


class LlGuidance:
    """Builds automata lazily: what it saves when compiling it pays with the first masks."""

    def __init__(self, tokenizer_json: Path, eos_token_id: int) -> None:
        import llguidance

        self._llg = llguidance
        self._tokenizer = llguidance.LLTokenizer(str(tokenizer_json), eos_token=eos_token_id)

    def compile(self, schema: Any) -> object:
        try:
            grammar = self._llg.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        except ValueError as error:
            raise Refused(str(error)) from None
        matcher = self._llg.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise Refused(matcher.get_error())
        return matcher

    def walk(self, compiled: Any) -> Walk:
        return _LlGuidanceWalk(compiled.deep_copy())


class _LlGuidanceWalk:
    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def fill(self, mask: np.ndarray[Any, Any]) -> None:
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)

    def consume(self, token_id: int) -> bool:
        return bool(self._matcher.consume_token(token_id))


class XGrammar:
    """Computes most masks when compiling, for all states of the automaton."""

    def __init__(self, tokenizer_json: Path, eos_token_id: int) -> None:
        import xgrammar
        from transformers import PreTrainedTokenizerFast

        self._xgr = xgrammar
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_json))
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, stop_token_ids=[eos_token_id])
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, schema: Any) -> object:
        try:
            return self._compiler.compile_json_schema(json.dumps(schema))
        except (RuntimeError, ValueError) as error:
            raise Refused(str(error)) from None

    def walk(self, compiled: Any) -> Walk:
        return _XGrammarWalk(self._xgr.GrammarMatcher(compiled))


class _XGrammarWalk:
    def __init__(self, matcher: Any) -> None:
        import torch

        self._matcher = matcher
        self._from_numpy = torch.from_numpy

    def fill(self, mask: np.ndarray[Any, Any]) -> None:
        if not self._matcher.fill_next_token_bitmask(self._from_numpy(mask[None])):
            mask.fill(-1)  # it leaves the mask alone where every token is allowed

    def consume(self, token_id: int) -> bool:
        return bool(self._matcher.accept_token(token_id))


CONTESTANTS = {"llguidance": LlGuidance, "xgrammar": XGrammar}
