"""The attention rule, stated once, and four forms of attention that obey it.

    visible(query, key) = same document and (same media span, or key not after query and key not private)

| form     | memory             | cached keys | backward     | soft cap | ALiBi             | where                           |
|----------|--------------------|-------------|--------------|----------|-------------------|---------------------------------|
| dense    | scores of rows     | yes         | yes          | yes      | bias of rows      | everywhere; the reference       |
| sdpa     | mask of rows       | yes         | yes          | no       | in the mask       | everywhere; default with a cache |
| document | masks of documents | no          | yes          | as dense | bias of documents | everywhere; default without CUDA |
| flex     | block mask         | no          | on CUDA only | yes      | yes               | CUDA by default, CPU if asked   |

All take grouped queries. What is done to scores is stated once, too, in `nn/score_mod.py`. With a soft cap, `auto` from a cache
is dense. `choose` refuses a form that lacks an option that is asked for; nothing is ignored silently.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transfusion.nn.score_mod import PLAIN, ScoreMod

AttentionBackend: TypeAlias = Literal["auto", "dense", "sdpa", "document", "flex"]
AttentionFn: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries [row head query dim], keys [row kv_head key dim], values) -> [row head query dim]"""


@dataclass(frozen=True, eq=False)
class AttentionMetadata:
    """Where tokens stand, all that the rule needs: document, media span (-1: text), privacy, and order within the row; and
    their coordinates, where scores depend on them."""

    documents: Int[Tensor, "row length"]
    spans: Int[Tensor, "row length"]
    private: Bool[Tensor, "row length"]
    index: Int[Tensor, "row length"]
    coordinates: Float[Tensor, "row length axes"] | None = None

    @classmethod
    def of_rows(
        cls, documents: Tensor, spans: Tensor, private: Tensor, coordinates: Tensor | None = None
    ) -> "AttentionMetadata":
        """Whole rows, in order."""
        index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
        return cls(documents, spans, private, index, coordinates)


def rule(query: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> Tensor:
    """The rule on (document, span, private, index) of a query and of a key, broadcast against each other."""
    document, span, _, index = query
    key_document, key_span, key_private, key_index = key
    same_span = (span == key_span) & (span >= 0)
    return (document == key_document) & (same_span | ((key_index <= index) & ~key_private))


def visible(query: AttentionMetadata, key: AttentionMetadata) -> Bool[Tensor, "row query key"]:
    """The rule for every pair."""

    def fields(metadata: AttentionMetadata, axis: int) -> tuple[Tensor, ...]:
        return tuple(t.unsqueeze(axis) for t in (metadata.documents, metadata.spans, metadata.private, metadata.index))

    return rule(fields(query, 2), fields(key, 1))


def dense(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor | None = None, score_mod: ScoreMod = PLAIN
) -> Float[Tensor, "row head query dim"]:
    """Softmax over visible keys, written out: the reference. `bias` is what `score_mod.bias` gave."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    found = score_mod.capped(q.to(v.dtype) @ k.to(v.dtype).transpose(-1, -2) / math.sqrt(q.shape[-1]))
    if bias is not None:
        found = found + bias
    return found.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool = False) -> Float[Tensor, "row head query dim"]:
    """The same by PyTorch's fused attention; mask None: every key is visible, or if `causal` those not after the query. A mask
    of numbers is added to the scores."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    # On CPU the bf16 backward takes 3 times as long as fp32's (12.3 against 4.4 ms at 16 rows x 128 tokens x 4 heads of 32).
    dtype = torch.float32 if v.device.type == "cpu" and q.requires_grad and v.dtype == torch.bfloat16 else v.dtype
    with torch.autocast(v.device.type, enabled=False):
        mask = mask.to(dtype) if mask is not None and mask.dtype != torch.bool else mask
        out = F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype), attn_mask=mask, is_causal=causal)
    return out.to(v.dtype)


def _known(metadata: AttentionMetadata) -> Tensor:
    if metadata.coordinates is None:
        raise ValueError("ALiBi needs the coordinates of queries and keys: give their places coordinates")
    return metadata.coordinates


@dataclass(frozen=True, eq=False)
class Bucket:
    """Documents of nearly one length: where their tokens stand in the flattened (row, length), and what each may see.

    `index` is Int[document length]; behind a document's end it repeats the last token, which `mask` hides as a key.
    """

    index: Int[Tensor, "document length"]
    mask: Bool[Tensor, "document length length"] | None


LONG = 128
"""Tokens of a document, on average, from which on each is attended to by itself: copies would cost more than calls."""


def buckets(metadata: AttentionMetadata, waste: float = 1.2) -> tuple[list[Bucket], Int[Tensor, " token"]]:
    """The documents of packed rows by length, and for every token of the rows its place in the flattened buckets. Where they
    are long, a bucket for each, in order.

    Args:
        waste: the longest document of a bucket is at most this many times as long as its shortest, or 16 tokens longer.
    """
    flat = metadata.documents + torch.arange(len(metadata.documents), device=metadata.documents.device)[:, None] * (
        metadata.documents.amax() + 1
    )
    flat = torch.where(metadata.documents >= 0, flat, -1).flatten()
    real = (flat >= 0).nonzero().squeeze(1)
    _, counts = torch.unique_consecutive(flat[real], return_counts=True)
    starts = counts.cumsum(0) - counts
    fields = [f.flatten() for f in (metadata.documents, metadata.spans, metadata.private, metadata.index)]
    same = len(counts) > 0 and bool((counts == counts[0]).all())
    alone = not same and len(real) >= LONG * len(counts)
    order = list(range(len(counts))) if alone else sorted(range(len(counts)), key=counts.tolist().__getitem__)
    lengths, found = [int(counts[i]) for i in order], []
    back = torch.zeros_like(flat)
    first = taken = 0
    while first < len(order):
        last = first
        while not alone and last + 1 < len(order) and lengths[last + 1] <= max(lengths[first] * waste, lengths[first] + 16):
            last += 1
        members, longest = torch.tensor(order[first : last + 1], device=flat.device), lengths[last]
        offset = torch.arange(longest, device=flat.device)
        inside = offset < counts[members, None]
        index = real[starts[members, None] + torch.minimum(offset, counts[members, None] - 1)]
        here = taken + torch.arange(index.numel(), device=flat.device).view_as(index)
        back[index[inside]] = here[inside]
        seen = [f[index] for f in fields]
        mask = rule(tuple(f[:, :, None] for f in seen), tuple(f[:, None, :] for f in seen)) & inside[:, None, :]
        plain = bool(inside.all()) and not bool((seen[1] >= 0).any()) and not bool(seen[2].any())
        found.append(Bucket(index, None if plain else mask))
        taken, first = taken + index.numel(), last + 1
    return found, back


def document(metadata: AttentionMetadata, score_mod: ScoreMod = PLAIN) -> AttentionFn:
    """The same by fused attention within each document: nothing is spent on what stands in other documents."""
    found, back = buckets(metadata)
    within = [_within(metadata, bucket, score_mod) for bucket in found]
    if not found:
        return lambda q, k, v: torch.zeros_like(q, dtype=v.dtype)
    there = torch.cat([bucket.index.flatten() for bucket in found])
    sizes, inner = [bucket.index.numel() for bucket in found], [bucket.index.shape for bucket in found]
    whole = torch.equal(there, torch.arange(metadata.documents.numel(), device=there.device))  # nothing needs to be moved

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, heads, length, dim = q.shape
        flat = [t.transpose(1, 2).reshape(rows * length, t.shape[1], dim) for t in (q, k, v)]
        pieces = [(t if whole else t.index_select(0, there)).split(sizes) for t in flat]
        outs = []
        for inside, shape, *piece in zip(within, inner, *pieces, strict=True):
            q, k, v = (t.unflatten(0, shape).transpose(1, 2) for t in piece)
            out = inside(q, k, v)
            outs.append(out.transpose(1, 2).flatten(0, 1))
        out = torch.cat(outs) if len(outs) > 1 else outs[0]
        out = out if whole else out.index_select(0, back)
        return out.reshape(rows, length, heads, dim).transpose(1, 2)

    return attend


def _within(metadata: AttentionMetadata, bucket: Bucket, score_mod: ScoreMod) -> AttentionFn:
    """Attention among the documents of a bucket."""
    mask = None if bucket.mask is None else bucket.mask[:, None]
    if score_mod.plain:
        return lambda q, k, v: sdpa(q, k, v, mask, causal=mask is None)
    bias = None
    if score_mod.alibi:
        here = _known(metadata).flatten(0, 1)[bucket.index]
        bias = score_mod.bias(here, here)
    length = bucket.index.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=bucket.index.device).tril() if mask is None else mask
    if score_mod.soft_cap:
        return lambda q, k, v: dense(q, k, v, seen, bias, score_mod)
    assert bias is not None
    added = bias.masked_fill(~seen, float("-inf"))
    return lambda q, k, v: sdpa(q, k, v, added)


def flex(metadata: AttentionMetadata, score_mod: ScoreMod = PLAIN) -> AttentionFn:
    """The same by flex attention over whole rows, with a block mask made from the rule."""
    # Imported here: it brings a compiler along, 2 seconds that most programs never need.
    from torch.nn.attention.flex_attention import create_block_mask

    fields = (metadata.documents, metadata.spans, metadata.private, metadata.index)
    rows, length = metadata.documents.shape
    blocks = create_block_mask(
        lambda row, head, query, key: rule(tuple(f[row, query] for f in fields), tuple(f[row, key] for f in fields)),
        rows,
        None,
        length,
        length,
        device=metadata.documents.device,
    )
    run = _compiled_flex()
    change = None if score_mod.plain else _change(metadata, score_mod)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        out = run(q.to(v.dtype), k.to(v.dtype), v, score_mod=change, block_mask=blocks, enable_gqa=grouped)
        assert isinstance(out, Tensor)
        return out

    return attend


def _change(metadata: AttentionMetadata, score_mod: ScoreMod) -> Callable[..., Tensor]:
    """`score_mod` on one score, as flex attention wants it. The cap is a tensor: a second number would be compiled as a symbol,
    which flex attention cannot take."""
    cap = torch.tensor(score_mod.soft_cap, device=metadata.documents.device)
    if not score_mod.alibi:
        return lambda score, row, head, query, key: cap * (score / cap).tanh()
    where = _known(metadata)
    axes, slopes = [axis.contiguous() for axis in where.unbind(-1)], score_mod.slopes(where.device) / where.shape[-1]
    capped = bool(score_mod.soft_cap)

    def change(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        score = cap * (score / cap).tanh() if capped else score
        distance = (axes[0][row, query] - axes[0][row, key]).abs()
        for axis in axes[1:]:
            distance = distance + (axis[row, query] - axis[row, key]).abs()
        return score - slopes[head] * distance

    return change


def _compiled_flex() -> Callable[..., object]:
    global _FLEX
    if _FLEX is None:
        from torch.nn.attention.flex_attention import flex_attention

        _FLEX = torch.compile(flex_attention)
    return _FLEX


_FLEX: Callable[..., object] | None = None


def choose(
    backend: AttentionBackend, *, device: torch.device, backward: bool, cached: bool, capped: bool = False
) -> Literal["dense", "sdpa", "document", "flex"]:
    """The form that will run.

    Raises:
        ValueError: the form that is asked for lacks an option; the message names one that has it.
    """
    if backend == "auto":
        return ("dense" if capped else "sdpa") if cached else "flex" if device.type == "cuda" else "document"
    if backend not in ("dense", "sdpa", "document", "flex"):
        raise ValueError(f"no attention form {backend!r}: there are auto, dense, sdpa, document and flex")
    if backend == "sdpa" and capped:
        raise ValueError("sdpa attention here has no soft cap; use dense, document or flex (or auto)")
    if backend in ("document", "flex") and cached:
        raise ValueError(f"{backend} attention here has no cached keys; use sdpa (or auto)")
    if backend == "flex" and backward and device.type != "cuda":
        raise ValueError(f"flex attention has no backward on {device.type}; train there with document or sdpa (or auto)")
    return backend


def attention(
    backend: AttentionBackend,
    query: AttentionMetadata,
    key: AttentionMetadata | None = None,
    *,
    backward: bool = False,
    score_mod: ScoreMod = PLAIN,
) -> AttentionFn:
    """Attention for these places, ready for every layer: the mask is made once.

    Args:
        key: where the keys stand, if they are not the queries themselves (a cache).
        scores: what is done to scores; where it has a bias by distance, the places must have coordinates.
    """
    device, capped = query.documents.device, bool(score_mod.soft_cap)
    chosen = choose(backend, device=device, backward=backward, cached=key is not None, capped=capped)
    if chosen == "flex":
        return flex(query, score_mod)
    if chosen == "document":
        return document(query, score_mod)
    key = query if key is None else key
    mask = visible(query, key)[:, None]
    if chosen == "dense":
        bias = score_mod.bias(_known(query), _known(key)) if score_mod.alibi else None
        return lambda q, k, v: dense(q, k, v, mask, bias, score_mod)
    if score_mod.alibi:
        added = score_mod.bias(_known(query), _known(key)).masked_fill(~mask, float("-inf"))
        return lambda q, k, v: sdpa(q, k, v, added)
    if mask.device.type == "cpu" and mask.all():  # on other devices it would have to wait for the answer
        return lambda q, k, v: sdpa(q, k, v, None)
    return lambda q, k, v: sdpa(q, k, v, mask)
