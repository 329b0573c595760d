"""LLaMA and Transfussion: Transfusion.torch's classes, its lists in and out, over `transfusion.Transfusion`.

    samples and kinds --check--> one packed row --`Network.hidden`--> logits [1, length, ids], noise [1, patches, elements]
    prompt and kinds  --check--> Document       --`Engine`--------> the same lists, longer

BOS stands before each sample, without an output. A patch is a slot, numbered in reading order like text.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from transfusion import api
from transfusion.compat.checks import check_number
from transfusion.compat.transfusion_torch.config import read, special_ids, transformer_config, vocabulary
from transfusion.compat.transfusion_torch.diffusion import DiffusionUtils, PatchOps, cosine_diffusion
from transfusion.compat.transfusion_torch.generation import Writer
from transfusion.compat.transfusion_torch.samples import Sample, check_values, read_sample, read_samples, unstack
from transfusion.data.tokenize import Coordinates
from transfusion.data.transforms import ConditionDropout
from transfusion.diffusion.guidance import Guidance
from transfusion.diffusion.sampler import DDIM, DDPM
from transfusion.model.denoising import NoisedGroup
from transfusion.model.network import ModelConfig
from transfusion.model_folder import TransfusionConfig
from transfusion.nn.attention import AttentionMetadata, visible
from transfusion.nn.transformer import Transformer, init_weights


class LLaMA(Transformer):
    """This library's transformer at the sizes of a config.

    Args:
        config: num_layers, d_model, num_heads, n_kv_heads (optional), dropout_rate, maxlen.

    Raises:
        ValueError: an attribute missing or out of range.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(transformer_config(config))
        init_weights(self, self.config.depth)

    def forward(self, x: Tensor, positions: Tensor, tokens: Any = None, **options: Any) -> Tensor:
        """`Transformer.forward`; or `llama(h, mask)`, h Float[row, length, d_model], with a mask [1, 1, M, M] as
        Transfusion.torch makes it: True or 0 where a query sees a key, False or -inf elsewhere.

        Raises:
            ValueError: a mask that is not causal with square blocks for images.
        """
        if tokens is None:
            tokens = _from_mask(positions, *x.shape[:2])
            positions = tokens.index[..., None].to(torch.float32)
        return super().forward(x, positions, tokens, **options)


class Transfussion(nn.Module):
    """Transfusion.torch's model: predictions for lists of text and noised patches, and generation.

    `transfusion` is the `transfusion.Transfusion` that computes everything; `patch_ops` makes patches; `model` is the
    transformer; BOI, IGNORE_TOKEN, EOI and EOS are buffers.

    Args:
        model: LLaMA(config).
        config: a class or object with Transfusion.torch's attributes, see `config.py`.

    Raises:
        ValueError: another model, or one of another config; attributes missing or out of range.
    """

    ids: Tensor

    def __init__(self, model: LLaMA, config: Any) -> None:
        super().__init__()
        if not isinstance(model, LLaMA):
            raise ValueError(f"model is LLaMA(config) of transfusion.compat.transfusion_torch, not {type(model).__name__}")
        transformer = transformer_config(config)
        if model.config != transformer:
            raise ValueError(f"LLaMA has another config ({model.config}) than Transfussion ({transformer}): give both the same")
        sizes = read(config, ("maxlen", "text_maxlen", "num_timesteps"))
        check_number("config.num_timesteps", sizes.num_timesteps, 2, whole=True)
        self.maxlen, self.text_maxlen, self.num_timesteps = sizes.maxlen, sizes.text_maxlen, sizes.num_timesteps
        words, ids = vocabulary(config)
        network = ModelConfig(
            modalities=words.modalities,
            transformer=transformer,
            diffusion=cosine_diffusion(self.num_timesteps),
            coordinates=Coordinates("raster", axes=1),
            context_length=self.maxlen + 1,  # BOS
        )
        settings = TransfusionConfig(
            network, ConditionDropout(text=0.0), sampler=DDPM(self.num_timesteps), guidance=Guidance(text=1.0)
        )
        self.transfusion = api.Transfusion(settings, words)
        self.transfusion.network.transformer = model
        self.patch_ops = PatchOps(config)
        self.special = special_ids(config)
        for name, value in self.special.items():
            self.register_buffer(name, None if value is None else torch.tensor(value))
        self.register_buffer("ids", torch.tensor(ids))

    @property
    def model(self) -> Transformer:
        """The transformer."""
        return self.transfusion.network.transformer

    # ---- predictions ------------------------------------------------------------------------------------------------

    def forward(self, modality_tokens: Sequence[Any], modality_strings: Sequence[Any]) -> tuple[list[Any], Sequence[Any]]:
        """The predictions for samples, and `modality_strings` as they are.

        Args:
            modality_tokens: for each sample a list: Int[length] of text, or (Float[patches, elements], step) of an image whose
                patches are noised to the step, 0 clean, T noise. Any number of patches.
            modality_strings: for each sample the kind of each of these, "text" or "image".

        For each sample a list, as long: of a text the logits of the next ids, [1, length, lm_output_units]; of an image the
        noise in it, [1, patches, elements]. A text sees what is before it in its sample; an image also all of itself.

        Samples of one form may also be one batch: text Int[sample, length], images (Float[sample, patches, elements],
        Int[sample]), and one list of kinds. Then the predictions are one list, with [sample, ...] in place of [1, ...].

        Raises:
            ValueError: kinds that do not fit; ids, patches or steps of another form or out of range; a sample longer than
                config.maxlen. The message names sample and entry. Nothing is computed before all is checked.
        """
        if not isinstance(modality_strings, list | tuple) or not modality_strings:
            raise ValueError('modality_strings is a list with the kinds of each sample, such as [["text", "image"]]')
        form = self.patch_ops.modality.patch_width, self.maxlen
        if not all(isinstance(kind, str) for kind in modality_strings):
            return self._predict(read_samples(modality_tokens, modality_strings, *form)), modality_strings
        samples = unstack(modality_tokens, modality_strings)
        rows = self._predict(read_samples(samples, [modality_strings] * len(samples), *form))
        return [torch.cat(entries) for entries in zip(*rows, strict=True)], modality_strings

    def forward_unbatched(self, modality_tokens: Sequence[Any], modality_strings: Sequence[str]) -> list[Tensor]:
        """The predictions for one sample. Raises ValueError: as `forward`."""
        form = self.patch_ops.modality.patch_width, self.maxlen
        return self._predict([read_sample("the sample", modality_tokens, modality_strings, *form)])[0]

    def _predict(self, samples: Sequence[Sample]) -> list[list[Tensor]]:
        """The predictions for samples: an entry [1, ...] for each of theirs."""
        network, words, device = self.transfusion.network, self.transfusion.vocabulary, self.transfusion.device
        check_values(samples, len(self.ids), self.num_timesteps, device)
        bos, pad = torch.tensor([[words.bos], [words.pad]], device=device)
        tokens: list[Tensor] = []
        texts: list[Tensor] = []  # the slots of each text
        images: dict[int, list[tuple[int, Tensor, Tensor]]] = {}  # number of patches -> first slot, patches, step
        counts, spans, lengths, at = [], [], [], 0
        for sample in samples:
            tokens.append(bos)
            counts.append(1)
            spans.append(-1)
            start, at = at, at + 1
            for index, entry in enumerate(sample):
                if isinstance(entry, Tensor):
                    count = len(entry)
                    tokens.append(self.ids[entry.to(device).long()])
                    texts.append(torch.arange(at, at + count))
                else:
                    count = len(entry[0])
                    tokens.append(pad.expand(count))
                    images.setdefault(count, []).append((at, *entry))
                counts.append(count)
                spans.append(-1 if isinstance(entry, Tensor) else index)
                at += count
            lengths.append(at - start)
        media = [self._group(count, items) for count, items in images.items()]
        rows = (
            torch.arange(len(samples)).repeat_interleave(torch.tensor(lengths)),
            torch.tensor(spans).repeat_interleave(torch.tensor(counts)),
            torch.zeros(at, dtype=torch.bool),
        )
        metadata = AttentionMetadata.of_rows(*(row[None].to(device) for row in rows))
        positions = torch.cat([torch.arange(length, dtype=torch.float32) for length in lengths])[None, :, None].to(device)
        h, skips = network.hidden(torch.cat(tokens)[None], positions, media, metadata=metadata)
        noise: dict[int, Tensor] = {}
        for items, prediction in zip(images.values(), network.predict(h, media, skips), strict=True):
            noise |= zip((first for first, _, _ in items), self.patch_ops.from_column(prediction).split(1), strict=True)
        slots = torch.cat([torch.arange(0), *texts]).to(device)
        logits = iter(network.head(h[slots])[:, self.ids].split([len(text) for text in texts]))
        images_in_order = iter(sorted(noise))
        return [[next(logits)[None] if isinstance(e, Tensor) else noise[next(images_in_order)] for e in s] for s in samples]

    def _group(self, count: int, items: Sequence[tuple[int, Tensor, Tensor]]) -> NoisedGroup:
        """Images of `count` patches, each with its first slot and step, as the network reads them."""
        device = self.transfusion.device
        patches = torch.stack([patches.to(device) for _, patches, _ in items])
        times = torch.stack([step.to(device, torch.float32) for _, _, step in items]) / self.num_timesteps
        first = torch.tensor([first for first, _, _ in items], device=device)
        slots = first[:, None] + torch.arange(count, device=device)
        return NoisedGroup(0, (count, 1), self.patch_ops.to_column(patches), times, slots)

    # ---- generation -------------------------------------------------------------------------------------------------

    def generate(
        self,
        modality_tokens: Sequence[Any],
        modality_strings: Sequence[str],
        diff_utils: DiffusionUtils | None = None,
        autocast: torch.autocast | None = None,
    ) -> tuple[list[Any], list[str]]:
        """A prompt continued: text is the most likely id, BOI begins an image of H x W by num_timesteps steps of DDPM.

        Args:
            modality_tokens: the prompt: text Int[length], and images (Float[patches, elements], 0) that are clean and stand
                between BOI and EOI. The first and the last are text; where the last ends with BOI, an image comes next.
            modality_strings: "text" or "image" for each.
            diff_utils: the schedule (None: the cosine schedule).
            autocast: if it is on and bfloat16, matrices are bfloat16; otherwise the weights' own precision is used.

        New lists come back: the prompt, its last text longer, then images as (patches, Int[1] of 0) and texts that begin with
        EOI. The end is EOS, which is left out, or config.text_maxlen ids of text, prompt included; an image that has begun is
        finished. Noise comes from a seed that is drawn from torch's generator. Where the prompt's texts are [1, length], all
        has that leading axis. Dropout is off.

        Raises:
            ValueError: a config without BOI, EOI or EOS; a prompt of another form, with an image that is not clean, not of
                H x W or not between BOI and EOI, or with EOS or IGNORE_TOKEN; or one longer than config.maxlen.
        """
        return self._write(modality_tokens, modality_strings, diff_utils, autocast)

    def lm_mode(
        self,
        modality_tokens: Sequence[Any],
        modality_strings: Sequence[str],
        diff_utils: DiffusionUtils | None = None,
        autocast: torch.autocast | None = None,
    ) -> tuple[list[Any], list[str]]:
        """`generate`."""
        return self._write(modality_tokens, modality_strings, diff_utils, autocast)

    def diff_mode(
        self,
        modality_tokens: Sequence[Any],
        modality_strings: Sequence[str],
        diff_utils: DiffusionUtils | None = None,
        autocast: torch.autocast | None = None,
    ) -> tuple[list[Any], list[str]]:
        """`generate`, from a prompt that ends with BOI. Raises ValueError for another one."""
        return self._write(modality_tokens, modality_strings, diff_utils, autocast, draw=True)

    def draw(
        self,
        modality_tokens: Sequence[Any],
        modality_strings: Sequence[str],
        diff_utils: DiffusionUtils | None = None,
        autocast: torch.autocast | None = None,
        *,
        use_ddim: bool = False,
    ) -> tuple[list[Any], list[str]]:
        """The prompt, which ends with BOI, and one image behind it; `use_ddim`: without fresh noise at each step. Raises
        ValueError: see `generate`."""
        return self._write(
            modality_tokens, modality_strings, diff_utils, autocast, draw=True, one_image=True, use_ddim=use_ddim
        )

    def _write(
        self,
        tokens: Sequence[Any],
        kinds: Sequence[str],
        diff_utils: DiffusionUtils | None,
        autocast: torch.autocast | None,
        *,
        draw: bool = False,
        one_image: bool = False,
        use_ddim: bool = False,
    ) -> tuple[list[Any], list[str]]:
        writer = Writer(self.transfusion, self.patch_ops, self.ids.tolist(), self.special, self.maxlen)
        prompt = writer.prompt(tokens, kinds, self.num_timesteps)
        if draw and not prompt.draws:
            raise ValueError(f"an image is drawn behind a prompt that ends with BOI ({self.special['BOI']})")
        diffusion = cosine_diffusion(self.num_timesteps)
        if diff_utils is not None:
            if not isinstance(diff_utils, DiffusionUtils):
                raise ValueError("diff_utils is a DiffusionUtils of transfusion.compat.transfusion_torch")
            if diff_utils.num_timesteps != self.num_timesteps:
                counts = f"{diff_utils.num_timesteps} steps, the model {self.num_timesteps}"
                raise ValueError(f"diff_utils has {counts}: make both of one config")
            diffusion = diff_utils.diffusion
        return writer.write(
            prompt,
            most=self.text_maxlen - prompt.num_ids,
            one_image=one_image,
            diffusion=diffusion,
            sampler=(DDIM if use_ddim else DDPM)(self.num_timesteps),
            dtype=torch.bfloat16 if _is_bf16(autocast, self.transfusion.device.type) else torch.float32,
        )

    # ---- optimisation -----------------------------------------------------------------------------------------------

    def configure_optimizers(
        self, weight_decay: float, learning_rate: float, betas: tuple[float, float], device_type: str
    ) -> torch.optim.AdamW:
        """AdamW, with weight decay on parameters of two axes or more; fused on "cuda"."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=device_type == "cuda")


class CosineDecayWithWarmup:
    """step -> learning rate: linear from 0 over `warmup_steps`, then a half cosine to `min_learning_rate` at `decay_steps`.

    Raises:
        ValueError: a number below 0, or a decay that ends before the warm-up does.
    """

    def __init__(self, warmup_steps: int, max_learning_rate: float, decay_steps: int, min_learning_rate: float) -> None:
        check_number("warmup_steps", warmup_steps)
        check_number("decay_steps", decay_steps, warmup_steps)
        check_number("max_learning_rate", max_learning_rate)
        check_number("min_learning_rate", min_learning_rate)
        self.warmup_steps, self.decay_steps = warmup_steps, decay_steps
        self.max_learning_rate, self.min_learning_rate = max_learning_rate, min_learning_rate

    def __call__(self, step: int) -> float:
        """The rate of a step, from 0."""
        if step < self.warmup_steps:
            return self.max_learning_rate * step / self.warmup_steps
        if step >= self.decay_steps:
            return self.min_learning_rate
        done = (step - self.warmup_steps) / (self.decay_steps - self.warmup_steps)
        falling = (1 + math.cos(math.pi * done)) / 2
        return self.min_learning_rate + falling * (self.max_learning_rate - self.min_learning_rate)


def _is_bf16(autocast: torch.autocast | None, device: str) -> bool:
    """Whether it makes matrices bfloat16 on a device."""
    with contextlib.nullcontext() if autocast is None else autocast:
        return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16


def _from_mask(mask: Tensor, rows: int, length: int) -> AttentionMetadata:
    """The spans of a mask [1, 1, M, M] of which `length` queries and keys are used. Raises ValueError: see `LLaMA.forward`."""
    if not isinstance(mask, Tensor) or mask.shape[:2] != (1, 1) or mask.ndim != 4 or min(mask.shape[2:]) < length:
        raise ValueError(f"a mask is [1, 1, M, M] with M of at least the length {length}")
    sees = mask[0, 0, :length, :length]
    sees = sees if sees.dtype == torch.bool else sees == 0
    index = torch.arange(length, device=mask.device)
    last = torch.where(sees, index, -1).amax(1)
    spans = torch.where(last > index, last, -1)
    spans = torch.where(last.roll(1) == index, index, spans)  # a span's last slot, which sees no further than itself
    metadata = AttentionMetadata.of_rows(torch.zeros_like(index)[None], spans[None], torch.zeros_like(sees[:1]))
    if not torch.equal(visible(metadata, metadata)[0], sees):
        raise ValueError(
            "this mask is not causal with square blocks in which an image sees all of itself: the attention here knows no other"
        )
    return AttentionMetadata.of_rows(*(field.expand(rows, -1) for field in metadata.fields[:3]))
