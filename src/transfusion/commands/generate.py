"""Generate from a trained run: prompts in, documents out, pictures as PNG.

transfusion generate RUN --prompt "a handwritten seven"
transfusion generate RUN --prompts prompts.jsonl --out DIR
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from transfusion import rng
from transfusion.api import Transfusion
from transfusion.config import ConfigError
from transfusion.data.document import Document, Media, Text
from transfusion.data.media import Fit
from transfusion.data.outputs import OUTPUTS, write_documents
from transfusion.data.sources.jsonl import parse_line
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler, Sampler
from transfusion.evaluation.image_grid import sheet
from transfusion.generate.logits import Decoding, Greedy
from transfusion.generate.state import Done, Event
from transfusion.modality import IMAGE, is_image
from transfusion.model_folder import TransfusionConfig, read_settings
from transfusion.recipes.classes import progress
from transfusion.recipes.run import LogFn
from transfusion.train.device import Device, Dtype, pick_device, pick_dtype


@dataclass(frozen=True)
class Generate:
    """How to generate.

    Args:
        prompt: a text to go on from; "" is a document from nothing.
        prompts: a JSONL file, a document a line: {"segments": [{"text": "..."}, {"image": "a.png"}]}.
        out: folder for `outputs.jsonl` and the pictures.
        want: "image": draw an item right after each prompt; "text": only text; "any": what the model likes; "auto": text
            after a prompt that ends in a picture, anything after an empty one, else an image.
        count: documents for each prompt.
        seed: names all chance.
        max_tokens: text tokens to write at most (None: 0 after a forced image, else 128).
        max_items: pictures to write at most, where text may go on (None: as many as the model likes).
        device: where to compute.
        dtype: fp32, bf16 under autocast, or what this machine does best.
        sampler: how pictures are drawn.
        guidance: how strongly they follow their text.
        decoding: how tokens are chosen.
    """

    prompt: str | None = None
    prompts: str | None = None
    out: str = "generated"
    want: Literal["auto", "image", "text", "any"] = "auto"
    count: int = 1
    seed: int = 0
    max_tokens: int | None = None
    max_items: int | None = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    sampler: Sampler = Euler()
    guidance: Guidance = Guidance()
    decoding: Decoding = Greedy()


def defaults(folder: str) -> Generate:
    """What a run's own settings say."""
    settings = read_settings(folder) if folder else TransfusionConfig()
    return Generate(sampler=settings.sampler, guidance=settings.guidance)


def run_recipe(folder: str, options: Generate, log: LogFn) -> None:
    """Generate and write; answers stand in the order of the prompts.

    Raises:
        ConfigError: neither or both of prompt and prompts.
        ValueError: a line that is no document, a prompt that does not fit.
        OSError: the output folder can't be written.
    """
    if (options.prompt is None) == (options.prompts is None):
        raise ConfigError("give --prompt TEXT, or --prompts FILE.jsonl")
    if options.count < 1:
        raise ConfigError(f"count must be at least 1, not {options.count}")
    device = pick_device(options.device)
    model = Transfusion.from_pretrained(folder, device=device).eval()
    prompts = [p for p in _prompts(model, options) for _ in range(options.count)]
    out = Path(options.out)
    seeds = [rng.key(options.seed, i) for i in range(len(prompts))]
    documents = write_documents(_generate(model, prompts, seeds, options, pick_dtype(options.dtype, device)), out)
    drawn = [(d.media[-1].tensor(), d.text) for d in documents if d.media and is_image(d.media[-1].tensor().shape)]
    if len(documents) == 1:
        log(f"text: {documents[0].text!r}")
    if drawn:
        sheet(
            [picture for picture, _ in drawn],
            [text for _, text in drawn],
            out / "sheet.png",
            columns=min(10, len(drawn)),
        )
        log(f"pictures: {out / 'sheet.png'}")
    log(f"documents: {out / OUTPUTS}")


def _prompts(model: Transfusion, options: Generate) -> list[Document]:
    if options.prompt is not None:
        return [Document((Text(options.prompt),) if options.prompt else ())]
    path = Path(options.prompts or "")
    fit = Fit.of(model.config.model.modalities) or Fit((1, 1))
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            name = f"{path.name}:{number}"
            try:
                found.append(parse_line(line.decode("utf-8"), path.parent, fit, name))
            except UnicodeDecodeError as error:
                raise ValueError(f"{name}: not UTF-8") from error
    if not found:
        raise ValueError(f"{path} holds no prompts: write one document a line")
    return found


def _generate(
    model: Transfusion, prompts: Sequence[Document], seeds: Sequence[int], options: Generate, dtype: torch.dtype
) -> Iterator[Document]:
    """Each kind of wish is one batch."""
    wishes: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        wishes.setdefault(_wish(prompt, options), []).append(index)
    answers: dict[int, Document] = {}
    with progress("generating") as each:

        def count(event: Event) -> None:
            if isinstance(event, Done):
                count.done += 1  # type: ignore[attr-defined]
                each(count.done, len(prompts))  # type: ignore[attr-defined]

        count.done = 0  # type: ignore[attr-defined]
        for wish, indices in wishes.items():
            documents = model.generate(
                [prompts[i] for i in indices],
                seeds=[seeds[i] for i in indices],
                force=IMAGE if wish == "image" else None,
                max_tokens=options.max_tokens,
                max_items=0 if wish == "text" else options.max_items,
                sampler=options.sampler,
                guidance=options.guidance,
                decoding=options.decoding,
                dtype=dtype,
                on_event=count,
            )
            answers.update(zip(indices, documents, strict=True))
    yield from (answers[i] for i in range(len(prompts)))


def _wish(prompt: Document, options: Generate) -> str:
    if options.want != "auto":
        return options.want
    if not prompt.segments:
        return "any"
    return "text" if isinstance(prompt.segments[-1], Media) else "image"
