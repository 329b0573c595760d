"""The choice of sizes for a budget: more compute buys finer and larger, more pictures and captions coarser and smaller."""

import itertools
from dataclasses import replace

import pytest

from transfusion.config import ConfigError
from transfusion.data.survey import Spread, Survey
from transfusion.recipes import find
from transfusion.run import choice
from transfusion.run.choice import Choices, Extra, pace, picture_cost, resolution, seconds, sizes, spoken, timed
from transfusion.run.command_line import parse_run
from transfusion.run.record import Run

MANY = Survey(
    pictures=3000,
    documents=3000,
    sides=Spread(64, 64, 64),
    widest=1.0,
    colour=True,
    transparent=0,
    deep=0,
    inks=0,
    moving=0,
    repeated=0,
    captioned=3000,
    uncaptioned=(),
    captions=3000,
    words=Spread(1, 4, 11),
    tokens=Spread(3, 7, 18),
    items=Spread(1, 1, 1),
    names_sides=0.0,
)


def finish(*words: str):
    return lambda choices: parse_run(choices.apply(find("pictures").run()), words, "x", budget=True)


def cost(run: Run) -> float:
    return picture_cost(run, MANY, None)[0]


def test_times() -> None:
    assert [seconds(text) for text in ("90s", "20m", "1.5h", "2d")] == [90, 1200, 5400, 172_800]
    for wrong in ("20", "m", "-3m", "20 minutes", "nanm", "infh", "0s"):
        with pytest.raises(ConfigError, match=r"write 90s, 20m, 1\.5h or 2d"):
            seconds(wrong)
    assert (spoken(45), spoken(150), spoken(1200), spoken(3 * 3600)) == ("45 s", "2.5 min", "20 min", "3.0 h")


def test_every_rung_costs_more_than_the_one_below() -> None:
    costs = [cost(finish()(choice.rung(MANY, rung, None))) for rung in choice.LADDER]
    assert all(b > 1.2 * a for a, b in itertools.pairwise(costs))


def test_more_compute_buys_more_and_captions_are_seen_often_enough() -> None:
    found = [sizes(MANY, finish(), total, None) for total in (1e11, 1e13, 1e14, 1e15, 1e17)]
    costs = [cost(finish()(each)) for each in found]
    assert costs == sorted(costs) and costs[-1] > 50 * costs[0]
    for total, each in zip((1e13, 1e14, 1e15, 1e17), costs[1:], strict=True):
        assert each * choice.demand(MANY) <= total or each == costs[0]
    # a set of few captions needs fewer passes, one of few pictures no more than the least number
    few, next_rung = replace(MANY, captions=10), cost(finish()(choice.rung(MANY, choice.LADDER[4], None)))
    total = next_rung * (choice.demand(few) + choice.demand(MANY)) / 2
    assert cost(finish()(sizes(few, finish(), total, None))) == next_rung > cost(finish()(sizes(MANY, finish(), total, None)))
    assert choice.demand(replace(MANY, pictures=40, captions=40)) == choice.LEAST


def test_resolution_is_no_more_than_the_pictures_have() -> None:
    for median, side in ((28, 32), (64, 64), (300, 128)):
        survey = replace(MANY, sides=Spread(20, median, 400))
        assert resolution(survey, 16, latents=True) == side
    assert resolution(replace(MANY, sides=Spread(300, 300, 300)), 8, latents=False) == 64
    assert resolution(MANY, 4, latents=False) == 32


def test_settings_win_over_depth_size_budget_and_preset() -> None:
    chosen = Choices(side=32, grid=4, channels=3, depth=3, row_length=512, rows=2, steps=100, warmup=5)
    run = finish()(chosen)
    assert run.model.transformer.depth == 3 and run.model.modalities[0].patch == (8, 8) and run.trainer.steps == 100
    small = finish("--size", "0.16B")(chosen).model.transformer
    assert (small.width, small.depth) == (768, 16)
    deep = finish("--size", "0.16B", "--depth", "6")(chosen).model.transformer
    assert (deep.width, deep.depth, deep.num_heads) == (256, 6, 8)
    set_ = finish("--size", "0.16B", "--depth", "6", "--model.transformer.depth", "2")(chosen).model.transformer
    assert (set_.width, set_.depth) == (256, 2)
    paper = finish("--preset", "paper", "--trainer.steps", "1000")(chosen)
    assert paper.trainer.steps == 1000 and paper.model.transformer.depth == 3 and paper.optimizer.kind == "adamw"
    assert paper.optimizer.warmup == 16 and not paper.model.transformer.qk_norm
    with pytest.raises(ConfigError, match="depth must be a whole number"):
        finish("--depth", "six")(chosen)
    with pytest.raises(ConfigError, match="--depth must be 1 to 256"):
        finish("--depth", "0")(chosen)


def test_augmentation_in_one_word() -> None:
    run = finish("--augment", "flip,crop")(Choices())
    assert run.transform.flip and run.transform.crop == 1.125
    assert finish("--preset", "paper", "--augment", "flip")(Choices()).transform.flip
    with pytest.raises(ConfigError, match="did you mean 'flip'"):
        finish("--augment", "flop")(Choices())


def test_rows_hold_the_longest_caption_and_steps_fill_the_time() -> None:
    total = 1e14
    found = pace(sizes(MANY, finish(), total, None), MANY, finish(), total, None)
    assert found.row_length == 512 and found.rows is not None and found.rows >= 2
    words = replace(MANY, tokens=Spread(1, 225, 600))
    assert (pace(found, words, finish(), total, None).row_length or 0) >= 600 + 64
    several = replace(MANY, items=Spread(1, 2, 9))
    assert (pace(found, several, finish(), total, None).row_length or 0) >= 9 * 64
    run = finish()(timed(found, finish(), 0.5, 1200))
    assert run.trainer.steps == int(0.85 * 1200 / 0.5) and run.trainer.sample_every == 200 and run.checkpoint.every == 120
    short = finish()(timed(found, finish(), 30.0, 60))
    assert short.trainer.steps == choice.MIN_STEPS and short.optimizer.warmup < short.trainer.steps
    wide = pace(replace(found, depth=12), MANY, finish(), total, None)
    assert wide.lr == pytest.approx(3e-3 * 0.5**0.5, rel=1e-3)


def test_dear_sheets_are_few_and_in_the_time() -> None:
    """What sheets cost is that of the sampler's network calls, and what they take is not there for steps."""
    found = choice.rung(MANY, choice.LADDER[0], None)
    usual, paper = finish()(found), finish("--preset", "paper")(found)
    ratio = choice.drawing_cost(paper, MANY, None) / choice.drawing_cost(usual, MANY, None)
    assert 10 <= ratio < 15  # ten times the steps, of a network with wider layers
    extra = Extra.of(usual, MANY, None, 1e10)
    assert extra.sheet > 20 * extra.drawn > 0 and extra.read > 0
    dear = Extra(sheet=10.0, drawn=0.5, read=1.0)
    chosen = timed(found, finish(), 0.1, 60, dear, 3000)
    run = finish()(chosen)
    assert run.report.images == 12 and run.trainer.sample_every >= run.trainer.steps // 2
    assert run.trainer.steps * 0.1 + dear.total(run, 3000, 0.1) == pytest.approx(60, abs=1)
    own = finish("--report.images", "40")
    run = own(timed(found, own, 0.1, 60, dear, 3000))
    assert run.trainer.steps * 0.1 + dear.total(run, 3000, 0.1) == pytest.approx(60, abs=1)
    given = timed(replace(found, steps=600), finish(), 3.0, None, Extra(sheet=4.0), 3000)
    assert (given.steps, given.sample_every, given.report_images) == (600, 33, None)


def test_an_autoencoder_comes_with_time_and_pictures() -> None:
    run = finish()(Choices())
    assert choice.wants_autoencoder(run, MANY, 1200, ())
    assert not choice.wants_autoencoder(run, MANY, 600, ())
    assert not choice.wants_autoencoder(run, replace(MANY, pictures=100), 1200, ())
    assert not choice.wants_autoencoder(run, replace(MANY, sides=Spread(28, 28, 28)), 1200, ())
    for fixed in ("autoencoder", "init"):
        assert not choice.wants_autoencoder(run, MANY, 1200, {fixed})
