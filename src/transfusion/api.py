"""Transfusion: the model that a user holds. Vocabulary, network and engine in one, saved in one folder."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transfusion import rng
from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.custom_patcher import CustomModules
from transfusion.compat.constructor import configure, known
from transfusion.compat.lists import Quick
from transfusion.compat.sampling import Samples, evaluating
from transfusion.compat.training import Learns
from transfusion.config import nearest
from transfusion.data.batch import Batch
from transfusion.data.document import Document, Media, Segment, Text, document
from transfusion.data.transforms import ConditionDropout
from transfusion.data.vocabulary import Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Sampler
from transfusion.generate.engine import Engine, generate
from transfusion.generate.logits import Decoding, Greedy
from transfusion.generate.state import Event, Request
from transfusion.modality import Modality
from transfusion.model.auxiliary import Decoders
from transfusion.model.network import Network
from transfusion.model.pretrained import LanguageModel, ModalityWeights
from transfusion.model.transfer import LoadReport, init_from
from transfusion.model_folder import TransfusionConfig, find, fit, read_settings, read_weights, write
from transfusion.nn.ema import Averaged

Prompt = Document | Segment | str | Tensor | Sequence[Segment | str | Tensor]


class Transfusion(Learns, Samples):
    """One transformer that reads and writes documents of text and media.

    Built in one of two ways: from config and a vocabulary, or from the words of the quick face, for documents that are
    lists of tensors: `Transfusion(num_text_tokens=256, dim_latent=384, modality_default_shape=(4,), transformer=dict(dim=512,
    depth=8))`.

    Args:
        config: model, and sampling defaults.
        vocabulary: tokenizer and control tokens; its modalities must be the model's.
        modules: patchers of your own, {"image": (encoder, decoder)}; see `CustomPatcherConfig`. The config record that they
            are there.
        words: see `transfusion.compat.constructor.configure`.
    """

    def __init__(
        self,
        config: TransfusionConfig | None = None,
        vocabulary: Vocabulary | None = None,
        *,
        modules: CustomModules | None = None,
        **words: Any,
    ) -> None:
        super().__init__()
        coded: dict[str, Autoencoder] = {}
        if config is None or vocabulary is None:
            if config is not None or vocabulary is not None:
                raise ValueError("config and vocabulary belong together: give both, or the words of the quick face")
            known(words)
            made = configure(**words)
            config = TransfusionConfig(made.model, made.drop, made.sampler, made.guidance, quick=made.quick)
            vocabulary, coded, modules = made.vocabulary, made.autoencoders, {**made.modules, **(modules or {})} or None
        elif words:
            raise ValueError(f"{', '.join(words)}: config say all of it; change them, or leave them and the vocabulary out")
        if vocabulary.modalities != config.model.modalities:
            raise ValueError("the vocabulary was made for other modalities than the model's")
        if vocabulary.ids != config.language:
            raise ValueError("vocabulary and config name different language models: config.language must be vocabulary.ids")
        self.vocabulary = vocabulary
        self.network = Network(config.model, len(vocabulary), modules, language=vocabulary.num_language)
        self.config = replace(config, model=self.network.config)
        self.autoencoders = nn.ModuleDict(coded)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.device

    @property
    def quick(self) -> Quick:
        """How lists of tensors are read."""
        return self.config.quick

    @property
    def drop(self) -> ConditionDropout:
        """How often an item loses its context in training."""
        return self.config.drop

    @property
    def sampler(self) -> Sampler:
        """How items are drawn, if nothing else is said."""
        return self.config.sampler

    @property
    def guidance(self) -> Guidance:
        """How strongly items follow what stands before them, if nothing else is said."""
        return self.config.guidance

    def attach(self, modality: str, encoder: nn.Module | None = None, decoder: nn.Module | None = None) -> None:
        """Give a modality an encoder and a decoder between raw items and latents; they are used and never trained, and not
        saved with the model. Raises ValueError for a modality that the model does not have."""
        self.vocabulary.modality(modality)
        for module in (encoder, decoder):
            if module is not None and not isinstance(module, nn.Module):
                raise ValueError(f"an encoder or decoder is a torch.nn.Module, not {module!r}")
        self.autoencoders[modality] = Autoencoder(encoder, decoder)

    def batch(self, documents: Sequence[Prompt], *, seed: int = 0) -> Batch:
        """Documents as a batch, one behind the other in one row, so that nothing is padding. Noise and times are drawn by
        (seed, index of the document, item).

        Raises:
            ValueError: no documents, an empty one, or what is wrong with which document and segment.
        """
        if isinstance(documents, str | Tensor | Document | Media | Text):
            raise ValueError(f"a list of documents is wanted, not one {type(documents).__name__}: put it in a list")
        read = []
        for index, one in enumerate(documents):
            try:
                read.append(document(one))
            except ValueError as error:
                raise ValueError(f"document {index}: {error}") from error
        return self.collate(self.entries(read, seed=seed))

    def loss(
        self,
        documents: Sequence[Prompt],
        *,
        seed: int = 0,
        teacher: "Transfusion | Averaged | Network | None" = None,
        decoders: Decoders | None = None,
    ) -> Tensor:
        """text loss + lambda * media loss of documents (+ auxiliary losses that are on), a scalar to call `backward` on.

        The loss of these documents exactly as they are, with the noise that `seed` names: nothing is dropped or limited for
        training. In a loop of your own, `model(documents)` draws anew at each call, drops text and limits noise.

        Args:
            teacher, decoders: as in `forward`.
        """
        losses = self(self.batch(documents, seed=seed), teacher=teacher, decoders=decoders)
        return losses.total(self.config.model.media_weight) * self.quick.text_weight

    def muon_parameters(self) -> list[nn.Parameter]:
        """The trunk's matrices. The optimiser that knows which of them are several in one (`MuonConfig().build(model)`)
        finds them itself; torch.optim.Muon would take a fused projection for one matrix."""
        return self.network.muon_parameters()

    def create_ema(
        self,
        decay: float = 0.999,
        *,
        every: int = 1,
        beta: float | None = None,
        update_every: int | None = None,
        **unknown: object,
    ) -> Averaged:
        """A copy of this model that averages its weights: call its `update()` after each step of your own loop. It generates
        and saves as this one does, and its `network` is a teacher for losses that want one.

        Args:
            decay: share of the old average kept at an update.
            every: calls of `update` for each one that counts.
            beta, update_every: other libraries' words for the two.

        Raises:
            ValueError: an unknown option, or one that makes no sense.
        """
        for name in unknown:
            raise ValueError(f"create_ema has no option {name!r}{nearest(name, ('decay', 'every'))}")
        return Averaged(self, decay if beta is None else beta, every=every if update_every is None else update_every)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        force: str | None = None,
        size: tuple[int, ...] | None = None,
        sizes: Mapping[str, tuple[int, ...]] | None = None,
        max_length: int | None = None,
        max_tokens: int | None = None,
        max_items: int | None = None,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        decoding: Decoding = Greedy(),
        dtype: torch.dtype = torch.float32,
        cache_slots: int = 128,
        on_event: Callable[[Event], None] | None = None,
    ) -> list[Document]:
        """Continue documents; each comes back whole, prompt included.

        Args:
            prompts: one prompt, or a list with one prompt an entry; None: one empty document.
            seed: names all chance; prompt i gets a seed made from it and i.
            seeds: one seed a prompt, instead of that.
            force: a modality of which an item is written at once ("image": draw what the prompt says).
            size: the forced item's size in latent elements.
            sizes: by name of the modality, the size that all its items get; else, where sizes vary, the model writes them.
            max_length: tokens of the whole sequence at most, prompt, slots and control tokens included.
            max_tokens: text tokens to write; default 0 with `force`, else 128.
            max_items: media items to write; default: as many as the model likes.
            cache_slots: sequences in the cache at once: documents, and their unconditional branches.
            on_event: called with every event (tokens, denoising steps with their estimates, items, documents).

        Raises:
            ValueError: a prompt that does not fit; see `Engine.add`.
        """
        if prompts is None:
            prompts = [Document(())]
        if isinstance(prompts, Document | str | Tensor) or not isinstance(prompts, Sequence):
            prompts = [prompts]
        asked = guidance is not None
        guidance = self.config.guidance if guidance is None else guidance
        drop = self.config.drop
        if max_items != 0 and guidance.text == 1.0 and drop.text + drop.both > 0 and self.config.model.modalities:
            warnings.warn(
                "guidance is off (text scale 1) though this model was trained for it: pictures will follow their text "
                "less; Guidance(text=3) is a usual choice",
                stacklevel=2,
            )
        for name, share in (("text", drop.text + drop.both), ("media", drop.media + drop.both)):
            if getattr(guidance, name) != 1.0 and share == 0:
                if asked:
                    warnings.warn(
                        f"guidance for {name} is left out: this model was never trained without {name} before its items "
                        f"(transform.condition_dropout.{name})",
                        stacklevel=2,
                    )
                guidance = replace(guidance, **{name: 1.0})
        if seeds is not None and len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one a prompt")
        if seeds is None:
            seeds = [rng.key(seed, index) for index in range(len(prompts))]
        requests = [
            Request(
                document(prompt),
                seed=one,
                max_tokens=(0 if force else 128) if max_tokens is None else max_tokens,
                max_items=max_items,
                force=force,
                size=size,
                sizes=sizes or {},
                max_length=max_length,
                sampler=sampler or self.config.sampler,
                guidance=guidance,
                decoding=decoding,
            )
            for prompt, one in zip(prompts, seeds, strict=True)
        ]
        held = 1 + (guidance.max_branches if max_items != 0 or force else 0)
        with evaluating(self):
            engine = Engine(
                self.network, self.vocabulary, cache_slots=max(held, min(cache_slots, held * len(requests))), dtype=dtype
            )
            return generate(engine, requests, on_event=on_event)

    def init_from(self, source: "Transfusion") -> LoadReport:
        """Start from another model's weights; see `transfusion.model.transfer.init_from`."""
        return init_from(self.network, self.vocabulary, source.network, source.vocabulary)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model folder; weights that were there stay where it fails.

        Raises:
            ValueError: adapters stand in the trunk (`model/lora.py`).
            OSError: it can't be written.
        """
        if self.network.lora is not None:
            raise ValueError("adapters stand in the trunk: merge them first (lora.merge), or save them alone (lora.save)")
        write(Path(folder), self.config, self.vocabulary, self.network)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", modules: CustomModules | None = None
    ) -> "Transfusion":
        """Read a model folder, or the model of a run folder.

        Args:
            modules: patchers of your own, where the model was made with such; their weights are read from the folder.

        Raises:
            ValueError: no model there, another format, modules that are missing, or weights that do not fit; the message
                names what differs.
        """
        folder, config = find(folder), read_settings(folder)
        vocabulary = Vocabulary.load(folder / "tokenizer.json", config.model.modalities, config.language)
        model = cls(config, vocabulary, modules=modules)
        fit(model.network, read_weights(folder, tie_embeddings=config.model.tie_embeddings))
        if config.quick.coded:
            warnings.warn(
                f"this model was made with an encoder or decoder for {', '.join(config.quick.coded)}, which are not in its "
                "folder: give them again with model.attach(name, encoder, decoder)",
                stacklevel=2,
            )
        return model.to(device)

    @classmethod
    def from_language_model(
        cls,
        name: str | Path,
        *,
        modalities: tuple[Modality, ...] | None = None,
        modality_weights: ModalityWeights = "none",
        copies: bool = True,
        context_length: int | None = None,
        config: TransfusionConfig = TransfusionConfig(),
        modules: CustomModules | None = None,
        seed: int = 0,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ) -> "Transfusion":
        """Go on from a language model of Llama, Mistral, Qwen2 or Qwen3 type: its trunk, its tokenizer, and behind its ids our
        control tokens. On text it gives the logits that it gave.

        Args:
            name: a folder as Hugging Face's libraries write it, or OWNER/MODEL on their hub (extra `hf`).
            modalities: the media to learn (None: those of `config`).
            modality_weights: "none": media run through the language model's weights; "mlp", "all": through weights of their
                own beside these, see `TransformerConfig.modality_weights` (LMFusion, arXiv
                2412.15188, is "all" with the language model frozen).
            copies: whether such weights begin as copies of the text's.
            context_length: tokens of context (None: what it can read, at most 2048).
            config: all else: patchers, diffusion, sampling. Sizes of the trunk are the language model's.
            modules: patchers of your own.
            seed: names the chance of what is new.
            revision: branch, tag or commit on the hub.

        Raises:
            ValueError: no such model, or one that is computed otherwise here; the message says which part.
        """
        found = LanguageModel.open(name, revision=revision)
        model = config.model if modalities is None else replace(config.model, modalities=modalities)
        model = found.model(model, modality_weights=modality_weights, context_length=context_length)
        vocabulary = found.vocabulary(model.modalities)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.key(seed, "weights"))
            one = cls(replace(config, model=model, language=vocabulary.ids), vocabulary, modules=modules)
            found.load(one.network, copies=copies)
        return one.to(device)
