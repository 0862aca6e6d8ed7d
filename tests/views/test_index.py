"""An index says what the dictionary does on the rows: exact text, exact activations, ordered deciles, counts that add up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import sparse

from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.evidence.certificate import Certificate
from kyomei.runs import Run
from kyomei.source.rows import TensorRows
from kyomei.stages import index as stage
from kyomei.stages.harvested import activations, tokens_of
from kyomei.stages.index import dictionaries, index_run, index_states
from kyomei.stages.progress import Reporter
from kyomei.views.index import codes, state_of
from kyomei.views.index.codes import CodeStore, active_entries
from kyomei.views.index.examples import BINS, PER_DECILE, TOP, Chosen
from kyomei.views.index.layout import layout
from kyomei.views.index.relations import kin, nearest_directions


def table(run: Run, name: str, dictionary: str = "replicas-0") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(run.path(f"explore/{dictionary}/{name}.parquet")).to_pylist()
    return rows


def dense_code(run: Run, replica: int = 0) -> np.ndarray:
    from kyomei.dictionary.formats import load

    rows = activations(run, "evidence")
    code: np.ndarray = load(run.path(f"replicas/{replica}")).encode(rows.read(np.arange(rows.num_rows))).numpy()
    return code


def test_figures_of_every_latent_are_those_of_the_code(indexed: Run) -> None:
    code, features = dense_code(indexed), table(indexed, "features")
    assert [feature["latent"] for feature in features] == list(range(code.shape[1]))
    for latent, feature in enumerate(features):
        active = code[:, latent][code[:, latent] > 0]
        assert feature["frequency"] == pytest.approx(len(active) / len(code), abs=1e-7)
        assert sum(feature["histogram"]) == len(active)
        if len(active):
            assert feature["max_activation"] == pytest.approx(active.max(), rel=1e-5)
            assert feature["mean_activation"] == pytest.approx(active.mean(), rel=1e-5)
            assert len(feature["histogram"]) == BINS and len(feature["histogram_edges"]) == BINS + 1
            expected, _ = np.histogram(active, np.linspace(0, active.max(), BINS + 1))
            # An activation at an edge may fall on either side of it.
            assert np.abs(np.cumsum(expected) - np.cumsum(feature["histogram"])).max() <= 1
    assert sum(feature["explained"] for feature in features) == pytest.approx(1, abs=1e-5)


def test_every_example_has_the_activations_of_sae_encode(indexed: Run) -> None:
    code = dense_code(indexed)
    rows, tokens = activations(indexed, "evidence"), tokens_of(indexed, "evidence")
    row_of = {int(place): row for row, place in enumerate(rows.row_tokens())}
    examples = table(indexed, "examples")
    assert examples
    for example in examples:
        latent, row = example["latent"], example["example"]
        assert example["activation"] == pytest.approx(code[row, latent], rel=1e-5)
        at = example["window"] * tokens.context + example["position"]
        assert row_of[at] == row
        assert example["activations"][example["focus"]] == pytest.approx(example["activation"], rel=1e-6)
        around = tokens.around(at, 14, 6)
        expected = [code[row_of[place], latent] if place in row_of else 0.0 for place in around]
        assert example["activations"] == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert around[example["focus"]] == at


def test_the_text_of_every_example_is_a_stretch_of_its_document(indexed: Run) -> None:
    tokens, documents = tokens_of(indexed, "evidence"), table(indexed, "documents")
    for example in table(indexed, "examples"):
        document = documents[example["document"]]
        text = "".join(example["tokens"])
        assert document["text"][example["start"] : example["start"] + len(text)] == text
        assert document["name"] == example["document_name"] == tokens.documents[example["document"]].name
        at = example["window"] * tokens.context + example["position"]
        assert example["tokens"][example["focus"]] == tokens.text_at(at)


def test_examples_are_the_strongest_rows_and_some_of_every_decile(indexed: Run) -> None:
    code, examples = dense_code(indexed), table(indexed, "examples")
    by_latent: dict[int, list[dict[str, Any]]] = {}
    for example in examples:
        by_latent.setdefault(example["latent"], []).append(example)
    assert [e["latent"] for e in examples] == sorted(e["latent"] for e in examples)
    for latent, own in by_latent.items():
        values = np.sort(code[:, latent][code[:, latent] > 0])[::-1]
        top = [e["activation"] for e in own if e["kind"] == "top"]
        assert top == pytest.approx(values[:TOP].tolist(), rel=1e-5)
        samples = [e for e in own if e["kind"] == "decile"]
        assert [e["decile"] for e in samples] == sorted((e["decile"] for e in samples), reverse=True)
        assert [e["activation"] for e in samples] == sorted((e["activation"] for e in samples), reverse=True)
        for example in samples:
            # Rows that are alike are of equal strength and stand in any order.
            above, reached = ((values > example["activation"] * (1 + one)).sum() for one in (1e-6, -1e-6))
            assert 10 * above / len(values) <= 10 - example["decile"]
            assert 10 * reached / len(values) >= 9 - example["decile"]


@pytest.mark.parametrize("count", [0, 1, 3, 10, 11, 39, 40, 1000])
def test_no_row_of_a_decile_is_drawn_twice_and_none_is_left_out_where_there_are_few(count: int) -> None:
    chosen = Chosen.of(count, np.random.default_rng(0))
    drawn = chosen.place[chosen.decile >= 0]
    assert len(set(drawn.tolist())) == len(drawn) and ((drawn >= 0) & (drawn < count)).all()
    for decile in range(10):
        inside = [place for place in range(count) if 9 - 10 * place // max(count, 1) == decile]
        own = chosen.place[chosen.decile == decile]
        assert set(own.tolist()) <= set(inside)
        if inside:
            assert 1 <= len(own) <= PER_DECILE and (len(own) == PER_DECILE or len(inside) < 2 * PER_DECILE)
        assert chosen.rank[chosen.decile == decile].tolist() == list(range(len(own)))


def test_status_origin_and_partners_are_the_certificates(indexed: Run) -> None:
    certificate = Certificate.read(indexed.path("certificate.json"))
    features = table(indexed, "features")
    assert [f["status"] for f in features] == [f["status"] for f in certificate.features]
    for feature, known in zip(features, certificate.features, strict=True):
        assert json.loads(feature["certificate"])["correlation"] == pytest.approx(known["correlation"])
        if known["status"] == "dead":
            assert feature["partners"] == [] and feature["origin"] is None and feature["x"] is None
            continue
        assert feature["origin"] == known["origin"]["kind"] and feature["x"] is not None
        assert [p["replica"] for p in feature["partners"]] == ["replicas/1", "replicas/2"]
        assert [p["latent"] for p in feature["partners"]] == known["partner"]
        assert feature["agreement"] == pytest.approx(
            min(map(min, (known[k] for k in ("encoder_mcs", "decoder_mcs", "correlation"))))
        )


def test_a_replica_without_a_certificate_is_matched_all_the_same(indexed: Run) -> None:
    own, other = table(indexed, "features"), table(indexed, "features", "replicas-1")
    assert {f["status"] for f in other} == {"not certified"} and {f["origin"] for f in other} == {None}
    partners = {f["latent"]: {p["replica"]: p for p in f["partners"]} for f in own}
    backwards = {f["latent"]: {p["replica"]: p for p in f["partners"]} for f in other}
    mutual = [
        (there["replicas/1"], backwards[there["replicas/1"]["latent"]]["replicas/0"], latent)
        for latent, there in partners.items()
        if there and backwards[there["replicas/1"]["latent"]]
    ]
    same = [(a, b) for a, b, latent in mutual if b["latent"] == latent]
    assert same
    for a, b in same:
        assert a["correlation"] == pytest.approx(b["correlation"], abs=1e-4)
    assert sum(f["explained"] for f in other) == pytest.approx(1, abs=1e-5)


def test_logits_are_those_of_the_decoder_row_through_norm_and_head(indexed: Run) -> None:
    from kyomei.source.model import LanguageModel

    model = LanguageModel.load("embedded")
    feature = table(indexed, "features")[3]
    from kyomei.dictionary.formats import load

    row = load(indexed.path("replicas/0")).decoder[3]
    inner: Any = model.model
    scaled = row * inner.model.norm.weight  # an RMS norm has no shift, and a scale that all coordinates share
    logits = scaled @ inner.lm_head.weight.T
    order = (logits - logits.mean()).argsort(descending=True).tolist()
    texts = model.vocabulary()
    assert [t["token"] for t in feature["logits_top"]] == [texts[i] for i in order[: len(feature["logits_top"])]]
    assert [t["token"] for t in feature["logits_bottom"]] == [texts[i] for i in order[::-1][: len(feature["logits_bottom"])]]


def test_the_same_run_gives_the_same_bytes(indexed: Run, tmp_path: Path) -> None:
    copy = Run.open(shutil.copytree(indexed.folder, tmp_path / "run"))
    index_run(copy, Reporter(), ["replicas-0"], rebuild=True)
    for name in ("features.parquet", "examples.parquet", "documents.parquet"):
        here, there = (run.path(f"explore/replicas-0/{name}").read_bytes() for run in (copy, indexed))
        assert here == there, name


def test_small_groups_give_the_same_index(indexed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "ENTRIES_AT_ONCE", 500)
    monkeypatch.setattr(codes, "ROWS_PER_FILE", 1000)
    monkeypatch.setattr(codes, "ROWS_AT_ONCE", 300)
    copy = Run.open(shutil.copytree(indexed.folder, tmp_path / "run"))
    index_run(copy, Reporter(), ["replicas-0"], rebuild=True)
    for name in ("features", "examples"):
        for here, there in zip(table(copy, name), table(indexed, name), strict=True):
            assert {k: v for k, v in here.items() if k not in ("activations", "activation")} == {
                k: v for k, v in there.items() if k not in ("activations", "activation")
            }


# ── What is made anew ──


def test_an_index_that_is_whole_is_left_alone(indexed: Run) -> None:
    before = indexed.path("explore/replicas-0/index.json").read_bytes()
    (found,) = index_run(indexed, Reporter(), ["replicas-0"])
    assert found.state.is_ready and indexed.path("explore/replicas-0/index.json").read_bytes() == before
    assert [one.state.condition for one in index_states(indexed)] == ["ready", "ready", "missing"]
    assert dictionaries(indexed) == ["replicas-0", "replicas-1", "replicas-2"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def other_version(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))


def same_size(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


@pytest.mark.parametrize(
    ("name", "harm", "condition", "said"),
    [
        ("features.parquet", cut, "damaged", "features.parquet has"),
        ("examples.parquet", Path.unlink, "damaged", "no examples.parquet"),
        ("examples.parquet", same_size, "damaged", "sha256 differs"),
        ("documents.parquet", cut, "damaged", "documents.parquet has"),
        ("index.json", cut, "damaged", "index.json"),
        ("index.json", other_version, "other version", "schema 99"),
        ("index.json", Path.unlink, "missing", ""),
    ],
)
def test_a_damaged_index_is_named_and_made_anew(
    indexed: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, harm: Any, condition: str, said: str
) -> None:
    copy = Run.open(shutil.copytree(indexed.folder, tmp_path / "run"))
    folder = copy.path("explore/replicas-0")
    harm(folder / name)
    state = state_of(folder, thorough=True)
    assert state.condition == condition and said in state.reason
    assert not indexed_now(copy)
    index_run(copy, Reporter(), ["replicas-0"])
    assert (said or "replicas-0") in capsys.readouterr().err
    assert state_of(folder, thorough=True).is_ready


def indexed_now(run: Run) -> bool:
    return all(one.state.is_ready for one in index_states(run, thorough=True) if one.name == "replicas-0")


def test_an_index_of_another_certificate_is_stale(indexed: Run, tmp_path: Path) -> None:
    copy = Run.open(shutil.copytree(indexed.folder, tmp_path / "run"))
    copy.path("certificate.json").unlink()
    state = index_states(copy)[0].state
    assert state.condition == "stale" and "certificate.json" in state.reason
    assert stage.indexed(indexed, ["replicas-0"]) and not indexed_now(copy)


def test_a_killed_build_goes_on_with_what_was_encoded(indexed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "ROWS_PER_FILE", 1000)
    copy = Run.open(shutil.copytree(indexed.folder, tmp_path / "run"))
    folder = copy.path("explore/replicas-0")
    encode, calls = CodeStore._encoded, []

    def dies_third(store: CodeStore, first: int, last: int, pool: Any) -> Any:
        calls.append(first)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(store, first, last, pool)

    monkeypatch.setattr(CodeStore, "_encoded", dies_third)
    with pytest.raises(KeyboardInterrupt):
        index_run(copy, Reporter(), ["replicas-0"], rebuild=True)
    assert state_of(folder).condition == "unfinished"
    cut(folder / "work" / "codes-00000.safetensors")  # a power cut may do this
    index_run(copy, Reporter(), ["replicas-0"])
    assert calls.count(0) == 2 and calls.count(1000) == 1
    assert state_of(folder).is_ready and not (folder / "work").exists()
    assert [e["example"] for e in table(copy, "examples")] == [e["example"] for e in table(indexed, "examples")]


# ── Parts ──


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["jumprelu", "relu", "topk", "bias", "relu with a bias", "topk with a bias", "double"])
def test_active_entries_are_those_of_encode(kind: str) -> None:
    encoder, threshold = normal(0, 40, 8), normal(1, 40).abs()
    more: dict[str, Any] = {}
    if (activation := kind.split()[0]) in ("relu", "topk"):
        more = {"activation": activation, "k": 5 if activation == "topk" else None}
    if kind.endswith("bias"):
        more["bias"] = normal(2, 40)
    sae = SparseAutoencoder(encoder, None, threshold, normal(3, 8), **more)
    sae = sae.to(dtype=torch.float64) if kind == "double" else sae
    x = normal(4, 200, 8)
    latent, row, value = active_entries(sae, x)
    dense = sae.encode(x).numpy()
    found = sparse.coo_array((value, (row, latent)), shape=dense.shape).toarray()
    assert np.allclose(found, dense, atol=1e-6) and (np.diff(latent) >= 0).all()


def test_files_of_other_origin_are_not_read(tmp_path: Path) -> None:
    rows = TensorRows(normal(0, 50, 8))
    first, second = (SparseAutoencoder(normal(seed, 16, 8), None, torch.ones(16), torch.zeros(8)) for seed in (1, 2))
    CodeStore(tmp_path / "work", first, rows, {"sae": "1"}).fill()
    store = CodeStore(tmp_path / "work", second, rows, {"sae": "2"})
    store.fill()
    assert store.counts().tolist() == (second.encode(rows.read(np.arange(50))) > 0).sum(dim=0).tolist()


def test_kin_are_what_slow_references_say() -> None:
    rng = np.random.default_rng(0)
    active = rng.random((400, 6)) < 0.3
    active[:, 1] = active[:, 0] & (rng.random(400) < 0.4)  # a child of 0
    active[:, 5] = False
    found = kin(sparse.csc_array(active.astype(np.float32)))
    assert found.parents[1][0]["latent"] == 0 and found.parents[1][0]["given"] == 1.0
    assert {child["latent"] for child in found.children[0]} == {1} and found.parents[0] == []
    phi = np.corrcoef(active[:, 0], active[:, 1])[0, 1]
    assert found.together[0][0] == {"latent": 1, "value": pytest.approx(phi, abs=1e-4)}
    assert found.together[5] == []
    for latent, others in enumerate(found.together[:5]):
        expected = {j: np.corrcoef(active[:, latent], active[:, j])[0, 1] for j in range(5) if j != latent}
        assert {o["latent"] for o in others} == {j for j, value in expected.items() if value > 0}


def test_near_directions_have_near_places() -> None:
    centres = torch.nn.functional.normalize(normal(0, 4, 16), dim=1)
    group = np.repeat(np.arange(4), 25)
    directions = torch.nn.functional.normalize(centres[group] + 0.1 * normal(1, 100, 16), dim=1)
    numbers = np.arange(100) * 3
    near = nearest_directions(directions, numbers, 20)
    assert (near.latent % 3 == 0).all() and (near.latent != numbers[:, None]).all()
    best = (directions @ directions.T).fill_diagonal_(-2).max(dim=1)
    assert near.cosine[:, 0] == pytest.approx(best.values.numpy()) and (near.latent[:, 0] == 3 * best.indices.numpy()).all()
    places = layout(near, numbers, 0)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(100)
    assert (group[distance.argmin(axis=1)] == group).mean() > 0.95
    assert np.array_equal(places, layout(near, numbers, 0))
