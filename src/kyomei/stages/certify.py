"""Certificates of a run: of its own dictionary, of baselines by the same rule, and of the same model with random weights."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from scipy import sparse

from kyomei.atomic import write_atomic
from kyomei.dictionary.formats import CONFIG_FILE, note_certificate
from kyomei.errors import EvidenceError, RecipeError, RunError
from kyomei.evidence.certificate import Certificate, dense_part, describe, rule_in_force, tally
from kyomei.evidence.codes import joined, total
from kyomei.evidence.controls import GAUSSIAN, RANDOM_WEIGHTS
from kyomei.evidence.origin import Origin, joined_origin, origin, share_difference
from kyomei.evidence.reproduction import (
    Dictionary,
    NullMatches,
    compare_coded,
    own_of,
    require_comparable,
    rows_used,
    space_of,
)
from kyomei.evidence.site import check_site
from kyomei.evidence.survey import Survey, survey
from kyomei.evidence.verdict import Verdict, verdict
from kyomei.learning.mesh import Mesh
from kyomei.learning.spaces import Whitening
from kyomei.learning.undisturbed import undisturbed
from kyomei.runs import Run
from kyomei.source.rows import Rows
from kyomei.source.shards import ShardFolder
from kyomei.source.text import Tokens
from kyomei.stages.arms import (
    IMPORT_FILE,
    Pair,
    imported_pairs,
    made_from,
    main_first,
    main_pair,
    own_pair,
    random_weights_run,
    replica_seed,
    require_trained,
    trained_pairs,
)
from kyomei.stages.check import FILE as PREMISES
from kyomei.stages.family import refuse_family
from kyomei.stages.harvested import activations, site_of, tokens_of
from kyomei.stages.named import names_of
from kyomei.stages.progress import Reporter
from kyomei.stages.train import train_baseline, train_run

FILE = "certificate.json"
RANDOM = "random weights"
"""Name of the certificate of the same model with random weights."""
SHARES_BY = ("count", "activation", "explained variance")
BEST = 10
"""Certified features of each dictionary that a summary may name."""
EXPIRED = "certificates"
"""Folder of certificates whose data or dictionaries have changed since: the reference that a later watch compares with."""


@undisturbed
def certify(run: Run | Path | str) -> Certificate:
    """The certificate of a trained run's dictionary, made where there is none that still holds.

    Args:
        run: a run, or its folder, trained with at least three replicas.

    Raises:
        RunError: there is no trained run, or a family.
        EvidenceError: it has fewer than three replicas.
    """
    if not isinstance(run, Run | str | Path):
        raise RunError("a run or its folder", f"a value of type {type(run).__name__}", "pass the path of a trained run")
    run = run if isinstance(run, Run) else Run.open(Path(run))
    refuse_family(run)
    certificate = standing(run, own_pair(run))  # to read one, no lock is needed
    if certificate is None:
        with run.lock():
            certificate = certify_pair(run, own_pair(run), Reporter())
    return replace(certificate, answer=verdict_of(run, pair=own_pair(run)))


def standing(run: Run, pair: Pair) -> Certificate | None:
    """The certificate of a pair's dictionary, if there is one that still holds."""
    path = certificate_path(run, pair)
    if not path.exists():
        return None
    found = Certificate.read(path)
    return None if found.changed(made_from(run, pair)) else found


def certificate_path(run: Run, pair: Pair) -> Path:
    """Where a pair's certificate is or will be."""
    return run.path(FILE) if pair.arm.folder == "replicas" else run.path(f"{pair.arm.folder}/{FILE}")


def certificate_beside(source: Path) -> Path | None:
    """The certificate that lies beside a dictionary's files, in its folder or its file's; none: there is none."""
    path = (source if source.is_dir() else source.parent) / FILE
    return path if path.exists() else None


def certificate_of_files(source: Path, width: int) -> Certificate | None:
    """The certificate that lies beside a dictionary without a run, as it was given; none: there is none.

    Its replicas and rows are elsewhere, and a format may fold the tensors: whether they have changed since cannot be told here.

    Args:
        source: folder or file of the dictionary.
        width: of the dictionary.

    Raises:
        EvidenceError: it cannot be read, or is of another dictionary.
    """
    path = certificate_beside(source)
    if path is None:
        return None
    found = Certificate.read(path)
    if found.width != width:
        do = f"move it away, or put the dictionary's own in its place: {path}"
        raise EvidenceError(f"the certificate of a dictionary of width {width}", f"one of width {found.width}", do)
    return found


def certificates_of(run: Run) -> dict[str, Certificate]:
    """Every certificate that still holds, by name: of what the run is about first, and last that of random weights."""
    found = {pair.name: standing(run, pair) for pair in trained_pairs(run)}
    folder = run.path(f"controls/{RANDOM_WEIGHTS.name}")
    if (folder / FILE).exists():
        nested = Run.open(folder)
        found[RANDOM] = standing(nested, own_pair(nested))
    return {name: certificate for name, certificate in found.items() if certificate is not None}


def certified(run: Run, baselines: Sequence[str] = (), random_weights: bool = False) -> bool:
    """Whether every certificate that is asked for is there and holds, so that to certify is to read."""
    there = certificates_of(run)
    wanted = {own_pair(run).name, *(f"baseline {name}" for name in baselines), *([RANDOM] if random_weights else ())}
    wanted |= {pair.name for pair in imported_pairs(run)}
    return wanted <= there.keys() and run.recorded(FILE)


def verdict_of(run: Run, certificates: Mapping[str, Certificate] | None = None, pair: Pair | None = None) -> Verdict:
    """The one answer about a dictionary, from what the run's stages have left so far.

    Args:
        run: trained.
        certificates: what `certificates_of` gave; none: looked up here.
        pair: the dictionary; none: what the run is about.

    Returns:
        The answer, which says whose it is where the run has dictionaries from elsewhere.
    """
    known = certificates_of(run) if certificates is None else certificates
    pair = pair or main_pair(run)
    own, control = (c.to_dict() if (c := known.get(name)) else None for name in (pair.name, RANDOM))
    premises = run.read_json(PREMISES) if run.path(PREMISES).exists() else None
    found = verdict(own, premises, control)
    return replace(found, dictionary=pair.title) if imported_pairs(run) else found


def certify_run(run: Run, reporter: Reporter, *, baselines: Sequence[str] = (), random_weights: bool = False) -> dict[str, Any]:
    """Certify a run's own dictionary, what was imported, baselines trained beside it, and the same model with random weights.

    What the run is about comes first.

    Args:
        run: a trained run.
        reporter: shows progress.
        baselines: names of baselines; missing ones are trained first.
        random_weights: repeat the whole run, harvest included, with random model weights, and compare origins.

    Returns:
        "verdict"; "certificates" by name, as plain values; "files" where they are; "best", the numbers of the certified
        features that the replicas share most closely; and "origin_difference" if the random weights were asked for.
    """
    own = own_pair(run)
    pairs = [own, *imported_pairs(run), *(train_baseline(run, name, reporter) for name in baselines)]
    pairs, grounds = main_first(run, pairs), _Grounds(run)
    made = {pair.name: _certified(run, pair, reporter, grounds) for pair in pairs}
    # Of several ranks the leading one has them.
    certificates = {name: certificate for name, certificate in made.items() if certificate is not None}
    if not reporter.mesh.leads:
        return {}
    files = {pair.name: certificate_path(run, pair) for pair in pairs}
    facts: dict[str, Any] = {}
    if random_weights:
        control = certificates[RANDOM] = certify_random_weights(run, reporter)
        files[RANDOM] = run.path(f"controls/{RANDOM_WEIGHTS.name}/{FILE}")
        facts["origin_difference"] = origin_difference(certificates[own.name], control, run.recipe.seed)
    return {
        "verdict": verdict_of(run).to_dict(),
        "certificates": {name: c.to_dict() for name, c in certificates.items()},
        "files": {name: str(path) for name, path in files.items()},
        "best": {name: [feature["index"] for feature in c.best(BEST)] for name, c in certificates.items()},
        **facts,
    }


def certify_on_mesh(
    run: Run, reporter: Reporter, *, baselines: Sequence[str] = (), random_weights: bool = False
) -> dict[str, Any] | None:
    """This rank's part of a certificate under torchrun: dictionaries and codes are shared out by latents.

    Args:
        run: trained.
        reporter: of this process.
        baselines, random_weights: as `certify_run` takes them; refused, as they train.

    Returns:
        What `certify_run` does, on the leading rank; none on the others.

    Raises:
        RecipeError: a baseline or random weights are asked for.
        RunError, EvidenceError: as `certify_run`; or a rank is lost.
    """
    if baselines or random_weights:
        do = "certify those in one process"
        raise RecipeError("a certificate of what is trained, on several processes", "--baseline or --random-weights", do)
    mesh = Mesh.side_by_side()
    with run.lock() if mesh.leads else contextlib.nullcontext():
        mesh.wait()
        facts = certify_run(run, reporter.on(mesh))
    mesh.leave()
    return facts if mesh.leads else None


def origin_difference(trained: Certificate, control: Certificate, seed: int) -> dict[str, dict[str, float] | None]:
    """How much more of the trained model's features is context or unexplained, with bootstrap intervals.

    Among the certified features, and, as a control may have none of them, among all latents: certified and from context.
    """
    among_certified = trained.context_mask, control.context_mask
    among_latents = trained.certified_context_mask, control.certified_context_mask
    return {
        "among certified": share_difference(*among_certified, seed=seed) if all(map(len, among_certified)) else None,
        "among latents": share_difference(*among_latents, seed=seed),
    }


def certify_random_weights(run: Run, reporter: Reporter) -> Certificate:
    """The certificate of the same procedure on the same text and sites, the model's weights drawn at random."""
    nested = random_weights_run(run, reporter)
    if certified(nested):
        return certify_pair(nested, own_pair(nested), reporter)
    with nested.lock():
        train_run(nested, reporter)
        return certify_pair(nested, own_pair(nested), reporter)


class _Grounds:
    """What the certificates of a run rest on: every dictionary meets the evidence rows once, and every null its own rows."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._surveys: dict[str, Survey] = {}
        self._spaces: dict[bool, Whitening] = {}
        self._nulls: dict[str, NullMatches] = {}

    @cached_property
    def rows(self) -> ShardFolder:
        """Rows that no replica saw."""
        return activations(self._run, "evidence")

    @cached_property
    def index(self) -> Int64[np.ndarray, " taken"]:
        """Numbers of those on which activations are compared."""
        return rows_used(self.rows.num_rows)

    def space(self, dictionaries: Sequence[Dictionary]) -> Whitening:
        """In which cosines of these dictionaries are taken."""
        kind = all(sae.unit_rows for sae in dictionaries)
        if kind not in self._spaces:
            self._spaces[kind] = space_of(dictionaries, self.rows)
        return self._spaces[kind]

    def surveys(self, pair: Pair, dictionaries: Sequence[Dictionary]) -> list[Survey]:
        """What each dictionary of a pair does on the rows; of those that ship, the parts of the explained variance too."""
        for place, sae in zip(pair.places, dictionaries, strict=True):
            if place not in self._surveys:
                # Each by itself, so that its figures are the same to the last bit whatever it is certified beside.
                ships = int(place.endswith("/0"))
                (self._surveys[place],) = survey([sae], self.rows, self.index, num_explained=ships)
        return [self._surveys[place] for place in pair.places]

    def null(self, pair: Pair, null: tuple[Dictionary, Dictionary]) -> NullMatches:
        """What a pair's null has in common with itself."""
        if pair.null.folder not in self._nulls:
            self._nulls[pair.null.folder] = NullMatches.measure(null, evidence_null(self._run, self.rows))
        return self._nulls[pair.null.folder]


def certify_pair(run: Run, pair: Pair, reporter: Reporter, grounds: _Grounds | None = None) -> Certificate:
    """The certificate of one mechanism's first dictionary; one that still holds is read back.

    Args:
        run: trained.
        pair: the mechanism.
        reporter: says what is done.
        grounds: what other certificates of the run rest on as well; none: nothing has been measured.

    Raises:
        RunError: a replica or its null is not trained.
        EvidenceError: there are fewer than three replicas.
    """
    certificate = _certified(run, pair, reporter, grounds or _Grounds(run))
    assert certificate is not None, "one process leads"
    return certificate


def _certified(run: Run, pair: Pair, reporter: Reporter, grounds: _Grounds) -> Certificate | None:
    """The same on any mesh: of several ranks the leading one has the certificate."""
    require_trained(run, pair)
    mesh = reporter.mesh

    def look() -> tuple[dict[str, str], Certificate | None]:
        # Before anything is read: a file that changes meanwhile is not the one that was measured.
        data = made_from(run, pair)
        return data, _that_holds(run, pair, data, reporter)

    data, before = mesh.first(look) or ({}, None)
    if any(mesh.tell(before is not None)):
        return before
    reporter.note(f"certify {pair.name}")
    certificate = _certificate(run, pair, data, grounds, mesh)

    def write() -> None:
        assert certificate is not None
        certificate.write(certificate_path(run, pair))
        _enter(run, pair, certificate)

    mesh.first(write)
    return certificate


def _that_holds(run: Run, pair: Pair, data: Mapping[str, str], reporter: Reporter) -> Certificate | None:
    """The certificate that is there, if it holds for files of these digests; one that does not is put aside."""
    path = certificate_path(run, pair)
    if not path.exists():
        return None
    before = Certificate.read(path)
    changed = before.changed(data)
    if not changed:
        if not run.recorded(path):  # a crash may have come after it was written
            _enter(run, pair, before)
        return before
    reporter.note(f"the certificate of {before.created} has expired: {', '.join(changed)} changed")
    write_atomic(path.parent / EXPIRED / f"{before.created.replace(':', '')}.json", path.read_bytes())
    return None


def _enter(run: Run, pair: Pair, certificate: Certificate) -> None:
    """Let the dictionary say that it has a certificate, and the manifest what both are."""
    path, dictionary = certificate_path(run, pair), pair.arm.path(run, 0)
    file = path.relative_to(run.folder).as_posix()
    counts = {"certified": len(certificate.certified), "latents": len(certificate.features)}
    counts["replicas"] = len(certificate.replicas)
    note_certificate(dictionary, {"file": file, **counts})
    run.record(dictionary / CONFIG_FILE, path)


def _certificate(run: Run, pair: Pair, data: dict[str, str], grounds: _Grounds, mesh: Mesh) -> Certificate | None:
    """A certificate of files of these digests, made by all ranks; the leading one has it."""
    rows = grounds.rows
    dictionaries, null = pair.shared_out(run, mesh)
    check_site(dictionaries[0], rows)
    require_comparable(dictionaries, null, rows.dim)
    surveys = grounds.surveys(pair, dictionaries)
    codes = [each.code for each in surveys if each.code is not None]
    first, found, drawn = dictionaries[0], surveys[0], sampled(run, pair, dictionaries[0].width)
    tested = np.arange(first.width) if drawn is None else drawn
    verdicts = compare_coded(dictionaries, codes, grounds.null(pair, null), grounds.space(dictionaries), drawn)
    code = codes[0][:, own_of(tested, mesh.share(first.width))]
    tokens = tokens_of(run, "evidence")
    source = joined_origin(_origin(code, rows, grounds.index, tokens), mesh)
    explained = np.zeros(len(tested)) if found.explained is None else found.explained[tested].clip(min=0)
    weights = dict(zip(SHARES_BY, (np.ones(len(tested)), joined(total(code), mesh), explained), strict=True))
    if not mesh.leads:
        return None
    names = _token_texts(tokens, {token for named in source.top_tokens for token, _ in named})
    features = [
        {
            **describe(verdicts, source, i),
            "index": latent,
            "tokens": [[names[token], round(share, 4)] for token, share in source.top_tokens[i]],
            **{name: float(values[i]) for name, values in weights.items() if name != "count"},
        }
        for i, latent in enumerate(tested.tolist())
    ]
    figures = found.fidelity
    return Certificate(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        mechanism=pair.name,
        site=site_of(run),
        model=run.recipe.source.model,
        width=first.width,
        replicas=pair.places,
        num_rows=verdicts.num_rows,
        rule=verdicts.rule.to_dict(),
        null={
            "name": GAUSSIAN.title,
            "false_positive_rate": verdicts.null_false_positives,
            "latents": verdicts.num_null,
        },
        fidelity={"fvu": figures.fvu, "l0": figures.l0_mean, "dead": figures.dead_share},
        dense=dense_part(verdicts, explained),
        shares={name: tally(verdicts, source, values) for name, values in weights.items()},
        features=features,
        data=data,
        constants=rule_in_force(),
        sampled=None if drawn is None else len(drawn),
        names=names_of(run),
    )


def _origin(code: sparse.csr_array, rows: ShardFolder, index: Int64[np.ndarray, " taken"], tokens: Tokens) -> Origin:
    """Where the latents of some columns come from."""
    place = rows.row_tokens()[index]
    document = tokens.document.flatten().numpy()[place]
    return origin(code, tokens.ids.flatten().numpy()[place], place % tokens.context, document)


def sampled(run: Run, pair: Pair, width: int) -> Int64[np.ndarray, " drawn"] | None:
    """Latents of an imported dictionary that are tested, where not all are: drawn at random, in ascending order."""
    if pair.arm.made_by != "import":
        return None
    count = run.read_json(f"{pair.arm.folder}/{IMPORT_FILE}")["latents"]
    if count is None or count >= width:
        return None
    return np.sort(np.random.default_rng([run.recipe.seed, count]).choice(width, count, replace=False))


def evidence_null(run: Run, rows: Rows) -> Rows:
    """Gaussian rows like the evidence rows, which no replica of a null saw either."""
    return GAUSSIAN.rows(rows, replica_seed(run.recipe.seed, 2, null=True))


def _token_texts(tokens: Tokens, ids: set[int]) -> dict[int, str]:
    """The characters that each token id stands for, where it first occurs in a document."""
    flat = tokens.ids.flatten().numpy()
    inside = np.flatnonzero(tokens.document.flatten().numpy() >= 0)
    distinct, first = np.unique(flat[inside], return_index=True)
    where = dict(zip(distinct.tolist(), inside[first].tolist(), strict=True))
    return {token: tokens.text_at(where[token]) if token in where else f"<{token}>" for token in ids}
