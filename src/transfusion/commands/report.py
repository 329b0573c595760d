"""The report of a run: its task measured, records of the suites, `report.json`, a table and a grid of images."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from transfusion import rng
from transfusion.api import Transfusion
from transfusion.data.document import Document
from transfusion.data.latents import AnyLatents
from transfusion.data.learned import beginning
from transfusion.data.outputs import write_documents
from transfusion.data.sources.scenes import KINDS, NOVEL, held_out_scenes
from transfusion.evaluation import alternating, draw, edit, read, scenes
from transfusion.evaluation.chance import no_better_than_chance
from transfusion.evaluation.classifier import Classifier, ConvolutionalClassifier, accuracy
from transfusion.evaluation.estimate import Estimate, short
from transfusion.evaluation.image_grid import image_grid
from transfusion.evaluation.suite import (
    ON_TRAINED,
    EvalContext,
    Progress,
    caption_classes,
    generate,
    items_of,
    stack_images,
)
from transfusion.modality import IMAGE, is_image
from transfusion.run.command_line import command_line
from transfusion.run.judge import fitted_classifier
from transfusion.run.recipe import AlternatingTask, ClassTask, Recipe, SuiteTask
from transfusion.run.record import Run
from transfusion.train.device import pick_device, pick_dtype
from transfusion.train.log import LogFn, last_losses, printable, progress, training_costs, training_seconds

MOST_READ = 200
"""Held-out images of one's own that are captioned, by default."""
READING = {"accuracy": "image_to_text_accuracy"}
"""Names of the suite `read` -> names in `report.json`."""
MOST_TRAINED, MOST_REAL, SHOWN, WRITTEN = 3000, 1000, 100, 40
"""Training images that drawn ones are compared with, held-out ones, images of a grid, and documents that are written."""
CLASS_ROWS = {
    "edit_nearer": "edits nearer to their target than the source is",
    "edit_error": "error of edits, over that of their sources",
    "text_to_image_agreement": "images that show what their caption names",
    "text_to_image_agreement_held_out_paraphrases": "the same, captions never trained on",
    "image_to_text_accuracy": "held-out images captioned correctly",
    "cider": "CIDEr of the captions of held-out images",
    "classifier_accuracy": "the classifier, on held-out real images",
    "caption_preference": "own caption preferred, held-out images",
    "caption_gap": "how much worse another caption is",
    "frechet_pixels": "Fréchet distance to held-out images",
    "frechet_pixels_real": "the same, of training images",
    "frechet_classifier": "Fréchet distance in the classifier's features",
    "frechet_classifier_real": "the same, of training images (features)",
    "brightness": "brightness, over that of real images",
    "patch_frequency": "power at the patch frequency, over that of real images",
    "patch_borders": "seams at patch borders, over those of real images",
    "nearest_training": "distance to the nearest training image, over that of real images",
}
"""Name in `report.json` -> row of the table."""


def report(
    run: Run,
    recipe: Recipe,
    model: Transfusion,
    log: LogFn,
    *,
    training: float,
    documents: Sequence[Document] = (),
    held_out: Sequence[Document] = (),
) -> None:
    """Measure the task of a run's recipe and write the report; where it has none, drawings from held-out captions, or
    from what documents begin with. Nothing if there is nothing to draw, which is said.

    Args:
        training: seconds that this process has spent on training.
        documents: that were trained on.
        held_out: that were not.
    """
    began = time.monotonic()
    command = command_line(run, recipe.run())
    classes = len(recipe.task.names) if isinstance(recipe.task, ClassTask) else 0
    if isinstance(recipe.task, ClassTask):
        metrics, judge = _classes(run, recipe.task, model, command)
    elif isinstance(recipe.task, AlternatingTask):
        metrics, judge = _alternating(run, recipe.task.classes, model, command)
    elif isinstance(recipe.task, SuiteTask):
        metrics, judge, classes = _suite(run, recipe.task, model, command, log)
    elif recipe.task is not None:
        metrics, judge = _scenes(run, model, command)
    else:
        metrics, judge, classes = _pictures(run, model, documents, held_out, command, log)
    if metrics is None or (not metrics and isinstance(recipe.task, SuiteTask)):
        return
    numbers: dict[str, Any] = {"recipe": run.recipe, "seed": run.seed, "parameters": model.network.num_parameters}
    numbers |= {"classifier": judge} if judge else {}
    if recipe.task is None:
        numbers["captions"] = len({document.text for document in documents if document.media and document.text})
    numbers |= last_losses(run.folder) | training_costs(run.folder)
    for name, metric in metrics.items():
        numbers |= metric.to_report(name)
    remarks = no_better_than_chance(metrics, classes, items_of(model))
    numbers["no_better_than_chance"] = remarks
    if trained := [name for name, metric in metrics.items() if ON_TRAINED in metric.note]:
        numbers["measured_on_training_documents"] = trained
    # the time of the steps themselves: a repeated command, which trains nothing, reports the same
    numbers["seconds"] = max(training, training_seconds(run.folder)) + time.monotonic() - began
    (run.folder / "report.json").write_text(json.dumps(numbers, indent=2) + "\n")
    titles = {} if isinstance(recipe.task, SuiteTask) else CLASS_ROWS
    rows = {_title(titles.get(name, name.replace("_", " ")), metric): metric for name, metric in metrics.items()}
    if rows:
        print_table(f"{run.recipe}, seed {run.seed}", rows)
    for remark in remarks:
        log(remark)
    images = f"images: {run.folder / 'samples.png'}; " if (run.folder / "samples.png").exists() else ""
    log(f"{numbers['seconds']:.0f} seconds; {images}numbers: {run.folder / 'report.json'}")


def _title(words: str, metric: Estimate) -> str:
    """The row of a metric, which says what it was measured on."""
    if ON_TRAINED not in metric.note:
        return words
    return words.replace("held-out", "training") if "held-out" in words else f"{words} (of training documents)"


def print_table(title: str, rows: Mapping[str, Estimate]) -> None:
    """Metrics as a table: value, interval, count."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", "95 % interval", "of", title=title)
    for name, metric in rows.items():
        table.add_row(name, short(metric.value), metric.interval or metric.note, f"{metric.count:,}")
    Console().print(table)


def _classes(run: Run, task: ClassTask, model: Transfusion, command: str) -> tuple[dict[str, Estimate], str]:
    """Agreement of drawn images with their captions, accuracy of captions, and the digest of the classifier; records, and the
    grid `samples.png`."""
    records = run.folder / "records"
    images, labels = task.images(run, True)
    classifier = fitted_classifier(run, task.names, task.fit_classifier)
    context = EvalContext(
        samples=run.report.images or 1,
        seed=run.seed,
        dtype=pick_dtype(run.dtype, pick_device(run.device)),
        classifier=classifier,
        class_names=task.names,
        command=command,
    )
    metrics = {"classifier_accuracy": accuracy(classifier, images, labels)}
    if run.report.images:
        with progress("drawing") as each:
            prompts = task.prompts(task.paraphrases, context.samples)
            held_out = task.held_out_documents(run)
            real = replace(context, real=images, real_classes=labels, trained=task.images(run, False)[0], progress=each)
            real = replace(real, captioned=held_out)
            drawn = draw.score(model, prompts, real)
        drawn.record.save(records)
        metrics["text_to_image_agreement"] = drawn.record.metrics["agreement"]
        metrics |= {name: drawn.record.metrics[name] for name in CLASS_ROWS if name in drawn.record.metrics}
        first = drawn.documents[: 5 * len(task.names)]
        shown, captions = [document.media[0].tensor() for document in first], [document.text for document in first]
        image_grid(shown, captions, run.folder / "samples.png", labels=drawn.labels[: len(first)])
        if task.held_out_paraphrases:
            count = max(run.report.images // 2, len(task.names))
            with progress("drawing from held-out captions") as each:
                prompts = task.prompts(task.held_out_paraphrases, count)
                other = replace(context, suite="draw-held-out-paraphrases", samples=count, progress=each)
                record = draw.score(model, prompts, other).record
            record.save(records)
            metrics["text_to_image_agreement_held_out_paraphrases"] = record.metrics["agreement"]
    with progress("captioning") as each:
        context = replace(context, samples=run.report.readings or len(labels), progress=each)
        record = read.score(model, task.held_out_documents(run), context).record
    record.save(records)
    metrics["image_to_text_accuracy"] = record.metrics["accuracy"]
    return {name: metrics[name] for name in CLASS_ROWS if name in metrics}, classifier.digest


def _pictures(
    run: Run, model: Transfusion, documents: Sequence[Document], held_out: Sequence[Document], command: str, log: LogFn
) -> tuple[dict[str, Estimate] | None, str, int]:
    """Captions that are used, distances to real images and to training images, of images drawn from held-out captions, or from
    those of training where none are held out, and the captions of real ones; where captions are a few classes, agreement and
    accuracy. With the digest of the classifier, if there is one, and the number of classes; the records, and the grid
    `samples.png`. Of documents of several images see `_behind_beginnings`. None, which is said, where nothing is drawn."""
    if not any(document.text for document in documents if document.media):
        log("no captions were learned: pictures are drawn from an empty prompt")
    why = ""
    if not run.report.images:
        why = "--report.images is 0"
    elif all(m.name != IMAGE for m in model.item_modalities):
        why = "this model has no pictures"
    elif any(isinstance(m.values, AnyLatents) for d in documents[:1] for m in d.media):
        why = "these documents hold latents; transfusion evaluate --data with their pictures draws and measures"
    if why:
        log(f"no report: {why}")
        return None, "", 0
    trained, kept = _of_one_image(documents, MOST_TRAINED, run.seed), _of_one_image(held_out, MOST_REAL, run.seed)
    asked = kept or trained[:MOST_REAL]
    if len(asked) < 2:
        return _behind_beginnings(run, model, documents, held_out, command, log), "", 0
    names, images = caption_classes(documents), stack_images(trained)
    classifier = _classifier_of(run, names, trained, images, log) if names and images is not None else None
    context = EvalContext(
        samples=min(run.report.images, len(asked)),
        seed=run.seed,
        dtype=pick_dtype(run.dtype, pick_device(run.device)),
        classifier=classifier,
        class_names=() if classifier is None else names,
        command=command,
        trained=images,
        captioned=asked,
        held_out=bool(kept),
    )
    with progress("drawing") as each:
        result = draw.score(model, asked, replace(context, progress=each))
    result.record.save(run.folder / "records")
    metrics = dict(result.record.metrics)
    if classifier is not None:
        real = stack_images(asked)
        if real is not None:
            labels = torch.tensor([names.index(document.text) if document.text in names else -1 for document in asked])
            metrics["classifier_accuracy"] = accuracy(classifier, real, labels)
        if "agreement" in metrics:
            metrics["text_to_image_agreement"] = metrics.pop("agreement")
    shown = result.documents[:SHOWN]
    image_grid([d.media[-1].tensor() for d in shown], [d.text for d in shown], run.folder / "samples.png")
    if kept and any(document.text for document in asked):
        with progress("captioning") as each:
            samples = run.report.readings or MOST_READ
            record = read.score(model, asked, replace(context, samples=samples, progress=each)).record
        record.save(run.folder / "records")
        metrics |= {READING.get(name, name): metric for name, metric in record.metrics.items()}
    if not kept:
        log("nothing is held out, so what is drawn and measured are pictures, and captions if there are any, of the training")
    return metrics, "" if classifier is None else classifier.digest, 0 if classifier is None else len(names)


def _behind_beginnings(
    run: Run, model: Transfusion, documents: Sequence[Document], held_out: Sequence[Document], command: str, log: LogFn
) -> dict[str, Estimate]:
    """Of documents that are not one image each, or of a single one: what is drawn behind their beginnings, into the grid
    `samples.png`. Of edits (image, instruction, image) whether it is nearer to the target than the source is; of others nothing
    is measured, which is said."""
    every = held_out or documents
    asked = [every[i] for i in rng.generator(rng.key("evaluate", run.seed)).permutation(len(every))]
    context = EvalContext(
        samples=min(run.report.images, len(asked)),
        seed=run.seed,
        dtype=pick_dtype(run.dtype, pick_device(run.device)),
        held_out=bool(held_out),
        command=command,
    )
    with progress("drawing") as each:
        context = replace(context, progress=each)
        try:
            result = edit.score(model, asked, context)
            result.record.save(run.folder / "records")
            metrics, drawn = result.record.metrics, list(result.documents)
        except ValueError:
            begun = [found for document in asked if (found := beginning(document)) is not None][: context.samples]
            metrics, drawn = {}, generate(model, begun, "draw", context, force=IMAGE) if begun else []
    if not metrics:
        log(
            "drawings are not measured: that needs two documents or more of one picture each, or edits (picture, instruction, "
            "picture)"
        )
    if drawn:
        shown = drawn[:SHOWN]
        image_grid([d.media[-1].tensor() for d in shown], [d.text for d in shown], run.folder / "samples.png")
    return {f"edit_{name}": metric for name, metric in metrics.items()}


def _of_one_image(documents: Sequence[Document], most: int, seed: int) -> list[Document]:
    """Documents of one image that is no latents, so many at most, in an order drawn by the seed: folders lie class by class."""
    one = [d for d in documents if [m.modality for m in d.media] == [IMAGE] and not isinstance(d.media[0].values, AnyLatents)]
    order = rng.generator(rng.key("evaluate", seed)).permutation(len(one))[:most]
    return [one[i] for i in order]


def _classifier_of(
    run: Run, names: tuple[str, ...], trained: Sequence[Document], images: Tensor, log: LogFn
) -> Classifier | None:
    """A classifier of captions; None, with a word, where none can be fitted on these images."""

    named = [i for i, document in enumerate(trained) if document.text in names]

    def fit(run: Run, progress: Progress) -> Classifier:
        labels = torch.tensor([names.index(trained[i].text) for i in named])
        dtype = pick_dtype(run.dtype, images.device)
        return ConvolutionalClassifier.fit(images[named], labels, seed=0, names=names, dtype=dtype, progress=progress)

    try:
        log(f"captions are {len(names)} classes: drawings are judged by a classifier of {len(named):,} training images")
        classifier = fitted_classifier(run, names, fit)
        classifier.classify(images[:1])  # one that is given may be of images of another size
        return classifier
    except ValueError as error:
        log(f"agreement is not measured: {error}")
        return None


def _suite(run: Run, task: SuiteTask, model: Transfusion, command: str, log: LogFn) -> tuple[dict[str, Estimate], str, int]:
    """The measure of the recipe alone, the digest of its classifier, if it has one, and the number of classes that captions
    name; the record, the grid `samples.png`, and what was generated in `drawn/`, where that is more than an image. The first
    text that was written is said to the log."""
    if not run.report.images:
        return {}, "", 0
    dtype = pick_dtype(run.dtype, pick_device(run.device))
    with progress("measuring") as each:
        context = EvalContext(
            samples=run.report.images,
            seed=run.seed,
            dtype=dtype,
            features=run.report.features,
            command=command,
            progress=each,
        )
        result = task.score(run, model, context)
    result.record.save(run.folder / "records")
    if shown := result.grid[:SHOWN]:
        images, captions, labels = zip(*shown, strict=True)
        image_grid(images, captions, run.folder / "samples.png", labels=labels)
    texts = [d.text for d in result.documents if not d.media]
    values = [media.values for d in result.documents for media in d.media]
    alternate = any(len(d.segments) > 2 for d in result.documents)
    if texts or alternate or not all(is_image(each.shape) for each in values if each is not None):
        write_documents(result.documents[:WRITTEN], run.folder / "drawn", model.item_modalities)
    if texts:
        log(f"written, all in {run.folder / 'drawn'}:\n{printable(texts[0])}\n")
    return result.record.metrics, result.record.classifiers.get("classifier", ""), len(result.class_names)


def _alternating(run: Run, classes: ClassTask, model: Transfusion, command: str) -> tuple[dict[str, Estimate], str]:
    """Labels and agreement of documents written from nothing, and the digest of the classifier; the record, and the grid
    `samples.png` of their images."""
    if not run.report.images:
        return {}, ""
    classifier = fitted_classifier(run, classes.names, classes.fit_classifier)
    context = alternating_context(
        run, classes, classifier, EvalContext(samples=run.report.images, seed=run.seed, command=command)
    )
    context = replace(context, dtype=pick_dtype(run.dtype, pick_device(run.device)))
    with progress("writing") as each:
        result = alternating.score(model, (), replace(context, progress=each))
    result.record.save(run.folder / "records")
    media = [(m.tensor(), d.text, v) for d, v in zip(result.documents, result.verdicts, strict=True) for m in d.media][:SHOWN]
    if media:
        images, captions, verdicts = zip(*media, strict=True)
        image_grid(images, captions, run.folder / "samples.png", labels=verdicts)
    return result.record.metrics, classifier.digest


def alternating_context(run: Run, classes: ClassTask, classifier: Classifier, context: EvalContext) -> EvalContext:
    """The context with the classifier, the names of its classes, and held-out real images."""
    images, labels = classes.images(run, True)
    return replace(context, classifier=classifier, class_names=classes.names, real=images, real_classes=labels)


def _scenes(run: Run, model: Transfusion, command: str) -> tuple[dict[str, Estimate], str]:
    """Share of correct scenes by kind, and the digest of the classifier; the record, and the grid `samples.png` of ten of each
    kind with verdicts."""
    if not run.report.images:
        return {}, ""
    count = max(run.report.images // (len(KINDS) + len(NOVEL)), 1)
    context = EvalContext(seed=run.seed, dtype=pick_dtype(run.dtype, pick_device(run.device)), command=command)
    with progress("drawing") as each:
        result = scenes.score(model, held_out_scenes(count, run.seed), replace(context, progress=each))
    result.record.save(run.folder / "records")
    picked = [i for first in range(0, len(result.documents), count) for i in range(first, first + min(count, 10))]
    images = [result.documents[i].media[-1].tensor() for i in picked]
    captions, labels = [result.documents[i].text for i in picked], [result.labels[i] for i in picked]
    image_grid(images, captions, run.folder / "samples.png", labels=labels)
    return result.record.metrics, result.record.classifiers["classifier"]
