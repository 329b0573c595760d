"""Auxiliary losses: their zeros, their gradients, and independence of packing."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from small import IMAGE, SOUND, documents, drawn, model, picture
from transfusion import config
from transfusion.api import Transfusion
from transfusion.codec.patchers import UNetPatcherConfig
from transfusion.data.batch import collate
from transfusion.data.document import CLEAN, Document, Media, Text
from transfusion.data.tokenize import TokenSequence, tokenize_document
from transfusion.diffusion.process import PAPER, Diffusion, Prediction
from transfusion.diffusion.schedule import Cosine, LinearBetas, LinearInterpolant
from transfusion.model import auxiliary
from transfusion.model.auxiliary import AuxiliaryLossConfig, ForwardPass, draw_mask
from transfusion.model.losses import Losses, Mean
from transfusion.nn.attention import AttentionMetadata
from transfusion.nn.moe import MoEConfig
from transfusion.recipes import digits
from transfusion.run.command_line import parse

ALL = AuxiliaryLossConfig(consistency=0.5, reconstruction=0.3, representation=0.2)
COMBINATIONS = [
    Diffusion(schedule, kind, kind)
    for schedule in (LinearInterpolant(), Cosine(), LinearBetas())
    for kind in ("x0", "eps", "v", "velocity")
    if (schedule, kind) != (LinearInterpolant(), "eps")
]


def name(diffusion: Diffusion) -> str:
    return f"{diffusion.schedule.kind}-{diffusion.prediction}"


def other(m: Transfusion) -> Transfusion:
    """A teacher with other weights."""
    teacher = copy.deepcopy(m)
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return teacher


def of(m: Transfusion, docs: list, **kw: object) -> dict[str, Mean]:
    return {term.name: term.mean for term in m(m.batch(docs), **kw).auxiliary}  # type: ignore[arg-type]


class Decoder(nn.Module):
    """Twice as large and not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x.to(self.up.weight.dtype)).tanh()

    decode = forward


# ---- weights and sums ---------------------------------------------------------------------------------------------------


def test_auxiliary_losses_leave_text_and_media_loss_unchanged() -> None:
    plain, on = model(double=True), model(double=True, auxiliary=ALL)
    extra = on.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert extra and all(n.startswith("network.representation.") for n in extra)
    off, all_on = plain(plain.batch(documents())), on(on.batch(documents()), teacher=other(on))
    assert off.auxiliary == () and [t.name for t in all_on.auxiliary] == ["consistency", "reconstruction", "representation"]
    assert torch.equal(off.text.sum, all_on.text.sum) and torch.equal(off.media.sum, all_on.media.sum)
    for term in all_on.auxiliary:
        assert term.mean.sum > 0.01 and term.mean.count == off.media.count
    weighted = sum(t.weight * t.mean.value for t in all_on.auxiliary)
    assert torch.allclose(all_on.total(5.0), off.total(5.0) + weighted)


OPTIONS: dict[str, dict] = {
    "default": {},
    "unet": {"patcher": UNetPatcherConfig(channels=8)},
    "mixture of transformers": {"modality_weights": "all"},
    "hyper-connections, adaLN": {"residual": "hyper", "adaln": True},
    "depth attention, axial": {"residual": "attention", "axial": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_packing_and_accumulation_leave_auxiliary_losses_unchanged(options: dict) -> None:
    """Documents with several, dual, private, weighted and clean items; float64 to 1e-9."""
    m = model(double=True, auxiliary=ALL, **options)
    teacher, decoders = other(m), {"image": Decoder().double()}
    docs = [
        *documents(),
        Document((Media(picture(11), use="both"), Text("x"), Media(picture(12), weight=0.5))),
        Document((Media(picture(13), times=CLEAN), Media(picture(14)))),
    ]
    tokenized = [tokenize_document(one, m.vocabulary, m.config.model.coordinates) for one in docs]
    entries = [one.load(lambda item, i=i: 10 * i + item) for i, one in enumerate(tokenized)]

    def run(*rows: list[TokenSequence]) -> Losses:
        length = max(sum(len(e) for e in row) for row in rows)
        return m(collate(list(rows), length, m.vocabulary, 2), teacher=teacher, decoders=decoders)

    together, alone = run(entries[:4], entries[4:]), [run([one]) for one in entries]
    for i, term in enumerate(together.auxiliary):
        assert (term.mean.sum - sum(one.auxiliary[i].mean.sum for one in alone)).abs() < 1e-9 and term.mean.count == 9
    halves = [run(entries[:4]), run(entries[4:])]
    added = halves[0] + halves[1]
    parts = halves[0].total(5.0, added) + halves[1].total(5.0, added)
    assert torch.allclose(parts, together.total(5.0)) and len(added.detached().auxiliary) == 3


def test_auxiliary_losses_are_zero_without_items() -> None:
    m = model(auxiliary=ALL)
    for docs in ([["only text"]], [[Media(picture(1), times=CLEAN), "x"]]):
        found = of(m, docs, teacher=other(m), decoders={"image": Decoder()})
        assert len(found) == 3 and all(mean.sum == 0 and mean.count == 0 and mean.value == 0 for mean in found.values())


def test_training_needs_a_teacher_and_evaluation_does_not() -> None:
    m = model(auxiliary=ALL)
    assert list(of(m, documents())) == ["reconstruction"]
    with pytest.raises(ValueError, match="need a teacher, the model under averaged weights"):
        m.train().loss(documents())
    assert m.loss(documents(), teacher=m.create_ema()).requires_grad
    only = model(auxiliary=AuxiliaryLossConfig(reconstruction=1.0)).train()
    assert only.loss(documents()).requires_grad


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"consistency": -1.0}, "consistency is a weight"),
        ({"reconstruction": float("nan")}, "reconstruction is a weight"),
        ({"delta": 1.0}, "delta is a difference of times"),
        ({"student_depth": 0.8}, "the teacher's no less"),
        ({"teacher_depth": 1.1}, "fractions of the depth"),
        ({"mask_ratio": 1.0}, "mask_ratio is a fraction"),
    ],
)
def test_auxiliary_settings_out_of_range_raise(bad: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AuxiliaryLossConfig(**bad)


def test_auxiliary_settings_round_trip_through_config_and_command_line() -> None:
    line = ["--model.auxiliary.consistency", "0.1", "--model.auxiliary.mask_ratio", "0.5"]
    run = parse(digits.run(), line, "transfusion train digits")
    assert run.model.auxiliary == AuxiliaryLossConfig(consistency=0.1, mask_ratio=0.5) and run.model.auxiliary.needs_ema_teacher
    assert config.from_plain(AuxiliaryLossConfig, config.to_plain(ALL)) == ALL and not AuxiliaryLossConfig().needs_ema_teacher


# ---- consistency --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("diffusion", COMBINATIONS, ids=name)
def test_consistency_is_zero_only_against_the_same_velocity(diffusion: Diffusion) -> None:
    """The same network at the same time gives 0; another network, or an earlier time, does not."""
    same = model(double=True, diffusion=diffusion, auxiliary=AuxiliaryLossConfig(consistency=1.0, delta=0.0))
    assert of(same, documents(), teacher=same)["consistency"].sum < 1e-18
    assert of(same, documents(), teacher=other(same))["consistency"].value > 1e-3
    apart = model(double=True, diffusion=diffusion, auxiliary=AuxiliaryLossConfig(consistency=1.0, delta=0.05))
    value = of(apart, documents(), teacher=apart)["consistency"].value
    assert 1e-6 < value < float("inf")


def made(diffusion: Diffusion, at: Tensor, off: float = 0.0) -> tuple[ForwardPass, Tensor]:
    """A batch of pictures at these times with exact predictions plus `off`, and the clean values."""
    m = model(double=True, diffusion=diffusion)
    docs = [[Media(picture(i), times=(t, t), noise=picture(i + 50))] for i, t in enumerate(at.tolist())]
    batch = m.batch(docs)
    batch = replace(batch, media=tuple(replace(g, loss_weights=torch.ones_like(g.loss_weights)) for g in batch.media))
    (group,), (noisy,) = batch.media, m.network.add_noise(batch)
    assert noisy.noise is not None
    values, eps = group.values.double(), noisy.noise.double()
    t = noisy.times.double()
    noisy = replace(noisy, times=t, latents=diffusion.add_noise(values, eps, t), noise=eps)
    batch = replace(batch, media=(replace(group, values=values),))
    prediction = diffusion.target(diffusion.prediction, values, eps, noisy.times) + off
    metadata = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
    return ForwardPass(batch, metadata, [noisy], [prediction]), values


class ExactTeacher:
    """A teacher with exact predictions that records its input."""

    def __init__(self, diffusion: Diffusion, values: Tensor, eps: Tensor) -> None:
        self.diffusion, self.values, self.eps = diffusion, values, eps

    def hidden(self, tokens, positions, media, *, metadata=None, layers=None):
        (self.shown,) = media
        return tokens.new_zeros(tokens.numel(), 1), [None]

    def predict(self, h, media, skips):
        return [self.diffusion.target(self.diffusion.prediction, self.values, self.eps, media[0].times)]


@pytest.mark.parametrize("diffusion", [d for d in COMBINATIONS if d.schedule == LinearInterpolant()], ids=name)
def test_exact_predictions_are_consistent_at_every_time(diffusion: Diffusion) -> None:
    """On the linear path the velocity is constant. The teacher reads the same noise at a smaller t."""
    at = torch.tensor([0.0, 0.005, 0.04, 0.5, 0.99, 1.0])
    passed, values = made(diffusion, at)
    (noised,) = passed.media
    assert noised.noise is not None
    teacher = ExactTeacher(diffusion, values, noised.noise)
    mean = auxiliary.consistency_loss(0.02, diffusion, passed, teacher)
    assert mean.count == 6 and mean.sum < 1e-12
    s = (noised.times - 0.02).clamp_min(0)
    assert torch.equal(teacher.shown.times, s)
    assert torch.equal(teacher.shown.latents, diffusion.add_noise(values, noised.noise, s))
    wrong, _ = made(diffusion, at, off=0.1)
    assert 1e-3 < auxiliary.consistency_loss(0.02, diffusion, wrong, teacher).sum < 6 * (0.1 / 0.05) ** 2 + 1e-6


# ---- reconstruction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("diffusion", COMBINATIONS, ids=name)
def test_exact_predictions_reconstruct_at_every_time(diffusion: Diffusion, decoded: bool) -> None:
    decoder = Decoder().double() if decoded else None
    at = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0])
    right, _ = made(diffusion, at)
    mean = auxiliary.reconstruction_loss(diffusion, right, [decoder])
    assert mean.count == 5 and mean.sum < 1e-12
    wrong, _ = made(diffusion, at, off=0.1)
    assert 1e-5 < auxiliary.reconstruction_loss(diffusion, wrong, [decoder]).sum < 100


def test_reconstruction_compares_decoded_pictures() -> None:
    diffusion, decoder = Diffusion(), Decoder().double()
    passed, values = made(diffusion, torch.tensor([0.3, 0.7]), off=0.2)
    expected = (decoder(values + 0.2) - decoder(values)).square().flatten(1).mean(1).sum()
    assert torch.allclose(auxiliary.reconstruction_loss(diffusion, passed, [decoder]).sum, expected)
    latents = auxiliary.reconstruction_loss(diffusion, passed, [None]).sum
    assert latents.item() == pytest.approx(2 * 0.04)


@pytest.mark.parametrize("form", ["module", "method", "lambda", "partial"])
def test_reconstruction_gradient_passes_through_the_frozen_decoder(form: str) -> None:
    m, decoder = model(auxiliary=AuxiliaryLossConfig(reconstruction=1.0)), Decoder()
    forms = {
        "module": decoder,
        "method": decoder.decode,
        "lambda": lambda x: 2 * decoder(x),
        "partial": partial(Decoder.decode, decoder),
    }
    given = forms[form]
    of(m, [["a", picture(1)]], decoders={"image": given})["reconstruction"].sum.backward()
    through = {n: p.grad for n, p in m.named_parameters()}
    assert all(p.grad is None and p.requires_grad for p in decoder.parameters())
    for part in ("patchers.image.proj_out.weight", "transformer.blocks.0.attention.qkv.weight", "embed.weight"):
        grad = through[f"network.{part}"]
        assert grad is not None and grad.abs().sum() > 0
    assert m.network.head.weight.grad is None  # nothing that only the language loss needs
    with pytest.raises(ValueError, match="stops gradients"):
        of(m, [["a", picture(1)]], decoders={"image": torch.no_grad()(decoder.decode)})
    with pytest.raises(ValueError, match="stops gradients"):
        of(m, [["a", picture(1)]], decoders={"image": lambda x: decoder(x.detach())})


def test_decoded_error_has_the_gradient_of_the_plain_error() -> None:
    decoder, estimate = Decoder().double(), picture(1, 3, 1, 4, 4).double().requires_grad_()
    clean, weights = picture(2, 3, 1, 4, 4).double(), torch.tensor([1.0, 0.5, 2.0]).double()
    found = auxiliary.decoded_error(decoder, estimate, clean)
    plain = (decoder(estimate) - decoder(clean)).square().flatten(1).mean(1)
    assert torch.equal(found, plain)
    one, other = (torch.autograd.grad((error * weights).sum(), estimate)[0] for error in (found, plain))
    assert torch.allclose(one, other) and one.abs().sum() > 0
    with torch.no_grad():
        assert torch.equal(auxiliary.decoded_error(decoder, estimate, clean), plain)


def test_reconstruction_without_a_decoder_compares_latents() -> None:
    m = model(IMAGE, SOUND, auxiliary=AuxiliaryLossConfig(reconstruction=1.0), double=True)
    plain, absent = of(m, documents()), of(m, documents(), decoders={"sound": Decoder()})
    assert torch.equal(plain["reconstruction"].sum, absent["reconstruction"].sum)


# ---- representation -----------------------------------------------------------------------------------------------------


def seeing(**kw: float) -> Transfusion:
    return model(double=True, auxiliary=AuxiliaryLossConfig(representation=1.0, **kw), depth=4)


def test_representation_loss_is_zero_for_equal_layers(monkeypatch) -> None:
    """With every slot seen and nothing between them but a positive factor: 0. Otherwise above 0, and 2 at most."""
    m = seeing(student_depth=0.5, teacher_depth=0.5, mask_ratio=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(auxiliary.RepresentationHead, "forward", lambda self, x: 3 * x)
        assert of(m, documents(), teacher=m)["representation"].sum.abs() < 1e-12
        for different in (
            seeing(student_depth=0.25, teacher_depth=0.5, mask_ratio=0.0),
            seeing(student_depth=0.5, teacher_depth=0.5),
        ):
            assert of(different, documents(), teacher=different)["representation"].value > 1e-3
        assert of(m, documents(), teacher=other(m))["representation"].value > 1e-4
    assert 0 < of(m, documents(), teacher=m)["representation"].value < 2


def test_teacher_layer_is_deeper_than_the_students() -> None:
    found = [auxiliary.layer_indices(AuxiliaryLossConfig(), count) for count in (1, 2, 3, 4, 10)]
    assert found == [(0, 0), (0, 1), (0, 1), (0, 2), (2, 6)]
    assert auxiliary.layer_indices(AuxiliaryLossConfig(student_depth=0.9, teacher_depth=1.0), 2) == (0, 1)
    assert auxiliary.layer_indices(AuxiliaryLossConfig(student_depth=0.5, teacher_depth=0.5), 4) == (1, 1)


def test_representation_gradient_reaches_the_early_layers_only() -> None:
    m = seeing(student_depth=0.5, teacher_depth=0.75)
    teacher = other(m)
    of(m, documents(), teacher=teacher)["representation"].sum.backward()
    grads = {n.removeprefix("network."): p.grad for n, p in m.named_parameters()}
    early = [
        n
        for n in grads
        if n.startswith(("transformer.blocks.0", "transformer.blocks.1", "representation", "patchers.image.proj_in"))
    ]
    assert {"representation.mask_vector", "representation.first.weight"} <= set(early)
    for one in early:
        grad = grads[one]
        assert grad is not None and grad.abs().sum() > 0, one
    late = [n for n in grads if n.startswith(("transformer.blocks.2", "transformer.blocks.3", "head"))]
    assert late and all(grads[n] is None for n in late)
    assert all(p.grad is None for p in teacher.parameters())


def test_representation_pass_does_not_balance_experts() -> None:
    """The routers' gradient from the balance alone is that of a model without this loss."""
    found, state = [], {}
    for one in (AuxiliaryLossConfig(), AuxiliaryLossConfig(representation=1e-9)):
        m = model(double=True, auxiliary=one, depth=3, moe=MoEConfig(4, 1, aux_loss_weight=1.0)).train()
        state = state or m.state_dict()
        m.load_state_dict(state, strict=False)
        losses = m(m.batch(documents()), **({"teacher": other(m)} if one.needs_ema_teacher else {}))
        (losses.total(1.0) * 1e-9).backward()
        found.append(torch.cat([p.grad.flatten() for n, p in m.named_parameters() if "router" in n and p.grad is not None]))
    assert found[0].any() and (found[0] - found[1]).abs().max() < 1e-9 * found[0].abs().max()


def test_masked_slots_are_drawn_by_the_items_key() -> None:
    m = seeing()
    docs = [[drawn(i, 1, 4, 4) for i in range(6)], [Media(picture(9), times=CLEAN), Media(picture(1), weight=0.0)]]
    (group,) = m.batch(docs).media
    hidden = draw_mask(group, 0.25)
    assert hidden[:6].sum(1).tolist() == [1] * 6 and not hidden[6:].any() and torch.equal(hidden, draw_mask(group, 0.25))
    assert len({tuple(row.tolist()) for row in hidden[:6]}) > 1
    assert torch.equal(draw_mask(replace(group, keys=group.keys.flip(0), loss_weights=torch.ones(8)), 0.5).flip(0)[:6],
                       draw_mask(replace(group, loss_weights=torch.ones(8)), 0.5)[:6])  # fmt: skip
    (again,) = m.batch(docs[:1]).media
    assert torch.equal(draw_mask(again, 0.25), hidden[:6])


def test_masked_slots_do_not_reach_the_transformer() -> None:
    """Two pictures that differ only in masked slots give the student the same states."""
    m = seeing()
    batch = m.batch([[picture(1)]])
    (noisy,) = m.network.add_noise(batch)
    hidden = torch.tensor([[True, False, False, False]])
    changed = noisy.latents.clone()
    changed[:, :, :2, :2] += 1.0
    metadata = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
    with torch.no_grad():
        outs = [
            m.network.hidden(batch.tokens, batch.positions, [replace(noisy, latents=latents, masked=mask)], metadata=metadata)[
                0
            ]
            for latents, mask in ((noisy.latents, hidden), (changed, hidden), (noisy.latents, None), (changed, None))
        ]
    assert torch.equal(outs[0], outs[1]) and (outs[2] - outs[3]).abs().max() > 1e-3 and (outs[0] - outs[2]).abs().max() > 1e-3


# ---- masks --------------------------------------------------------------------------------------------------------------


def test_masks_weigh_elements_as_in_the_denoising_loss(monkeypatch) -> None:
    """Halving all of a mask's weights halves what elements cost; what has weight 0 costs nothing."""
    m = model(double=True, auxiliary=ALL)
    teacher, upper = other(m), torch.zeros(4, 4)
    upper[:2] = 1.0

    def costs(mask: Tensor | None) -> dict[str, Tensor]:
        return {n: mean.sum for n, mean in of(m, [["a", Media(picture(1), mask=mask)]], teacher=teacher).items()}

    whole, ones, top, half, low = (costs(mask) for mask in (None, torch.ones(4, 4), upper, upper / 2, 1 - upper))
    for one in ("consistency", "reconstruction"):
        assert torch.allclose(whole[one], ones[one]) and torch.allclose(top[one], 2 * half[one])
        assert torch.allclose(whole[one], (top[one] + low[one]) / 2) and not torch.allclose(top[one], low[one])
    assert torch.allclose(whole["representation"], ones["representation"])
    assert torch.equal(top["representation"], half["representation"])
    blind = torch.zeros(1, 4, dtype=torch.bool)
    monkeypatch.setattr(auxiliary, "draw_mask", lambda group, share: blind)  # the same slots seen whatever the mask
    whole, top, low = (costs(mask)["representation"] for mask in (None, upper, 1 - upper))
    assert torch.allclose(whole, (top + low) / 2) and not torch.allclose(top, low)


def test_slots_of_weight_zero_are_never_masked() -> None:
    mask = torch.zeros(4, 4)
    mask[3, 0] = mask[0, 3] = 0.5  # in the third slot and the second
    (group,) = model().batch([[drawn(i, mask=mask) for i in range(5)]]).media
    counted, hidden = auxiliary.counted_slots(group), draw_mask(group, 0.5)
    assert counted is not None and counted.tolist() == [[False, True, True, False]] * 5
    assert hidden.sum(1).tolist() == [1] * 5 and not (hidden & ~counted).any()
    assert auxiliary.counted_slots(replace(group, masks=None)) is None


# ---- training -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_auxiliary_losses_fall_in_training() -> None:
    """15 steps on one picture: the sum, and each of the three, by half at least."""
    torch.manual_seed(0)
    m = model(IMAGE, auxiliary=AuxiliaryLossConfig(consistency=0.5, reconstruction=1.0, representation=0.5, delta=0.1)).train()
    ema, decoder = m.create_ema(0.9), Decoder()
    optimizer = torch.optim.Adam(m.parameters(), lr=5e-3)
    batch = m.batch([["a", Media(picture(1), times=(0.4, 0.6))]])
    first = last = m(batch, teacher=ema, decoders={"image": decoder})
    for _ in range(15):
        last = m(batch, teacher=ema, decoders={"image": decoder})
        last.total(1.0).backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
    ratios = {t.name: (t.mean.value / f.mean.value).item() for t, f in zip(last.auxiliary, first.auxiliary, strict=True)}
    assert last.total(1.0) < 0.5 * first.total(1.0), ratios
    assert all(ratio < 0.5 for ratio in ratios.values()), ratios


def test_auxiliary_losses_with_the_papers_diffusion() -> None:
    m = model(diffusion=PAPER, auxiliary=ALL)
    found = of(m, documents(), teacher=other(m), decoders={"image": Decoder()})
    assert all(torch.isfinite(mean.sum) and mean.sum > 0 for mean in found.values())
    kind: Prediction = PAPER.prediction
    assert PAPER.conversion_weight(kind, torch.tensor([1.0])) == 1 and PAPER.conversion_weight("x0", torch.tensor([1.0])) < 1e-5
