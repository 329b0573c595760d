"""The report of a run: its task measured, records of the suites, `report.json`, a table and a grid of images."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transfusion.api import Transfusion
from transfusion.evaluation import draw, read, scenes
from transfusion.evaluation.classifier import ABOUT, Classifier, ConvolutionalClassifier
from transfusion.evaluation.image_grid import sheet
from transfusion.evaluation.record import Metric, Proportion, short
from transfusion.evaluation.suite import EvalContext
from transfusion.run.command_line import command_line
from transfusion.run.recipe import ClassTask, Recipe
from transfusion.run.record import Run
from transfusion.train.device import pick_device, pick_dtype
from transfusion.train.log import LogFn, last_losses, progress, training_seconds

CLASS_ROWS = {
    "text_to_image_agreement": "images that show what their caption names",
    "text_to_image_agreement_held_out_paraphrases": "the same, captions never trained on",
    "image_to_text_accuracy": "held-out images captioned correctly",
    "classifier_accuracy": "the classifier, on held-out real images",
    "frechet_pixels": "Fréchet distance to held-out images",
    "frechet_pixels_real": "the same, of training images",
    "frechet_classifier": "Fréchet distance in the classifier's features",
    "frechet_classifier_real": "the same, of training images (features)",
    "nearest_training": "distance to the nearest training image, over that of real images",
}
"""Name in `report.json` -> row of the table."""


def report(run: Run, recipe: Recipe, model: Transfusion, log: LogFn, *, training: float) -> None:
    """Measure the task of a run's recipe and write the report; nothing if the recipe has no task.

    Args:
        training: seconds that this process has spent on training.
    """
    if recipe.task is None:
        return
    began = time.monotonic()
    command = command_line(run, recipe.run())
    metrics = _classes(run, recipe.task, model, command) if isinstance(recipe.task, ClassTask) else _scenes(run, model, command)
    numbers: dict[str, Any] = {"recipe": run.recipe, "seed": run.seed, "parameters": model.network.num_parameters}
    numbers |= last_losses(run.folder)
    for name, metric in metrics.items():
        numbers |= {name: metric.value, f"{name}_interval": [metric.low, metric.high], f"{name}_count": metric.count}
    # the time of the steps themselves: a repeated command, which trains nothing, reports the same
    numbers["seconds"] = max(training, training_seconds(run.folder)) + time.monotonic() - began
    (run.folder / "report.json").write_text(json.dumps(numbers, indent=2) + "\n")
    rows = {CLASS_ROWS.get(name, name.replace("_", " ")): metric for name, metric in metrics.items()}
    print_table(f"{run.recipe}, seed {run.seed}", rows)
    images = f"images: {run.folder / 'samples.png'}; " if run.report.images else ""
    log(f"{numbers['seconds']:.0f} seconds; {images}numbers: {run.folder / 'report.json'}")


def print_table(title: str, rows: Mapping[str, Metric]) -> None:
    """Metrics as a table: value, interval, count."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", "95 % interval", "of", title=title)
    for name, metric in rows.items():
        interval = "" if metric.low is None or metric.high is None else f"{short(metric.low)} to {short(metric.high)}"
        table.add_row(name, short(metric.value), interval, f"{metric.count:,}")
    Console().print(table)


def fitted_classifier(run: Run, task: ClassTask) -> Classifier:
    """The classifier of a task, fitted on real training images; a convolutional one is kept in the run's `classifier/`."""
    folder = run.folder / "classifier"
    if (folder / ABOUT).exists():
        return ConvolutionalClassifier.load(folder)
    with progress("fitting the classifier") as each:
        classifier = task.fit_classifier(run, each)
    if isinstance(classifier, ConvolutionalClassifier):
        classifier.save(folder)
    return classifier


def _classes(run: Run, task: ClassTask, model: Transfusion, command: str) -> dict[str, Metric]:
    """Agreement of drawn images with their captions, accuracy of captions; records, and the grid `samples.png`."""
    records = run.folder / "records"
    images, labels = task.images(run, True)
    classifier = fitted_classifier(run, task)
    context = EvalContext(
        samples=run.report.images or 1,
        seed=run.seed,
        dtype=pick_dtype(run.dtype, pick_device(run.device)),
        judge=classifier,
        names=task.names,
        command=command,
    )
    right = Proportion(int((classifier.classify(images) == labels).sum()), len(labels))
    metrics = {"classifier_accuracy": Metric.of(right)}
    if run.report.images:
        with progress("drawing") as each:
            prompts = task.prompts(task.paraphrases, context.samples)
            real = replace(context, real=images, real_classes=labels, trained=task.images(run, False)[0], progress=each)
            drawn = draw.score(model, prompts, real)
        drawn.record.save(records)
        metrics["text_to_image_agreement"] = drawn.record.metrics["agreement"]
        metrics |= {name: drawn.record.metrics[name] for name in CLASS_ROWS if name in drawn.record.metrics}
        first = drawn.documents[: 5 * len(task.names)]
        seeds = [str(seed) for seed in drawn.seeds[: len(first)]]
        sheet([d.media[0].tensor() for d in first], [d.text for d in first], run.folder / "samples.png", labels=seeds)
        if task.held_out_paraphrases:
            count = max(run.report.images // 2, len(task.names))
            with progress("drawing from held-out captions") as each:
                prompts = task.prompts(task.held_out_paraphrases, count)
                record = draw.score(model, prompts, replace(context, samples=count, seed=run.seed + 1, progress=each)).record
            replace(record, suite="draw-new-wordings").save(records)
            metrics["text_to_image_agreement_held_out_paraphrases"] = record.metrics["agreement"]
    with progress("captioning") as each:
        context = replace(context, samples=run.report.readings or len(labels), progress=each)
        record = read.score(model, task.held_out_documents(run), context).record
    record.save(records)
    metrics["image_to_text_accuracy"] = record.metrics["accuracy"]
    return {name: metrics[name] for name in CLASS_ROWS if name in metrics}


def _scenes(run: Run, model: Transfusion, command: str) -> dict[str, Metric]:
    """Share of correct scenes by kind; the record, and the grid `samples.png` of ten of each kind with seed and verdict."""
    if not run.report.images:
        return {}
    dtype = pick_dtype(run.dtype, pick_device(run.device))
    groups = 2 * len(scenes.KINDS) - 1
    with progress("drawing") as each:
        count = max(run.report.images // groups, 1)
        scored = scenes.score(model, count=count, seed=run.seed, dtype=dtype, progress=each)
    context = EvalContext(seed=run.seed, dtype=dtype, command=command)
    record = scenes.suite_result(model, scored, context).record
    record.save(run.folder / "records")
    picked = [i for first in range(0, len(scored.scenes), count) for i in range(first, first + min(count, 10))]
    labels = [f"{scored.seeds[i]}: {'right' if scored.verdicts[i].right else 'wrong'}" for i in picked]
    captions = [scored.captions[i] for i in picked]
    sheet([scored.pictures[i] for i in picked], captions, run.folder / "samples.png", labels=labels)
    return record.metrics
