"""Pretrained language models: a Hugging Face folder of type Llama, Mistral, Qwen2 or Qwen3, loaded into a `Network`.

    config.json                                   -> sizes of the transformer, ids of BOS and EOS, context length
    tokenizer.json                                -> the tokenizer, unchanged
    model.safetensors, or several and an index    -> weights, one tensor at a time

Their layers are those of `nn/transformer.py` (pre-norm with RMSNorm, SwiGLU, RoPE in halves), so weights are copied unchanged:
q, k, v become one matrix, gate and up another. Unsupported settings of a config.json are rejected by name, and so are weights
that would be left over. No pickle is read.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transfusion.config import short
from transfusion.data.vocabulary import PretrainedVocabulary, TokenizerFile, Vocabulary
from transfusion.files import read_json
from transfusion.modality import Modality
from transfusion.model.network import ModelConfig, Network
from transfusion.nn.config import TransformerConfig
from transfusion.nn.layers import SplitEmbedding, SplitHead
from transfusion.nn.positions import LinearScaling, Llama3Scaling, Scaling, Unscaled

HUB = "hf://"
"""Before a name on the Hugging Face hub. Without it a name is a folder, so that no owner of a mistyped name gives weights."""
ModalityWeights = Literal["none", "mlp", "all"]
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TYPES = ("llama", "mistral", "qwen2", "qwen3")
CONTEXT = 2048
"""Default context length: the full context of a language model would need a cache of many gigabytes."""
BANDS = ("low_freq_factor", "high_freq_factor")
OVERRIDABLE_FIELDS = {"modality_weights", "adaln", "dropout"}
"""Options of the transformer that leave its text logits unchanged in evaluation."""
SIZE_FIELDS = {"width", "depth", "num_heads", "num_kv_heads", "head_dim", "mlp_width", "mlp_multiple_of"} | {
    *("qk_norm", "qkv_bias", "rope_theta", "rope_scaling", "norm_eps")
}
"""Sizes and options of the transformer that the language model decides."""
DEFAULT_FIELDS = {f.name for f in fields(TransformerConfig)} - OVERRIDABLE_FIELDS - SIZE_FIELDS
"""All others change its text logits, and no language model has them."""
SUPPORTED_VALUES = {
    **dict.fromkeys(("attention_bias", "mlp_bias", "qkv_bias", "use_qk_norm"), (False,)),
    **dict.fromkeys(("hidden_act", "hidden_activation"), ("silu", "swish")),
    **dict.fromkeys(("partial_rotary_factor", "logit_scale", "logits_scaling"), (1,)),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier"), (1,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "attention_multiplier"), ()),
    **dict.fromkeys(("query_pre_attn_scalar", "quantization_config", "num_experts", "num_local_experts"), ()),
}
"""Supported values of these settings; absent and null are supported, anything else is rejected."""


@dataclass(frozen=True)
class LanguageModel:
    """The configuration of a pretrained language model.

    Args:
        folder: its files.
        transformer: sizes and options.
        tie_embeddings: one matrix for token embeddings and head.
        ids: of its vocabulary.
        longest: its context length, in tokens.
        window: length of its sliding attention window, in tokens, if it has one.
    """

    folder: Path
    transformer: TransformerConfig
    tie_embeddings: bool
    ids: PretrainedVocabulary
    longest: int
    window: int | None = None

    @classmethod
    def open(cls, name: str | Path, *, revision: str | None = None) -> "LanguageModel":
        """Read the configuration of a folder, or of hf://OWNER/MODEL on the Hugging Face hub (extra `hf`).

        Raises:
            ValueError: no language model, or an unsupported type or setting, which the message names.
        """
        folder = fetch(name, revision)
        plain = _json(folder / "config.json")
        kind = plain.get("model_type")
        if kind not in TYPES:
            raise ValueError(f"{folder} holds a model of type {short(kind)}; these can be read: {', '.join(TYPES)}")
        rotary = plain.get("rope_parameters")
        settings = (rotary if isinstance(rotary, dict) else {}) | {k: v for k, v in plain.items() if v is not None}
        for name, supported in SUPPORTED_VALUES.items():
            if (value := settings.get(name)) is not None and (isinstance(value, list | dict) or value not in supported):
                raise ValueError(f"{folder}: this {kind} model has {name} {short(value)}, which is not supported")
        heads, width = _whole(plain, "num_attention_heads", folder), _whole(plain, "hidden_size", folder)
        theta, scaling = _rotary(plain, folder)
        transformer = TransformerConfig(
            width=width,
            depth=_whole(plain, "num_hidden_layers", folder),
            num_heads=heads,
            num_kv_heads=_whole(plain, "num_key_value_heads", folder, heads),
            head_dim=_whole(plain, "head_dim", folder, 128 if kind == "qwen3" else max(width // heads, 1)),
            mlp_width=_whole(plain, "intermediate_size", folder),
            qk_norm=kind == "qwen3",
            qkv_bias=kind == "qwen2",
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=_number(plain, "rms_norm_eps", folder, 1e-6),
        )
        tied = _flag(plain, "tie_word_embeddings", folder, default=False)
        longest = _whole(plain, "max_position_embeddings", folder, CONTEXT)
        return cls(folder, transformer, tied, _ids(plain, folder), longest, _window(plain, kind, folder))

    def model(self, model: ModelConfig, *, modality_weights: ModalityWeights, context_length: int | None) -> ModelConfig:
        """`model` with the transformer of this language model.

        Raises:
            ValueError: a context that is too long, or options that would change the logits of the language model.
        """
        for name in sorted(DEFAULT_FIELDS):
            if getattr(model.transformer, name) != getattr(TransformerConfig(), name):
                raise ValueError(f"model.transformer.{name} would change the language model's logits: leave it at its default")
        limit = self.longest if self.window is None else min(self.longest, self.window)
        if context_length is not None and not 1 <= context_length <= limit:
            why = f"a window of {self.window} tokens" if limit == self.window else f"a context of {self.longest}"
            raise ValueError(f"{self.folder} has {why}, shorter than context_length {context_length}: take at most {limit}")
        sizes = {name: getattr(self.transformer, name) for name in SIZE_FIELDS}
        return replace(
            model,
            transformer=replace(model.transformer, **sizes, modality_weights=modality_weights),
            tie_embeddings=self.tie_embeddings,
            context_length=context_length or min(limit, CONTEXT),
        )

    def vocabulary(self, modalities: tuple[Modality, ...]) -> Vocabulary:
        """Its tokenizer and ids, with control tokens for these modalities. Raises ValueError if tokenizer.json is missing."""
        file = self.folder / "tokenizer.json"
        if not file.is_file():
            folder = repr(str(self.folder))
            how = f"AutoTokenizer.from_pretrained({folder}).save_pretrained({folder})"
            raise ValueError(f"{self.folder} has no tokenizer.json; write one with transformers: {how}")
        return Vocabulary(TokenizerFile(str(file)).build([]), modalities, self.ids)

    def check(self) -> None:
        """Raise ValueError unless the weights have the sizes that config.json names: before any of that size are made."""
        sizes, width = self.transformer.sizes, self.transformer.width
        rows = {
            "self_attn.q_proj": self.transformer.num_heads * sizes.head_dim,
            "self_attn.k_proj": sizes.num_kv_heads * sizes.head_dim,
            "mlp.gate_proj": sizes.mlp_width,
        }
        last = f"model.layers.{self.transformer.depth - 1}"
        wanted = {f"{last}.{name}.weight": (count, width) for name, count in rows.items()}
        with ExitStack() as stack:
            files = _files(self.folder, stack)
            for name, shape in ({"model.embed_tokens.weight": (self.ids.count, width)} | wanted).items():
                if name not in files:
                    raise ValueError(f"{self.folder} has no weights {name}, which its config.json asks for")
                found = tuple(files[name].get_slice(name).get_shape())
                if found != shape:
                    raise ValueError(f"{self.folder}: config.json contradicts the shape of {name}, {found}")

    @torch.no_grad()
    def load(self, network: Network, *, copies: bool = True) -> None:
        """Load these weights into a network of `model`, one tensor in memory at a time.

        Rows of new tokens start at the mean of the pretrained rows, with noise of a tenth of their standard deviation: no new
        token starts likelier than an average one, and no two are equal.

        Args:
            copies: start modality-specific weights as copies of the text's (LMFusion, arXiv 2412.15188), else keep their own
                initial values.

        Raises:
            ValueError: weights that are missing, damaged, no finite floating-point numbers, of another shape, or left over.
        """
        with ExitStack() as stack:
            files = _files(self.folder, stack)
            unused = {name for name in files if not name.endswith("rotary_emb.inv_freq")}
            unused -= {"lm_head.weight"} if self.tie_embeddings else set()
            for parameter, names in _names(network):
                first = 0
                for name in names:
                    if name not in files:
                        raise ValueError(f"{self.folder} has no weights {name}, which its config.json asks for")
                    tensor = files[name].get_tensor(name)
                    if tensor.dtype not in FLOATS:
                        raise ValueError(
                            f"{self.folder}: {name} is {tensor.dtype}, not floating point; quantized weights are not read"
                        )
                    if not torch.isfinite(tensor).all():
                        raise ValueError(f"{self.folder}: {name} holds NaN or infinity")
                    rows = parameter[first : first + len(tensor)]
                    first += len(tensor)
                    if rows.shape != tensor.shape:
                        raise ValueError(f"{self.folder}: config.json contradicts the shape of {name}, {tuple(tensor.shape)}")
                    rows.copy_(tensor)
                    unused.discard(name)
                if first not in (len(parameter), self.ids.count):
                    raise ValueError(f"{self.folder}: {', '.join(names)} have {first} rows, {len(parameter)} are needed")
        if unused:
            some = ", ".join(sorted(unused)[:4])
            raise ValueError(f"{self.folder} has {len(unused)} weights that this type of model does not: {some}")
        for module in (network.embed, network.head):
            assert isinstance(module, SplitEmbedding | SplitHead)
            pretrained = module.weight[: self.ids.count]
            mean, std = pretrained.mean(0), pretrained.std(0) * 0.1
            for rows in (module.weight[self.ids.count :], module.new):
                rows.copy_(mean + std * torch.randn_like(rows))
        if copies:
            weights = dict(network.transformer.named_parameters())
            for name, (_, text) in network.transformer.text_counterparts().items():
                if text in weights:  # adaLN and the like have no counterpart
                    weights[name].copy_(weights[text])


def _names(network: Network) -> Iterator[tuple[Tensor, list[str]]]:
    """Parameters of the network, and the names of the tensors that are stacked in each."""
    yield network.embed.weight, ["model.embed_tokens.weight"]
    if not network.config.tie_embeddings:
        yield network.head.weight, ["lm_head.weight"]
    yield network.transformer.norm.weight, ["model.norm.weight"]
    modules = {
        "attention_norm": ["input_layernorm"],
        "attention.qkv": [f"self_attn.{x}_proj" for x in "qkv"],
        "attention.out": ["self_attn.o_proj"],
        "attention.q_norm": ["self_attn.q_norm"],
        "attention.k_norm": ["self_attn.k_norm"],
        "mlp_norm": ["post_attention_layernorm"],
        "mlp.gate_up": ["mlp.gate_proj", "mlp.up_proj"],
        "mlp.down": ["mlp.down_proj"],
    }
    for layer, block in enumerate(network.transformer.blocks):
        for name, parameter in block.named_parameters():
            module, _, kind = name.rpartition(".")
            if module in modules:
                yield parameter, [f"model.layers.{layer}.{theirs}.{kind}" for theirs in modules[module]]


# ---- files --------------------------------------------------------------------------------------------------------------


def fetch(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a language model: itself, or what hf://OWNER/MODEL names, downloaded from the Hugging Face hub.

    Raises:
        ValueError: no such folder or name, the hub cannot be reached, or the extra `hf` is missing.
    """
    if not is_on_hub(name):
        folder = Path(name)
        if not folder.is_dir():
            raise ValueError(f"no folder {name}; a model on the Hugging Face hub is written {HUB}OWNER/MODEL")
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} has no config.json: give the folder of a language model")
        return folder
    repository = str(name).removeprefix(HUB)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository, re.ASCII):
        raise ValueError(f"{name} is no name on the Hugging Face hub; it is written {HUB}OWNER/MODEL")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(f"to fetch {name} from the Hugging Face hub, install: pip install 'transfusion-kit[hf]'") from error
    try:
        patterns = ["config.json", "tokenizer.json", "*.safetensors", "*.safetensors.index.json"]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:  # of many kinds, down to those of its network library
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"cannot fetch {name} from the Hugging Face hub ({reason}): check the name, or download it and give the folder"
        ) from error


def is_language_model(name: str) -> bool:
    """Whether this names a language model, as a folder or on the hub, and not a model folder of this library."""
    file = Path(name) / "config.json"
    return is_on_hub(name) or (file.is_file() and "model_type" in _json(file))


def is_on_hub(name: str | Path) -> bool:
    """Whether this names something on the Hugging Face hub: nothing without the prefix does."""
    return isinstance(name, str) and name.startswith(HUB)


def _json(file: Path) -> dict[str, Any]:
    try:
        plain = read_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    if not isinstance(plain, dict):
        raise ValueError(f"cannot read {file}: it holds no settings")
    return plain


def _files(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Name of each tensor -> the open file with it."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        places = _json(index).get("weight_map")
        if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
            raise ValueError(f"cannot read {index}: its weight_map must give a file for each weight")
        names = sorted(set(places.values()))
    tensors: dict[str, Any] = {}
    for name in names:
        file = folder / name
        if file.name != name or not file.is_file():
            pickled = " (pickled weights are not read: write them anew with transformers, save_pretrained)"
            raise ValueError(f"{folder} has no {name}{pickled if any(folder.glob('*.bin')) else ''}")
        try:
            opened = stack.enter_context(safe_open(file, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"cannot read {file}: {error}; it is damaged or incomplete") from error
        if twice := tensors.keys() & set(opened.keys()):
            raise ValueError(f"{folder} has the weights {min(twice)} twice")
        tensors |= dict.fromkeys(opened.keys(), opened)
    return tensors


# ---- config.json --------------------------------------------------------------------------------------------------------


def _whole(plain: dict[str, Any], name: str, folder: Path, default: int | None = None) -> int:
    """A positive integer setting; the default if absent or null."""
    value = default if plain.get(name) is None else plain[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**53:
        raise ValueError(f"{folder / 'config.json'}: {name} must be a whole number above 0, not {short(value)}")
    return value


def _number(plain: dict[str, Any], name: str, folder: Path, default: float | None = None) -> float:
    """A positive number setting; the default if absent or null."""
    value = default if plain.get(name) is None else plain[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{folder / 'config.json'}: {name} must be a number above 0, not {short(value)}")
    return float(value)


def _flag(plain: dict[str, Any], name: str, folder: Path, *, default: bool) -> bool:
    """A setting that is true or false; the default if absent or null."""
    value = default if plain.get(name) is None else plain[name]
    if not isinstance(value, bool):
        raise ValueError(f"{folder / 'config.json'}: {name} must be true or false, not {short(value)}")
    return value


def _rotary(plain: dict[str, Any], folder: Path) -> tuple[float, Scaling]:
    """Base and scaling, in the old form (rope_theta, rope_scaling) or the new (rope_parameters)."""
    rotary = plain.get("rope_parameters") or plain.get("rope_scaling") or {}
    if not isinstance(rotary, dict) or any(isinstance(value, dict) for value in rotary.values()):
        raise ValueError(f"{folder}: rotary positions that differ between layers are not supported")
    theta = _number(rotary if rotary.get("rope_theta") is not None else plain, "rope_theta", folder, 10000.0)
    kind = rotary.get("rope_type") or rotary.get("type") or "default"
    if not isinstance(kind, str):
        raise ValueError(f"{folder / 'config.json'}: the type of its rotary positions must be a word, not {short(kind)}")
    if kind == "default":
        return theta, Unscaled()
    needed = {"linear": ("factor",), "llama3": ("original_max_position_embeddings", "factor", *BANDS)}.get(kind, ())
    settings = {k: plain[k] for k in needed if k in plain} | rotary
    for name in needed:
        if name not in settings:
            raise ValueError(f"{folder}: its {kind} scaling of rotary positions has no {name}")
    if kind == "linear":
        return theta, LinearScaling(_number(settings, "factor", folder))
    if kind == "llama3":
        low, high = (_number(settings, name, folder) for name in BANDS)
        return theta, Llama3Scaling(_number(settings, "factor", folder), low, high, _whole(settings, needed[0], folder))
    raise ValueError(
        f"{folder}: scaling rotary positions by {kind!r} is not supported (linear and llama3 are); if it only "
        "serves texts longer than the original context, remove rope_scaling from its config.json"
    )


def _window(plain: dict[str, Any], kind: str, folder: Path) -> int | None:
    """Length of the sliding attention window in tokens; None: attention to all."""
    layers = plain.get("layer_types") or []
    if not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers):
        raise ValueError(f"{folder / 'config.json'}: layer_types must be a list of words, not {short(layers)}")
    slides = _flag(plain, "use_sliding_window", folder, default=kind == "mistral")
    slides = "sliding_attention" in layers if layers else slides
    return _whole(plain, "sliding_window", folder) if slides and plain.get("sliding_window") is not None else None


def _ids(plain: dict[str, Any], folder: Path) -> PretrainedVocabulary:
    ends, begin = plain.get("eos_token_id"), plain.get("bos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    for name, ids in (("eos_token_id", ends), ("bos_token_id", [] if begin is None else [begin])):
        if wrong := [token for token in ids if not isinstance(token, int) or isinstance(token, bool)]:
            raise ValueError(f"{folder / 'config.json'}: {name} must be a whole number, not {short(wrong[0])}")
    begin = begin if begin is not None and begin >= 0 else None
    try:
        return PretrainedVocabulary(_whole(plain, "vocab_size", folder), begin, tuple(end for end in ends if end >= 0))
    except ValueError as error:
        raise ValueError(str(error) if str(folder) in str(error) else f"{folder / 'config.json'}: {error}") from error
