"""What a run of a recipe does on its way: it draws prompts, and measures whether captions are used."""

import contextlib
from collections.abc import Callable, Sequence

import torch

from transfusion.api import Transfusion
from transfusion.data.document import Document
from transfusion.data.document import document as as_document
from transfusion.data.outputs import write_documents
from transfusion.data.tokenize import max_length
from transfusion.evaluation.image_grid import image_grid
from transfusion.evaluation.preference import advice, caption_preference, other_captions
from transfusion.evaluation.suite import items_of
from transfusion.generate.sizes import item_length
from transfusion.run.recipe import Prompt
from transfusion.run.record import Run
from transfusion.train.log import LogFn, Measured
from transfusion.train.trainer import Hook


def with_room(model: Transfusion, prompts: Sequence[Prompt], log: LogFn) -> list[Prompt]:
    """The prompts behind which the context has room for an item of the first modality."""
    if not model.config.model.modalities:
        return list(prompts)
    modality, context = model.config.model.modalities[0], model.config.model.context_length
    item = item_length(modality, modality.slots(modality.shape)) - 1  # a prompt has no EOS
    kept: list[Prompt] = []
    for prompt in prompts:
        with contextlib.suppress(ValueError):  # items of a size that the modality forbids: such documents are left out too
            if max_length(model.codecs.encoded(as_document(prompt)), model.vocabulary, {}) + item <= context:
                kept.append(prompt)
    if left := len(prompts) - len(kept):
        log(
            f"note: {left} of {len(prompts)} prompts have no room in a context of {context:,} tokens with what is drawn behind "
            "them, so they are not among the samples: raise --model.context-length"
        )
    return kept


def samples(run: Run, model: Transfusion, prompts: Sequence[Prompt], dtype: torch.dtype) -> Hook:
    """The hook that draws the prompts on the way."""

    def draw(step: int) -> None:
        modality, out = run.model.modalities[0], run.folder / "samples" / f"step-{step:08d}"
        documents = model.generate(list(prompts), force=modality.name, seed=run.seed, dtype=dtype)
        if modality.is_image:
            image_grid([d.media[-1].tensor() for d in documents], [d.text for d in documents], out.with_suffix(".png"))
        else:
            write_documents(documents, out, model.item_modalities)

    return Hook(draw, run.trainer.sample_every)


def preference(
    run: Run, model: Transfusion, corpus: Sequence[Document], held_out: Sequence[Document], dtype: torch.dtype
) -> Callable[[int], Measured] | None:
    """The hook that measures caption preference on held-out documents and on the corpus, and after the last step says what to
    do if it is chance; None where no two documents have a picture and captions that differ."""
    try:
        other_captions(held_out or corpus, seed=run.seed)
    except ValueError:
        return None

    items = items_of(model)

    def measure(step: int) -> Measured:
        try:
            found = caption_preference(model, held_out or corpus, seed=run.seed, dtype=dtype)
            trained = caption_preference(model, corpus, seed=run.seed, dtype=dtype)["caption_preference"] if held_out else None
        except ValueError as error:
            return Measured({}, str(error))
        first = found["caption_preference"]
        if trained is not None:
            found["caption_preference_trained"] = trained
        metrics: dict[str, float] = {}
        for name, estimate in found.items():
            metrics[name] = estimate.value
            if estimate.low is not None and estimate.high is not None:
                metrics |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        shown = ", ".join(f"{name.replace('_', ' ')} {estimate}" for name, estimate in found.items())
        line = f"{shown} on {first.count} {'held-out' if held_out else 'training'} {items} {first.note}"
        words = advice(first, trained, items) if step == run.trainer.steps else ""
        return Measured(metrics, f"{line}\n{words}" if words else line)

    return measure
