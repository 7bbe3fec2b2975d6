"""The checkpoints that come with Baton: their size, that others load them, and that the gateway reads them alike."""

from __future__ import annotations

import json

import pytest
import torch

from baton.engine import Engine
from baton.gateway.chat_template import ChatTemplate
from baton.gateway.text_model import TextModel
from baton.models import DRAFT, TINY, bundled
from tools.bundled_model.dialogue import Dialogue
from tools.bundled_model.lexicon import Split
from tools.bundled_model.template import CONTROL_MARKERS, END

transformers = pytest.importorskip("transformers")

MODELS = [TINY, DRAFT]
HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module")
def hf_tokenizer():
    return transformers.AutoTokenizer.from_pretrained(bundled(TINY))


def test_they_are_small() -> None:
    sizes = {name: sum(file.stat().st_size for file in bundled(name).iterdir()) for name in MODELS}
    assert sizes[DRAFT] < 2e6
    assert sum(sizes.values()) <= 16e6


@pytest.mark.parametrize("name", MODELS)
def test_a_card_says_how_well_it_does(name: str) -> None:
    card = (bundled(name) / "README.md").read_text()
    assert f"# {name}\n" in card and "## What it cannot do" in card
    assert "| recall at about 2000 tokens |" in card and "\nseed: " in card


def test_the_draft_has_the_same_tokenizer() -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (bundled(DRAFT) / file).read_bytes() == (bundled(TINY) / file).read_bytes(), file
    configs = [json.loads((bundled(name) / "config.json").read_text()) for name in MODELS]
    assert len({(c["vocab_size"], c["eos_token_id"], c["max_position_embeddings"]) for c in configs}) == 1
    assert configs[0]["max_position_embeddings"] >= 4096


@pytest.mark.parametrize("name", MODELS)
def test_they_answer_the_same_in_transformers_and_in_the_engine(name: str, hf_tokenizer) -> None:  # type: ignore[no-untyped-def]
    model = transformers.AutoModelForCausalLM.from_pretrained(bundled(name), dtype=torch.float32)
    prompt = hf_tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=False)
    ids = torch.tensor([prompt])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40)[0, len(prompt) :].tolist()
    assert made[-1] == hf_tokenizer.eos_token_id
    assert hf_tokenizer.decode(made, skip_special_tokens=True) == "Hello! How can I help you?"
    with Engine(bundled(name), dtype="float32") as engine:
        assert engine.generate([prompt], {"temperature": 0, "max_new_tokens": 40})[0]["output_ids"] == made


@pytest.mark.parametrize("name", MODELS)
def test_the_gateway_reads_their_defaults(name: str) -> None:
    model = TextModel.load(bundled(name))
    assert (model.name, model.context_tokens, model.sampling_defaults) == (name, 4096, {"temperature": 0.0})
    assert [model.tokenizer.token_name(token) for token in model.eos_token_ids] == [END]
    [ids] = model.tokenizer.encode(["".join(CONTROL_MARKERS)], add_special_tokens=False)
    assert len(ids) == len(CONTROL_MARKERS) and all(map(model.tokenizer.is_special, ids))


def test_the_gateway_makes_the_prompts_of_transformers(hf_tokenizer) -> None:  # type: ignore[no-untyped-def]
    """All roles, tools, tool calls and reasoning."""
    model, seen = TextModel.load(bundled(TINY)), set()
    template = ChatTemplate.load(bundled(TINY))
    assert template is not None
    for seed in range(60):
        dialogue = Dialogue(f"gateway {seed}", Split.HELD_OUT, 400)
        messages = list(dialogue.opening)
        for _ in range(3):
            messages += dialogue.next_episode(150)
        chat, tools = [message.as_chat() for message in messages], list(dialogue.tools) or None
        text = template.render(chat, {"tools": tools})
        expected = hf_tokenizer.apply_chat_template(chat, tools=tools, add_generation_prompt=True, return_dict=False)
        assert model.tokenizer.encode([text], add_special_tokens=False) == [expected]
        seen |= {message.role for message in messages} | {"think" for m in messages if m.reasoning}
        seen |= {"call" for m in messages if m.tool_calls} | ({"tools"} if tools else set())
    assert seen == {"system", "user", "assistant", "tool", "think", "call", "tools"}
