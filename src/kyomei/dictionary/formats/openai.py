"""OpenAI's sparse_autoencoder: one `.pt` file, a state_dict; read only."""

from __future__ import annotations

from pathlib import Path

from kyomei.dictionary.formats.files import read_torch, tensors_of
from kyomei.dictionary.formats.parts import Conversion, Parts
from kyomei.errors import DataError

NAME = "openai"


def tensors_file(path: Path) -> Path | None:
    """The file itself, if it is of this format; none: it is of another."""
    return path if path.suffix == ".pt" and path.is_file() else None


def read(path: Path) -> Conversion:
    """Read `pre_bias`, `encoder.weight`, `latent_bias`, `decoder.weight` and the activation: ReLU alone.

    Args:
        path: of the file.

    Raises:
        DataError: it is damaged or of another library, or its inputs are normalised row by row, as all TopK ones are there.

    Source: github.com/openai/sparse_autoencoder, model.py and paths.py.
    """
    held = read_torch(path)
    activation = held.get("activation", "ReLU")
    if activation != "ReLU":
        found = f"{activation}, for inputs that are layer-normed row by row, which no fixed weights can do"
        do = "take a ReLU one (v1, v4), or normalise rows yourself and save it as SAELens' topk without normalisation"
        raise DataError(f"inputs as the model gives them in {path}", found, do)
    encoder, bias, center = tensors_of(held, ("encoder.weight", "latent_bias", "pre_bias"), path)
    # A tied decoder is written as the encoder once more, not transposed.
    tied = "decoder.linear.weight" in held
    (decoder,) = tensors_of(held, ("decoder.linear.weight" if tied else "decoder.weight",), path)
    parts = Parts(encoder, bias, decoder if tied else decoder.mT, center)
    sae, folded = parts.finished(path, "relu", provenance={"format": NAME, "mechanism": "relu"})
    return Conversion(sae, NAME, "relu", folded)
