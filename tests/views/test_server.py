"""The server answers as the index, the labels and the model do, and says what is missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.views.explorer_samples import NAME, client_of, found_goals, kept_tokens, make_explorer, with_own_labels
from tests.views.live_samples import SITE, TEXT, WIDTH, talking
from tests.views.samples import HOSTILE

from kyomei.errors import DataError, ModelError, RunError
from kyomei.views.live import Live
from kyomei.views.queries import Index
from kyomei.views.server import Explorer
from kyomei.views.server.export import export_to
from kyomei.views.server.standing import notes
from kyomei.views.strings import STRINGS, catalogue


@pytest.fixture(scope="module")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Explorer:
    return make_explorer(tmp_path_factory.mktemp("run"), names=(NAME, "replicas-1"))


@pytest.fixture(scope="module")
def client(explorer: Explorer) -> Iterator[TestClient]:
    for client in client_of(explorer):
        ready(client)
        yield client


def ready(client: TestClient) -> dict[str, Any]:
    """The state once the model is loaded, or cannot be."""
    for _ in range(300):
        state: dict[str, Any] = client.get("/api/state").json()
        if state["model"]["condition"] != "loading":
            return state
        time.sleep(0.1)
    raise AssertionError("the model is still being loaded")


def keys(state: dict[str, Any]) -> list[str]:
    return [note["key"].removeprefix("state.") for note in state["notes"]]


# ── Reading ──


def test_the_list_pages_sorts_and_filters_as_the_index_does(client: TestClient, explorer: Explorer) -> None:
    index = Index(explorer.dictionaries[NAME].index)
    page = client.get("/api/features", params={"sort": "-frequency", "page": 2, "size": 7}).json()
    expected = index.features(order=("frequency", True), page=(2, 7))
    assert [row["latent"] for row in page["rows"]] == [row["latent"] for row in expected["rows"]]
    assert (page["total"], page["page"], page["size"]) == (WIDTH, 2, 7)
    some = client.get("/api/features", params={"min_frequency": 0.05, "max_frequency": 0.2, "status": "not certified"}).json()
    assert 0 < some["total"] < WIDTH and all(0.05 <= row["frequency"] <= 0.2 for row in some["rows"])
    assert client.get("/api/features", params={"q": "self"}).json()["total"] == index.features(q="self")["total"] > 0


def test_a_feature_has_its_figures_examples_and_document(client: TestClient) -> None:
    live = client.get("/api/features", params={"sort": "-frequency", "size": 1}).json()["rows"][0]["latent"]
    feature = client.get(f"/api/features/{live}").json()
    assert feature["latent"] == live and feature["why"] == "There is no certificate that says." and feature["labels"] == []
    assert sum(feature["histogram"]) > 0
    examples = client.get(f"/api/features/{live}/examples", params={"kind": "decile", "decile": 9}).json()["examples"]
    assert examples and {example["decile"] for example in examples} == {9}
    shown = examples[0]
    document = client.get(f"/api/documents/{shown['document']}", params={"around": shown["start"], "size": 20_000}).json()
    stretch = "".join(shown["tokens"])
    assert document["text"][shown["start"] - document["start"] :].startswith(stretch)


def test_each_dictionary_has_its_own_answers(client: TestClient, explorer: Explorer) -> None:
    for name in explorer.dictionaries:
        overview = client.get("/api/overview", params={"dictionary": name}).json()
        assert overview["name"] == name and overview["verdict"]["headline"] == overview["run"]["title"] == HOSTILE
    one, other = (client.get("/api/features/0", params={"dictionary": name}).json() for name in explorer.dictionaries)
    assert one["max_activation"] != other["max_activation"]


@pytest.mark.parametrize(
    "address, status",
    [
        ("features/96", 404),
        ("features/-1", 404),
        ("features/99999999999999999999", 404),
        ("features/x", 400),
        ("features?sort=nothing", 400),
        ("features?sort=latent;drop", 400),
        ("features?page=0", 400),
        ("features?size=100000", 400),
        (f"features?q={'x' * 600}", 400),
        ("features/1/examples?kind=all", 400),
        ("documents/77", 404),
        ("state?dictionary=replicas-9", 404),
        ("strings?lang=de", 400),
        ("nothing", 404),
    ],
)
def test_a_wrong_question_is_told_in_the_same_words_as_every_error(client: TestClient, address: str, status: int) -> None:
    answer = client.get(f"/api/{address}")
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"expected", "found", "do"}
    assert "Traceback" not in answer.text


def test_an_error_of_ours_tells_nothing_of_what_is_inside(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(Index, "overview", broken)
    for client in client_of(explorer, read_only=True):
        answer = client.get("/api/overview")
        assert answer.status_code == 500 and set(answer.json()) == {"expected", "found", "do"}
        assert "secret" not in answer.text and "Traceback" not in answer.text


def test_dictionaries_are_compared_latent_by_latent(client: TestClient, explorer: Explorer) -> None:
    a, b = explorer.dictionaries
    found = client.get("/api/compare", params={"a": a, "b": b, "size": 20}).json()
    assert sum(found["counts"].values()) == found["total"] == WIDTH - found["dead"]
    assert len(found["rows"]) == 20 and found["counts"]["only"] > WIDTH / 2  # random directions have nothing in common
    same = client.get("/api/compare", params={"a": a, "b": a, "kind": "shared", "size": 500}).json()
    assert same["counts"]["shared"] == same["total"] == len(same["rows"])
    assert all(row["partners"][0]["latent"] == row["latent"] and row["top_tokens"] for row in same["rows"])
    few = client.get("/api/compare", params={"a": a, "b": b, "kind": "shared"}).json()
    assert few["total"] == found["counts"]["shared"] and few["counts"] == found["counts"]
    for wrong in ({"a": a}, {"a": a, "b": b, "kind": "all"}, {"a": a, "b": b, "page": 0}):
        assert client.get("/api/compare", params=wrong).status_code == 400
    assert client.get("/api/compare", params={"a": a, "b": "../x"}).status_code == 404


# ── The live model ──


def test_what_is_tried_is_what_the_model_does(client: TestClient, explorer: Explorer) -> None:
    assert explorer.load_model is not None
    live = Live(explorer.load_model(), explorer.dictionaries[NAME].load(), SITE)
    answer = client.post("/api/try", json={"text": TEXT}).json()
    assert answer == json.loads(json.dumps(live.activations(live.window(TEXT))))
    latent = int(live.code(live.window(TEXT))[5].argmax())
    edits = [{"latent": latent, "kind": "scale", "value": 1}, {"latent": 3, "kind": "steer", "value": 0.0}]
    changed = client.post("/api/try", json={"text": TEXT, "edits": edits, "new_tokens": 3}).json()
    assert set(changed["intervention"]["kl"]) == {0.0} and "intervene(" in changed["python"]
    stronger = client.post("/api/try", json={"text": TEXT, "edits": [{"latent": latent, "kind": "scale", "value": 30}]}).json()
    assert stronger["intervention"]["kl_next"] > 0


def test_a_conversation_is_tried_through_the_models_template(explorer: Explorer, client: TestClient) -> None:
    messages = [{"role": "user", "content": "print(x)"}]
    assert client.get("/api/state").json()["model"]["chat"] is False
    refused = client.post("/api/try", json={"messages": messages})
    assert refused.status_code == 400 and "without a template" in refused.json()["found"]
    for other in client_of(replace(explorer, load_model=talking)):
        ready(other)
        assert other.get("/api/state").json()["model"]["chat"] is True
        answer = other.post("/api/try", json={"messages": messages, "predict": True, "new_tokens": 3}).json()
        assert "".join(token["text"] for token in answer["tokens"]) == "[user] print(x)\n[answer]"
        text = other.post("/api/try", json={"text": "[user] print(x)\n[answer]"}).json()
        assert answer["active"] == text["active"] and any(answer["active"])
        assert "[answer]" in answer["python"]


def test_search_by_text_finds_what_fires_on_it(client: TestClient) -> None:
    rows = client.post("/api/search", json={"text": "import os", "most": 5}).json()["rows"]
    assert len(rows) == 5 and [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert all(row["activation"] > 0 and "top_tokens" in row and "status" in row for row in rows)


def test_what_an_example_needs_is_of_the_window_it_was_harvested_in(client: TestClient, explorer: Explorer) -> None:
    latent = client.get("/api/features", params={"sort": "-max_activation", "size": 1}).json()["rows"][0]["latent"]
    example = client.get(f"/api/features/{latent}/examples", params={"kind": "top"}).json()["examples"][0]
    said = client.post("/api/needs", json={"latent": latent, "example": example["example"]}).json()
    assert said["activation"] == pytest.approx(example["activation"], rel=1e-3)
    assert len(said["falls"]) == example["position"]
    at = example["window"] * kept_tokens(explorer).context + example["position"]
    assert said["tokens"][-1]["text"] == kept_tokens(explorer).text_at(at)
    typed = client.post("/api/needs", json={"latent": latent, "text": "a b c", "position": 2})
    assert typed.status_code == 200 and len(typed.json()["falls"]) == 2


@pytest.mark.parametrize(
    "route, body, status",
    [
        ("try", {}, 400),
        ("try", {"text": "a", "messages": []}, 400),
        ("try", {"text": " "}, 400),
        ("try", {"text": "word " * 3000}, 400),
        ("try", {"text": "x" * 30_000}, 400),
        ("try", {"text": "a", "edits": [{"latent": 1, "kind": "delete"}]}, 400),
        ("try", {"text": "a", "edits": [{"latent": 10**6, "kind": "ablate"}]}, 400),
        ("try", {"text": "a", "edits": [{"latent": 1, "kind": "clamp", "value": 1e300}]}, 400),
        ("try", {"text": "a", "edits": [{"latent": 1, "kind": "ablate"}] * 40}, 400),
        ("try", {"text": "a", "new_tokens": 5000}, 400),
        ("try", {"messages": [{"role": "user", "content": "hello"}]}, 400),
        ("try", {"text": "a", "more": 1}, 400),
        ("search", {"text": ""}, 400),
        ("needs", {"latent": 1}, 400),
        ("needs", {"latent": 1, "example": 10**9}, 404),
        ("needs", {"latent": 1, "text": "a b", "position": 99}, 400),
        ("labels", {"latent": WIDTH, "label": "x"}, 404),
        ("labels", {"latent": True, "label": "x"}, 400),
        ("labels", {"latent": 1, "label": "x" * 300}, 400),
        ("labels/merge", {"lines": "nothing"}, 400),
    ],
)
def test_a_wrong_request_is_refused_in_words(client: TestClient, route: str, body: dict[str, Any], status: int) -> None:
    answer = client.post(f"/api/{route}", json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"expected", "found", "do"}


def test_no_more_work_waits_for_the_model_than_can(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()

    def slow(*_: object) -> dict[str, Any]:
        held.wait(20)
        return {}

    for client in client_of(explorer):
        ready(client)
        monkeypatch.setattr(Live, "activations", slow)
        answers: list[int] = []

        def ask(client: TestClient = client, answers: list[int] = answers) -> None:
            answers.append(client.post("/api/try", json={"text": "a"}).status_code)

        asking = [threading.Thread(target=ask) for _ in range(22)]
        for thread in asking:
            thread.start()
        deadline = time.monotonic() + 15
        while answers.count(503) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client.get("/api/state").status_code == 200  # reading goes on meanwhile
        held.set()
        for thread in asking:
            thread.join()
        assert sorted(answers) == [200] * 17 + [503] * 5


# ── Labels ──


def test_labels_are_written_found_exported_and_merged(explorer: Explorer, tmp_path: Path) -> None:
    for client in client_of(with_own_labels(explorer, tmp_path)):
        said = client.post("/api/labels", json={"latent": 7, "label": HOSTILE, "note": "so", "author": "ann"}).json()
        assert said["label"] == " ".join(HOSTILE.split()) and said["kind"] == "manual"
        assert [entry["latent"] for entry in client.get("/api/labels").json()["labels"]] == [7]
        assert client.get("/api/features/7").json()["labels"][0]["author"] == "ann"
        found = client.get("/api/features", params={"q": "ONMOUSEOVER"}).json()["rows"]
        assert 7 in [row["latent"] for row in found]
        assert {row["latent"]: row["label"] for row in found}[7] == said["label"]
        lines = client.get("/api/labels/export")
        assert lines.headers["content-disposition"].startswith("attachment")
        other = json.loads(lines.text) | {"author": "ben", "latent": 8}
        both = f"{lines.text}\n{json.dumps(other)}"
        assert client.post("/api/labels/merge", json={"lines": both}).json() == {"added": 1, "known": 1}
        assert [entry["author"] for entry in client.get("/api/labels").json()["labels"]] == ["ann", "ben"]


# ── States ──


def test_read_only_switches_labels_and_the_model_off(explorer: Explorer, tmp_path: Path) -> None:
    for client in client_of(with_own_labels(explorer, tmp_path), read_only=True):
        state = client.get("/api/state").json()
        assert state["model"]["condition"] == "off" and state["read_only"] and "read_only" in keys(state)
        for route, body in (("labels", {"latent": 1, "label": "x"}), ("labels/merge", {"lines": ""}), ("try", {"text": "a"})):
            assert client.post(f"/api/{route}", json=body).status_code == 409
        assert not (tmp_path / "labels.sqlite").exists()


def test_a_model_that_no_longer_loads_leaves_everything_else(explorer: Explorer) -> None:
    def gone() -> Any:
        raise ModelError("a language model", "nothing at <b>/nowhere</b>", "put it back")

    for client in client_of(replace(explorer, load_model=gone)):
        state = ready(client)
        assert state["model"] == {**state["model"], "condition": "failed"}
        assert {"key": "state.model_failed", "values": {"found": "nothing at <b>/nowhere</b>"}} in state["notes"]
        assert client.post("/api/try", json={"text": "a"}).json()["found"] == "nothing at <b>/nowhere</b>"
        assert client.get("/api/features").status_code == 200


def test_an_index_that_is_missing_damaged_or_being_made_is_said(tmp_path: Path) -> None:
    explorer = make_explorer(tmp_path)
    folder = explorer.dictionaries[NAME].index
    running = [False]
    for client in client_of(replace(explorer, load_model=None, is_running=lambda: running[0])):
        state = client.get("/api/state").json()
        assert {"no_model", "no_certificate"} <= set(keys(state)) and "index_missing" not in keys(state)
        facts = (folder / "index.json").read_bytes()
        (folder / "index.json").unlink()
        assert "index_missing" in keys(client.get("/api/state").json())
        running[0] = True
        assert "index_running" in keys(client.get("/api/state").json())
        refused = client.get("/api/features")
        assert refused.status_code == 409 and set(refused.json()) == {"expected", "found", "do"}
        running[0] = False
        (folder / "index.json").write_bytes(facts)
        assert client.get("/api/features").status_code == 200
        whole = (folder / "examples.parquet").read_bytes()
        (folder / "examples.parquet").write_bytes(whole[:100])
        assert "index_broken" in keys(client.get("/api/state").json())


def test_an_index_that_is_masked_otherwise_is_not_shown(explorer: Explorer) -> None:
    for client in client_of(replace(explorer, redaction="asked for since", load_model=None)):
        state = client.get("/api/state").json()
        assert {each["condition"] for each in state["dictionaries"]} == {"stale"} and "index_broken" in keys(state)
        for route in ("features", "features/1", "features/1/examples", "documents/0", "map", "overview"):
            answer = client.get(f"/api/{route}")
            assert answer.status_code == 409 and "masked" in answer.json()["expected"]


def test_every_state_has_its_sentence() -> None:
    whole = {"condition": "ready", "reason": "", "has_text": True, "certificate_state": "holds"}
    model = {"condition": "ready", "reason": None, "no_predictions": ""}
    plain: dict[str, Any] = {"replicas": 3, "live": 5, "writable": True, "read_only": False, "stale_labels": 0}
    assert notes(whole, model, **plain) == []
    for changes, key in (
        (({**whole, "has_text": False}, model, {}), "no_text"),
        (({**whole, "certificate_state": "none"}, model, {}), "no_certificate"),
        (({**whole, "certificate_state": "expired"}, model, {}), "expired_certificate"),
        ((None, model, {}), "index_missing"),
        (({**whole, "condition": "running"}, model, {}), "index_running"),
        (({**whole, "condition": "damaged", "reason": "cut"}, model, {}), "index_broken"),
        ((whole, {**model, "condition": "none"}, {}), "no_model"),
        ((whole, {**model, "condition": "loading"}, {}), "model_loading"),
        ((whole, {**model, "condition": "failed", "reason": {"found": "x."}}, {}), "model_failed"),
        ((whole, {**model, "no_predictions": "it has no head"}, {}), "no_causal_head"),
        ((whole, model, {"live": 0}), "no_live_latents"),
        ((whole, model, {"replicas": 1}), "no_replicas"),
        ((whole, model, {"writable": False}), "read_only_folder"),
        ((whole, model, {"read_only": True}), "read_only"),
        ((whole, model, {"stale_labels": 2}), "stale_labels"),
    ):
        index, live, more = changes
        (note,) = notes(index, live, **{**plain, **more})
        assert note["key"] == f"state.{key}" and note["key"] in STRINGS
        assert catalogue("ja")[note["key"]].format(**note["values"]) != catalogue("en")[note["key"]].format(**note["values"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    explorer = make_explorer(tmp_path / "run", load_model=None)
    (tmp_path / "run" / "explore").chmod(0o500)
    try:
        for client in client_of(explorer):
            assert "read_only_folder" in keys(client.get("/api/state").json())
            assert client.post("/api/labels", json={"latent": 1, "label": "x"}).status_code == 409
    finally:
        (tmp_path / "run" / "explore").chmod(0o700)


def test_goals_lead_to_their_features_and_features_to_their_goals(explorer: Explorer, tmp_path: Path) -> None:
    known = found_goals(explorer.dictionaries[NAME].digest)
    with_goals = replace(explorer, goals=lambda: known)
    for client in client_of(with_goals, read_only=True):
        found = client.get("/api/goals").json()
        assert [goal["name"] for goal in found["goals"]] == [HOSTILE, "old"] and found["others"] == ["foreign"]
        told, old = found["goals"]
        assert told["set"] == known[HOSTILE]["figures"]["auc"] and told["all"]["value"] == 0.97 and told["expired"] is None
        assert [(each["latent"], each["weight"]) for each in told["features"]] == [(3, 2.5), (5, -1.25)]
        row = client.get("/api/features", params={"q": "3"}).json()["rows"]
        assert told["features"][0]["top_tokens"] == next(each for each in row if each["latent"] == 3)["top_tokens"]
        assert old["expired"].startswith("2026-02-01")
        goals = client.get("/api/features/5").json()["goals"]
        assert [(goal["name"], goal["weight"], goal["recall"]["value"]) for goal in goals] == [
            (HOSTILE, -1.25, 0.8),
            ("old", -1.25, 0.8),
        ]
        assert client.get("/api/features/4").json()["goals"] == []
        other = client.get("/api/goals", params={"dictionary": "replicas-1"}).json()
        assert other == {"goals": [], "others": [HOSTILE, "old", "foreign"]}

    def damaged() -> Any:
        raise DataError("goals", "damage", "find them again with `kyomei goals`")

    for client in client_of(replace(explorer, goals=damaged), read_only=True):
        assert client.get("/api/goals").json()["do"] == "find them again with `kyomei goals`"
        assert client.get("/api/features/5").json()["goals"] == []
    export_to(with_goals, tmp_path / "site", "en")
    held = json.loads((tmp_path / "site/data" / NAME / "goals.json").read_text(encoding="utf-8"))
    assert [goal["name"] for goal in held["goals"]] == [HOSTILE, "old"]


# ── An export ──


def test_an_export_holds_what_the_server_answers(explorer: Explorer, client: TestClient, tmp_path: Path) -> None:
    count = export_to(explorer, tmp_path / "site", "ja")
    assert count == sum(path.is_file() for path in (tmp_path / "site").rglob("*"))
    data = tmp_path / "site" / "data"

    def held(name: str) -> Any:
        text = (data / name).read_text(encoding="utf-8")
        assert "<" not in text
        return json.loads(text)

    state = held("state.json")
    assert state["language"] == "ja" and state["model"]["condition"] == "off" and state["read_only"]
    for name in explorer.dictionaries:
        rows = held(f"{name}/list.json")["rows"]
        assert [row["latent"] for row in rows] == list(range(WIDTH)) and "token_text" in rows[0]
        feature = held(f"{name}/features/5.json")
        examples = client.get("/api/features/5/examples", params={"dictionary": name}).json()["examples"]
        assert feature.pop("examples") == examples
        assert feature == client.get("/api/features/5", params={"dictionary": name}).json()
        assert HOSTILE in held(f"{name}/documents/1.json")["text"]
    assert held("strings-ja.json") == catalogue("ja")
    pair = held("compare/replicas-0~replicas-1.json")
    asked = client.get("/api/compare", params={"a": "replicas-0", "b": "replicas-1", "size": WIDTH}).json()
    assert pair == asked
    assert export_to(explorer, tmp_path / "site", "en") == count  # over one of ours
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="something else"):
        export_to(explorer, tmp_path / "other", "en")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


# ── A process ──


def test_a_process_serves_and_a_signal_ends_it(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from tests.views.explorer_samples import make_explorer
from kyomei.signals import listening as hearing
from kyomei.views.server import Options
from kyomei.views.server.serving import address_of, listening, serve
with hearing():
    explorer = make_explorer(Path({str(tmp_path)!r}))
    bound = listening("127.0.0.1", 0)
    options = Options(port=bound.getsockname()[1])
    print(address_of(options), flush=True)
    serve(explorer, options, bound, browser=False)
    print("ended", flush=True)
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{address}api/features?size=3", timeout=30) as answer:
            assert len(json.load(answer)["rows"]) == 3
            assert "uvicorn" not in str(answer.headers).lower()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
        assert rest.strip() == "ended" and process.returncode == 0
    finally:
        process.kill()
