"""Autoencoders of diffusers (extra `vae`): AutoencoderKL, AutoencoderDC and AutoencoderTiny, as `save_pretrained` wrote them.

Their latents are shifted and scaled by the factors of their config (`shift_factor`, `scaling_factor`; or the `latents_mean` and
`latents_std` of each channel, where it has them), which their publishers trained with. How far those reach is not known, so
they have no bound. `Autoencoder.measure` replaces both by what it measures, and `save` keeps that, in this library's form.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from transfusion.codec.autoencoder import Autoencoder

CLASSES = ("AutoencoderKL", "AutoencoderDC", "AutoencoderTiny")


@dataclass(frozen=True)
class DiffusersSettings:
    """An autoencoder of diffusers.

    Args:
        name: its class.
        config: the config of that class.
    """

    kind: ClassVar[str] = "diffusers"
    name: Literal["AutoencoderKL", "AutoencoderDC", "AutoencoderTiny"] = "AutoencoderKL"
    config: dict | None = None

    def build(self) -> "DiffusersAutoencoder":
        """The autoencoder with new weights. Raises ValueError: diffusers is missing, or a config of another class."""
        return DiffusersAutoencoder(self, _class(self.name).from_config(dict(self.config or {})))


class DiffusersAutoencoder(Autoencoder):
    """An autoencoder of diffusers behind this library's interface.

    Args:
        model: an instance of the class that `settings` names.
    """

    def __init__(self, settings: DiffusersSettings, model: Any) -> None:
        own = model.config
        kl = settings.name == "AutoencoderKL"
        reduction = 2 ** ((len(own.block_out_channels) if kl else len(own.encoder_block_out_channels)) - 1)
        form = {"channels": own.in_channels, "latent_channels": own.latent_channels, "reduction": reduction}
        super().__init__(**form, settings=settings)
        self.model: Any = model
        shift, scale = getattr(own, "shift_factor", None) or 0.0, own.scaling_factor or 1.0
        mean, std = getattr(own, "latents_mean", None), getattr(own, "latents_std", None)
        self.normalize(
            torch.full((own.latent_channels,), shift) if mean is None else torch.tensor(mean),
            torch.full((own.latent_channels,), 1 / scale) if std is None else torch.tensor(std) / scale,
        )

    def to_latents(self, items: Tensor) -> Tensor:
        """See `Autoencoder.to_latents`; of AutoencoderKL, the mean of the posterior."""
        encoded = self.model.encode(items)
        posterior = getattr(encoded, "latent_dist", None)
        if posterior is not None:
            return posterior.mean
        return encoded.latents if hasattr(encoded, "latents") else encoded.latent

    def to_items(self, latents: Tensor) -> Tensor:
        """See `Autoencoder.to_items`."""
        return self.model.decode(latents).sample


def from_diffusers(folder: Path, name: str) -> DiffusersAutoencoder:
    """The autoencoder of a folder that diffusers wrote, its weights in safetensors. Raises ValueError: diffusers or a file is
    missing, or weights do not fit."""
    cls = _class(name)
    try:
        model, info = cls.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # of many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"cannot read the {name} in {folder}: {reason}; copy the folder anew, with weights in safetensors"
        ) from error
    if wrong := [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]:
        raise ValueError(f"the weights in {folder} are of another {name} than its config: {', '.join(map(str, wrong[:4]))}")
    plain = json.loads(model.to_json_string())
    return DiffusersAutoencoder(DiffusersSettings(name, plain), model)  # type: ignore[arg-type]


def _class(name: str) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ValueError("an autoencoder of diffusers needs it: pip install 'transfusion-kit[vae]'") from error
    return getattr(diffusers, name)
