"""A run with `init`: it adopts the transformer config of the checkpoint or language model that it starts from."""

import typing
from dataclasses import fields, replace
from pathlib import Path

from transfusion import config
from transfusion.config import ConfigError
from transfusion.modality import IMAGE
from transfusion.model.network import ModelConfig
from transfusion.model.pretrained import HUB, OVERRIDABLE_FIELDS, SIZE_FIELDS, LanguageModel, ModalityWeights, is_language_model
from transfusion.model_folder import AUTOENCODERS, read_settings
from transfusion.nn.config import TransformerConfig
from transfusion.run.record import Run, flat


def adopt_init(run: Run, default: ModelConfig) -> Run:
    """The run with the transformer config of the language model, or of the descendant of one, that `init` names. With any other
    model it adopts the coordinates alone, with which the weights were learned. `OVERRIDABLE_FIELDS` of the transformer, and
    coordinates that differ from the recipe's, remain the run's own.

    Args:
        default: the recipe's model: settings that differ from it were chosen by the user.

    Raises:
        ConfigError: a chosen setting contradicts the adopted config.
        ValueError: `init` can't be read.
    """
    if not run.init:
        return run
    model = run.model
    if is_language_model(run.init):
        adopted = LanguageModel.open(run.init).model(
            model, modality_weights=model.transformer.modality_weights, context_length=model.context_length
        )
        _check(run, default, adopted, SIZE_FIELDS)
        return replace(run, model=adopted)
    if not Path(run.init).exists():
        raise ValueError(
            f"no model in {run.init}: give a run or model folder, the folder of a language model, or {HUB}OWNER/MODEL for one "
            "on the Hugging Face hub"
        )
    settings = read_settings(run.init)
    if model.coordinates == default.coordinates and settings.model.modalities:
        model = replace(model, coordinates=settings.model.coordinates)
    if settings.language is None:
        return replace(run, model=model)
    adopted = replace(model, transformer=settings.model.transformer, tie_embeddings=settings.model.tie_embeddings)
    chosen = {
        name: getattr(model.transformer, name)
        for name in OVERRIDABLE_FIELDS
        if getattr(model.transformer, name) != getattr(default.transformer, name)
    }
    order = typing.get_args(ModalityWeights)
    stored, wanted = adopted.transformer.modality_weights, chosen.get("modality_weights")
    if wanted is not None and order.index(wanted) < order.index(stored):
        raise ConfigError(
            f"{run.init} has modality_weights {stored!r}, which {wanted!r} cannot hold: leave out "
            "--model.transformer.modality-weights"
        )
    _check(run, default, adopted, {f.name for f in fields(TransformerConfig)} - OVERRIDABLE_FIELDS)
    return replace(run, model=replace(adopted, transformer=replace(adopted.transformer, **chosen)))


def adopt_autoencoder(run: Run) -> Run:
    """The run with the autoencoder of the model that `init` names, where it says nothing of one itself and has images: weights
    that learned latents go on with them."""
    if run.autoencoder or not run.init or all(modality.name != IMAGE for modality in run.model.modalities):
        return run
    places = (Path(run.init) / "model" / AUTOENCODERS / IMAGE, Path(run.init) / AUTOENCODERS / IMAGE)
    return replace(run, autoencoder=next((str(place) for place in places if place.is_dir()), ""))


def _check(run: Run, default: ModelConfig, adopted: ModelConfig, names: set[str]) -> None:
    """Raise ConfigError for a setting that equals neither the recipe's default nor the adopted value."""
    now, usual, stored = (flat(config.to_plain(model)) for model in (run.model, default, adopted))
    # `mlp_width` is given, so `mlp_multiple_of` has no effect
    fixed = {"tie_embeddings", *(f"transformer.{name}" for name in names - {"mlp_multiple_of"})}
    wrong = [
        f"--model.{name.replace('_', '-')} {value} (it has {stored.get(name)})"
        for name, value in now.items()
        if (name in fixed or ".".join(name.split(".")[:2]) in fixed) and value not in (usual.get(name), stored.get(name))
    ]
    if wrong:
        raise ConfigError(
            f"the transformer comes from {run.init} and contradicts {', '.join(wrong)}: leave out these settings, or --init"
        )
