"""The formats by name, and which of them a model's chat template speaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from baton.core.errors import ConfigError
from baton.gateway.parsers.deepseek import DeepSeek
from baton.gateway.parsers.formats import PlainText, ReasoningFormat, ToolFormat, Tools, mistral_id, openai_id
from baton.gateway.parsers.gemma import FunctionGemma, Gemma
from baton.gateway.parsers.glm import Glm
from baton.gateway.parsers.harmony import Harmony
from baton.gateway.parsers.hermes import Hermes
from baton.gateway.parsers.kimi import Kimi
from baton.gateway.parsers.llama import LlamaJson
from baton.gateway.parsers.mistral import Mistral
from baton.gateway.parsers.output_parser import OutputParser
from baton.gateway.parsers.pythonic import Pythonic
from baton.gateway.parsers.qwen_coder import QwenCoder
from baton.gateway.parsers.reasoning import GemmaThink, ImplicitThink, MistralThink, SeedThink, Think

AUTO, NONE = "auto", "none"
_HARMONY = "harmony"

_NewToolFormat: TypeAlias = Callable[[Tools], ToolFormat]
_NewReasoningFormat: TypeAlias = Callable[[str], ReasoningFormat]

TOOL_FORMATS: dict[str, _NewToolFormat] = {
    "deepseek_v3": DeepSeek,
    "functiongemma": FunctionGemma,
    "gemma4": Gemma,
    "glm45": Glm,
    _HARMONY: Harmony,
    "hermes": Hermes,
    "kimi_k2": Kimi,
    "llama3_json": LlamaJson,
    "mistral": Mistral,
    "pythonic": Pythonic,
    "qwen3_coder": QwenCoder,
}
REASONING_FORMATS: dict[str, _NewReasoningFormat | None] = {
    "gemma4": GemmaThink,
    _HARMONY: None,  # its tool format reads the reasoning too
    "mistral": MistralThink,
    "seed": SeedThink,
    "think": Think,
    "think_implicit": ImplicitThink,
}

# What a chat template holds that speaks a format: the first that is found counts. None: a format not known here.
_TOOL_SIGNS: Sequence[tuple[str, str | None]] = (
    ("<|channel|>", _HARMONY),
    ("｜DSML｜", None),
    ("<｜tool▁calls▁begin｜>", "deepseek_v3"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|tool_call>", "gemma4"),
    ("<start_function_call>", "functiongemma"),
    ("<arg_key>", "glm45"),
    ("<seed:tool_call>", None),
    ("]<]minimax[>[", None),
    ("<parameter=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("[func_name1(", "pythonic"),
    ('{"name": function name, "parameters": dictionary', "llama3_json"),
)
_REASONING_SIGNS: Sequence[tuple[str, str]] = (
    ("<|channel|>", _HARMONY),
    ("<|channel>", "gemma4"),
    ("[THINK]", "mistral"),
    ("<seed:think>", "seed"),
    ("<think>", "think"),
    ("</think>", "think"),
)


class Parsers:
    """Makes the parsers of one model's messages. `tools`, `reasoning`: names of formats, or `none`."""

    def __init__(self, tools: str = NONE, reasoning: str = NONE) -> None:
        for kind, name, known in (("tool", tools, TOOL_FORMATS), ("reasoning", reasoning, REASONING_FORMATS)):
            if name != NONE and name not in known:
                raise ConfigError(f"there is no {kind} parser '{name}'; known are auto, none, {', '.join(known)}")
        self.tools, self.reasoning = tools, reasoning

    @classmethod
    def choose(cls, tools: str, reasoning: str, template: str) -> Parsers:
        """As the settings say; `auto` = what the chat template's source shows. Raises ConfigError."""
        found_tools = next((name for sign, name in _TOOL_SIGNS if sign in template), None)
        found_reasoning = next((name for sign, name in _REASONING_SIGNS if sign in template), None)
        return cls(
            (found_tools or NONE) if tools == AUTO else tools,
            (found_reasoning or NONE) if reasoning == AUTO else reasoning,
        )

    def create(self, tools: Tools, prompt: str, *, single: bool = False) -> OutputParser | None:
        """The parser of one message that continues `prompt`; None when its text is content as it is.

        `tools`: those that it may call. `single`: it ends after the first call.
        """
        if _HARMONY in (self.tools, self.reasoning):
            return OutputParser(None, Harmony(tools), openai_id, single=single)
        new_tools = TOOL_FORMATS.get(self.tools) if tools else None
        new_reasoning = REASONING_FORMATS.get(self.reasoning)
        if new_tools is None and new_reasoning is None:
            return None
        return OutputParser(
            new_reasoning(prompt) if new_reasoning else None,
            new_tools(tools) if new_tools else PlainText(),
            mistral_id if new_tools is Mistral else openai_id,
            single=single,
        )
