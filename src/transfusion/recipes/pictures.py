"""Your own captioned pictures, in colour: a folder, JSONL, Parquet.

transfusion train pictures --data FOLDER
"""

from transfusion.config import ConfigError
from transfusion.data.compose import Compose, Drop
from transfusion.data.loader import Packing
from transfusion.data.media import Fit
from transfusion.data.readers import read
from transfusion.data.vocabulary import BPE
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Euler
from transfusion.modality import Modality
from transfusion.model.transfusion import Model
from transfusion.nn.trunk import Trunk
from transfusion.recipes.run import Run, Say, train
from transfusion.train.optim import Optim
from transfusion.train.trainer import Checkpointing, Train


def run() -> Run:
    """The recipe."""
    image = Modality("image", channels=3, shape=(64, 64), patch=(8, 8))
    return Run(
        recipe="pictures",
        tokenizer=BPE(4096),
        model=Model(modalities=(image,), trunk=Trunk(width=256, depth=6, heads=8), media_weight=1.0, context=512),
        compose=Compose(picture_first=0.2, read_low=0.0, read_high=0.0, drop=Drop(text=0.1)),
        packing=Packing(row_length=512, rows=8),
        train=Train(steps=4000, ema=0.999, sample_every=500),
        optim=Optim(lr=1e-3, warmup=200, decay=0.05),
        checkpoint=Checkpointing(every=250, keep=2),
        sampler=Euler(num_steps=25),
        guidance=Guidance(text=3.0),
    )


def carry_out(run: Run, say: Say) -> None:
    """Train; sample sheets on the way show captions of the data."""
    if not run.data:
        raise ConfigError("pictures needs --data PATH: a folder of captioned pictures, a .jsonl or a .parquet file")
    image = next((m for m in run.model.modalities if m.name == "image"), None)
    if image is None or len(image.shape) != 2:
        raise ConfigError("pictures needs a modality called image with two axes")
    corpus = read(run.data, Fit((image.shape[0], image.shape[1]), image.channels))
    if corpus.unreadable:
        say(f"left out {len(corpus.unreadable)} that cannot be read:")
        for line in corpus.unreadable[:20]:
            say(f"  {line}")
    captions = list(dict.fromkeys(document.text for document in corpus.documents if document.text and document.media))
    step = max(len(captions) // 20, 1)
    train(run, corpus, captions[::step][:20], say)
    say("next, draw your own:")
    say(f'  transfusion generate {run.folder} --prompt "{(captions or [""])[0]}" --out pictures')
