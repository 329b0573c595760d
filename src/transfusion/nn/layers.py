"""The norm, the linear layer and its hidden matrices, the MLP; embedding and head of an extended vocabulary."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.nn.pointwise import recomputable, recompute_linear, rms_norm, swiglu


class RMSNorm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): x / rms(x) * weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]; `recompute_linear` computes it again in backward."""
        return recomputable(rms_norm, x, self.weight, self.eps)


MAX_TRANSPOSED = 32  # vectors up to which `Linear` multiplies from the other side


class Linear(nn.Linear):
    """A linear layer without a bias by default.

    Where a CPU decodes a few vectors in fp32 it computes weight @ x^T instead of x @ weight^T: the same numbers, but that
    product is shared among cores and reads the weights at memory speed (both measured in LOG.md).

    Args:
        splits: outputs of each matrix, where several are fused.
        head_dim: outputs of each attention head, where there are heads.
        residual: it projects into the residual stream, see `init_weights`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        splits: tuple[int, ...] | None = None,
        head_dim: int = 0,
        residual: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.splits, self.head_dim, self.residual = splits or (out_features,), head_dim, residual

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]"""
        count = input.numel() // input.shape[-1]
        if count > MAX_TRANSPOSED or torch.is_grad_enabled() or input.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        flat = input.reshape(count, input.shape[-1])
        if count == 1:
            flat = torch.cat([flat, flat])  # a single column would become a matrix-vector product
        out = (self.weight @ flat.T)[:, :count].T.reshape(*input.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


class HiddenConv2d(nn.Conv2d):
    """A convolution between hidden features, which Muon updates as the matrix [output, input * height * width]."""


@dataclass(frozen=True, eq=False)
class HiddenMatrix:
    """A weight [output, input], [expert, output, input] or, of a convolution, [output, input, height, width], the outputs of
    each matrix fused in it (queries, keys, values; gate, up), and those of an attention head (0: no heads). Muon needs each
    matrix alone.

    Raises:
        ValueError: sizes that do not add up to the weight's outputs.
    """

    weight: Tensor
    splits: tuple[int, ...]
    head_dim: int = 0

    def __post_init__(self) -> None:
        if self.weight.ndim not in (2, 3, 4) or sum(self.splits) != self.weight.shape[0 if self.weight.ndim == 4 else -2]:
            raise ValueError(f"splits {self.splits} must add up to the outputs of a weight of shape {tuple(self.weight.shape)}")
        if self.head_dim and any(size % self.head_dim for size in self.splits):
            raise ValueError(f"splits {self.splits} must be multiples of head_dim {self.head_dim}")

    def sizes(self, *, per_head: bool) -> tuple[int, ...]:
        """Outputs of each matrix, or of each head of each."""
        if not (per_head and self.head_dim):
            return self.splits
        return (self.head_dim,) * (sum(self.splits) // self.head_dim)


def hidden_matrices(module: nn.Module) -> list[HiddenMatrix]:
    """The trainable hidden matrices of a module and its children, without convolutions."""
    linears = [child for child in module.modules() if isinstance(child, Linear) and child.weight.requires_grad]
    return [HiddenMatrix(linear.weight, linear.splits, linear.head_dim) for linear in linears]


def hidden_convolutions(module: nn.Module) -> list[HiddenMatrix]:
    """The trainable hidden convolutions of a module and its children."""
    found = [child for child in module.modules() if isinstance(child, HiddenConv2d) and child.weight.requires_grad]
    return [HiddenMatrix(child.weight, (child.out_channels,)) for child in found]


def split_matrices(x: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """Views [output, input] of the matrices of a weight, or of a tensor of its shape."""
    x = x.view(len(x), -1) if x.ndim == 4 else x
    return [m for split in torch.split(x, list(sizes), dim=-2) for m in (split if split.ndim == 3 else (split,))]


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): down(silu(gate(x)) * up(x)), gate and up in one projection."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, splits=(hidden, hidden))
        self.down = Linear(hidden, width, residual=True)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]"""
        return recompute_linear(self.down, recomputable(swiglu, recompute_linear(self.gate_up, x)))


class SplitEmbedding(nn.Embedding):
    """Embedding of an extended vocabulary: `weight` holds the pretrained ids, those below `old`, and `new` all further ids.

    As parameters of their own, the pretrained vectors can be frozen or learn at another rate while the new ones train: weight
    decay, moments, EMA and clipping never mix them.
    """

    def __init__(self, old: int, new: int, width: int) -> None:
        super().__init__(old, width)
        self.new = nn.Parameter(torch.empty(new, width))

    def forward(self, input: Tensor) -> Tensor:
        """Ids [...] -> [..., width]"""
        old = F.embedding(input.clamp_max(self.num_embeddings - 1), self.weight)
        new = F.embedding((input - self.num_embeddings).clamp_min(0), self.new)
        return torch.where((input < self.num_embeddings).unsqueeze(-1), old, new)


class SplitHead(Linear):
    """Logits: of `weight` first, then of `new`."""

    def __init__(self, width: int, old: int, new: int) -> None:
        super().__init__(width, old)
        self.new = nn.Parameter(torch.empty(new, width))

    def forward(self, input: Tensor) -> Tensor:
        """[..., width] -> logits [..., id]"""
        return torch.cat([super().forward(input), F.linear(input, self.new)], -1)


class PriorHead(Linear):
    """Logits, each plus a fixed number: what is known of an id's frequency before training. Not saved with the weights."""

    def __init__(self, width: int, prior: Float[Tensor, " id"]) -> None:
        super().__init__(width, len(prior))
        self.prior = prior  # no buffer, which `to_empty` would leave undefined: it is not among the weights

    def forward(self, input: Tensor) -> Tensor:
        """[..., width] -> logits [..., id]"""
        logits = super().forward(input)
        self.prior = self.prior.to(logits.device)
        return logits + self.prior.to(logits.dtype)


def whole_weight(module: nn.Embedding | Linear) -> Tensor:
    """The weight [id, width] of an embedding or a head, split or not."""
    return torch.cat([module.weight, module.new]) if isinstance(module, SplitEmbedding | SplitHead) else module.weight
