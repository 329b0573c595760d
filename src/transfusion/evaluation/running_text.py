"""Held-out running text, longer than a context -> nats per token and per character, bits per byte; and continued prompts.

Every token is measured once, in a window that begins with BOS and fills the context:

nats_per_token       windows that overlap by a half, of which the second half counts: each token stands behind at least half a
                     window of text, except at the beginning of a text
nats_per_character   the same nats, over the characters of the text
bits_per_byte        the same in bits, over its bytes in UTF-8
nats_per_token_cold  windows that overlap by one token: a token stands behind one to a whole window of others, as in the blocks
                     by which nanoGPT measures, whose numbers are to be compared with this one

The end of a text does not count, since a cut text has none. Intervals are over windows.
"""

import math
from collections.abc import Sequence

import numpy as np

from transfusion.api import Transfusion
from transfusion.data.document import Document, Text
from transfusion.evaluation.estimate import Estimate
from transfusion.evaluation.suite import EvalContext, SuiteResult, generate, make_record
from transfusion.evaluation.text import text_nats
from transfusion.generate.logits import Sample

SUITE = "running_text"
NUM_WRITTEN = 4
DECODING = Sample(temperature=0.8)


def score(model: Transfusion, texts: Sequence[str], context: EvalContext, *, prompt: str = "") -> SuiteResult:
    """The measures of the texts together, on `context.samples` windows of each kind at most, spread evenly; and 4 continuations
    of a prompt, as long as a window.

    Raises:
        ValueError: no text.
    """
    metrics = nats(model, texts, context)
    room = _length(model) - len(model.vocabulary.encode(prompt))
    written = generate(model, [prompt] * NUM_WRITTEN, SUITE, context, decoding=DECODING, max_tokens=max(room, 1), max_items=0)
    return SuiteResult(make_record(SUITE, model, context, metrics), tuple(written))


def nats(model: Transfusion, texts: Sequence[str], context: EvalContext, *, length: int | None = None) -> dict[str, Estimate]:
    """The measures alone, by name; in windows of `length` tokens, where models of several contexts are compared. Raises
    ValueError: no text."""
    length = length or _length(model)
    ids = [model.vocabulary.encode(text) for text in texts]
    tokens = sum(map(len, ids))
    if not tokens:
        raise ValueError("no text to measure on: give some that is held out")
    warm = _nats(model, [w for each in ids for w in windows(each, length, length // 2)], context)
    cold = _nats(model, [w for each in ids for w in windows(each, length, 1)], context)
    characters, size = (sum(map(len, texts)) / tokens, sum(len(text.encode()) for text in texts) / tokens)
    return {
        "nats_per_token": warm,
        "nats_per_character": warm.map(lambda value: value / characters),
        "bits_per_byte": warm.map(lambda value: value / size / math.log(2)),
        "nats_per_token_cold": cold,
    }


def _length(model: Transfusion) -> int:
    return model.config.model.context_length - 2  # BOS, EOS


def windows(ids: Sequence[int], length: int, given: int) -> list[Document]:
    """Windows of `length` tokens, each of which repeats the last `given` tokens of the one before it, without a loss."""
    starts = range(0, max(len(ids) - given, 1), length - given)
    return [_window(ids[start : start + length], given if start else 0) for start in starts]


def _window(ids: Sequence[int], given: int) -> Document:
    return Document((Text(tuple(ids), weight=(0.0,) * given + (1.0,) * (len(ids) - given)),))


def _nats(model: Transfusion, documents: Sequence[Document], context: EvalContext) -> Estimate:
    """Nats per token of windows, of `context.samples` of them at most."""
    count = min(context.samples, len(documents))
    chosen = [documents[i * len(documents) // count] for i in range(count)]
    totals, counts = np.array(text_nats(model, chosen, context, add_eos=False)).T
    return Estimate.ratio(totals, counts, seed=context.seed)
