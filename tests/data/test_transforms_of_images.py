"""Images as an epoch sees them: mirrored and cut alike in a document, the same whenever it is asked for."""

from dataclasses import replace

import numpy as np
import torch

from transfusion import rng
from transfusion.data.corpus import Corpus, hold_out
from transfusion.data.document import Document, Media, Text
from transfusion.data.media import DecodedImage, Fit, VariedImage
from transfusion.data.transforms import DocumentTransform

FIT = Fit((8, 8), 1)
PLAIN = DocumentTransform(image_first=0.0)


def picture(seed: int = 0) -> Media:
    return Media(DecodedImage(np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8), FIT))


def seen(transform: DocumentTransform, document: Document, epoch: int = 0) -> list[torch.Tensor]:
    return [media.tensor() for media in transform(document, 0, epoch, 3).media]


def test_both_pictures_of_an_edit_are_mirrored_together() -> None:
    flip, one = replace(PLAIN, flip=True), picture()
    pair = Document((one, Text("make it blue"), one))
    plain, mirrored = one.tensor(), 0
    for epoch in range(40):
        first, second = seen(flip, pair, epoch)[0], seen(flip, pair, epoch)[-1]
        assert torch.equal(first, second), "source and target"
        assert torch.equal(first, plain) or torch.equal(first, plain.flip(-1))
        mirrored += torch.equal(first, plain.flip(-1))
        assert torch.equal(first, seen(flip, pair, epoch)[0]), "the same again"
    assert 10 <= mirrored <= 30
    aside = Document((Text("the left hand"), one))
    assert all(torch.equal(seen(flip, aside, epoch)[0], plain) for epoch in range(20))
    assert torch.equal(seen(PLAIN, pair)[0], plain)


def test_a_window_is_a_part_of_the_larger_picture() -> None:
    one = picture()
    assert isinstance(one.values, DecodedImage)
    larger = replace(one.values, fit=Fit((10, 10), 1)).load()
    parts = [larger[:, top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
    windows = [seen(replace(PLAIN, crop=1.25), Document((Text("a cat"), one)), epoch)[0] for epoch in range(30)]
    assert all(any(torch.equal(window, part) for part in parts) for window in windows)
    assert len({window.numpy().tobytes() for window in windows}) > 4
    assert torch.equal(VariedImage(one.values, 1.0, False, 7).load(), one.tensor())


def test_what_is_held_out_depends_on_names_alone() -> None:
    def corpus(count: int) -> Corpus:
        return Corpus([Document((Text("a"), picture()), name=f"{i}.png") for i in range(count)])

    kept, held_out = hold_out(corpus(400), 0.1, 1000)
    assert 20 < len(held_out) < 65 and len(kept) + len(held_out) == 400
    assert not {d.name for d in kept} & {d.name for d in held_out}
    more = {d.name for d in hold_out(corpus(500), 0.1, 1000)[1]}
    assert {d.name for d in held_out} == {name for name in more if int(name[:-4]) < 400}
    assert len(hold_out(corpus(400), 0.1, 5)[1]) == 5


def test_of_few_some_are_held_out_that_stay_when_others_come() -> None:
    def held_out(count: int) -> set[str]:
        names = [f"{i}.png" for i in range(count)]
        return {
            d.name for d in hold_out(Corpus([Document((Text("a"),), name=name) for name in names]), 0.05, 1000, least=10)[1]
        }

    found = {count: held_out(count) for count in (100, 110, 150, 200, 400)}
    assert all(len(found[count]) >= 10 for count in found) and len(found[100]) == 10 and len(found[400]) > 12
    assert len(found[100] & found[110]) >= 8
    drawn = {name for name in (f"{i}.png" for i in range(400)) if rng.uniform("images", "held out", name) < 0.05}
    assert found[400] == drawn, "by share alone, where it is enough"
