"""Names of blocks: the one definition of the chained block hash.

    root      = H("baton-block-v1", model revision, layout fingerprint, LoRA id, cache salt, image hashes)
    hash(b_i) = H(hash(b_{i-1}), token ids of block i as little-endian uint32)

H is SHA-256 truncated to 128 bits: tenants share the index, so names must be collision resistant, not only fast.
Only full blocks have a name. Where a block has several pages, the first one has its name, others one of their own.
`tests/core/block_hash_vectors.json` holds vectors for other implementations.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from hashlib import sha256

HASH_BYTES = 16


def root_hash(
    model_revision: str, layout_fingerprint: str, *, lora: str = "", cache_salt: str = "", images: Iterable[bytes] = ()
) -> bytes:
    """Parent of a request's first block. Two requests share blocks only when their roots are equal."""
    digest = sha256(b"baton-block-v1")
    for part in (model_revision.encode(), layout_fingerprint.encode(), lora.encode(), cache_salt.encode(), *images):
        digest.update(len(part).to_bytes(4, "little"))
        digest.update(part)
    return digest.digest()[:HASH_BYTES]


def page_name(block_hash: bytes, page: int) -> bytes:
    """The name of one of the pages of a block."""
    return (
        sha256(b"baton-page-v1" + block_hash + page.to_bytes(4, "little")).digest()[:HASH_BYTES] if page else block_hash
    )


def token_bytes(token_ids: Sequence[int]) -> bytes:
    """Token ids as little-endian uint32."""
    words = array("I", token_ids)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def block_hashes(parent: bytes, token_ids: Sequence[int], block_tokens: int) -> list[bytes]:
    """Hashes of the full blocks of `token_ids`, which follow the block named `parent`."""
    data = memoryview(token_bytes(token_ids[: len(token_ids) // block_tokens * block_tokens]))
    step = 4 * block_tokens
    hashes = []
    for start in range(0, len(data), step):
        parent = sha256(parent + data[start : start + step]).digest()[:HASH_BYTES]
        hashes.append(parent)
    return hashes
