"""A model folder: `config.json`, `tokenizer.json`, `model.safetensors`. No pickle."""

import json
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from transfusion import config
from transfusion.data.transforms import ConditionDropout
from transfusion.data.vocabulary import PretrainedVocabulary, Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler, Sampler
from transfusion.files import replacing, write_tensors, write_text
from transfusion.model.network import ModelConfig, Network

FORMAT = 2
"""Rises when the names or the meaning of a field in `config.json` or of a weight change."""


@dataclass(frozen=True)
class TransfusionConfig:
    """A model without its weights: `config.json`.

    Args:
        model: the network.
        condition_dropout: how often training dropped the conditions of an item, see `resolve_guidance`.
        sampler, guidance: defaults of `generate`.
        language: the language model that the text ids come from, if any.
        format: version of the model folder.
    """

    model: ModelConfig = ModelConfig()
    condition_dropout: ConditionDropout = ConditionDropout()
    sampler: Sampler = Euler()
    guidance: Guidance = Guidance()
    language: PretrainedVocabulary | None = None
    format: int = FORMAT

    @property
    def guidable(self) -> tuple[str, ...]:
        """Conditions that training dropped, of "text" and "media": guidance by these has an unconditional branch."""
        drop = self.condition_dropout
        return tuple(name for name in ("text", "media") if getattr(drop, name) + drop.both > 0)

    def resolve_guidance(self, asked: Guidance | None, *, draws: bool) -> Guidance:
        """The guidance to generate with: `asked`, or the default; scale 1 (off) for conditions that training never dropped.
        Warns where that changes `asked`, and where media are drawn (`draws`) without the guidance that was trained."""
        guidance = self.guidance if asked is None else asked
        if draws and guidance.text == 1.0 and "text" in self.guidable and self.model.modalities:
            warnings.warn(
                "guidance is off (text scale 1), so pictures follow their text less; Guidance(text=3) is a usual choice",
                stacklevel=3,
            )
        for name in ("text", "media"):
            if asked is not None and getattr(asked, name) != 1.0 and name not in self.guidable:
                warnings.warn(
                    f"guidance for {name} is left out: this model was never trained without {name} before its items "
                    f"(transform.condition_dropout.{name})",
                    stacklevel=3,
                )
        return replace(guidance, **{name: 1.0 for name in ("text", "media") if name not in self.guidable})


def write(folder: Path, settings: TransfusionConfig, vocabulary: Vocabulary, network: Network) -> None:
    """Write a model folder, each file whole, the weights first. Raises OSError if it can't be written."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    if settings.model.tie_embeddings:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    uses = Counter(tensor.data_ptr() for tensor in weights.values())  # custom patchers may share weights
    weights = {name: w.clone() if uses[w.data_ptr()] > 1 else w for name, w in weights.items()}
    write_tensors(folder / "model.safetensors", weights)
    with replacing(folder / "tokenizer.json") as temporary:
        vocabulary.save(temporary)
    write_text(folder / "config.json", json.dumps(config.to_plain(settings), indent=2) + "\n")


def read_weights(folder: Path, *, tie_embeddings: bool) -> dict[str, Tensor]:
    """The weights of a model folder; `tie_embeddings` where the head is the embedding. Raises ValueError if unreadable."""
    try:
        weights = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {folder / 'model.safetensors'}: {error}; the file is damaged or missing") from error
    if tie_embeddings:
        weights |= {name.replace("embed", "head"): w for name, w in weights.items() if name.startswith("embed.")}
    return weights


def find(folder: str | Path) -> Path:
    """The model folder that a path means: itself, or `model` in a run folder. Raises ValueError if there is none."""
    folder = Path(folder)
    for place in (folder, folder / "model"):
        if (place / "config.json").is_file():
            return place
    raise ValueError(f"no model in {folder}: give a folder with config.json, or a run folder whose training has finished")


def read_settings(folder: str | Path) -> TransfusionConfig:
    """The settings of a model folder, or of a run's model. Raises ValueError if there are none, or of another format."""
    file = find(folder) / "config.json"
    try:
        plain = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    version = plain.get("format") if isinstance(plain, dict) else None
    if version != FORMAT:
        remedy = "train the model anew, or use the version of transfusion that wrote it"
        raise ValueError(f"{file} has format {version}, this version reads format {FORMAT}: {remedy}")
    return config.from_plain(TransfusionConfig, plain)


def fit(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load weights that must fit exactly. Raises ValueError naming the first that do not."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"these weights are of another architecture: {' '.join(str(error).split())[:800]}") from error
