"""The quick face: nested lists of tensors in, a loss or a sample out. The same model, and the same code below it.

    integer tensor          text ids, [length]
    float tensor            an item of modality 0, [*size, channels] (or [channels, *size] where `channel_first_latent`)
    (index, tensor)         an item of one of several modalities
    (..., weight)           with a weight of its loss: a number; one for each token of a text, or each element of an item;
                            or False to leave it out altogether
    Text, Media             as they are

`parts.py` makes Documents of such lists and lists of Documents; `arguments.py` makes a configuration of the constructor's
words; `losses.py` and `samples.py` have the methods. What lies below knows nothing of this room.
"""
