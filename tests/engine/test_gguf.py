"""GGUF files: what they mean is what the `gguf` package says, and `transformers` computes with it."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path

import gguf
import pytest
import torch
from family_checkpoints import Checkpoint
from paged_rows import PagedModel, Row
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from baton.core.errors import CheckpointError
from baton.engine import Engine
from baton.engine.cpu.library import kernels
from baton.engine.model.files import model_revision
from baton.engine.runner import TorchModelRunner
from baton.models import TINY, bundled
from baton.models.gguf.container import open_container
from baton.models.gguf.folder import checkpoint_folder
from baton.testing.checkpoints import make_checkpoint
from baton.testing.gguf_files import Kind, nearest_blocks, q4_k_m, write
from baton.testing.tokenizer import write_tokenizer

torch.set_num_threads(1)
TOKENS = torch.randint(6, 512, (40,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def folder(request, tmp_path_factory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("plain"), request.param, hidden=256, heads=4, kv_heads=2, intermediate=512,
        tied=request.param == "qwen3",
    )  # fmt: skip


def reference(folder: Path, meant: dict[str, torch.Tensor]) -> torch.Tensor:
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    model.load_state_dict(meant, strict=False)
    with torch.inference_mode():
        return model(torch.tensor([TOKENS])).logits[0]


def logits(folder: Path, **options) -> torch.Tensor:
    return PagedModel(TorchModelRunner.load(folder, **options)).step([(Row(TOKENS), len(TOKENS))], all_logits=True)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q5_K", "Q4_K_M"])
def test_logits(tmp_path, folder, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = q4_k_m if kind == "Q4_K_M" else lambda name, columns: Kind[kind]
    exact = reference(folder, write(folder, tmp_path / "a model.gguf", kinds))
    made = checkpoint_folder(tmp_path / "a model.gguf", tmp_path / "cache")
    assert made.name == "a model"
    dense = logits(made, dtype="float32", backend="torch")
    torch.testing.assert_close(dense, exact, atol=2e-3, rtol=1e-4)
    said: list[dict[str, object]] = []
    monkeypatch.setattr("baton.engine.model.weights.log.info", lambda event, **fields: said.append(fields))
    ours = logits(made, dtype="float32")
    assert ((ours - exact).square().mean().sqrt() / exact.std()) < 0.04  # products of bfloat16
    if kernels() is not None:
        plain = kind in ("F32", "F16", "BF16")
        kept = 11 if kind == "Q4_K_M" else 9  # values are of another kind than queries and keys, in both layers
        assert said[-1] == {"method": "gguf", "kept": 0 if plain else kept, "spread_out": 0 if plain else 1}


def test_files_mean_to_transformers_what_they_mean_here(tmp_path, folder) -> None:
    """Of what the other tests are held against: names, orders of rows and blocks."""
    meant = write(folder, tmp_path / "m.gguf", q4_k_m)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    found = load_gguf_checkpoint(str(tmp_path / "m.gguf"), return_tensors=True, model_to_load=model)["tensors"]
    assert set(found) == set(meant)
    for name, tensor in meant.items():
        torch.testing.assert_close(found[name].float(), tensor, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("mixtral", {}),
        ("qwen2 moe", {"mlp_only_layers": [], "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96}),
        ("qwen3 moe", {"decoder_sparse_step": 1}),
        ("gemma 2", {"query_pre_attn_scalar": 16}),
    ],
)
def test_experts_and_norms(tmp_path, family: str, fields: dict[str, object]) -> None:
    """Experts stand in one tensor; weights of Gemma's norms have one added."""
    plain = Checkpoint(tmp_path / "plain", family, vocab_size=512, tie_word_embeddings=family == "gemma 2", **fields)
    write_tokenizer(plain.folder, 512, 512)
    meant = write(
        plain.folder, tmp_path / "m.gguf", lambda name, columns: Kind.F32 if "gate_inp" in name else Kind.Q8_0
    )
    plain.change_tensors(lambda tensors: tensors.update({n: meant[n].view(t.shape) for n, t in tensors.items()}))
    model = AutoModelForCausalLM.from_pretrained(plain.folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.inference_mode():
        exact = model(torch.tensor([TOKENS])).logits[0]
    made = checkpoint_folder(tmp_path / "m.gguf", tmp_path)
    torch.testing.assert_close(logits(made, dtype="float32", backend="torch"), exact, atol=2e-3, rtol=1e-3)
    ours = logits(made, dtype="float32")
    assert (ours - exact).abs().median() < 0.02 * exact.std()


@pytest.mark.parametrize(("kind", "bits"), [(Kind.Q4_K, 4), (Kind.Q6_K, 6)])
def test_rounded_blocks_are_near(kind: Kind, bits: int) -> None:
    """Of what benchmarks are made of."""
    weight = torch.randn(8, 512, generator=torch.Generator().manual_seed(0)).numpy()
    found = gguf.quants.dequantize(nearest_blocks(kind, weight, 0), kind)
    assert abs(found - weight).max() < 6 / 2**bits


def test_frequencies_that_the_file_brings(tmp_path) -> None:
    """As Llama 3.1 has them: against `transformers` with the frequencies put into its model."""
    folder = make_checkpoint(tmp_path / "plain", hidden=128, heads=4, kv_heads=2)
    write(folder, tmp_path / "m.gguf", lambda name, columns: Kind.F32, freqs=True)
    ours = logits(checkpoint_folder(tmp_path / "m.gguf", tmp_path), dtype="float32", backend="torch")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.model.rotary_emb.inv_freq /= torch.linspace(1, 8, 16)
    with torch.inference_mode():
        torch.testing.assert_close(ours, model(torch.tensor([TOKENS])).logits[0], atol=2e-3, rtol=1e-4)


def test_the_bundled_model_with_its_tokenizer(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Served from one file: the same text as from its folder. Its way to cut text has no name in GGUF, so that its
    tokenizer.json lies beside."""
    monkeypatch.setattr("baton.runtime.environ.cache_dir", lambda: tmp_path / "cache")
    file = tmp_path / "models" / "tiny.gguf"
    file.parent.mkdir()
    write(bundled(TINY), file, lambda name, columns: Kind.BF16, pre="baton")
    with pytest.raises(CheckpointError, match=r"tokenizer.ggml.pre is 'baton'; .*tokenizer.json beside the file"):
        Engine(file)
    (file.parent / "tokenizer.json").write_bytes((bundled(TINY) / "tokenizer.json").read_bytes())
    prompt, sampling = "The key is 4821. Tell me the key.", {"temperature": 0, "max_new_tokens": 12}
    with Engine(bundled(TINY), kv_memory_bytes=4 << 20) as plain, Engine(file, kv_memory_bytes=4 << 20) as ours:
        assert ours.generate(prompt, sampling)["text"] == plain.generate(prompt, sampling)["text"]
    made = checkpoint_folder(file.parent, tmp_path / "cache")
    assert (made / "chat_template.jinja").read_text() == (bundled(TINY) / "chat_template.jinja").read_text()
    assert json.loads((made / "generation_config.json").read_text())["eos_token_id"] == [1]


TEXTS = ["Hello, World!  It's 12345 things\n\n  to do", "naïve café 東京 🙂", " don't", "x\r\ny\tz   "]


@pytest.mark.parametrize("pre", ["default", "llama-bpe", "qwen2"])
def test_byte_level_tokenizer(tmp_path, pre: str) -> None:
    """Any text comes back; and tokens do not reach over the borders that the pattern sets."""
    folder = make_checkpoint(tmp_path / "plain", hidden=64)
    write(folder, tmp_path / "m.gguf", lambda name, columns: Kind.F32, pre=pre)
    made = checkpoint_folder(tmp_path / "m.gguf", tmp_path)
    ours = Tokenizer.from_file(str(made / "tokenizer.json"))
    for text in TEXTS:
        assert ours.decode(ours.encode(text).ids) == text
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ours.get_vocab() == theirs.get_vocab()
    words = [piece for piece, _ in ours.pre_tokenizer.pre_tokenize_str("in 12345 days")]
    assert (
        words
        == {
            "default": ["in", "Ġ12345", "Ġdays"],
            "llama-bpe": ["in", "Ġ", "123", "45", "Ġdays"],
            "qwen2": ["in", "Ġ", "1", "2", "3", "4", "5", "Ġdays"],
        }[pre]
    )


def test_sentence_piece_tokenizer(tmp_path) -> None:
    """Merges follow from scores: against a search for the segmentation that merging the best pair first finds."""
    pieces = ["▁", "a", "b", "c", "ab", "bc", "▁a", "abc", "▁ab", "ca"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = [0.0] * 259 + [-float(rank) for rank in (9, 9, 9, 9, 1, 2, 3, 4, 5, 6)]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(pieces)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    minimal(writer, len(tokens))
    made = checkpoint_folder(tmp_path / "m.gguf", tmp_path)
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))

    def merged(text: str) -> list[str]:
        parts = list(text)
        while True:
            joined = [left + right for left, right in itertools.pairwise(parts)]
            pairs = [(scores[tokens.index(both)], -i) for i, both in enumerate(joined) if both in tokens]
            if not pairs:
                return parts
            at = -max(pairs)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]

    for text in ("abcabc", "ab bca", "cab", "a  b"):
        expected = merged("▁" + text.replace(" ", "▁"))
        found = tokenizer.encode(text)
        assert found.tokens == ["<s>", *expected]
        assert tokenizer.decode(found.ids) == text
    assert tokenizer.encode("aé").tokens == ["<s>", "▁a", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("aé").ids) == "aé"


def minimal(writer: gguf.GGUFWriter, vocab: int = 8) -> None:
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("token_embd.weight", torch.zeros(vocab, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_folder_is_made_once_and_anew_when_the_file_changes(tmp_path) -> None:
    folder = make_checkpoint(tmp_path / "plain", hidden=64, intermediate=192)
    write(folder, tmp_path / "m.gguf", lambda name, columns: Kind.F32)
    made = checkpoint_folder(tmp_path / "m.gguf", tmp_path / "cache")
    revision = model_revision(made)
    written = (made / "config.json").stat().st_mtime_ns
    assert checkpoint_folder(tmp_path / "m.gguf", tmp_path / "cache") == made
    assert (made / "config.json").stat().st_mtime_ns == written
    write(folder, tmp_path / "m.gguf", lambda name, columns: Kind.Q8_0)
    changed = checkpoint_folder(tmp_path / "m.gguf", tmp_path / "cache")
    assert changed != made and changed.name == made.name
    assert model_revision(changed) != revision
    assert checkpoint_folder(folder, tmp_path / "cache") == folder
    assert checkpoint_folder(tmp_path / "nowhere", tmp_path / "cache") == tmp_path / "nowhere"


def refuses(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        TorchModelRunner.load(checkpoint_folder(path, path.parent / "cache"))


def test_broken_files_are_named(tmp_path) -> None:
    folder = make_checkpoint(tmp_path / "plain", hidden=64)
    file = tmp_path / "m.gguf"
    write(folder, file, lambda name, columns: Kind.F32)
    content = file.read_bytes()
    for keep in (3, 20, 500, 5000):
        file.write_bytes(content[:keep])
        refuses(file, "m.gguf (is not a GGUF file|is truncated)")
    file.write_bytes(content[:-100])
    refuses(file, r"m.gguf is truncated: \d+ bytes of \d+")
    file.write_bytes(content[:4] + struct.pack("<I", 1) + content[8:])
    refuses(file, "GGUF version 1; 2 and 3 are supported")
    file.write_bytes(content[:8] + struct.pack("<Q", 1 << 60) + content[16:])
    refuses(file, "promises 1152921504606846976 tensors")
    file.write_bytes(content.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    refuses(file, r"no tensor model\.layers\.1\.mlp\.up_proj\.weight")
    file.write_bytes(content.replace(b"llama.attention.head_count_kv", b"llama.attention.head_count_xx"))
    refuses(file, r"k_proj.weight .* asks for \[64, 64\]")
    file.write_bytes(content.replace(b"llama.embedding_length", b"llama.embedding_lengt_"))
    refuses(file, "metadata has no llama.embedding_length")
    (tmp_path / "other.gguf").write_bytes(content)
    refuses(tmp_path, r"holds 2 GGUF files; name one of them: m\.gguf, other\.gguf")


def test_what_is_not_supported_is_named(tmp_path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "mamba")
    minimal(writer)
    refuses(tmp_path / "a.gguf", "architecture mamba is not supported in GGUF files; supported are llama")
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    writer.add_tensor("blk.0.attn_q.weight", torch.zeros(8, 36, dtype=torch.uint8).numpy(), raw_dtype=Kind.IQ4_NL)
    minimal(writer)
    refuses(tmp_path / "b.gguf", "blk.0.attn_q.weight in .* is stored as IQ4_NL; F32, F16, BF16, Q4_0")
    writer = gguf.GGUFWriter(tmp_path / "c.gguf", "llama")
    writer.add_tokenizer_model("bert")
    minimal(writer)
    refuses(tmp_path / "c.gguf", "tokenizer.ggml.model is 'bert'; gpt2 and llama are supported")
    writer = gguf.GGUFWriter(tmp_path / "d.gguf", "llama")
    writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    minimal(writer)
    refuses(tmp_path / "d.gguf", "rope.scaling.type is 'longrope'")
    writer = gguf.GGUFWriter(tmp_path / "e.gguf", "llama")
    writer.add_uint16("split.count", 3)
    minimal(writer)
    refuses(tmp_path / "e.gguf", "one of 3 parts; merge them")


def test_metadata_of_every_type(tmp_path) -> None:
    """Against the package's own reader."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    kinds = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
    for number, kind in enumerate(kinds):
        getattr(writer, f"add_{kind}")(f"x.{kind}", 7 + number)
    writer.add_int32("x.negative", -5)
    writer.add_float32("x.float32", 0.5)
    writer.add_float64("x.float64", -0.25)
    writer.add_bool("x.bool", True)
    writer.add_array("x.numbers", [1, -2, 3])
    writer.add_array("x.texts", ["a", "ß", ""])
    minimal(writer)
    found = open_container(tmp_path / "m.gguf")
    for name, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items():
        if not name.startswith("GGUF."):
            assert found.metadata[name] == field.contents(), name
    assert found.metadata["x.texts"] == ["a", "ß", ""]
