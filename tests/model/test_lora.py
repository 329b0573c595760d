"""LoRA adapters: they train on a frozen base; saved, loaded and merged adapters compute the same."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llm import write
from small import IMAGE, documents, model, picture
from transfusion.api import Transfusion
from transfusion.cli import main
from transfusion.generate.state import Event, Token
from transfusion.model import lora
from transfusion.model.lora import LoRAConfig
from transfusion.train.optimizer import AdamWConfig, MuonConfig

RANK = LoRAConfig(rank=4, alpha=8.0)


def adapted(options: LoRAConfig = RANK, *, random: bool = True, **kinds: object) -> Transfusion:
    """A model with adapters; `random`: B is random instead of zero, so that outputs change."""
    m = model(IMAGE, **kinds)  # type: ignore[arg-type]
    lora.add(m.network, options)
    m.to(next(m.parameters()).dtype)
    if random:
        shake(m)
    return m


def shake(m: Transfusion) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in m.network.named_parameters():
            if ".lora_B." in name:
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.1)


def base(m: Transfusion) -> dict[str, torch.Tensor]:
    """Frozen weights of the transformer, by their names without adapters."""
    kept = {n.replace(".base_layer", ""): p for n, p in m.network.named_parameters() if ".lora_" not in n}
    return {n: p.detach().clone() for n, p in kept.items() if n.startswith("transformer.")}


def losses(m: Transfusion) -> torch.Tensor:
    with torch.no_grad():
        return m.loss(documents())


def test_new_adapters_are_the_identity_and_trained_ones_are_not() -> None:
    plain, m = model(IMAGE, double=True), adapted(double=True, random=False)
    assert torch.equal(losses(plain), losses(m))
    shake(m)
    assert not torch.allclose(losses(plain), losses(m), rtol=1e-3)
    lora.remove(m.network)
    assert torch.equal(losses(plain), losses(m)) and m.network.state_dict().keys() == plain.network.state_dict().keys()


@pytest.mark.parametrize("weights", ["none", "all"])
def test_adapters_learn_and_base_weights_stay_frozen(weights: str, tmp_path: Path) -> None:
    write(tmp_path)
    m = Transfusion.from_language_model(tmp_path, modalities=(IMAGE,), modality_weights=weights)  # type: ignore[arg-type]
    before, rows = base(m), m.network.embed.weight.detach().clone()
    lora.add(m.network, RANK)
    optimizer = AdamWConfig(lr=1e-2, weight_decay=0.5).build(m)
    docs = [["p0", picture(0)], ["p1", picture(1)]]
    first = m.loss(docs).item()
    for _ in range(20):
        optimizer.zero_grad()
        m.loss(docs).backward()
        optimizer.step()
    assert m.loss(docs).item() < 0.3 * first  # measured 0.026 and 0.024
    after = base(m)
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert torch.equal(rows, m.network.embed.weight) and m.network.embed.new.requires_grad
    trained = {n for n, p in m.network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {n for n, p in m.network.named_parameters() if ".lora_" in n} <= trained


@pytest.mark.parametrize(
    ("options", "message"),
    [(LoRAConfig(4, patchers=False, embeddings=False), ".lora_"), (LoRAConfig(4, embeddings=False), "patchers")],
)
def test_patchers_and_embeddings_are_trained_on_request(options: LoRAConfig, message: str) -> None:
    m = adapted(options)
    trained = {n for n, p in m.network.named_parameters() if p.requires_grad}
    assert all(".lora_" in n or (options.patchers and n.startswith("patchers.")) for n in trained)
    assert any(message in n for n in trained)


def test_target_modules_select_matrices() -> None:
    def places(options: LoRAConfig) -> set[str]:
        m = adapted(options, modality_weights="all")
        return {n.split(".lora_A")[0] for n, _ in m.network.named_parameters() if ".lora_A" in n}

    assert len(places(LoRAConfig(4))) == 2 * 2 * 4
    assert len(places(LoRAConfig(4, media=False))) == 2 * 4 and not any(
        "media" in n for n in places(LoRAConfig(4, media=False))
    )
    assert {n.rpartition(".")[2] for n in places(LoRAConfig(4, target_modules=("qkv",)))} == {"qkv"}


@pytest.mark.parametrize("weights", ["none", "mlp"])
def test_merged_adapters_give_equal_losses_and_a_plain_model_folder(weights: str, tmp_path: Path) -> None:
    m = adapted(double=True, modality_weights=weights)
    expected = losses(m)
    with pytest.raises(ValueError, match="merge them first"):
        m.save_pretrained(tmp_path / "m")
    lora.merge(m.network)
    assert torch.allclose(losses(m), expected, rtol=1e-12)  # measured 4e-16
    single = adapted(modality_weights=weights)
    whole = losses(single)
    lora.merge(single.network)
    assert torch.allclose(losses(single), whole, rtol=1e-5)  # measured 1.2e-7
    single.save_pretrained(tmp_path / "m")
    again = Transfusion.from_pretrained(tmp_path / "m").eval()
    assert torch.equal(losses(again), losses(single))
    assert again.network.state_dict().keys() == model(IMAGE, modality_weights=weights).network.state_dict().keys()
    assert all(p.requires_grad for p in single.parameters())


def test_adapters_are_saved_without_the_base_and_loaded(tmp_path: Path) -> None:
    m = adapted(LoRAConfig(4, patchers=False, embeddings=False))
    lora.save(m.network, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["MANIFEST.json", "lora.json", "lora.safetensors"]
    assert (tmp_path / "lora.safetensors").stat().st_size < 0.5 * 4 * m.network.num_parameters
    data = (tmp_path / "lora.safetensors").read_bytes()
    (tmp_path / "lora.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="its digest differs"):
        lora.load(model(IMAGE).network, tmp_path)
    (tmp_path / "lora.safetensors").write_bytes(data)
    other = model(IMAGE)
    assert lora.load(other.network, tmp_path) == LoRAConfig(4, patchers=False, embeddings=False)
    assert torch.equal(losses(other), losses(m)) and not torch.equal(losses(other), losses(model(IMAGE)))
    whole = adapted()
    with torch.no_grad():
        whole.network.embed.weight += 0.1
        next(whole.network.patchers["image"].parameters()).mul_(1.5)
    lora.save(whole.network, tmp_path)
    lora.load(third := model(IMAGE).network, tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(third.parameters(), whole.network.parameters(), strict=True))


def test_generation_with_adapters_equals_merged_weights() -> None:
    """Unmerged and merged weights generate the same in fp32; bf16 generation is near."""
    m = adapted()
    heard: list[list[int]] = []

    def hear() -> Callable[[Event], None]:
        heard.append([])
        return lambda event: heard[-1].append(event.token) if isinstance(event, Token) else None

    options = {"max_tokens": 6, "max_items": 1, "force": "image"}
    one = m.generate(["ab", "c"], on_event=hear(), **options)
    half = m.generate(["ab"], dtype=torch.bfloat16, **options)
    lora.merge(m.network)
    other = m.generate(["ab", "c"], on_event=hear(), **options)
    assert heard[0] == heard[1] and len(heard[0]) > 0
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a.media[0].tensor(), b.media[0].tensor(), atol=1e-4)  # measured 9e-6, values up to 3.5
    assert (half[0].media[0].tensor() - one[0].media[0].tensor()).abs().max() < 0.5  # measured 0.14


def test_recomputed_activations_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused norm and gate, recomputed in backward, against the plain ones."""
    found = []
    for fused in (True, False):
        m = adapted(double=True)
        with monkeypatch.context() as patch:
            if not fused:
                patch.setattr("transfusion.nn.pointwise.fused", lambda x: False)
            m.loss(documents()).backward()
        found.append({n: p.grad for n, p in m.network.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 16
    for name, grad in found[0].items():
        assert grad is not None and torch.allclose(grad, found[1][name], rtol=1e-9, atol=1e-12), name


def test_training_under_autocast() -> None:
    m = adapted(LoRAConfig(4, alpha=8.0, dropout=0.1))
    m.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = m.loss(documents())
    loss.backward()
    exact = adapted(LoRAConfig(4, alpha=8.0))
    assert abs(loss.item() / exact.loss(documents()).item() - 1) < 0.1
    assert all(torch.isfinite(p.grad).all() for p in m.parameters() if p.requires_grad and p.grad is not None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, "0 \\(no adapters\\) or more"),
        ({"rank": 4, "alpha": 0.0}, "alpha above 0"),
        ({"rank": 4, "target_modules": ("gateup",)}, "did you mean 'gate_up'"),
        ({"rank": 4, "target_modules": ()}, "names no matrices"),
    ],
)
def test_lora_settings_out_of_range_raise(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**settings)


def test_lora_errors_name_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = model(IMAGE)
    with pytest.raises(ValueError, match="rank of at least 1"):
        lora.add(m.network, LoRAConfig())
    for call in (lora.merge, lora.remove, lambda n: lora.save(n, tmp_path)):
        with pytest.raises(ValueError, match="no adapters"):
            call(m.network)
    with pytest.raises(ValueError, match="no adapters in"):
        lora.load(m.network, tmp_path)
    lora.add(m.network, RANK)
    with pytest.raises(ValueError, match="already"):
        lora.add(m.network, RANK)
    held = {id(p) for group in MuonConfig().build(m).param_groups for p in group["params"]}  # AdamW has them
    assert held == {id(p) for p in m.parameters() if p.requires_grad}
    lora.save(m.network, tmp_path)
    wider = model(IMAGE, width=64).network
    with pytest.raises(ValueError, match="made for another network"):
        lora.load(wider, tmp_path)
    assert wider.lora is None
    with torch.no_grad():
        next(p for n, p in m.network.named_parameters() if ".lora_B" in n).fill_(float("nan"))
    with pytest.raises(ValueError, match="nothing was merged"):
        lora.merge(m.network)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'transfusion-kit\[lora\]'"):
        lora.add(model(IMAGE).network, RANK)


def test_init_from_needs_merged_adapters() -> None:
    there, here = adapted(), model(IMAGE)
    for one, other in ((here, there), (there, here)):
        with pytest.raises(ValueError, match="merge them first"):
            one.init_from(other)
    lora.merge(there.network)
    assert not here.init_from(there).new and torch.equal(losses(here), losses(there))


@pytest.mark.parametrize("language", ["0", "0.1"])
def test_lora_and_language_lr_scale_exclude_each_other(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "lm")
    with pytest.raises(SystemExit) as ended:
        main(f"train digits --init lm --lora.rank 2 --optimizer.language_lr_scale {language} --out run".split())
    said = capfd.readouterr().err
    assert ended.value.code == 2
    assert f"leave out --lora.rank 2 or --optimizer.language-lr-scale {language}" in said
    assert not Path("run").exists()


@pytest.mark.slow
def test_adapters_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    from small import png

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "lm")
    for i in range(8):
        png(tmp_path / "data" / f"{i}.png", i, size=(16, 16))
        (tmp_path / "data" / f"{i}.txt").write_text(f"picture number {i % 3}")
    line = (
        "train pictures --data data --init lm --lora.rank 2 --trainer.steps 4 --checkpoint.every 2 --packing.rows 2 "
        "--packing.row-length 64 --optimizer.warmup 1 --dtype fp32 --device cpu --model.modalities.0.shape 16 16 "
        "--model.modalities.0.patch 8 8 --model.context_length 128 --out run"
    )
    for _ in range(2):  # the second time it is done already
        with pytest.raises(SystemExit) as ended:
            main(line.split())
        assert ended.value.code == 0
    assert "LoRA of rank 2" in capfd.readouterr().out
    trained = Transfusion.from_pretrained("run").eval()
    fresh = Transfusion.from_language_model("lm", config=trained.config, context_length=128)
    lora.load(fresh.network, "run/adapter")
    lora.merge(fresh.network)
    docs = ["a word", ["pictures", torch.zeros(3, 16, 16)]]
    assert torch.equal(trained.loss(docs), fresh.eval().loss(docs))


def test_a_gradient_is_expected_where_only_adapters_train() -> None:
    """Text alone, embeddings frozen: the input has no gradient, the adapters have one, and flex on a CPU cannot give it."""
    m = model(IMAGE)
    lora.add(m.network, LoRAConfig(4, patchers=False, embeddings=False))
    m.network.config = replace(m.network.config, attention_backend="flex")
    with pytest.raises(ValueError, match="flex attention has no backward on cpu; train there with document or sdpa"):
        m.loss([["only text"]])
    m.network.config = replace(m.network.config, attention_backend="auto")
    m.loss([["only text"]]).backward()
    assert all(p.grad is not None for n, p in m.named_parameters() if ".lora_B." in n)
