"""The shape of a KV cache, and its fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Pages 0 and 1 of every pool hold no request's KV: 0 carries a canary that peers read before they use a pair
# and takes writes of padding rows nowhere else, 1 is where a reader puts the canary it read.
CANARY_PAGE = 0
SCRATCH_PAGE = 1
RESERVED_PAGES = 2


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Layout of a pool: `[layers][pages, 2 (K, V), page_size, kv_heads, head_dim]` of `dtype`.

    `kv_heads` are those of one tensor-parallel rank. Pools of equal fingerprint can exchange pages as they are.
    """

    model_revision: str
    dtype: str
    layers: int
    page_size: int
    kv_heads: int
    head_dim: int
    tensor_parallel: int = 1

    @property
    def page_bytes(self) -> int:
        """Bytes of one page of one layer, K and V together; they are contiguous."""
        return 2 * self.page_size * self.kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    def pool_bytes(self, pages: int) -> int:
        return self.layers * pages * self.page_bytes

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    @property
    def fingerprint(self) -> str:
        text = ";".join(f"{key}={value}" for key, value in sorted(asdict(self).items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
