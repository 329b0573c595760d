"""Options of the transformer, each alone and in pairs: each changes the function, keeps the equalities, has gradients, and learns."""

import random
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import nn

from small import IMAGE, SOUND, documents, model, picture
from test_equalities import cached_is_full, entries, many_is_one, numbers, requests, rows
from transfusion import config
from transfusion.api import Transfusion
from transfusion.codec.patchers import LinearPatcherConfig
from transfusion.data.document import Document, Media, Text
from transfusion.diffusion.sampler import Euler
from transfusion.generate.engine import Engine, generate
from transfusion.nn.config import AttentionConfig, TransformerConfig
from transfusion.nn.moe import MoEConfig
from transfusion.nn.transformer import Transformer
from transfusion.recipes import find
from transfusion.run.command_line import parse
from transfusion.run.record import Run

FACTORS: dict[str, dict[str, Any]] = {
    "modality_weights": {"mlp": "mlp", "all": "all"},
    "moe": {"two of four and a shared one": MoEConfig(4, 2), "one of three": MoEConfig(3, 1, shared=False)},
    "alibi_heads": {"some heads": 3, "all heads": 4},
    "soft_cap": {"capped": 2.0},
    "value_residual": {"value residual": True},
    "gated": {"gated": True},
    "laser": {"laser": 15.0},
    "residual": {"hyper": "hyper", "attention": "attention"},
    "long_skips": {"long skips": True},
    "adaln": {"adaln": "width", "told nowhere else": "none"},
    "axial": {"axial": True},
    "norm_order": {"post-norm": "post"},
}
HEADS = {"alibi_heads", "soft_cap", "value_residual", "gated", "laser"}
Choice = dict[str, str]


def built(choice: Choice, *, double: bool = True, **more: Any) -> Transfusion:
    """A model with some factors set, of three layers, its weights random everywhere."""
    values = {factor: FACTORS[factor][level] for factor, level in choice.items()}
    heads = AttentionConfig(**{k: v for k, v in values.items() if k in HEADS})
    transformer = {k: v for k, v in values.items() if k not in HEADS | {"axial", "adaln"}} | {"adaln": "adaln" in choice}
    patcher, axial = LinearPatcherConfig(time=values.get("adaln", "width")), "axial" in choice
    return model(IMAGE, SOUND, double=double, depth=3, attention=heads, patcher=patcher, axial=axial, **transformer, **more)


def forbidden(choice: Choice) -> bool:
    single = "norm_order" in choice and choice.get("moe") == "one of three"
    return single or (choice.get("residual") == "attention" and "long_skips" in choice)


def covering() -> list[Choice]:
    """A few combinations that cover every allowed pair of levels, off included. Greedy: the best of some draws."""
    levels = [(f, level) for f, named in FACTORS.items() for level in (*named, None)]
    left = {frozenset(p) for p in combinations(levels, 2) if p[0][0] != p[1][0]}
    left -= {p for p in left if forbidden({f: level for f, level in p if level})}
    rng, found = random.Random(0), []

    def draw() -> dict[str, str | None]:
        chosen = dict(rng.choice(sorted(left, key=lambda p: sorted(map(str, p)))))
        for factor in rng.sample(list(FACTORS), len(FACTORS)):
            if factor not in chosen:
                choices = [*FACTORS[factor], None]
                allowed = [x for x in choices if not forbidden({f: y for f, y in (chosen | {factor: x}).items() if y})]
                rng.shuffle(allowed)
                chosen[factor] = max(allowed, key=lambda x: sum(frozenset({(factor, x), o}) in left for o in chosen.items()))
        return chosen

    while left:
        best = max((draw() for _ in range(20)), key=lambda c: sum(frozenset(p) in left for p in combinations(c.items(), 2)))
        left -= {frozenset(p) for p in combinations(best.items(), 2)}
        found.append({f: best[f] for f in FACTORS if best[f]})
    return found


SINGLE = [{factor: level} for factor, named in FACTORS.items() for level in named]
PAIRS = covering()


def name(choice: Choice) -> str:
    return ", ".join(choice.values())


def mixed() -> list[Document]:
    sound = Media(picture(7, 3, 6), "sound")
    return [*documents()[:3], Document((sound, Text("and"), Media(picture(8)))), Document((Text("hm"), sound))]


def equalities(m: Transfusion) -> None:
    """Packed = alone, cached = full, many = one."""
    found = entries(m, [mixed()[2], mixed()[3]])
    together = numbers(m(rows(m, [found], 112)))
    alone = [numbers(m(rows(m, [[one]], len(one)))) for one in found]
    assert torch.allclose(together, alone[0] + alone[1], rtol=1e-9, atol=1e-9)
    cached_is_full(m, [mixed()[3]])
    many_is_one(m, [requests(Euler(2))[i] for i in (0, 1)])


def gradients(m: Transfusion) -> None:
    """Every weight has one, but those of experts that no token chose, and of routers whose inputs are not normalised: with such
    large weights their choice is certain."""
    m(rows(m, [entries(m, mixed())], 160)).total(1.0).backward()
    spared = (".experts.", ".router.") if m.config.model.transformer.norm_order == "post" else (".experts.",)
    for one, p in m.named_parameters():
        assert any(part in one for part in spared) or (p.grad is not None and p.grad.isfinite().all() and p.grad.any()), one


def test_pairs_are_covered() -> None:
    levels = [(f, level) for f, named in FACTORS.items() for level in named]
    for one, other in combinations(levels, 2):
        if one[0] != other[0] and not forbidden(dict([one, other])):
            assert any(c.get(one[0]) == one[1] and c.get(other[0]) == other[1] for c in PAIRS), (one, other)
    assert len(PAIRS) < 18


@pytest.mark.parametrize("choice", SINGLE, ids=name)
def test_alone(choice: Choice) -> None:
    """Each option changes the output, and every weight gets a gradient."""
    plain, m = built({}), built(choice)
    with torch.no_grad():  # the weights that both have are the same
        own = dict(plain.named_parameters())
        for one, p in m.named_parameters():
            p.copy_(own.get(one, p))
    batch = rows(m, [entries(m, mixed())], 160)
    one, other = numbers(plain(batch)), numbers(m(batch))
    assert (one - other).abs()[2] > 1e-2 and (one - other).abs()[0] > 1e-2
    gradients(m)


@pytest.mark.parametrize("choice", PAIRS, ids=name)
def test_in_pairs(choice: Choice, unchecked) -> None:
    """Packed, cached and batched passes agree, whatever options are combined."""
    m = built(choice)
    equalities(m)
    gradients(m)


LEARNED = [{}, *SINGLE]


@pytest.mark.parametrize("choice", LEARNED, ids=lambda c: name(c) or "none")
def test_learns(choice: Choice, unchecked) -> None:
    """From the weights that a new model has, the loss on two documents falls to less than half."""
    m = Transfusion(built(choice, double=False).config, built(choice, double=False).vocabulary).train()
    batch = rows(m, [entries(m, mixed()[3:])], 40)
    optimizer = torch.optim.Adam(m.parameters(), 2e-2)
    first = m(batch).total(1.0).item()
    for _ in range(12):
        optimizer.zero_grad()
        m(batch).total(1.0).backward()
        optimizer.step()
    assert m(batch).total(1.0).item() < first / 2


@pytest.mark.parametrize("choice", [PAIRS[0], PAIRS[1], PAIRS[2]], ids=name)
def test_half_precision_generates(choice: Choice) -> None:
    """The engine's copy in bf16 draws and writes with every option; numbers stay finite."""
    m = built(choice, double=False)
    for drawn in generate(Engine(m.network, m.vocabulary, cache_slots=9, dtype=torch.bfloat16), [requests()[0], requests()[3]]):
        assert all(item.tensor().isfinite().all() for item in drawn.media)
    with torch.autocast("cpu", torch.bfloat16):
        loss = m(rows(m, [entries(m, mixed())], 160)).total(1.0)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in m.parameters())


def test_every_option_survives_configuration_and_the_command_line() -> None:
    run = find("digits").run()
    given = "--model.transformer.modality_weights all --model.transformer.moe.num_experts 4 --model.transformer.moe.top_k 1 --model.transformer.attention.alibi_heads 2"
    given += " --model.transformer.attention.soft-cap 50 --model.transformer.attention.value-residual True --model.transformer.attention.gated True"
    given += " --model.transformer.attention.laser 15 --model.transformer.residual hyper --model.transformer.num-streams 2 --model.axial True"
    given += " --model.transformer.long-skips True --model.transformer.adaln True --model.transformer.dropout 0.1 --model.patcher.time none"
    found = parse(run, [*given.split(), "--model.coordinates.order", "shared"], "x")
    transformer = replace(
        run.model.transformer,
        modality_weights="all",
        moe=MoEConfig(4, 1),
        attention=AttentionConfig(alibi_heads=2, soft_cap=50.0, value_residual=True, gated=True, laser=15.0),
        residual="hyper",
        num_streams=2,
        long_skips=True,
        adaln=True,
        dropout=0.1,
    )
    coordinates = replace(run.model.coordinates, order="shared")
    patcher = LinearPatcherConfig(time="none")
    assert found.model == replace(run.model, transformer=transformer, patcher=patcher, axial=True, coordinates=coordinates)
    assert config.from_yaml(Run, config.to_yaml(found)) == found


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"residual": "highway"}, "plain, hyper or attention"),
        ({"residual": "hyper", "num_streams": 0}, "num_streams must be at least 1"),
        ({"residual": "attention", "long_skips": True, "depth": 4}, 'use long_skips with "plain"'),
        ({"depth": 2, "long_skips": True}, "depth of at least 3, not 2"),
        ({"dropout": 1.0}, r"in \[0, 1\), not 1"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any], message: str, unchecked) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**wrong)


def test_contradicting_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs transformer\.adaln"):
        model(IMAGE, patcher=LinearPatcherConfig(time="none"))
    with pytest.raises(ValueError, match="alibi_heads is 2, more than num_heads 1"):
        TransformerConfig(num_heads=1, attention=AttentionConfig(alibi_heads=2))
    with pytest.raises(ValueError, match="between 0"):
        AttentionConfig(laser=100.0)
    with pytest.raises(ValueError, match=r"between 1 and moe\.num_experts"):
        MoEConfig(2, top_k=3)
    with pytest.raises(ValueError, match="aux_loss_weight must be a finite number, 0 or more"):
        MoEConfig(2, aux_loss_weight=-1.0)


def test_nothing_is_added_where_nothing_is_asked_for() -> None:
    """The default model has the weights and names that it always had."""
    parts = {"attention_norm", "mlp_norm", "attention.qkv", "attention.out", "attention.q_norm", "attention.k_norm"}
    parts |= {"mlp.gate_up", "mlp.down"}
    expected = {f"blocks.{i}.{part}.weight" for i in range(2) for part in parts} | {"norm.weight"}
    assert set(model().network.transformer.state_dict()) == expected
    assert {n.split(".")[0] for n in model().network.state_dict()} == {"embed", "transformer", "head", "patchers"}


# ---- what single options are --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [{"residual": "hyper"}, {"long_skips": "long skips"}, {"moe": "one of three"}], ids=name)
def test_begins_as_what_it_stands_for(choice: Choice) -> None:
    """At initialisation hyper-connections and long skips are the plain residual."""
    torch.manual_seed(0)
    m = Transfusion(built(choice).config, built(choice).vocabulary).double()
    plain = Transfusion(built({}).config, built({}).vocabulary).double()
    own = {n: p for n, p in m.named_parameters() if n in dict(plain.named_parameters())}
    plain.load_state_dict({**plain.state_dict(), **own})
    batch = rows(m, [entries(m, mixed())], 160)
    one, other = (numbers(x(batch)) for x in (plain, m))
    assert torch.allclose(one, other, rtol=1e-4) == ("moe" not in choice)


def test_adaln_leaves_text_alone_and_begins_as_identity() -> None:
    m = built({"adaln": "adaln"})
    batch = rows(m, [entries(m, [Document((Text("only text"),))])], 24)
    before = numbers(m(batch))
    with torch.no_grad():
        for n, p in m.named_parameters():
            if "adaln" in n or "network.time_embedding" in n:
                p.normal_()
    assert torch.equal(numbers(m(batch)), before)
    new = Transfusion(m.config, m.vocabulary)
    assert all(not p.any() for n, p in new.named_parameters() if "adaln" in n)


def test_long_skips_join_the_halves() -> None:
    for depth, skips in ((3, 1), (4, 1), (5, 2), (8, 3)):
        blocks: Any = Transformer(TransformerConfig(width=8, depth=depth, num_heads=1, long_skips=True)).blocks
        assert [block.saves_skip for block in blocks] == [True] * skips + [False] * (depth - skips)
        assert [block.skip is not None for block in blocks] == [False] * (depth - skips) + [True] * skips
    m = model(depth=5, long_skips=True)
    assert [block.skip is not None for block in m.network.transformer.blocks] == [False, False, False, True, True]


def test_initial_scale_of_what_is_written_into_the_stream() -> None:
    """Projections into the residual stream start smaller by 1 / sqrt(2 depth), in every modality and expert."""
    chosen = Transfusion(
        built({"modality_weights": "all", "moe": "two of four and a shared one"}, double=False).config,
        built({}).vocabulary,
    )
    found = {n: p for n, p in chosen.named_parameters() if n.endswith(("attention.out.weight", ".down.weight"))}
    assert len(found) == 3 * 3 * (1 + 5)
    for p in found.values():
        assert p.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.15)


def test_dropout_only_in_training_and_only_if_asked_for() -> None:
    m = model(dropout=0.5)
    batch = rows(m, [entries(m, documents())], 160)
    assert torch.equal(numbers(m(batch)), numbers(model()(batch)))
    m.train()
    torch.manual_seed(0)
    one, other = numbers(m(batch)), numbers(m(batch))
    torch.manual_seed(0)
    assert not torch.equal(one, other) and torch.equal(one, numbers(m(batch)))
    assert not any(isinstance(part, nn.Dropout) for part in model().modules())
