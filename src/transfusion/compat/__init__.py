"""The call forms of transfusion-pytorch: nested lists of tensors in, a loss or a sample out. Nothing imports this room.

    from transfusion.compat import Transfusion

An entry of a list is:

    integer tensor          text ids, [length]
    float tensor            an item of modality 0, [*size, channels] ([channels, *size] with `channel_first_latent`)
    (index, tensor)         an item of one of several modalities
    (..., weight)           with a loss weight: a number; one for each token of a text or element of an item; False leaves the
                            entry out
    Text, Media             segments

`constructor.py` turns the constructor's arguments into a config; `lists.py` turns lists into Documents and back, `prompts.py`
those with control tokens; `training.py` and `outputs.py` hold what the model's call needs, `generation.py` and `sampling.py`
what it generates with; `names.py` has the names of its parts.
"""

from transfusion.compat.ema import SelfMaskedRepTraining as SelfMaskedRepTraining
from transfusion.compat.lists import Item as Item
from transfusion.compat.lists import print_modality_sample as print_modality_sample
from transfusion.compat.model import Transfusion as Transfusion
from transfusion.compat.training import Breakdown as Breakdown
from transfusion.compat.training import create_dataloader as create_dataloader
from transfusion.compat.training import random_modality_length_to_time_fn as random_modality_length_to_time_fn
