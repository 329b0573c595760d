"""The linear patcher cuts latents into patches and puts them together again."""

import pytest
import torch

from transfusion.codec.linear_patcher import LinearPatcherConfig
from transfusion.modality import Modality


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((), ()), ((6,), (2,)), ((4, 6), (2, 2)), ((4, 6), (1, 3)), ((4, 4, 6), (2, 1, 3))],
    ids=["vector", "sequence", "picture", "oblong", "video"],
)
def test_patches_round_trip(shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    """Bit for bit; patch after patch in reading order."""
    modality = Modality("image", channels=3, shape=shape, patch=patch)
    patcher_of = LinearPatcherConfig().build(modality, 16, 1e-5)
    latents = torch.randn(2, 3, *shape)
    patches = patcher_of.patches(latents)
    grid = modality.slots(shape)
    assert patches.shape == (2, int(torch.tensor(grid).prod()) if grid else 1, modality.patch_width)
    assert torch.equal(patcher_of.latents(patches, grid), latents)
    if len(shape) == 2:
        rows, columns = patch
        corner = latents[:, :, :rows, columns : 2 * columns]  # the second patch stands to the right of the first
        assert torch.equal(patches[:, 1], corner.flatten(1))
