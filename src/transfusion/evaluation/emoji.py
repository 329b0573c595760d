"""Captions that are names with variants, as emoji have: is a drawn picture nearest to the one that was asked for?

name_S            share of drawings of trained names whose nearest of all known pictures is the asked one, or its figure in
                  another tone
exact_S           the same, the asked one itself
coded_S           on latents or codes: the same of the asked pictures themselves as the autoencoder gives them back, a bound for
                  `exact_S`
tone_S            of held-out variants, other tones of whose figure were trained on: share whose nearest among the tones of the
                  figure is the asked one (chance: 1 / tones, `tone_chance`)
family_S          of whole held-out families: share whose nearest of all known pictures is of the asked family
cider, exact_read of captions written for the pictures of held-out variants (CIDEr as COCO's evaluation, 0 to 10)
cider_100         the same, on the scale on which the paper gives it
cider_family ...  the same for held-out families
brightness ...    as in the suite `draw`, of the drawings of trained names

S is a space of `nearest.py`: pixels, or mobilenet where its file is given. Two captions are of one family if they differ in
nothing but tones of skin.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from transfusion import rng
from transfusion.api import Transfusion
from transfusion.data.corpus import Corpus
from transfusion.data.document import Document
from transfusion.evaluation.appearance import appearance
from transfusion.evaluation.captions import cider
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.nearest import nearest, spaces
from transfusion.evaluation.suite import EvalContext, SuiteResult, caption, generate, make_record
from transfusion.modality import IMAGE

TONE = re.compile(r"[:,]? ?\b(?:medium-)?(?:light|dark|medium) skin tone\b")
MAX_TOKENS = 48


def family(text: str) -> str:
    """A caption without its tones of skin."""
    return re.sub(r"\s*[:,]\s*", ", ", TONE.sub("", text)).strip(" ,")


def tones(text: str) -> int:
    """How many tones of skin a caption names."""
    return len(TONE.findall(text))


def hold_out_variants(corpus: Sequence[Document], count: int) -> tuple[Corpus, Corpus]:
    """The documents to train on, and `count` variants of one tone that are held out, by a digest of their captions; at most
    half of a family's."""
    members: dict[str, list[Document]] = {}
    for document in corpus:
        if tones(document.text) == 1:
            members.setdefault(family(document.text), []).append(document)

    def order(document: Document) -> float:
        return rng.uniform("emoji", "held out", document.text)

    candidates = [d for group in members.values() for d in sorted(group, key=order)[: len(group) // 2]]
    drawn = {id(document) for document in sorted(candidates, key=order)[:count]}
    return Corpus([d for d in corpus if id(d) not in drawn]), Corpus([d for d in corpus if id(d) in drawn])


@dataclass(frozen=True, eq=False)
class Named:
    """Pictures with their names.

    Args:
        trained: that were trained on.
        variants: held-out tones of families that were.
        families: held-out families.
    """

    trained: Sequence[Document]
    variants: Sequence[Document]
    families: Sequence[Document]


def score(model: Transfusion, pictures: Named, context: EvalContext) -> SuiteResult:
    """Draw `context.samples` names of each of the three groups at most, and caption as many held-out pictures.

    Raises:
        ValueError: a group is empty.
    """
    groups = {"name": pictures.trained, "tone": pictures.variants, "family": pictures.families}
    if empty := [name for name, group in groups.items() if not len(group)]:
        raise ValueError(f"nothing to measure {', '.join(empty)} on: the data needs tones of skin, and a held-out split")
    asked = {name: _some(group, context.samples, context.seed, name) for name, group in groups.items()}
    known = [document for group in groups.values() for document in group]
    families, images = [family(d.text) for d in known], torch.stack([d.media[-1].tensor() for d in known])
    place = {id(document): index for index, document in enumerate(known)}

    parts = [d for group in asked.values() for d in group]
    progress, total = context.progress, len(parts) + len(asked["tone"]) + len(asked["family"])
    drawing = replace(context, progress=lambda done, _: progress(done, total))
    drawn = generate(model, [caption(d) for d in parts], "emoji", drawing, force=IMAGE)
    pixels = torch.stack([document.media[-1].tensor() for document in drawn])
    coded = [model.codecs.decoded(model.codecs.encoded(d, now=True)).media[-1].tensor() for d in asked["name"] if model.codecs]
    metrics: dict[str, Estimate] = {}
    verdicts = [""] * len(drawn)
    bounds = {"name": (0, len(asked["name"]))}
    bounds["tone"] = (bounds["name"][1], bounds["name"][1] + len(asked["tone"]))
    bounds["family"] = (bounds["tone"][1], len(parts))
    siblings = [[i for i, f in enumerate(families) if f == family(d.text) and tones(known[i].text) <= 1] for d in asked["tone"]]
    judges = {}
    for space in spaces(context.features):
        real, found = space(images), space(pixels)
        judges |= {space.name: space.digest} if space.digest else {}
        for name, (first, last) in bounds.items():
            where = nearest(found[first:last], real, siblings if name == "tone" else None).tolist()
            wanted = [place[id(document)] for document in parts[first:last]]
            same = [a == b for a, b in zip(where, wanted, strict=True)]
            kin = [families[a] == families[b] for a, b in zip(where, wanted, strict=True)]
            right = same if name == "tone" else kin
            metrics[f"{name}_{space.name}"] = Estimate.proportion(sum(right), len(right))
            if name == "name":
                metrics[f"exact_{space.name}"] = Estimate.proportion(sum(same), len(same))
                if coded:
                    back = nearest(space(torch.stack(coded)), real).tolist()
                    metrics[f"coded_{space.name}"] = Estimate.proportion(sum(map(int.__eq__, back, wanted)), len(wanted))
            verdicts[first:last] = [f"{name} {'right' if r else 'wrong'}" for r in right]
    chance = sum(1 / len(group) for group in siblings) / len(siblings)
    metrics["tone_chance"] = Estimate(chance, None, None, len(siblings), "of choosing a tone blindly")
    for name, suffix in (("tone", ""), ("family", "_family")):
        first = len(parts) + (len(asked["tone"]) if name == "family" else 0)
        reading = replace(context, progress=lambda done, _, first=first: progress(first + done, total))
        metrics |= _read(model, asked[name], reading, suffix)
    first, last = bounds["name"]
    patch = next(modality.patch for modality in model.item_modalities if modality.name == IMAGE)
    metrics |= appearance(pixels[first:last], images[[place[id(d)] for d in parts[first:last]]], patch)
    record = make_record("emoji", model, context, metrics, classifiers=judges)
    step = max(len(drawn) // 100, 1)
    shown = tuple((image, d.text, v) for image, d, v in zip(pixels, drawn, verdicts, strict=True))[::step]
    return SuiteResult(record, tuple(drawn), tuple(verdicts), shown)


def _some(documents: Sequence[Document], count: int, seed: int, group: str) -> list[Document]:
    order = rng.generator(rng.key(seed, "emoji", group)).permutation(len(documents))
    return [documents[int(i)] for i in order[:count]]


def _read(model: Transfusion, documents: Sequence[Document], context: EvalContext, suffix: str) -> dict[str, Estimate]:
    prompts = [Document(document.media) for document in documents]
    answers = generate(model, prompts, f"emoji-read{suffix}", context, max_items=0, max_tokens=MAX_TOKENS)
    written, wanted = [a.text.strip() for a in answers], [caption(document) for document in documents]
    metrics = {f"exact_read{suffix}": Estimate.proportion(sum(map(str.__eq__, written, wanted)), len(wanted))}
    try:
        found = Estimate.mean(cider(written, [[text] for text in wanted]), seed=context.seed)
    except ValueError:
        return metrics  # pycocoevalcap is not installed
    return metrics | {f"cider{suffix}": found, f"cider{suffix}_100": found.map(lambda value: 100 * value)}
