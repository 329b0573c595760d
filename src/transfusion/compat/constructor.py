"""The words of the quick constructor -> a configuration. `configure` lists them all."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import nn

from transfusion.codec.autoencoder import Autoencoder
from transfusion.compat.lists import CompatConfig
from transfusion.config import nearest
from transfusion.data.tokenize import Coordinates
from transfusion.data.transforms import ConditionDropout
from transfusion.data.vocabulary import Ids, Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.process import Diffusion
from transfusion.diffusion.sampler import DDPM, Heun, Sampler
from transfusion.diffusion.schedule import LinearInterpolant
from transfusion.modality import Modality
from transfusion.model.auxiliary import AuxiliaryLossConfig
from transfusion.model.network import ModelConfig
from transfusion.model_folder import TransfusionConfig
from transfusion.nn.config import AttentionConfig, TransformerConfig

T = TypeVar("T")
LARGEST = {1: 1024, 2: 64, 3: 32}
"""Largest size on each axis, by the number of axes, where nothing is said: as many size tokens are in the vocabulary."""
CONTEXT = 1 << 16


@dataclass(frozen=True, eq=False)
class Configured:
    """What the arguments configure. `modules` are the pairs of `pre_post_transformer_enc_dec`, by name of the modality."""

    config: TransfusionConfig
    vocabulary: Vocabulary
    compat: CompatConfig
    autoencoders: dict[str, Autoencoder]
    modules: dict[str, tuple[nn.Module, nn.Module]]


def configure(
    *,
    num_text_tokens: int,
    transformer: dict[str, Any] | TransformerConfig,
    dim_latent: int | Sequence[int] | None = None,
    modality_default_shape: Any = None,
    modality_max_shape: Any = None,
    modality_patch: Any = None,
    modality_num_dim: int | Sequence[int] | None = None,
    modality_fixed_shape: bool | Sequence[bool] = False,
    modality_names: Sequence[str] | None = None,
    channel_first_latent: bool | Sequence[bool] = False,
    modality_encoder: Any = None,
    modality_decoder: Any = None,
    pre_post_transformer_enc_dec: Any = None,
    add_pos_emb: bool = False,
    model_output_clean: bool | None = None,
    flow_loss_weight: float = 5.0,
    text_loss_weight: float = 1.0,
    velocity_consistency_loss_weight: float = 0.0,
    velocity_consistency_delta_time: float = 0.01,
    reconstruction_loss_weight: float = 0.0,
    prob_uncond: float = 0.1,
    diffusion: Diffusion | None = None,
    patcher: Any = None,
    auxiliary: AuxiliaryLossConfig | None = None,
) -> Configured:
    """A configuration from the words that users of transfusion-pytorch know, and a few more.

    Args:
        num_text_tokens: ids of text; 0: a model of media alone.
        transformer: `dim` and `depth`, and any option of the trunk (see `transformer`); or a `TransformerConfig`.
        dim_latent: channels of the latents, one number a modality (None: the width of the transformer).
        modality_default_shape: size of an item where the model says none, without its channels: (4,), or one a modality.
            () is a single vector.
        modality_max_shape: the largest size that an item may have (None: at least 1024, 64 x 64, 32 x 32 x 32).
        modality_patch: elements that one slot covers on each axis, (2, 2), or one a modality (None: 1 each).
        modality_num_dim: number of axes, where no default shape says it.
        modality_fixed_shape: every item has the default shape; then no size is written before it.
        modality_names: names of the modalities in documents (None: modality0, modality1 ...).
        channel_first_latent: latents are [channels, *size].
        modality_encoder, modality_decoder: modules between raw items and latents; used without training them.
        pre_post_transformer_enc_dec: a pair of modules a modality, instead of the linear layers into and out of the trunk.
        add_pos_emb: add axial embeddings of the place within an item.
        model_output_clean: True: predict clean data, False: the velocity (None: this project's default).
        flow_loss_weight, text_loss_weight: weights of the two losses.
        velocity_consistency_loss_weight, velocity_consistency_delta_time: of the consistency loss; where it is on, training
            needs an EMA model, `model(lists, teacher=model.create_ema())`.
        reconstruction_loss_weight: of the reconstruction loss.
        prob_uncond: how often, in training, an item loses the text before it, so that it can be guided.
        diffusion, patcher, auxiliary: this project's own choices instead of those that the words above make.

    Raises:
        ValueError: words that do not fit each other.
    """
    width_and_trunk = transformer if isinstance(transformer, TransformerConfig) else transformer_config(transformer)
    if not isinstance(num_text_tokens, int) or isinstance(num_text_tokens, bool) or num_text_tokens < 0:
        raise ValueError(f"num_text_tokens is a number from 0 up, not {num_text_tokens!r}")
    channels = _tuple(width_and_trunk.width if dim_latent is None else dim_latent)
    count = len(channels)
    if not all(isinstance(c, int) and c > 0 for c in channels):
        raise ValueError(f"dim_latent is a positive number, or one a modality, not {dim_latent!r}")

    def each(name: str, value: T | Sequence[T]) -> list[T]:
        values = list(value) if isinstance(value, list | tuple) else [value] * count
        if len(values) != count:
            raise ValueError(f"{name} has {len(values)} entries for {count} modalities (dim_latent says how many there are)")
        return values  # pyright: ignore[reportReturnType]

    names = list(modality_names) if modality_names else [f"modality{i}" for i in range(count)]
    if len(names) != count:
        raise ValueError(f"{len(names)} modality_names for {count} modalities")
    shapes = _shapes("modality_default_shape", modality_default_shape, count)
    most = _shapes("modality_max_shape", modality_max_shape, count)
    patches = _shapes("modality_patch", modality_patch, count)
    axes = each("modality_num_dim", modality_num_dim)
    modalities = []
    pairs = _pairs(pre_post_transformer_enc_dec, count)
    fixed = each("modality_fixed_shape", modality_fixed_shape)
    first = tuple(bool(f) for f in each("channel_first_latent", channel_first_latent))
    for i in range(count):
        shape = shapes[i] if shapes[i] is not None else (1,) * (1 if axes[i] is None else int(axes[i] or 0))
        assert shape is not None
        if axes[i] is not None and len(shape) != axes[i]:
            raise ValueError(
                f"modality {i}: modality_default_shape {shape} has {len(shape)} axes, modality_num_dim says {axes[i]}"
            )
        if len(shape) > 3:
            raise ValueError(f"modality {i}: items of {len(shape)} axes; there may be 3 at most (time, height, width)")
        patch = patches[i] or (1,) * len(shape)
        if shapes[i] is None and len(patch) == len(shape):
            shape = patch
        if pairs[i] is not None:
            patch = _patch(i, pairs[i], channels[i], shape, width_and_trunk.width)
        bound = LARGEST.get(len(shape), 1)
        largest = most[i] or tuple(max(s, bound // p * p) for s, p in zip(shape, patch, strict=True))
        modalities.append(Modality(names[i], channels[i], shape, patch, None if fixed[i] or not shape else largest))

    if not isinstance(prob_uncond, int | float) or not 0 <= prob_uncond <= 1:
        raise ValueError(f"prob_uncond is a share from 0 to 1, not {prob_uncond!r}")
    for name, weight in (("flow_loss_weight", flow_loss_weight), ("text_loss_weight", text_loss_weight)):
        if not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"{name} is a number from 0 up, not {weight!r}")
    if text_loss_weight == 0:
        raise ValueError("text_loss_weight 0: give the texts the weight 0 instead, (tensor, 0), and keep the text weight 1")
    if diffusion is not None and not isinstance(diffusion, Diffusion):
        raise ValueError(f"diffusion is a Diffusion(...), see transfusion.Diffusion, not {diffusion!r}")
    if diffusion is None:
        diffusion = Diffusion() if model_output_clean in (None, True) else Diffusion(prediction="velocity", loss="velocity")
    extra: dict[str, Any] = {} if patcher is None else {"patcher": patcher}
    model = ModelConfig(
        modalities=tuple(modalities),
        transformer=width_and_trunk,
        axial=add_pos_emb,
        diffusion=diffusion,
        coordinates=Coordinates("grid", axes=max(1, *(len(m.shape) for m in modalities)) if modalities else 1),
        media_weight=flow_loss_weight / text_loss_weight,
        context_length=CONTEXT,
        auxiliary=_beside(
            text_loss_weight,
            auxiliary
            or AuxiliaryLossConfig(
                consistency=velocity_consistency_loss_weight,
                delta=velocity_consistency_delta_time,
                reconstruction=reconstruction_loss_weight,
            ),
        ),
        **extra,
    )
    encoders, decoders = (
        each(n, v) for n, v in (("modality_encoder", modality_encoder), ("modality_decoder", modality_decoder))
    )
    for name, modules in (("modality_encoder", encoders), ("modality_decoder", decoders)):
        if count > 1 and modules[0] is not None and all(module is modules[0] for module in modules):
            raise ValueError(f"{name}: there are {count} modalities, so give a module (or None) for each, in a list")
        for module in modules:
            if module is not None and not isinstance(module, nn.Module):
                raise ValueError(f"{name} is a torch.nn.Module, or one (or None) a modality, not {module!r}")
    autoencoders = {
        name: Autoencoder(encoder, decoder)
        for name, encoder, decoder in zip(names, encoders, decoders, strict=True)
        if encoder is not None or decoder is not None
    }
    return Configured(
        config=TransfusionConfig(
            model,
            condition_dropout=ConditionDropout(text=prob_uncond),
            sampler=_sampler(diffusion),
            guidance=Guidance(text=3.0 if prob_uncond > 0 else 1.0),
        ),
        vocabulary=Vocabulary(Ids(num_text_tokens).build([]), model.modalities),
        compat=CompatConfig(first, tuple(autoencoders), text_loss_weight),
        autoencoders=autoencoders,
        modules={name: pair for name, pair in zip(names, pairs, strict=True) if pair is not None},
    )


def _beside(text_weight: float, auxiliary: AuxiliaryLossConfig) -> AuxiliaryLossConfig:
    """The same weights, where the whole loss is multiplied by the text's."""
    names = ("consistency", "reconstruction", "representation")
    return replace(auxiliary, **{name: getattr(auxiliary, name) / text_weight for name in names})


def _sampler(diffusion: Diffusion) -> Sampler:
    """On the straight path, Heun: 31 evaluations. On schedules that end with hardly any signal, what is said of the clean data
    there is divided by it: ancestral steps with the estimates kept inside (-4, 4), which latents of unit scale do not leave."""
    return Heun(num_steps=16) if isinstance(diffusion.schedule, LinearInterpolant) else DDPM(num_steps=250, clip=4.0)


def check_words(words: dict[str, Any]) -> None:
    """Raises ValueError for a word that `configure` does not have, naming the nearest, or one that is missing."""
    parameters = inspect.signature(configure).parameters
    for word in words:
        if word in LEFT_OUT:
            raise ValueError(f"there is no {word!r} here: {LEFT_OUT[word]}")
        if word not in parameters:
            raise ValueError(f"no argument {word!r}{nearest(word, parameters)}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in words:
            raise ValueError(f"Transfusion needs {name}: see transfusion.compat.constructor.configure")


LEFT_OUT = {
    "ignore_index": "what takes no loss is said by weights, (tensor, 0)",
    "odeint_kwargs": "`sample(sampler=Heun(num_steps=...))` chooses the solver",
    "eps": "`diffusion=Diffusion(min_divisor=...)` bounds the weight of nearly clean items",
    "to_modality_shape_fn": "sizes are tokens of their own, which need no parsing",
    "fallback_to_default_shape_if_invalid": "an invalid size always falls back to the default, and is counted",
    "modality_processing": "items are always grouped by size",
    "modality_encoder_decoder_requires_batch_dim": "encoders and decoders take batches",
}
"""Arguments of transfusion-pytorch that have no place here, and what to do instead."""


def transformer_config(words: dict[str, Any]) -> TransformerConfig:
    """The trunk of a dict: transfusion-pytorch's names, or any field of `TransformerConfig`.

    Raises:
        ValueError: a name that is neither, or no `dim` and `depth`.
    """
    if not isinstance(words, dict):
        raise ValueError(f"transformer is a dict(dim=512, depth=8) or a Trunk, not {type(words).__name__}")
    given = dict(words)
    for name in ("attn_kwargs", "ff_kwargs"):
        inner = given.pop(name, {})
        if not isinstance(inner, dict):
            raise ValueError(f"transformer: {name} is a dict of options, not {inner!r}")
        given |= inner
    for name in ("dim", "width", "depth", "heads", "dim_head", "head_dim"):
        number = given.get(name, 1)
        if number is None and name in ("dim_head", "head_dim"):
            continue
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"transformer: {name} is a whole number from 1 up, not {number!r}")
    if not {"dim", "width"} & given.keys() or "depth" not in given:
        raise ValueError("transformer needs dim and depth: dict(dim=512, depth=8)")
    own, heads = ({field.name for field in fields(kind)} for kind in (TransformerConfig, AttentionConfig))
    width = given.pop("dim", given.pop("width", None))
    size = given.pop("dim_head", given.pop("head_dim", None)) or min(64, width)
    options: dict[str, Any] = {"width": width, "head_dim": size, "num_heads": given.pop("heads", max(1, width // size))}
    looks: dict[str, Any] = {}
    for name, value in given.items():
        if name in TRANSFORMER_OPTIONS:
            found = TRANSFORMER_OPTIONS[name](value, width)
            looks |= {key: v for key, v in found.items() if key in heads}
            options |= {key: v for key, v in found.items() if key not in heads}
        elif name in own:
            options[name] = value
        elif name in heads:
            looks[name] = value
        else:
            raise ValueError(f"transformer: no option {name!r}{nearest(name, [*TRANSFORMER_OPTIONS, *sorted(own | heads)])}")
    if looks:
        options["attention"] = replace(options.get("attention", AttentionConfig()), **looks)
    return TransformerConfig(**options)


def _soft_cap(value: float | None, _: int) -> dict[str, Any]:
    if value == 0:
        raise ValueError("softcap_value 0 would make all scores equal: leave it out for no soft cap")
    return {"soft_cap": value or 0.0}


def _hidden(factor: float, width: int) -> dict[str, Any]:
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise ValueError(f"ff_expansion_factor is a number above 0, not {factor!r}")
    return {"mlp_width": max(1, -(-int(width * factor * 2 / 3) // 32)) * 32}


TRANSFORMER_OPTIONS: dict[str, Callable[[Any, int], dict[str, Any]]] = {
    "ff_expansion_factor": _hidden,
    "kv_heads": lambda v, _: {"num_kv_heads": v},
    "qk_rmsnorm": lambda v, _: {"qk_norm": v},
    "softcap_value": _soft_cap,
    "gate_values": lambda v, _: {"gated": v},
    "use_value_residual": lambda v, _: {"value_residual": v},
    "attn_laser": lambda v, _: {"laser": 15.0 if v else 0.0},
    "laser_softclamp_value": lambda v, _: {"laser": float(v)},
    "unet_skips": lambda v, _: {"long_skips": v},
    "use_flex_attn": lambda v, _: {},  # the best form is always chosen
}
"""transfusion-pytorch's names for options of the trunk -> ours."""


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _shapes(name: str, value: Any, count: int) -> list[tuple[int, ...] | None]:
    """One shape a modality: None, a tuple of numbers for all, or a tuple of those."""
    if value is None:
        return [None] * count
    if isinstance(value, int):
        value = (value,)
    if not isinstance(value, tuple | list):
        raise ValueError(f"{name} is a size such as (4,), or one a modality, not {value!r}")
    flat = all(isinstance(v, int) for v in value)
    shapes = [tuple(value)] * count if flat else [None if v is None else _tuple(v) for v in value]
    if len(shapes) != count:
        raise ValueError(f"{name} has {len(shapes)} shapes for {count} modalities (dim_latent says how many there are)")
    for shape in shapes:
        if shape is not None and not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in shape):
            raise ValueError(f"{name}: sizes are positive numbers, not {shape}")
    return shapes  # pyright: ignore[reportReturnType]


def _pairs(value: Any, count: int) -> list[tuple[nn.Module, nn.Module] | None]:
    if value is None:
        return [None] * count
    if not isinstance(value, tuple | list):
        raise ValueError(
            f"pre_post_transformer_enc_dec is a pair of modules (way in, way out), or one a modality, not {value!r}"
        )
    if len(value) == 2 and all(isinstance(v, nn.Module) for v in value):
        if count > 1:
            raise ValueError("pre_post_transformer_enc_dec: give a pair of modules (or None) for each modality")
        return [tuple(value)]
    if len(value) != count:
        raise ValueError(f"pre_post_transformer_enc_dec has {len(value)} pairs for {count} modalities")
    for v in value:
        if v is not None and not (isinstance(v, tuple | list) and len(v) == 2 and all(isinstance(m, nn.Module) for m in v)):
            raise ValueError(
                f"pre_post_transformer_enc_dec: a pair of modules (or None) for each modality is wanted, not {v!r}"
            )
    return [None if v is None else tuple(v) for v in value]


def _patch(index: int, pair: Any, channels: int, shape: tuple[int, ...], width: int) -> tuple[int, ...]:
    """How many elements a slot covers on each axis, found by running the way in once on an item of the default shape."""
    latents = torch.zeros(1, channels, *shape)
    try:
        with torch.no_grad():
            try:
                out = pair[0](latents)
            except TypeError:  # it takes the times too
                out = pair[0](latents, torch.zeros(1))
    except RuntimeError as error:
        raise ValueError(
            f"modality {index}: the way into the transformer does not take latents of shape {tuple(latents.shape)}: {error}"
        ) from error
    out = out[0] if isinstance(out, tuple) else out
    grid = tuple(out.shape[1:2]) if len(shape) == 1 and out.shape[-1] == width else tuple(out.shape[2:])
    if len(grid) != len(shape) or any(s % g for s, g in zip(shape, grid, strict=True)):
        raise ValueError(
            f"modality {index}: the way into the transformer makes {tuple(out.shape)} of {tuple(latents.shape)}; it must give "
            "(item, width, *grid) with a grid that divides the size"
        )
    return tuple(s // g for s, g in zip(shape, grid, strict=True))
