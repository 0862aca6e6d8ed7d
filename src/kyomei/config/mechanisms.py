"""What makes the code sparse: one section of settings for each mechanism, chosen by its name.

A new mechanism needs its section here, its class in `kyomei.dictionary.mechanisms` and its test; nothing else asks for names.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple, get_args

from pydantic import Field, model_validator

from kyomei.config.sections import Frequency, Section

DEFAULT = "gba"
"""The mechanism of a recipe that names none."""


class Placing(NamedTuple):
    """What becomes of resonant directions in a dictionary that starts from them.

    Attributes:
        share: of the width, that they take at most.
        anchor: least cosine, in whitened space, of a decoder to its direction; −1: none is kept.
        hold: whether their encoders are kept.
        frequent: frequency above which latents that were trained first stay, in place of directions.
        first_share: share of the steps in which TopK is trained first, from wider than asked, where resonance leaves much.
        widest: times the width with which that part begins; none: as suits the rows' dimension.
        groups: parts of the spectrum of the directions' frequencies, each of which has one target.
    """

    share: float = 1.0
    anchor: float = -1.0
    hold: bool = False
    frequent: float = 1.0
    first_share: float = 0.0
    widest: float | None = 1.0
    groups: int = 10


class MechanismSettings(Section):
    """What every mechanism has."""

    title: ClassVar[str]
    """As tables and figures show it."""
    starts: ClassVar[tuple[str, ...]] = ("random",)
    """Where training can start; the first is usual."""
    ties_random: ClassVar[bool] = False
    """Whether encoder and decoder usually share their rows where training starts at random."""

    name: str = "gba"
    """What makes the code sparse: gba, ba, topk, batchtopk, matryoshka, l1, jumprelu or gated."""
    start: Literal["resonance", "random"] | None = None
    """Start from resonant directions (gba, ba, topk, batchtopk) or at random; none: resonance for gba and ba, else random."""

    @property
    def from_resonance(self) -> bool:
        """Whether latents start from resonant directions."""
        return (self.start or self.starts[0]) == "resonance"

    @property
    def label(self) -> str:
        """What a run calls this mechanism: its name, and its start where that is not the usual one."""
        return f"{self.name}-from-resonance" if self.from_resonance and self.starts[0] != "resonance" else self.name

    @property
    def full_title(self) -> str:
        """The title, and the start where that is not the usual one."""
        return f"{self.title} from resonance" if self.label != self.name else self.title

    @property
    def placing(self) -> Placing:
        """What becomes of resonant directions: without a word from the mechanism, nothing is kept."""
        return Placing()

    @property
    def detects(self) -> bool:
        """Whether encoders are replaced at the end by detectors."""
        return False

    def check_width(self, width: int) -> None:
        """Raise ValueError if a dictionary is too narrow."""

    @model_validator(mode="after")
    def _startable(self) -> MechanismSettings:
        if self.start is not None and self.start not in self.starts:
            raise ValueError(f"{self.name} starts at {' or from '.join(self.starts)}")
        return self


class AdaptingSettings(MechanismSettings):
    """What group bias adaptation and its form with one group have in common."""

    starts: ClassVar[tuple[str, ...]] = ("resonance", "random")
    ties_random: ClassVar[bool] = True

    gamma_down: float = Field(0.01, gt=0)
    """Step by which an over-active neuron's bias falls, times its largest pre-activation."""
    gamma_up: float = Field(0.01, gt=0)
    """Step by which a dead neuron's bias rises, times its group's mean largest pre-activation."""
    epsilon: float = Field(1e-6, ge=0, lt=1)
    """Share of rows below which a neuron counts as dead."""
    adapt_every: int = Field(10, gt=0)
    """Training steps between bias adaptations."""
    hold_resonant: bool = True
    """Keep the encoders that resonance found and fit their decoders by least squares; free neurons are trained."""
    resonant_share: float = Field(0.8, ge=0, le=1)
    """Share of the width that resonant directions take at most where no frequent ones were learnt first; the rest are free."""
    anchor: float = Field(0.97, ge=-1, le=1)
    """Least cosine, in whitened space, of a resonant latent's decoder to its direction; −1 lets it go anywhere."""

    @property
    def placing(self) -> Placing:
        return Placing(self.resonant_share, self.anchor, self.hold_resonant)


class GBASettings(AdaptingSettings):
    """Group bias adaptation."""

    title: ClassVar[str] = "GBA"

    name: Literal["gba"] = "gba"
    groups: int = Field(10, ge=1)
    """Number of neuron groups K."""
    highest_frequency: Frequency = Field(0.1, gt=0, lt=1)
    """Target activation frequency of the first group (HTF, random start)."""
    lowest_frequency: Frequency = Field(1e-3, gt=0, lt=1)
    """Target activation frequency of the last group (LTF, random start)."""
    warm_share: float = Field(0.6, ge=0, le=1)
    """Share of the steps in which TopK is trained, from wider than asked, where resonance does not explain the rows."""
    widest: float | None = Field(None, ge=1)
    """Times the width with which these steps begin; part by part the latents that reconstruction misses least are left out.
    None: 4, or fewer where that would be more than 12 latents a dimension."""
    frequent: Frequency = Field(0.003, gt=0, lt=1)
    """Latents that are active this often after that stay free; resonant directions take the place of rarer ones."""

    @property
    def placing(self) -> Placing:
        first_share = self.warm_share if self.hold_resonant else 0.0
        return super().placing._replace(frequent=self.frequent, first_share=first_share, widest=self.widest, groups=self.groups)

    def check_width(self, width: int) -> None:
        if not self.from_resonance and width < self.groups:
            raise ValueError(f"dictionary.width ({width}) must be at least mechanism.groups ({self.groups})")

    @model_validator(mode="after")
    def _ordered(self) -> GBASettings:
        if self.lowest_frequency > self.highest_frequency:
            raise ValueError("lowest_frequency must not exceed highest_frequency")
        return self


class BASettings(AdaptingSettings):
    """Bias adaptation with one group."""

    title: ClassVar[str] = "BA"

    name: Literal["ba"] = "ba"
    frequency: Frequency | None = Field(None, gt=0, lt=1)
    """Target activation frequency of every neuron; none: `dictionary.l0` / `dictionary.width`, or from resonance."""


class SelectionSettings(MechanismSettings):
    """What codes of the largest scores have in common."""

    k: int | None = Field(None, gt=0)
    """Active latents per row; none: `dictionary.l0`."""
    auxk: float = Field(1 / 32, ge=0)
    """Weight of the loss that trains dead latents on what the others leave; 0: none."""
    dead_after: int = Field(100_000, gt=0)
    """Rows of silence after which a latent is dead."""
    detectors: bool = False
    """From a random start: replace encoders, at the end, by those that best detect the latents of a careful decoding."""

    @property
    def detects(self) -> bool:
        return self.detectors

    @model_validator(mode="after")
    def _detectable(self) -> SelectionSettings:
        if self.detectors and self.from_resonance:
            raise ValueError("detectors are for a random start")
        return self


class TopKSettings(SelectionSettings):
    """The k largest scores of each row."""

    title: ClassVar[str] = "TopK"
    starts: ClassVar[tuple[str, ...]] = ("random", "resonance")

    name: Literal["topk"] = "topk"


class BatchTopKSettings(SelectionSettings):
    """The k × rows largest scores of a batch."""

    title: ClassVar[str] = "BatchTopK"
    starts: ClassVar[tuple[str, ...]] = ("random", "resonance")

    name: Literal["batchtopk"] = "batchtopk"


class MatryoshkaSettings(SelectionSettings):
    """BatchTopK over nested dictionaries."""

    title: ClassVar[str] = "Matryoshka"

    name: Literal["matryoshka"] = "matryoshka"
    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """Ends of the nested dictionaries, as shares of the width."""


class L1Settings(MechanismSettings):
    """A penalty on the sum of values."""

    title: ClassVar[str] = "ℓ1"

    name: Literal["l1"] = "l1"
    penalty: float | None = Field(None, ge=0)
    """Weight of the penalty on the sum of values, on normalised input; none: steered to `dictionary.l0`."""


class JumpReLUSettings(MechanismSettings):
    """A penalty on the number of active latents, with trained thresholds."""

    title: ClassVar[str] = "JumpReLU"

    name: Literal["jumprelu"] = "jumprelu"
    penalty: float | None = Field(None, ge=0)
    """Weight of the penalty on the number of active latents, on normalised input; none: steered to `dictionary.l0`."""
    bandwidth: float = Field(1e-3, gt=0)
    """Width of the straight-through estimate of the threshold's gradient."""


class GatedSettings(MechanismSettings):
    """A penalty on gates that are trained apart from magnitudes."""

    title: ClassVar[str] = "Gated"

    name: Literal["gated"] = "gated"
    penalty: float | None = Field(None, ge=0)
    """Weight of the penalty on the sum of gates, on normalised input; none: steered to `dictionary.l0`."""


AnyMechanism = Annotated[
    GBASettings
    | BASettings
    | TopKSettings
    | BatchTopKSettings
    | MatryoshkaSettings
    | L1Settings
    | JumpReLUSettings
    | GatedSettings,
    Field(discriminator="name"),
]
SETTINGS: dict[str, type[MechanismSettings]] = {
    settings.model_fields["name"].default: settings for settings in get_args(get_args(AnyMechanism)[0])
}
"""The settings of every mechanism, by its name."""
