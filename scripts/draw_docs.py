"""Draw the two pictures of docs/architecture.md: `uv run --all-extras python scripts/draw_docs.py`.

docs/attention.png  the attention rule on a small document, computed by the rule itself (`nn/attention.py`)
docs/network.png    the network with its ways in and out
"""

from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from transfusion.data.document import Document, Media, Text
from transfusion.data.tokenize import Coordinates, tokenize_document
from transfusion.data.vocabulary import Bytes, Vocabulary
from transfusion.modality import Modality
from transfusion.nn.attention import AttentionMetadata, visible

DOCS = Path(__file__).parent.parent / "docs"
TEXT, MEDIA, PRIVATE, TRUNK = "#4c72b0", "#dd8452", "#b07aa1", "#e8e8ef"


def draw_attention(path: Path) -> None:
    """Rows are queries, columns keys, of: ab, an item that follows as dual copies (noised, clean), c."""
    image = Modality("image", channels=1, shape=(4, 4), patch=(2, 2))
    vocabulary = Vocabulary(Bytes().build([]), (image,))
    picture = torch.zeros(1, 4, 4)
    documents = {
        "text, an image, text": Document((Text("ab"), Media(picture, use="draw"), Text("c"))),
        "the same, the image drawn and read: dual copies": Document((Text("ab"), Media(picture, use="both"), Text("c"))),
    }
    figure, axes = plt.subplots(1, 2, figsize=(12.5, 6.4), width_ratios=(11, 15))
    for axis, (title, document) in zip(axes, documents.items(), strict=True):
        tokens = tokenize_document(document, vocabulary, Coordinates())
        metadata = AttentionMetadata.of_rows(
            *(torch.from_numpy(field)[None] for field in (tokens.spans * 0, tokens.spans, tokens.private))
        )
        seen = visible(metadata, metadata)[0]
        labels = [
            label(vocabulary, int(token), int(span), bool(private))
            for token, span, private in zip(tokens.tokens, tokens.spans, tokens.private, strict=True)
        ]
        axis.set_title(title, fontsize=11)
        for query, row in enumerate(seen.tolist()):
            for key, open_ in enumerate(row):
                if open_:
                    color = TEXT if tokens.spans[key] < 0 else PRIVATE if tokens.private[key] else MEDIA
                    axis.add_patch(plt.Rectangle((key - 0.46, query - 0.46), 0.92, 0.92, color=color))
        axis.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(labels) - 0.5, -0.5), aspect="equal", xlabel="key", ylabel="query")
        axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
        axis.tick_params(length=0)
        axis.set_xticks([x - 0.5 for x in range(len(labels))], minor=True)
        axis.set_yticks([y - 0.5 for y in range(len(labels))], minor=True)
        axis.grid(which="minor", color="#dddddd", linewidth=0.5)
    figure.text(
        0.5,
        0.01,
        "A cell is filled where the query sees the key. Blue: text and special tokens; orange: slots; purple: private slots.",
        ha="center",
        fontsize=9,
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=110)


def label(vocabulary: Vocabulary, token: int, span: int, private: bool) -> str:
    """How a token is written beside the drawing."""
    if span >= 0:
        return "noised" if private else "slot"
    special = vocabulary.special_token(token)
    return special.role.upper() if special else vocabulary.decode([token])


def draw_network(path: Path) -> None:
    """Token ids and noisy latents in, one transformer, logits and predictions out."""
    figure, axis = plt.subplots(figsize=(9.5, 6.2))
    axis.set(xlim=(0.4, 10.7), ylim=(0, 7.4))
    axis.axis("off")

    def box(x: float, y: float, width: float, height: float, text: str, color: str) -> None:
        axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.12", color=color))
        axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)

    def arrow(start: tuple[float, float], end: tuple[float, float], style: str = "-") -> None:
        axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color="#444444", linestyle=style))

    text, media = "#c9d7ee", "#f6d6bf"
    box(0.6, 0.2, 3.2, 0.7, "token ids\nInt[row length]", text)
    box(5.2, 0.2, 4.2, 0.7, "noisy latents x_t and times t\nFloat[item, channels, *size], Float[item]", media)
    box(0.6, 1.5, 3.2, 0.7, "embed", text)
    box(5.2, 1.5, 4.2, 0.7, "patcher.encode: linear or U-Net down\nFloat[item slot width]", media)
    box(0.6, 2.7, 8.8, 0.6, "x: Float[row length width], slot vectors written into their places", TRUNK)
    box(
        0.6,
        3.8,
        8.8,
        1.0,
        "transformer: x = x + attn(norm(x));  x = x + mlp(norm(x)),  depth times\nrotary positions; every layer obeys the rule",
        TRUNK,
    )
    box(0.6, 5.3, 3.2, 0.7, "head", text)
    box(5.2, 5.3, 4.2, 0.7, "patcher.decode: linear or U-Net up", media)
    box(0.6, 6.5, 3.2, 0.7, "logits -> cross-entropy\nover next tokens", text)
    box(5.2, 6.5, 4.2, 0.7, "prediction (x0, eps, v or velocity) ->\nsquared error over items, times lambda", media)
    for x in (2.2, 7.3):
        for low, high in ((0.95, 1.45), (2.25, 2.65), (4.85, 5.25), (6.05, 6.45)):
            arrow((x, low), (x, high))
    arrow((5.0, 3.35), (5.0, 3.75))
    axis.add_patch(
        FancyArrowPatch(
            (9.45, 1.85),
            (9.45, 5.65),
            connectionstyle="arc3,rad=0.28",
            arrowstyle="-|>",
            mutation_scale=11,
            color="#bb7744",
            linestyle="--",
        )
    )
    axis.text(10.45, 3.3, "U-Net skips", rotation=90, fontsize=8, color="#bb7744", ha="center", va="bottom")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw_attention(DOCS / "attention.png")
    draw_network(DOCS / "network.png")
