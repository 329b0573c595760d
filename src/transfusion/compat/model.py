"""`Transfusion` with the call forms of transfusion-pytorch: a subclass of `transfusion.Transfusion` over the same code."""

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from transfusion import api, rng
from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.custom_patcher import CustomModules
from transfusion.compat import sampling, training
from transfusion.compat.checks import check_number
from transfusion.compat.constructor import check_words, configure
from transfusion.compat.lists import CompatConfig, Item, Lists
from transfusion.config import nearest
from transfusion.data.batch import Batch
from transfusion.data.document import ANY_TIME, Document
from transfusion.data.transforms import ConditionDropout, DocumentTransform
from transfusion.data.vocabulary import Vocabulary
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import Sampler
from transfusion.generate.engine import generate
from transfusion.generate.state import Request
from transfusion.model.auxiliary import Decoders
from transfusion.model.losses import Losses
from transfusion.model_folder import TransfusionConfig, find
from transfusion.nn.ema import Averaged, eval_mode


class Transfusion(api.Transfusion):
    """A Transfusion built from transfusion-pytorch's arguments, for documents that are lists of tensors.

    `Transfusion(num_text_tokens=256, dim_latent=384, modality_default_shape=(4,), transformer=dict(dim=512, depth=8))`

    Args:
        config, vocabulary, modules: as in `transfusion.Transfusion`, instead of `words`.
        compat: how lists of tensors are read, where `config` is given.
        words: see `transfusion.compat.constructor.configure`.

    Raises:
        ValueError: an unknown or missing argument, or arguments that do not fit each other.
    """

    fallbacks: Counter[Any]
    """After a call that generates: items whose written size could not be used, by reason."""

    def __init__(
        self,
        config: TransfusionConfig | None = None,
        vocabulary: Vocabulary | None = None,
        *,
        modules: CustomModules | None = None,
        compat: CompatConfig = CompatConfig(),
        **words: Any,
    ) -> None:
        autoencoders: dict[str, Autoencoder] = {}
        if (config is None) != (vocabulary is None):
            raise ValueError("config and vocabulary belong together: give both, or transfusion-pytorch's arguments")
        if config is None or vocabulary is None:
            check_words(words)
            config, vocabulary, compat, autoencoders, pairs = configure(**words)
            modules = {**pairs, **(modules or {})} or None
        elif words:
            raise ValueError(f"config and vocabulary exclude {', '.join(words)}: change the config, or leave both out")
        super().__init__(config, vocabulary, modules=modules)
        self.compat = compat
        self.autoencoders = nn.ModuleDict(autoencoders)

    @property
    def lists(self) -> Lists:
        """Reader and writer of lists of tensors."""
        autoencoders = {name: module for name, module in self.autoencoders.items() if isinstance(module, Autoencoder)}
        return Lists(self.vocabulary, autoencoders, self.compat)

    def attach(self, modality: str, encoder: nn.Module | None = None, decoder: nn.Module | None = None) -> None:
        """Give a modality an encoder and a decoder between raw items and latents. They are used, never trained, and not saved.

        Raises:
            ValueError: an unknown modality, or an encoder or decoder that is no module.
        """
        self.autoencoders[self.vocabulary.modality(modality).name] = Autoencoder(encoder, decoder)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model folder, and `compat.json` in it. Raises as `transfusion.Transfusion.save_pretrained`."""
        super().save_pretrained(folder)
        self.compat.save(Path(folder))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", modules: CustomModules | None = None
    ) -> "Transfusion":
        """Read a model folder, written by this class or by `transfusion.Transfusion`.

        Raises:
            ValueError: as there, or a `compat.json` that is damaged or belongs to another `config.json`.
        """
        model = super().from_pretrained(folder, device=device, modules=modules)
        model.compat = CompatConfig.load(find(folder))
        if model.compat.autoencoded:
            names = ", ".join(model.compat.autoencoded)
            remedy = "give them again with model.attach(name, encoder, decoder)"
            warnings.warn(f"the encoder or decoder for {names} are not in the model folder: {remedy}", stacklevel=2)
        return model

    # ---- training ---------------------------------------------------------------------------------------------------

    def forward(
        self,
        batch: Batch | Tensor | Sequence[Any],
        *,
        modality_type: int | None = None,
        times: Any = None,
        noise: Sequence[Any] | None = None,
        num_modalities_to_times_fn: Callable[[Tensor], Tensor] | None = None,
        teacher: Any = None,
        velocity_consistency_ema_model: Any = None,
        decoders: Decoders | None = None,
        prob_uncond: float | None = None,
        seed: int | None = None,
        noised: bool = False,
        return_loss: bool = True,
        return_breakdown: bool = False,
        return_times: bool = False,
        return_predictions: bool = False,
        debug: bool | None = None,
    ) -> Any:
        """The `Losses` of a `Batch`; or for documents as lists of tensors the loss, a scalar, and what `return_*` adds to it.

        Where several results are asked for, a tuple in the order loss, breakdown, times, predictions.

        Args:
            batch: a Batch (then only `teacher` and `decoders` are used); a list of lists of items; token ids Int[document,
                length]; or latents Float[item, ...] of one modality, `modality_type`.
            times: noise level of each item, 0 clean, 1 noise: a list of numbers for each document, a tensor [document, item],
                or a function of the number of items. Whole numbers are steps of the diffusion's T.
            noise: noise of each item, a list of tensors for each document.
            num_modalities_to_times_fn: function from the numbers of items, Int[document], to such a tensor (in
                transfusion-pytorch 0 is noise, 1 clean).
            teacher, decoders: as in `transfusion.Transfusion.forward`; by default the model's own decoders.
            velocity_consistency_ema_model: transfusion-pytorch's name for `teacher`.
            prob_uncond: share of items that lose the text before them (None: the model's own). Text is dropped in training mode
                only, and not where times, noise or predictions are asked for: these belong to the documents as they are.
            seed: random seed of noise, times and dropped text; None: drawn from torch's generator.
            noised: the latents are noised already, to `times`: no encoder runs, and there is no loss.
            return_loss: False: predictions (and times), no loss and no breakdown.
            return_breakdown, return_times: also a `Breakdown`; also the time of each item, a list for each document.
            return_predictions: also the network's output, a list for each document, an entry for each segment: of a text the
                logits of the token after each of its tokens, [length, ids]; of an item its prediction, shaped like the latents.
            debug: report all input errors at once, and print the layout of each document (None: if the environment variable
                TRANSFUSION_DEBUG is 1).

        In training mode an item that a later segment conditions on gets at most half the noise (the paper's Table 8), unless
        its time is set.

        Raises:
            ValueError: what is wrong with which item of which document, before anything is computed.
        """
        teacher = teacher if velocity_consistency_ema_model is None else velocity_consistency_ema_model
        if isinstance(batch, Batch):
            return self._losses(batch, teacher, decoders)
        debug = os.environ.get("TRANSFUSION_DEBUG", "") not in ("", "0") if debug is None else debug
        if noised and times is None and num_modalities_to_times_fn is None:
            raise ValueError("noised latents need the times of their noise: give times")
        lists = self.lists
        documents, add_eos = training.read(lists, batch, modality_type, encode=not noised, all_errors=debug)
        documents = training.with_times(self, documents, times, num_modalities_to_times_fn)
        documents = training.with_noise(lists, documents, noise)
        seed = _seed(seed)
        if self.training and not noised:
            fixed = noise is not None or any(m.times != ANY_TIME for document in documents for m in document.media)
            whole = fixed or return_times or return_predictions or not return_loss
            dropout = self.config.condition_dropout if prob_uncond is None else ConditionDropout(text=prob_uncond)
            transform = DocumentTransform(
                image_first=0.0,
                condition_noise_max=1.0 if fixed else 0.5,
                condition_dropout=ConditionDropout(0.0) if whole else dropout,
            )
            documents = [transform(document, seed, 0, i) for i, document in enumerate(documents)]
        sequences = self.tokenize(documents, seed=seed, add_eos=add_eos)
        if debug:
            training.print_layout(documents, sequences)
        rows = self.collate(sequences)
        results: list[Any] = []
        if return_loss and not noised:
            losses = self._losses(rows, teacher, decoders)
            results.append(self.total(losses))
            if return_breakdown:
                results.append(training.breakdown(results[0], losses))
        if return_times:
            results.append(training.item_times(self, rows, sequences))
        if return_predictions or not return_loss or noised:
            predictions = training.predictions(self, lists, rows, documents, sequences, noised=noised)
            results.append(torch.stack([p[0] for p in predictions]) if isinstance(batch, Tensor) else predictions)
        return results[0] if len(results) == 1 else tuple(results)

    def total(self, losses: Losses) -> Tensor:
        """The loss of `transfusion.Transfusion`, times `text_loss_weight`."""
        return super().total(losses) * self.compat.text_loss_weight

    def _losses(self, batch: Batch, teacher: Any, decoders: Decoders | None) -> Losses:
        if decoders is None:
            lists = self.lists
            decoders = {
                name: lambda x, i=lists.index(name), autoencoder=autoencoder: autoencoder.reconstruct(lists.oriented(x, i))
                for name, autoencoder in self.autoencoders.items()
                if isinstance(autoencoder, Autoencoder) and autoencoder.decoder is not None
            }
        return super().forward(batch, teacher=teacher, decoders=decoders)

    def muon_parameters(self) -> list[nn.Parameter]:
        """The hidden weight matrices. `MuonConfig().build(model)` also splits fused projections; torch.optim.Muon does not."""
        return self.network.muon_parameters()

    def parameters_without_encoder_decoder(self) -> list[nn.Parameter]:
        """The parameters to train: all but those of encoders and decoders."""
        return list(self.network.parameters())

    create_dataloader = staticmethod(training.create_dataloader)

    def create_ema(
        self,
        decay: float = 0.999,
        *,
        every: int = 1,
        beta: float | None = None,
        update_every: int | None = None,
        **unknown: object,
    ) -> Averaged:
        """As `transfusion.Transfusion.create_ema`; `beta` and `update_every` are ema_pytorch's names for `decay` and `every`.

        Raises:
            ValueError: an unknown option, or a value out of range.
        """
        for name in unknown:
            raise ValueError(f"create_ema has no option {name!r}{nearest(name, ('decay', 'every'))}")
        return super().create_ema(decay if beta is None else beta, every=every if update_every is None else update_every)

    # ---- generation -------------------------------------------------------------------------------------------------

    def sample(self, prompt: Any = None, max_length: int = 2048, **options: Any) -> list[Tensor | Item]:
        """Continue one document: a list of text ids and `Item`s. Options as in `sample_many`."""
        return self.sample_many([prompt], max_length, **options)[0]

    def sample_many(
        self,
        prompts: Sequence[Any],
        max_length: int = 2048,
        text_temperature: float = 1.0,
        text_min_p: float = 0.1,
        *,
        cache_kv: bool = True,
        fixed_modality_shape: tuple[int, ...] | None = None,
        force_modality_at_start: int | tuple[int, tuple[int, ...]] | None = None,
        init_modality_noise: Tensor | None = None,
        modality_steps: int | None = None,
        sampler: Sampler | None = None,
        return_unprocessed_modalities: bool = False,
        return_without_prompt: bool = False,
        cfg_scale: float | None = None,
        seed: int | None = None,
    ) -> list[list[Tensor | Item]]:
        """Continue many documents together; each comes out as it would alone.

        Args:
            prompts: one entry a document: None, a text, an item, or a list of them. Raw items go through their encoder.
            max_length: tokens at most, prompt and slots included.
            text_temperature, text_min_p: how text is sampled; temperature 0 takes the most likely token.
            cache_kv: ignored: keys and values are always cached.
            fixed_modality_shape: size of every item, whatever the model writes.
            force_modality_at_start: index of a modality of which an item is generated at once, or (index, size).
            init_modality_noise: initial noise of the forced item, shaped like its latents, or [slots, channels].
            modality_steps, sampler: None: those of the model.
            return_unprocessed_modalities: latents instead of decoded items.
            return_without_prompt: only what was generated.
            cfg_scale: guidance scale for the text before an item; 1: none (None: the model's own).
            seed: None: drawn from torch's generator.

        `fallbacks` then counts, by reason, the written sizes that could not be used.

        Raises:
            ValueError: what is wrong with which prompt.
        """
        del cache_kv
        check_number("max_length", max_length, 1, whole=True)
        if cfg_scale is not None:
            check_number("cfg_scale", cfg_scale, -math.inf)
        force, size = sampling.forced(self.vocabulary, force_modality_at_start)
        if not self.vocabulary.num_text and force is None:
            force = self.vocabulary.modalities[0].name
        sizes = sampling.fixed_sizes(self.vocabulary, fixed_modality_shape, force)
        if init_modality_noise is not None:
            init_modality_noise = sampling.initial_noise(self.lists, init_modality_noise, force, size or fixed_modality_shape)
        documents = self.lists.documents(prompts, prompts=True)
        continued = self._continue(
            documents,
            seed,
            max_length,
            max_tokens=max_length if self.vocabulary.num_text else 0,
            force=force,
            size=size,
            sizes=sizes,
            noise=init_modality_noise,
            decoding=sampling.decoding(text_temperature, text_min_p),
            sampler=sampling.with_steps(self.config.sampler, sampler, modality_steps),
            guidance=self.config.resolve_guidance(None if cfg_scale is None else Guidance(cfg_scale), draws=False),
        )
        starts = [len(prompt.segments) if return_without_prompt else 0 for prompt in documents]
        written = [Document(document.segments[start:]) for start, document in zip(starts, continued, strict=True)]
        return [self.lists.sample(document, decode=not return_unprocessed_modalities) for document in written]

    def generate_text_only(
        self,
        prompt: Int[Tensor, "document length"],
        length: int,
        temperature: float = 1.0,
        min_p: float = 0.1,
        cache_kv: bool = True,
        seed: int | None = None,
    ) -> Int[Tensor, "document new"]:
        """Exactly `length` ids of text after each prompt; no control token and no end among them.

        Raises:
            ValueError: a prompt that is no Int[document, length], or a length below 1 or beyond the context.
        """
        del cache_kv
        if not isinstance(prompt, Tensor) or prompt.ndim != 2 or prompt.is_floating_point():
            raise ValueError("prompt is a tensor of ids [document, length]; give a single text as text[None]")
        check_number("length", length, 1, whole=True)
        if not self.vocabulary.num_text:
            raise ValueError("this model has no ids of text to write: num_text_tokens is 0")
        tokens, context = prompt.shape[1] + length + 1, self.config.model.context_length
        if tokens > context:
            raise ValueError(f"the prompt and {length} ids more take {tokens} tokens, the context has {context}: ask for fewer")
        documents = self.lists.documents([[ids] if len(ids) else None for ids in prompt], prompts=True)
        decoding = sampling.decoding(temperature, min_p)
        written = self._continue(
            documents, seed, tokens + 1, max_tokens=length, max_items=0, allow_eos=False, decoding=decoding
        )
        ids = torch.stack([torch.cat([text for text in self.lists.sample(d) if isinstance(text, Tensor)]) for d in written])
        return ids.to(prompt.device)[:, prompt.shape[1] :]

    def generate_modality_only(
        self,
        batch_size: int = 1,
        modality_type: int | None = None,
        fixed_modality_shape: tuple[int, ...] | None = None,
        modality_steps: int | None = None,
        return_unprocessed_modalities: bool = False,
        sampler: Sampler | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Items of one modality without any condition: [item, ...], decoded where the modality has a decoder.

        Raises:
            ValueError: several modalities and no `modality_type`, or a size that the modality does not take.
        """
        check_number("batch_size", batch_size, 1, whole=True)
        index = sampling.only_modality(self.vocabulary, modality_type)
        size = fixed_modality_shape
        force, size = sampling.forced(self.vocabulary, index if size is None else (index, size))
        assert force is not None
        modality = self.vocabulary.modality(force)
        grid = modality.slots(size or modality.shape)
        documents = self._continue(
            [Document(())] * batch_size,
            seed,
            math.prod(grid) + len(grid) + 3,
            max_tokens=0,
            force=force,
            size=size,
            sampler=sampling.with_steps(self.config.sampler, sampler, modality_steps),
            guidance=Guidance(1.0),
        )
        latents = torch.stack([document.media[0].tensor() for document in documents])
        return self.lists.oriented(latents, index) if return_unprocessed_modalities else self.lists.decoded(latents, index)

    def _continue(self, prompts: Sequence[Document], seed: int | None, capacity: int, **options: Any) -> list[Document]:
        """Documents continued with fields of `Request`; prompt i gets a seed made from `seed` and i."""
        seed = _seed(seed)
        requests = [Request(prompt, rng.key(seed, index), **options) for index, prompt in enumerate(prompts)]
        with eval_mode(self):
            engine = self.engine(requests, capacity=capacity, decode_text=False)
            self.fallbacks = engine.fallbacks
            return generate(engine, requests)


def _seed(seed: int | None) -> int:
    return int(torch.randint(1 << 62, ())) if seed is None else seed
