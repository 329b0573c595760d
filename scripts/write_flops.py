"""Write the table of docs/flops.md: FLOPs of a document at the paper's sizes. usage: python scripts/write_flops.py"""

from pathlib import Path

import torch

from transfusion.codec import unet_patcher
from transfusion.model.flops import FlopCounter
from transfusion.model.network import ModelConfig, Network
from transfusion.run.presets import LLAMA_2_IDS, PAPER_SIZES, chameleon_model, paper_model

PAGE = Path(__file__).parent.parent / "docs" / "flops.md"
CAPTION = 30
START, END = "<!-- table -->\n", "<!-- /table -->\n"


def row(name: str, size: str, config: ModelConfig) -> str:
    """A line of the table."""
    (modality,) = config.modalities
    with torch.device("meta"):
        network = Network(config, LLAMA_2_IDS + 5 + modality.codes)
    grid = modality.slots(modality.shape)
    slots = grid[0] * grid[1]
    length, targets = CAPTION + slots + 4, CAPTION + 2 + (slots if modality.codes else 0)
    items = [] if modality.codes else [(0, grid)]
    flops = FlopCounter(network).document(length, targets, items)
    numbers = f"{flops.paper / 1e12:.2f} | {flops.computed / 1e12:.2f} | {flops.computed / length / 1e9:.2f}"
    return f"| {size} | {name} | {network.num_parameters / 1e9:.3f} | {length:,} | {numbers} |\n"


def table() -> str:
    """The table."""
    head = "| size | model | N, billions | tokens and slots | 6 N D, TFLOPs | computed, TFLOPs | computed a token, GFLOPs |\n"
    lines = [head, "|---|---|---|---|---|---|---|\n"]
    for size in PAPER_SIZES:
        lines.append(row("Transfusion, linear 2 x 2", size, paper_model(size)))
        lines.append(row("Transfusion, U-Net 2 x 2", size, paper_model(size, unet_patcher.PAPER)))
        lines.append(row("Chameleon", size, chameleon_model(size)))
    return "".join(lines)


def page(text: str) -> str:
    """The page with its table written anew."""
    before, _, rest = text.partition(START)
    return before + START + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
