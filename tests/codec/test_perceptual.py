"""Perceptual losses by files of published form: small ones of the same names and shapes, made here with random numbers."""

from pathlib import Path

import pytest
import torch
from torchmetrics.functional.image import lpips as reference
from torchvision import models

import transfusion.codec.perceptual as perceptual
from transfusion.codec.perceptual import MOCO, Identity, Lpips, read_weights

HEADS = Path(reference.__file__).parent / "lpips_models" / "vgg.pth"
"""LPIPS' own heads, which torchmetrics comes with."""


def write(network: torch.nn.Module, path: Path, prefix: str = "", **more: object) -> dict[str, torch.Tensor]:
    """A file of a network on the meta device: weights are overlapping views of a few numbers, so that the
    file is small."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, value in network.state_dict().items():
        if value.ndim > 1:
            strides = (7, 3, 1, 1)[: value.ndim]
            length = 1 + sum(stride * (size - 1) for stride, size in zip(strides, value.shape, strict=True))
            drawn = torch.randn(length, generator=generator) / value[0].numel() ** 0.5
            tensors[name] = drawn.as_strided(value.shape, strides)
        elif name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(1)
        else:
            tensors[name] = torch.rand(value.shape, generator=generator) * 0.2 + (
                0.9 if name.endswith(("weight", "var")) else 0
            )
    plain = {f"{prefix}{name}": value for name, value in tensors.items()}
    torch.save({"state_dict": plain, **more} if more else plain, path)
    return tensors


def network(kind: str) -> torch.nn.Module:
    with torch.device("meta"):
        return getattr(models, kind)(weights=None)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    write(network("vgg16"), path)
    assert path.stat().st_size < 1e6
    return path


def pictures(channels: int = 3, side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    a = torch.rand(2, channels, side, side) * 2 - 1
    return a, (a + 0.3 * torch.randn_like(a)).clamp(-1, 1)


def test_lpips_is_that_of_torchmetrics(vgg: Path) -> None:
    with torch.device("meta"):
        theirs = reference._LPIPS(pretrained=False, net="vgg", pnet_rand=True)
    own = {name.removeprefix("features."): value for name, value in torch.load(vgg).items() if name.startswith("features.")}
    state = {name: own[name.partition(".")[2].partition(".")[2]] for name in theirs.state_dict() if name.startswith("net.")}
    heads = read_weights(HEADS, "heads")
    state |= {
        name: heads[name if name in heads else f"lin{name.split('.')[1]}.{name.split('.', 2)[2]}"]
        for name in theirs.state_dict()
        if name.startswith("lin")
    }
    theirs.load_state_dict(state, strict=False, assign=True)
    theirs.scaling_layer = reference.ScalingLayer()
    a, b = pictures()
    ours = Lpips(vgg, HEADS)(a, b)
    torch.testing.assert_close(ours, theirs(a, b).flatten(), rtol=1e-3, atol=1e-6)
    assert ours.min() > 0


def test_equal_pictures_are_at_0_and_the_gradient_is_the_pictures_own(vgg: Path) -> None:
    lpips = Lpips(vgg)
    a, b = pictures()
    assert lpips(a, a).tolist() == [0.0, 0.0]
    b.requires_grad_(True)
    lpips(b, a).sum().backward()
    assert b.grad is not None and b.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in lpips.parameters()) and not lpips.train().training


def test_mobilenet_and_grey_pictures(tmp_path: Path) -> None:
    write(network("mobilenet_v2"), tmp_path / "m.pth")
    lpips = Lpips(tmp_path / "m.pth")
    assert [lpips.get_buffer(f"head{i}").numel() for i in range(5)] == [16, 24, 32, 96, 320]
    a, b = pictures(channels=1)
    assert lpips(a, b).min() > 0 and lpips(a, a).max() == 0


def test_identity_reads_mocos_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "IDENTITY_SIDE", 32)
    resnet = network("resnet50")
    tensors = write(resnet, tmp_path / "moco.pth.tar", MOCO, epoch=800, arch="resnet50")
    a, b = pictures(side=16)
    identity = Identity(tmp_path / "moco.pth.tar")
    torch.testing.assert_close(identity(a, a), torch.zeros(2), rtol=0, atol=1e-6)
    assert identity(a, b).min() > 1e-6
    torch.save(tensors, tmp_path / "resnet.pth")
    assert torch.equal(Identity(tmp_path / "resnet.pth")(a, b), identity(a, b))


def test_files_that_are_others(tmp_path: Path, vgg: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*: give the path of VGG-16 or MobileNetV2's weights"):
        Lpips(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="holds no weights of LPIPS' heads that can be read"):
        read_weights(tmp_path / "text.pth", "LPIPS' heads")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_weights(tmp_path / "list.pth", "MoCo v2")
    with pytest.raises(ValueError, match=r"holds no weights of MoCo v2, .*: bn1.bias is missing there"):
        Identity(vgg)
    torch.save({"lin0.model.1.weight": torch.rand(1, 7, 1, 1)}, tmp_path / "heads.pth")
    with pytest.raises(ValueError, match=r"holds no heads for .*lin0.model.1.weight is missing or has another width"):
        Lpips(vgg, tmp_path / "heads.pth")


def test_a_file_with_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": pytest.raises}}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="that can be read"):
        Lpips(tmp_path / "code.pth")
