"""Illustrated books: chapters in which texts and pictures alternate (--data), started from `books_text` (--init).

transfusion train books --data FOLDER --init RUN_OF_BOOKS_TEXT

FOLDER is read by `data/sources/illustrated.py`. Pictures are fitted to 64 x 64 in colour: what is beyond a square around their
middle is cut off (of a page in portrait, a quarter), and fine lines and lettering are lost. Chapters longer than a row are cut
at the borders of their segments. One book is held out whole. On it, text alone is measured as `books_text` does, beside the
model that the run started from; text behind pictures, and pictures, by `evaluation/interleaved.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from transfusion.api import Transfusion
from transfusion.codec.patchers import LinearPatcherConfig
from transfusion.config import ConfigError
from transfusion.data.document import Document, Text
from transfusion.data.loader import PackingConfig
from transfusion.data.media import Fit
from transfusion.data.sources.illustrated import cut, of_titles, read_chapters
from transfusion.data.sources.texts import pieces
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.evaluation import interleaved, running_text
from transfusion.evaluation.suite import EvalContext, SuiteResult
from transfusion.modality import IMAGE, Modality
from transfusion.model.pretrained import is_language_model
from transfusion.recipes import books_text
from transfusion.run.recipe import Recipe, SuiteTask
from transfusion.run.record import ReportConfig, Run
from transfusion.train.log import LogFn
from transfusion.train.trainer import CheckpointConfig, TrainerConfig

ROW, BEGINNING = 1024, 200
"""Tokens of a document, and characters of a prompt, at most."""


def run() -> Run:
    """The settings."""
    base = books_text.run()
    transformer = replace(base.model.transformer, dropout=0.1)
    image = Modality(IMAGE, channels=3, shape=(64, 64), patch=(8, 8))
    return replace(
        base,
        recipe="books",
        model=replace(
            base.model,
            modalities=(image,),
            transformer=transformer,
            patcher=LinearPatcherConfig(slot_scale=0.1),
            media_weight=3.0,
            context_length=ROW,
        ),
        transform=DocumentTransform(dual=0.5, condition_dropout=ConditionDropout(text=0.1)),
        packing=PackingConfig(row_length=ROW, rows=2),
        trainer=TrainerConfig(steps=1000, ema_decay=0.99),
        optimizer=replace(base.optimizer, lr=2e-3),
        checkpoint=CheckpointConfig(every=100, keep=2),
        sampler=Euler(num_steps=25),
        guidance=Guidance(text=2.0),
        report=ReportConfig(images=400),
    )


def documents(run: Run, log: LogFn) -> Sequence[Document]:
    """The chapters of all books but those held out. Raises ConfigError without `--data`, ValueError as `read_chapters`."""
    return _chapters(run, held_out=False)


def held_out(run: Run) -> Sequence[Document]:
    """The chapters of the books held out."""
    return _chapters(run, held_out=True)


def score(run: Run, model: Transfusion, context: EvalContext) -> SuiteResult:
    """The held-out books, measured, and pages continued from the beginnings of their documents."""
    documents = held_out(run)
    texts = [d.segments[0].content for d in documents if isinstance(d.segments[0], Text)]
    prompts = [Document((Text(pieces(str(text), BEGINNING)[0]),)) for text in texts]
    result = interleaved.score(model, documents, context, prompts=prompts)
    texts = [chapter.text for chapter in of_titles(_read(run), books_text.HELD_OUT_TITLES, among=True)]
    own = bool(run.init) and not is_language_model(run.init)
    start = Transfusion.from_pretrained(run.init, device=model.device) if own else model
    length = min(m.config.model.context_length for m in (start, model)) - 2  # BOS, EOS
    metrics = result.record.metrics | running_text.nats(model, texts, context, length=length)
    if start is not model:
        before = running_text.nats(start, texts, context, length=length)
        metrics |= {f"{name}_of_init": estimate for name, estimate in before.items()}
    return replace(result, record=replace(result.record, metrics=metrics))


def _chapters(run: Run, *, held_out: bool) -> list[Document]:
    """Raises ConfigError where the model has no pictures, or no chapters are left."""
    chosen = of_titles(_read(run), books_text.HELD_OUT_TITLES, among=held_out)
    if not chosen:
        raise ConfigError(
            f"{run.data} needs chapters of {', '.join(books_text.HELD_OUT_TITLES)}, which are held out, and of other books"
        )
    image = run.model.modalities[0]
    slots = 2 * math.prod(image.slots(image.shape)) + 2  # two copies, BEGIN, END
    return [d for chapter in chosen for d in cut(chapter, slots, run.packing.row_length, piece=books_text.PIECE)]


def _read(run: Run) -> Sequence[Document]:
    if not run.data:
        raise ConfigError(f"{run.recipe} needs --data PATH: a folder with docs.jsonl and pairs_*.parquet")
    fit = Fit.of(run.model.modalities)
    if fit is None or not run.model.modalities[0].is_image:
        raise ConfigError(f"{run.recipe} needs a modality of images: two axes, and 1 or 3 channels")
    return read_chapters(run.data, fit)


RECIPE = Recipe(run, documents, lambda _: [books_text.PROMPT], SuiteTask(score), held_out)
