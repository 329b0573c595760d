"""A modality refuses a name or sizes that cannot be, and counts the slots of an item."""

import pytest

from transfusion.modality import Modality


@pytest.mark.parametrize("name", ["text", "two words", "", "a-b", "1st"])
def test_a_name_that_a_document_cannot_use_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"plain word other than text, not {name!r}"):
        Modality(name, channels=1, shape=(4,), patch=(2,))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, not 0"),
        ({"patch": (2,)}, "one positive size per axis"),
        ({"patch": (0, 2)}, "one positive size per axis"),
        ({"shape": (5, 4)}, "positive multiple of the patch"),
        ({"largest": (8,)}, "1 axes, its patch has 2"),
        ({"largest": (2, 2)}, "exceeds the largest"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Modality(**({"name": "image", "channels": 1, "shape": (4, 4), "patch": (2, 2)} | sizes))


def test_slots_are_sizes_over_patches() -> None:
    image = Modality("image", channels=3, shape=(4, 6), patch=(2, 3), largest=(8, 9))
    assert image.slots((8, 6)) == (4, 2) and image.shape_of((4, 2)) == (8, 6)
    assert image.extents == (4, 3) and image.patch_width == 18 and image.varies
    assert Modality("vector", channels=5, shape=(), patch=()).slots(()) == ()
