"""A dictionary at work inside its language model: which latents are active on a text, and what they need of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import DataError
from kyomei.source.chat import chat_text, has_template
from kyomei.source.hooks import Side
from kyomei.source.model import LanguageModel
from kyomei.source.text import Document, Packer, Tokens
from kyomei.source.trial import try_sites

MOST_TOKENS = 512
"""Of a text that is tried; windows of a harvest are usually shorter."""
MOST_LATENTS = 64
"""Active latents that are listed at one token, strongest first."""
MOST_HIDDEN = 64
"""Earlier tokens that are masked in turn: the nearest ones."""
_TOKENS_PER_PASS = 8192


@dataclass(frozen=True, eq=False)
class Window:
    """A text as the model reads it.

    Attributes:
        ids: token ids [1, context].
        texts: what each token shows; joined, they are the text. Empty for what stands for no text, such as BOS.
        special: tokens that no dictionary is trained on [context].
    """

    ids: Int64[Tensor, "1 context"]
    texts: list[str]
    special: Bool[Tensor, " context"]

    def __len__(self) -> int:
        return len(self.texts)

    def shown(self) -> list[dict[str, Any]]:
        """The tokens, as plain values."""
        return [{"text": t, "special": s} for t, s in zip(self.texts, self.special.tolist(), strict=True)]


@dataclass(frozen=True, eq=False)
class Ordinary:
    """What latents do on ordinary text.

    Attributes:
        frequency: share of rows on which each is active [width].
        mean: its mean activation on these rows [width]; zero for one that never is.
        num_rows: rows that this was seen on.
    """

    frequency: Float[np.ndarray, " width"]
    mean: Float[np.ndarray, " width"]
    num_rows: int


@final
class Live:
    """A dictionary at its site in a loaded model.

    Args:
        model: where the site is.
        sae: moved to the model's device.
        site: module path.
        side: of the module.
        force_bos: begin texts with BOS even where the model's tokenizer does not.
        max_norm: norm above which an activation is massive: no dictionary is trained on it, and no edit touches it.

    Attributes:
        unspliceable: why the site cannot be replaced, or why nothing would be seen of it; empty if it can.

    Raises:
        ModelError: the site is unknown, or cannot be captured.
        DataError: its activations are not of the dictionary's dimension.
    """

    def __init__(
        self,
        model: LanguageModel,
        sae: SparseAutoencoder,
        site: str,
        side: Side = "output",
        *,
        force_bos: bool = False,
        max_norm: float = math.inf,
    ) -> None:
        self.model, self.sae, self.site, self.side = model, sae.to(model.device), site, side
        self.max_norm, self.force_bos = max_norm, force_bos
        self._packer = Packer(model.tokenizer, self.most_tokens, force_bos)
        self._special_ids = torch.tensor(sorted(model.special_ids), dtype=torch.int64)
        probe = self.window(_PROBE)
        self.code(probe)
        self.unspliceable = try_sites(model, probe.ids, [site], side).unspliceable.get(site, "")

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest text that is read, a leading BOS included."""
        return min(MOST_TOKENS, self.model.max_context or MOST_TOKENS)

    @property
    def has_chat(self) -> bool:
        """Whether the model has a template for conversations."""
        return has_template(self.model.tokenizer)

    def window(self, text: str) -> Window:
        """A text as a window of the harvest would begin with it.

        Raises:
            DataError: it is blank, or has more tokens than are read at once.
        """
        encoded = next(iter(self._packer.encode([Document("text", text)])), None)
        if encoded is None or not len(encoded.ids):
            raise DataError("some text", "none", "type a few words")
        ends = [*encoded.starts[1:].tolist(), len(text)]
        texts = [text[start:end] for start, end in zip(encoded.starts.tolist(), ends, strict=True)]
        ids, begin = encoded.ids.tolist(), self._packer.begin
        if begin is not None:
            ids, texts = [begin, *ids], ["", *texts]
        if len(ids) > self.most_tokens:
            raise DataError(f"a text of at most {self.most_tokens} tokens", f"{len(ids)} tokens", "shorten it")
        return Window(torch.tensor([ids]), texts, self.is_special(torch.tensor(ids)))

    def chat(self, messages: Sequence[Any], prompting: bool = True) -> Window:
        """A conversation as the model's own template writes it.

        Args:
            messages: of {role, content}.
            prompting: end where the model would answer.

        Raises:
            DataError: the model has no template, or refuses these messages; or as `window` does.
        """
        try:
            text = chat_text(list(messages), self.model.tokenizer, self._packer.begins_with_bos, prompting)
        except ValueError as error:
            raise DataError("messages that the model's chat template takes", str(error), "correct the messages") from error
        return self.window(text)

    def harvested(self, tokens: Tokens, window: int) -> Window:
        """A window of harvested text, as it was harvested."""
        first = window * tokens.context
        ids = tokens.ids[window]
        texts = [tokens.text_at(at) for at in range(first, first + tokens.context)]
        return Window(ids[None], texts, self.is_special(ids) | (tokens.document[window] < 0))

    def is_special(self, ids: Int64[Tensor, "*any"]) -> Bool[Tensor, "*any"]:
        """Tokens that stand for no text."""
        return torch.isin(ids, self._special_ids)

    @torch.no_grad()
    def code(self, window: Window) -> Float[Tensor, "context width"]:
        """What the dictionary says of every token: `sae.encode` of the rows that are captured, on the CPU."""
        rows = self.model.capture(window.ids, [self.site], self.side)[self.site][0]
        return self.sae.encode(rows.float()).float().cpu()

    def activations(self, window: Window) -> dict[str, Any]:
        """Active latents at each token, strongest first.

        Returns:
            "tokens"; "active", for each token pairs of latent and activation; "left_out", how many more there are.
        """
        active, left_out = [], 0
        for row in self.code(window):
            latents = row.nonzero().flatten()
            order = row[latents].argsort(descending=True, stable=True)
            kept = latents[order[:MOST_LATENTS]]
            active.append([[int(i), float(row[i])] for i in kept])
            left_out += len(latents) - len(kept)
        return {"tokens": window.shown(), "active": active, "left_out": left_out}

    def search(self, window: Window, ordinary: Ordinary, most: int = 50) -> list[dict[str, Any]]:
        """Latents that are active on a text more than on ordinary text, best first.

        Of a latent active on a share f of ordinary rows, with mean μ there, an activation above a is as rare as f·e^(−a/μ), if
        activations fall off exponentially. The score is −ln of that, in nats, where the latent is most active.

        Args:
            window: the text; its special tokens do not count.
            ordinary: what latents do elsewhere.
            most: latents that are named.

        Returns:
            "latent", "score", "activation" (the largest), "position" of it, "tokens" it is active on, and "ordinary_mean" and
            "frequency" elsewhere. A latent that ordinary text never activates comes last: nothing says what it stands for.
        """
        code = self.code(window)
        code[window.special] = 0.0
        peak, position = (each.numpy() for each in code.max(dim=0))
        seen = ordinary.frequency > 0
        frequency = np.maximum(ordinary.frequency.astype(np.float64), 1.0 / max(ordinary.num_rows, 1))
        mean = np.where(seen & (ordinary.mean > 0), ordinary.mean, np.maximum(peak, 1e-12)).astype(np.float64)
        score = -np.log(frequency) + peak / mean
        active = np.flatnonzero(peak > 0)
        order = active[np.lexsort((active, -score[active], ~seen[active]))][:most]
        count = (code > 0).sum(dim=0).numpy()
        return [
            {
                "latent": int(i),
                "score": float(score[i]),
                "activation": float(peak[i]),
                "position": int(position[i]),
                "tokens": int(count[i]),
                "ordinary_mean": float(ordinary.mean[i]),
                "frequency": float(ordinary.frequency[i]),
            }
            for i in order
        ]

    @torch.no_grad()
    def needs(self, window: Window, latent: int, position: int) -> dict[str, Any]:
        """By how much a latent's activation falls when each earlier token is masked from attention, positions kept.

        Args:
            window: the text.
            latent: number of the latent.
            position: token at which it is active.

        Returns:
            "activation"; "first", the position of the first token masked; "tokens" from there to `position`; "falls" by token
            before `position`, in units of the activation, negative where it rises.

        Raises:
            DataError: no such latent or token.
            ModelError: tokens of this model cannot be masked.
        """
        self.require_latents([latent])
        if not 0 <= position < len(window):
            raise DataError(f"a position from 0 to {len(window) - 1}", str(position), "choose a token of the text")
        shown = window.shown()
        # What is replaceable predicts the next token: nothing behind the position plays a part.
        ids = window.ids[:, : position + 1] if not self.unspliceable else window.ids
        first = max(0, position - MOST_HIDDEN)
        earlier = torch.arange(first, position)
        # The first pass hides nothing: what falls is told by the same kernels on the same numbers.
        hidden = torch.zeros(len(earlier) + 1, ids.shape[1], dtype=torch.bool)
        hidden[torch.arange(1, len(hidden)), earlier] = True
        rows = []
        for part in torch.split(hidden, max(1, _TOKENS_PER_PASS // ids.shape[1])):
            captured = self.model.capture(ids.expand(len(part), -1), [self.site], self.side, part)
            rows.append(captured[self.site][:, position].float())
        values = self.sae.encode(torch.cat(rows))[:, latent].float().cpu()
        if not bool(torch.isfinite(values).all()):
            found = "an activation that is not finite where a token is masked"
            raise DataError("finite activations", found, "look at this example without asking what it needs")
        falls = (values[0] - values[1:]).tolist()
        return {
            "latent": latent,
            "activation": float(values[0]),
            "first": first,
            "tokens": shown[first : position + 1],
            "falls": falls,
        }

    def require_latents(self, latents: Sequence[int]) -> None:
        """Raise DataError unless the dictionary has these latents."""
        for latent in latents:
            if not 0 <= latent < self.sae.width:
                expected = f"a latent from 0 to {self.sae.width - 1}"
                raise DataError(expected, str(latent), "choose a latent of this dictionary")


_PROBE = "The quick brown fox jumps."
