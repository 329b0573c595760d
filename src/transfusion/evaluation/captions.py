"""How near captions come to what people wrote: CIDEr."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# contractions are split as the Penn Treebank splits them (do n't, cat 's); hyphens and points inside a word stay
_WORD = re.compile(r"n't\b|'(?:s|m|d|re|ve|ll)\b|\w+?(?=n't\b)|\w+(?:[-.,/]\w+)*")


def tokens(caption: str) -> list[str]:
    """Words of a caption: lower-case, punctuation dropped.

    Like the Penn Treebank tokeniser (-lowerCase) and the list of dropped punctuation that COCO's evaluation uses, without
    Java; unlike it, symbols such as $ and & are dropped too, abbreviations lose their last point, and cannot stays one word.
    """
    return _WORD.findall(caption.lower().replace("’", "'"))


@dataclass(frozen=True)
class Cider:
    """CIDEr-D of each caption, from 0 to 10, and their mean."""

    mean: float
    scores: tuple[float, ...]


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Cider:
    """CIDEr-D (Vedantam et al. 2015) as COCO's evaluation computes it, in its usual scale of 0 to 10.

    Words that every picture's references share weigh nothing, so it compares captions only within one set of pictures.

    Args:
        candidates: a caption of each picture.
        references: what people wrote of each.

    Raises:
        ValueError: pycocoevalcap is not there, fewer than 2 pictures, another number of references, or a picture without one.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} captions but {len(references)} sets of references: give one set a caption")
    if len(candidates) < 2:
        raise ValueError(f"{len(candidates)} captions are too few: CIDEr weighs words over a set of pictures, give at least 2")
    real = [[" ".join(tokens(one)) for one in some] for some in references]
    for number, some in enumerate(real):
        if not any(some):
            raise ValueError(f"picture {number} has no reference with words: give it one, or leave it out")
    try:
        from pycocoevalcap.cider.cider_scorer import CiderScorer
    except ImportError as error:
        raise ValueError("CIDEr needs pycocoevalcap: pip install 'transfusion-kit[eval]'") from error
    scorer = CiderScorer()
    for candidate, some in zip(candidates, real, strict=True):
        scorer += (" ".join(tokens(candidate)), some)
    mean, scores = scorer.compute_score()
    return Cider(float(mean), tuple(map(float, scores)))
