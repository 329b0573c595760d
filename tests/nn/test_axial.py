"""Positions of slots: the continuous axial embedding, and 1-D RoPE inside sequences."""

from typing import Any

import numpy as np
import pytest
import torch

from small import FREE, IMAGE, SOUND, VECTOR, documents, model, picture
from test_equalities import cached_is_full, entries, many_is_one, rows
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.data.tokenize import Coordinates
from transfusion.diffusion.sampler import Euler
from transfusion.generate.logits import Sample
from transfusion.generate.state import Request
from transfusion.nn.attention import AttentionMetadata
from transfusion.nn.positions import AxialPositions


def test_positions_are_sums_over_axes_and_go_on_where_sizes_vary() -> None:
    positions = AxialPositions((4, 6), 16).double()
    whole, part = positions((4, 6)).unflatten(0, (4, 6)), positions((2, 3)).unflatten(0, (2, 3))
    assert torch.allclose(part, whole[:2, :3])  # a step is as long in every item
    assert torch.allclose(whole[1, 2] + whole[3, 5], whole[1, 5] + whole[3, 2])
    assert len({tuple(v.tolist()) for v in whole.flatten(0, 1)}) == 24
    assert 0.03 < whole.std() < 0.3


@pytest.mark.slow
def test_every_modality_has_its_own_and_a_vector_none() -> None:
    m = model(FREE, SOUND, VECTOR, axial=True, double=True)
    names = {n.split(".")[1] for n in m.network.state_dict() if n.startswith("axial.")}
    assert names == {"image", "sound"}
    docs = [Document((Text("a"), Media(picture(1, 1, 8, 6)), Media(picture(2, 3, 6), "sound"), Media(picture(3, 5), "vector")))]
    cached_is_full(m, docs)
    options: dict[str, Any] = {"sampler": Euler(2), "max_tokens": 2, "decoding": Sample()}
    requests = [
        Request(Document((Text("big"),)), seed=1, force="image", size=(8, 6), **options),
        Request(Document((Text("small"),)), seed=2, force="image", size=(2, 4), **options),
        Request(Document((Text("hear"),)), seed=3, force="sound", **options),
        Request(Document((Text("feel"),)), seed=4, force="vector", **options),
    ]
    many_is_one(m, requests)


def slots(m: Transfusion, latents: torch.Tensor) -> torch.Tensor:
    """The transformer's output at a sound's slots."""
    batch = rows(m, [entries(m, [Document((Text("x"), Media(latents, "sound", times=(0.0, 0.0))))])], 16)
    media = m.network.add_noise(batch)
    metadata = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
    return m.network.hidden(batch.tokens, batch.positions, media, metadata=metadata)[0][media[0].slots[0]]


def test_sequences_turn_by_their_one_axis_and_shared_coordinates_do_not() -> None:
    """Inside a sound, slots carry 1-D rotary coordinates: two patches that change places are not the same two in other places.
    Where all slots share one coordinate, they are."""
    latents = picture(5, 3, 6).double()
    swapped = latents[:, [2, 3, 0, 1, 4, 5]]
    order = [1, 0, 2]
    with torch.no_grad():
        for coordinates, known in (
            (Coordinates("grid"), True),
            (Coordinates("grid", axes=1), True),
            (Coordinates("shared"), False),
        ):
            m = model(IMAGE, SOUND, coordinates=coordinates, double=True)
            difference = (slots(m, latents) - slots(m, swapped)[order]).abs().max()
            assert (difference > 1e-3) == known and (known or difference < 1e-9), coordinates
        m = model(IMAGE, SOUND, coordinates=Coordinates("shared"), axial=True, double=True)
        assert (slots(m, latents) - slots(m, swapped)[order]).abs().max() > 1e-3


def test_a_sequence_on_one_axis_is_text() -> None:
    """With one axis, slots of a sequence count on as text does; the text goes on after them."""
    where, after = Coordinates("grid", axes=1).place(4.0, (3,))
    assert np.array_equal(where, [[4.0], [5.0], [6.0]]) and after == 7.0
    where, after = Coordinates("grid").place(4.0, (3,))
    assert np.array_equal(where, [[4.0, 4.0], [5.0, 4.0], [6.0, 4.0]]) and after == 7.0
    where, after = Coordinates("shared").place(4.0, (2, 2))
    assert np.array_equal(where, np.full((4, 2), 4.0)) and after == 5.0


def test_shared_coordinates_keep_the_equalities() -> None:
    m = model(coordinates=Coordinates("shared"), double=True)
    cached_is_full(m, documents()[:3])
