"""The sections of a recipe, apart from the mechanism. Attribute docstrings are also the command line's help."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Frequency = float
"""A share of rows, strictly between 0 and 1."""


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _Brief(ModelMetaclass):
    """`help` and `dir` of a section show what is its own, not the two hundred names of pydantic."""

    def __dir__(cls) -> list[str]:
        ours = [vars(base) for base in cls.__mro__ if base.__module__.startswith("kyomei.")]
        return sorted({name for names in ours for name in names if not name.startswith(("_", "model_"))})


class Section(BaseModel, metaclass=_Brief):
    """A part of the recipe: immutable, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True)


class SourceRecipe(Section):
    """Where activations come from: text, a language model and a site in it."""

    model: str = "embedded"
    """Hugging Face model id, a folder or a .gguf file; "package:NAME" is the model that an installed Python package ships,
    "embedded" the small one in this package."""
    revision: str | None = None
    """Revision of a hub model."""
    random_weights_seed: int | None = Field(None, ge=0)
    """Draw the model's weights at random from this seed instead of reading them: a control, not a model."""
    devices: Literal["one", "all"] = "one"
    """On how many of the devices that a process sees the model is laid out: "all" for one that is larger than a GPU, as
    transformers and accelerate share its layers out."""
    sites: tuple[str, ...] = ()
    """Module paths to capture, PATH#3 the fourth call of a module that runs several times in a pass; or TransformerLens' names,
    such as blocks.3.hook_resid_pre; empty: the MLP of the middle layer."""
    side: Literal["output", "input"] = "output"
    """Whether a site's output or its input is captured."""
    text: str | dict[str, float] = "stdlib"
    """Where the text is: a folder, a file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet, else one document; also .gz, .bz2,
    .xz, .zst), an address such as s3://bucket/folder or hf://datasets/NAME/file.parquet, "stdlib" (the interpreter's own
    library), or "datasets:NAME:CONFIG:SPLIT@REVISION", streamed, of which the last three may be left out
    (datasets:NAME::validation has no CONFIG). A mixture is a mapping from such addresses to weights."""
    keep_text: bool = True
    """Whether a run stores the text of the documents it reads. If not, it keeps the ids and character offsets of tokens and
    the names of documents, and reports show ids. Whoever has the tokenizer can turn ids back into text."""
    text_field: str = "text"
    """Field of records that holds the text (or the chat messages); "a.b" is the field b of the record in field a."""
    group_field: str | None = None
    """Field of records whose equal values keep documents in one part, such as a conversation or an author; none: only equal
    texts stay together."""
    text_licence: str | None = None
    """Licence of the text, such as CC-BY-4.0; every artefact names it. None: "not stated"; the embedded text's is known."""
    model_licence: str | None = None
    """Licence of the language model; every artefact names it. None: "not stated"; the embedded model's is known."""
    skip_bad_records: bool = False
    """Count records that cannot be read, and go on, instead of stopping at the first."""
    force_bos: bool = False
    """Begin every window with BOS, or CLS, even where the model's own tokenizer puts none before a text."""
    num_tokens: int = Field(300_000, gt=0)
    """Tokens to harvest, all parts together."""
    streamed_tokens: int = Field(0, ge=0)
    """Tokens, all replicas together, that training steps read straight from the model, storing nothing; stored rows then
    serve resonance and the last fit of the decoders. 0: steps read stored rows."""
    spread: int = Field(8, ge=1)
    """Windows are taken evenly from this many times as many tokens, where there are so many: more documents are seen.
    Reading stops after that."""
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
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    """How activations are stored; int8 with a scale for each row."""

    store: str | None = None
    """Where rows and tokens are written, if not into the run's folder: an fsspec address of this run alone, such as
    s3://bucket/folder. Copies of what is read take up to 20 GB here (KYOMEI_CACHE_GB, KYOMEI_CACHE)."""

    @field_validator("store")
    @classmethod
    def _address(cls, store: str | None) -> str | None:
        if store is not None and not all(store.partition("://")):
            raise ValueError(f"an address such as s3://bucket/folder, found {store!r}; leave it out for the run's folder")
        return None if store is None else store.rstrip("/")

    @field_validator("text")
    @classmethod
    def _weights(cls, text: str | dict[str, float]) -> str | dict[str, float]:
        if isinstance(text, dict) and not (text and all(0 < weight < math.inf for weight in text.values())):
            raise ValueError("a mixture has addresses with positive weights")
        return text

    @property
    def address(self) -> str:
        """Where the text is, in one line."""
        return self.text if isinstance(self.text, str) else ", ".join(f"{w:g} × {a}" for a, w in self.text.items())


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
    `dictionary.width`, or without one all there are. Sums of others do not count."""
    steps: int = Field(15, gt=0)
    """Power-like iterations of each start."""
    batch_rows: int = Field(16_384, gt=0)
    """Rows in one iteration; fewer at high frequencies, more at the lowest."""
    merge_cosine: float = Field(0.85, gt=0, lt=1)
    """Neurons above this cosine, in whitened space, are one direction."""
    min_stability: float = Field(0.85, ge=-1, le=1)
    """Keep a direction when two halves of the rows, each after a push, bring it back to within this cosine; −1 keeps all."""
    leave_out_sums: bool = True
    """Leave out directions that are positive sums of a few others: combinations of features, and no features."""
    joint: bool = False
    """Refine directions together, and add those that are missing, where the rows are sums of a few of them."""


class DictionaryRecipe(Section):
    """Shape of the sparse autoencoder."""

    width: int | None = Field(None, gt=0)
    """Number of latents; none: from the estimated number of features, and from a random start four times the dimension."""
    l0: float | None = Field(None, gt=0)
    """Active latents per row to aim at; none: width / 64 or √(width / 2), the smaller, or what suits gba: less where resonance
    explains the rows, and from a random start what its frequencies sum to."""
    tied: bool | None = None
    """Whether encoder and decoder share their rows; none: tied for gba and ba from a random start, untied otherwise."""
    activation: Literal["jumprelu", "relu"] = "jumprelu"
    """Output of an active threshold latent: its score (jumprelu) or its score above the threshold (relu)."""
    unit_rows: bool = False
    """Divide every row by its norm before anything else, as the paper's algorithm does ("sample and normalise"). Codes are then
    of rows of norm 1; reconstructions, and FVU with them, are in the rows' own scale."""


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


class GoalsRecipe(Section):
    """Labelled text whose labels certified features are to tell: what `kyomei goals` reads."""

    labels: str | None = None
    """A file (.jsonl, .csv, .tsv, .parquet) of records with a text and labels or scores; none: there are no goals."""
    names: tuple[str, ...] = ()
    """Columns that are goals, or names in the column "goal"; empty: all names there, else the columns label and score."""
    text_field: str = "text"
    """Column of the text, or of chat messages."""
    group_field: str = "group"
    """Column whose equal values keep documents together; where there is none, only equal texts stay together."""


Share = float
"""Between 0 and 1."""


class VerdictRecipe(Section):
    """What go and no-go ask of the evidence. Each bound is compared with an end of an interval, so that a small pilot is not
    taken for a bad one. The values were chosen before any pilot was judged by them (docs/guide/pilot.md)."""

    certified_go: Share = Field(0.3, ge=0, le=1)
    """Go asks that at least this share of the latents is certified: nearly one in three that a reader opens. Lower end."""
    certified_no_go: Share = Field(0.05, ge=0, le=1)
    """No-go where fewer are certified: nineteen latents in twenty would be others in the next training. Upper end."""
    chance_go: Share = Field(0.2, ge=0, le=1)
    """Go asks that rows without features give at most this share of the certified latents. Upper end."""
    chance_no_go: Share = Field(0.5, ge=0, le=1)
    """No-go where they give more: every other certificate is chance. Lower end."""
    beyond_go: Share = Field(0.1, ge=0, le=1)
    """Go asks that the share of latents that are certified and from context exceeds that of the control by this. Lower end."""
    beyond_no_go: Share = Field(0.02, ge=0, le=1)
    """No-go where it does not exceed it by more than this: a model that learnt nothing has as many. Lower end."""
    recovery_go: Share = Field(0.8, ge=0, le=1)
    """Go asks that the premises let at least this share of the features be found. Lower end of the check's own interval."""
    recovery_no_go: Share = Field(0.5, ge=0, le=1)
    """No-go where fewer are expected and no control says that the rows hold learnt features. Upper end."""
    baseline_go: Share = Field(0.1, ge=0, le=1)
    """Go asks that no baseline at the same sparsity has more certified latents by this share of the width. Lower end."""
    goal_auc_go: Share = Field(0.65, ge=0, le=1)
    """Go asks that every goal that is a label is told with at least this AUC on documents that chose nothing. Lower end."""
    goal_r2_go: Share = Field(0.1, ge=0, le=1)
    """The same of goals that are numbers: R². Where no goal is told better than chance (0.5, and 0), it is a no-go."""
