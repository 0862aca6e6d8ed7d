"""Dictionaries from and to the formats of other libraries, with what is known of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from kyomei.atomic import write_atomic
from kyomei.dictionary.card import shown_model
from kyomei.dictionary.formats import FORMATS, Conversion, ours, read, recognised, save, tensors_path, write
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.errors import RunError
from kyomei.evidence.certificate import Certificate
from kyomei.runs import MANIFEST, Run
from kyomei.stages.certify import FILE as CERTIFICATE
from kyomei.stages.certify import certificate_beside
from kyomei.stages.exports import note_export
from kyomei.stages.family import refuse_family
from kyomei.stages.harvested import site_of, tokens_of
from kyomei.stages.index import opened


def import_dictionary(source: Path, folder: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Read a dictionary of any format and write it in Kyomei's own, its certificate beside it.

    Args:
        source: folder or file.
        folder: where it goes.
        overwrite: whether a dictionary that is there may go.

    Returns:
        What it is, where it comes from, and what was folded.

    Raises:
        DataError: it cannot be read; the message says why.
        RunError: something is in the folder already.
    """
    found, certificate = read(source), certificate_beside(source)
    _require_free(folder, ours.NAME, overwrite)
    save(found.sae, folder)
    _put(certificate, folder)
    return _facts(found, {"from": _title(found.format), "to": "Kyomei"}, folder)


def export_dictionary(
    source: Path, folder: Path, name: str, *, dictionary: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write a dictionary as another library does, with its provenance in the settings and its certificate beside them.

    Args:
        source: a run, whose own dictionary ships; or a dictionary of any format.
        folder: where it goes.
        name: of the format.
        dictionary: of a run, another one of it, such as "replicas-1".
        overwrite: whether a dictionary that is there may go.

    Returns:
        As `import_dictionary`.

    Raises:
        DataError: the dictionary cannot be read, or the format has no such dictionary; the message says why.
        RunError: there is none, or something is in the folder already.
    """
    certificate: Certificate | Path | None
    run: Run | None = None
    origin = ours.NAME
    folded: tuple[str, ...] = ()
    if (source / MANIFEST).exists():
        run = Run.open(source)
        refuse_family(run)
        _, sae, certificate = opened(run, dictionary)
        sae = said_by(run, sae)
    else:
        found = read(source)
        sae, origin, folded = found.sae, found.format, found.folded
        certificate = certificate_beside(source)
    _require_free(folder, name, overwrite)
    done = write(sae, folder, name)
    _put(certificate, folder)
    if run is not None:
        note_export(run, f"dictionary as {_title(name)}", folder, text=certificate is not None)
    return _facts(replace(done, folded=(*folded, *done.folded)), {"from": _title(origin), "to": _title(name)}, folder)


def _put(certificate: Certificate | Path | None, folder: Path) -> None:
    """Leave this certificate beside a dictionary, and not one of what was there before."""
    if isinstance(certificate, Certificate):
        certificate.write(folder / CERTIFICATE)
    elif certificate is not None:
        write_atomic(folder / CERTIFICATE, certificate.read_bytes())
    else:
        (folder / CERTIFICATE).unlink(missing_ok=True)


def _title(name: str) -> str:
    return FORMATS[name].title if name in FORMATS else "Kyomei"


def said_by(run: Run, sae: SparseAutoencoder) -> SparseAutoencoder:
    """The same with what its run knows of the model, the windows and the text that it was trained on."""
    source = run.recipe.source
    text = shown_model(source.address)
    place = {"model": source.model, "site": site_of(run), "side": source.side}
    windows = {"context": source.context, "prepend_bos": _begins_with_bos(run), "dataset": text}
    sae.provenance = {**place, **sae.provenance, **windows}
    return sae


def _begins_with_bos(run: Run) -> bool:
    """Whether every window began with a token that stands for no text. SAELens' stores refuse one that does not say."""
    return bool((tokens_of(run, "evidence").document[:, 0] < 0).all())


def _require_free(folder: Path, name: str, overwrite: bool) -> None:
    if (folder / MANIFEST).exists():
        raise RunError("a folder for a dictionary", f"a run in {folder}", "name another folder")
    if not folder.is_dir() or tensors_path(folder) is None:
        return
    if not overwrite:
        raise RunError("a folder without a dictionary", f"one in {folder}", "name another folder, or add --overwrite")
    # Two formats in one folder would be read as either of them.
    if (there := recognised(folder)) != name:
        raise RunError(f"a folder for {_title(name)}", f"a dictionary of {_title(there)} in {folder}", "name another folder")


def _facts(found: Conversion, ways: dict[str, str], folder: Path) -> dict[str, Any]:
    sae, known = found.sae, found.sae.provenance
    certificate = known.get("certificate")
    return {
        **ways,
        "mechanism": found.mechanism,
        "activation": sae.activation,
        "k": sae.k,
        "width": sae.width,
        "dim": sae.dim,
        "dtype": str(sae.encoder.dtype).removeprefix("torch."),
        "model": known.get("model"),
        "site": known.get("site") or known.get("hook_name"),
        "context": known.get("context"),
        "dataset": known.get("dataset"),
        "folded": list(found.folded),
        "certificate": certificate if isinstance(certificate, dict) else None,
        "folder": str(folder),
        "files": sorted(path.name for path in folder.iterdir() if path.is_file()),
    }
