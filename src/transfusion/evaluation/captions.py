"""CIDEr: captions and human references in, their n-gram similarity out."""

import re
from collections.abc import Sequence

# contractions are split as in the Penn Treebank (do n't, cat 's); hyphens and points inside a word stay
_WORD = re.compile(r"n't\b|'(?:s|m|d|re|ve|ll)\b|\w+?(?=n't\b)|\w+(?:[-.,/]\w+)*")


def tokens(caption: str) -> list[str]:
    """Words of a caption: lower-case, punctuation dropped.

    Follows the Penn Treebank tokenizer (-lowerCase) and the punctuation list of COCO's evaluation, without Java. Differences:
    symbols such as $ and & are dropped too, abbreviations lose their last point, and "cannot" stays one word.
    """
    return _WORD.findall(caption.lower().replace("’", "'"))


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, ...]:
    """CIDEr-D of each caption (Vedantam et al. 2015) as COCO's evaluation computes it, from 0 to 10; a set has their mean.
    Words in every image's references weigh nothing, so scores compare only within one set of images.

    Args:
        candidates: a caption for each image.
        references: human captions of each image.

    Raises:
        ValueError: pycocoevalcap is not installed, fewer than 2 images, different lengths, or an image without references.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} captions but {len(references)} sets of references: give one set a caption")
    if len(candidates) < 2:
        raise ValueError(f"{len(candidates)} captions are too few: CIDEr weighs words over a set of images, give at least 2")
    tokenized = [[" ".join(tokens(caption)) for caption in captions] for captions in references]
    for number, captions in enumerate(tokenized):
        if not any(captions):
            raise ValueError(f"image {number} has no reference with words: give it one, or leave it out")
    try:
        from pycocoevalcap.cider.cider_scorer import CiderScorer
    except ImportError as error:
        raise ValueError("CIDEr needs pycocoevalcap: pip install 'transfusion-kit[eval]'") from error
    scorer = CiderScorer()
    for candidate, captions in zip(candidates, tokenized, strict=True):
        scorer += (" ".join(tokens(candidate)), captions)
    _, scores = scorer.compute_score()
    return tuple(map(float, scores))
