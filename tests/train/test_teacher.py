"""Auxiliary losses in the trainer: the teacher is the run's own average, a step may be cut, a stop changes nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import corpus, interrupted, quiet, run, weights

from small import picture
from transfusion.commands.train import build, train
from transfusion.data.document import Document, Media, Text
from transfusion.model.auxiliary import AuxiliaryLossConfig
from transfusion.nn.ema import EMA
from transfusion.nn.moe import MoEConfig
from transfusion.run.record import Run
from transfusion.train.objective import TransfusionObjective
from transfusion.train.trainer import Trainer

ALL = AuxiliaryLossConfig(consistency=0.5, reconstruction=0.5, representation=0.5, delta=0.1)


def needs_ema_teacher(out: Path, steps: int, auxiliary: AuxiliaryLossConfig = ALL, **kw: object) -> Run:
    plain = run(out, steps, **kw)
    return replace(plain, model=replace(plain.model, auxiliary=auxiliary))


@pytest.mark.slow
def test_resume_is_bit_exact_with_a_teacher(tmp_path: Path, monkeypatch) -> None:
    straight, broken = needs_ema_teacher(tmp_path / "a", 5), needs_ema_teacher(tmp_path / "b", 5)
    train(straight, corpus(), [], quiet)
    interrupted(broken, 4, monkeypatch)  # after the checkpoint of step 3
    train(broken, corpus(), [], quiet)
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert one.keys() == other.keys() and "model/network.representation.mask_vector" in one
    assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.slow
def test_each_is_in_the_metrics_and_falls(tmp_path: Path) -> None:
    """30 steps on four pictures. Measured: to 0.04, 0.7 and 0.28 of what they were in the first steps."""
    options = needs_ema_teacher(tmp_path, 30)
    model = train(options, corpus(4), [], quiet)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "seconds" in line]  # not what was measured at the end
    for name, most in (("consistency", 0.3), ("reconstruction", 0.9), ("representation", 0.5), ("text", 0.7), ("media", 0.6)):
        first, last = (sum(line[f"{name}_loss"] for line in part) for part in (lines[:3], lines[-3:]))
        assert last < most * first, (name, first, last)
    assert model.network.representation is not None
    again = type(model).from_pretrained(tmp_path / "model")
    assert again.config.model.auxiliary == ALL and again.network.representation is not None


def test_experts_are_balanced_once_a_step(tmp_path: Path, monkeypatch) -> None:
    """The norm of the first step's gradient, nearly all of it the balance's: cut into four, and four times the same batch."""
    step = Trainer._step

    def norm(name: str, parts: int = 1, repeat: int = 1, balance: float = 1e4) -> float:
        options = run(tmp_path / name, 1)
        transformer = replace(options.model.transformer, moe=MoEConfig(4, 1, aux_loss_weight=balance))
        options = replace(
            options, model=replace(options.model, transformer=transformer), trainer=replace(options.trainer, accumulate=parts)
        )
        monkeypatch.setattr(Trainer, "_step", lambda self, batches: step(self, batches * repeat))
        train(options, corpus(), [], quiet)
        return json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["grad_norm"]

    whole, cut, again, without = norm("a"), norm("b", parts=4), norm("c", repeat=4), norm("d", balance=0.0)
    assert whole > 20 * without
    assert 0.8 * whole < cut < 1.6 * whole and again == pytest.approx(whole, rel=1e-4)


def test_off_the_trainer_makes_no_teacher(tmp_path: Path, monkeypatch) -> None:
    made = []
    monkeypatch.setattr(EMA, "module", lambda *_: made.append(1))
    train(needs_ema_teacher(tmp_path / "a", 1, AuxiliaryLossConfig()), corpus(), [], quiet)
    train(needs_ema_teacher(tmp_path / "b", 1, AuxiliaryLossConfig(reconstruction=1.0)), corpus(), [], quiet)
    assert not made
    line = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[0])
    assert not {"consistency_loss", "reconstruction_loss", "representation_loss"} & line.keys()


def test_the_teacher_is_the_average_as_it_stands(tmp_path: Path) -> None:
    options = needs_ema_teacher(tmp_path, 1)
    model = build(options, corpus(), quiet)
    ema = EMA(model, 0.5)
    teacher = ema.module(model)
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training
    with torch.no_grad():
        model.network.embed.weight.add_(1.0)
    ema.update(20)
    for name, p in teacher.named_parameters():
        assert p.data_ptr() == ema.shadows[name].data_ptr()
    before = model.network.embed.weight - 1.0
    assert torch.allclose(teacher.network.embed.weight, before + 0.5, atol=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("weighted", [False, True])
def test_cutting_a_step_changes_nothing(tmp_path: Path, weighted: bool) -> None:
    """With dual copies, weights by token, and every auxiliary loss: 4 rows at once or in 4 parts. Measured: 2e-6."""
    factor = (2.0, 0.5) if weighted else (1.0, 1.0)
    documents = [
        Document(
            (Media(picture(i), weight=1.0 + i % 2), Text((65, 66 + i % 3), weight=factor), Media(picture(i + 9))), name=str(i)
        )
        for i in range(12)
    ]
    found = []
    for parts in (1, 4):
        options = needs_ema_teacher(tmp_path / f"{parts}", 2)
        options = replace(
            options, trainer=replace(options.trainer, accumulate=parts), transform=replace(options.transform, dual=1.0)
        )
        train(options, documents, [], quiet)
        found.append(weights(options.folder))
    for name, one in found[0].items():
        if name.startswith("ema/"):
            assert (one - found[1][name]).abs().max() < 1e-4, name


def test_a_decoder_given_to_the_objective_is_used(tmp_path: Path) -> None:
    options = needs_ema_teacher(tmp_path, 1, AuxiliaryLossConfig(reconstruction=1.0))
    model = build(options, corpus(), quiet)
    called = []

    def decode(latents: torch.Tensor) -> torch.Tensor:
        called.append(latents.shape)
        return latents * 3

    objective = TransfusionObjective(model, media_weight=1.0, decoders={"image": decode})
    batch = model.batch([["a", Media(picture(1))]])
    (with_decoder,) = objective.losses(batch).auxiliary
    objective.decoders = None
    (without,) = objective.losses(batch).auxiliary
    assert len(called) == 2 and torch.allclose(with_decoder.mean.sum, 9 * without.mean.sum)
