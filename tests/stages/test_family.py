"""One harvest, many dictionaries, through the verbs in this process: runs on another's rows, families, comparisons, lists."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from kyomei.cli import app
from kyomei.config import Recipe
from kyomei.config.family import Family
from kyomei.errors import RecipeError, RunError
from kyomei.runs import BIRTH, RECIPE, Run
from kyomei.stages.certify import certify
from kyomei.stages.harvested import activations

A, B = "model.layers.1.mlp", "model.layers.2.mlp"
SOURCE = {
    "source.num_tokens": 12_000,
    "source.context": 64,
    "source.windows_per_shard": 24,
    "source.spread": 4,
}
TRAIN = {
    "mechanism.name": "topk",
    "dictionary.width": 32,
    "dictionary.l0": 4,
    "train.steps": 10,
    "train.batch_rows": 64,
}


def options(*settings: dict[str, object]) -> list[str]:
    together = {key: value for each in settings for key, value in each.items()}
    return [part for key, value in together.items() for part in ("--set", f"{key}={value}")]


def kyomei(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> Result:
    result = kyomei(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def refused(*arguments: str | Path) -> str:
    """One line, and no traceback."""
    result = kyomei(*arguments)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("kyomei: Expected"))
    return line


def rows_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("shard-*.safetensors")]


@pytest.fixture(scope="module")
def harvest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites, harvested once."""
    folder = tmp_path_factory.mktemp("family") / "H"
    done("harvest", folder, "--site", A, "--site", B, *options(SOURCE))
    return folder


@pytest.fixture(scope="module")
def trained(harvest: Path) -> Path:
    folder = harvest.parent / "R"
    done("train", folder, "--from", harvest, "--site", B, *options(TRAIN))
    return folder


def copied(harvest: Path, trained: Path, into: Path) -> tuple[Path, Path]:
    return shutil.copytree(harvest, into / "H"), shutil.copytree(trained, into / "R")


# ── A run on the harvest in another folder ──


@pytest.mark.slow
def test_a_run_on_another_harvest_is_the_run_that_harvests_itself(harvest: Path, trained: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    done("train", own, "--site", B, *options(SOURCE, TRAIN))
    assert rows_files(own) and not rows_files(trained) and not (trained / "tokens").exists()
    for folder in (own, trained):
        done("check", folder)
        done("certify", folder)
        done("measure", folder)
        done("report", folder)
    same = ["replicas/0/sae.safetensors", "controls/gaussian/topk/1/sae.safetensors", "evidence.json", "examples.json"]
    assert all((own / name).read_bytes() == (trained / name).read_bytes() for name in [*same, "premises.json"])
    ours, theirs = (json.loads((folder / "certificate.json").read_text()) for folder in (own, trained))
    assert ours["features"] == theirs["features"] and ours["data"] == theirs["data"]
    manifest, host = (json.loads((folder / "manifest.json").read_text()) for folder in (trained, harvest))
    assert manifest["harvest"]["path"] == "../H" and len(manifest["harvest"]["sha256"]) == 64
    assert manifest["split"] == host["split"] and manifest["sites"] == [B] and manifest["model"] == host["model"]
    found = json.loads(done("compare", own, trained, "--json").stdout)
    assert [row["run"] for row in found["dictionaries"]] == ["own", "R"]
    # The harvest of two sites is another than that of one, though the rows are the same.
    assert "Different evidence rows" in found["notes"][0]


@pytest.mark.slow
def test_nothing_is_written_to_a_harvest_that_is_learnt_from(harvest: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in harvest.rglob("*")}
    done("train", tmp_path / "one", "--from", harvest, "--site", A, *options(TRAIN))
    done("train", tmp_path / "two", "--from", tmp_path / "one", "--site", B, *options(TRAIN))  # from the run's harvest
    assert {path: path.stat().st_mtime_ns for path in harvest.rglob("*")} == before
    named = json.loads((tmp_path / "two" / "manifest.json").read_text())["harvest"]
    assert (tmp_path / "two" / named["path"]).resolve() == harvest.resolve()


@pytest.mark.slow
def test_random_weights_are_harvested_once_for_all_runs(harvest: Path, trained: Path, tmp_path: Path) -> None:
    host, first = copied(harvest, trained, tmp_path)
    second = shutil.copytree(first, tmp_path / "S")
    done("certify", first, "--random-weights")
    before = {path: path.stat().st_mtime_ns for path in rows_files(host)}
    assert len(before) == 2 * len(rows_files(harvest))
    done("certify", second, "--random-weights")
    assert {path: path.stat().st_mtime_ns for path in rows_files(host)} == before
    assert not rows_files(first) and not rows_files(second)


def test_the_source_is_the_harvests(harvest: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = refused("train", run, "--from", harvest, "--site", A, "--tokens", "5000", "--text", "elsewhere", *options(TRAIN))
    assert "source.num_tokens = 5000 (there 12000)" in said and "source.text = 'elsewhere'" in said and "--from" in said
    said = refused("train", run, "--from", harvest, "--site", "model.layers.0.mlp", *options(TRAIN))
    assert f"{A}, {B}" in said and "'model.layers.0.mlp'" in said
    (tmp_path / "file.yaml").write_text("source: {context: 32}\n")
    assert "source.context = 32" in refused("train", run, "--from", harvest, "--recipe", tmp_path / "file.yaml")
    assert not run.exists()


def test_a_harvest_that_is_missing_or_has_not_ended_is_named(tmp_path: Path) -> None:
    assert "no manifest.json in" in refused("train", tmp_path / "run", "--from", tmp_path / "nothing")
    Run.create(tmp_path / "begun", Recipe())
    said = refused("train", tmp_path / "run", "--from", tmp_path / "begun")
    assert "has not ended" in said and "Wait for it" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_moving_both_works_and_moving_one_is_said(harvest: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    host, run = copied(harvest, trained, tmp_path / "there")
    done("train", run, "--resume")  # nothing needs to be said again
    moved = host.rename(tmp_path / "elsewhere")
    for verb in ("certify", "measure", "report"):
        said = refused(verb, run)
        assert "none in" in said and "--resume --from FOLDER" in said
    assert "the harvest that" in refused("train", run, "--resume")
    done("train", run, "--resume", "--from", moved)
    assert json.loads((run / "manifest.json").read_text())["harvest"]["path"] == "../../elsewhere"
    done("certify", run)


@pytest.mark.slow
def test_another_harvest_is_refused_by_its_hash(harvest: Path, trained: Path, tmp_path: Path) -> None:
    host, run = copied(harvest, trained, tmp_path)
    index = next(host.glob(f"activations/evidence/{B}/index.json"))
    index.write_text(index.read_text() + "\n")
    assert "another one (sha256" in refused("certify", run)
    assert "another one (sha256" in refused("train", run, "--resume", "--from", host)
    own = tmp_path / "own"
    Run.create(own, Recipe.read(run / RECIPE))
    assert "a harvest of its own" in refused("train", own, "--resume", "--from", harvest)


def test_a_harvest_is_not_overwritten_by_what_learns_from_it(harvest: Path) -> None:
    assert "a run outside of" in refused("train", harvest, "--overwrite", "--from", harvest, "--site", A, *options(TRAIN))
    assert rows_files(harvest)


@pytest.mark.slow
def test_a_kill_at_birth_does_not_lose_the_harvest(harvest: Path, trained: Path, tmp_path: Path) -> None:
    """A kill between recipe and manifest must not turn it into a run that harvests again."""
    host, run = copied(harvest, trained, tmp_path)
    for path in run.iterdir():
        if path.name not in ("manifest.json", RECIPE):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").unlink()
    (run / BIRTH).write_text(json.dumps({**manifest, "stages": {"harvest": manifest["stages"]["harvest"]}, "outputs": {}}))
    done("train", run, "--resume")
    assert not rows_files(run) and (run / "replicas/0/sae.safetensors").exists() and rows_files(host)


# ── Families ──


def test_several_values_make_members_with_readable_names() -> None:
    asked = {"dictionary.width": [512, 1024], "mechanism.name": ["gba", "topk"], "source.sites": [A, B, A], "train.lr": [0.001]}
    family = Family(Recipe()).updated(asked)
    assert list(family.members()) == [f"{s}_{m}_width-{w}" for s in (A, B) for m in ("gba", "topk") for w in (512, 1024)]
    assert all(len(recipe.source.sites) == 1 for recipe in family.members().values())
    assert family.base.source.sites == (A, B) and family.base.train.lr == 0.001
    assert list(Family(Recipe()).members()) == [""]
    assert list(Family(Recipe()).updated({"resonance.frequencies": [0.01, 0.02]}).members()) == [""]  # that takes a list
    assert list(family.updated({"dictionary.width": 64}).axes) == ["source.sites", "mechanism.name"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"source.context": [32, 64]}, "share a harvest"),
        ({"dictionary.width": []}, "an empty list"),
        ({"dictionary.width": [64, "wide"]}, "dictionary.width"),
        ({"dictionary.widht": [64, 128]}, "did you mean 'dictionary.width'"),
        ({"mechanism.name": ["gba", "magic"]}, "mechanism"),
    ],
)
def test_members_that_cannot_be_are_refused(asked: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=f"(?i){said}"):
        Family(Recipe()).updated(asked)


def test_where_one_run_is_meant_several_values_are_refused() -> None:
    assert "one value of dictionary.width here" in refused("plan", "--width", "64", "--width", "128")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("families") / "F"
    trained = done("train", folder, "--site", A, "--site", B, "--width", "32", "--width", "48", *options(SOURCE, {
        key: value for key, value in TRAIN.items() if key != "dictionary.width"
    }))  # fmt: skip
    return folder, trained


@pytest.mark.slow
def test_every_site_and_width_is_learnt_from_one_harvest(family: tuple[Path, Result]) -> None:
    folder, trained = family
    names = [f"{site}_width-{width}" for site in (A, B) for width in (32, 48)]
    assert sorted(path.name for path in (folder / "members").iterdir()) == names
    assert trained.stderr.count("harvest replica-0:") == 1 and not rows_files(folder / "members")
    for name in names:
        manifest = json.loads((folder / "members" / name / "manifest.json").read_text())
        assert manifest["sites"] == [name.split("_")[0]] and manifest["harvest"]["path"] == "../.."
        config = json.loads((folder / "members" / name / "replicas/0/config.json").read_text())
        assert config["width"] == int(name.rsplit("-", 1)[1]) and config["provenance"]["site"] == manifest["sites"][0]
        assert f" {name} " in trained.stdout
    again = json.loads(done("train", folder, "--resume", "--json").stdout)
    assert list(again["members"]) == names and again["failed"] == {}
    assert "was (), now" not in refused("train", folder, "--resume", "--width", "32")


@pytest.mark.slow
def test_verbs_on_a_family_do_all_members_and_name_those_that_fail(family: tuple[Path, Result], tmp_path: Path) -> None:
    folder = shutil.copytree(family[0], tmp_path / "F")
    first, *others = sorted((folder / "members").iterdir())
    (first / "replicas/0/sae.safetensors").write_bytes(b"damaged")
    for verb in ("certify", "measure"):
        result = kyomei(verb, folder, "--json")
        assert result.exit_code == 1, result.stderr
        facts = json.loads(result.stdout)
        assert list(facts["failed"]) == [first.name] and list(facts["members"]) == [path.name for path in others]
        assert result.stderr.count(f"{first.name} failed: Expected") == 1
    assert all((path / "certificate.json").exists() and (path / "evidence.json").exists() for path in others)
    done("report", folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(f'href="members/{path.name}/report.html"' in page and (path / "report.html").exists() for path in others)
    assert "<svg" in page and "Different sites" in page
    found = kyomei("check", folder)
    assert found.exit_code == 0 and all((path / "premises.json").exists() for path in (first, *others)), found.output
    assert found.stderr.count("check: ") == 2 and f"{first.name} " in found.stdout  # once for each site


@pytest.mark.slow
def test_a_family_on_another_harvest(harvest: Path, tmp_path: Path) -> None:
    """All sites of the harvest, unless some are named."""
    folder = tmp_path / "F"
    done("train", folder, "--from", harvest, *options(TRAIN), "--mechanism", "topk", "--mechanism", "l1")
    assert len(list((folder / "members").iterdir())) == 4 and not rows_files(folder)
    moved = shutil.copytree(harvest, tmp_path / "moved")
    done("train", folder, "--resume", "--from", moved)
    named = {json.loads(path.read_text())["harvest"]["path"] for path in folder.rglob("members/*/manifest.json")}
    assert named == {"../../../moved"}


@pytest.mark.slow
def test_a_harvest_of_several_sites_is_trained_as_a_family(harvest: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(harvest, tmp_path / "H")
    refused("train", folder, "--resume", *options(TRAIN))  # other settings than the harvest was begun with
    said = refused("certify", folder)
    assert "members of the family" in said and not (folder / "members").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ((A, A), None),
        ((A, "model.embed_tokens"), None),
        ((A, "lm_head"), None),
        ((A, "model.layers.9.mlp"), "a near one"),
    ],
    ids=["twice", "of another kind", "of another width", "unknown"],
)
def test_sites_of_any_kind_are_learnt_or_refused(tmp_path: Path, sites: tuple[str, str], said: str | None) -> None:
    folder = tmp_path / "F"
    asked = ["train", folder, "--site", sites[0], "--site", sites[1], *options(SOURCE, TRAIN), "--set", "train.steps=1"]
    if said is not None:
        assert said in refused(*asked) and not folder.exists()
        return
    result = kyomei(*asked)
    if len(set(sites)) == 1:
        assert result.exit_code == 0 and (folder / "replicas/0/sae.safetensors").exists() and not (folder / "members").exists()
        return
    # One that cannot be learnt, for instance with fewer rows than dimensions, is named, and the other is learnt.
    learnt = {path.parents[2].name for path in folder.glob("members/*/replicas/0/sae.safetensors")}
    assert A in learnt and all(site in learnt or f"{site} failed: Expected" in result.stderr for site in sites)
    assert result.exit_code == int(len(learnt) < 2)


def test_no_stage_takes_one_of_several_sites_in_silence(harvest: Path) -> None:
    run = Run.open(harvest)
    with pytest.raises(RunError, match="a run of one site"):
        activations(run, "evidence")
    with pytest.raises(RunError, match="one run"):
        certify(run)
    assert "one run" in refused("demo", harvest)


def test_a_mesh_trains_one_run(harvest: Path) -> None:
    assert f"members{os.sep}{A}" in refused("train", harvest, "--mesh", "1x1")


# ── Side by side, and all there are ──


@pytest.mark.slow
def test_what_is_missing_is_a_dash(harvest: Path, trained: Path, tmp_path: Path) -> None:
    host, run = copied(harvest, trained, tmp_path)
    for name in ("certificate.json", "evidence.json"):
        (run / name).unlink(missing_ok=True)
    result = done("compare", run, "--out", tmp_path / "out")
    assert "–" in result.stdout and "TopK" in result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"compare.{kind}" for kind in ("html", "md", "svg", "json")}
    (row,) = json.loads((tmp_path / "out" / "compare.json").read_text())["dictionaries"]
    assert row["width"] == 32 and row["seconds"] > 0 and "fvu" not in row
    host.rename(tmp_path / "gone")
    assert "the harvest that" in done("compare", run).stdout


@pytest.mark.slow
def test_runs_are_listed_and_damaged_ones_named(harvest: Path, trained: Path, tmp_path: Path) -> None:
    copied(harvest, trained, tmp_path)
    for name, content in {"no-json": b"{", "no-recipe": None, "newer": b'{"schema_version": 99}', "list": b"[]"}.items():
        (tmp_path / name).mkdir()
        manifest = (tmp_path / "R" / "manifest.json").read_bytes() if content is None else content
        (tmp_path / name / "manifest.json").write_bytes(manifest)
    found = {row["name"]: row for row in json.loads(done("list", tmp_path, "--json").stdout)["runs"]}
    assert found["R"]["state"].startswith("harvest, train") or "train" in found["R"]["state"]
    assert found["R"]["harvest"] == "H" and found["R"]["width"] == 32 and found["R"]["site"] == B
    assert "family of 2, 0 begun" in found["H"]["state"]
    assert all(found[name]["state"].startswith("damaged: ") for name in ("no-json", "no-recipe", "newer", "list"))
    assert "damaged" in done("list", tmp_path).stdout
    assert "none at" in refused("list", tmp_path / "nowhere")
