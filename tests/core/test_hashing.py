"""The block hash: vectors that other implementations can check themselves against, and its properties."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from baton.core.hashing import HASH_BYTES, block_hashes, root_hash, token_bytes

VECTORS = json.loads((Path(__file__).parent / "block_hash_vectors.json").read_text())


def reference(vector: dict) -> tuple[str, list[str]]:
    """The definition, written again from the docstring with struct."""
    parts = [vector["model_revision"], vector["layout"], vector["lora"], vector["cache_salt"]]
    data = b"baton-block-v1" + b"".join(struct.pack("<I", len(p.encode())) + p.encode() for p in parts)
    root = parent = hashlib.sha256(data).digest()[:16]
    size, hashes = vector["block_tokens"], []
    for start in range(0, len(vector["token_ids"]) - size + 1, size):
        block = struct.pack(f"<{size}I", *vector["token_ids"][start : start + size])
        parent = hashlib.sha256(parent + block).digest()[:16]
        hashes.append(parent.hex())
    return root.hex(), hashes


def test_vectors():
    assert len(VECTORS) >= 4
    for vector in VECTORS:
        root = root_hash(
            vector["model_revision"], vector["layout"], lora=vector["lora"], cache_salt=vector["cache_salt"]
        )
        hashes = [h.hex() for h in block_hashes(root, vector["token_ids"], vector["block_tokens"])]
        assert (root.hex(), hashes) == (vector["root"], vector["hashes"]) == reference(vector)


tokens = st.lists(st.integers(0, 2**32 - 1), max_size=100)


@given(tokens, tokens, st.integers(1, 20))
def test_chain_is_prefix_stable(prefix, suffix, size):
    root = root_hash("m", "l")
    whole = block_hashes(root, prefix + suffix, size)
    head = block_hashes(root, prefix, size)
    assert whole[: len(head)] == head
    assert len(whole) == len(prefix + suffix) // size
    assert all(len(h) == HASH_BYTES for h in whole)


@given(tokens, st.integers(1, 10), st.integers(0, 9))
def test_continuing_from_a_parent_is_the_same_chain(ids, size, blocks):
    root = root_hash("m", "l")
    whole = block_hashes(root, ids, size)
    cut = min(blocks, len(whole))
    parent = whole[cut - 1] if cut else root
    assert whole[:cut] + block_hashes(parent, ids[cut * size :], size) == whole


def test_roots_differ_in_every_part():
    roots = [
        root_hash("m", "l"), root_hash("ml", ""), root_hash("m", "l", lora="x"), root_hash("m", "l", cache_salt="x"),
        root_hash("m", "l", images=[b"x"]), root_hash("m", "l", images=[b"x", b""]),
    ]  # fmt: skip
    assert len(set(roots)) == len(roots)


def test_token_bytes_are_little_endian():
    assert token_bytes([1, 258]) == b"\x01\0\0\0\x02\x01\0\0"
