"""Your own captioned images, in colour (--data): a folder, JSONL or Parquet.

transfusion train pictures --data FOLDER

What is not set is chosen: size, patches and network from the images and from `--budget 20m` (`run/choice.py`), each said with
the option that changes it. Images without captions are learned alone. It ends with 100 drawings from held-out captions,
`transfusion evaluate` measures more.
"""

from collections import Counter
from collections.abc import Sequence

from transfusion.codec.patchers import LinearPatcherConfig
from transfusion.config import ConfigError
from transfusion.data.document import Document
from transfusion.data.learned import beginning
from transfusion.data.loader import PackingConfig
from transfusion.data.media import DecodedImage, EncodedImage, Fit
from transfusion.data.sources.read import has_held_out, read
from transfusion.data.tokenize import Coordinates
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import BPE
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.modality import IMAGE, Modality
from transfusion.model.network import ModelConfig
from transfusion.nn.config import TransformerConfig
from transfusion.run.recipe import Prompt, Recipe
from transfusion.run.record import ReportConfig, Run
from transfusion.train.log import LogFn
from transfusion.train.optimizer import MuonConfig
from transfusion.train.trainer import CheckpointConfig, TrainerConfig


def run() -> Run:
    """The settings."""
    image = Modality(IMAGE, channels=3, shape=(64, 64), patch=(8, 8))
    return Run(
        recipe="pictures",
        held_out=0.05,
        tokenizer=BPE(4096),
        model=ModelConfig(
            modalities=(image,),
            transformer=TransformerConfig(width=256, depth=6, num_heads=8),
            patcher=LinearPatcherConfig(slot_scale=0.1),
            media_weight=5.0,
            context_length=512,
            coordinates=Coordinates("reset", axes=3),
        ),
        transform=DocumentTransform(image_first=0.2, condition_dropout=ConditionDropout(text=0.1)),
        packing=PackingConfig(row_length=512, rows=8),
        trainer=TrainerConfig(steps=4000, ema_decay=0.999, sample_every=500),
        optimizer=MuonConfig(lr=3e-3, warmup=50, weight_decay=0.05),
        checkpoint=CheckpointConfig(every=250, keep=2),
        sampler=Euler(num_steps=25),
        guidance=Guidance(text=3.0),
        report=ReportConfig(images=100),
    )


def documents(run: Run, log: LogFn) -> Sequence[Document]:
    """The captioned images of a path, fitted to the model's; unreadable ones are logged. Raises ConfigError without `--data`,
    or where the model has no images."""
    if not run.data:
        raise ConfigError(f"{run.recipe} needs --data PATH: a folder of captioned images, a .jsonl or a .parquet file")
    fit = Fit.of(run.model.modalities)
    if fit is None or not any(modality.is_image for modality in run.model.modalities):
        raise ConfigError(f"{run.recipe} needs a modality of images: two axes, and 1 or 3 channels")
    corpus = read(run.data, fit, uncaptioned=True).report(log)
    if fit.largest is not None:
        values = [m.values for d in corpus for m in d.media if isinstance(m.values, EncodedImage | DecodedImage)]
        sizes = Counter("{} x {}".format(*v.shape[1:]) for v in values)
        most = ", ".join(f"{size} ({count:,})" for size, count in sizes.most_common(4))
        log(f"pictures keep their form, in whole patches of {fit.patch[0]} x {fit.patch[1]}: {len(sizes)} sizes, {most}")
    return corpus


def held_out(run: Run) -> Sequence[Document]:
    """The held-out split of the data; empty where it has none."""
    fit = Fit.of(run.model.modalities)
    return () if fit is None or not has_held_out(run.data) else read(run.data, fit, train=False, uncaptioned=True)


def prompts(documents: Sequence[Document]) -> list[Prompt]:
    """20 beginnings of the data, each up to the first picture that is drawn: captions, and the sources of edits with their
    instructions; where all are empty, 20 empty ones."""
    begun = [found for document in documents if (found := beginning(document)) is not None]
    different = {found.text if not found.media else found.name or i: found for i, found in enumerate(begun) if found.segments}
    chosen = [found if found.media else found.text for found in different.values()]
    return list(chosen[:: max(len(chosen) // 20, 1)][:20]) or [""] * (20 if begun else 0)


RECIPE = Recipe(run, documents, prompts, held_out=held_out, chooses=True)
