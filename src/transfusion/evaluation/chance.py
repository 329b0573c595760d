"""Chance: which measures are no better than guessing, said in words."""

from collections.abc import Mapping

from transfusion.evaluation.estimate import Estimate, short
from transfusion.evaluation.preference import advice

OF_CLASSES = {
    "agreement",
    "accuracy",
    "reading_accuracy",
    "text_to_image_agreement",
    "text_to_image_agreement_held_out_paraphrases",
    "image_to_text_accuracy",
}
"""Shares of right classes: guessing gives one in as many as there are classes."""
OF_PAIRS = {"caption_preference", "caption_preference_swapped"}
"""Shares of pairs that are ordered rightly: guessing gives a half."""


def no_better_than_chance(metrics: Mapping[str, Estimate], classes: int, items: str = "pictures") -> list[str]:
    """A sentence for each share whose 95 % interval reaches down to what guessing gives.

    Args:
        classes: number of classes that captions name; 0 where they name none.
        items: what is captioned.
    """
    sentences = []
    for name, metric in metrics.items():
        chance = 0.5 if name in OF_PAIRS else 1 / classes if name in OF_CLASSES and classes else None
        if chance is None or metric.low is None or metric.low > chance:
            continue
        if name == "caption_preference":
            sentences.append(advice(metric, items=items))
            continue
        by = "" if name in OF_PAIRS else f" among {classes} classes"
        words = f"{name.replace('_', ' ')} {metric}, of {metric.count:,}, is no better than chance: guessing{by} gives"
        sentences.append(f"{words} {short(chance)}")
    return sentences
