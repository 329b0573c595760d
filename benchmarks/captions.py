"""Captions that are used: how soon few captioned pictures are told from each other, by patcher.

    python benchmarks/captions.py --data PATH [--patcher linear unet] [--pictures 400] [--passes 20] [--json FILE]

PATH is what `transfusion train pictures` reads. The first pictures of it, 32 x 32 in patches of 8 x 8, and the settings of that
recipe at width 128 and depth 4. A line for each patcher: steps, passes over the pictures, caption preference on 200 of them
(share whose own caption gives a lower denoising error at t = 0.8 than another's; chance 0.5) and on held-out ones, by how much
the other caption's error is higher, the media loss, processor seconds. A sheet of 16 drawn pictures lies beside the JSON file.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from transfusion.codec.linear_patcher import LinearPatcherConfig
from transfusion.codec.unet_patcher import UNetPatcherConfig
from transfusion.commands.train import train
from transfusion.data.loader import PackingConfig
from transfusion.evaluation.image_grid import image_grid
from transfusion.evaluation.preference import caption_preference
from transfusion.modality import IMAGE, Modality
from transfusion.recipes import find
from transfusion.train.device import pick_dtype
from transfusion.train.log import last_losses
from transfusion.train.trainer import TrainerConfig

TOKENS = 24 * 29
"""Tokens of a step: about 24 pictures of 16 slots with their captions."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--patcher", nargs="+", default=["linear", "unet"], choices=["linear", "unet"])
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    recipe, rows = find("pictures"), []
    base = recipe.run()
    image = Modality(IMAGE, channels=3, shape=(32, 32), patch=(8, 8))
    transformer = replace(base.model.transformer, width=128, depth=4, num_heads=4)
    steps = options.passes * options.pictures // 24
    base = replace(
        base,
        data=options.data,
        model=replace(base.model, modalities=(image,), transformer=transformer),
        packing=PackingConfig(row_length=TOKENS // 2, rows=2),
        trainer=TrainerConfig(steps=steps, ema_decay=0.99, log_every=100),
    )
    corpus = recipe.documents(base, print)[: options.pictures]
    held_out = recipe.held_out_documents(base)
    patchers = {"linear": LinearPatcherConfig(slot_scale=0.1), "unet": UNetPatcherConfig()}
    print(f"{'patcher':<8} {'steps':>5} {'passes':>6} {'preference':>22} {'held out':>22} {'gap':>6} {'loss':>6} {'CPU s':>6}")
    for name in options.patcher:
        with tempfile.TemporaryDirectory() as folder:
            run = replace(base, out=folder, model=replace(base.model, patcher=patchers[name]))
            began = time.process_time()
            model = train(run, corpus, [], lambda line: None)
            seconds = time.process_time() - began
            media_loss = last_losses(Path(folder))["media_loss"]
        dtype = pick_dtype("auto", torch.device("cpu"))
        trained = caption_preference(model, corpus, dtype=dtype)
        unseen = caption_preference(model, held_out, dtype=dtype) if held_out else {}
        row = {
            "patcher": name,
            "steps": steps,
            "passes": options.passes,
            "preference": str(trained["caption_preference"]),
            "held_out": str(unseen.get("caption_preference", "")),
            "gap": trained["caption_gap"].value,
            "media_loss": media_loss,
            "seconds": seconds,
        }
        rows.append(row)
        print(
            f"{name:<8} {steps:>5} {options.passes:>6} {row['preference']:>22} {row['held_out']:>22} {row['gap']:>6.3f} "
            f"{media_loss:>6.3f} {seconds:>6.0f}",
            flush=True,
        )
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
            captions = [document.text for document in corpus[:: max(len(corpus) // 16, 1)][:16]]
            drawn = model.generate(captions, force=IMAGE, seed=0, dtype=dtype)
            image_grid([d.media[-1].tensor() for d in drawn], captions, options.json.with_name(f"captions-{name}.png"))


if __name__ == "__main__":
    main()
