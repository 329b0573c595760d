"""Documents of pictures through a model of latents: what it learns, draws and reads is what a model of the same latents without an
autoencoder does, bit for bit; and latents of another autoencoder are refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from small import SOUND, Unshuffle, drawn, model, picture
from transfusion.api import Transfusion
from transfusion.codec.codecs import Codecs, item_form, latent_form
from transfusion.codec.latent_corpus import LatentCorpus
from transfusion.data.document import Document, Media, MediaError, Text
from transfusion.data.latents import Decoded, Latents
from transfusion.diffusion.guidance import Guidance
from transfusion.evaluation.preference import caption_preference
from transfusion.generate.state import Denoising, ItemDone, Request
from transfusion.modality import Modality

LATENT = Modality("image", channels=4, shape=(4, 4), patch=(2, 2), largest=(8, 8))


def autoencoder(seed: int = 0) -> Unshuffle:
    """Of reduction 2, with a normalisation that changes numbers."""
    made = Unshuffle(seed=seed)
    made.normalize(torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([0.5, 2.0, 1.0, 1.5]), 3.0)
    return made


def on_pictures(**options: object) -> Transfusion:
    return model(LATENT, SOUND, autoencoder=autoencoder(), **options)  # type: ignore[arg-type]


def on_latents(**options: object) -> Transfusion:
    return model(LATENT, SOUND, **options)  # type: ignore[arg-type]


def documents() -> list[Document]:
    """Pictures of several sizes and sounds, drawn and read, some twice, one with a mask."""
    mask = torch.arange(64.0).reshape(8, 8)
    return [
        Document((Text("a cat"), Media(picture(1, 1, 8, 8)))),
        Document((Media(picture(2, 1, 16, 4)), Text("what a long caption"))),
        Document((Text("x"), drawn(3, 1, 4, 8), Text(" and "), Media(picture(4, 3, 6), "sound"), drawn(5, 1, 8, 8))),
        Document((Text("masked"), Media(picture(6, 1, 8, 8), mask=mask))),
        Document((Text("only text"),)),
    ]


def encoded(whole: Document) -> Document:
    """The document with plain tensors of latents for its pictures."""
    segments = []
    for s in whole.segments:
        if isinstance(s, Media) and s.modality == "image":
            latents = autoencoder().encode(s.tensor()[None])[0]
            mask = None if s.mask is None else torch.nn.functional.avg_pool2d(s.mask[None], 2)[0]
            s = Media(latents, use=s.use, mask=mask)
        segments.append(s)
    return Document(tuple(segments))


@pytest.mark.parametrize("seed", [0, 1])
def test_training_on_pictures_is_training_on_their_latents(seed: int) -> None:
    pictures, latents = on_pictures(), on_latents()
    assert torch.equal(pictures.loss(documents(), seed=seed), latents.loss(map_encoded(), seed=seed))
    grids = {group.grid for group in pictures.batch(documents()).media if group.modality == 0}
    assert grids == {(2, 2), (4, 1), (1, 2)}  # of several sizes


def map_encoded() -> list[Document]:
    return [encoded(document) for document in documents()]


PROMPTS = [
    Document((Text("a dog"),)),
    Document((Media(picture(7, 1, 8, 8)), Text("the same, but red"))),
    Document((Media(picture(8, 3, 6), "sound"), Media(picture(9, 1, 4, 8)), Text("go on"))),
]


def test_drawing_behind_pictures_is_drawing_behind_their_latents_and_decoding() -> None:
    options = {"force": "image", "seed": 3, "max_tokens": 4, "guidance": Guidance(text=2.0, media=1.5)}
    pictures = on_pictures().generate(PROMPTS, size=(8, 16), **options)  # type: ignore[arg-type]
    latents = on_latents().generate([encoded(p) for p in PROMPTS], size=(4, 8), **options)  # type: ignore[arg-type]
    for prompt, drawing, of_latents in zip(PROMPTS, pictures, latents, strict=True):
        assert [type(s) for s in drawing.segments] == [type(s) for s in of_latents.segments]
        for given, returned in zip(prompt.media, drawing.media, strict=False):
            assert returned.values is given.values  # as it was, not through the autoencoder
        first = len(prompt.segments)
        made, latent = drawing.segments[first], of_latents.segments[first]
        assert isinstance(made, Media) and isinstance(latent, Media) and made.tensor().shape == (1, 8, 16)
        assert torch.equal(made.tensor(), autoencoder().decode(latent.tensor()[None])[0])
        assert drawing.text == of_latents.text


def test_a_drawing_is_read_again_by_its_latents_and_by_other_models_as_a_picture() -> None:
    own = on_pictures()
    (first,) = own.generate("a dog", force="image", seed=1)
    drawing = first.media[-1]
    assert isinstance(drawing.values, Decoded) and drawing.tensor() is drawing.values.values
    (taken,) = own.codecs.encoded(first).media
    assert torch.equal(taken.tensor(), drawing.values.latents)
    other = Codecs(autoencoder(seed=1), (LATENT,))
    (again,) = other.encoded(Document((drawing,))).media
    assert torch.equal(again.tensor(), autoencoder(seed=1).encode(drawing.tensor()[None])[0])


def test_events_carry_pictures_and_estimates_can_be_shown() -> None:
    m = on_pictures()
    request = Request(Document((Text("a"),)), force="image", max_tokens=0, sampler=m.config.sampler)
    engine = m.engine([request])
    engine.add(request)
    events = list(engine.run())
    steps = [event for event in events if isinstance(event, Denoising)]
    assert [event.modality for event in steps] == ["image"] * 3 and steps[0].estimate.shape == (4, 4, 4)
    assert engine.preview(steps[0]).shape == (1, 8, 8)
    (done,) = [event.media for event in events if isinstance(event, ItemDone)]
    assert done.tensor().shape == (1, 8, 8)


def test_latents_of_another_autoencoder_are_refused() -> None:
    foreign = Document((Media(Latents.of(picture(0, 4, 4, 4), "0123456789abcdef")), Text("a")))
    for whole in (on_pictures(), on_latents()):
        with pytest.raises(ValueError, match="latents of autoencoder 0123456789abcdef"):
            whole.loss([foreign])
        with pytest.raises(ValueError, match="latents of autoencoder"):
            whole.generate(foreign, max_items=0)
    with pytest.raises(ValueError, match="latents of autoencoder"):
        LatentCorpus([foreign], on_pictures().codecs)


def test_an_autoencoder_that_does_not_fit_is_refused() -> None:
    three = Modality("image", channels=3, shape=(4, 4), patch=(2, 2))
    with pytest.raises(ValueError, match="3 channels, its autoencoder's latents have 4"):
        model(three, autoencoder=autoencoder())
    with pytest.raises(ValueError, match="no modality"):
        model(LATENT, autoencoder={"video": autoencoder()})
    with pytest.raises(ValueError, match="subclass of Autoencoder"):
        model(LATENT, autoencoder={"image": torch.nn.Linear(2, 2)})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="multiple of 2"):
        on_pictures().loss([Document((Text("a"), Media(picture(0, 1, 7, 8))))])
    with pytest.raises(ValueError, match="1 channels"):
        on_pictures().loss([Document((Text("a"), Media(picture(0, 3, 8, 8))))])
    with pytest.raises(ValueError, match="noise"):
        on_pictures().loss([Document((Text("a"), Media(picture(0, 1, 8, 8), noise=picture(1, 1, 8, 8))))])
    with pytest.raises(ValueError, match="multiple of 2"):
        on_pictures().generate("a", force="image", size=(7, 8))


def test_a_modality_of_pictures_and_that_of_its_latents() -> None:
    pixels = Modality("image", channels=1, shape=(8, 8), patch=(4, 4), largest=(16, 16))
    assert latent_form(pixels, autoencoder()) == LATENT and item_form(LATENT, autoencoder()) == pixels
    fine = Modality("image", channels=1, shape=(8, 8), patch=(1, 1))
    assert latent_form(fine, autoencoder()).patch == (1, 1)
    for wrong, fault in [
        (Modality("image", channels=3, shape=(8, 8), patch=(4, 4)), "channels"),
        (Modality("image", channels=1, shape=(9, 9), patch=(3, 3)), "multiple of 2"),
        (Modality("image", channels=1, shape=(1, 1), patch=(1, 1)), "smaller than one latent"),
        (Modality("image", channels=1, shape=(12, 12), patch=(3, 3)), "patch of"),
    ]:
        with pytest.raises(ValueError, match=fault):
            latent_form(wrong, autoencoder())


class Counted(Unshuffle):
    """Counts what it encodes."""

    count = 0

    def to_latents(self, items: Tensor) -> Tensor:
        self.count += len(items)
        return super().to_latents(items)


def test_a_corpus_is_encoded_once_while_there_is_room() -> None:
    counted = Counted()
    codecs = Codecs(counted, (LATENT,))
    whole = [Document((Text("a"), Media(picture(i, 1, 8, 8)))) for i in range(5)]
    corpus = LatentCorpus(whole, codecs, room=3 * 4 * 64)
    assert counted.count == 1  # the first, to see whether it is finite
    kept = [corpus[i] for i in range(5)]
    for _ in range(3):
        for document, again in zip(kept, corpus, strict=True):
            assert torch.equal(document.media[0].tensor(), again.media[0].tensor())
    assert counted.count == 3 + 2 * 6  # the other two each time


class NotFinite(Unshuffle):
    where = "encode"

    def to_latents(self, items: Tensor) -> Tensor:
        return super().to_latents(items) / (0 if self.where == "encode" else 1)

    def to_items(self, latents: Tensor) -> Tensor:
        return super().to_items(latents) / (0 if self.where == "decode" else 1)


@pytest.mark.parametrize("where", ["encode", "decode"])
def test_numbers_that_are_not_finite_are_found_before_training(where: str) -> None:
    broken = NotFinite()
    broken.where = where
    with pytest.raises(ValueError, match="NaN or infinity"):
        LatentCorpus([Document((Media(picture(0, 1, 8, 8)),))], Codecs(broken, (LATENT,)))
    if where == "encode":
        with pytest.raises(MediaError, match="NaN"):
            Codecs(broken, (LATENT,)).encoded(Document((Media(picture(0, 1, 8, 8)),)), now=True)


def test_caption_preference_encodes_pictures() -> None:
    pairs = [Document((Text(text), Media(picture(i, 1, 8, 8)))) for i, text in enumerate(["a cat", "a dog", "a hen"])]
    found = caption_preference(on_pictures(), pairs)
    wanted = caption_preference(on_latents(), [encoded(pair) for pair in pairs])
    assert {name: found[name].value for name in found} == {name: wanted[name].value for name in wanted}


def test_a_model_of_the_users_own_autoencoder_is_read_with_it(tmp_path: Path) -> None:
    m = on_pictures()
    m.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "autoencoders").exists()
    assert "turned" not in " ".join([*m.state_dict(), *dict(m.named_parameters())])
    with pytest.raises(ValueError, match="class of your own"):
        Transfusion.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="was trained with"):
        Transfusion.from_pretrained(tmp_path / "model", autoencoder=autoencoder(seed=1))
    again = Transfusion.from_pretrained(tmp_path / "model", autoencoder=autoencoder())
    before, after = (x.generate("a", force="image", seed=2)[0].media[-1].tensor() for x in (m, again))
    assert torch.equal(before, after)
