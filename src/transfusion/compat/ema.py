"""The averaged model under ema_pytorch's names, and Self-Flow training with transfusion-pytorch's class of its own."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from transfusion.compat.checks import check_number
from transfusion.compat.names import Named
from transfusion.model.auxiliary import RepresentationHead
from transfusion.nn.ema import Averaged


class EMA(Averaged):
    """`Averaged`, whose two models ema_pytorch calls `ema_model` and `online_model`."""

    @property
    def ema_model(self) -> nn.Module:
        """The model with averaged weights."""
        return self.model

    @property
    def online_model(self) -> nn.Module:
        """The model that is averaged."""
        return self._followed[0]


class SelfMaskedRepTraining(nn.Module):
    """A model that is trained with the representation loss (`AuxiliaryLossConfig.representation`, after Self-Flow, arXiv
    2603.06507) against its own average. It turns that loss on in the model that it is given.

        loss, (student_loss, representation_loss) = wrapper(lists)        loss = student_loss + weight * representation_loss

    Args:
        net: the model.
        ema_beta: decay of the teacher.
        rep_loss_weight: weight of the representation loss.
        student_layer, teacher_layer: layers, -1 the last; the student's no later than the teacher's.
        use_asymmetric_dropout: whether the student's input is masked.
        student_dropout_rate: share of the slots that are masked for the student (transfusion-pytorch: dropout in its layers).
        teacher_dropout_rate: the teacher's input is never masked: 0.

    Raises:
        ValueError: a number out of its range, or a teacher with dropout.
    """

    def __init__(
        self,
        net: Named,
        ema_beta: float = 0.999,
        rep_loss_weight: float = 0.1,
        student_layer: int = -3,
        teacher_layer: int = -1,
        use_asymmetric_dropout: bool = True,
        student_dropout_rate: float = 0.1,
        teacher_dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if use_asymmetric_dropout and teacher_dropout_rate != 0:
            raise ValueError("teacher_dropout_rate: the teacher sees every slot, so it is 0")
        check_number("rep_loss_weight", rep_loss_weight)
        depth = net.config.model.transformer.depth
        config = replace(
            net.config.model.auxiliary,
            representation=rep_loss_weight,
            student_depth=_share("student_layer", student_layer, depth),
            teacher_depth=_share("teacher_layer", teacher_layer, depth),
            mask_ratio=student_dropout_rate if use_asymmetric_dropout else 0.0,
        )
        network = net.network
        network.config = replace(network.config, auxiliary=config)
        net.config = replace(net.config, model=network.config)
        if rep_loss_weight > 0 and network.representation is None:
            network.representation = RepresentationHead(net.dim).to(network.embed.weight)
        self.student = net
        self.teacher = EMA(net, ema_beta)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The student's parameters, to train."""
        return self.student.parameters(recurse)

    def update_teacher(self) -> None:
        """Average the weights; call it after each optimizer step."""
        self.teacher.update()

    def forward(self, *args: Any, **options: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The loss, and its two parts: of the model, and of the representation before its weight. Arguments as the model's."""
        loss, terms = self.student(*args, teacher=self.teacher, return_breakdown=True, **options)
        weight = self.student.config.model.auxiliary.representation * self.student.compat.text_loss_weight
        return loss, (loss - weight * terms.representation, terms.representation)


def _share(name: str, layer: int, depth: int) -> float:
    """A layer counted from the last, -1, as a share of the depth; one before the first is the first."""
    check_number(name, layer, -1000, -1, whole=True)
    return max(1, depth + 1 + layer) / depth
