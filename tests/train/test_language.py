# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
"""A language model learns pictures, and its own weights stay as they were, or follow slowly."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from command import command
from llm import write
from small import IMAGE, model, picture, png
from transfusion import config
from transfusion.api import Transfusion
from transfusion.commands.train import train
from transfusion.data.document import Document, Media, Text
from transfusion.model.network import Network
from transfusion.nn.attention import AttentionMetadata
from transfusion.recipes import digits
from transfusion.run.record import Run
from transfusion.train.optimizer import AdamWConfig, MuonConfig
from transfusion.train.trainer import Trainer, TrainerConfig

COUNT = 300


def corpus(count: int = 24) -> list[Document]:
    return [Document((Text(f"p{i % 4}"), Media(picture(i % 4))), name=str(i)) for i in range(count)]


def run(out: Path, init: Path, weights: str, optimizer: type = AdamWConfig, **rates: float) -> Run:
    base = digits.run()
    image = replace(base.model.modalities[0], shape=(4, 4), patch=(2, 2))
    return replace(
        base,
        out=str(out),
        init=str(init),
        dtype="fp32",
        device="cpu",
        model=replace(
            base.model,
            modalities=(image,),
            transformer=replace(base.model.transformer, modality_weights=weights),
            context_length=64,
        ),
        packing=replace(base.packing, row_length=48, rows=4, window=16),
        trainer=TrainerConfig(steps=8, ema_decay=0.9, log_every=1000),
        optimizer=optimizer(**({"lr": 1e-2, "warmup": 2, "weight_decay": 0.5, "max_grad_norm": 0.5} | rates)),
    )


def text_logits(network: Network) -> torch.Tensor:
    """Of the original ids, on rows of text alone, their BOS included."""
    ids = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(5))
    ids[:, 0] = 256 if network.embed.weight.shape[0] == COUNT else COUNT
    positions = torch.arange(40).float()[None, :, None].expand(3, 40, network.config.coordinates.axes)
    place = AttentionMetadata.of_rows(torch.zeros_like(ids), torch.full_like(ids, -1), torch.zeros_like(ids, dtype=torch.bool))
    with torch.no_grad():
        return network.head(network.hidden(ids, positions, [], metadata=place)[0])[:, :COUNT]


def quiet(line: str) -> None:
    pass


FROZEN = {
    "mixture": ("llama", {}, "all", {}),
    "mixture, tied": ("llama", {"tie_word_embeddings": True}, "all", {}),
    "feed-forwards, no BOS of its own": ("qwen2", {"bos_token_id": None, "eos_token_id": None}, "mlp", {}),
    "patchers and control tokens alone": ("qwen3", {"head_dim": 8}, "none", {}),
    "muon": ("llama", {}, "all", {"optimizer": MuonConfig}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FROZEN)
def test_frozen_language_weights_leave_text_bit_equal(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weight decay, moments, clipping and the average reach none of it: neither the live weights nor the averaged ones."""
    kind, options, weights, optimizer = FROZEN[name]
    write(tmp_path / "lm", kind, **options)
    seen: dict[str, torch.Tensor] = {}
    first: dict[str, torch.Tensor] = {}
    begin, average = Trainer.run, Trainer.average

    def begun(self: Trainer) -> None:
        first.update({n: p.detach().clone() for n, p in self.model.network.named_parameters()})  # type: ignore[union-attr]
        seen["before"] = text_logits(self.model.network)  # type: ignore[arg-type]
        begin(self)

    def averaged(self: Trainer) -> None:
        seen["live"] = text_logits(self.model.network)  # type: ignore[arg-type]
        average(self)

    monkeypatch.setattr(Trainer, "run", begun)
    monkeypatch.setattr(Trainer, "average", averaged)
    m = train(run(tmp_path / "run", tmp_path / "lm", weights, language_lr_scale=0.0, **optimizer), corpus(), [], quiet)
    assert torch.equal(seen["before"], seen["live"]) and torch.equal(seen["before"], text_logits(m.network))
    assert torch.equal(seen["before"], text_logits(Transfusion.from_pretrained(tmp_path / "run").eval().network))
    frozen = {id(p) for p in m.network.language_parameters()}
    for n, p in m.network.named_parameters():
        assert torch.equal(p, first[n]) == (id(p) in frozen), n
    assert not torch.equal(m.network.embed.new, first["embed.new"]), "control tokens are trained"
    untouched = Transfusion.from_language_model(tmp_path / "lm", modalities=m.config.model.modalities, modality_weights=weights)  # type: ignore[arg-type]
    assert torch.equal(text_logits(untouched.network), seen["before"])


def test_a_slower_language_model_moves_less(tmp_path: Path) -> None:
    """Adam's first step is the rate itself, so a factor shows exactly."""
    write(tmp_path)
    moved = {}
    for factor in (1.0, 0.1, 0.0):
        m = Transfusion.from_language_model(tmp_path, modalities=(IMAGE,), modality_weights="all")
        before = {n: p.detach().clone() for n, p in m.network.named_parameters()}
        optimizer = AdamWConfig(lr=1e-3, weight_decay=0.0, language_lr_scale=factor)
        optimizer = optimizer.build(m)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * group.get("lr_scale", 1.0)
        m.loss([["ab", picture(1)], ["some", picture(2)]]).backward()
        optimizer.step()
        moved[factor] = {n: (p - before[n]).abs().max().item() for n, p in m.network.named_parameters()}
    for n in ("embed.weight", "head.weight", "transformer.norm.weight", "transformer.blocks.1.attention.qkv.weight"):
        assert moved[0.1][n] == pytest.approx(0.1 * moved[1.0][n], rel=1e-2) and moved[0.0][n] == 0
    for n in ("embed.new", "head.new", "transformer.blocks.1.media.0.attention.qkv.weight"):
        assert moved[0.1][n] == pytest.approx(1e-3, rel=1e-2) == pytest.approx(moved[0.0][n], rel=1e-2)


@pytest.mark.slow
def test_media_learn_beside_a_frozen_language_model(tmp_path: Path) -> None:
    write(tmp_path)
    m = Transfusion.from_language_model(tmp_path, modalities=(IMAGE,), modality_weights="all")
    optimizer = AdamWConfig(lr=1e-2, language_lr_scale=0.0).build(m)
    docs = corpus(4)
    first = m(m.batch(docs)).media.value.item()
    for _ in range(60):
        optimizer.zero_grad()
        m.loss(docs).backward()
        optimizer.step()
    assert m(m.batch(docs)).media.value.item() < 0.5 * first  # measured 0.0003
    assert all(p.grad is None for p in m.network.language_parameters())


def test_a_rate_for_no_language_model_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a model that starts from a language model"):
        AdamWConfig(language_lr_scale=0.0).build(model(IMAGE))
    with pytest.raises(ValueError, match="0 \\(frozen\\) or more"):
        AdamWConfig(language_lr_scale=-1.0)
    assert model(IMAGE).network.language_parameters() == []


# ---- from the command line ----------------------------------------------------------------------------------------------


SHORT = "--trainer.steps 4 --checkpoint.every 2 --packing.rows 2 --packing.row-length 64 --optimizer.warmup 1 --dtype fp32 --device cpu"


@pytest.mark.slow
def test_a_language_model_learns_captioned_pictures_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "lm", "qwen3", head_dim=16)
    for i in range(12):
        png(tmp_path / "data" / f"{i}.png", i, size=(20, 16))
        (tmp_path / "data" / f"{i}.txt").write_text(f"picture number {i % 3}")
    small = "--model.modalities.0.shape 16 16 --model.modalities.0.patch 8 8 --model.context_length 128"
    line = f"train pictures --data data --init lm --model.transformer.modality_weights all --optimizer.language_lr_scale 0 {SHORT} {small}"
    assert command(f"{line} --out run") == 0
    said = capfd.readouterr().out
    assert "language model lm" in said and "width 32, depth 2, 4 heads, modality weights all" in said
    trained = Transfusion.from_pretrained("run").eval()
    untouched = Transfusion.from_language_model("lm", modalities=trained.config.model.modalities, modality_weights="all").eval()
    assert torch.equal(text_logits(trained.network), text_logits(untouched.network))
    assert not torch.equal(trained.network.head.new, untouched.network.head.new)
    assert command(f"{line} --out run") == 0  # the same line again: nothing is left to do, and nothing is damaged
    assert command("generate run --prompt picture --out drawn --sampler.num-steps 2 --max-items 1 --max-tokens 4") == 0
    assert Path("drawn/outputs.jsonl").exists()
    # from such a run to another one: its trunk and ids come along, whatever the recipe's own are
    assert command(f"train pictures --data data --init run {SHORT} {small} --out more") == 0
    more = Transfusion.from_pretrained("more")
    assert more.config.language == trained.config.language and more.config.model.transformer == trained.config.model.transformer
    assert config.from_yaml(Run, Path("more/run.yaml").read_text()).model == more.config.model
    assert config.from_yaml(Run, Path("run/run.yaml").read_text()).model == trained.config.model
    for begin, wrong in (
        (line, "--model.transformer.width 64"),
        (f"train pictures --data data --init run {SHORT} {small}", "--model.transformer.rope-theta 7.0"),
        (f"train pictures --data data --init run {SHORT} {small}", "--model.transformer.attention.gated True"),
    ):
        assert command(f"{begin} {wrong} --out other") == 2
        assert f"contradicts {wrong} (it has" in capfd.readouterr().err and not Path("other").exists()
    # sets of weights, adaLN and dropout can also be had later
    assert command(f"train pictures --data data --init lm {SHORT} {small} --out first") == 0
    later = f"train pictures --data data --init first {SHORT} {small} --out later"
    later += " --model.transformer.modality_weights all --model.transformer.adaln True --model.transformer.dropout 0.1"
    assert command(later) == 0
    assert command(later) == 0
    first, last = Transfusion.from_pretrained("first"), Transfusion.from_pretrained("later")
    assert last.config.model.transformer == replace(
        first.config.model.transformer, modality_weights="all", adaln=True, dropout=0.1
    )
    assert config.from_yaml(Run, Path("later/run.yaml").read_text()).model == last.config.model
    assert command(f"{later} --init run --model.transformer.modality_weights mlp --out other") == 2
    assert "has modality_weights 'all', which 'mlp' cannot hold" in capfd.readouterr().err
    assert command(f"{line} --out other --model.context_length 1000") == 1
    assert "context of 256" in capfd.readouterr().err
    assert command(f"train pictures --data data {SHORT} {small} --optimizer.language_lr_scale 0 --out other") == 1
    assert "starts from a language model" in capfd.readouterr().err
