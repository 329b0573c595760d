"""transfusion-pytorch's constructor arguments -> a config, a vocabulary and modules. `configure` lists all arguments."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from transfusion.compat.checks import ArgumentError, check_number, size
from transfusion.compat.coders import Coders
from transfusion.compat.lists import CompatConfig
from transfusion.config import nearest
from transfusion.data.tokenize import Coordinates
from transfusion.data.transforms import ConditionDropout
from transfusion.data.vocabulary import Ids, Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.process import Diffusion
from transfusion.diffusion.sampler import DDPM, Euler, Heun, Sampler
from transfusion.diffusion.schedule import LinearInterpolant
from transfusion.modality import Modality
from transfusion.model.auxiliary import AuxiliaryLossConfig
from transfusion.model.network import ModelConfig
from transfusion.model_folder import TransfusionConfig
from transfusion.nn.config import AttentionConfig, TransformerConfig

LARGEST = {0: (), 1: (2048,), 2: (128, 128), 3: (128, 64, 64)}
"""Default of `modality_max_shape`, by the number of axes (more: 16 on each): 20 s of sound at 100 steps a second, images of
1024 pixels behind an autoencoder of factor 8, 128 frames. The vocabulary gets a size token for each size."""
OPENING_PRIOR = 3.0
"""`ModelConfig.opening_prior`: as rare as among transfusion-pytorch's ids, of which one of about 150 opens an item."""
PROCESSING = ("auto", "naive", "grouped", "flat", "hybrid")
"""Values of `modality_processing`; each gives the same numbers."""


class Configured(NamedTuple):
    """What the arguments configure. `modules` are the pairs of `pre_post_transformer_enc_dec`, by name of the modality."""

    config: TransfusionConfig
    vocabulary: Vocabulary
    compat: CompatConfig
    autoencoders: dict[str, Coders]
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
    add_pos_emb: bool | Sequence[bool] = False,
    model_output_clean: bool | None = None,
    flow_loss_weight: float = 5.0,
    text_loss_weight: float = 1.0,
    velocity_consistency_loss_weight: float = 0.1,
    velocity_consistency_delta_time: float = 0.01,
    reconstruction_loss_weight: float = 0.0,
    prob_uncond: float = 0.1,
    odeint_kwargs: dict[str, Any] | None = None,
    eps: float | None = None,
    ignore_index: int = -1,
    fallback_to_default_shape_if_invalid: bool = False,
    modality_processing: str = "auto",
    modality_encoder_decoder_requires_batch_dim: bool = True,
    context_length: int = 1 << 16,
    diffusion: Diffusion | None = None,
    patcher: Any = None,
    auxiliary: AuxiliaryLossConfig | None = None,
) -> Configured:
    """Configure a model from transfusion-pytorch's arguments and a few more.

    Args:
        num_text_tokens: number of text ids; 0: a model without text.
        transformer: `dim`, `depth` and other options (see `transformer_config`); or a `TransformerConfig`.
        dim_latent: channels of the latents, one number a modality (None: the width of the transformer; where nothing else is
            said of media either, a model of text alone).
        modality_default_shape: size of an item without its channels, (4,), or one a modality: used where the model
            writes no valid size. () is a single vector.
        modality_max_shape: the largest size that an item may have (None: at least 2048, 128 x 128, 128 x 64 x 64).
        modality_patch: elements that one slot covers on each axis, (2, 2), or one a modality (None: 1 each).
        modality_num_dim: number of axes, where there is no default shape (neither: one axis, and items of more are taken as
            one long one, in raster order).
        modality_fixed_shape: every item has the default shape, and no size tokens.
        modality_names: names of the modalities in documents (None: modality0, modality1 ...).
        channel_first_latent: latents are [channels, *size].
        modality_encoder, modality_decoder: modules between raw items and latents, which are used and left as they are.
        pre_post_transformer_enc_dec: a pair of modules a modality, instead of the linear patcher.
        add_pos_emb: add axial embeddings of the position within an item, to all modalities or said for each.
        model_output_clean: True: predict clean data, False: the velocity (None: this project's default).
        flow_loss_weight, text_loss_weight: weights of the media and the text loss.
        velocity_consistency_loss_weight, velocity_consistency_delta_time: weight and time step of the consistency loss, which
            is there where a call is given an EMA model, `model(lists, velocity_consistency_ema_model=model.create_ema())`.
        reconstruction_loss_weight: weight of the reconstruction loss.
        prob_uncond: share of items that lose the text before them in training, for guidance.
        odeint_kwargs: its "method" chooses the sampler: "midpoint" or "heun2" `Heun`, "euler" `Euler`. Tolerances have no
            effect on these, here as there.
        eps: bound on the divisor near clean data, `Diffusion.min_divisor` (None: this project's default).
        ignore_index, fallback_to_default_shape_if_invalid, modality_processing, modality_encoder_decoder_requires_batch_dim:
            taken, and without effect: padding is -1, an invalid size falls back to the default, items of one size are always
            batched, and encoders and decoders always get batches.
        context_length: tokens of context.
        diffusion, patcher, auxiliary: this project's options, instead of what the arguments above configure.

    Raises:
        ValueError: arguments that do not fit each other.
    """
    config = transformer if isinstance(transformer, TransformerConfig) else transformer_config(transformer)
    check_number("num_text_tokens", num_text_tokens, whole=True)
    check_number("prob_uncond", prob_uncond, 0, 1)
    check_number("flow_loss_weight", flow_loss_weight)
    check_number("text_loss_weight", text_loss_weight)
    if text_loss_weight == 0:
        raise ValueError("text_loss_weight 0: give the texts the weight 0 instead, (tensor, 0), and keep the text weight 1")
    _check_without_effect(ignore_index, modality_processing, modality_encoder_decoder_requires_batch_dim)
    of_media = (dim_latent, modality_default_shape, modality_max_shape, modality_patch, modality_num_dim, modality_names)
    modules = (modality_encoder, modality_decoder, pre_post_transformer_enc_dec)
    width = config.width if dim_latent is None else dim_latent
    channels = width if isinstance(width, list | tuple) else (width,)
    if num_text_tokens and all(word is None for word in (*of_media, *modules)):
        channels = ()
    for number in channels:
        check_number("dim_latent", number, 1, whole=True)
    count = len(channels)
    names = _each("modality_names", modality_names or [f"modality{i}" for i in range(count)], count)
    pairs = _pairs(pre_post_transformer_enc_dec, count)
    defaults, num_axes = (
        _shapes("modality_default_shape", modality_default_shape, count),
        _each("modality_num_dim", modality_num_dim, count),
    )
    by_modality = zip(
        range(count),
        names,
        channels,
        defaults,
        _shapes("modality_max_shape", modality_max_shape, count),
        _shapes("modality_patch", modality_patch, count),
        num_axes,
        _each("modality_fixed_shape", modality_fixed_shape, count),
        pairs,
        strict=True,
    )
    modalities = tuple(_modality(*arguments, width=config.width) for arguments in by_modality)
    axial = tuple(bool(wanted) for wanted in _each("add_pos_emb", add_pos_emb, count))
    if diffusion is None:
        bound = {} if eps is None else {"min_divisor": eps}
        velocity = {} if model_output_clean in (None, True) else {"prediction": "velocity", "loss": "velocity"}
        diffusion = Diffusion(**bound, **velocity)  # pyright: ignore[reportArgumentType]
    elif eps is not None:
        raise ValueError("eps is part of the diffusion: write diffusion=Diffusion(min_divisor=...)")
    if not isinstance(diffusion, Diffusion):
        raise ValueError(f"diffusion is a Diffusion(...), see transfusion.Diffusion, not {diffusion!r}")
    auxiliary = auxiliary or AuxiliaryLossConfig(
        consistency=velocity_consistency_loss_weight,
        delta=velocity_consistency_delta_time,
        reconstruction=reconstruction_loss_weight,
    )
    # text_loss_weight multiplies the whole loss, so the other weights are divided by it
    weights = ("consistency", "reconstruction", "representation")
    auxiliary = replace(auxiliary, **{name: getattr(auxiliary, name) / text_loss_weight for name in weights})
    extra: dict[str, Any] = {} if patcher is None else {"patcher": patcher}
    model = ModelConfig(
        modalities=modalities,
        transformer=config,
        axial=axial if len(set(axial)) > 1 else any(axial),
        diffusion=diffusion,
        coordinates=Coordinates("grid", axes=max([1, *(len(m.shape) for m in modalities)])),
        media_weight=flow_loss_weight / text_loss_weight,
        opening_prior=OPENING_PRIOR,
        context_length=context_length,
        auxiliary=auxiliary,
        **extra,
    )
    encoders = _modules("modality_encoder", modality_encoder, count)
    decoders = _modules("modality_decoder", modality_decoder, count)
    coders = {name: pair for name, *pair in zip(names, encoders, decoders, strict=True) if pair != [None, None]}
    autoencoders = {name: Coders(encoder, decoder) for name, (encoder, decoder) in coders.items()}
    channel_first = tuple(bool(first) for first in _each("channel_first_latent", channel_first_latent, count))
    return Configured(
        config=TransfusionConfig(
            model,
            condition_dropout=ConditionDropout(text=prob_uncond),
            sampler=_sampler(diffusion, odeint_kwargs),
            guidance=Guidance(text=3.0 if prob_uncond > 0 else 1.0),
        ),
        vocabulary=Vocabulary(Ids(num_text_tokens).build([]), model.modalities),
        compat=CompatConfig(
            channel_first,
            tuple(autoencoders),
            text_loss_weight,
            any_axes=tuple(a is None and b is None for a, b in zip(defaults, num_axes, strict=True)),
            modality_processing=modality_processing,
        ),
        autoencoders=autoencoders,
        modules={name: pair for name, pair in zip(names, pairs, strict=True) if pair is not None},
    )


def _modality(
    index: int,
    name: str,
    channels: int,
    default: tuple[int, ...] | None,
    largest: tuple[int, ...] | None,
    patch: tuple[int, ...] | None,
    num_axes: int | None,
    fixed: bool,
    pair: tuple[nn.Module, nn.Module] | None,
    *,
    width: int,
) -> Modality:
    shape = (1,) * (1 if num_axes is None else num_axes) if default is None else default
    if num_axes is not None and len(shape) != num_axes:
        raise ValueError(
            f"modality {index}: modality_default_shape {shape} needs modality_num_dim {len(shape)}, not {num_axes}"
        )
    patch = patch or (1,) * len(shape)
    if default is None and len(patch) == len(shape):
        shape = patch
    if pair is not None:
        patch = _patch(index, pair, channels, shape, width)
    bounds = LARGEST.get(len(shape), (16,) * len(shape))
    most = largest or tuple(max(s, bound // p * p) for s, p, bound in zip(shape, patch, bounds, strict=True))
    return Modality(name, channels, shape, patch, None if fixed or not shape else most)


def _each(name: str, value: Any, count: int) -> list[Any]:
    """One value a modality."""
    values = list(value) if isinstance(value, list | tuple) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} entries for {count} modalities; dim_latent sets the number of modalities")
    return values


def _modules(name: str, value: Any, count: int) -> list[nn.Module | None]:
    """One encoder or decoder a modality, or None."""
    modules = _each(name, value, count)
    if count > 1 and modules[0] is not None and all(module is modules[0] for module in modules):
        raise ValueError(f"{name}: the model has {count} modalities; give a list with a module (or None) for each")
    return modules


def _sampler(diffusion: Diffusion, odeint: dict[str, Any] | None) -> Sampler:
    """On the straight path Heun, 31 evaluations. x0 = (x - sigma eps) / alpha diverges as alpha -> 0, so on other schedules
    ancestral steps with x0 clipped to (-4, 4), which covers latents of unit scale."""
    methods: dict[Any, Sampler] = {"midpoint": Heun(num_steps=16), "heun2": Heun(num_steps=16), "euler": Euler(num_steps=16)}
    if odeint is not None:
        if not isinstance(odeint, dict) or odeint.get("method", "midpoint") not in methods:
            raise ValueError(f"odeint_kwargs is a dict whose method is one of {', '.join(methods)}, not {odeint!r}")
        return methods[odeint.get("method", "midpoint")]
    return methods["midpoint"] if isinstance(diffusion.schedule, LinearInterpolant) else DDPM(num_steps=250, clip=4.0)


def _check_without_effect(ignore_index: int, processing: str, batch_dim: bool) -> None:
    """Raises ValueError for values of arguments without effect that ask for something else than what always holds."""
    if ignore_index != -1:
        raise ValueError(f"ignore_index {ignore_index}: padding is -1; a weight of 0 turns the loss off, (tensor, 0)")
    if processing not in PROCESSING:
        raise ArgumentError(f"modality_processing {processing!r}{nearest(str(processing), PROCESSING)}")
    if batch_dim is not True:
        raise ValueError("modality_encoder_decoder_requires_batch_dim False: encoders and decoders always get batches")


def check_words(words: dict[str, Any]) -> None:
    """Raises ValueError for an argument that `configure` does not have, naming the nearest, or one that is missing."""
    parameters = inspect.signature(configure).parameters
    for word in words:
        if word in LEFT_OUT:
            raise ValueError(f"{word!r} is not supported: {LEFT_OUT[word]}")
        if word not in parameters:
            raise ValueError(f"no argument {word!r}{nearest(word, parameters)}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in words:
            raise ValueError(f"Transfusion needs {name}: see transfusion.compat.constructor.configure")


LEFT_OUT = {
    "to_modality_shape_fn": "sizes are special tokens, which need no parsing",
}
"""Arguments of transfusion-pytorch that are not supported, and what to do instead."""


def transformer_config(words: dict[str, Any]) -> TransformerConfig:
    """The argument `transformer` as a config: keys are transfusion-pytorch's names or fields of `TransformerConfig` and
    `AttentionConfig`. Raises ValueError for an unknown key, or no `dim` and `depth`."""
    if not isinstance(words, dict):
        raise ValueError(f"transformer is a dict(dim=512, depth=8) or a TransformerConfig, not {type(words).__name__}")
    keys = dict(words)
    for name in ("attn_kwargs", "ff_kwargs"):
        inner = keys.pop(name, {})
        if not isinstance(inner, dict):
            raise ValueError(f"transformer: {name} is a dict of options, not {inner!r}")
        keys |= inner
    for name in ("dim", "width", "depth", "heads", "dim_head", "head_dim"):
        if name in keys and (keys[name] is not None or name not in ("dim_head", "head_dim")):
            check_number(f"transformer: {name}", keys[name], 1, whole=True)
    if not {"dim", "width"} & keys.keys() or "depth" not in keys:
        raise ValueError("transformer needs dim and depth: dict(dim=512, depth=8)")
    own, heads = ({field.name for field in fields(kind)} for kind in (TransformerConfig, AttentionConfig))
    width = keys.pop("dim", keys.pop("width", None))
    size = keys.pop("dim_head", keys.pop("head_dim", None)) or min(64, width)
    options: dict[str, Any] = {"width": width, "head_dim": size, "num_heads": keys.pop("heads", max(1, width // size))}
    attention: dict[str, Any] = {}
    for name, value in keys.items():
        if name not in own | heads | TRANSFORMER_OPTIONS.keys():
            raise ValueError(f"transformer: no option {name!r}{nearest(name, [*TRANSFORMER_OPTIONS, *sorted(own | heads)])}")
        converted = TRANSFORMER_OPTIONS[name](value, width) if name in TRANSFORMER_OPTIONS else {name: value}
        attention |= {key: v for key, v in converted.items() if key in heads and key not in own}
        options |= {key: v for key, v in converted.items() if key in own}
    if attention:
        options["attention"] = replace(options.get("attention", AttentionConfig()), **attention)
    return TransformerConfig(**options)


def _soft_cap(value: float | None, _: int) -> dict[str, Any]:
    if value == 0:
        raise ValueError("softcap_value 0 makes all attention scores equal: leave it out for no soft cap")
    return {"soft_cap": value or 0.0}


def _mlp_width(factor: float, width: int) -> dict[str, Any]:
    check_number("transformer: ff_expansion_factor", factor)
    if factor == 0:
        raise ValueError("transformer: ff_expansion_factor must be above 0")
    return {"mlp_width": max(1, -(-int(width * factor * 2 / 3) // 32)) * 32}


TRANSFORMER_OPTIONS: dict[str, Callable[[Any, int], dict[str, Any]]] = {
    "ff_expansion_factor": _mlp_width,
    "kv_heads": lambda v, _: {"num_kv_heads": v},
    "qk_rmsnorm": lambda v, _: {"qk_norm": v},
    "softcap_value": _soft_cap,
    "gate_values": lambda v, _: {"gated": v},
    "use_value_residual": lambda v, _: {"value_residual": v},
    "attn_laser": lambda v, _: {"laser": 15.0 if v else 0.0},
    "laser_softclamp_value": lambda v, _: {"laser": float(v)},
    "unet_skips": lambda v, _: {"long_skips": v},
    "use_flex_attn": lambda v, _: {},  # ModelConfig.attention_backend chooses
}
"""transfusion-pytorch's name for an option -> function from its value and the width to our fields."""


def _shapes(name: str, value: Any, count: int) -> list[tuple[int, ...] | None]:
    """One shape a modality: None, a number or a tuple of numbers for all, or a list of those."""
    for_all = isinstance(value, tuple | list) and all(isinstance(v, int) for v in value)
    shapes = [value] * count if for_all else _each(name, value, count)
    return [None if v is None else size(name, (v,) if isinstance(v, int) else v) for v in shapes]


def _pairs(value: Any, count: int) -> list[tuple[nn.Module, nn.Module] | None]:
    """One pair of modules a modality, or None."""

    def is_pair(modules: Any) -> bool:
        return isinstance(modules, tuple | list) and len(modules) == 2 and all(isinstance(m, nn.Module) for m in modules)

    pairs = _each("pre_post_transformer_enc_dec", [value] if is_pair(value) else value, count)
    for pair in pairs:
        if pair is not None and not is_pair(pair):
            raise ValueError(f"pre_post_transformer_enc_dec takes a pair of modules, or a list of pairs or None, not {pair!r}")
    return [None if pair is None else tuple(pair) for pair in pairs]


def _patch(index: int, pair: Any, channels: int, shape: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Elements that a slot covers on each axis: the encoder of the pair is run once on an item of the default shape."""
    latents, where = torch.zeros(1, channels, *shape), f"modality {index}: the encoder of pre_post_transformer_enc_dec"
    try:
        with torch.no_grad():
            try:
                out = pair[0](latents)
            except TypeError:  # it takes times too
                out = pair[0](latents, torch.zeros(1))
    except RuntimeError as error:
        raise ValueError(f"{where} fails on latents {tuple(latents.shape)}: {error}") from error
    out = out[0] if isinstance(out, tuple) else out
    grid = tuple(out.shape[1:2]) if len(shape) == 1 and out.shape[-1] == width else tuple(out.shape[2:])
    if len(grid) != len(shape) or any(s % g for s, g in zip(shape, grid, strict=True)):
        raise ValueError(
            f"{where} maps {tuple(latents.shape)} to {tuple(out.shape)}; it must return (item, width, *grid) with a grid that "
            "divides the size"
        )
    return tuple(s // g for s, g in zip(shape, grid, strict=True))
