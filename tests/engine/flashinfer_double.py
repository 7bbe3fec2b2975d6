"""Stand-ins for what the GPU path calls, that keep the real ones' contracts and can run anywhere.

`selective_state_update` and `gated_delta_rule_decode` are those of FlashInfer's `mamba` and `gdn_decode`.
`BatchDecodeWithPagedKVCacheWrapper` and `BatchPrefillWithPagedKVCacheWrapper` have the parameters of FlashInfer 0.6 and
0.7 that Baton uses, and refuse what those refuse. `Replays` does with torch operations what CUDA graphs do with
kernels: it runs the captured ones again, on the same memory, and calls no Python of the captured code.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@torch.library.custom_op("baton_test::paged_attention", mutates_args=())
def paged_attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    q_indptr: torch.Tensor,
    indptr: torch.Tensor,
    indices: torch.Tensor,
    last_page_len: torch.Tensor,
    window_left: int,
    sm_scale: float,
    logits_soft_cap: float,
) -> torch.Tensor:
    """One operation, as a kernel is: it reads lengths and pages when it runs. `cache`: [pages, 2, page_size, K, D]."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    page_size = cache.shape[2]
    for row in range(len(last_page_len)):
        pages = indices[indptr[row] : indptr[row + 1]].long()
        kv_len = (len(pages) - 1) * page_size + int(last_page_len[row])
        k, v = (cache[pages, part].flatten(0, 1)[:kv_len].double() for part in (0, 1))
        own = q[q_indptr[row] : q_indptr[row + 1]].double()
        groups = q.shape[1] // k.shape[1]
        scores = torch.einsum("qhd,shd->hqs", own, k.repeat_interleave(groups, 1)) * sm_scale
        if logits_soft_cap:
            scores = logits_soft_cap * (scores / logits_soft_cap).tanh()
        at, positions = torch.arange(kv_len - len(own), kv_len)[:, None], torch.arange(kv_len)
        hidden = positions > at
        if window_left >= 0:
            hidden |= positions < at - window_left
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[q_indptr[row] : q_indptr[row + 1]] = torch.einsum("hqs,shd->qhd", weights, v.repeat_interleave(groups, 1))
    return out


def _check_host(*tensors: torch.Tensor) -> None:
    assert all(t.device.type == "cpu" and t.dtype == torch.int32 and t.is_contiguous() for t in tensors)


class BatchPrefillWithPagedKVCacheWrapper:
    def __init__(self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, *, backend="auto") -> None:
        assert kv_layout == "NHD" and not use_cuda_graph and float_workspace_buffer.dtype == torch.uint8
        self.backend = backend

    def plan(
        self,
        qo_indptr,
        paged_kv_indptr,
        paged_kv_indices,
        paged_kv_last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim_qk,
        page_size,
        *,
        causal=False,
        window_left=-1,
        logits_soft_cap=None,
        sm_scale=None,
        q_data_type="float16",
        kv_data_type=None,
    ) -> None:
        _check_host(qo_indptr, paged_kv_indptr, paged_kv_last_page_len)
        assert causal and len(paged_kv_indices) == paged_kv_indptr[-1] and paged_kv_indices.dtype == torch.int32
        assert paged_kv_last_page_len.min() >= 1 and paged_kv_last_page_len.max() <= page_size
        assert q_data_type == kv_data_type or self.backend == "fa2"
        self.arrays = [t.clone() for t in (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)]
        self.expected = (num_qo_heads, num_kv_heads, head_dim_qk, page_size, q_data_type, kv_data_type)
        self.window_left = window_left
        scale = head_dim_qk**-0.5 if sm_scale is None else sm_scale
        self.scoring = (float(scale), float(logits_soft_cap or 0.0))

    def run(self, q, paged_kv_cache):
        _, parts, page_size, kv_heads, head_dim = paged_kv_cache.shape
        assert parts == 2 and len(q) == self.arrays[0][-1] and q.is_contiguous()
        assert self.expected == (q.shape[1], kv_heads, head_dim, page_size, q.dtype, paged_kv_cache.dtype)
        return paged_attention(q, paged_kv_cache, *self.arrays, self.window_left, *self.scoring)


class BatchDecodeWithPagedKVCacheWrapper(BatchPrefillWithPagedKVCacheWrapper):
    def __init__(
        self,
        float_workspace_buffer,
        kv_layout="NHD",
        use_cuda_graph=False,
        use_tensor_cores=False,
        paged_kv_indptr_buffer=None,
        paged_kv_indices_buffer=None,
        paged_kv_last_page_len_buffer=None,
        backend="auto",
    ) -> None:
        super().__init__(float_workspace_buffer, kv_layout, backend=backend)
        assert use_tensor_cores
        self.buffers = None
        if use_cuda_graph:
            self.buffers = [paged_kv_indptr_buffer, paged_kv_indices_buffer, paged_kv_last_page_len_buffer]
            assert len(paged_kv_indptr_buffer) == len(paged_kv_last_page_len_buffer) + 1

    def plan(self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, **options) -> None:
        rows = len(last_page_len)
        starts = torch.arange(rows + 1, dtype=torch.int32)
        sizes = (num_qo_heads, num_kv_heads, head_dim, page_size)
        super().plan(starts, indptr, indices, last_page_len, *sizes, causal=True, **options)
        if self.buffers is not None:
            assert rows == len(self.buffers[2]), "the batch size is fixed"
            assert len(indices) <= len(self.buffers[1]), "more page indices than room"
            for buffer, values in zip(self.buffers, self.arrays[1:], strict=True):
                buffer[: len(values)].copy_(values)
            self.arrays[1:] = self.buffers


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class Replays:
    """A `Recorder`. `captured` and `replayed` count."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def capture(self, work):
        work()
        with _Recording() as recording:
            work()
        self.captured += 1
        calls = recording.calls

        def replay() -> None:
            self.replayed += 1
            for func, args, kwargs, before in calls:
                now = func(*args, **kwargs)
                for old, new in zip(tree_leaves(before), tree_leaves(now), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

        return replay


class Passed:
    """An event that the test lets pass, or that has passed."""

    def __init__(self, log=None, name="") -> None:
        self._log, self._name = log, name

    def synchronize(self) -> None:
        if self._log is not None:
            self._log.append(self._name)


def selective_state_update(state, x, dt, A, B, C, D, *, dt_bias, dt_softplus) -> torch.Tensor:
    """One token of each row; changes `state` [R, H, P, N]."""
    assert state.dtype == torch.float32 and state.is_contiguous() and x.dtype == B.dtype == C.dtype == torch.bfloat16
    assert dt.dtype == D.dtype == dt_bias.dtype == A.dtype == torch.float32 and dt_softplus
    assert dt.shape == x.shape and A.shape == state.shape[1:] and D.shape == dt_bias.shape == x.shape[1:]
    assert dt.stride(2) == A.stride(1) == A.stride(2) == D.stride(1) == dt_bias.stride(1) == 0  # a number of each head
    step = torch.nn.functional.softplus(dt + dt_bias)[..., None]
    b, c = (each.float().repeat_interleave(x.shape[1] // B.shape[1], 1)[:, :, None] for each in (B, C))
    state.copy_(state * (step * A).exp() + step * b * x.float()[..., None])
    return ((state * c).sum(-1) + D * x.float()).to(x.dtype)


def gated_delta_rule_decode(q, k, v, state, A_log, a, dt_bias, b) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of each row; changes `state` [R, H, K, V]."""
    assert q.dtype == k.dtype == v.dtype == a.dtype == b.dtype == torch.bfloat16
    assert state.dtype == A_log.dtype == dt_bias.dtype == torch.float32 and state.is_contiguous()
    rows, one, _, key = q.shape
    assert one == 1 and key >= 128 and v.shape[3] >= 128 and v.shape[3] % 32 == 0
    assert state.shape == (rows, v.shape[2], key, v.shape[3]) and a.shape == b.shape == (rows, 1, v.shape[2])
    q, k = (each[:, 0].float().repeat_interleave(v.shape[2] // q.shape[2], 1) for each in (q, k))
    q, k = (each * torch.rsqrt(each.square().sum(-1, keepdim=True) + 1e-6) for each in (q, k))
    left = (-A_log.exp() * torch.nn.functional.softplus(a[:, 0].float() + dt_bias)).exp()[..., None, None]
    found = (state * left * k[..., None]).sum(2)
    write = (v[:, 0].float() - found) * b[:, 0].float().sigmoid()[..., None]
    state.copy_(state * left + k[..., None] * write[:, :, None])
    return ((state * q[..., None]).sum(2) * key**-0.5).to(v.dtype)[:, None], state
