"""Write the tree and the walks of docs/architecture.md from the source: `python scripts/write_architecture.py`.

A line of the tree is the first sentence of the file's docstring. A step of a walk names a file and a function; its line number
is looked up. `tests/test_architecture.py` holds the page equal to what this writes.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE, PAGE = ROOT / "src" / "transfusion", ROOT / "docs" / "architecture.md"
WALKS = {
    "to-loss": [
        (
            "data/sources/jsonl.py",
            "parse_line",
            "a line of JSONL becomes a `Document` of `Text` and `Media`; files are not opened yet",
        ),
        (
            "data/transforms.py",
            "DocumentTransform.__call__",
            "this epoch's form: paraphrase, order, noise range, condition dropout",
        ),
        ("data/tokenize.py", "tokenize_document", "tokens, targets, coordinates, spans: a `TokenSequence`"),
        ("data/packing.py", "pack", "whole documents into rows of one length"),
        ("data/loader.py", "Loader.batches", "the stream of batches, each with the position after it"),
        ("data/batch.py", "collate", "rows as the tensors of a `Batch`; media in groups of one modality and grid"),
        ("train/objective.py", "TransfusionObjective.loss", "the losses of a batch, each with its weight"),
        ("api.py", "Transfusion.forward", "hands the batch to the network"),
        ("model/network.py", "Network.forward", "noise, hidden states, logits and predictions, losses"),
        (
            "model/denoising.py",
            "add_noise",
            "times and noise by key, x_t; then `denoising_loss`: target, weight and loss of each item",
        ),
        ("codec/linear_patcher.py", "LinearPatcher.encode", "patches of x_t and time to slot vectors (or the U-Net's)"),
        ("nn/transformer.py", "Transformer.forward", "the blocks, under the attention rule of `nn/attention.py`"),
        ("model/losses.py", "Losses.over", "text + lambda * media, each its own mean over the whole step"),
    ],
    "to-picture": [
        ("api.py", "Transfusion.generate", "prompts become documents, and each a `Request` with its own seed"),
        ("generate/engine.py", "Engine.add", "checks the request, tokenises the prompt, queues it"),
        ("generate/engine.py", "Engine.step", "admits documents, appends what is pending, chooses tokens, denoises"),
        ("generate/runner.py", "ModelRunner.extend", "runs chunks behind cached prefixes and commits them"),
        ("nn/cache.py", "KVCache.view", "where a pass writes keys and values, and what it reads"),
        ("model/network.py", "Network.hidden", "embeddings, slot vectors, transformer"),
        ("nn/transformer.py", "Transformer.forward", "the blocks, reading the cached prefix"),
        ("generate/logits.py", "Sample.choose", "the next token (`Greedy` by default); BEGIN opens an item"),
        ("diffusion/guidance.py", "Guidance.branches", "the unconditional branches of an item, each with its own cache slot"),
        ("generate/engine.py", "Engine._denoise", "items of one modality, grid and rule of sampling step together"),
        ("generate/runner.py", "ModelRunner.denoise", "a pass over the slots that reads the prefix and commits nothing"),
        ("diffusion/sampler.py", "Euler.step", "x at t to x at the next time; at 0 the clean latents are committed with END"),
    ],
}


def tree() -> str:
    """Every file of the package with the first sentence of its docstring."""
    lines = []
    for path in sorted(SOURCE.rglob("*.py"), key=lambda path: (path.parent != SOURCE, str(path))):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if path.name == "__init__.py" and path.parent != SOURCE and "\n" not in docstring and len(docstring) < 1:
            continue
        lines.append(f"{path.relative_to(SOURCE)!s:<30} {sentence(docstring)}")
    return "```\n" + "\n".join(lines) + "\n```"


def sentence(docstring: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z)`])(?<!et al)\. |: (?=a model and)", paragraph)[0].rstrip(".:")


def line_of(path: Path, name: str) -> int:
    """Line of a function, method or class by its dotted name. Raises LookupError if there is none."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    node: ast.AST | None = None
    for part in name.split("."):
        node = next((n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == part), None)
        if node is None:
            raise LookupError(f"{path} has no {name}: correct the walk in scripts/write_architecture.py")
        body = node.body
    return node.lineno  # type: ignore[union-attr]


def walk(name: str) -> str:
    """The steps of a walk, numbered, with file and line."""
    steps = WALKS[name]
    lines = [
        f"{i}. `{file}:{line_of(SOURCE / file, function)}` `{function}`: {text}"
        for i, (file, function, text) in enumerate(steps, start=1)
    ]
    return "\n".join([*lines, "", f"{len({file for file, _, _ in steps})} files to read."])


def page(text: str) -> str:
    """The page with its generated blocks written anew."""
    blocks = {"tree": tree(), **{name: walk(name) for name in WALKS}}
    for name, block in blocks.items():
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.S)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
