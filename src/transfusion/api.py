"""Transfusion: the model that a user holds. Config, vocabulary and network in one object, saved as one folder.

Training: documents -> `batch` -> `forward` -> Losses. Generation: prompts -> requests -> `Engine` -> documents.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from transfusion import rng
from transfusion.codec.codecs import Autoencoders, Codecs
from transfusion.codec.custom_patcher import CustomModules
from transfusion.data.batch import Batch, collate
from transfusion.data.document import Document, DocumentLike, document
from transfusion.data.learned import LearnedDocuments
from transfusion.data.tokenize import TokenSequence, tokenize_documents
from transfusion.data.vocabulary import Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Sampler
from transfusion.generate.engine import Engine, generate
from transfusion.generate.logits import Decoding, Greedy, Sample
from transfusion.generate.state import Event, Request
from transfusion.modality import Modality
from transfusion.model.auxiliary import Decoders
from transfusion.model.losses import Losses
from transfusion.model.network import Network
from transfusion.model.pretrained import LanguageModel, ModalityWeights
from transfusion.model.transfer import LoadReport, init_from
from transfusion.model_folder import (
    TOKENIZER,
    TransfusionConfig,
    as_digests,
    find,
    fit,
    read_autoencoders,
    read_settings,
    read_weights,
    verify,
    within_weights,
    write,
)
from transfusion.nn.ema import Averaged, eval_mode, set_mode

Model = TypeVar("Model", bound="Transfusion")


class Transfusion(nn.Module):
    """One transformer that reads and writes documents of text and media.

    Args:
        config: the network, and the defaults of `generate`.
        vocabulary: tokenizer and control tokens; its modalities must be those of `config.model`.
        modules: patchers of your own, {"image": (encoder, decoder)}; see `CustomPatcherConfig`.
        autoencoder: of the modality "image", or autoencoders by the name of their modality. The modality states the form of
            latents; documents hold items (pixels), in prompts and in answers. It is frozen, and none of this module's weights.

    Raises:
        ValueError: config and vocabulary name different modalities or language models; or the config was made with other
            autoencoders.
    """

    def __init__(
        self,
        config: TransfusionConfig,
        vocabulary: Vocabulary,
        *,
        modules: CustomModules | None = None,
        autoencoder: Autoencoders | None = None,
    ) -> None:
        super().__init__()
        if vocabulary.modalities != config.model.modalities:
            raise ValueError("the vocabulary was made for other modalities than the model's")
        if vocabulary.ids != config.language:
            raise ValueError("vocabulary and config name different language models: config.language must be vocabulary.ids")
        self.vocabulary = vocabulary
        nats, count = config.model.opening_prior, vocabulary.num_language
        prior = vocabulary.opening_prior(nats) if nats else None
        self.network = Network(config.model, len(vocabulary), modules, num_pretrained_ids=count, prior=prior)
        self.codecs = Codecs(autoencoder, config.model.modalities)
        config.check_autoencoders(self.codecs.digests)
        self.config = replace(config, model=self.network.config, autoencoders=as_digests(self.codecs.digests))
        self.learned = LearnedDocuments()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.network.device

    @property
    def item_modalities(self) -> tuple[Modality, ...]:
        """The modalities as documents have them: in pixels, where the model learns latents."""
        return self.codecs.item_modalities

    # ---- training ---------------------------------------------------------------------------------------------------

    def train(self: Model, mode: bool = True) -> Model:
        """Training mode, or evaluation mode. What is set while another thread generates holds when that is done, too."""
        set_mode(self, mode)
        return self

    def forward(
        self,
        batch: Batch,
        *,
        teacher: "Transfusion | Averaged | Network | None" = None,
        decoders: Decoders | None = None,
    ) -> Losses:
        """The losses of a batch, each as (sum, count).

        Args:
            teacher: the model under averaged weights (`create_ema`), for auxiliary losses that compare with it.
            decoders: modality name -> function from latents [item, channels, *size] to what the reconstruction loss compares,
                such as pixels.

        Raises:
            ValueError: a teacher that no loss needs, or one that is missing in training; an unknown modality in `decoders`.
        """
        if not isinstance(batch, Batch):
            raise ValueError(
                "forward takes a Batch: call model.loss(documents), or use transfusion.compat for lists of tensors"
            )
        self.check_decoders(decoders)
        return self.network(batch, teacher=self.teacher_network(teacher), decoders=decoders)

    def teacher_network(self, teacher: "Transfusion | Averaged | Network | None") -> Network | None:
        """The network of a teacher. Raises ValueError for what is none, or one that no loss needs."""
        network = teacher if isinstance(teacher, Network) else getattr(teacher, "network", None)
        if teacher is not None and not isinstance(network, Network):
            raise ValueError("the EMA model must be a Transfusion, or what its create_ema gives")
        if teacher is not None and not self.config.model.auxiliary.needs_ema_teacher:
            raise ValueError("no auxiliary loss needs an EMA model: set the weight of consistency or representation above 0")
        return network

    def check_decoders(self, decoders: Decoders | None) -> None:
        """Raises ValueError for decoders of a modality that there is not."""
        unknown = [name for name in decoders or () if name not in self.network.patchers]
        if unknown:
            raise ValueError(f"decoders: no modality {unknown[0]!r}; this model has {list(self.network.patchers)}")

    def tokenize(self, documents: Sequence[DocumentLike], *, seed: int = 0, add_eos: bool = True) -> list[TokenSequence]:
        """See `tokenize_documents`; `add_eos`: whether each document is complete, so that its end is learned."""
        coordinates, length = self.config.model.coordinates, self.config.model.context_length
        return tokenize_documents(
            documents,
            self.vocabulary,
            coordinates,
            context_length=length,
            seed=seed,
            add_eos=add_eos,
            encoded=self.codecs.to(self.device).encoded,
        )

    def collate(self, sequences: Sequence[TokenSequence]) -> Batch:
        """Sequences packed in one row without padding, on the model's device."""
        length = sum(map(len, sequences))
        return collate([list(sequences)], length, self.vocabulary, self.config.model.coordinates.axes).to(self.device)

    def batch(self, documents: Sequence[DocumentLike], *, seed: int = 0) -> Batch:
        """Documents packed in one row without padding, see `tokenize`."""
        return self.collate(self.tokenize(documents, seed=seed))

    def loss(
        self,
        documents: Sequence[DocumentLike],
        *,
        seed: int = 0,
        teacher: "Transfusion | Averaged | Network | None" = None,
        decoders: Decoders | None = None,
    ) -> Tensor:
        """The `total` loss of documents, a scalar to call `backward` on. `teacher`, `decoders` and errors: see `forward`.

        The documents are taken as they are, with the noise of `seed`: an item that something later is learned from is drawn and
        read, and stands twice for it (`Media.use`); `DocumentTransform` (dropped conditions, other orders) is not applied. Give
        a new seed at each step of your own loop. In training mode the shapes of the documents are noted in `learned`.
        """
        batch = self.batch(documents, seed=seed)
        if self.training:
            self.learned.note(map(document, documents))
        return self.total(self(batch, teacher=teacher, decoders=decoders))

    def total(self, losses: Losses) -> Tensor:
        """text loss + media_weight * media loss (the paper's eq. 4) + auxiliary losses that are on: a scalar."""
        return losses.total(self.config.model.media_weight)

    def create_ema(self, decay: float = 0.999, *, every: int = 1) -> Averaged:
        """A copy of this model that averages its weights, see `Averaged`: call its `update()` after each optimizer step. It
        generates and saves as this model does, and is a teacher for losses that need one."""
        return Averaged(self, decay, every=every)

    # ---- generation -------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: DocumentLike | Sequence[DocumentLike] | None = None,
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
        code_decoding: Decoding = Sample(),
        dtype: torch.dtype = torch.float32,
        cache_slots: int = 128,
        exact: bool = False,
        on_event: Callable[[Event], None] | None = None,
    ) -> list[Document]:
        """Continue documents; each is returned whole, prompt included.

        Args:
            prompts: one prompt, or a list of prompts; None: one empty document.
            seed: the seed of prompt i is made from it and i.
            seeds: one seed a prompt, instead of `seed`.
            force: name of a modality; an item of it is generated right after each prompt ("image": draw the prompt).
            size: size of the forced item, along each axis: in pixels, also where the model learned latents.
            sizes: modality name -> size of all its items; else, where sizes vary, the model writes them.
            max_length: tokens of the whole sequence at most: prompt, slots and control tokens included.
            max_tokens: text tokens to write at most; default 0 with `force`, else 128.
            max_items: media items to write at most; None: no limit.
            sampler, guidance: None: those of the model's config.
            decoding, code_decoding: how tokens of text are chosen, and the codes of items of discrete modalities.
            cache_slots: sequences in the cache at once: documents, and their unconditional branches.
            exact: in bf16 too no document depends on those beside it, see `Engine`.
            on_event: called with every event (tokens, denoising steps with their estimates, items, documents, failures).

        Raises:
            ValueError: a prompt that does not fit; see `Engine.add`.
            GenerationError: passes that failed, for want of memory perhaps; it has the documents that are finished.

        Warns where the model was trained on no document that begins with a prompt and goes on as is asked, or on no
        item of a size that is asked for.
        """
        if prompts is None:
            prompts = [Document(())]
        if isinstance(prompts, Document | str | Tensor) or not isinstance(prompts, Sequence):
            prompts = [prompts]
        guidance = self.config.resolve_guidance(guidance, draws=max_items != 0)
        if seeds is not None and len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one a prompt")
        if seeds is None:
            seeds = [rng.key(seed, index) for index in range(len(prompts))]
        requests = [
            Request(
                document(prompt),
                seed=prompt_seed,
                max_tokens=(0 if force else 128) if max_tokens is None else max_tokens,
                max_items=max_items,
                force=force,
                size=size,
                sizes=sizes or {},
                max_length=max_length,
                sampler=sampler or self.config.sampler,
                guidance=guidance,
                decoding=decoding,
                code_decoding=code_decoding,
            )
            for prompt, prompt_seed in zip(prompts, seeds, strict=True)
        ]
        for request in requests:
            text = request.max_items == 0 or not self.config.model.modalities
            if doubt := self.learned.doubt(request.document, force=force, text=text):
                warnings.warn(doubt, stacklevel=2)
                break
        if isinstance(sizes or {}, Mapping):  # others are refused below
            asked = {**(sizes or {}), **({force: size} if force and size else {})}
            if doubt := next(filter(None, (self.learned.doubt_size(name, asked[name]) for name in asked)), ""):
                warnings.warn(doubt, stacklevel=2)
        with eval_mode(self):
            engine = self.engine(requests, cache_slots=cache_slots, dtype=dtype, exact=exact)
            return generate(engine, requests, on_event=on_event)

    def engine(
        self,
        requests: Sequence[Request],
        *,
        cache_slots: int = 128,
        capacity: int | None = None,
        dtype: torch.dtype = torch.float32,
        decode_text: bool = True,
        exact: bool = False,
    ) -> Engine:
        """An `Engine` with the cache slots that these requests can use together, at most `cache_slots` but enough for each."""
        held = max((request.cache_slots for request in requests), default=1)
        cache_slots = max(held, min(cache_slots, held * len(requests)))
        options = {"capacity": capacity, "dtype": dtype, "decode_text": decode_text, "exact": exact}
        return Engine(self.network, self.vocabulary, cache_slots=cache_slots, codecs=self.codecs, **options)

    # ---- weights ----------------------------------------------------------------------------------------------------

    def init_from(self, source: "Transfusion") -> LoadReport:
        """Start from another model's weights; see `transfusion.model.transfer.init_from`."""
        return init_from(self.network, self.vocabulary, source.network, source.vocabulary)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model folder. An old model there survives a failed write.

        Raises:
            ValueError: the network has LoRA adapters (`model/lora.py`).
            OSError: it can't be written.
        """
        if self.network.lora is not None:
            raise ValueError("the network has adapters: merge them first (lora.merge), or save them alone (lora.save)")
        write(Path(folder), self.config, self.vocabulary, self.network, self.learned, self.codecs)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        modules: CustomModules | None = None,
        autoencoder: Autoencoders | None = None,
    ) -> Model:
        """Read a model folder, or the model of a run folder.

        Args:
            modules: patchers of your own, where the model was made with some; their weights are read from the folder.
            autoencoder: one of your own class, where the model was made with such; any other is read from the folder.

        Raises:
            ValueError: no model, another format, files that are not as they were written, missing modules, another autoencoder,
                or weights that do not fit; the message names what differs.
        """
        folder, config = find(folder), read_settings(folder)
        verify(folder)
        with within_weights(folder, config):
            vocabulary = Vocabulary.load(folder / TOKENIZER, config.model.modalities, config.language)
            if autoencoder is None and config.autoencoders:
                autoencoder = read_autoencoders(folder, config)
            codecs = {} if autoencoder is None else {"autoencoder": autoencoder}
            model = cls(config, vocabulary, modules=modules, **codecs)
        fit(model.network, read_weights(folder, tie_embeddings=config.model.tie_embeddings))
        model.learned = LearnedDocuments.load(folder)
        return model.to(device)

    @classmethod
    def from_language_model(
        cls: type[Model],
        name: str | Path,
        *,
        modalities: tuple[Modality, ...] | None = None,
        modality_weights: ModalityWeights = "none",
        copies: bool = True,
        context_length: int | None = None,
        config: TransfusionConfig = TransfusionConfig(),
        modules: CustomModules | None = None,
        autoencoder: Autoencoders | None = None,
        seed: int = 0,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ) -> Model:
        """Start from a language model of Llama, Mistral, Qwen2 or Qwen3 type: its transformer and its tokenizer, with our
        control tokens behind its ids. On text it computes the language model's logits.

        Args:
            name: a folder as Hugging Face's libraries write it, or hf://OWNER/MODEL on their hub (extra `hf`).
            modalities: the media to learn (None: those of `config`).
            modality_weights: "none": media use the language model's weights; "mlp", "all": media get weights of their own, see
                `TransformerConfig.modality_weights` (LMFusion, arXiv 2412.15188, is "all" with the language model frozen).
            copies: whether such weights start as copies of the text's.
            context_length: tokens of context (None: that of the language model, at most 2048).
            config: patchers, diffusion and sampling; the transformer's sizes are the language model's.
            autoencoder: see the class.
            seed: random seed of the new weights.
            revision: branch, tag or commit on the hub.

        Raises:
            ValueError: no such model, or a feature that is not supported; the message names it.
        """
        source = LanguageModel.open(name, revision=revision)
        network = config.model if modalities is None else replace(config.model, modalities=modalities)
        network = source.model(network, modality_weights=modality_weights, context_length=context_length)
        vocabulary = source.vocabulary(network.modalities)
        source.check()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.key(seed, "weights"))
            codecs = {} if autoencoder is None else {"autoencoder": autoencoder}
            model = cls(replace(config, model=network, language=vocabulary.ids), vocabulary, modules=modules, **codecs)
            source.load(model.network, copies=copies)
        return model.to(device)
