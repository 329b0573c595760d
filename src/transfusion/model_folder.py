"""A model folder: `config.json`, `tokenizer.json`, `documents.json` (what it learned), `model.safetensors`, and `MANIFEST.json`
with their digests; in `autoencoders/`, those of its modalities that are learned as latents. No pickle.

What is read may come from anywhere: every file must be as the manifest says, weights must have exactly the names, shapes and
kinds that the settings ask for, and settings may not ask for more memory than the weights take.
"""

import json
import math
import reprlib
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from transfusion import config
from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.autoencoders import load_autoencoder
from transfusion.codec.codecs import Codecs
from transfusion.config import ConfigError
from transfusion.data.learned import FILE as DOCUMENTS
from transfusion.data.learned import LearnedDocuments
from transfusion.data.transforms import ConditionDropout
from transfusion.data.vocabulary import PretrainedVocabulary, Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler, Sampler
from transfusion.files import MANIFEST, manifest, mismatch, read_json, replacing, save_tensors, write_text
from transfusion.model.network import ModelConfig, Network

FORMAT = 2
"""Rises when the names or the meaning of a field in `config.json` or of a weight change."""
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
AUTOENCODERS = "autoencoders"
"""The folder with a folder of each autoencoder, named for its modality."""


@dataclass(frozen=True)
class AutoencoderDigest:
    """The autoencoder whose latents a model learned, by its digest.

    Args:
        modality: name of the modality.
        digest: `Autoencoder.digest`.
    """

    modality: str
    digest: str


def as_digests(digests: Mapping[str, str]) -> tuple[AutoencoderDigest, ...]:
    """Digests by modality, as a config holds them."""
    return tuple(AutoencoderDigest(name, digest) for name, digest in sorted(digests.items()))


@dataclass(frozen=True)
class TransfusionConfig:
    """A model without its weights: `config.json`.

    Args:
        model: the network.
        condition_dropout: how often training dropped the conditions of an item, see `resolve_guidance`.
        sampler, guidance: defaults of `generate`.
        language: the language model that the text ids come from, if any.
        autoencoders: of the modalities that are learned as latents.
        format: version of the model folder.
    """

    model: ModelConfig = ModelConfig()
    condition_dropout: ConditionDropout = ConditionDropout()
    sampler: Sampler = Euler()
    guidance: Guidance = Guidance()
    language: PretrainedVocabulary | None = None
    autoencoders: tuple[AutoencoderDigest, ...] = ()
    format: int = FORMAT

    @property
    def guidable(self) -> tuple[str, ...]:
        """Conditions that training dropped, of "text" and "media": guidance by these has an unconditional branch."""
        drop = self.condition_dropout
        return tuple(name for name in ("text", "media") if getattr(drop, name) + drop.both > 0)

    def check_autoencoders(self, digests: Mapping[str, str]) -> None:
        """Raise ValueError unless these, by modality, are the autoencoders that a trained model has; a new one takes any."""
        wanted = {kept.modality: kept.digest for kept in self.autoencoders}
        for name in {**wanted, **digests} if wanted else ():
            if wanted.get(name) != digests.get(name):
                raise ValueError(
                    f"this model learned {name!r} {_autoencoder(wanted.get(name))}, not {_autoencoder(digests.get(name))}: "
                    "give it the one that it was trained with (autoencoder=)"
                )

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


def _autoencoder(digest: str | None) -> str:
    return f"with autoencoder {digest}" if digest else "without an autoencoder"


def write(
    folder: Path,
    settings: TransfusionConfig,
    vocabulary: Vocabulary,
    network: Network,
    learned: LearnedDocuments,
    codecs: Codecs,
) -> None:
    """Write a model folder; an old model is replaced once all files of the new one are written, the manifest last. Raises
    OSError if it can't be written."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, autoencoder in codecs.autoencoders.items():
        if autoencoder.settings is not None:  # one of the user's own class is given to `from_pretrained` again
            autoencoder.save(folder / AUTOENCODERS / name)
    weights = network.state_dict()
    if settings.model.tie_embeddings:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    uses = Counter(tensor.data_ptr() for tensor in weights.values())  # custom patchers may share weights
    weights = {name: w.clone() if uses[w.data_ptr()] > 1 else w for name, w in weights.items()}
    with ExitStack() as stack:  # the last one entered is replaced first
        partial = {
            name: stack.enter_context(replacing(folder / name)) for name in (MANIFEST, CONFIG, DOCUMENTS, TOKENIZER, WEIGHTS)
        }
        save_tensors(partial[WEIGHTS], weights)
        vocabulary.save(partial[TOKENIZER])
        partial[DOCUMENTS].write_text(learned.to_json(), encoding="utf-8")
        partial[CONFIG].write_text(json.dumps(config.to_plain(settings), indent=2) + "\n", encoding="utf-8")
        files = manifest({name: file for name, file in partial.items() if name != MANIFEST})
        partial[MANIFEST].write_text(json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n", encoding="utf-8")


def read_autoencoders(folder: Path, settings: TransfusionConfig) -> dict[str, Autoencoder]:
    """The autoencoders of a model folder, by modality. Raises ValueError: one is missing or damaged."""
    found = {}
    for kept in settings.autoencoders:
        place = folder / AUTOENCODERS / kept.modality
        if not kept.modality.isidentifier() or not place.is_dir():
            raise ValueError(
                f"{folder} holds no autoencoder of {kept.modality!r}: copy the folder whole, or, if it is of a class of your "
                "own, give it (autoencoder=)"
            )
        found[kept.modality] = load_autoencoder(place)
    return found


def add_to_manifest(folder: Path, name: str) -> None:
    """Have a file that was written into a model folder afterwards verified with the others. Raises OSError, ValueError: no
    manifest that can be read or written."""
    plain = read_json(folder / MANIFEST)
    plain["files"] |= manifest({name: folder / name})
    write_text(folder / MANIFEST, json.dumps(plain, indent=1) + "\n")


def verify(folder: Path) -> None:
    """Check that the files of a model folder are as they were written; warns where it has no manifest. Raises ValueError,
    naming the first that differs."""
    remedy = "copy or save the model anew; if you changed it on purpose, delete MANIFEST.json"
    try:
        files = read_json(folder / MANIFEST)["files"]
        damage = next((f"{name} is not in it" for name in (CONFIG, TOKENIZER, WEIGHTS) if name not in files), None)
        damage = damage or mismatch(folder, files)
    except FileNotFoundError:
        unchecked = "its files are taken as they are; save the model again to have damage noticed"
        warnings.warn(f"{folder} has no {MANIFEST}, as of an earlier version: {unchecked}", stacklevel=3)
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"cannot read {folder / MANIFEST}: {error!r}; {remedy}") from error
    if damage is not None:
        raise ValueError(f"{folder} is not as its {MANIFEST} says: {damage}; {remedy}")


@contextmanager
def within_weights(folder: Path, settings: TransfusionConfig) -> Iterator[None]:
    """Make a vocabulary and a network of the settings of a folder inside this: it raises ValueError, naming the folder, as soon
    as they take more memory than the weights beside them explain."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118, it is no dict
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {folder / WEIGHTS}: {error}; the file is damaged or missing") from error
    rows = sum(shape[0] for name, shape in shapes.items() if name in ("embed.weight", "embed.new") and shape)
    tokens = sum(modality.codes + sum(modality.extents) * modality.varies for modality in settings.model.modalities)
    if tokens > rows:
        raise ValueError(
            f"{folder}: {CONFIG} asks for {tokens:,} tokens of sizes and codes, {WEIGHTS} has {rows:,} rows of tokens"
        )
    allowed = 2 * sum(math.prod(shape) + PER_TENSOR for shape in shapes.values()) + SLACK
    try:
        with Budget(allowed, f"{folder}: {CONFIG} asks for a far larger network than {WEIGHTS} holds"):
            yield
    except (RuntimeError, ArithmeticError, MemoryError) as error:  # of torch, for numbers that are in range but make no network
        raise ValueError(f"{folder}: {CONFIG} makes no network ({error})") from error


SLACK, PER_TENSOR = 2**24, 2**14
"""Elements that making a network may take beside its weights, and as how many a tensor counts at least, for its time."""


class Budget(TorchFunctionMode):
    """Inside it, new tensors that together have more than a number of elements raise ValueError, before they are made."""

    def __init__(self, elements: int, fault: str) -> None:
        super().__init__()
        self.left, self.fault = elements, fault

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn):
            size = (kwargs or {}).get("size", args[0] if args and not isinstance(args[0], int) else args)
            self.left -= max(math.prod(size), PER_TENSOR)
            if self.left < 0:
                raise ValueError(self.fault)
        return func(*args, **(kwargs or {}))


def read_weights(folder: Path, *, tie_embeddings: bool) -> dict[str, Tensor]:
    """The weights of a model folder; `tie_embeddings` where the head is the embedding. Raises ValueError if unreadable."""
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {folder / WEIGHTS}: {error}; the file is damaged or missing") from error
    if tie_embeddings:
        weights |= {name.replace("embed", "head"): w for name, w in weights.items() if name.startswith("embed.")}
    return weights


def find(folder: str | Path) -> Path:
    """The model folder that a path means: itself, or `model` in a run folder. Raises ValueError if there is none."""
    folder = Path(folder)
    for place in (folder, folder / "model"):
        if (place / CONFIG).is_file():
            return place
    raise ValueError(f"no model in {folder}: give a folder with config.json, or a run folder whose training has finished")


def read_settings(folder: str | Path) -> TransfusionConfig:
    """The settings of a model folder, or of a run's model. Raises ValueError if there are none, or of another format."""
    file = find(folder) / CONFIG
    try:
        plain = read_json(file, 64 * 2**20)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    version = plain.get("format") if isinstance(plain, dict) else None
    if version != FORMAT or isinstance(version, bool):
        remedy = "train the model anew, or use the version of transfusion that wrote it"
        raise ValueError(f"{file} has format {reprlib.repr(version)}, this version reads format {FORMAT}: {remedy}")
    try:
        return config.from_plain(TransfusionConfig, plain)
    except ConfigError as error:
        raise ValueError(f"{file}: {error}") from error


def fit(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load weights that must fit exactly: names, shapes, and floating point where the network has it. Raises ValueError naming
    the first that do not."""
    wanted = network.state_dict()
    wrong = [f"{name} is missing" for name in wanted.keys() - weights.keys()]
    wrong += [f"{name} is unknown" for name in weights.keys() - wanted.keys()]
    for name in wanted.keys() & weights.keys():
        there, here = weights[name], wanted[name]
        if there.shape != here.shape:
            wrong.append(f"{name} has shape {list(there.shape)}, not {list(here.shape)}")
        elif there.dtype != here.dtype and not (there.dtype in FLOATS and here.dtype in FLOATS):
            wrong.append(f"{name} is {there.dtype}, not {here.dtype}")
    if wrong:
        more = f", and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(f"these weights are of another architecture: {', '.join(sorted(wrong)[:4])}{more}")
    network.load_state_dict(weights)
