"""Small random language models, written to a folder as their own library writes them."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken

from transfusion.data.vocabulary import Bytes

SIZES: dict[str, Any] = {
    "vocab_size": 300,  # more than the tokenizer knows: 256 bytes, <s>, </s>, <|call|>
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
}


def write(folder: Path, kind: str = "llama", *, seed: int = 0, shard: str | None = None, **options: Any) -> Any:
    """Write a model of a kind with every weight random, and give it back, in fp32."""
    from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
    from transformers.models.llama import LlamaForCausalLM
    from transformers.models.mistral import MistralForCausalLM
    from transformers.models.qwen2 import Qwen2ForCausalLM
    from transformers.models.qwen3 import Qwen3ForCausalLM

    configs = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    models = {"llama": LlamaForCausalLM, "mistral": MistralForCausalLM, "qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM}
    found = models[kind](configs[kind](**(SIZES | options)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in found.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (1.0 if p.ndim == 1 else 0.0))
    found.eval().save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    tokenizer = Bytes().build([])
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>", "<|call|>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    return found


def change(folder: Path, **settings: Any) -> None:
    """Write other settings into the folder's config.json; None takes one out."""
    file = folder / "config.json"
    plain = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({name: value for name, value in plain.items() if value is not None}))
