"""The work that is timed, once for each library: `build(library, workload, size)` -> a call to time, and what it amounts to."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

VOCABULARY, CHANNELS = 256, 16
SIZES = {"equal width": (512, 8), "equal parameters": (768, 12)}
"""Width and depth of ours; the peer's are 512 and 8, 82M parameters, in both."""
PEER = (512, 8)
EVALUATIONS = 32


@dataclass(frozen=True)
class Job:
    """One repetition, and what is done in it.

    Args:
        call: does it.
        amount: real tokens, or pictures.
        flops: floating-point operations that the result needs: 6 (training) or 2 for each weight and token that meets it,
            plus attention that is visible. Padding and recomputation do not count.
        weight_bytes: of the weights, for the memory limit of decoding.
    """

    call: Callable[[], object]
    amount: float
    flops: float
    weight_bytes: int
    parameters: int


def documents(workload: str) -> list[list[Tensor]]:
    """Text ids and channel-first latents [16, height, width]."""
    rng = torch.Generator().manual_seed(0)

    def text(length: int) -> Tensor:
        return torch.randint(0, VOCABULARY, (length,), generator=rng)

    def latent(side: int) -> Tensor:
        return torch.randn(CHANNELS, side, side, generator=rng)

    if workload == "uniform":
        return [[text(32), latent(16)] for _ in range(8)]
    lengths = torch.linspace(16, 512, 16).round().int().tolist()
    sides = (4, 8, 16)
    return [[text(n), latent(sides[i // 2 % 3])] if i % 2 == 0 else [text(n)] for i, n in enumerate(lengths)]


def num_tokens(docs: list[list[Tensor]]) -> int:
    """Text tokens and latent positions; frames and controls are no work that anyone asked for."""
    return sum(part.numel() // (CHANNELS if part.is_floating_point() else 1) for doc in docs for part in doc)


def attention_pairs(docs: list[list[Tensor]]) -> float:
    """Visible pairs of query and key."""
    pairs = 0.0
    for doc in docs:
        before = 0
        for part in doc:
            n = part.numel() // (CHANNELS if part.is_floating_point() else 1)
            pairs += n * before + (n * n if part.is_floating_point() else n * (n + 1) / 2)
            before += n
    return pairs


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(name: str) -> Any:
    """Autocast for bf16."""
    return torch.autocast(_device().type, torch.bfloat16) if name == "bf16" else nullcontext()


# ---- ours ---------------------------------------------------------------------------------------------------------------


def ours(workload: str, batch: int, size: str, dtype: str, **options: Any) -> Job:
    """This package."""
    from transfusion import Document, Guidance, Media, Text, Transfusion
    from transfusion.data.transforms import ConditionDropout
    from transfusion.data.vocabulary import Bytes, Vocabulary
    from transfusion.diffusion.sampler import Euler
    from transfusion.modality import Modality
    from transfusion.model.network import ModelConfig
    from transfusion.model_folder import TransfusionConfig
    from transfusion.nn.config import TransformerConfig
    from transfusion.train.device import tune_malloc
    from transfusion.train.optimizer import AdamWConfig

    width, depth = SIZES[size] if size in SIZES else tuple(int(n) for n in size.split("x"))
    heads = options.get("heads", width // 64)
    largest = (16, 16) if workload in ("ragged", "growth") else None
    image = Modality("image", channels=CHANNELS, shape=(16, 16), patch=(1, 1), largest=largest)
    transformer = TransformerConfig(width=width, depth=depth, num_heads=heads)
    settings = TransfusionConfig(
        ModelConfig(modalities=(image,), transformer=transformer, context_length=options.get("context", 1024)),
        ConditionDropout(text=0.1),
    )
    torch.manual_seed(0)
    model = Transfusion(settings, Vocabulary(Bytes().build([]), (image,))).to(_device())
    weights = sum(p.numel() for p in model.network.transformer.parameters() if p.ndim > 1)
    head = model.network.head.weight.numel()
    parameters = model.network.num_parameters
    shared = {"weight_bytes": (weights + head) * (2 if dtype == "bf16" else 4), "parameters": parameters}

    if workload in ("uniform", "ragged", "growth"):
        docs = options["docs"] if "docs" in options else documents(workload)
        command_line = [
            Document(tuple(Media(p) if p.is_floating_point() else Text(tuple(p.tolist())) for p in doc)) for doc in docs
        ]
        optimizer = AdamWConfig(lr=1e-4).build(model)
        tune_malloc()  # as the trainer does
        packed = model.batch(command_line)

        def train() -> None:
            with precision(dtype):
                loss = model(packed).total(5.0)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        tokens = num_tokens(docs)
        texts = sum(p.numel() for doc in docs for p in doc if not p.is_floating_point())
        flops = 6.0 * (weights * tokens + head * texts) + 12.0 * width * depth * attention_pairs(docs)
        return Job(train, tokens, flops, **shared)

    model.eval()
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    if workload == "decode":
        prompt, tokens = Document((Text(tuple([65] * options.get("prefix", 1))),)), options.get("tokens", 128)
        with torch.no_grad():  # no answer may end early: some id's logit is above 0
            model.network.head.weight[model.vocabulary.eos] = 0

        def decode() -> None:
            out = model.generate([prompt] * batch, max_tokens=tokens, max_items=0, dtype=kind)
            assert len(out) == batch

        return Job(decode, tokens * batch, 2.0 * (weights + head) * tokens * batch, **shared)

    caption = Document((Text(tuple(documents("uniform")[0][0].tolist())),))

    def draw() -> None:
        out = model.generate([caption] * batch, force="image", sampler=Euler(EVALUATIONS), guidance=Guidance(3.0), dtype=kind)
        assert out[0].media[0].tensor().shape == (CHANNELS, 16, 16)

    flops = EVALUATIONS * 2 * (2.0 * weights * 256 + 4.0 * width * depth * 256 * (256 + 16)) * batch
    return Job(draw, batch, flops, **shared)


# ---- the peer -----------------------------------------------------------------------------------------------------------


def peer(workload: str, batch: int, size: str, dtype: str, **options: Any) -> Job:
    """transfusion-pytorch 0.20, as its README uses it."""
    from functools import partial

    import transfusion_pytorch.transfusion as library
    from torch import nn
    from transfusion_pytorch import Transfusion

    library.tqdm = partial(library.tqdm, disable=True)
    torch.manual_seed(0)
    width, depth = options.get("width", PEER[0]), options.get("depth", PEER[1])
    heads = options.get("heads", width // 64)
    model = Transfusion(
        num_text_tokens=VOCABULARY,
        dim_latent=CHANNELS,
        channel_first_latent=True,
        modality_default_shape=(16, 16),
        transformer={"dim": width, "depth": depth, "dim_head": width // heads, "heads": heads},
    ).to(_device())
    weights = sum(m.weight.numel() for m in model.transformer.modules() if isinstance(m, nn.Linear))
    parameters = sum(p.numel() for p in model.parameters())
    shared = {"weight_bytes": weights * 4, "parameters": parameters}
    if workload in ("uniform", "ragged", "growth"):
        docs = options["docs"] if "docs" in options else documents(workload)
        items = [[part.to(_device()) for part in doc] for doc in docs]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def train() -> None:
            with precision(dtype):
                loss = model(items)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        tokens = num_tokens(docs)
        return Job(train, tokens, 6.0 * weights * tokens + 12.0 * width * depth * attention_pairs(docs), **shared)

    model.eval()
    if workload == "decode":
        prompt = torch.full((batch, options.get("prefix", 1)), 65, device=_device())

        @torch.no_grad()
        def decode() -> None:
            with precision(dtype):
                out = model.generate_text_only(prompt, prompt.shape[1] + 128)
            assert out.shape == (batch, 128)

        return Job(decode, 128 * batch, 2.0 * weights * 128 * batch, **shared)

    caption = documents("uniform")[0][0].to(_device())

    @torch.no_grad()
    def draw() -> None:
        steps = EVALUATIONS // 2 + 1  # midpoint: two evaluations between neighbours
        common: dict[str, Any] = {"max_length": len(caption), "force_modality_at_start": 0, "modality_steps": steps}
        with precision(dtype):
            if batch == 1:
                out = [model.sample_one(caption, cache_kv=True, cfg_scale=3.0, **common)]
            else:
                prompts: list[Any] = [caption] * batch
                out = model.sample_many(prompts, cfg_scale=3.0, **common)
        drawn: list[Any] = [part for sample in out for part in sample if not isinstance(part, torch.Tensor)]
        assert len(drawn) == batch and drawn[0][1].shape == (CHANNELS, 16, 16)

    flops = EVALUATIONS * 2 * (2.0 * weights * 256 + 4.0 * width * depth * 256 * (256 + 16)) * batch
    return Job(draw, batch, flops, **shared)


LIBRARIES = {"ours": ours, "peer": peer}
