"""Continue prompts with text, images and sounds.

usage: transfusion generate RUN --prompt "a handwritten seven"
       transfusion generate RUN --prompts prompts.jsonl [--out FOLDER] [--name VALUE ...]

Writes `outputs.jsonl`, a document a line in the order of the prompts, and a file of each media item (PNG, WAV or .npy).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from transfusion import rng
from transfusion.api import Transfusion
from transfusion.config import ConfigError, nearest
from transfusion.data.document import Document, Media, Text
from transfusion.data.media import Fit
from transfusion.data.outputs import OUTPUTS, write_documents
from transfusion.data.sources.jsonl import parse_line, read_lines
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler, Sampler
from transfusion.evaluation.image_grid import image_grid
from transfusion.evaluation.suite import DocumentCounter
from transfusion.generate.logits import Decoding, Greedy, Sample
from transfusion.modality import Modality, is_image
from transfusion.model_folder import TransfusionConfig, read_settings
from transfusion.run.command_line import parse, split_positional
from transfusion.train.device import Device, Dtype, pick_device, pick_dtype
from transfusion.train.log import LogFn, progress

AUTO, TEXT, ANY = "auto", "text", "any"
"""Modes beside the names of the model's modalities."""
MAX_DOCUMENTS = 100_000
"""Documents of a run at most; they are held in memory."""


@dataclass(frozen=True)
class GenerateOptions:
    """Prompts, sampling and output.

    Args:
        prompt: a text to continue; "" starts an empty document.
        prompts: a JSONL file, a document a line: {"segments": [{"text": "..."}, {"image": "a.png"}]}.
        out: folder for `outputs.jsonl` and the media items.
        mode: the name of a modality (image) generates an item of it right after each prompt; text generates only text; any
            leaves it to the model; auto takes text after a prompt that ends in a media item, any after an empty one, else the
            model's first modality.
        image_size: height and width of the images that are drawn, in pixels, written 32x48; for a model that learned several
            sizes.
        count: documents for each prompt.
        seed: random seed.
        max_tokens: maximum number of text tokens (default: 0 after a forced item, else 128).
        max_items: maximum number of media items where the model may choose (default: no limit).
        device: auto takes cuda, else mps, else cpu.
        dtype: fp32, or bf16 under autocast; auto takes bf16 where the device is faster with it.
        sampler: sampler for media (default: the run's).
        guidance: guidance scales (default: the run's).
        decoding: how tokens are chosen.
        code_decoding: how the codes of discrete media are chosen.
    """

    prompt: str | None = None
    prompts: str | None = None
    out: str = "generated"
    mode: str = AUTO
    image_size: str = ""
    count: int = 1
    seed: int = 0
    max_tokens: int | None = None
    max_items: int | None = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    sampler: Sampler = Euler()
    guidance: Guidance = Guidance()
    decoding: Decoding = Greedy()
    code_decoding: Decoding = Sample()


def run(arguments: list[str], log: LogFn) -> int:
    """The command.

    Raises:
        ConfigError: neither or both of --prompt and --prompts, or a mode that the model does not have.
        ValueError: a line is no document, or a prompt does not fit the context.
        OSError: the output folder can't be written.
    """
    missing = "generate needs a run or model folder: transfusion generate RUN --prompt TEXT"
    folders, rest = split_positional(arguments, missing, __doc__, most=1)
    saved = read_settings(folders[0]) if folders else TransfusionConfig()
    default = GenerateOptions(sampler=saved.sampler, guidance=saved.guidance)
    options = parse(default, rest, "transfusion generate RUN")
    if (options.prompt is None) == (options.prompts is None):
        raise ConfigError("give --prompt TEXT, or --prompts FILE.jsonl")
    if not 1 <= options.count <= MAX_DOCUMENTS:
        raise ConfigError(f"count must be at least 1 and at most {MAX_DOCUMENTS:,}, not {options.count}; more in several runs")
    device = pick_device(options.device)
    model = Transfusion.from_pretrained(folders[0], device=device).eval()
    modalities = model.config.model.modalities
    if options.mode not in (modes := [AUTO, TEXT, ANY, *(m.name for m in modalities)]):
        raise ConfigError(f"mode: no {options.mode!r}{nearest(options.mode, modes)}")
    sizes = _sizes(model, options.image_size)
    distinct = _prompts(model, options)
    if len(distinct) * options.count > MAX_DOCUMENTS:
        raise ConfigError(f"{len(distinct):,} prompts, {options.count:,} times each, are more than {MAX_DOCUMENTS:,} documents")
    prompts = [prompt for prompt in distinct for _ in range(options.count)]
    seeds = [rng.key(options.seed, i) for i in range(len(prompts))]
    out = Path(options.out)
    generated = _generate(model, prompts, seeds, options, sizes, pick_dtype(options.dtype, device))
    documents = write_documents(generated, out, model.item_modalities)
    if len(documents) == 1:
        log(f"text: {documents[0].text!r}")
    images = [(d.media[-1].tensor(), d.text) for d in documents if d.media and is_image(d.media[-1].tensor().shape)]
    if images:
        grid = out / "grid.png"
        image_grid([image for image, _ in images], [text for _, text in images], grid, columns=min(10, len(images)))
        log(f"images: {grid}")
    log(f"documents: {out / OUTPUTS}")
    return 0


def _prompts(model: Transfusion, options: GenerateOptions) -> list[Document]:
    """The prompts of the options, images fitted to the model."""
    if options.prompt is not None:
        return [Document((Text(options.prompt),) if options.prompt else ())]
    path = Path(options.prompts or "")
    fit = Fit.of(model.item_modalities) or Fit((1, 1))
    try:
        prompts = [parse_line(line, path.parent, fit, name) for name, line in read_lines(path)]
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not prompts:
        raise ValueError(f"{path} holds no prompts: write one document a line")
    return prompts


def _sizes(model: Transfusion, words: str) -> dict[str, tuple[int, ...]]:
    """The size of the model's images that "32x48" asks for. Raises ConfigError: it is none, or one that the model has not."""
    if not words:
        return {}
    image = next((m for m in model.item_modalities if m.is_image), None)
    if image is None:
        raise ConfigError("--image-size: this model has no modality of images")
    parts = words.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--image-size {words!r} is no size: write height and width in pixels, 32x48")
    size = (int(parts[0]), int(parts[1]))
    try:
        image.slots(size)
    except ValueError as error:
        raise ConfigError(f"--image-size {words}: {error}") from error
    return {image.name: size}


def _generate(
    model: Transfusion,
    prompts: Sequence[Document],
    seeds: Sequence[int],
    options: GenerateOptions,
    sizes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
) -> Iterator[Document]:
    """Generate all prompts of a mode together; the documents come in the order of the prompts."""
    modes: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        modes.setdefault(_mode(prompt, options.mode, model.config.model.modalities), []).append(index)
    results: dict[int, Document] = {}
    with progress("generating") as each:
        counter = DocumentCounter(len(prompts), each)
        for mode, indices in modes.items():
            documents = model.generate(
                [prompts[i] for i in indices],
                seeds=[seeds[i] for i in indices],
                force=None if mode in (TEXT, ANY) else mode,
                sizes=sizes,
                max_tokens=options.max_tokens,
                max_items=0 if mode == TEXT else options.max_items,
                sampler=options.sampler,
                guidance=options.guidance,
                decoding=options.decoding,
                code_decoding=options.code_decoding,
                dtype=dtype,
                on_event=counter,
            )
            results.update(zip(indices, documents, strict=True))
    yield from (results[i] for i in range(len(prompts)))


def _mode(prompt: Document, mode: str, modalities: Sequence[Modality]) -> str:
    """The mode of a prompt: text, any, or the name of the modality to generate."""
    if mode != AUTO:
        return mode
    if not prompt.segments:
        return ANY
    return TEXT if isinstance(prompt.segments[-1], Media) or not modalities else modalities[0].name
