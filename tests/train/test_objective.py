"""The trainer's seam: networks, optimizers and batches that are not the transformer's."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfusion import rng
from transfusion.model.losses import Mean, Term
from transfusion.train.objective import At, Objective
from transfusion.train.optimizer import AdamWConfig
from transfusion.train.trainer import CheckpointConfig, Diverged, Optimization, Trainer, TrainerConfig

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Place:
    number: int = 0


@dataclass(frozen=True, eq=False)
class Points:
    values: Tensor
    state: Place
    names: tuple[str, ...] = ("points",)
    unreadable: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "Points":
        return Points(self.values.to(device), self.state)


class PointStream:
    """Steps of eight keyed points, cut into micro-batches of unequal sizes."""

    seed, start = 3, Place()

    def __init__(self, cuts: Sequence[int] = (8,)) -> None:
        self.cuts, self.failed = list(cuts), {}

    def batches(self, position: Place) -> Iterator[tuple[Points, ...]]:
        number = position.number
        while True:
            values = torch.from_numpy(rng.generator(rng.key(self.seed, number)).standard_normal((8, 4))).float()
            number += 1
            yield tuple(Points(part, Place(number)) for part in values.split(self.cuts))


class Adversarial(Objective[Points]):
    """A generator that reconstructs points against a critic, which is trained on the same pass; counts its steps in a buffer."""

    unit = "points"
    steps: Tensor

    def __init__(self, start: int = 0, poison: range = range(0)) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4)))
        self.critic = nn.Linear(4, 1)
        self.start, self.poison = start, poison
        self.register_buffer("steps", torch.zeros(()))

    def counts(self, batch: Points) -> dict[str, int]:
        return {"squared": batch.values.numel(), "fool": len(batch.values), "critic": 2 * len(batch.values)}

    def size(self, batch: Points) -> int:
        return len(batch.values)

    def loss(self, batch: Points, at: At) -> list[Term]:
        made = self.model(batch.values)
        terms = [self.term("squared", 1.0, (made - batch.values).square())]
        if at.step in self.poison:
            terms = [self.term("squared", 1.0, (made - batch.values) * float("nan"))]
        if at.step >= self.start:
            self.critic.requires_grad_(False)
            terms.append(self.term("fool", 0.5, F.softplus(-self.critic(made))))
            self.critic.requires_grad_(True)
            told = F.softplus(torch.cat([self.critic(made.detach()), -self.critic(batch.values)]))
            terms.append(self.term("critic", 1.0, told))
        return terms

    def term(self, name: str, weight: float, values: Tensor) -> Term:
        return Term(name, weight, Mean(values.sum(), torch.tensor(float(values.numel()))))

    def end_step(self, at: At) -> dict[str, float]:
        self.steps += 1
        return {"counted": float(self.steps)}


def trainer(folder: Path, objective: Adversarial, steps: int = 6, cuts: Sequence[int] = (8,)) -> Trainer:
    config = AdamWConfig(lr=0.05, warmup=2)
    return Trainer(
        objective,
        PointStream(cuts),
        optimizers=[
            Optimization(objective.model, config),
            Optimization(objective.critic, config, name="critic", start=objective.start),
        ],
        config=TrainerConfig(steps=steps, ema_decay=0.9, patience=3, log_every=1000),
        checkpoint_config=CheckpointConfig(every=2, keep=3),
        folder=folder,
        digest="points",
        device=CPU,
        dtype=torch.float32,
    )


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_optimizer_sees_the_gradient_of_its_own_losses(tmp_path: Path) -> None:
    """One backward for both = two by hand: the generator's without the critic's loss, the critic's on detached points."""
    objective, found = Adversarial(), Adversarial()
    (batch,) = next(PointStream().batches(Place()))
    made = objective.model(batch.values)
    generated = (made - batch.values).square().mean() + 0.5 * F.softplus(-objective.critic(made)).mean()
    told = F.softplus(torch.cat([objective.critic(made.detach()), -objective.critic(batch.values)])).mean()
    expected = [*torch.autograd.grad(generated, list(objective.model.parameters()), retain_graph=True)]
    expected += torch.autograd.grad(told, list(objective.critic.parameters()))
    seen: list[Tensor] = []
    one = trainer(tmp_path, found, steps=2)
    prepare = one.optimizers[0].prepare
    one.optimizers[0].prepare = lambda *args: seen.extend(p.grad.clone() for p in found.parameters()) or prepare(*args)  # type: ignore
    one._step((batch,))
    assert len(seen) == 6 and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(seen, expected, strict=True))


def test_micro_batches_of_any_sizes_learn_the_same(tmp_path: Path) -> None:
    found = []
    for name, cuts in (("a", (8,)), ("b", (1, 4, 3))):
        objective = Adversarial()
        trainer(tmp_path / name, objective, cuts=cuts).run()
        found.append(torch.cat([p.flatten() for p in objective.parameters()]))
    assert torch.allclose(found[0], found[1], atol=1e-5)
    first, second = records(tmp_path / "a"), records(tmp_path / "b")
    assert first[-1]["squared_loss"] == pytest.approx(second[-1]["squared_loss"], rel=1e-4) and "points_per_second" in first[0]
    assert first[-1]["squared_loss"] < 0.8 * first[0]["squared_loss"]


@pytest.mark.parametrize("start", [0, 3])
def test_a_resumed_run_is_the_same_bit_for_bit(start: int, tmp_path: Path) -> None:
    """Two optimizers, moments and a buffer; the second optimizer may not have begun at the checkpoint."""
    whole, part, again = Adversarial(start), Adversarial(start), Adversarial(start)
    trainer(tmp_path / "whole", whole).run()
    stopped = trainer(tmp_path / "part", part)
    end = stopped._end_step

    def dying(log) -> None:
        end(log)
        if stopped.step == 2:
            raise KeyboardInterrupt

    stopped._end_step = dying  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    resumed = trainer(tmp_path / "part", again)
    assert resumed.resume(lambda line: None) and resumed.step == 2 and resumed.position == Place(2) and again.steps == 2
    resumed.run()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert records(tmp_path / "part")[-1]["counted"] == 6


def test_an_optimizer_that_starts_later_leaves_its_weights_until_then(tmp_path: Path) -> None:
    objective = Adversarial(start=4)
    before = objective.critic.weight.detach().clone()
    trainer(tmp_path / "a", objective, steps=4).run()
    assert torch.equal(objective.critic.weight, before)
    lines = records(tmp_path / "a")
    assert all("critic_loss" not in line and line["critic_grad_norm"] == 0 for line in lines)
    later = Adversarial(start=4)
    trainer(tmp_path / "b", later, steps=6).run()
    assert not torch.equal(later.critic.weight, before) and records(tmp_path / "b")[4]["critic_lr"] == pytest.approx(0.025)


def test_a_step_without_finite_gradients_changes_nothing_of_either(tmp_path: Path) -> None:
    objective = Adversarial(poison=range(100))
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    with pytest.raises(Diverged, match="points"):
        trainer(tmp_path, objective).run()
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())


def test_optimizers_that_share_weights_are_refused(tmp_path: Path) -> None:
    objective = Adversarial()
    both = [Optimization(objective, AdamWConfig()), Optimization(objective.critic, AdamWConfig())]
    parts = {"config": TrainerConfig(), "checkpoint_config": CheckpointConfig(), "folder": tmp_path, "digest": ""}
    for optimizers in (both, []):
        with pytest.raises(ValueError, match="weights of its own"):
            Trainer(objective, PointStream(), optimizers=optimizers, device=CPU, dtype=torch.float32, **parts)  # type: ignore
