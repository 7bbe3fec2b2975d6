"""Random checkpoints: transformers and Baton load them, any text survives their tokenizer, and output wanders."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from paged_rows import PagedModel, Row

from baton.engine.runner import TorchModelRunner
from baton.testing.checkpoints import ARCHITECTURES, make_checkpoint
from baton.testing.tokenizer import SPECIAL_TOKENS

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), vocab=1000)


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello!",
        " leading,  double  and trailing ",
        "tabs\tand\r\nlines\n\n",
        "Café 東京 привет 👩‍👩‍👧‍👦 \u200b\ufeff",
        "".join(map(chr, range(0x2000))),
        "\x00\x7f" + "".join(map(chr, range(0x1F300, 0x1F700))),
    ],
)
def test_any_text_survives(tokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_vocabulary(tokenizer, folder) -> None:
    assert len(tokenizer) == 1000
    assert sorted(tokenizer.get_vocab().values()) == list(range(1000))
    assert tokenizer.convert_ids_to_tokens(list(range(6))) == list(SPECIAL_TOKENS)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert tokenizer("to").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.model_max_length == 4096
    assert len(tokenizer("the answer waits", add_special_tokens=False).input_ids) < 8
    assert any("\ufffd" in tokenizer.decode([token]) for token in range(262, 1000))  # pieces of characters


def test_chat_template(tokenizer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|begin|><|system|>Be brief.<|end|><|user|>Hello!<|end|><|assistant|>"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert [token for token in ids if token < 6] == [0, 3, 1, 4, 1, 5]
    with pytest.raises(Exception, match="role pope is unknown"):
        tokenizer.apply_chat_template([{"role": "pope", "content": ""}], tokenize=False)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_greedy_output_wanders(tmp_path, family: str) -> None:
    runner = TorchModelRunner.load(make_checkpoint(tmp_path, family))
    model, row, gaps = PagedModel(runner), Row([0, 45, 326, 290]), []
    while len(row.tokens) < 204:
        best = model.step([(row, len(row.tokens) - row.cached)])[-1].topk(2)
        gaps.append(float(best.values[0] - best.values[1]))
        row.tokens.append(int(best.indices[0]))
    assert len(set(row.tokens)) > 50
    assert min(gaps) > 1e-4  # far above rounding in float32
    assert not set(row.tokens[4:]) & set(range(6))


def test_files_are_reproducible_and_as_asked(tmp_path) -> None:
    first, same, other = (make_checkpoint(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    content = [(folder / "model.safetensors").read_bytes() for folder in (first, same, other)]
    assert content[0] == content[1] != content[2]
    config = json.loads((make_checkpoint(tmp_path / "d", config={"extra": 1}) / "config.json").read_text())
    assert config["extra"] == 1
    with pytest.raises(ValueError, match="vocab is 100"):
        make_checkpoint(tmp_path / "e", vocab=100)


def test_needs_no_torch(tmp_path) -> None:
    code = (
        "import sys; from baton.testing.checkpoints import make_checkpoint; make_checkpoint(sys.argv[1]);"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "made")], check=True)
