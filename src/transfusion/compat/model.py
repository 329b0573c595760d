"""`Transfusion` with the call forms of transfusion-pytorch: a subclass of `transfusion.Transfusion` over the same code."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transfusion.codec.codecs import Autoencoders
from transfusion.codec.custom_patcher import CustomModules
from transfusion.compat import training
from transfusion.compat.coders import Coders
from transfusion.compat.constructor import check_words, configure
from transfusion.compat.ema import EMA
from transfusion.compat.generation import Generating, drawn_seed
from transfusion.compat.lists import FILE as COMPAT
from transfusion.compat.lists import CompatConfig
from transfusion.compat.outputs import Outputs, item_times
from transfusion.config import nearest
from transfusion.data.batch import Batch
from transfusion.data.document import ANY_TIME, Document
from transfusion.data.transforms import ConditionDropout, DocumentTransform, once, with_uses
from transfusion.data.vocabulary import Vocabulary
from transfusion.model.auxiliary import Decoders
from transfusion.model.losses import Losses
from transfusion.model_folder import TransfusionConfig, add_to_manifest, find


class Transfusion(Generating):
    """A Transfusion built from transfusion-pytorch's arguments, for documents that are lists of tensors.

    `Transfusion(num_text_tokens=256, dim_latent=384, modality_default_shape=(4,), transformer=dict(dim=512, depth=8))`

    Args:
        config, vocabulary, modules: as in `transfusion.Transfusion`, instead of `words`.
        compat: how lists of tensors are read, where `config` is given.
        words: see `transfusion.compat.constructor.configure`.

    Raises:
        ValueError: an unknown or missing argument, or arguments that do not fit each other.
    """

    def __init__(
        self,
        config: TransfusionConfig | None = None,
        vocabulary: Vocabulary | None = None,
        *,
        modules: CustomModules | None = None,
        compat: CompatConfig = CompatConfig(),
        autoencoder: Autoencoders | None = None,
        **words: Any,
    ) -> None:
        autoencoders: dict[str, Coders] = {}
        if (config is None) != (vocabulary is None):
            raise ValueError("config and vocabulary belong together: give both, or transfusion-pytorch's arguments")
        if config is None or vocabulary is None:
            check_words(words)
            config, vocabulary, compat, autoencoders, pairs = configure(**words)
            modules = {**pairs, **(modules or {})} or None
        elif words:
            raise ValueError(f"config and vocabulary exclude {', '.join(words)}: change the config, or leave both out")
        super().__init__(config, vocabulary, modules=modules, autoencoder=autoencoder)
        self.compat = compat
        self.autoencoders = nn.ModuleDict(autoencoders)
        self._gradients: dict[int, bool] = {}  # by the id of a decoder, whether it gives its latents a gradient

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model folder, and `compat.json` in it. Raises as `transfusion.Transfusion.save_pretrained`."""
        super().save_pretrained(folder)
        self.compat.save(Path(folder))
        add_to_manifest(Path(folder), COMPAT)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        modules: CustomModules | None = None,
        autoencoder: Autoencoders | None = None,
    ) -> "Transfusion":
        """Read a model folder, written by this class or by `transfusion.Transfusion`.

        Raises:
            ValueError: as there, or a `compat.json` that is damaged or belongs to another `config.json`.
        """
        model = super().from_pretrained(folder, device=device, modules=modules, autoencoder=autoencoder)
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
        times: Any = None,
        num_modalities_to_times_fn: Callable[[Tensor], Tensor] | None = None,
        modality_type: int | None = None,
        *,
        noise_levels: Any = None,
        noise: Sequence[Any] | None = None,
        teacher: Any = None,
        velocity_consistency_ema_model: Any = None,
        velocity_consistency_delta_time: float | None = None,
        decoders: Decoders | None = None,
        prob_uncond: float | None = None,
        seed: int | None = None,
        noised: bool = False,
        return_loss: bool = True,
        return_breakdown: bool = False,
        return_times: bool = False,
        return_noise_levels: bool = False,
        return_predictions: bool = False,
        return_only_pred_flows: bool = False,
        return_embed: bool = False,
        return_hiddens: bool = False,
        debug: bool | None = None,
    ) -> Any:
        """The `Losses` of a `Batch`; or for documents as lists of tensors the loss, a scalar, and what `return_*` adds to it.

        Where several results are asked for, a tuple in the order loss, breakdown, hidden states, times, noise levels,
        predictions. `return_only_pred_flows` and `return_embed` stand alone.

        Args:
            batch: a Batch (then only `teacher` and `decoders` are used); a list of lists of items; token ids Int[document,
                length] (-1 is padding), whose loss is over text ids alone; or latents Float[item, ...] of one modality,
                `modality_type`.
            times: the time of each item as in transfusion-pytorch, 0 noise, 1 clean (and then without a loss): a list of
                numbers for each document, a tensor [document, item], or a function of the number of items.
            num_modalities_to_times_fn: function from the numbers of items, Int[document], to such a tensor.
            noise_levels: instead of these the noise level of each item, 0 clean, 1 noise, in the same forms. Whole numbers are
                steps of the diffusion's T.
            noise: noise of each item, a list of tensors for each document.
            teacher, decoders: as in `transfusion.Transfusion.forward`; by default the model's own decoders.
            velocity_consistency_ema_model: the same as `teacher`, and without effect where no loss needs one.
            velocity_consistency_delta_time: an argument of the constructor; here it may only repeat that one.
            prob_uncond: share of items that lose the text before them (None: the model's own). Text is dropped in training mode
                only, and not where times, noise or outputs are asked for: these belong to the documents as they are.
            seed: random seed of noise, times and dropped text; None: drawn from torch's generator.
            noised: the latents are noised already, to `times`: no encoder runs, and there is no loss.
            return_loss: False: no loss and no breakdown; of lists and ids the logits, Float[document, longest, id], of the
                token after each (control tokens included in lists); of latents, which are taken as noised to `times`, the flow
                from noise to data. With `noised` or other outputs: those alone.
            return_breakdown: also a `Breakdown`.
            return_times: also the times, Float[document, most items], 1 where a document has fewer.
            return_noise_levels: also the noise levels, a list for each document.
            return_predictions: also the network's output, a list for each document, an entry for each segment: of a text the
                logits of the token after each of its tokens, [length, ids]; of an item its prediction, shaped like the latents.
            return_only_pred_flows: the flow x0 - eps of each item, a list for each modality.
            return_embed: the transformer's output, Float[document, longest, width], and for each modality that occurs a
                function for each item from such a tensor to its flow.
            return_hiddens: also the output of each layer, a list of Float[document, longest, width].
            debug: report all input errors at once, and print the layout of each document (None: if the environment variable
                TRANSFUSION_DEBUG is 1).

        An item that something later is learned from is both drawn and read: its loss is that of a noised copy, and what follows
        sees the clean one (in training mode in a share of the documents, `DocumentTransform.dual`). Where its time or noise is
        set, it stands once, as it is given; so do all items where predictions, embeddings or hiddens are returned, which have a
        place for each token of the documents.

        Raises:
            ValueError: what is wrong with which item of which document, before anything is computed.
        """
        if velocity_consistency_delta_time not in (None, self.config.model.auxiliary.delta):
            raise ValueError("velocity_consistency_delta_time is an argument of the constructor here: give it there")
        if velocity_consistency_ema_model is not None and self.config.model.auxiliary.needs_ema_teacher:
            teacher = velocity_consistency_ema_model
        if isinstance(batch, Batch):
            return self._losses(batch, teacher, decoders)
        debug = os.environ.get("TRANSFUSION_DEBUG", "") not in ("", "0") if debug is None else debug
        is_tensor = isinstance(batch, Tensor)
        only_latents = isinstance(batch, Tensor) and batch.is_floating_point()
        if only_latents and not (return_loss or return_predictions or return_only_pred_flows or return_embed):
            noised = return_only_pred_flows = True
        timed = any(argument is not None for argument in (times, num_modalities_to_times_fn, noise_levels))
        if noised and not timed and not only_latents:
            raise ValueError("noised latents need the times of their noise: give times (0 noise) or noise_levels (1 noise)")
        lists = self.lists
        documents, add_eos = training.read(lists, batch, modality_type, encode=not noised, all_errors=debug)
        documents = training.with_times(self, documents, times, num_modalities_to_times_fn, noise_levels)
        documents = training.with_noise(lists, documents, noise)
        seed = drawn_seed(seed)
        layout = return_predictions or return_only_pred_flows or return_embed or return_hiddens or not return_loss
        if self.training and not noised:
            self.learned.note(documents)
        if layout:
            documents = [once(with_uses(document)) for document in documents]
        elif self.training and not noised:
            documents = self._transformed(documents, seed, prob_uncond, whole=return_times or return_noise_levels)
        sequences = self.tokenize(documents, seed=seed, add_eos=add_eos)
        if debug:
            training.print_layout(documents, sequences)
        rows = self.collate(sequences)

        def outputs(layers: bool = False) -> Outputs:
            return Outputs(self, lists, rows, documents, sequences, noised=noised, layers=layers)

        if return_only_pred_flows:
            flows = outputs().flows()
            return torch.stack(flows[modality_type or 0]) if only_latents else flows
        if return_embed:
            ran = outputs(return_hiddens)
            embedded = ran.padded(ran.h), ran.flow_functions()
            return (*embedded, ran.hiddens()) if return_hiddens else embedded
        results: list[Any] = []
        if return_loss and not noised:
            text_ids = self.num_text_tokens if is_tensor and not only_latents else None
            losses = self._losses(rows, teacher, decoders, text_ids)
            results.append(self.total(losses))
            if return_breakdown:
                results.append(training.breakdown(results[0], losses))
        if return_hiddens:
            results.append(outputs(layers=True).hiddens())
        if return_times or return_noise_levels:
            levels = item_times(self, rows, sequences)
            results += [training.as_times(levels).to(self.device)] * return_times + [levels] * return_noise_levels
        if return_predictions or noised:
            predictions = outputs().segments()
            results.append(torch.stack([p[0] for p in predictions]) if only_latents else predictions)
        elif not (return_loss or return_hiddens or return_times or return_noise_levels):
            logits = outputs().logits()
            results.append(training.after_each(logits, batch) if isinstance(batch, Tensor) else logits)
        return results[0] if len(results) == 1 else tuple(results)

    def forward_text(self, text: Tensor, return_loss: bool = True, **options: Any) -> Any:
        """The model called with ids, Int[document, length]: the loss over text ids, or logits. Raises ValueError as
        `forward`."""
        return self(text, return_loss=return_loss, **options)

    def forward_modality(
        self,
        modalities: Tensor,
        times: Tensor | None = None,
        modality_type: int | None = None,
        encode_modality: bool = True,
        velocity_consistency_ema_model: Any = None,
        velocity_consistency_delta_time: float | None = None,
        return_loss: bool = True,
        return_loss_breakdown: bool = False,
    ) -> Any:
        """The model called with items of one modality, Float[item, ...].

        Args:
            encode_modality: whether items go through their encoder.
            return_loss: False: items are latents noised to `times` (0 noise, 1 clean), and the result is the flow from noise to
                data, shaped like them.
            return_loss_breakdown: also (flow, velocity, reconstruction), each a scalar, 0 where it is off.

        Raises:
            ValueError: as `forward`.
        """
        ema = velocity_consistency_ema_model
        options: dict[str, Any] = {"velocity_consistency_delta_time": velocity_consistency_delta_time}
        if not return_loss:
            return self(modalities, times, None, modality_type, return_loss=False, **options)
        if not encode_modality:
            index = training.only_modality(self.vocabulary, modality_type)
            batch: Any = self.lists.documents([[(index, item)] for item in modalities], encode=False, any_axes=True)
        else:
            batch, options["modality_type"] = modalities, modality_type
        options |= {"times": times, "velocity_consistency_ema_model": ema}
        loss, terms = self(batch, return_breakdown=True, **options)
        if not return_loss_breakdown:
            return loss
        return loss, (sum(terms.flow), terms.consistency, terms.reconstruction)

    def _transformed(self, documents: list[Document], seed: int, drop: float | None, *, whole: bool) -> list[Document]:
        """The documents as training takes them: in a share of them items stand twice, and unless `whole` texts are dropped."""
        fixed = any(m.noise is not None or m.times != ANY_TIME for document in documents for m in document.media)
        dropout = self.config.condition_dropout if drop is None else ConditionDropout(text=drop)
        transform = DocumentTransform(
            image_first=0.0,
            condition_dropout=ConditionDropout(0.0) if fixed or whole else dropout,
        )
        return [transform(document, seed, 0, i) for i, document in enumerate(documents)]

    def total(self, losses: Losses) -> Tensor:
        """The loss of `transfusion.Transfusion`, times `text_loss_weight`."""
        return super().total(losses) * self.compat.text_loss_weight

    def _losses(self, batch: Batch, teacher: Any, decoders: Decoders | None, text_ids: int | None = None) -> Losses:
        """The losses of a batch; without a teacher those that need none; over the first `text_ids` ids, if that is given."""
        if decoders is None:
            decoders = self._own_decoders(batch)
        network = self.teacher_network(teacher)
        self.check_decoders(decoders)
        return self.network(batch, teacher=network, decoders=decoders, teacher_is_optional=True, num_ids=text_ids)

    def _own_decoders(self, batch: Batch) -> Decoders:
        """The model's own decoders, for the reconstruction loss: those that give its latents a gradient. For the others latents
        are compared, and the user is warned."""
        decoders, lists = {}, self.lists
        if not self.config.model.auxiliary.reconstruction:
            return decoders
        for name, autoencoder in self.autoencoders.items():
            assert isinstance(autoencoder, Coders)
            if autoencoder.decoder is None:
                continue

            def decode(x: Tensor, i: int = lists.index(name), autoencoder: Coders = autoencoder) -> Tensor:
                return autoencoder.reconstruct(lists.oriented(x, i))

            items = [group.values[:1] for group in batch.media if group.modality == lists.index(name)]
            if items and torch.is_grad_enabled() and not self._gives_gradient(autoencoder.decoder, decode, items[0]):
                continue
            decoders[name] = decode
        return decoders

    def _gives_gradient(self, decoder: nn.Module, decode: Callable[[Tensor], Tensor], latents: Tensor) -> bool:
        """Whether a decoder's output has a gradient for its input; asked once for each decoder."""
        if id(decoder) not in self._gradients:
            gives = decode(latents.detach().requires_grad_()).requires_grad
            self._gradients = {**self._gradients, id(decoder): gives}
            if not gives:
                warnings.warn(
                    "the decoder stops gradients (torch.no_grad inside?), so the reconstruction loss compares latents, not "
                    "what it decodes",
                    stacklevel=2,
                )
        return self._gradients[id(decoder)]

    create_dataloader = staticmethod(training.create_dataloader)

    def create_ema(
        self,
        decay: float = 0.999,
        *,
        every: int = 1,
        beta: float | None = None,
        update_every: int | None = None,
        **unknown: object,
    ) -> EMA:
        """As `transfusion.Transfusion.create_ema`, with the averaged model as `ema_model`; `beta` and `update_every` are
        ema_pytorch's names for `decay` and `every`.

        Raises:
            ValueError: an unknown option, or a value out of range.
        """
        for name in unknown:
            raise ValueError(f"create_ema has no option {name!r}{nearest(name, ('decay', 'every'))}")
        return EMA(self, decay if beta is None else beta, every=every if update_every is None else update_every)
