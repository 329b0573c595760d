# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
"""Pretrained language models: logits equal to those of `transformers`, from the folders that it writes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from llm import SIZES, change, write
from small import IMAGE, SOUND, picture
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.data.tokenize import tokenize_document
from transfusion.generate.engine import Engine
from transfusion.generate.state import Event, Token
from transfusion.model.network import ModelConfig
from transfusion.model.pretrained import LanguageModel, fetch, is_language_model
from transfusion.model_folder import TransfusionConfig
from transfusion.nn.attention import AttentionMetadata
from transfusion.nn.config import TransformerConfig
from transfusion.nn.positions import Llama3Scaling, angles
from transfusion.recipes import digits
from transfusion.run.adopt import adopt_init

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, one head of keys": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0}, "rms_norm_eps": 1e-5}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1000.0}}),
    "llama, narrow heads": ("llama", {"head_dim": 4}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen 2": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}),
    "qwen 2, tied": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen 3": ("qwen3", {"head_dim": 16}),
    "qwen 3, tied": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True, "num_key_value_heads": 1}),
}


def logits(m: Transfusion, ids: torch.Tensor) -> torch.Tensor:
    """Of whole rows [row length]."""
    positions = torch.arange(ids.shape[1]).float()[None, :, None].expand(*ids.shape, m.config.model.coordinates.axes)
    place = AttentionMetadata.of_rows(torch.zeros_like(ids), torch.full_like(ids, -1), torch.zeros_like(ids, dtype=torch.bool))
    return m.network.head(m.network.hidden(ids, positions, [], metadata=place)[0]).unflatten(0, ids.shape)


@pytest.mark.parametrize("name", KINDS)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, options = KINDS[name]
    theirs = write(tmp_path, kind, **options)
    ours = Transfusion.from_language_model(tmp_path, modalities=(IMAGE,)).eval()
    ids = torch.randint(0, 259, (2, 200))
    count = SIZES["vocab_size"]
    with torch.no_grad():
        expected = theirs(ids).logits
        found = logits(ours, ids)
        assert found.shape[-1] == len(ours.vocabulary) == count + 3
        # measured over all kinds, at a mean size of 1.4: 6.6e-5 at most
        assert (found[..., :count] - expected).abs().max() < 2e-4
        # in fp64, with their norms not rounded to fp32 and their frequencies ours to the last bit: 8e-14 at most
        theirs.double()
        frequencies = theirs.model.rotary_emb.inv_freq
        exact = frequencies.double() / own_frequencies(ours)
        assert (exact - 1).abs().max() < 1e-6
        theirs.model.rotary_emb.inv_freq = own_frequencies(ours).float()
        norm = type(theirs.model.norm)
        monkeypatch.setattr(norm, "forward", lambda self, x: F.rms_norm(x, x.shape[-1:], self.weight, self.variance_epsilon))
        difference = (logits(ours.double(), ids)[..., :count] - theirs(ids).logits).abs().max()
        assert difference < 1e-11


def own_frequencies(m: Transfusion) -> torch.Tensor:
    """Angles at position 1, from their sines and cosines."""
    transformer = m.config.model.transformer
    half = torch.arange(0, transformer.sizes.head_dim, 2, dtype=torch.float32)
    return transformer.rope_scaling(transformer.rope_theta ** (-half / transformer.sizes.head_dim)).double()


def test_scaled_frequencies_against_transformers() -> None:
    """Llama 3.1's own numbers."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    told = LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(hidden_size=4096, num_attention_heads=32, rope_parameters=told))
    found = Llama3Scaling()(500000.0 ** (-torch.arange(0, 128, 2, dtype=torch.float32) / 128))
    assert (found / expected - 1).abs().max() < 1e-6  # measured 4.6e-7
    plain, scaled = (angles(torch.ones(1, 1), 128, 5e5, s)[0] for s in (TransformerConfig().rope_scaling, Llama3Scaling()))
    assert not torch.equal(plain, scaled)


def test_documents_use_the_language_models_bos_and_eos(tmp_path: Path) -> None:
    theirs = write(tmp_path)
    m = Transfusion.from_language_model(tmp_path, modalities=(IMAGE,)).eval()
    tokenized = tokenize_document(Document((Text("ab"),)), m.vocabulary, m.config.model.coordinates)
    assert tokenized.tokens[0] == 256 and tokenized.tokens[-1] == 257 and m.vocabulary.num_language == 300
    expected = F.cross_entropy(
        theirs(torch.from_numpy(tokenized.tokens)[None]).logits[0, :-1], torch.from_numpy(tokenized.tokens[1:])
    )
    found = m(m.batch([["ab"]])).text.value
    # our 3 control tokens take a share of the probability too
    assert 0 < found - expected < 0.05
    with torch.no_grad():
        part = logits(m, torch.from_numpy(tokenized.tokens)[None])[0, :-1, :300]
    assert torch.allclose(F.cross_entropy(part, torch.from_numpy(tokenized.tokens[1:])), expected, atol=1e-5)


def test_greedy_decoding_equals_transformers(tmp_path: Path) -> None:
    theirs = write(tmp_path, "qwen3", head_dim=16, bos_token_id=None, eos_token_id=257)
    with torch.no_grad():  # ids beyond the bytes would only be skipped by our sampler
        theirs.lm_head.weight[256:] = 0
    theirs.save_pretrained(tmp_path)
    m = Transfusion.from_language_model(tmp_path, modalities=()).eval()
    assert m.vocabulary.bos == 300 and m.vocabulary.num_language == 301
    with torch.no_grad():
        m.network.head.weight[300:] = 0
        prompt = torch.tensor([[65, 66, 67]])
        expected = theirs.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 3:]
        ids = prompt
        for _ in range(12):
            ids = torch.cat([ids, logits(m, ids)[:, -1:, :300].argmax(-1)], 1)
    assert ids[0, 3:].tolist() == expected.tolist()


def test_cached_decoding_equals_full_rows_and_folders_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "a", "llama", rope_parameters=LLAMA3 | {"rope_theta": 10000.0}, tie_word_embeddings=True)
    m = Transfusion.from_language_model(tmp_path / "a", modalities=(IMAGE,), modality_weights="all").eval()
    m.save_pretrained(tmp_path / "b")
    again = Transfusion.from_pretrained(tmp_path / "b").eval()
    assert again.config == m.config and all(torch.equal(p, q) for p, q in zip(m.parameters(), again.parameters(), strict=True))
    assert again.network.head.weight is again.network.embed.weight and again.network.head.new is again.network.embed.new
    assert (tmp_path / "b" / "model.safetensors").stat().st_size < 4 * m.network.num_parameters + 20_000
    docs = ["some", Document((Text("x"), Media(picture(1)), Text("y")))]
    assert torch.equal(m.loss(docs), again.loss(docs))
    written: list[list[int]] = []
    for x in (m, again):
        events: list[Event] = []
        x.generate("ab", max_tokens=8, max_items=0, on_event=events.append)
        written.append([event.token for event in events if isinstance(event, Token)])
    assert written[0] == written[1] and len(written[0]) == 8
    # the cache against whole rows: each next id is the likeliest writable one of the whole row before it
    ids = [m.vocabulary.bos, *m.vocabulary.encode("ab")]
    with torch.no_grad():
        for token in written[0]:
            last = logits(m, torch.tensor([ids]))[0, -1].masked_fill(~m.vocabulary.writable, -1e9)
            assert last.argmax() == token
            ids.append(token)


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_half_precision_generation_has_the_logits_of_autocast(tie_embeddings: bool, tmp_path: Path) -> None:
    """Split embeddings in the bf16 copy of the network."""
    write(tmp_path, tie_word_embeddings=tie_embeddings)
    m = Transfusion.from_language_model(tmp_path, modalities=(IMAGE,)).eval()
    engine = Engine(m.network, m.vocabulary, cache_slots=1, dtype=torch.bfloat16)
    assert engine.runner.network.head.weight.dtype == (torch.float32 if tie_embeddings else torch.bfloat16)
    h = torch.randn(3, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(engine.runner.network.head(h), m.network.head(h)) and engine.runner.network.head(h).shape == (
            3,
            len(m.vocabulary),
        )
    drawn = m.generate("ab", force="image", max_tokens=3, dtype=torch.bfloat16)[0]
    assert torch.isfinite(drawn.media[0].tensor()).all()


def test_init_from_matches_token_rows_by_name(tmp_path: Path) -> None:
    """Rows of split embeddings follow their token by its name, in any order of new tokens."""
    write(tmp_path, "qwen2", bos_token_id=None)
    old = Transfusion.from_language_model(tmp_path, modalities=(IMAGE,), modality_weights="all")
    new = Transfusion.from_language_model(tmp_path, modalities=(SOUND, IMAGE), modality_weights="all", seed=1)
    before = new.network.embed.new.detach().clone()
    taken = new.init_from(old)
    assert taken.new_tokens == ("<BEGIN sound>", "<END sound>") and "embed.new" in taken.loaded
    assert torch.equal(new.network.embed.weight, old.network.embed.weight)
    for name in ("<PAD>", "<BEGIN image>"):
        here, there = (x.vocabulary.names.index(name) - x.vocabulary.num_language for x in (new, old))
        assert torch.equal(new.network.head.new[here], old.network.head.new[there])
    sound = new.vocabulary.begin("sound") - new.vocabulary.num_language
    assert torch.equal(new.network.embed.new[sound], before[sound])


def test_initial_values_of_new_rows_and_media_weights(tmp_path: Path) -> None:
    write(tmp_path)
    for weights in ("mlp", "all"):
        m = Transfusion.from_language_model(tmp_path, modalities=(IMAGE,), modality_weights=weights)
        block: Any = m.network.transformer.blocks[1]
        assert torch.equal(block.media[0].mlp.down.weight, block.mlp.down.weight)
        new = Transfusion.from_language_model(tmp_path, modalities=(IMAGE,), modality_weights=weights, copies=False)
        assert not torch.equal(new.network.transformer.blocks[1].media[0].mlp.down.weight, block.mlp.down.weight)  # type: ignore
        again = Transfusion.from_language_model(tmp_path, modalities=(IMAGE,), modality_weights=weights)
        assert all(torch.equal(p, q) for p, q in zip(m.parameters(), again.parameters(), strict=True)), (
            "initial values depend on the seed alone"
        )
    for part in (m.network.embed, m.network.head):
        away = (part.new - part.weight.mean(0)).norm(dim=1)
        assert (
            part.new.shape == (3, 32)
            and (away > 0).all()
            and away.max() < 0.3 * (part.weight - part.weight.mean(0)).norm(dim=1).mean()
        )
        assert torch.unique(part.new, dim=0).shape[0] == 3


def test_sharded_and_half_precision_folders(tmp_path: Path) -> None:
    theirs = write(tmp_path, shard="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1 and not (tmp_path / "model.safetensors").exists()
    m = Transfusion.from_language_model(tmp_path, modalities=())
    assert torch.equal(m.network.transformer.blocks[1].mlp.down.weight, theirs.model.layers[1].mlp.down_proj.weight)
    theirs.bfloat16().save_pretrained(tmp_path / "half")
    (tmp_path / "half" / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text())
    half = Transfusion.from_language_model(tmp_path / "half", modalities=())
    assert half.network.embed.weight.dtype == torch.float32
    assert torch.equal(half.network.embed.weight, theirs.model.embed_tokens.weight.float())


# ---- errors -------------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another type": ("llama", {"model_type": "gpt2"}, "type 'gpt2'.*qwen3"),
    "biases everywhere": ("llama", {"attention_bias": True}, "attention_bias True"),
    "biases of qwen 3": ("qwen3", {"attention_bias": True}, "attention_bias True"),
    "biases inside": ("llama", {"mlp_bias": True}, "mlp_bias True"),
    "another function": ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    "half rotary": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    "half rotary, new form": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "partial_rotary",
    ),
    "yarn": ("qwen2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
    "dynamic, old form": ("llama", {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    "llama3 that lacks a number": ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "has no original_max"),
    "scaled logits": ("llama", {"logit_scale": 0.5}, "logit_scale 0.5"),
    "quantised": ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    "no size": ("llama", {"hidden_size": None}, "hidden_size must be a whole number"),
    "more heads": ("llama", {"num_attention_heads": 8, "num_key_value_heads": 4}, "contradicts the shape of .*q_proj"),
    "a wider inside": ("llama", {"intermediate_size": 64}, "contradicts the shape of .*gate_proj"),
    "a layer less": ("llama", {"num_hidden_layers": 1}, "weights that this type of model does not"),
    "a layer more": ("llama", {"num_hidden_layers": 3}, "no weights model.layers.2"),
    "fewer ids than its tokenizer": ("llama", {"vocab_size": 258}, "own tokenizer"),
    "biases that nothing would use": ("qwen2", {"model_type": "llama"}, "weights that this type of model does not"),
    "an end that is a word": ("llama", {"eos_token_id": "257"}, r"config\.json: eos_token_id must be.*'257'"),
    "an end in a list": ("llama", {"eos_token_id": [257, "x"]}, r"config\.json: eos_token_id must be.*'x'"),
    "a begin": ("llama", {"bos_token_id": "256"}, r"config\.json: bos_token_id must be.*'256'"),
    "heads in words": ("llama", {"num_key_value_heads": "2"}, r"config\.json: num_key_value_heads must be.*'2'"),
    "a head's size": ("llama", {"head_dim": 8.0}, r"config\.json: head_dim must be"),
    "a norm": ("llama", {"rms_norm_eps": "tiny"}, r"config\.json: rms_norm_eps must be"),
    "a context": ("llama", {"max_position_embeddings": "8"}, r"config\.json: max_position_embeddings must be.*'8'"),
    "a window": ("mistral", {"sliding_window": "8"}, r"config\.json: sliding_window must be.*'8'"),
    "no factor": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": None}}, r"config\.json: factor must be.*None"),
    "no bands": (
        "llama",
        {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "low_freq_factor": "1"}},
        r"config\.json: low_freq_factor must be.*'1'",
    ),
    "a base": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": "x"}},
        r"config\.json: rope_theta must be.*'x'",
    ),
    "a base, old form": ("llama", {"rope_parameters": None, "rope_theta": "x"}, r"config\.json: rope_theta must be.*'x'"),
    "an end outside": ("llama", {"eos_token_id": [257, 300]}, "below 300"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {kind: tmp_path_factory.mktemp(kind) for kind in ("llama", "qwen2", "qwen3", "mistral")}
    for kind, folder in found.items():
        write(folder, kind)
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_settings_raise(name: str, folders: dict[str, Path]) -> None:
    kind, settings, message = REFUSED[name]
    kept = (folders[kind] / "config.json").read_text()
    change(folders[kind], **settings)
    try:
        with pytest.raises(ValueError, match=message):
            Transfusion.from_language_model(folders[kind], modalities=(IMAGE,))
    finally:
        (folders[kind] / "config.json").write_text(kept)


def test_sliding_window_limits_the_context_length(folders: dict[str, Path]) -> None:
    kept = (folders["mistral"] / "config.json").read_text()
    change(folders["mistral"], sliding_window=64)
    m = Transfusion.from_language_model(folders["mistral"], modalities=())
    assert m.config.model.context_length == 64
    with pytest.raises(ValueError, match="window of 64"):
        Transfusion.from_language_model(folders["mistral"], modalities=(), context_length=65)
    change(folders["qwen2"], use_sliding_window=False, sliding_window=16, layer_types=None)
    assert LanguageModel.open(folders["qwen2"]).window is None
    change(folders["qwen2"], layer_types=["full_attention", "sliding_attention"])
    assert LanguageModel.open(folders["qwen2"]).window == 16
    (folders["mistral"] / "config.json").write_text(kept)
    with pytest.raises(ValueError, match="a context of 256"):
        Transfusion.from_language_model(folders["llama"], modalities=(), context_length=257)


def test_older_forms_of_config_json(folders: dict[str, Path]) -> None:
    kept = (folders["llama"] / "config.json").read_text()
    change(
        folders["llama"], rope_parameters=None, rope_theta=5000.0, rope_scaling=LLAMA3, num_key_value_heads=None, head_dim=None
    )
    try:
        found = LanguageModel.open(folders["llama"])
        assert found.transformer.rope_theta == 5000.0 and found.transformer.rope_scaling == Llama3Scaling(4.0, 1.0, 4.0, 32)
        assert found.transformer.sizes.num_kv_heads == 4 and found.transformer.sizes.head_dim == 8
    finally:
        (folders["llama"] / "config.json").write_text(kept)


def test_language_model_decides_sizes_and_rejects_options(folders: dict[str, Path], unchecked) -> None:
    m = Transfusion.from_language_model(
        folders["llama"],
        config=TransfusionConfig(ModelConfig(modalities=(IMAGE,), transformer=TransformerConfig(width=96, num_heads=3))),
    )
    assert m.config.model.transformer.width == 32
    with pytest.raises(ValueError, match="modality_weights must be"):
        Transfusion.from_language_model(folders["llama"], modality_weights="shared")  # type: ignore[arg-type]


def test_missing_and_damaged_files_raise(tmp_path: Path) -> None:
    theirs = write(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "t")
    with pytest.raises(ValueError, match=r"no tokenizer\.json.*AutoTokenizer"):
        Transfusion.from_language_model(tmp_path)
    (tmp_path / "t").rename(tmp_path / "tokenizer.json")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        Transfusion.from_language_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights are not read"):
        Transfusion.from_language_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="has no"):
        Transfusion.from_language_model(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValueError, match="cannot read"):
        Transfusion.from_language_model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        Transfusion.from_language_model(tmp_path)


def test_a_name_is_looked_up_on_the_hub_only_with_its_prefix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[str] = []

    def snapshot(name: str, **kwargs: object) -> str:
        asked.append(name)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    for name in (
        "./nowhere",
        "nowhere",
        "runs/mine",
        "owner/model",
        "a/b/c",
        "HF://a/b",
        tmp_path / "nowhere",
        Path("hf://a/b"),
    ):
        with pytest.raises(ValueError, match="no folder"):
            fetch(name)
        assert not is_language_model(str(name)) or isinstance(name, Path)
    for name in ("hf://model", "hf://../x", "hf://a/b/c", "hf:///b", "hf://a/..", "hf://a b/c"):
        with pytest.raises(ValueError, match="no name on the Hugging Face hub"):
            fetch(name)
    assert not asked and fetch("hf://owner/model", "main") == tmp_path / "owner" / "model" and asked == ["owner/model"]
    with pytest.raises(ValueError, match=r"no model in runs/mine: .*hf://OWNER/MODEL"):
        adopt_init(replace(digits.run(), init="runs/mine"), ModelConfig())

    def offline(*args: object, **kwargs: object) -> str:
        raise ConnectionError("the network is unreachable\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"owner/model.*network is unreachable\).*give the folder"):
        fetch("hf://owner/model")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'transfusion-kit\[hf\]'"):
        fetch("hf://owner/model")


WRONG_SETTINGS: list[dict[str, Any]] = [
    {"model_type": ["llama"]},
    {"model_type": {}},
    {"vocab_size": 10**9},
    {"vocab_size": "259"},
    {"hidden_size": 10**9},
    {"hidden_size": [32]},
    {"num_hidden_layers": 10**9},
    {"num_hidden_layers": 900},
    {"num_hidden_layers": 2.0},
    {"num_attention_heads": 10**6},
    {"num_key_value_heads": True},
    {"intermediate_size": 10**6},
    {"head_dim": 10**6},
    {"rms_norm_eps": 10**400},
    {"rms_norm_eps": "1e-6"},
    {"rms_norm_eps": float("nan")},
    {"tie_word_embeddings": "false"},
    {"rope_parameters": ["linear"]},
    {"rope_parameters": {"rope_type": ["linear"]}},
    {"rope_parameters": {"rope_type": {"a": 1}}},
    {"rope_parameters": {"rope_type": 7}},
    {"rope_parameters": {"rope_type": "linear", "factor": "2"}},
    {"rope_parameters": {"rope_type": "linear", "factor": 10**400}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": [1]}},
    {"layer_types": 7},
    {"layer_types": {"sliding_attention": 1}},
    {"layer_types": [1, 2]},
    {"use_sliding_window": "no"},
    {"hidden_act": ["silu"]},
    {"attention_bias": {"a": 1}},
    {"eos_token_id": "2"},
    {"eos_token_id": [[2]]},
    {"bos_token_id": 10**9},
    {"max_position_embeddings": 10**30},
    {"max_position_embeddings": None, "quantization_config": {"bits": 4}},
]


@pytest.fixture(scope="module")
def plain_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write(folder, "llama")
    return folder


@pytest.mark.parametrize("settings", WRONG_SETTINGS, ids=str)
def test_settings_of_wrong_types_and_sizes_are_named(plain_llama: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    shutil.copytree(plain_llama, tmp_path / "copy")
    change(tmp_path / "copy", **settings)
    with pytest.raises(ValueError, match=r"copy|the transformer|must be"):
        Transfusion.from_language_model(tmp_path / "copy", modalities=(IMAGE,))


@pytest.mark.parametrize(
    "index",
    [
        [],
        {},
        {"weight_map": []},
        {"weight_map": {}},
        {"weight_map": None},
        {"weight_map": {"a": 1}},
        {"weight_map": {"a": ["model.safetensors"]}},
        {"weight_map": {"a": "../model.safetensors"}},
        {"weight_map": {"a": "gone.safetensors", "b": "model.safetensors"}},
        {"weight_map": {"a": "model.safetensors", "b": "again.safetensors"}},
    ],
    ids=str,
)
def test_an_index_of_another_form_is_named(plain_llama: Path, tmp_path: Path, index: Any) -> None:
    shutil.copytree(plain_llama, tmp_path / "copy")
    shutil.copy(plain_llama / "model.safetensors", tmp_path / "copy" / "again.safetensors")
    (tmp_path / "copy" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="copy"):
        Transfusion.from_language_model(tmp_path / "copy", modalities=())


@pytest.mark.parametrize("wrong", ["int8", "float8", "nan", "renamed", "transposed", "one row", "extra"])
def test_weights_that_are_not_these(plain_llama: Path, tmp_path: Path, wrong: str) -> None:
    shutil.copytree(plain_llama, tmp_path / "copy")
    file, name = tmp_path / "copy" / "model.safetensors", "model.layers.0.self_attn.o_proj.weight"
    weights = load_file(file)
    if wrong in ("int8", "float8"):
        weights[name] = weights[name].to(torch.int8 if wrong == "int8" else torch.float8_e4m3fn)
    elif wrong == "nan":
        weights[name][0, 0] = float("nan")
    elif wrong == "renamed":
        weights["model.layers.0.self_attn.o.weight"] = weights.pop(name)
    elif wrong == "transposed":
        weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].T.contiguous()
    elif wrong == "one row":
        weights[name] = weights[name][:1].clone()
    else:
        weights["model.layers.9.self_attn.o_proj.weight"] = weights[name].clone()
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"o_proj|embed_tokens"):
        Transfusion.from_language_model(tmp_path / "copy", modalities=())
