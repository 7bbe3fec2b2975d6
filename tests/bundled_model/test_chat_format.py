"""The chat format: Python and Jinja agree token by token, `transformers` included; text survives the tokenizer."""

from __future__ import annotations

import random
import re

import pytest

from tools.bundled_model import tokenizer
from tools.bundled_model.conversation import Message, parse_reply
from tools.bundled_model.dialogue import Dialogue
from tools.bundled_model.encoding import ChatEncoder, Cuts
from tools.bundled_model.lexicon import Split

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def hf_tokenizer(encoder: ChatEncoder, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(encoder.tokenizer, folder, 4096)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_template_gives_the_ids_of_training(encoder: ChatEncoder, hf_tokenizer) -> None:  # type: ignore[no-untyped-def]
    seen = set()
    for seed in range(60):
        dialogue = Dialogue(seed, Split.TRAIN, 400)
        messages = list(dialogue.opening)
        for _ in range(3):
            messages += dialogue.next_episode(150)
        chat = [message.as_chat() for message in messages]
        tools = list(dialogue.tools) or None
        expected = encoder.encode(messages, dialogue.tools).ids
        assert hf_tokenizer.apply_chat_template(chat, tools=tools, return_dict=False) == expected
        prompt = hf_tokenizer.apply_chat_template(chat, tools=tools, add_generation_prompt=True, return_dict=False)
        assert prompt == [*expected, encoder.assistant_id]
        seen |= {message.role for message in messages} | {"think" for m in messages if m.reasoning}
        seen |= {"call" for m in messages if m.tool_calls}
    assert seen == {"system", "user", "assistant", "tool", "think", "call"}


def test_template_takes_what_clients_send(hf_tokenizer) -> None:  # type: ignore[no-untyped-def]
    tool = {"type": "function", "function": {"name": "now"}}
    optional = {"a": {"type": ["string", "null"]}, "b": {}}
    detailed = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": optional}}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": " Hello "}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "id": "1", "function": {"name": "now", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "12:00"},
    ]
    text = hf_tokenizer.apply_chat_template(messages, tools=[tool, detailed], tokenize=False)
    assert text == (
        "<|system|><tools>now()\nf(a: string or null, b: any)</tools><|end|><|user|>Hello<|end|>"
        '<|assistant|><tool_call>{"name": "now", "arguments": {}}</tool_call><|end|><|tool|>12:00<|end|>'
    )


@pytest.mark.parametrize(
    "text",
    [
        "John Smith is 32.",
        '{"name": "John Smith", "age": 32}',
        "  two\n\n lines\t",
        "añø 漢字 🙂",
        "don't I'LL",
        "a-b-c",
        "x",
    ],
)
def test_any_text_survives(encoder: ChatEncoder, text: str) -> None:
    assert encoder.decode(encoder.tokenizer.encode(text).ids) == text


def test_cut_words_keep_the_text_and_are_cut_alike_wherever_they_stand(encoder: ChatEncoder) -> None:
    cuts = Cuts(random.Random(1), 1.0)
    question, answer = "Repeat after me: Winter lamp, winter lamps", "winter lamp: Winter unasked"
    asked, answered = list(cuts.parts(question, new=True)), list(cuts.parts(answer, new=False))
    assert "".join(asked) == question and "".join(answered) == answer
    marked = "|".join(asked).lower() + " " + "|".join(answered).lower()
    assert len(set(re.findall(r"w\|?i\|?n\|?t\|?e\|?r", marked))) == 1
    assert len(set(re.findall(r"l\|?a\|?m\|?p(?!s)", marked))) == 1 and "|" in marked
    assert "unasked" in "|".join(answered), "the assistant's own words are whole"
    assert list(Cuts(random.Random(1), 0.0).parts(question, new=True)) == [question]


def test_rows_with_cut_words_decode_to_the_same_text(encoder: ChatEncoder) -> None:
    longer = 0
    for seed in range(20):
        dialogue = Dialogue(seed, Split.TRAIN, 400)
        messages = [*dialogue.opening, *dialogue.next_episode(200), *dialogue.next_episode(200)]
        whole = encoder.encode(messages, dialogue.tools)
        cut = encoder.encode(messages, dialogue.tools, Cuts(random.Random(seed), 0.5))
        assert encoder.decode(cut.ids) == encoder.decode(whole.ids)
        longer += len(cut.ids) > len(whole.ids)
        for one, other in zip(whole.turns, cut.turns, strict=True):
            assert encoder.decode(cut.ids[other.start : other.end]) == encoder.decode(whole.ids[one.start : one.end])
    assert longer > 10


def test_names_and_numbers_are_the_same_tokens_everywhere(encoder: ChatEncoder) -> None:
    def tokens(text: str) -> list[str]:
        return list(encoder.tokenizer.encode(text).tokens)

    name = tokens("Zorvina")
    for text in ("I am Zorvina.", '{"name": "Zorvina"}', "from: Zorvina", "Hello, Zorvina!"):
        found = tokens(text)
        assert any(found[index : index + len(name)] == name for index in range(len(found))), text
    assert tokens(" 482")[-3:] == tokens("482") == ["4", "8", "2"]


def test_markers_are_single_tokens_and_shown_only_where_parsers_need_them(encoder: ChatEncoder) -> None:
    message = Message("assistant", "Yes.", reasoning="Hm.")
    encoded = encoder.encode([message])
    assert [turn.start for turn in encoded.turns] == [1]
    assert encoded.ids[-1] == encoder.end_id
    assert parse_reply(encoder.decode(encoded.ids)).reasoning == "Hm."
