"""Caption preference: near 1 where captions matter, 0.5 where they do not, with the same picture and noise on both sides."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from small import CODED, IDS, SOUND, model, picture
from transfusion import rng
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.data.sources.scenes import LazyScene, Scene, held_out_scenes, swap
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.preference import (
    CaptionPair,
    advice,
    caption_errors,
    caption_preference,
    error_measured,
    other_captions,
    preference,
    swapped_captions,
)
from transfusion.evaluation.scenes import compare
from transfusion.modality import Modality

NAMES = ("cat", "dog", "owl", "bee", "fox", "elk", "ant", "cow")


def named(count: int = 8) -> list[Document]:
    """Pictures that only their names tell: each is random, and always the same."""
    return [Document((Text(f"a {name}"), Media(picture(i).clamp(-1, 1)))) for i, name in enumerate(NAMES[:count])]


@pytest.fixture(scope="module")
def trained() -> Transfusion:
    """A model that has learned eight pictures by their names."""
    torch.manual_seed(0)
    m, docs = model().train(), named()
    optimizer = torch.optim.AdamW(m.parameters(), lr=5e-3)
    for step in range(60):
        optimizer.zero_grad()
        m.loss(docs * 2, seed=step).backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        optimizer.step()
    return m.eval()


def test_a_model_that_uses_captions(trained: Transfusion) -> None:
    found = caption_preference(trained, named())
    assert found.keys() == {"caption_preference", "caption_gap"}
    assert found["caption_preference"].value >= 0.9 and found["caption_preference"].count == 8
    assert found["caption_preference"].note == "at t = 0.8" and found["caption_gap"].value > 0.1


def test_a_model_that_does_not_see_captions(trained: Transfusion) -> None:
    """With attention whose answer is 0 no slot sees its caption: chance, said in words with what to do."""
    deaf = copy.deepcopy(trained)
    for name, weight in deaf.network.named_parameters():
        if name.endswith("attention.out.weight"):
            weight.data.zero_()
    found = caption_preference(deaf, named())
    low, high = found["caption_preference"].low, found["caption_preference"].high
    assert low is not None and high is not None and low < 0.5 < high and abs(found["caption_gap"].value) < 1e-5
    assert "cannot be told: 8 pictures are too few" in advice(found["caption_preference"]), "of eight"
    assert not advice(caption_preference(trained, named())["caption_preference"])


def test_what_a_preference_near_chance_means() -> None:
    """Of 30 and more; of fewer only that they are too few, unless those that were trained on are enough."""
    chance, used = Estimate.proportion(52, 100), Estimate.proportion(90, 100)
    words = advice(chance)
    assert "captions are not used" in words and "0.5" in words and "--model.patcher.kind linear" in words
    assert not advice(used) and "those of trained ones are" in advice(chance, used)
    for count in (2, 8, 20, 29):
        few = advice(Estimate.proportion(count / 2, count), items="sounds")
        assert f"{count} sounds are too few" in few and "captions are not used" not in few
        assert advice(Estimate.proportion(count / 2, count), used) == few.replace("sounds", "pictures")
        assert "trained pictures are predicted no better" in advice(Estimate.proportion(count / 2, count), chance)


def test_captions_of_pictures_that_they_do_not_describe(trained: Transfusion) -> None:
    """Each picture with the next one's caption: another's caption is then never worse on average."""
    docs = named()
    mixed = [Document((docs[i].segments[0], docs[(i + 1) % 8].segments[1])) for i in range(8)]
    assert caption_preference(trained, mixed)["caption_preference"].value <= 0.5


def test_errors_are_those_of_the_loss(trained: Transfusion) -> None:
    """The error of a pair is the media loss of its document alone, at that time and with the same noise on both sides."""
    pairs = other_captions(named(), seed=3)
    errors = caption_errors(trained, pairs, times=(0.7, 0.9), seed=3)
    assert errors.shape == (8, 2)
    for i, pair in enumerate(pairs[:3]):
        noise = rng.normal([rng.key(rng.key(3, "preference", i), "noise")], (1, 4, 4))[0]
        for side, text in enumerate((pair.own, pair.other)):
            values = pair.picture.tensor()
            documents = [Document((Text(text), Media(values, times=(t, t), noise=noise))) for t in (0.7, 0.9)]
            losses = [trained(trained.batch([document])).media.value.item() for document in documents]
            assert errors[i, side] == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_the_other_caption_says_something_else() -> None:
    """Never a wording of the picture's own caption; of the other one the same wording; only documents of a caption and an item."""
    wordings = [("a cat", "the cat"), ("a cat", "the cat"), ("a dog", "the dog"), ("the dog", "a dog")]
    docs = [Document((Text(a, paraphrases=(b,)), Media(picture(i)))) for i, (a, b) in enumerate(wordings)]
    odd = [
        Document((Text("words"),)),
        Document((Media(picture(9)),)),
        Document((Text("a"), Media(picture(7)), Media(picture(8)))),
    ]
    found = other_captions([*docs, *odd])
    assert len(found) == 4
    assert all({pair.own.split()[1], pair.other.split()[1]} == {"cat", "dog"} for pair in found)
    again = other_captions([*docs, *odd])
    assert [(pair.own, pair.other) for pair in again] == [(pair.own, pair.other) for pair in found]
    backwards = Document((Media(picture(1)), Text("a cow")))
    assert {pair.own for pair in other_captions([backwards, docs[0]])} >= {"a cow"}
    with pytest.raises(ValueError, match="different captions"):
        other_captions(docs[:2])


def test_ties_count_half() -> None:
    errors = np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0], [1.0, 3.0]])
    assert preference(errors, "at t = 0.5") == replace(Estimate.proportion(2.5, 4), note="at t = 0.5")


def test_a_seed_gives_one_measurement(trained: Transfusion) -> None:
    one, other = (caption_preference(trained, named(), seed=seed)["caption_gap"] for seed in (0, 1))
    assert one == caption_preference(trained, named(), seed=0)["caption_gap"] != other


def test_what_cannot_be_measured_says_why(trained: Transfusion) -> None:
    broken = copy.deepcopy(trained)
    broken.network.head.weight.data.fill_(float("nan"))
    assert np.isfinite(caption_errors(broken, other_captions(named()))).all(), "the head of text has no part in it"
    for weight in broken.network.transformer.parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        caption_preference(broken, named())
    long = [CaptionPair(Media(picture(1)), "x" * 200, "y")]
    with pytest.raises(ValueError, match="context"):
        caption_errors(trained, long)
    assert len(caption_errors(trained, [*long, *other_captions(named())])) == 8, "what does not fit is left out"


def scene_of(media: Media) -> Scene:
    assert isinstance(media.values, LazyScene)
    return media.values.scene


def test_exchanged_things_are_false_of_the_scene() -> None:
    documents = held_out_scenes(6, seed=0)
    pairs = swapped_captions(documents, samples=len(documents))
    assert len(pairs) == 24, "position and attribution, with and without held-out combinations"
    assert all(set(pair.own.split()) | {"a", "an"} == set(pair.other.split()) | {"a", "an"} for pair in pairs)
    for document in documents:
        scene = scene_of(document.media[0])
        changed = swap(scene)
        assert (changed is None) == (scene.kind not in ("position", "attribution"))
        if changed is not None:
            assert compare(scene, changed.things).keys() == {"place" if scene.kind == "position" else "colour"}
            assert set(changed.captions).isdisjoint(scene.captions)


def test_scenes_are_compared_with_scenes_of_their_kind() -> None:
    image = Modality("image", channels=3, shape=(16, 16), patch=(8, 8))
    documents = held_out_scenes(2, seed=0)
    kinds = {document.text: scene_of(document.media[0]).kind for document in documents}
    for pair in other_captions(documents, samples=len(documents)):
        assert kinds[pair.own] == scene_of(pair.picture).kind
    found = caption_preference(model(image), documents, samples=len(documents))
    assert found["caption_preference_swapped"].count == 8 and found["caption_preference"].count == 22


def test_of_a_discrete_item_the_error_is_the_nats_of_its_codes() -> None:
    m, item = model(CODED), Media(IDS)
    ((own, other),) = caption_errors(m, [CaptionPair(item, "a cat", "b")]).tolist()
    for error, caption in ((own, "a cat"), (other, "b")):
        codes = m(m.batch([Document((Text(caption), item))])).codes
        assert codes is not None and error == pytest.approx(float(codes.sum.detach()), rel=1e-5)
    assert own != other


def test_the_note_says_which_error_it_was() -> None:
    pairs = [CaptionPair(Media(IDS), "a", "b"), CaptionPair(Media(picture(0, 3, 6), "sound"), "a", "b")]
    both = model(CODED, SOUND)
    assert error_measured(both, pairs[:1]) == "by the cross-entropy of codes"
    assert error_measured(both, pairs[1:], times=(0.8, 0.5)) == "at t = 0.8, 0.5"
    assert error_measured(both, pairs) == "at t = 0.8, by the cross-entropy of codes"
    found = caption_preference(both, [Document((Text(name), Media(IDS))) for name in NAMES[:3]])
    assert found["caption_preference"].note == "by the cross-entropy of codes"
    assert found["caption_gap"].note.startswith("by the cross-entropy of codes; 3 samples are too few")
