"""The kinds of autoencoders, and `load_autoencoder`: a folder written by `Autoencoder.save` or by diffusers, or a name on the
Hugging Face hub, in; a frozen autoencoder out. Code is never loaded by name, and no pickle is read."""

import json
import re
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from transfusion import config
from transfusion.codec.autoencoder import CONFIG, FORMAT, WEIGHTS, Autoencoder
from transfusion.codec.codes import CodesConfig
from transfusion.codec.diffusers_autoencoder import CLASSES, DiffusersSettings, from_diffusers
from transfusion.codec.mel import MelConfig
from transfusion.codec.vae import VAEConfig
from transfusion.codec.vq import VQConfig
from transfusion.config import short
from transfusion.files import MANIFEST, mismatch, read_json

HUB = "hf://"
"""Before a name on the Hugging Face hub. Without it a name is a folder."""
PLACES = ("", "autoencoder", "model")
"""Where a folder, of an autoencoder or of a run that trained one, holds it."""
Settings: TypeAlias = DiffusersSettings | VAEConfig | VQConfig | CodesConfig | MelConfig
"""The settings of every kind that is written to a folder: `kind` in its `config.json` tells them apart."""


def load_autoencoder(spec: str | Path, *, freeze: bool = True) -> Autoencoder:
    """An autoencoder in evaluation mode, on the CPU.

    Args:
        spec: a folder that `Autoencoder.save` wrote, or the run that trained it; a folder that diffusers wrote; or
            hf://OWNER/MODEL or hf://OWNER/MODEL/SUBFOLDER on the Hugging Face hub (extras `vae` and `hf`).
        freeze: whether it is frozen, as it must be in use; else it can be measured, or trained on.

    Raises:
        ValueError: there is none, of another kind or format, files that are missing or not as they were written, weights that
            do not fit, or an extra is missing; the message says what to do.
    """
    folder = _fetch(str(spec)) if str(spec).startswith(HUB) else _find(Path(spec))
    plain = _read(folder / CONFIG)
    if plain.get("_class_name") in CLASSES:
        theirs = from_diffusers(folder, plain["_class_name"])
        return theirs.freeze() if freeze else theirs
    if "_class_name" in plain:
        raise ValueError(f"{folder} holds a {short(plain['_class_name'])} of diffusers; these are read: {', '.join(CLASSES)}")
    if "kind" not in plain:
        raise ValueError(f"{folder} holds no autoencoder: its {CONFIG} names no kind of one")
    if plain.pop("format", None) != FORMAT:
        raise ValueError(f"{folder / CONFIG} is of another format than {FORMAT}: use the version of transfusion that wrote it")
    _verify(folder)
    try:
        settings = config.from_plain(Settings, plain)  # type: ignore[arg-type]
        with torch.device("meta"):  # settings alone take no memory: the weights are those of the file
            autoencoder = settings.build()
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} describes no autoencoder of this version: {error}") from error
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {folder / WEIGHTS}: {error}; copy the folder anew") from error
    wanted = autoencoder.state_dict()
    differ = sorted(wanted.keys() ^ weights.keys())
    differ += [name for name in wanted.keys() & weights.keys() if wanted[name].shape != weights[name].shape]
    if differ:
        raise ValueError(f"{folder}: its weights are not those that its {CONFIG} describes ({', '.join(differ[:4])})")
    autoencoder.load_state_dict(weights, assign=True)
    return autoencoder.freeze() if freeze else autoencoder


def _find(folder: Path) -> Path:
    """The folder that holds the autoencoder. Raises ValueError if none does."""
    for place in PLACES:
        if (folder / place / CONFIG).is_file():
            return folder / place
    if not folder.exists():
        raise ValueError(f"no folder {folder}; an autoencoder on the Hugging Face hub is written {HUB}OWNER/MODEL")
    raise ValueError(f"no autoencoder in {folder}: give a folder with {CONFIG}, as training or diffusers writes it")


def _read(file: Path) -> dict[str, Any]:
    try:
        plain = read_json(file, 2**20)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {file}: {error}; copy the folder anew") from error
    if not isinstance(plain, dict):
        raise ValueError(f"{file} holds no settings of an autoencoder")
    return plain


def _verify(folder: Path) -> None:
    """Raise ValueError unless the files are as its manifest says."""
    try:
        files = read_json(folder / MANIFEST)["files"]
        damage = next((f"{name} is not in it" for name in (CONFIG, WEIGHTS) if name not in files), None)
        damage = damage or mismatch(folder, files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"cannot read {folder / MANIFEST} ({error!r}); copy the folder anew") from error
    if damage is not None:
        raise ValueError(f"{folder} is not as its {MANIFEST} says: {damage}; copy the folder anew")


def _fetch(name: str) -> Path:
    """The folder of hf://OWNER/MODEL[/SUBFOLDER], downloaded. Raises ValueError."""
    match = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/([\w-][\w.-]*))?", name.removeprefix(HUB), re.ASCII)
    if match is None:
        raise ValueError(
            f"{name} is no name on the Hugging Face hub; it is written {HUB}OWNER/MODEL or {HUB}OWNER/MODEL/SUBFOLDER"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(f"to fetch {name} from the Hugging Face hub, install: pip install 'transfusion-kit[hf]'") from error
    repository, subfolder = match[1], match[2] or ""
    prefix = f"{subfolder}/" if subfolder else ""
    patterns = [prefix + pattern for pattern in (CONFIG, MANIFEST, "*.safetensors", "*.safetensors.index.json")]
    try:
        return _find(Path(snapshot_download(repository, allow_patterns=patterns)) / subfolder)
    except ValueError:
        raise
    except Exception as error:  # of many kinds, down to those of its network library
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"cannot fetch {name} from the Hugging Face hub ({reason}): check the name, or download it and give the folder"
        ) from error
