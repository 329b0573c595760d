# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportIncompatibleMethodOverride=false
"""Patchers: shapes, configuration, errors and training; custom modules saved with the model."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from einops.layers.torch import Rearrange
from test_patchers_equal import Inward, Outward, plain
from torch import Tensor, nn

from small import FREE, IMAGE, SOUND, VECTOR, documents, model, picture
from transfusion import config
from transfusion.api import Transfusion
from transfusion.codec.custom_patcher import CustomPatcherConfig
from transfusion.codec.patcher import dry_run_items
from transfusion.codec.patchers import LinearPatcherConfig, UNetPatcherConfig, build
from transfusion.codec.unet_patcher import UNetPatcher
from transfusion.config import ConfigError
from transfusion.data.document import Document, Media, Text
from transfusion.data.tokenize import Coordinates
from transfusion.data.vocabulary import BPE, Bytes, Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.process import Diffusion
from transfusion.diffusion.sampler import Euler
from transfusion.evaluation.preference import caption_preference
from transfusion.modality import Modality
from transfusion.model.network import ModelConfig, Network
from transfusion.model_folder import TransfusionConfig
from transfusion.nn.transformer import TransformerConfig
from transfusion.nn.unet import stages
from transfusion.recipes import find
from transfusion.run.command_line import parse
from transfusion.run.record import Run

WIDTH = 32
TRUNK = TransformerConfig(width=WIDTH, depth=2, num_heads=4)


def fresh(*modalities: Modality, modules=None, **kw) -> Transfusion:
    """A model with its initial weights."""
    torch.manual_seed(0)
    vocabulary = Vocabulary(Bytes().build([]), modalities)
    return Transfusion(
        TransfusionConfig(ModelConfig(modalities=modalities, transformer=TRUNK, **kw)), vocabulary, modules=modules
    )


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ((), []),
        ((1, 1), []),
        ((2,), [(2,)]),
        ((4, 4), [(2, 2), (2, 2)]),
        ((4, 6), [(2, 2), (2, 3)]),
        ((1, 8), [(1, 2)] * 3),
        ((5, 1, 2), [(5, 1, 2)]),
    ],
)
def test_unet_stages_are_prime_factors_of_the_patch(patch: tuple[int, ...], expected: list[tuple[int, ...]]) -> None:
    assert stages(patch) == expected


@pytest.mark.parametrize("attention", [0, 4])
@pytest.mark.parametrize(
    ("channels", "shape", "patch", "largest"),
    [
        (5, (), (), None),
        (3, (6,), (2,), (12,)),
        (3, (5,), (1,), (9,)),
        (1, (8, 8), (2, 2), (16, 12)),
        (2, (8, 12), (4, 6), None),
        (4, (4, 4), (1, 1), None),
        (2, (2, 6, 4), (1, 3, 2), (4, 9, 8)),
    ],
)
def test_unet_gives_the_modalitys_slots_on_any_axes_and_patch(channels, shape, patch, largest, attention: int) -> None:
    modality = Modality("it", channels, shape, patch, largest)
    unet = build(UNetPatcherConfig(channels=8, attention=attention), modality, WIDTH, 1e-5, {})
    dry_runs = list(dry_run_items(modality, torch.empty(())))
    for zeros, _, grid in dry_runs:
        latents = torch.randn(2, *zeros.shape[1:])
        slots, skip = unet.encode(latents, torch.tensor([0.1, 0.9]))
        assert slots.shape == (2, torch.Size(grid).numel(), WIDTH)
        assert unet.decode(slots, skip, grid).shape == latents.shape
    assert len(dry_runs) >= (2 if largest else 1)


@pytest.mark.parametrize(("channels", "patch"), [(1, (1, 1)), (1, (2, 2)), (3, (8, 8))])
def test_slots_of_the_unet_begin_quiet(channels: int, patch: tuple[int, int]) -> None:
    """A tenth of the latents', whatever the patch: captions are learned late behind loud slots (LOG.md)."""
    unet = build(UNetPatcherConfig(), Modality("image", channels, (8, 8), patch), 128, 1e-5, {})
    slots, _ = unet.encode(torch.randn(64, channels, 8, 8), torch.rand(64))
    assert 0.05 < slots.square().mean().sqrt() < 0.15


def test_slot_scale_is_a_factor_on_linear_slots() -> None:
    loud, quiet = (fresh(IMAGE, patcher=LinearPatcherConfig(slot_scale=scale)).network.patcher_of(0) for scale in (1.0, 0.25))
    latents, t = picture(0, 2, 1, 4, 4), torch.tensor([0.2, 0.7])
    assert torch.equal(quiet.encode(latents, t)[0], 0.25 * loud.encode(latents, t)[0])
    with pytest.raises(ValueError, match="slot_scale must be a finite number above 0, not 0"):
        LinearPatcherConfig(slot_scale=0.0)


@pytest.mark.parametrize("prediction", ["x0", "v", "velocity"])
def test_the_unet_fades_with_the_noise_where_x0_is_predicted(prediction: str) -> None:
    """At t = 1 the noised latents tell nothing of x0, and the linear layer predicts alone; what holds noise needs the skips."""
    m = model(IMAGE, patcher=UNetPatcherConfig(channels=8), diffusion=Diffusion(prediction=prediction))
    unet = m.network.patcher_of(0)
    skips = [unet.encode(picture(i, 1, 1, 4, 4), torch.tensor([1.0]))[1] for i in range(2)]
    with torch.no_grad():
        outs = [unet.decode(picture(0, 1, 4, 32), skip, (2, 2)) for skip in skips]
    assert torch.equal(*outs) == (prediction == "x0")


def test_the_unet_begins_as_a_linear_layer_behind_the_transformer() -> None:
    """What the transformer knows reaches every pixel of its own slot, and no other, by one layer; the skips add nothing yet."""
    unet = build(UNetPatcherConfig(channels=8), IMAGE, WIDTH, 1e-5, {})
    slots, (_, skip) = torch.randn(1, 4, WIDTH), unet.encode(picture(0, 1, 1, 4, 4), torch.tensor([0.5]))
    _, other = unet.encode(picture(1, 1, 1, 4, 4), torch.tensor([0.1]))
    out = unet.decode(slots, skip, (2, 2))
    assert torch.equal(unet.decode(slots, other, (2, 2)), out)
    changed = unet.decode(slots + torch.tensor([0.0, 1.0, 0.0, 0.0])[:, None], skip, (2, 2)) != out
    assert changed[0, 0].tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2


@pytest.mark.parametrize("modality", [IMAGE, SOUND, VECTOR], ids=lambda m: m.name)
def test_every_input_of_the_unet_changes_the_prediction(modality: Modality) -> None:
    """The skip, the transformer's output, the time, attention, and the number of blocks."""
    m = model(modality, patcher=UNetPatcherConfig(channels=8, attention=2))
    unet = m.network.patcher_of(0)
    assert isinstance(unet, UNetPatcher)
    latents, grid = torch.randn(1, modality.channels, *modality.shape), modality.slots(modality.shape)
    t = torch.tensor([0.3])
    with torch.no_grad():
        slots, skip = unet.encode(latents, t)
        out = unet.decode(slots, skip, grid)
        later, later_skip = unet.encode(latents, t + 0.5)
        _, other_skip = unet.encode(latents + 0.5, t)
        assert (later - slots).abs().max() > 1e-3
        changes = {"features": other_skip.features}, {"time": later_skip.time}, {"share": later_skip.share}
        for changed in changes:
            assert (unet.decode(slots, replace(skip, **changed), grid) - out).abs().max() > 1e-3
        assert (unet.decode(torch.randn_like(slots), skip, grid) - out).abs().max() > 1e-3
        unet.down_attention, unet.up_attention = nn.Identity(), nn.Identity()
        if modality.shape:
            assert (unet.encode(latents, t)[0] - slots).abs().max() > 1e-3
            assert (unet.decode(slots, skip, grid) - out).abs().max() > 1e-3


PICTURES = [documents()[0], documents()[4]]


def learned(m: Transfusion, docs: list[Document], steps: int = 25) -> float:
    """How many times smaller the media loss is after some steps on the same few documents and noise."""
    batch = m.batch(docs)
    optimizer = torch.optim.Adam(m.parameters(), 5e-3)
    found = []
    for _ in range(steps):
        losses = m(batch)
        losses.total(5.0).backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(losses.media.value.item())
    return found[0] / found[-1]


@pytest.mark.parametrize("options", [{}, {"attention": 2, "blocks": 2}], ids=["plain", "attention"])
def test_the_unet_learns(options: dict) -> None:
    assert learned(fresh(IMAGE, patcher=UNetPatcherConfig(channels=8, **options)), PICTURES) > 100  # 374 and 374; linear: 46


@pytest.mark.slow  # 3.6 s
def test_the_unet_learns_captions() -> None:
    """Pictures of two colours, named: 64 of them, seen 12 times each. Measured: 1.0 and a gap of 3.7; without the linear layer
    behind the transformer, and with loud slots, 0.625 and 0.005: it denoised by its skips alone."""
    names = ["black", "blue", "green", "cyan", "red", "magenta", "yellow", "white"]
    colours = torch.tensor(list(product((-0.9, 0.9), repeat=3)))
    docs = [
        Document((Text(f"{names[i]} {names[j]}"), Media(colours[[i] * 4 + [j] * 4].T[:, None].repeat(1, 8, 1))))
        for i, j in product(range(8), repeat=2)
    ]
    image = Modality("image", 3, (8, 8), (4, 4))
    trunk = TransformerConfig(width=64, depth=2, num_heads=4)
    settings = ModelConfig((image,), transformer=trunk, patcher=UNetPatcherConfig(channels=8), context_length=64)
    torch.manual_seed(0)
    m = Transfusion(TransfusionConfig(settings), Vocabulary(BPE(300).build([d.text for d in docs]), (image,)))
    optimizer = torch.optim.Adam(m.parameters(), 3e-3)
    for step in range(50):
        m.loss([docs[i] for i in torch.randperm(64)[:16].tolist()], seed=step).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = caption_preference(m, docs)
    assert found["caption_preference"].value > 0.9 and found["caption_gap"].value > 1.0


@pytest.mark.parametrize("modality", [SOUND, VECTOR, Modality("video", 2, (2, 4, 4), (1, 2, 2))], ids=lambda m: m.name)
def test_the_unet_learns_other_media(modality: Modality) -> None:
    shape = (modality.channels, *modality.shape)
    docs = [Document((Text("ab"[i]), Media(picture(i, *shape), modality.name))) for i in range(2)]
    m = fresh(modality, patcher=UNetPatcherConfig(channels=16, attention=2), coordinates=Coordinates(axes=3))
    assert learned(m, docs) > 100  # measured: sound 471, the vector 605, video 440


def test_modules_learn() -> None:
    for modules in ((Inward(), Outward()), plain()):
        assert learned(fresh(IMAGE, modules={"image": modules}), PICTURES) > 7  # measured: 15 and 50


# ---- per modality -------------------------------------------------------------------------------------------------------


def test_each_modality_has_its_own_patcher() -> None:
    m = fresh(
        IMAGE, SOUND, VECTOR, patcher=LinearPatcherConfig(time="patch"), patchers=(UNetPatcherConfig(8), LinearPatcherConfig())
    )
    kinds = [type(m.network.patcher_of(i)).__name__ for i in range(3)]
    assert kinds == ["UNetPatcher", "LinearPatcher", "LinearPatcher"]
    assert [m.network.patcher_of(i).config.time for i in (1, 2)] == ["width", "patch"]
    with pytest.raises(ValueError, match=r"2 patchers for 1 modalities \(image\)"):
        fresh(IMAGE, patchers=(UNetPatcherConfig(), UNetPatcherConfig()))


def test_patcher_kinds_round_trip_through_yaml_json_and_command_line(capfd) -> None:
    run = find("digits").run()
    given = parse(run, ["--model.patcher.kind", "unet", "--model.patcher.channels", "48"], "x")
    assert given.model.patcher == UNetPatcherConfig(channels=48) and given.model.patchers == ()
    line = ["--model.patchers.0.kind", "unet", "--model.patchers.0.attention=4", "--model.patchers.1.kind=linear"]
    listed = parse(run, line, "x")
    assert (
        listed.model.patchers == (UNetPatcherConfig(attention=4), LinearPatcherConfig())
        and listed.model.patcher == LinearPatcherConfig()
    )
    modules = replace(run, model=replace(run.model, patchers=(CustomPatcherConfig("A", "B"),)))
    for one in (given, listed, modules):
        assert config.from_yaml(Run, config.to_yaml(one)) == one
        assert config.from_plain(Run, json.loads(json.dumps(config.to_plain(one)))) == one
    for line, message in (
        (["--model.patcher.kind", "unit"], "did you mean 'unet'"),
        (["--model.patchers.1.kind", "unet"], r"no choice 'model.patchers.1'"),
        (["--model.patchers.0.blocks", "2"], "model.patchers.0.blocks"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(run, line, "x")
    with pytest.raises(SystemExit):
        parse(run, ["--model.patcher.kind", "unet", "--model.patcher.blocks", "0"], "x")
    assert "blocks of at least 1" in capfd.readouterr().err


# ---- a user's modules ---------------------------------------------------------------------------------------------------


class Keeps(nn.Sequential):
    """Slots [item, slot, width], with the latents' size as a skip."""

    def forward(self, latents: Tensor) -> tuple[Tensor, torch.Size]:  # type: ignore[override]
        return super().forward(latents), latents.shape


class Returns(nn.Linear):
    def forward(self, slots: Tensor, shape: torch.Size) -> Tensor:  # type: ignore[override]
        count = shape[-1] // 2
        return Rearrange("n (h w) (c p q) -> n c (h p) (w q)", w=count, p=2, q=2)(super().forward(slots))


def rows() -> tuple[nn.Module, nn.Module]:
    return Keeps(Rearrange("n c (h p) (w q) -> n (h w) (c p q)", p=2, q=2), nn.Linear(4, WIDTH)), Returns(WIDTH, 4)


@pytest.mark.parametrize("form", ["grid", "rows"])
def test_both_slot_layouts_are_in_raster_order(form: str) -> None:
    """Custom modules with the linear patcher's weights compute the same."""
    linear = fresh(FREE)
    given = fresh(FREE, modules={"image": plain() if form == "grid" else rows()})
    one, other = linear.network.patcher_of(0), given.network.patcher_of(0)
    proj_in, proj_out = (other.encoder, other.decoder) if form == "grid" else (other.encoder[1], other.decoder)
    with torch.no_grad():
        one.norm.weight.fill_(1.0)
        proj_in.weight.copy_(one.proj_in.weight.view_as(proj_in.weight))
        proj_in.bias.zero_()
        other.time_embedding.load_state_dict(one.time_embedding.state_dict())
        weight = one.proj_out.weight
        proj_out.weight.copy_(weight.T.view_as(proj_out.weight) if form == "grid" else weight)
        proj_out.bias.zero_()
        latents, t = torch.randn(2, 1, 8, 6), torch.rand(2)
        slots, skip = other.encode(latents, t)
        assert torch.allclose(slots, one.encode(latents, t)[0], atol=1e-6)
        assert torch.allclose(other.decode(one.norm(slots), skip, (4, 3)), one.decode(slots, None, (4, 3)), atol=1e-6)


def test_modules_may_change_the_number_of_slots() -> None:
    """As the modality declares: 64 pixels in 4 slots, and sound of 6 in 2."""
    image, sound = Modality("image", 1, (8, 8), (4, 4)), Modality("sound", 3, (6,), (3,))
    modules = {
        "image": (nn.Conv2d(1, WIDTH, 5, 4, 2), nn.ConvTranspose2d(WIDTH, 1, 4, 4)),
        "sound": (nn.Conv1d(3, WIDTH, 3, 3), nn.ConvTranspose1d(WIDTH, 3, 3, 3)),
    }
    m = fresh(image, sound, modules=modules)
    (drawn,) = m.generate([["a", picture(1, 1, 8, 8)]], force="sound", sampler=Euler(2), guidance=Guidance(text=2.0))
    assert drawn.media[1].tensor().shape == (3, 6)


def test_modules_of_a_vector() -> None:
    pair = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 5)
    m = fresh(VECTOR, modules={"vector": pair})
    (drawn,) = m.generate("a", force="vector", sampler=Euler(2))
    assert drawn.media[0].tensor().shape == (5,)


def test_modules_are_saved_and_passed_to_from_pretrained(tmp_path: Path) -> None:
    m = model(FREE, SOUND, modules={"image": (Inward(), Outward())})
    assert m.config.model.patchers == (CustomPatcherConfig("Inward", "Outward"), LinearPatcherConfig())
    m.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"'image' is a pair of modules \(Inward and Outward\).*from_pretrained\(folder, modules="
    ):
        Transfusion.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of another architecture"):
        Transfusion.from_pretrained(tmp_path, modules={"image": plain()})
    again = Transfusion.from_pretrained(tmp_path, modules={"image": (Inward(), Outward())}).eval()
    assert again.config == m.config
    asked = {"force": "image", "size": (8, 6), "sampler": Euler(2), "seed": 3}
    one, other = (x.generate("a", **asked)[0].media[0].tensor() for x in (m, again))
    assert torch.equal(one, other)


def test_modules_that_share_weights_are_saved(tmp_path: Path) -> None:
    def pair() -> tuple[nn.Module, nn.Module]:
        proj_in, proj_out = plain()
        assert isinstance(proj_in, nn.Conv2d) and isinstance(proj_out, nn.ConvTranspose2d)
        proj_out.weight = proj_in.weight
        return proj_in, proj_out

    m = fresh(IMAGE, modules={"image": pair()})
    m.save_pretrained(tmp_path)
    again = Transfusion.from_pretrained(tmp_path, modules={"image": pair()})
    assert torch.equal(m.loss(documents()), again.loss(documents()))


class Sized(nn.Conv2d):
    """Gives too few slots for pictures larger than the default."""

    def forward(self, latents: Tensor) -> Tensor:
        return super().forward(latents)[..., :2]


class Scaled(Inward):
    """Takes the times as a later parameter."""

    def forward(self, x: Tensor, scale: float = 1.0, t: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert scale == 1.0 and t is not None
        return super().forward(x, t)


class Keyed(Inward):
    """Takes the times as a keyword-only parameter."""

    def forward(self, x: Tensor, *, t: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x, t)


@pytest.mark.parametrize("kind", [Scaled, Keyed])
def test_times_are_passed_by_name(kind: type[Inward]) -> None:
    usual, other = Inward(), kind()
    other.load_state_dict(usual.state_dict())
    latents, t = torch.randn(2, 1, 4, 4), torch.tensor([0.1, 0.9])
    pair = [fresh(IMAGE, modules={"image": (way, Outward())}).network.patcher_of(0) for way in (usual, other)]
    one, same = (patcher_of.encode(latents, t)[0] for patcher_of in pair)
    assert torch.equal(one, same) and not torch.equal(one, pair[1].encode(latents, t + 0.1)[0])


class Mixed(nn.Conv2d):
    """Adds the batch mean to each item."""

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return h + h.mean(0, keepdim=True)


class MixedOut(nn.ConvTranspose2d):
    """The same on the way out."""

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return h + h.mean(0, keepdim=True)


def test_the_dry_run_keeps_training_modes_and_ignores_dropout() -> None:
    dropped = nn.Sequential(plain()[0], nn.Dropout(0.5))
    fresh(IMAGE, modules={"image": (dropped, plain()[1].eval())})
    assert dropped.training and dropped[1].training


MISTAKES = {
    "mixed items": (lambda: (Mixed(1, WIDTH, 2, 2), plain()[1]), "encoder of 'image' mixes the items.*each item by itself"),
    "mixed on the way out": (lambda: (plain()[0], MixedOut(WIDTH, 1, 2, 2)), "decoder of 'image' mixes the items"),
    "slots": (
        lambda: (nn.Conv2d(1, WIDTH, 4, 4), plain()[1]),
        r"gives \(1, 32, 1, 1\) for latents \(1, 1, 4, 4\).*\(1, 4, 32\)",
    ),
    "width": (lambda: (nn.Conv2d(1, 16, 2, 2), plain()[1]), r"gives \(1, 16, 2, 2\).*\(1, 32, 2, 2\).*the model's width"),
    "larger sizes": (lambda: (Sized(1, WIDTH, 2, 2), plain()[1]), r"gives \(1, 32, 4, 2\) for latents \(1, 1, 8, 8\)"),
    "way out": (
        lambda: (plain()[0], nn.ConvTranspose2d(WIDTH, 1, 4, 4)),
        r"gives back \(1, 1, 8, 8\) for latents \(1, 1, 4, 4\)",
    ),
    "channels": (lambda: (plain()[0], nn.ConvTranspose2d(WIDTH, 2, 2, 2)), r"gives back \(1, 2, 4, 4\).*latents' channels"),
    "batch norm": (lambda: (nn.Sequential(plain()[0], nn.BatchNorm2d(WIDTH)), plain()[1]), "encoder of 'image'.*use GroupNorm"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_modules_of_wrong_shape_raise(name: str, unchecked) -> None:
    make, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        fresh(FREE, modules={"image": make()})


def test_wrong_patcher_settings_raise() -> None:
    with pytest.raises(ValueError, match=r"modules for 'sound', which is no modality.*image"):
        fresh(IMAGE, modules={"sound": plain()})
    with pytest.raises(ValueError, match="4 axes, the U-Net takes up to 3"):
        fresh(Modality("field", 1, (2, 2, 2, 2), (1, 1, 1, 1)), patcher=UNetPatcherConfig())
    with pytest.raises(ValueError, match="16 channels cannot be split into 3 heads"):
        fresh(IMAGE, patcher=UNetPatcherConfig(8, attention=3))
    for wrong in ({"channels": 0}, {"blocks": 0}, {"attention": -1}):
        with pytest.raises(ValueError, match="a U-Net needs"):
            UNetPatcherConfig(**wrong)
    with pytest.raises(ValueError, match="must be passed"):
        Network(ModelConfig(modalities=(IMAGE,), transformer=TRUNK, patcher=CustomPatcherConfig()), 300)
