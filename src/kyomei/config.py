"""The recipe: one strict description of a run. Attribute docstrings are also the command line's help."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kyomei.errors import RecipeError

Frequency = float
"""A share of rows, strictly between 0 and 1."""


class Section(BaseModel):
    """A part of the recipe: immutable, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True)


class SourceRecipe(Section):
    """Where activations come from: text, a language model and a site in it."""

    model: str = "embedded"
    """Hugging Face model id or folder; "embedded" is the small model in the package."""
    revision: str | None = None
    """Revision of a hub model."""
    random_weights_seed: int | None = Field(None, ge=0)
    """Draw the model's weights at random from this seed instead of reading them: a control, not a model."""
    sites: tuple[str, ...] = ()
    """Module paths to capture; empty: the MLP of the middle layer."""
    side: Literal["output", "input"] = "output"
    """Whether a site's output or its input is captured."""
    text: str = "stdlib"
    """A folder, a .txt, .jsonl or .parquet file, "stdlib", or "datasets:NAME"."""
    text_field: str = "text"
    """Field of .jsonl, .parquet and datasets records that holds the text (or the chat messages)."""
    num_tokens: int = Field(300_000, gt=0)
    """Tokens to harvest, all parts together."""
    streamed_tokens: int = Field(0, ge=0)
    """Tokens, all replicas together, that training steps read straight from the model, storing nothing; stored rows then
    serve resonance and the last fit of the decoders. 0: steps read stored rows."""
    spread: int = Field(8, ge=1)
    """Windows are taken evenly from this many times as many tokens, where there are so many: more documents are seen."""
    context: int = Field(256, gt=1)
    """Tokens in a window, a leading BOS included."""
    windows_per_batch: int = Field(16, gt=0)
    """Windows in one forward pass."""
    windows_per_shard: int = Field(256, gt=0)
    """Windows whose rows make one activation shard, or are shuffled together where they are streamed."""
    replicas: int = Field(3, ge=2)
    """Parts of the documents that find and train, one each; one more part is kept for evidence."""
    evidence_share: float = Field(0.25, gt=0, lt=1)
    """Share of tokens in the part that no replica sees."""
    drop_special: bool = True
    """Drop rows of special tokens."""
    norm_bound: float = Field(10.0, gt=1)
    """Drop rows whose norm exceeds this many times the median norm (massive activations)."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """How activations are stored."""


class ResonanceRecipe(Section):
    """How directions are found by resonance (findings: the theory's decoupled algorithm on whitened data)."""

    frequencies: tuple[Frequency, ...] = ()
    """Target activation frequencies; empty: chosen for the number of rows."""
    neurons: int = Field(2048, gt=0)
    """Starts of a round at each frequency."""
    rounds: int = Field(4, ge=1)
    """Rounds of starts at each frequency at most; they end when little is left to find or what is found is not stable."""
    enough: int | None = Field(None, gt=0)
    """Search no further round or frequency, in their order, once so many stable directions are found; none: as many as
    `dictionary.width`, or without one all there are.
    A `min_stability` of −1 calls none stable, so that a null is searched whole."""
    steps: int = Field(15, gt=0)
    """Power-like iterations of each start."""
    batch_rows: int = Field(16_384, gt=0)
    """Rows in one iteration."""
    merge_cosine: float = Field(0.85, gt=0, lt=1)
    """Neurons above this cosine, in whitened space, are one direction."""
    min_stability: float = Field(0.85, ge=-1, le=1)
    """Keep a direction when two halves of the rows, each after a push, bring it back to within this cosine; −1 keeps all."""
    joint: bool = False
    """Refine directions together, and add those that are missing, where the rows are sums of a few of them."""


class DictionaryRecipe(Section):
    """Shape of the sparse autoencoder."""

    width: int | None = Field(None, gt=0)
    """Number of latents; none: from the estimated number of features."""
    l0: float | None = Field(None, gt=0)
    """Active latents per row to aim at (gba from resonance); none: width / 64 or √(width / 2), the smaller, or less where
    resonance explains the rows."""
    tied: bool | None = None
    """Whether encoder and decoder share their rows; none: tied for gba and ba from a random start, untied otherwise."""
    activation: Literal["jumprelu", "relu"] = "jumprelu"
    """Output of an active threshold latent: its score (jumprelu) or its score above the threshold (relu)."""


class MechanismRecipe(Section):
    """What makes the code sparse."""

    name: Literal["gba", "ba", "topk", "batchtopk", "matryoshka", "l1", "jumprelu", "gated"] = "gba"
    """gba: group bias adaptation; ba: the same with one group; the others are the usual baselines."""
    start: Literal["resonance", "random"] | None = None
    """Start from resonant directions (gba, ba, topk, batchtopk), or at random; none: resonance for gba and ba only."""
    groups: int = Field(10, ge=1)
    """Number of neuron groups K (random start)."""
    highest_frequency: Frequency = Field(0.1, gt=0, lt=1)
    """Target activation frequency of the first group (HTF, random start)."""
    lowest_frequency: Frequency = Field(1e-3, gt=0, lt=1)
    """Target activation frequency of the last group (LTF, random start)."""
    gamma_down: float = Field(0.01, gt=0)
    """Step by which an over-active neuron's bias falls, times its largest pre-activation."""
    gamma_up: float = Field(0.01, gt=0)
    """Step by which a dead neuron's bias rises, times its group's mean largest pre-activation."""
    epsilon: float = Field(1e-6, ge=0, lt=1)
    """Share of rows below which a neuron counts as dead."""
    adapt_every: int = Field(10, gt=0)
    """Training steps between bias adaptations."""
    hold_resonant: bool = True
    """Keep the encoders that resonance found and fit their decoders by least squares; free neurons are trained (gba, ba)."""
    warm_share: float = Field(0.6, ge=0, le=1)
    """gba: share of the steps in which the whole width is trained as TopK, where resonance does not explain the rows."""
    frequent: Frequency = Field(0.003, gt=0, lt=1)
    """gba: latents that are active this often after that stay free; resonant directions take the place of rarer ones."""
    resonant_share: float = Field(0.8, ge=0, le=1)
    """Share of the width that resonant directions take at most; the rest are free neurons."""
    anchor: float = Field(0.97, ge=-1, le=1)
    """Least cosine, in whitened space, of a resonant latent's decoder to its direction; −1 lets it go anywhere."""
    k: int = Field(32, gt=0)
    """topk, batchtopk, matryoshka: active latents per row."""
    auxk: float = Field(1 / 32, ge=0)
    """topk, batchtopk, matryoshka: weight of the loss that trains dead latents on what the others leave; 0: none."""
    dead_after: int = Field(100_000, gt=0)
    """topk, batchtopk, matryoshka: rows of silence after which a latent is dead."""
    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """matryoshka: ends of the nested dictionaries, as shares of the width."""
    detectors: bool = False
    """topk, batchtopk, matryoshka from a random start: replace encoders, at the end, by those that best detect the latents of a
    careful decoding."""
    l1: float = Field(0.01, ge=0)
    """l1, gated: weight of the penalty on normalised input."""
    l0: float = Field(1e-3, ge=0)
    """jumprelu: weight of the penalty on the number of active latents, on normalised input."""
    bandwidth: float = Field(1e-3, gt=0)
    """jumprelu: width of the straight-through estimate of the threshold's gradient."""

    @property
    def from_resonance(self) -> bool:
        """Whether latents start from resonant directions."""
        usual = "resonance" if self.name in ("gba", "ba") else "random"
        return (self.start or usual) == "resonance"

    @property
    def label(self) -> str:
        """What a run calls this mechanism; a baseline of the same name starts at random and must not share its folders."""
        return f"{self.name}-from-resonance" if self.name in ("topk", "batchtopk") and self.from_resonance else self.name

    @model_validator(mode="after")
    def _ordered(self) -> MechanismRecipe:
        if self.name not in ("gba", "ba", "topk", "batchtopk") and self.start == "resonance":
            raise ValueError(f"{self.name} starts at random")
        if self.detectors and (self.name not in ("topk", "batchtopk", "matryoshka") or self.from_resonance):
            raise ValueError("detectors are for topk, batchtopk and matryoshka from a random start")
        if self.lowest_frequency > self.highest_frequency:
            raise ValueError("lowest_frequency must not exceed highest_frequency")
        return self


class TrainRecipe(Section):
    """How the dictionary is trained."""

    steps: int = Field(1000, ge=0)
    """Optimiser steps."""
    batch_rows: int = Field(1024, gt=0)
    """Rows in one step."""
    lr: float = Field(3e-3, gt=0)
    """Peak learning rate."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Optimiser of weights; biases of gba follow their adaptation instead."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled decay."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Precision of the optimiser's moments; bfloat16 halves their memory."""
    warmup_steps: int = Field(50, ge=0)
    """Steps of linear warm-up."""
    decay_share: float = Field(0.2, ge=0, le=1)
    """Share of the steps, at the end, in which the learning rate falls linearly to zero."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the whole gradient."""
    freeze: Literal["none", "encoder", "decoder", "soft_decoder"] = "none"
    """Controls that keep random rows: an untrained encoder or decoder, or decoder rows kept at cosine 0.8 to their start."""
    checkpoint_every: int = Field(200, gt=0)
    """Steps between checkpoints."""
    log_every: int = Field(50, gt=0)
    """Steps between events."""


class Recipe(Section):
    """One strict description of a run; without arguments it suits any data.

    Raises:
        RecipeError: from `Recipe.parse` and `Recipe.read`, naming the key, what was expected and the nearest right key.
    """

    seed: int = Field(0, ge=0)
    """Seed from which every random draw derives."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where tensors live."""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """Precision of training."""
    source: SourceRecipe = SourceRecipe()
    resonance: ResonanceRecipe = ResonanceRecipe()
    dictionary: DictionaryRecipe = DictionaryRecipe()
    mechanism: MechanismRecipe = MechanismRecipe()
    train: TrainRecipe = TrainRecipe()

    @model_validator(mode="after")
    def _frequencies_and_groups(self) -> Recipe:
        for p in self.resonance.frequencies:
            if not 0 < p < 1:
                raise ValueError(f"resonance.frequencies must lie in (0, 1), found {p}")
        width, mechanism = self.dictionary.width, self.mechanism
        if width is not None and mechanism.name == "gba" and not mechanism.from_resonance and width < mechanism.groups:
            raise ValueError(f"dictionary.width ({width}) must be at least mechanism.groups ({mechanism.groups})")
        return self

    @property
    def search(self) -> ResonanceRecipe:
        """How directions are found for this recipe's dictionary: no more than it has room for, unless asked."""
        return self.resonance.model_copy(update={"enough": self.resonance.enough or self.dictionary.width})

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Recipe:
        """A recipe from nested plain values."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _explain(error) from error

    @classmethod
    def read(cls, path: Path | str) -> Recipe:
        """A recipe from a YAML file."""
        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RecipeError("a recipe file", f"nothing at {path}", "check the path") from error
        except yaml.YAMLError as error:
            raise RecipeError("YAML", f"{path}: {error}", "correct the file's syntax") from error
        if not isinstance(values, dict | None):
            raise RecipeError("a mapping of sections", f"{type(values).__name__} in {path}", "write `section: {key: value}`")
        return cls.parse(values or {})

    def write(self, path: Path | str) -> None:
        """Write the recipe with every default filled in."""
        Path(path).write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False), encoding="utf-8")

    def with_values(self, dotted: dict[str, Any]) -> Recipe:
        """A copy in which dotted keys such as "train.steps" are replaced, validated anew."""
        values = self.model_dump(mode="json")
        for key, value in dotted.items():
            *sections, last = key.split(".")
            target = values
            for section in sections:
                if not isinstance(target.get(section), dict):
                    raise _unknown(key, _dotted_keys(Recipe))
                target = target[section]
            target[last] = value
        return Recipe.parse(values)


def _dotted_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in section.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += _dotted_keys(inner, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _unknown(key: str, known: list[str]) -> RecipeError:
    last = key.rsplit(".", 1)[-1]
    by_last = {name.rsplit(".", 1)[-1]: name for name in known}
    near = difflib.get_close_matches(key, known, n=1) or [
        by_last[match] for match in difflib.get_close_matches(last, by_last, n=1, cutoff=0.5)
    ]
    return RecipeError("a key of the recipe", f"unknown key '{key}'", f"did you mean '{near[0]}'" if near else "see docs")


def _explain(error: ValidationError) -> RecipeError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown(key, _dotted_keys(Recipe))
    message = first["msg"].removeprefix("Value error, ")
    found = f"{first['input']!r}" if key else "a contradiction"
    return RecipeError(f"'{key}': {message}" if key else message, found, f"correct {key or 'the recipe'}")
