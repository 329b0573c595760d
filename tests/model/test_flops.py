"""The FLOPs of a document by formula, against PyTorch's counter while the document is computed; docs/flops.md."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from small import IMAGE, SOUND, drawn, model
from transfusion.codec.patchers import LinearPatcherConfig, UNetPatcherConfig
from transfusion.data.document import Document, Text
from transfusion.model.flops import FlopCounter, Flops
from transfusion.nn.moe import MoEConfig

OPTIONS = {
    "plain": {},
    "grouped queries, gates": {"num_kv_heads": 1},
    "time in patch space": {"patcher": LinearPatcherConfig(time="patch")},
    "U-Net": {"patcher": UNetPatcherConfig(channels=8, attention=2)},
    "experts": {"moe": MoEConfig(num_experts=4, top_k=1)},
    "experts of each modality": {"moe": MoEConfig(num_experts=4, top_k=2), "modality_weights": "mlp"},
    "weights of each modality": {"modality_weights": "all"},
    "long skips": {"depth": 3, "long_skips": True},
    "adaLN": {"adaln": True},
}


def counted(m, batch, *, train: bool) -> int:
    m.network.config = replace(m.network.config, attention_backend="dense")
    with FlopCounterMode(display=False) as counter:
        losses = m(batch)
        if train:
            m.total(losses).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", OPTIONS)
def test_the_formula_is_what_pytorch_counts(name: str) -> None:
    """Forward exactly; in training less by what gradients for noised latents and times would take."""
    m = model(IMAGE, SOUND, **OPTIONS[name])  # type: ignore[arg-type]
    document = Document((Text("a cat and a dog"), drawn(1), Text(" say "), drawn(2, 3, 6, modality="sound"), Text("...")))
    batch = m.batch([document])
    flops = FlopCounter(m.network).batch(batch)
    assert counted(m, batch, train=False) * 3 == flops.computed
    assert flops.computed * 0.95 < counted(m, batch, train=True) <= flops.computed
    assert flops.paper == 6 * m.network.num_parameters * batch.num_tokens


def test_the_page_has_the_numbers_of_the_papers_sizes() -> None:
    path = Path(__file__).parents[2] / "scripts" / "write_flops.py"
    spec = importlib.util.spec_from_file_location("write_flops", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.page(text) == text, "run: python scripts/write_flops.py"
    assert text.count("| Chameleon |") == 5


def test_documents_of_a_batch_add_up_whatever_row_they_are_in() -> None:
    m = model()
    docs = [Document((Text("a"), drawn(1))), Document((Text("only text"),)), Document((drawn(2), Text("bcd")))]
    counter = FlopCounter(m.network)
    alone = sum((counter.batch(m.batch([d])) for d in docs), Flops(0, 0))
    assert counter.batch(m.batch(docs)) == alone
    image = (0, (2, 2))
    assert counter.document(9, 3, [image]) == counter.batch(m.batch(docs[:1]))  # BOS a BEGIN, 4 slots, END EOS
