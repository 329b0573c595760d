"""Steps of the recipes as a newcomer runs them: digits and fashion (random pictures in its place), data loading included.

    python benchmarks/recipes.py [--steps 60] [--json benchmarks/results/recipes.json]

Prints time of a step, share of the measured matmul peak (6 FLOP for each weight and token that meets it, plus attention that is
visible), the share of time in which the step waits for data, and how much of the rows is padding.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    """Measure and print."""
    import torch

    import machine
    from transfusion import rng
    from transfusion.commands.train import build
    from transfusion.data.document import Document, Media, Text
    from transfusion.data.loader import Loader
    from transfusion.nn.attention import AttentionMetadata, visible
    from transfusion.recipes import digits, fashion
    from transfusion.train.device import pick_device, pick_dtype
    from transfusion.train.objective import TransfusionObjective
    from transfusion.train.trainer import Optimization, Trainer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = pick_device("auto")
    dtype = pick_dtype("auto", device)
    peak = machine.peak(dtype)
    print(machine.describe())
    print(f"{str(dtype).removeprefix('torch.')}: matmul peak {peak / 1e9:,.0f} GFLOP/s")
    print(f"{'recipe':<8} {'parameters':>10} {'ms a step':>10} {'tokens/s':>9} {'of peak':>8} {'waits':>6} {'padding':>8}")
    rows = []
    for recipe in (digits, fashion):
        run = recipe.run()
        if recipe is digits:
            corpus = digits.documents()
        else:
            pixels = torch.rand(2048, 1, 28, 28) * 2 - 1
            corpus = [
                Document((Text(w.format(fashion.NAMES[i % 10])), Media(one)))
                for i, one in enumerate(pixels)
                for w in (fashion.PARAPHRASES[i % len(fashion.PARAPHRASES)],)
            ]
        model = build(run, corpus, lambda line: None)
        parts = {"packing": run.packing, "vocabulary": model.vocabulary, "coordinates": run.model.coordinates, "seed": 0}
        loader = Loader(corpus, transform=run.transform, **parts)
        flops, tokens, slots = [], [], []
        stream = loader.batches()
        for _ in range(8):
            (batch,) = next(stream)
            place = AttentionMetadata.of_rows(batch.documents, batch.spans, batch.private)
            transformer = sum(p.numel() for p in model.network.transformer.parameters() if p.ndim > 1)
            attended = 12.0 * run.model.transformer.width * run.model.transformer.depth * int(visible(place, place).sum())
            head = model.network.head.weight.numel() * len(batch.loss_index)
            flops.append(6.0 * (transformer * batch.num_tokens + head) + attended)
            tokens.append(batch.num_tokens)
            slots.append(batch.tokens.numel())
        with tempfile.TemporaryDirectory() as folder:
            Trainer(
                TransfusionObjective(model, media_weight=run.model.media_weight),
                Loader(corpus, transform=run.transform, **parts),
                config=replace(run.trainer, steps=options.steps, sample_every=0, log_every=10**6),
                optimizers=[Optimization(model, run.optimizer)],
                checkpoint_config=replace(run.checkpoint, every=10**6),
                folder=Path(folder),
                digest=str(rng.key("small")),
                device=device,
                dtype=dtype,
            ).run()
            lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()][5:]
        seconds = median(line["seconds"] for line in lines)
        row = {
            "recipe": run.recipe,
            "parameters": model.network.num_parameters,
            "seconds": seconds,
            "tokens_per_second": median(tokens) / seconds,
            "share_of_peak": median(flops) / seconds / peak,
            "waits": sum(line["data_share"] * line["seconds"] for line in lines) / sum(line["seconds"] for line in lines),
            "padding": 1 - sum(tokens) / sum(slots),
        }
        rows.append(row)
        print(
            f"{row['recipe']:<8} {row['parameters']:>10,} {seconds * 1e3:>10.0f} {row['tokens_per_second']:>9,.0f} "
            f"{row['share_of_peak']:>8.0%} {row['waits']:>6.1%} {row['padding']:>8.1%}",
            flush=True,
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": machine.describe(), "peak": peak, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
