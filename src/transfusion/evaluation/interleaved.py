"""Held-out documents of texts and pictures -> what is lost on each, and pages that are written from their beginnings.

nats_per_token_behind_pictures   text in its place, behind the pictures before it; the end of a document counts
denoising                        the media loss of pictures in their place, each at one time drawn by its key

Pages are documents continued from a first text; a sheet shows each picture above the text before it.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from transfusion import rng
from transfusion.api import Transfusion
from transfusion.data.document import Document, Media, Text
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.suite import EvalContext, SuiteResult, generate, make_record
from transfusion.generate.logits import Sample
from transfusion.nn.ema import eval_mode

SUITE = "interleaved"
NUM_PAGES = 20
MAX_TOKENS, MAX_ITEMS = 300, 3
"""Of a page, at most."""
DECODING = Sample(temperature=0.8)


def score(
    model: Transfusion, documents: Sequence[Document], context: EvalContext, *, prompts: Sequence[Document] = ()
) -> SuiteResult:
    """The losses of `context.samples` documents at most, which fit the model's context, and pages that continue the prompts.

    Raises:
        ValueError: no documents, or one that does not fit.
    """
    if not documents:
        raise ValueError("no documents of texts and pictures are held out: give some")
    chosen = documents[: context.samples]
    sums: list[list[float]] = []
    with eval_mode(model), torch.no_grad():
        for index, document in enumerate(chosen):
            with torch.autocast(model.device.type, torch.bfloat16, enabled=context.dtype == torch.bfloat16):
                losses = model(model.batch([document], seed=rng.key(context.seed, SUITE, index)))
            terms = (losses.text.sum, losses.text.count, losses.media.sum, losses.media.count)
            sums.append([float(term) for term in terms])
            context.progress(index + 1, len(chosen))
    nats, tokens, errors, pictures = np.array(sums).T
    metrics = {
        "nats_per_token_behind_pictures": Estimate.ratio(nats, tokens, seed=context.seed),
        "denoising": Estimate.ratio(errors, pictures, seed=context.seed),
    }
    pages = generate(model, prompts[:NUM_PAGES], SUITE, context, decoding=DECODING, max_tokens=MAX_TOKENS, max_items=MAX_ITEMS)
    return SuiteResult(make_record(SUITE, model, context, metrics), tuple(pages), shown=shown(pages))


def shown(pages: Sequence[Document]) -> tuple[tuple[Tensor, str, str], ...]:
    """Each picture of the pages, with the end of the text before it and the number of its page."""
    found = []
    for number, page in enumerate(pages):
        for before, segment in pairwise((Text(""), *page.segments)):
            if isinstance(segment, Media):
                text = str(before.content).strip()[-60:] if isinstance(before, Text) else ""
                found.append((segment.tensor(), text, f"#{number}"))
    return tuple(found)
