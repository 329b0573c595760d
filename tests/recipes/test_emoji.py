"""Emoji and their edits: families and tones, what is held out, which picture is nearest, whole runs on small tables."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from command import SHORT, command
from small import Unshuffle, model, picture
from transfusion.data.corpus import Corpus, captioned
from transfusion.data.document import Document, Media, Text
from transfusion.data.media import Fit
from transfusion.data.sources.edits import Edit, read_edits
from transfusion.evaluation import edits as measure_edits
from transfusion.evaluation import emoji as measure
from transfusion.evaluation.emoji import Named, family, hold_out_variants, tones
from transfusion.evaluation.nearest import Pixels, nearest, spaces
from transfusion.evaluation.suite import EvalContext
from transfusion.modality import IMAGE, Modality

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


def bytes_of(seed: int, side: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    with io.BytesIO() as buffer:
        Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST).save(buffer, "PNG")
        return buffer.getvalue()


def figures(*names: str) -> list[str]:
    return [text for name in names for text in (name, *(f"{name}: {tone} skin tone" for tone in TONES))]


def write_tables(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    for split, texts in (("train", [*figures("hand", "man", "elf"), "key", "map"]), ("validation", figures("ear"))):
        images = [{"bytes": bytes_of(i + 100 * (split != "train"))} for i in range(len(texts))]
        pq.write_table(pa.table({"image": images, "text": texts}), folder / f"{split}.parquet")
    return folder


def write_edits(folder: Path, **without: object) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    for split, names in (("train", ("hand", "man", "elf")), ("validation", ("ear", "nose"))):
        rows = [
            {
                "source_image": {"bytes": bytes_of(i)},
                "instruction": f"make the skin tone {tone}",
                "target_image": {"bytes": bytes_of(50 + 10 * i + j)},
                "source_text": name,
                "target_text": f"{name}: {tone} skin tone",
                "edit_type": "skin_tone",
            }
            for i, name in enumerate(names)
            for j, tone in enumerate(TONES)
        ]
        table = pa.Table.from_pylist([{k: v for k, v in row.items() if k not in without} for row in rows])
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def test_a_family_is_a_name_without_tones() -> None:
    assert family("waving hand: dark skin tone") == family("waving hand") == "waving hand"
    assert family("woman: medium-light skin tone, red hair") == family("woman: red hair")
    assert family("kiss: woman, man, dark skin tone, light skin tone") == family("kiss: woman, man") == "kiss, woman, man"
    assert family("light bulb") == "light bulb" and tones("light bulb") == 0
    assert tones("kiss: woman, man, dark skin tone, light skin tone") == 2


def test_held_out_variants_have_kin_that_is_trained_on() -> None:
    corpus = Corpus([captioned((text,), Media(torch.zeros(3, 4, 4)), text) for text in [*figures(*"abcdefgh"), "key"]])
    kept, held_out = hold_out_variants(corpus, 10)
    assert len(held_out) == 10 and len(kept) + len(held_out) == len(corpus)
    assert all(tones(d.text) == 1 for d in held_out)
    for document in held_out:
        assert sum(family(d.text) == family(document.text) and tones(d.text) == 1 for d in kept) >= 3
    # the same ones when others come
    again = hold_out_variants(Corpus([*corpus.documents, captioned(("new",), Media(torch.zeros(3, 4, 4)), "new")]), 10)[1]
    assert {d.text for d in again} == {d.text for d in held_out}


def test_the_nearest_is_among_those_allowed() -> None:
    real = torch.stack([picture(i, 3, 16, 16) for i in range(6)])
    drawn = real[[4, 2]] + 0.01
    assert nearest(Pixels()(drawn), Pixels()(real)).tolist() == [4, 2]
    assert nearest(Pixels()(drawn), Pixels()(real), [[0, 4], [3]]).tolist() == [4, 3]
    assert [space.name for space in spaces("")] == ["pixels"]
    with pytest.raises(ValueError, match="no file"):
        spaces("missing.pth")


def test_drawings_are_looked_up_among_all_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"trained": [*figures("hand", "man"), "key"], "variants": ["elf: dark skin tone"], "families": figures("ear")}
    names["trained"] += figures("elf")[:-1]
    seeds = iter(range(100))
    groups = {
        group: [Document((Text(text), Media(picture(next(seeds), 3, 16, 16)))) for text in texts]
        for group, texts in names.items()
    }
    known = {d.text: d for group in groups.values() for d in group}
    # the right picture for all, but one trained name in another tone, and one as a key
    wrong = {"hand": "hand: dark skin tone", "man": "key"}

    def answer(_: object, prompts: list, suite: str, context: EvalContext, **options: object) -> list[Document]:
        if suite == "emoji":
            return [known[wrong.get(str(text), str(text))] for text in prompts]
        return [replace(p, segments=(*p.segments, Text("ear"))) for p in prompts]

    monkeypatch.setattr(measure, "generate", answer)
    m = measure.score(model(), Named(**groups), EvalContext(samples=50)).record.metrics
    count = len(names["trained"])
    assert m["name_pixels"].value == pytest.approx(1 - 1 / count) and m["exact_pixels"].value == pytest.approx(1 - 2 / count)
    assert m["tone_pixels"].value == 1 and m["tone_chance"].value == pytest.approx(1 / 6) and m["family_pixels"].value == 1
    assert m["exact_read"].value == 0 and m["exact_read_family"].value == pytest.approx(1 / 6)
    assert "coded_pixels" not in m
    latents = model(Modality(IMAGE, channels=12, shape=(8, 8), patch=(2, 2)), autoencoder=Unshuffle(3))
    m = measure.score(latents, Named(**groups), EvalContext(samples=5)).record.metrics
    assert m["coded_pixels"].value == 1 and m["coded_pixels"].count == 5  # it gives every picture back as it was
    with pytest.raises(ValueError, match="nothing to measure tone on"):
        measure.score(model(), Named(groups["trained"], (), groups["families"]), EvalContext(samples=5))


def test_edits_are_read_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fit = write_edits(tmp_path / "edits"), Fit((16, 16))
    trained, edits = read_edits(path, fit), read_edits(path, fit, train=False)
    assert len(trained) == 15 and len(edits) == 10 and edits[0].kind == "skin_tone" and edits[0].source == "ear"
    source, text, target = edits[0].document.segments
    assert isinstance(source, Media) and isinstance(text, Text) and isinstance(target, Media)
    assert source.use == "context" and not text.loss and target.has_loss

    def answer(which: list[int]):
        documents = [Document((*e.document.segments[:2], e.document.segments[i])) for e, i in zip(edits, which, strict=True)]
        monkeypatch.setattr(measure_edits, "generate", lambda *a, **k: documents)
        return measure_edits.score(model(), edits, trained, EvalContext(samples=50)).record.metrics

    m = answer([2] * 6 + [0] * 4)
    assert m["target_pixels"].value == m["target_skin_tone_pixels"].value == 0.6 and m["copied_pixels"].value == 0.4
    assert m["target_chance"].value == pytest.approx(1 / 6) and 0 <= m["blurred_pixels"].value < 0.5
    assert m["error"].value == pytest.approx(0.4, abs=0.2)
    with pytest.raises(ValueError, match="no edits"):
        measure_edits.score(model(), [], trained, EvalContext())
    with pytest.raises(ValueError, match="no column target_image"):
        read_edits(write_edits(tmp_path / "other", target_image=True), fit)
    with pytest.raises(ValueError, match="no edits: give a Parquet table"):
        read_edits(tmp_path / "missing", fit)
    assert isinstance(edits[0], Edit)


@pytest.mark.slow
def test_emoji_and_then_their_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transfusion.recipes.emoji.VARIANTS", 3)
    write_tables(tmp_path / "emoji")
    write_edits(tmp_path / "edits")
    small = f"{SHORT} --model.modalities.0.shape 16 16 --sampler.num-steps 2 --report.images 4 --trainer.sample-every 0"
    assert command(f"train emoji --data emoji --out run {small}") == 0
    report = json.loads(Path("run/report.json").read_text())
    assert {"name_pixels", "tone_pixels", "family_pixels", "exact_read", "brightness"} <= set(report)
    assert Path("run/samples.png").exists() and report["tone_pixels_count"] == 3
    assert command(f"train emoji_edit --data edits --init run --out edited {small}") == 0
    report = json.loads(Path("edited/report.json").read_text())
    assert {"target_pixels", "copied_pixels", "blurred_pixels", "mean_pixels", "target_chance"} <= set(report)
    assert command("evaluate edited --suite task --samples 2 --device cpu --sampler.num-steps 2") == 0
    capfd.readouterr()
    for line, reason in (
        (f"train emoji --data edits --out no {small}", "is not the emoji|needs a column image"),
        (f"train emoji_edit --data emoji --out no {small}", "no column source_image"),
        (f"train emoji_edit --out no {small}", "needs --data"),
        (f"train emoji --data emoji --out no {small} --report.features missing.pth", "no file missing.pth"),
    ):
        assert command(line) in (1, 2)
        said = capfd.readouterr().err
        assert any(part in said for part in reason.split("|")), said
