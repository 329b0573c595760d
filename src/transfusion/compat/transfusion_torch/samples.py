"""Samples as Transfusion.torch writes them, lists of text and noised images beside lists of their kinds, checked."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from transfusion.compat.lists import TEXT_DTYPES

KINDS = ("text", "image")
Sample: TypeAlias = list[Tensor | tuple[Tensor, Tensor]]
"""A checked sample: ids Int[length], or patches Float[patches, elements] with their step, a tensor of one number."""


def check_kinds(where: str, entries: Any, kinds: Any) -> None:
    """Raises ValueError unless both are lists, as long, and the kinds "text" or "image"."""
    if not isinstance(entries, list | tuple) or not isinstance(kinds, list | tuple):
        raise ValueError(
            f"{where}: a list of text and images and a list of their kinds are wanted, not {what(entries)}, {kinds!r}"
        )
    if len(entries) != len(kinds):
        raise ValueError(f"{where}: {len(entries)} entries and {len(kinds)} kinds {list(kinds)}: give one kind for each")
    for index, kind in enumerate(kinds):
        if kind not in KINDS:
            raise ValueError(f'{where}: kind {index} is {kind!r}, not "text" or "image"')


def read_samples(samples: Any, kinds: Any, width: int, maxlen: int) -> list[Sample]:
    """Samples and a list of kinds for each. Raises ValueError: see `read_sample`, and for another number of lists."""
    if not isinstance(samples, list | tuple) or len(samples) != len(kinds):
        count = len(samples) if isinstance(samples, list | tuple) else what(samples)
        raise ValueError(f"modality_tokens is a list with one list a sample, {len(kinds)} as there are kinds, not {count}")
    return [read_sample(f"sample {i}", *pair, width, maxlen) for i, pair in enumerate(zip(samples, kinds, strict=True))]


def read_sample(where: str, entries: Any, kinds: Any, width: int, maxlen: int) -> Sample:
    """A sample, its forms checked; `check_values` looks at its numbers.

    Args:
        where: what messages call it.
        width: elements of a patch.
        maxlen: most ids and patches.

    Raises:
        ValueError: kinds that do not fit, an entry of another form, an empty sample, or one that is too long.
    """
    check_kinds(where, entries, kinds)
    if not entries:
        raise ValueError(f"{where} is empty: leave it out")
    sample: Sample = []
    for index, (value, kind) in enumerate(zip(entries, kinds, strict=True)):
        try:
            sample.append(_text(value) if kind == "text" else _image(value, width))
        except ValueError as error:
            raise ValueError(f"{where}, entry {index} ({kind}): {error}") from error
    length = sum(len(entry) if isinstance(entry, Tensor) else len(entry[0]) for entry in sample)
    if length > maxlen:
        raise ValueError(f"{where} has {length} ids and patches, config.maxlen is {maxlen}: shorten it or raise maxlen")
    return sample


def unstack(entries: Any, kinds: Sequence[str]) -> list[list[Any]]:
    """The samples of a batch of one form: text [sample, length], images ([sample, patches, elements], [sample]). Raises
    ValueError: kinds that do not fit, or entries of another form."""
    check_kinds("the batch", entries, kinds)
    columns: list[list[Any]] = []
    for index, (value, kind) in enumerate(zip(entries, kinds, strict=True)):
        is_pair = kind == "image" and isinstance(value, tuple | list) and len(value) == 2
        parts = tuple(value) if is_pair else (value,)
        if any(not isinstance(part, Tensor) or not part.ndim for part in parts) or len({len(part) for part in parts}) > 1:
            raise ValueError(
                f"entry {index} ({kind}): one list of kinds is for a batch, text [sample, length] and images (patches [sample, "
                f"patches, elements], steps [sample]), not {what(value)}; else give a list of kinds for each sample"
            )
        columns.append(list(zip(*parts, strict=True)) if is_pair else list(value))
    counts = [len(column) for column in columns]
    if len(set(counts)) > 1:
        raise ValueError(f"the entries of a batch have equally many samples, not {counts}")
    return [list(row) for row in zip(*columns, strict=True)]


def check_values(samples: Sequence[Sample], num_ids: int, num_timesteps: int, device: torch.device) -> None:
    """Raises ValueError naming the first entry with an id, a patch or a step out of range. One wait for the device."""
    places, valid = [], []
    for i, sample in enumerate(samples):
        for j, entry in enumerate(sample):
            if isinstance(entry, Tensor):
                good = ((entry >= 0) & (entry < num_ids)).all()
                fault = f"ids run from 0 to lm_output_units - 1 = {num_ids - 1}"
            else:
                patches, step = entry
                good = patches.isfinite().all() & ((step >= 0) & (step <= num_timesteps)).to(patches.device)
                fault = f"patches are finite numbers, and the step is from 0 (clean) to num_timesteps = {num_timesteps} (noise)"
            places.append(f"sample {i}, entry {j}: {fault}")
            valid.append(good.to(device))
    bad = [place for place, good in zip(places, torch.stack(valid).tolist(), strict=True) if not good]
    if bad:
        raise ValueError(bad[0])


def what(value: Any) -> str:
    """A value in a message."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value)[:40]


def _text(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype not in TEXT_DTYPES or value.ndim != 1:
        raise ValueError(f"text is ids, int64 or int32 of shape [length], not {what(value)}")
    return value


def _image(value: Any, width: int) -> tuple[Tensor, Tensor]:
    if not isinstance(value, tuple | list) or len(value) != 2 or not isinstance(value[0], Tensor):
        raise ValueError(f"an image is a pair (noised patches, step), not {what(value)}")
    patches, step = value[0], value[1]
    if not patches.is_floating_point() or patches.ndim != 2 or patches.shape[1] != width or not len(patches):
        raise ValueError(f"patches are floating point [patches, {width}], as PatchOps.patchify gives them, not {what(patches)}")
    if not isinstance(step, Tensor | int | float) or isinstance(step, bool):
        raise ValueError(f"an image has a step, a tensor of one number, not {what(step)}")
    step = torch.as_tensor(step)
    if step.numel() != 1 or step.dtype == torch.bool or step.is_complex():
        raise ValueError(f"an image has one step, not {what(step)}")
    return patches, step.reshape(())
