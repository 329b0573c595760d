"""The attention rule, stated once, and four attention backends that implement it.

    visible(query, key) = same document and (same media span, or key not after query and key not private)

| backend  | memory             | cached keys | backward     | soft cap | ALiBi             | where                           |
|----------|--------------------|-------------|--------------|----------|-------------------|---------------------------------|
| dense    | scores of rows     | yes         | yes          | yes      | bias of rows      | everywhere; the reference       |
| sdpa     | mask of rows       | yes         | yes          | no       | in the mask       | everywhere; default with a cache |
| document | masks of documents | no          | yes          | by dense | bias of documents | everywhere; default without CUDA |
| flex     | block mask         | no          | on CUDA only | yes      | yes               | CUDA by default, CPU if asked   |

All take grouped queries and ALiBi, all but sdpa a soft cap (`ScoreMod`). With a soft cap and a cache, `auto` is dense.
`choose_backend` refuses a backend that lacks an option.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

AttentionBackend: TypeAlias = Literal["auto", "dense", "sdpa", "document", "flex"]
AttentionFn: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries [row head query dim], keys [row kv_head key dim], values) -> [row head query dim]"""


@dataclass(frozen=True, eq=False)
class AttentionMetadata:
    """What attention knows of each token: document, media span (-1: text), privacy, index in the row; for ALiBi coordinates."""

    documents: Int[Tensor, "row length"]
    spans: Int[Tensor, "row length"]
    private: Bool[Tensor, "row length"]
    index: Int[Tensor, "row length"]
    coordinates: Float[Tensor, "row length axes"] | None = None

    @classmethod
    def of_rows(
        cls, documents: Tensor, spans: Tensor, private: Tensor, coordinates: Tensor | None = None
    ) -> "AttentionMetadata":
        """Of whole rows."""
        index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
        return cls(documents, spans, private, index, coordinates)

    @property
    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `rule` needs."""
        return self.documents, self.spans, self.private, self.index


def rule(query: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> Tensor:
    """The rule on (document, span, private, index) of a query and of a key, which broadcast."""
    document, span, _, index = query
    key_document, key_span, key_private, key_index = key
    same_span = (span == key_span) & (span >= 0)
    return (document == key_document) & (same_span | ((key_index <= index) & ~key_private))


def visible(query: AttentionMetadata, key: AttentionMetadata) -> Bool[Tensor, "row query key"]:
    """The rule for every pair."""
    return rule(tuple(f[:, :, None] for f in query.fields), tuple(f[:, None, :] for f in key.fields))


@dataclass(frozen=True)
class ScoreMod:
    """Soft cap (Gemma 2, arXiv 2408.00118; 0: none) and ALiBi (arXiv 2108.12409) on `alibi_heads` of `num_heads` heads:

    score' = cap * tanh(score / cap) - slope[head] * mean over the axes of |query's coordinate - key's coordinate|
    """

    soft_cap: float = 0.0
    alibi_heads: int = 0
    num_heads: int = 0

    @property
    def is_identity(self) -> bool:
        """Whether scores stay unchanged."""
        return not self.soft_cap and not self.alibi_heads

    def capped(self, scores: Tensor) -> Tensor:
        """soft_cap * tanh(scores / soft_cap)"""
        return self.soft_cap * (scores / self.soft_cap).tanh() if self.soft_cap else scores

    def slopes(self, device: torch.device) -> Float[Tensor, " head"]:
        """2^(-8 i / alibi_heads) for the first `alibi_heads` heads, i from 1; 0 for the others."""
        steps = torch.arange(1, self.num_heads + 1, dtype=torch.float32, device=device)
        return torch.where(steps <= self.alibi_heads, 2.0 ** (-8.0 * steps / max(self.alibi_heads, 1)), 0.0)

    def bias(
        self, query: Float[Tensor, "row query axes"], key: Float[Tensor, "row key axes"]
    ) -> Float[Tensor, "row head query key"]:
        """ALiBi's bias on the scores, from coordinates."""
        axes = zip(query.unbind(-1), key.unbind(-1), strict=True)
        distance = sum((q[:, :, None] - k[:, None, :]).abs() for q, k in axes)
        assert isinstance(distance, Tensor)
        return -self.slopes(distance.device)[:, None, None] * (distance / query.shape[-1])[:, None]


IDENTITY = ScoreMod()
"""Unchanged scores."""


def dense(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor | None = None, score_mod: ScoreMod = IDENTITY
) -> Float[Tensor, "row head query dim"]:
    """The reference: softmax over visible keys, written out. `bias` is from `score_mod.bias`."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = score_mod.capped(q.to(v.dtype) @ k.to(v.dtype).transpose(-1, -2) / math.sqrt(q.shape[-1]))
    if bias is not None:
        scores = scores + bias
    return scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool = False) -> Float[Tensor, "row head query dim"]:
    """`dense` by PyTorch's fused attention. Mask None: all keys are visible, or if `causal` those not after the query. A float
    mask is added to the scores."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    # On CPU the bf16 backward takes 3 times as long as fp32's (12.3 against 4.4 ms at 16 rows x 128 tokens x 4 heads of 32).
    dtype = torch.float32 if v.device.type == "cpu" and q.requires_grad and v.dtype == torch.bfloat16 else v.dtype
    with nullcontext() if v.device.type == "meta" else torch.autocast(v.device.type, enabled=False):  # meta has no autocast
        mask = mask.to(dtype) if mask is not None and mask.dtype != torch.bool else mask
        out = F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype), attn_mask=mask, is_causal=causal)
    return out.to(v.dtype)


def _coordinates(metadata: AttentionMetadata) -> Tensor:
    if metadata.coordinates is None:
        raise ValueError("ALiBi needs the coordinates of queries and keys: set AttentionMetadata.coordinates")
    return metadata.coordinates


@dataclass(frozen=True, eq=False)
class Bucket:
    """Documents of similar length: the flat (row, length) indices of their tokens, and their attention mask (None: causal).

    After a document's end `index` repeats its last token, which `mask` hides as a key.
    """

    index: Int[Tensor, "document length"]
    mask: Bool[Tensor, "document length length"] | None


LONG_DOCUMENT = 128
"""Mean length above which each document gets its own attention call: copies would cost more than calls."""


def buckets(metadata: AttentionMetadata, waste: float = 1.2) -> tuple[list[Bucket], Int[Tensor, " token"]]:
    """Documents of packed rows grouped by length, and the index of every token in the flattened buckets. Long documents get a
    bucket each, in order.

    Args:
        waste: limit on the ratio of a bucket's longest to its shortest document; a difference of 16 tokens is always allowed.
    """
    documents = metadata.documents
    row = torch.arange(len(documents), device=documents.device)[:, None]
    flat = torch.where(documents >= 0, documents + row * (documents.amax() + 1), -1).flatten()
    real = (flat >= 0).nonzero().squeeze(1)
    _, counts = torch.unique_consecutive(flat[real], return_counts=True)
    starts = counts.cumsum(0) - counts
    equal = len(counts) > 0 and bool((counts == counts[0]).all())
    alone = not equal and len(real) >= LONG_DOCUMENT * len(counts)
    order = list(range(len(counts))) if alone else sorted(range(len(counts)), key=counts.tolist().__getitem__)
    lengths, result = [int(counts[i]) for i in order], []
    inverse = torch.zeros_like(flat)
    first = start = 0
    while first < len(order):
        last = first
        while not alone and last + 1 < len(order) and lengths[last + 1] <= max(lengths[first] * waste, lengths[first] + 16):
            last += 1
        members, longest = torch.tensor(order[first : last + 1], device=flat.device), lengths[last]
        offset = torch.arange(longest, device=flat.device)
        inside = offset < counts[members, None]
        index = real[starts[members, None] + torch.minimum(offset, counts[members, None] - 1)]
        bucket_index = start + torch.arange(index.numel(), device=flat.device).view_as(index)
        inverse[index[inside]] = bucket_index[inside]
        members_metadata = AttentionMetadata(*(f.flatten()[index] for f in metadata.fields))
        mask = visible(members_metadata, members_metadata) & inside[:, None, :]
        causal = inside.all() and not (members_metadata.spans >= 0).any() and not members_metadata.private.any()
        result.append(Bucket(index, None if causal else mask))
        start, first = start + index.numel(), last + 1
    return result, inverse


def document(metadata: AttentionMetadata, score_mod: ScoreMod = IDENTITY) -> AttentionFn:
    """`dense` by fused attention within each document: no work on other documents' tokens."""
    groups, inverse = buckets(metadata)
    if not groups:
        return lambda q, k, v: torch.zeros_like(q, dtype=v.dtype)
    functions = [_bucket_attention(metadata, bucket, score_mod) for bucket in groups]
    order = torch.cat([bucket.index.flatten() for bucket in groups])
    sizes, shapes = [bucket.index.numel() for bucket in groups], [bucket.index.shape for bucket in groups]
    in_order = torch.equal(order, torch.arange(metadata.documents.numel(), device=order.device))  # no tokens to move

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, heads, length, dim = q.shape
        flat = [t.transpose(1, 2).reshape(rows * length, t.shape[1], dim) for t in (q, k, v)]
        pieces = [(t if in_order else t.index_select(0, order)).split(sizes) for t in flat]
        outs = []
        for function, shape, *piece in zip(functions, shapes, *pieces, strict=True):
            q, k, v = (t.unflatten(0, shape).transpose(1, 2) for t in piece)
            outs.append(function(q, k, v).transpose(1, 2).flatten(0, 1))
        out = torch.cat(outs) if len(outs) > 1 else outs[0]
        out = out if in_order else out.index_select(0, inverse)
        return out.reshape(rows, length, heads, dim).transpose(1, 2)

    return attention


def _bucket_attention(metadata: AttentionMetadata, bucket: Bucket, score_mod: ScoreMod) -> AttentionFn:
    """Attention among the documents of a bucket."""
    mask, length = None if bucket.mask is None else bucket.mask[:, None], bucket.index.shape[1]
    if score_mod.is_identity:
        return lambda q, k, v: sdpa(q, k, v, mask, causal=mask is None)
    bias = None
    if score_mod.alibi_heads:
        coordinates = _coordinates(metadata).flatten(0, 1)[bucket.index]
        bias = score_mod.bias(coordinates, coordinates)
    causal = torch.ones(length, length, dtype=torch.bool, device=bucket.index.device).tril()
    return _masked(causal if mask is None else mask, bias, score_mod, reference=bool(score_mod.soft_cap))


def _masked(mask: Tensor, bias: Tensor | None, score_mod: ScoreMod, *, reference: bool) -> AttentionFn:
    """`dense` if `reference`, else `sdpa`."""
    if reference:
        return lambda q, k, v: dense(q, k, v, mask, bias, score_mod)
    masked = mask if bias is None else bias.masked_fill(~mask, float("-inf"))
    return lambda q, k, v: sdpa(q, k, v, masked)


BLOCK = 128
"""Side of flex attention's blocks of pairs."""
STRIP = 1 << 22
"""Pairs of tokens whose visibility is computed at once for flex attention's block mask, 1 byte each and some temporaries."""


def flex(metadata: AttentionMetadata, score_mod: ScoreMod = IDENTITY) -> AttentionFn:
    """`dense` by flex attention over whole rows, padded to whole blocks, with a block mask from the rule."""
    length = metadata.documents.shape[1]
    padding = -length % BLOCK
    if padding:
        metadata = _padded(metadata, padding)
    blocks = _block_mask(metadata)
    flex_attention = _compiled_flex(metadata.documents.device.type)
    modify = None if score_mod.is_identity else _flex_score_mod(metadata, score_mod)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        q, k, v = (F.pad(t.to(v.dtype), (0, 0, 0, padding)) if padding else t.to(v.dtype) for t in (q, k, v))
        out = flex_attention(q, k, v, score_mod=modify, block_mask=blocks, enable_gqa=grouped)
        assert isinstance(out, Tensor)
        return out[:, :, :length]

    return attention


def _padded(metadata: AttentionMetadata, count: int) -> AttentionMetadata:
    """Rows with `count` more tokens at their end, each in a document of its own: hardly a block is computed for them."""
    documents = F.pad(metadata.documents, (0, count))
    documents[:, -count:] = torch.arange(-1 - count, -1, device=documents.device)
    spans, private = F.pad(metadata.spans, (0, count), value=-1), F.pad(metadata.private, (0, count))
    coordinates = None if metadata.coordinates is None else F.pad(metadata.coordinates, (0, 0, 0, count))
    return AttentionMetadata.of_rows(documents, spans, private, coordinates)


def _block_mask(metadata: AttentionMetadata) -> Any:
    """Flex attention's `BlockMask` of the rule, for rows of whole blocks: which blocks hold a visible pair, which only such.

    `create_block_mask` would hold every pair of a row at once, 12 to 19 bytes each; here strips of queries follow each other.
    """
    # Imported late: its compiler takes 2 seconds, which most programs never need.
    from torch.nn.attention.flex_attention import BlockMask

    fields, (rows, length) = metadata.fields, metadata.documents.shape
    keys, size = tuple(f[:, None] for f in fields), max(STRIP // max(rows * length * BLOCK, 1), 1) * BLOCK
    some, every = [], []
    for first in range(0, length, size):
        pairs = rule(tuple(f[:, first : first + size, None] for f in fields), keys)
        tiles = pairs.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK))  # [row, query block, query, key block, key]
        some.append(tiles.any(4).any(2))
        every.append(tiles.all(4).all(2))
    visible_blocks, full = torch.cat(some, 1)[:, None], torch.cat(every, 1)[:, None]
    return BlockMask.from_kv_blocks(
        *_ordered(visible_blocks & ~full),
        *_ordered(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda row, head, query, key: rule(tuple(f[row, query] for f in fields), tuple(f[row, key] for f in fields)),
        seq_lengths=(length, length),
    )


def _ordered(blocks: Bool[Tensor, "row 1 query_block key_block"]) -> tuple[Tensor, Tensor]:
    """The number of marked key blocks of each query block, and all key blocks with the marked ones first."""
    numbers = blocks.int()
    return numbers.sum(-1, dtype=torch.int32), numbers.argsort(dim=-1, descending=True, stable=True).int()


def _flex_score_mod(metadata: AttentionMetadata, score_mod: ScoreMod) -> Callable[..., Tensor]:
    """`score_mod` on one score, in flex attention's form. The cap is a tensor: as a number that changes it would be compiled to
    a symbol, which flex attention refuses."""
    cap = torch.tensor(score_mod.soft_cap, device=metadata.documents.device)
    if not score_mod.alibi_heads:
        return lambda score, row, head, query, key: cap * (score / cap).tanh()
    positions = _coordinates(metadata)
    axes = [axis.contiguous() for axis in positions.unbind(-1)]
    slopes = score_mod.slopes(positions.device) / positions.shape[-1]
    capped = bool(score_mod.soft_cap)

    def modify(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        score = cap * (score / cap).tanh() if capped else score
        return score - slopes[head] * sum((axis[row, query] - axis[row, key]).abs() for axis in axes)

    return modify


@lru_cache(maxsize=2)
def _compiled_flex(device: str) -> Callable[..., object]:
    """Compiled anew for a second length: on CUDA for all lengths at once; for CPUs torch 2.15 then writes C++ that does not
    compile, so each length (in whole blocks) is compiled for itself."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False if device == "cpu" else None)


def choose_backend(
    backend: AttentionBackend, *, device: torch.device, backward: bool, cached: bool, capped: bool = False
) -> Literal["dense", "sdpa", "document", "flex"]:
    """The backend that runs.

    Raises:
        ValueError: `backend` lacks an option; the message names one that has it.
    """
    if backend == "auto":
        return ("dense" if capped else "sdpa") if cached else "flex" if device.type == "cuda" else "document"
    if backend not in ("dense", "sdpa", "document", "flex"):
        raise ValueError(f"no attention backend {backend!r}: there are auto, dense, sdpa, document and flex")
    if backend == "sdpa" and capped:
        raise ValueError("sdpa attention here has no soft cap; use dense, document or flex (or auto)")
    if backend in ("document", "flex") and cached:
        raise ValueError(f"{backend} attention here has no cached keys; use sdpa (or auto)")
    if backend == "flex" and backward and device.type != "cuda":
        raise ValueError(f"flex attention has no backward on {device.type}; train there with document or sdpa (or auto)")
    return backend


def make_attention(
    backend: AttentionBackend,
    query: AttentionMetadata,
    key: AttentionMetadata | None = None,
    *,
    backward: bool = False,
    score_mod: ScoreMod = IDENTITY,
) -> AttentionFn:
    """The attention function of these tokens for all layers: the mask is made once.

    Args:
        key: metadata of the keys (None: keys are the queries' tokens; with a cache they are not).
        backward: whether a gradient is needed.
    """
    device, capped = query.documents.device, bool(score_mod.soft_cap)
    chosen = choose_backend(backend, device=device, backward=backward, cached=key is not None, capped=capped)
    if chosen == "flex":
        return flex(query, score_mod)
    if chosen == "document":
        return document(query, score_mod)
    key = query if key is None else key
    mask = visible(query, key)[:, None]
    bias = score_mod.bias(_coordinates(query), _coordinates(key)) if score_mod.alibi_heads else None
    everywhere = mask.device.type == "cpu" and mask.all()  # a GPU would have to be waited for
    if chosen == "sdpa" and bias is None and everywhere:
        return lambda q, k, v: sdpa(q, k, v, None)
    return _masked(mask, bias, score_mod, reference=chosen == "dense")
