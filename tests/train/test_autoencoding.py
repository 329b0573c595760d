"""The objective of autoencoders: its losses, the discriminator's part, and runs that resume bit-exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch

from transfusion.codec.convolutions import ConvolutionsConfig
from transfusion.codec.discriminator import DiscriminatorConfig
from transfusion.codec.vae import VAEConfig
from transfusion.codec.vq import VQ, VQConfig
from transfusion.data.images import ImageBatch, ImagePosition, ImagesConfig, ImageStream
from transfusion.data.media import DecodedImage
from transfusion.train.autoencoding import AutoencodingObjective, LossesConfig, PerceptualNetworks
from transfusion.train.codebook import CodebookConfig
from transfusion.train.objective import At
from transfusion.train.optimizer import AdamWConfig
from transfusion.train.trainer import CheckpointConfig, Optimization, Trainer, TrainerConfig

CONVOLUTIONS = ConvolutionsConfig(patch=4, widths=(16,), blocks=1, groups=4, shortcut=False)
LOSSES = LossesConfig(perceptual=0.5, identity=0.0, gan=0.5, gan_start=2)
DISCRIMINATOR = DiscriminatorConfig(width=4, layers=2)


def objective(kind: str = "vae", losses: LossesConfig = LOSSES, update: str = "gradient") -> AutoencodingObjective:
    torch.manual_seed(0)
    settings = VAEConfig(CONVOLUTIONS, 4) if kind == "vae" else VQConfig(CONVOLUTIONS, num_codes=16, code_channels=4)
    codebook = CodebookConfig(update=update, revive_every=2)  # type: ignore[arg-type]
    return AutoencodingObjective(
        settings.build(), losses, discriminator=DISCRIMINATOR, codebook=codebook, networks=PerceptualNetworks(), seed=0
    )


def batch(count: int = 3) -> ImageBatch:
    items = torch.rand(count, 3, 16, 16) * 2 - 1
    return ImageBatch(items, tuple(range(count)), ImagePosition(0, count), tuple(map(str, range(count))))


def names(terms: list) -> dict[str, float]:
    return {term.name: term.weight for term in terms}


def test_the_losses_of_each_kind() -> None:
    b = batch()
    assert names(objective().loss(b, At(0, 9))) == {"l1": 1.0, "perceptual": 0.5, "kl": 1e-6}
    assert names(objective("vq").loss(b, At(0, 9))) == {"l1": 1.0, "perceptual": 0.5, "codebook": 1.0, "commitment": 0.25}
    assert "codebook" not in names(objective("vq", update="ema").loss(b, At(0, 9)))
    later = objective().loss(b, At(2, 9))
    assert {"gan", "discriminator"} < names(later).keys()
    assert all(term.mean.count == 3 for term in later) and names(later).keys() <= objective().counts(b).keys()


def test_means_are_over_pictures() -> None:
    made = objective()
    b = batch(4)
    whole = {t.name: t.mean.value for t in made.loss(b, At(0, 9))}
    halves = [ImageBatch(b.items[i : i + 2], b.keys[i : i + 2], b.state, b.names) for i in (0, 2)]
    parts = [{t.name: t.mean.value for t in made.loss(half, At(0, 9))} for half in halves]
    for name, value in whole.items():
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, value, rtol=1e-5, atol=1e-7)


def test_one_backward_pass_gives_each_side_its_own_gradient() -> None:
    """The generator's loss leaves the discriminator alone, and the discriminator's loss the generator."""
    made, b = objective(), batch()
    assert made.discriminator is not None
    terms = {t.name: t for t in made.loss(b, At(5, 9))}
    weights = list(made.discriminator.parameters())
    assert all(p.requires_grad for p in weights)
    terms["gan"].mean.sum.backward(retain_graph=True)
    assert all(p.grad is None for p in weights)
    assert made.autoencoder.decoder.out.weight.grad is not None
    made.zero_grad()
    terms["discriminator"].mean.sum.backward()
    assert all(p.grad is not None for p in weights)
    assert made.autoencoder.decoder.out.weight.grad is None


def test_the_gans_weight_balances_the_gradients_of_the_last_layer() -> None:
    made, b = objective(), batch()
    terms = {t.name: t for t in made.loss(b, At(5, 9))}
    last = made.autoencoder.decoder.out.weight
    likeness = terms["l1"].mean.value + 0.5 * terms["perceptual"].mean.value
    norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (likeness, terms["gan"].mean.value)]
    assert terms["gan"].weight == pytest.approx(0.5 * float(norms[0] / (norms[1] + 1e-4)), rel=1e-4)


def test_settings_that_cannot_be() -> None:
    for words, message in (
        ({"l1": -1.0}, "l1 is a weight"),
        ({"l1": 0.0, "perceptual": 0.0}, "nothing would hold a picture"),
        ({"heads": "x"}, "heads are those of a network"),
        ({"gan_start": -1}, "gan-start is a step"),
    ):
        with pytest.raises(ValueError, match=message):
            LossesConfig(**words)  # type: ignore[arg-type]
    networks = PerceptualNetworks.load(LossesConfig(), torch.device("cpu"))
    assert "1 - multi-scale SSIM" in networks.describe(LossesConfig()) and "no MoCo v2" in networks.describe(LossesConfig())
    assert networks.describe(LossesConfig(perceptual=0, identity=0)) == ""


def images() -> list[DecodedImage]:
    return [DecodedImage(np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)) for i in range(10)]


def trainer(folder: Path, kind: str, steps: int, accumulate: int = 1, update: str = "ema") -> Trainer:
    folder.mkdir(exist_ok=True)
    made = objective(kind, update=update)
    optimizer = AdamWConfig(lr=1e-3, warmup=1)
    assert made.discriminator is not None
    return Trainer(
        made,
        ImageStream(
            images(), list(map(str, range(10))), ImagesConfig(side=16, batch_size=4), channels=3, seed=0, parts=accumulate
        ),
        optimizers=[
            Optimization(made.model, optimizer),
            Optimization(made.discriminator, optimizer, name="discriminator", start=2),
        ],
        config=TrainerConfig(steps=steps, accumulate=accumulate, log_every=100),
        checkpoint_config=CheckpointConfig(every=3),
        folder=folder,
        digest="x",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


@pytest.mark.parametrize(("kind", "update"), [("vae", "ema"), ("vq", "ema"), ("vq", "gradient")])
def test_a_resumed_run_is_the_same(kind: str, update: str, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", kind, 6, update=update)
    whole.run()
    first = trainer(tmp_path / "parts", kind, 6, update=update)
    first.config = TrainerConfig(steps=6, log_every=100)
    first.hooks = ()
    stop = first._end_step

    def interrupted(log) -> None:
        stop(log)
        if first.step == 3:
            raise KeyboardInterrupt

    first._end_step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = trainer(tmp_path / "parts", kind, 6, update=update)
    assert second.resume(print) and second.step == 3
    second.run()
    for name, tensor in whole.objective.state_dict().items():
        assert torch.equal(second.objective.state_dict()[name], tensor), name
    for name, tensor in whole.ema.shadows.items():
        assert torch.equal(second.ema.shadows[name], tensor), name


def test_accumulation_leaves_the_update_as_it_is(tmp_path: Path) -> None:
    """The codebook's too."""
    one, two = (trainer(tmp_path / str(parts), "vq", 2, parts) for parts in (1, 2))
    for each in (one, two):
        each.run()
    for name, tensor in one.objective.state_dict().items():
        torch.testing.assert_close(two.objective.state_dict()[name], tensor, rtol=1e-3, atol=2e-5, msg=name)


def test_revived_codes_are_replaced_in_the_average_too(tmp_path: Path) -> None:
    made = trainer(tmp_path, "vq", 1, update="gradient")
    made.run()
    assert isinstance(made.model, VQ)
    assert torch.equal(made.ema.shadows["codebook.weight"], made.model.codebook.weight.detach())
