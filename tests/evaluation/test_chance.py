"""Measures that guessing would reach are named."""

from transfusion.evaluation.chance import no_better_than_chance
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.preference import advice


def test_shares_within_reach_of_guessing_are_said_to_be() -> None:
    metrics = {
        "agreement": Estimate.proportion(52, 500),
        "accuracy": Estimate.proportion(9, 100),
        "caption_preference": Estimate.proportion(26, 50),
        "recall": Estimate.proportion(1, 100),
    }
    assert no_better_than_chance(metrics, 10) == [
        "agreement 0.104 (0.080 to 0.134), of 500, is no better than chance: guessing among 10 classes gives 0.100",
        "accuracy 0.090 (0.048 to 0.162), of 100, is no better than chance: guessing among 10 classes gives 0.100",
        advice(metrics["caption_preference"]),
    ]
    assert len(no_better_than_chance(metrics, 0)) == 1


def test_shares_above_it_are_not() -> None:
    """By the interval: 14 % of 500 is above one in ten, 14 % of 50 is not."""
    good = {"text_to_image_agreement": Estimate.proportion(70, 500), "image_to_text_accuracy": Estimate.proportion(350, 360)}
    assert not no_better_than_chance(good, 10)
    assert len(no_better_than_chance({"accuracy": Estimate.proportion(7, 50)}, 10)) == 1
