"""The shape of a KV cache: whose it is (the model), how its pages are laid out, and its fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # what models compute in
FLOAT8 = "float8_e4m3"
RAW = "uint8"  # bytes that are no numbers: they are never rounded
ELEMENT_BYTES = {**DTYPE_BYTES, FLOAT8: 1, RAW: 1}  # what a cache can hold
KV_DTYPES = ("auto", FLOAT8)  # what a user may choose for the cache alone; auto: what the model computes in
PLANES = {"heads": 2, "latent": 1}  # what a token has in a page, by kind: K and V of each head, or one latent (MLA)

# Pages 0 and 1 of every pool hold no request's KV: 0 carries a canary that peers read before they use a pair
# and takes writes of padding rows nowhere else, 1 is where a reader puts the canary it read.
CANARY_PAGE = 0
SCRATCH_PAGE = 1
RESERVED_PAGES = 2


FULL, WINDOW, CHUNK, STATE = "full", "window", "chunk", "state"  # kinds of cache groups


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers of a model whose K and V share pages: those of the model's layer `layers[i]` are layer i of each page.

    What their tokens attend to, of the positions up to their own, by `kind`: all (full), the latest `size`, the own
    among them (window), or those of the own chunk of `size` positions (chunk), which are whole pages. Groups of states
    (state) have no K and V: what a layer keeps of constant size is in `size` pages, as it sees fit. A layer that
    attends and keeps a state is in two groups.
    """

    kind: str
    size: int
    layers: tuple[int, ...]

    def first_block(self, position: int, page_size: int) -> int:
        """The first block that the token at `position` attends to. Nor do later ones attend to any before it."""
        if self.kind == WINDOW:
            return max(0, position - self.size + 1) // page_size
        return position // self.size * self.size // page_size if self.kind == CHUNK else 0


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Layout of a pool: `[layers][pages, planes, page_size, kv_heads, head_dim]` of `dtype`.

    `groups`: empty where a page holds all layers of the model. Else each of the pages belongs to one group of layers,
    and has as many layers as the largest of them; what others leave of it is not used. Group 0 is the full one, if any;
    those that keep states come last. Where no layer attends, `kv_heads` and `head_dim` are those of no head: they make
    pages as large as states need them.

    `kind` heads: two planes, K and V. `kv_heads` are those of this tensor-parallel rank, of `total_kv_heads` in all
    (0: `kv_heads * tensor_parallel`); ranks beyond the number of heads hold copies of a head. `kind` latent: one plane
    of one "head" that all queries share, `head_dim` wide, whole on every rank.
    An element stands for `scale` times the number that it holds, which float8_e4m3 needs for its little range.

    Pools of equal `model` hold the same cache; if their pages are laid out differently, they are resharded on the way
    (baton.kv.reshard). Blocks are named by `fingerprint`, which all ranks of a worker share.
    """

    model_revision: str
    dtype: str
    layers: int
    page_size: int
    kv_heads: int
    head_dim: int
    tensor_parallel: int = 1
    rank: int = 0
    total_kv_heads: int = 0
    kind: str = "heads"
    scale: float = 1.0
    groups: tuple[CacheGroup, ...] = ()

    def __post_init__(self) -> None:
        if not self.total_kv_heads:
            ranks = 1 if self.kind == "latent" else self.tensor_parallel
            object.__setattr__(self, "total_kv_heads", self.kv_heads * ranks)

    @property
    def planes(self) -> int:
        return PLANES[self.kind]

    @property
    def has_full(self) -> bool:
        """Whether some layer sees everything, so that each block has a page that stays."""
        return not self.groups or self.groups[0].kind == FULL

    @property
    def heads(self) -> range:
        """Which of all KV heads this rank holds."""
        first = self.rank * self.total_kv_heads // self.tensor_parallel
        return range(first, first + self.kv_heads)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page of one layer, all planes together; they are contiguous."""
        return self.planes * self.page_size * self.kv_heads * self.head_dim * ELEMENT_BYTES[self.dtype]

    def pool_bytes(self, pages: int) -> int:
        return self.layers * pages * self.page_bytes

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def pages_for(self, tokens: int) -> int:
        """Pages of a prompt of so many tokens that what comes after it needs: what is handed over."""
        return sum(map(len, self.tails(tokens)))

    def tails(self, tokens: int) -> list[range]:
        """Of each group, the blocks of so many tokens that the next ones attend to, or a state's pages. A handoff
        numbers their pages group after group, in order of blocks."""
        end = self.blocks_for(tokens)
        if not self.groups:
            return [range(end)]
        return [
            range(group.size) if group.kind == STATE else range(group.first_block(tokens, self.page_size), end)
            for group in self.groups
        ]

    def first_needed(self, blocks: int) -> int:
        """The first block that must be here with all its pages, for so many leading blocks to be of use: what the next
        token attends to in layers with windows, and the last one in any case. That alone where layers keep states,
        which few blocks have: it has its pages of windows, and those before it are believed to have theirs. Pages of
        chunks do not count: what comes after a chunk needs none of it."""
        if any(group.kind == STATE for group in self.groups):
            return max(0, blocks - 1)
        windows = [group for group in self.groups if group.kind == WINDOW]
        firsts = [group.first_block(blocks * self.page_size, self.page_size) for group in windows]
        return max(0, min([blocks - 1, *firsts]))

    @property
    def model(self) -> str:
        """Whose cache it is, whatever its layout: equal for all pools whose contents can become each other's."""
        grouped = "".join(f"/{group.kind}{group.size}:{','.join(map(str, group.layers))}" for group in self.groups)
        return f"{self.model_revision}/{self.layers}x{self.total_kv_heads}x{self.head_dim}/{self.kind}{grouped}"

    def has_pages_of(self, other: KvLayout) -> bool:
        """Whether the pages of both hold the same in the same bytes."""
        own, others = ((each.model, each.dtype, each.scale, each.page_size, each.heads) for each in (self, other))
        return own == others

    @property
    def fingerprint(self) -> str:
        fields = asdict(self)
        del fields["rank"]
        if not self.groups:
            del fields["groups"]
        text = ";".join(f"{key}={value}" for key, value in sorted(fields.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
