"""transfusion-pytorch's names of a model's parts: ids of control tokens, counts, widths, what is known of each modality."""

from collections.abc import KeysView
from typing import Any, NamedTuple

from torch import Tensor, nn

from transfusion import api
from transfusion.compat.coders import Coders
from transfusion.compat.lists import CompatConfig, Lists
from transfusion.compat.prompts import char_ids, meta_id


class ModalityInfo(NamedTuple):
    """A modality of a model. `latent_to_model` and `model_to_latent` are the two halves of its patcher, both None where it is
    no linear one; `pos_emb_mlp` its axial embedding, `dim_latent` its channels, `num_dim` the axes of its size."""

    encoder: nn.Module | None
    decoder: nn.Module | None
    latent_to_model: nn.Module | None
    model_to_latent: nn.Module | None
    add_pos_emb: bool
    pos_emb_mlp: nn.Module | None
    num_dim: int
    dim_latent: int
    default_shape: tuple[int, ...]
    som_id: int
    eom_id: int
    channel_first_latent: bool
    modality_type: int


class Named(api.Transfusion):
    """A `transfusion.Transfusion` whose parts have transfusion-pytorch's names too, with autoencoders between raw items and
    latents."""

    compat: CompatConfig
    autoencoders: nn.ModuleDict

    @property
    def lists(self) -> Lists:
        """Reader and writer of lists of tensors."""
        autoencoders = {name: module for name, module in self.autoencoders.items() if isinstance(module, Coders)}
        return Lists(self.vocabulary, autoencoders, self.compat)

    def attach(self, modality: str, encoder: nn.Module | None = None, decoder: nn.Module | None = None) -> None:
        """Give a modality an encoder and a decoder between raw items and latents. They are used, never trained, and not saved.

        Raises:
            ValueError: an unknown modality, or an encoder or decoder that is no module.
        """
        self.autoencoders[self.vocabulary.modality(modality).name] = Coders(encoder, decoder)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Read by DistributedDataParallel: encoders and decoders have no gradients to share."""
        return [f"autoencoders.{name}" for name in self.autoencoders.state_dict()]

    # ---- ids of control tokens --------------------------------------------------------------------------------------

    @property
    def sos_id(self) -> int:
        """The id that begins a sequence."""
        return self.vocabulary.bos

    @property
    def eos_id(self) -> int:
        """The id that ends a sequence."""
        return self.vocabulary.eos

    @property
    def som_ids(self) -> list[int]:
        """The ids that begin an item, by modality. At the end of a prompt one asks for an item at once."""
        return [self.vocabulary.begin(modality.name) for modality in self.vocabulary.modalities]

    @property
    def eom_ids(self) -> list[int]:
        """The ids that end an item, by modality."""
        return [self.vocabulary.end(modality.name) for modality in self.vocabulary.modalities]

    @property
    def meta_id(self) -> int:
        """The id before a spelled size, `char_tokenizer("4,4")`: understood in prompts, where a sample has a token an axis."""
        return meta_id(self.vocabulary)

    def char_tokenizer(self, text: str, device: Any = None) -> Tensor:
        """The ids of a spelled size, see `meta_id`."""
        return char_ids(self.vocabulary, text).to(device)

    # ---- sizes ------------------------------------------------------------------------------------------------------

    @property
    def num_text_tokens(self) -> int:
        """Number of text ids."""
        return self.vocabulary.num_text

    @property
    def num_modalities(self) -> int:
        """Number of modalities beside text."""
        return len(self.vocabulary.modalities)

    @property
    def modality_processing(self) -> str:
        """How items are batched: those of one size together, whatever the constructor was told."""
        return self.compat.modality_processing

    @property
    def dim(self) -> int:
        """Width of the transformer."""
        return self.config.model.transformer.width

    @property
    def dim_latents(self) -> tuple[int, ...]:
        """Channels of the latents, by modality."""
        return tuple(modality.channels for modality in self.vocabulary.modalities)

    def get_modality_info(self, modality_type: int | None = None) -> ModalityInfo:
        """What is known of a modality (None: the first). Raises ValueError for one that there is not."""
        index = 0 if modality_type is None else modality_type
        if not 0 <= index < self.num_modalities:
            raise ValueError(f"no modality {index!r}; there are {self.num_modalities}")
        modality, patcher = self.vocabulary.modalities[index], self.network.patcher_of(index)
        autoencoder = self.autoencoders[modality.name] if modality.name in self.autoencoders else Coders(None, None)
        assert isinstance(autoencoder, Coders)
        axial = self.network.axial
        embedding = axial[modality.name] if axial is not None and modality.name in axial else None
        return ModalityInfo(
            autoencoder.encoder,
            autoencoder.decoder,
            getattr(patcher, "proj_in", None),
            getattr(patcher, "proj_out", None),
            embedding is not None,
            embedding,
            len(modality.shape),
            modality.channels,
            modality.shape,
            self.vocabulary.begin(modality.name),
            self.vocabulary.end(modality.name),
            index < len(self.compat.channel_first) and self.compat.channel_first[index],
            index,
        )

    def get_all_modality_info(self) -> list[ModalityInfo]:
        """What is known of each modality."""
        return [self.get_modality_info(index) for index in range(self.num_modalities)]

    def get_modality_shape(self, modality: Tensor, modality_type: int | None = None) -> tuple[int, ...]:
        """The size of latents in the model's orientation, without their channels. Raises ValueError for an unknown modality."""
        first = self.get_modality_info(modality_type).channel_first_latent
        return tuple(modality.shape[1:] if first else modality.shape[:-1])

    # ---- parameters -------------------------------------------------------------------------------------------------

    def muon_parameters(self) -> list[nn.Parameter]:
        """The hidden weight matrices. `MuonConfig().build(model)` also splits fused projections; torch.optim.Muon does not."""
        return self.network.muon_parameters()

    def parameters_without_encoder_decoder(self) -> KeysView[nn.Parameter]:
        """The parameters to train, all but those of encoders and decoders: in the model's order, and with the operations of a
        set (`-`, `&`, `|`, `in`)."""
        return dict.fromkeys(self.network.parameters()).keys()
