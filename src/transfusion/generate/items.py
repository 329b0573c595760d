"""An item begins behind its document and behind what guidance leaves of it: from its own noise, or with its first code."""

from dataclasses import replace

import torch
from torch import Tensor

from transfusion import rng
from transfusion.data.document import Media, Text, unconditional
from transfusion.data.tokenize import Coordinates, tokenize_document
from transfusion.data.vocabulary import Vocabulary
from transfusion.diffusion.sampler import init_noise
from transfusion.diffusion.schedule import Schedule
from transfusion.generate.runner import Chunk
from transfusion.generate.sizes import PendingItem
from transfusion.generate.state import ActiveCodes, ActiveDocument, ActiveItem, ItemBranch


def start_item(
    doc: ActiveDocument,
    pending: PendingItem,
    vocabulary: Vocabulary,
    coordinates: Coordinates,
    schedule: Schedule,
    dtype: torch.dtype,
) -> tuple[ActiveItem, list[Chunk]]:
    """An item of noise behind a document's tokens, its latents in `dtype`, and the prefixes of its unconditional branches."""
    modality, grid = pending.modality, pending.grid
    branches, prefixes, next_position = _branches(doc, pending, vocabulary, coordinates)
    noise, size = doc.request.noise, modality.shape_of(grid)
    if noise is not None and not isinstance(noise, Tensor):
        noise = noise(modality.name, size)
        if noise is not None and (not isinstance(noise, Tensor) or noise.shape != (modality.channels, *size)):
            found = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
            raise ValueError(
                f"the request's noise function must give None or a tensor {(modality.channels, *size)}, not {found}"
            )
    elif doc.request.force is None or doc.num_items:  # a tensor is the noise of the forced item alone
        noise = None
    if noise is None:
        noise = rng.normal([doc.item_key("noise")], (modality.channels, *size))[0]
    latents = init_noise(schedule, noise.to(dtype))
    index = vocabulary.modalities.index(modality)
    return ActiveItem(doc, index, grid, latents, branches, next_position, pending.fallback), prefixes


def start_codes(
    doc: ActiveDocument, pending: PendingItem, vocabulary: Vocabulary, coordinates: Coordinates
) -> tuple[ActiveCodes, list[Chunk]]:
    """An item of a discrete modality behind a document's tokens, without codes yet, and the prefixes of its unconditional
    branches."""
    branches, prefixes, next_position = _branches(doc, pending, vocabulary, coordinates)
    ids = vocabulary.codes(pending.modality.name)
    return ActiveCodes(pending.modality.name, pending.grid, ids, branches, next_position, pending.fallback), prefixes


def _branches(
    doc: ActiveDocument, pending: PendingItem, vocabulary: Vocabulary, coordinates: Coordinates
) -> tuple[list[ItemBranch], list[Chunk], float]:
    """The document's own branch and the unconditional ones, the prefixes of these, and the coordinate behind the item."""
    modality, grid = pending.modality, pending.grid
    positions, next_position = coordinates.place(doc.position, grid)
    context = doc.document()
    target = Media(None, modality.name, modality.shape_of(grid) if modality.varies else None)
    whole = replace(context, segments=(*context.segments, target))
    conditional, *dropped = doc.request.guidance.branches(
        has_text=any(isinstance(s, Text) and len(s.content) for s in context.segments), has_media=bool(context.media)
    )
    branches = [ItemBranch(doc.cache_slot, conditional.weight, positions, doc.num_spans)]
    prefixes = []
    for cache_slot, branch in zip(doc.guidance_slots, dropped, strict=False):
        document = unconditional(whole, len(context.segments), text=branch.drop_text, media=branch.drop_media)
        sequence = tokenize_document(document, vocabulary, coordinates, add_eos=False)
        start = sequence.items[-1].start
        prefixes.append(Chunk.prefix(cache_slot, sequence, start, logits=bool(modality.codes)))
        branches.append(ItemBranch(cache_slot, branch.weight, sequence.positions[start:], len(sequence.items) - 1))
    return branches, prefixes, next_position
