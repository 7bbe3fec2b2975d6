from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from baton.core.errors import CheckpointError, InvalidRequest
from baton.gateway.chat_template import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
CHAT = [
    {"role": "system", "content": "Be brief & <clear>."},
    {"role": "user", "content": "Hello, 東京!"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye\nnow"},
]
TOOLS_CHAT = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "w", "arguments": {"city": "Oslo"}}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "12 C"},
    {"role": "user", "content": "Thanks"},
]
# Templates without the time of day in them, of the shapes that the gateway renders.
NAMES = [
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "meta-llama-Llama-3.1-8B-Instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "microsoft-Phi-3.5-mini-instruct",
    "deepseek-ai-DeepSeek-V3.1",
    "HuggingFaceTB-SmolLM3-3B",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "google-gemma-2-2b-it",
    "ibm-granite-granite-3.3-2B-Instruct",
    "openai-gpt-oss-120b",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chat", [CHAT, CHAT[1:], TOOLS_CHAT], ids=["system", "plain", "tools"])
def test_renders_as_transformers_does(conformance: Path, name: str, chat: list[dict[str, object]]) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    path = conformance / "templates" / "llama.cpp" / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"the conformance material has no {path.name}")
    source = path.read_text()
    try:
        [expected], _ = render_jinja_template([chat], chat_template=source, add_generation_prompt=True, **SPECIAL)
    except Exception:
        with pytest.raises(InvalidRequest):
            ChatTemplate(source, SPECIAL).render(chat)
        return
    template = ChatTemplate(source, SPECIAL)
    if not template.wants_parts:
        assert template.render(chat) == expected


def test_every_recorded_template_compiles_and_shows_the_user(conformance: Path) -> None:
    silent = []
    for path in sorted((conformance / "templates").rglob("*.jinja")):
        template = ChatTemplate(path.read_text(), SPECIAL)
        try:
            shown = "word-of-the-user" in template.render([{"role": "user", "content": "word-of-the-user"}])
        except InvalidRequest:
            shown = True  # says so
        silent += [] if shown else [path.name]
    assert silent == []


def test_content_parts_where_the_template_wants_them() -> None:
    shown = "{% if part.type == 'text' %}[{{ part.text }}]{% endif %}"
    source = "{% for m in messages %}{% for part in m.content %}" + shown + "{% endfor %}{% endfor %}"
    template = ChatTemplate(source, {})
    assert template.wants_parts
    assert template.render([{"role": "user", "content": "hello"}]) == "[hello]"


def test_developer_is_system_for_templates_that_do_not_know_it() -> None:
    plain = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    message = {"role": "developer", "content": "x"}
    assert ChatTemplate(plain, {}).render([message]) == "system:x;"
    knowing = "{% if messages[0].role == 'developer' %}knows{% endif %}"
    assert ChatTemplate(knowing, {}).render([message]) == "knows"


def test_a_refusal_of_the_template_is_the_callers_mistake() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        template.render([{"role": "user", "content": "x"}])
    assert caught.value.param == "messages"


def test_a_template_that_cannot_cope_is_no_defect() -> None:
    template = ChatTemplate("{{ messages[0].content + 1 }}", {})
    with pytest.raises(InvalidRequest, match="do not fit"):
        template.render([{"role": "user", "content": "x"}])


def test_deep_values_do_not_overflow() -> None:
    value: object = 1
    for _ in range(900):
        value = [value]
    template = ChatTemplate("{{ messages[0].content }}{{ deep | tojson }}", {})
    with contextlib.suppress(InvalidRequest):
        template.render([{"role": "user", "content": "x"}], {"deep": value})


def test_the_sandbox_holds() -> None:
    template = ChatTemplate("{{ messages.__class__.__mro__ }}{{ messages.append(1) }}", {})
    with pytest.raises(InvalidRequest):
        template.render([{"role": "user", "content": "x"}])


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_where_a_template_is_found(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "{{ eos_token }}"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named, "eos_token": {"content": "<e>"}})
    assert ChatTemplate.load(tmp_path).render([]) == "<e>"
    write(tmp_path, "tokenizer_config.json", {"chat_template": "{{ bos_token }}", "bos_token": "<b>"})
    assert ChatTemplate.load(tmp_path).render([]) == "<b>"
    write(tmp_path, "chat_template.jinja", "file {{ bos_token }}")
    assert ChatTemplate.load(tmp_path).render([]) == "file <b>"


@pytest.mark.parametrize(
    "name, content",
    [("chat_template.jinja", "{% if %}"), ("tokenizer_config.json", "{"), ("tokenizer_config.json", "[]")],
)
def test_a_broken_template_is_an_error_at_start(tmp_path: Path, name: str, content: str) -> None:
    write(tmp_path, name, content)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        ChatTemplate.load(tmp_path)


CALLS = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"a": 1}}}]},
    {"role": "tool", "content": "y", "tool_call_id": "1"},
]
EACH_CALL = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ ARGUMENTS }}{% endfor %}{{ m.name }}{% endfor %}"
)


def test_arguments_as_text_where_the_template_wants_text() -> None:
    objects = ChatTemplate(EACH_CALL.replace("ARGUMENTS", "c.function.arguments | tojson"), {})
    texts = ChatTemplate(EACH_CALL.replace("ARGUMENTS", "'' + c.function.arguments"), {})
    assert (objects.wants_json, texts.wants_json) == (False, True)
    assert objects.render(CALLS) == texts.render(CALLS) == '{"a": 1}f'


def test_results_get_the_name_of_their_tool() -> None:
    named = ChatTemplate("{% for m in messages %}{{ m.name }};{% endfor %}", {})
    assert named.render(CALLS) == ";;f;"
    assert named.render([*CALLS[:2], {**CALLS[2], "name": "own"}]) == ";;own;"
    assert named.render([*CALLS[:2], {**CALLS[2], "tool_call_id": "2"}]) == ";;;"


def test_a_template_of_its_own_for_tools(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | length }} tools"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named})
    template = ChatTemplate.load(tmp_path)
    assert template.render([]) == "plain" and template.knows_tools
    assert template.render([], tools=[{"type": "function"}]) == "1 tools"
