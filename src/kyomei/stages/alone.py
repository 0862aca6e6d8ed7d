"""A dictionary without a run, explored: rows of a text are taken from its model first."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kyomei.atomic import make_folder, sha256_of
from kyomei.config import Recipe
from kyomei.dictionary.formats import load, tensors_path
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.evidence.site import check_site
from kyomei.locks import locked
from kyomei.source.corpus import Corpus
from kyomei.source.harvest import harvest
from kyomei.source.model import LanguageModel
from kyomei.source.records import Fields
from kyomei.source.shards import ShardFolder
from kyomei.source.text import Packer, Tokens, pack
from kyomei.stages.certify import certificate_beside, certificate_of_files
from kyomei.stages.harvest import load_model
from kyomei.stages.index import Indexed
from kyomei.stages.place import recipe_for
from kyomei.stages.progress import Reporter
from kyomei.views.index import Subject, build, state_of
from kyomei.views.index.redaction import Redaction

FOLDER = "explore"
"""Where rows, tokens and the index of a dictionary are by default, in its folder."""
RECIPE, NAME = "recipe.yaml", "dictionary"


@dataclass(frozen=True)
class Alone:
    """A dictionary without a run, and where it is explored.

    Attributes:
        folder: of the dictionary, or its file, in any format that `kyomei.load` reads.
        out: of its rows, tokens and index.
        recipe: model, site and text that its rows come from.
    """

    folder: Path
    out: Path
    recipe: Recipe

    @classmethod
    def asked(cls, folder: Path, out: Path | None, said: dict[str, Any]) -> Alone:
        """What is asked for: what is not said is as it was before, or as the dictionary says of itself.

        Args:
            folder: of the dictionary, or its file.
            out: where it is explored; none: in its folder.
            said: settings of the recipe by dotted key.

        Raises:
            RunError: it is not known which model, site or text rows are to be taken from.
        """
        out = out or (folder if folder.is_dir() else folder.parent) / FOLDER
        if (out / RECIPE).exists():
            return cls(folder, out, Recipe.read(out / RECIPE).with_values(said))
        return cls(folder, out, recipe_for(load(folder), str(folder), said))

    @property
    def site(self) -> str:
        """Where in the model its rows come from."""
        return self.recipe.source.sites[0]

    @property
    def rows_folder(self) -> Path:
        return self.out / "activations"

    @property
    def index_folder(self) -> Path:
        return self.out / NAME

    @property
    def tensors(self) -> Path:
        """The file of its tensors."""
        # What is not there is missed by who reads it, with the file's name.
        return tensors_path(self.folder) or self.folder

    def rows(self, *, verify: bool = True) -> ShardFolder:
        """Activations of the text."""
        return ShardFolder(self.rows_folder / self.site, verify=verify)

    def tokens(self) -> Tokens:
        """The text as it may be shown."""
        tokens, redaction = Tokens.load(self.out / "tokens"), Redaction.kept(self.out)
        return tokens if redaction is None else redaction.tokens(tokens)[0]

    def made_from(self) -> dict[str, str]:
        """Digests of what the index rests on; of what is not there yet, none."""
        site = self.rows_folder / self.site
        files = {
            self.tensors.name: self.tensors,
            "rows": site / "index.json",
            "tokens": self.out / "tokens/index.json",
        }
        if (certificate := certificate_beside(self.folder)) is not None:
            files["certificate"] = certificate
        digests = {name: sha256_of(path) for name, path in files.items() if path.exists()}
        redaction = Redaction.kept(self.out)
        return digests if redaction is None else {**digests, "redaction": redaction.sha256}

    def state(self) -> Indexed:
        """What there is of its index."""
        where = (self.folder.resolve().name, self.index_folder, state_of(self.index_folder, self.made_from(), thorough=True))
        return Indexed(NAME, ".", *where)


def index_alone(alone: Alone, reporter: Reporter, *, rebuild: bool = False) -> Indexed:
    """Take the rows that are missing and make the index, unless it is ready.

    Args:
        alone: the dictionary.
        reporter: shows progress.
        rebuild: make the index anew in any case.

    Raises:
        DataError: the dictionary is not of this site, or there is too little text.
        ModelError: the model or the site cannot be used.
        RunError: another process is at work there, or nothing may be written.
    """
    same = (alone.out / RECIPE).exists() and Recipe.read(alone.out / RECIPE) == alone.recipe
    before = alone.state()
    if same and before.state.is_ready and not rebuild:
        return before
    make_folder(alone.out)
    with locked(alone.out):
        if not same:
            for name in ("activations", "tokens"):
                shutil.rmtree(alone.out / name, ignore_errors=True)
            alone.recipe.write(alone.out / RECIPE)
        if before.state.condition not in ("ready", "missing"):
            reporter.note(f"the index is made anew: {before.state.reason}")
        sae, model = load(alone.folder), load_model(alone.recipe)
        _harvest(alone, model, reporter)
        build(_subject(alone, sae, model), alone.index_folder, reporter.progress)
    return alone.state()


def _harvest(alone: Alone, model: LanguageModel, reporter: Reporter) -> None:
    """Rows and tokens of the text, as far as they are not there."""
    source, folder = alone.recipe.source, alone.out / "tokens"
    model.require_sites([alone.site])
    model.require_context(source.context)
    if not (folder / "index.json").exists():
        begins = Packer(model.tokenizer, source.context, source.force_bos).begins_with_bos
        fields = Fields(source.text_field, source.group_field)
        corpus = Corpus(source.text, fields, model.tokenizer, alone.recipe.seed, source.skip_bad_records, begins)
        # More is read than is run, as a harvest does it, so that more documents are seen.
        wanted = source.spread * source.num_tokens
        packed = pack(iter(corpus), model.tokenizer, source.context, wanted, force_bos=source.force_bos)
        reporter.note(f"text: {corpus.log}")
        packed.thinned(max(1, source.num_tokens // source.context)).save(folder)
    with reporter.progress("harvest") as progress:
        harvest(model, Tokens.load(folder), alone.rows_folder, source, progress=progress)


def _subject(alone: Alone, sae: SparseAutoencoder, model: LanguageModel) -> Subject:
    rows, source = alone.rows(), alone.recipe.source
    sae.require_dim(rows.dim, alone.site)
    check_site(sae, rows)
    certificate = certificate_of_files(alone.folder, sae.width)
    holds = certificate is not None and certificate.is_of_this_rule
    facts = {
        "dictionary": str(alone.folder.resolve().name),
        "title": alone.folder.resolve().name,
        "mechanism": sae.provenance.get("mechanism") or sae.activation,
        "model": source.model,
        "revision": source.revision,
        "site": alone.site,
        "side": source.side,
        "text": source.address,
        "context": source.context,
    }
    return Subject(
        name=NAME,
        sae=sae.to("cpu"),
        rows=rows,
        tokens=Tokens.load(alone.out / "tokens"),
        facts=facts,
        made_from=alone.made_from(),
        certificate=certificate.to_dict() if certificate is not None and holds else None,
        certificate_state="holds" if holds else "none" if certificate is None else "expired",
        seed=alone.recipe.seed,
        redaction=Redaction.kept(alone.out),
        open_model=lambda: model,
    )
