"""The whole report: both languages, its first page, what it keeps for the next one, what it admits, and how it prints."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.views.explorer_samples import watched_stream
from tests.views.samples import certificate, feature, premises
from tests.views.test_report import Page
from tests.views.test_spelling import seconds
from typer.testing import CliRunner

from kyomei.cli import app
from kyomei.errors import DataError, KyomeiError
from kyomei.evidence.controls import CONTROLS
from kyomei.runs import Run
from kyomei.stages.measure import measure_run
from kyomei.stages.progress import Reporter
from kyomei.stages.report import FIGURES, PAGES, _wall_seconds, print_report, report_run
from kyomei.views import caveats, costs, printing
from kyomei.views.account import Account
from kyomei.views.changes import changed, figures_of
from kyomei.views.charts import FrontierPoint
from kyomei.views.findings import evidence_rows, missing_evidence
from kyomei.views.report import FeatureCard, ReportData, render_report
from kyomei.views.speech import ENGLISH, Speech
from kyomei.views.strings import STRINGS
from kyomei.views.summary import summary
from kyomei.views.words import difference_words, origin_words, sentences, why

JAPANESE = Speech("ja")
DATA = re.compile(
    r"<style>.*?</style>|<(ol|ul) class=\"(?:contexts|tokens)\".*?</\1>|<code>.*?</code>|<footer>.*</footer>", re.DOTALL
)
WORDS = re.compile(r"[A-Za-z][A-Za-z'’]+(?:[ ,;:]+[A-Za-z'’]+)+")
"""Two English words one after the other."""

SAID_BY_CHECK = [
    (
        "sparse structure",
        "78 % of the 241 stable directions of two disjoint halves were found again by the other half (cosine above 0.70); on "
        "Gaussian rows of the same covariance 0.0 %.",
        "nothing to do",
    ),
    (
        "co-occurrence",
        "Given a feature, its most frequent companion is there in 15 % of the rows (13 %–20 % for eight features in ten; by "
        "chance 18 %); rows of one feature vary 5.1 times as much along one axis as noise would; children come with their "
        "parent, see hierarchy.",
        "features that come together are found as one: read such directions as groups, and harvest more varied text",
    ),
    (
        "hierarchy",
        "3 % of the features nearly always come with another, more frequent one that often comes without them; most features "
        "point partly the same way as another, as children of one parent do.",
        "a child is found together with its parent: read such directions as 'parent and child', not as one concept",
    ),
]
"""What a check of real rows said."""


def found_premises() -> dict[str, Any]:
    head = premises()
    statuses = ("met", "not met", "unknown")
    each = [
        {**head["premises"][1], "name": name, "status": status, "meaning": meaning, "advice": advice}
        for status, (name, meaning, advice) in zip(statuses, SAID_BY_CHECK, strict=True)
    ]
    return {**head, "verdict": "not met", "premises": each, "statistics": {"sampled_rows": 500, "num_rows": 2000}}


def a_verdict(level: str = "partly", control: str = "unknown") -> dict[str, Any]:
    headline = "Trust this dictionary in part: 10 of its 100 latents (10 %) are certified; read those and no others."
    reason = {"name": "random weights", "side": control, "figure": "not tried", "meaning": "run `kyomei check` on the run"}
    return {"level": level, "headline": headline, "reasons": [reason]}


def an_account(**more: Any) -> Account:
    source = {
        "num_tokens": 5000,
        "replicas": 3,
        "evidence_share": 0.25,
        "context": 64,
        "drop_special": True,
        "norm_bound": 10.0,
    }
    source |= {"dtype": "float32", "training_dtype": "float32", "documents": 40}
    own = {name: value for name, value in certificate().items() if name != "features"}
    values = {"model": "m", "site": "s", "source": source, "verdict": a_verdict(), "own": own, "premises": found_premises()}
    return Account(**{**values, **more})


def evidence() -> dict[str, Any]:
    """Everything that can be measured, with a number for each figure."""
    share = {"value": 0.8, "null": 0.1}
    fidelity = [{"fvu": 0.2, "l0_mean": 9.0, "dead_share": 0.1}, {"fvu": 0.3, "l0_mean": 8.0, "dead_share": 0.0}]
    consistency = [{space: {"mcs_above_0.7": share} for space in ("whitened", "raw")}]
    chosen = {name: {"0.05": {"mcs_above_0.7": share}} for name in ("max activation", "Z-score", "frequency")}
    against = {
        control.title: {"whitened": {"mcs_above_0.7": share}, "survives": control.survives} for control in CONTROLS.values()
    }
    own = {
        "title": "GBA",
        "width": 64,
        "fidelity": fidelity,
        "consistency": consistency,
        "selections": chosen,
        "against": against,
    }
    crossed = {
        "recovered": 0.9,
        "recovered_error": 0.01,
        "num_tokens": 500,
        "left_special": 1,
        "left_norm": 2,
        "positions": 503,
    }
    directions = {"count": [9, 8], "n_features": 7, "interval": [5, 9], "stable_null_count": [0, 0]}
    directions["consistency"] = [{"mcs_above_0.7": share, "mcs_above_0.9": share}]
    return {
        "rows": 2000,
        "dim": 32,
        "constant": 2,
        "mechanisms": {"gba": own, "baseline topk": {**own, "title": "TopK, baseline"}},
        "cross_entropy": {"gba": crossed, "baseline topk": {**crossed, "recovered": None}},
        "directions": directions,
    }


@pytest.fixture(scope="module")
def reported(indexed: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of a small certified run, measured, with premises, and reported."""
    folder = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(indexed.folder, folder)
    run = Run.open(folder)
    with run.lock():
        run.write_json("premises.json", found_premises())
        measure_run(run, Reporter())
        report_run(run)
    return run


def words_of(page: str) -> list[str]:
    """English in a page, without token data, commands and where it comes from."""
    return WORDS.findall(re.sub("<[^>]+>", "|", DATA.sub("", page)))


def test_no_english_sentence_is_left_in_the_japanese_report(reported: Run) -> None:
    english, japanese = (reported.path(name).read_text("utf-8") for name in PAGES.values())
    names = {f"{reported.recipe.source.model}: model"}  # the title
    assert set(words_of(japanese)) <= names
    assert len(words_of(english)) > 150, "English is found where it is"
    assert Page(japanese).ids == Page(english).ids
    assert '<html lang="ja">' in japanese


def test_both_pages_keep_to_one_spelling(reported: Run) -> None:
    for language, name in PAGES.items():
        page = re.sub("<[^>]+>", "|", DATA.sub("", reported.path(name).read_text("utf-8")))
        assert "%" in page and seconds(page, language) == []
        assert not re.search(r"\d %", page), "no line ends between a number and its percent sign"


def test_cards_evidence_and_certificates_are_said_in_japanese() -> None:
    told = {status: feature(n, status) for n, status in enumerate(("certified", "split", "merged", "unstable", "dead"))}
    cards = [
        FeatureCard(f["index"], 0.9, 0.2, 3.0, 4.0, status=s, why=why(f, certificate()["rule"], speech=JAPANESE))
        for s, f in told.items()
    ]
    cards = [replace(card, origin="token", origin_words=origin_words(told[card.status], JAPANESE)) for card in cards]
    measured = evidence()
    page = render_report(
        ReportData(
            "t",
            language="ja",
            verdict=a_verdict(),
            certificates={
                "gba": certificate(),
                "baseline topk": certificate(),
                "imported x": certificate(),
                "random weights": certificate(),
            },
            certificate_notes=[difference_words("among latents", None, JAPANESE)],
            premises=found_premises(),
            sentences=sentences(measured, JAPANESE),
            evidence=evidence_rows(measured, JAPANESE),
            missing=missing_evidence({**measured, "directions": {}, "cross_entropy": {}}, JAPANESE),
            frontier=[FrontierPoint("GBA", 3.0, 0.1)],
            frequencies=[0.1, 0.0],
            mcs=[0.9],
            null_mcs=[0.1],
            features=cards,
        )
    )
    assert words_of(page) == []


def test_both_pages_of_a_run_have_every_section(reported: Run) -> None:
    sections = (
        "summary verdict changes premises certificate figures evidence features goals cost rollout watch sampling "
        "risks provenance"
    )
    for name in PAGES.values():
        assert set(sections.split()) <= Page(reported.path(name).read_text("utf-8")).ids
    page = Page(reported.path(PAGES["en"]).read_text("utf-8"))
    certified = {f["index"] for f in reported.read_json("certificate.json")["features"] if f["status"] == "certified"}
    shown = [example["index"] for example in reported.read_json("examples.json") if example["index"] in certified]
    assert page.count("article") == page.count("article", **{"class": "card status-certified"}) == min(10, len(shown))
    assert shown or "No feature is certified" in page.text_of["features"]
    for part, words in (
        ("goals", "No goal was set"),
        ("cost", "No pilot was run"),
        ("rollout", "No stage of a roll-out"),
        ("watch", "Nothing was watched yet"),
    ):
        assert words in page.text_of[part]
    assert "24,000 tokens were asked for" in page.text_of["sampling"]
    assert reported.recorded(FIGURES) and all(reported.recorded(name) for name in PAGES.values())


def test_a_report_tells_what_changed_since_the_one_before(reported: Run) -> None:
    first = [reported.path(name).read_bytes() for name in PAGES.values()]
    with reported.lock():
        report_run(reported)
    assert [reported.path(name).read_bytes() for name in PAGES.values()] == first, "nothing changed, so neither do the pages"
    lines = reported.path(FIGURES).read_text("utf-8").splitlines()
    assert len(lines) == 1
    kept = json.loads(lines[0])
    words = {name: value for name, value in kept["figures"].items() if isinstance(value, str)}
    assert words == {"verdict": "do not trust", "premises": "not met"}, "no text of the run's"
    kept["figures"]["fvu"], kept["written"] = 0.987, "2026-01-02T03:04:05+00:00"
    reported.path(FIGURES).write_text(json.dumps(kept) + "\n", "utf-8")
    with reported.lock():
        report_run(reported)
    english, japanese = (Page(reported.path(name).read_text("utf-8")) for name in PAGES.values())
    assert "99 %" in english.text_of["changes"] and "2 January 2026" in english.text_of["changes"]
    assert "99%" in japanese.text_of["changes"] and "2026年1月2日" in japanese.text_of["changes"]
    assert "Since the report of 2 January 2026" in english.text_of["summary"]


def test_figures_that_nobody_would_tell_apart_are_no_change() -> None:
    before = {"certified": 0.4, "verdict": "partly", "l0": 10.0}
    assert changed(before, {**before, "certified": 0.4001}, ENGLISH) == []
    (change,) = changed(before, {**before, "verdict": "trust"}, JAPANESE)
    assert (change.before, change.now) == ("部分的に信頼できます", "この辞書は信頼できます")
    lost, new = changed({"l0": 10.0}, {"goal <b>": 0.5}, ENGLISH)[::-1]
    assert (lost.now, new.before, new.name) == ("none", "none", "Goal <b>")
    figures = figures_of(an_account())
    assert figures["certified"] == 0.1 and figures["context"] == pytest.approx(0.3) and "decision" not in figures


@pytest.mark.parametrize("speech", [ENGLISH, JAPANESE], ids=lambda speech: speech.language)
def test_the_first_page_says_the_answer_and_what_it_rests_on(speech: Speech) -> None:
    page = summary(an_account(), [], "", speech)
    talk = " ".join(page.talk)
    assert page.level == "partly" and [tile.figure.replace(" ", "") for tile in page.tiles] == ["10%", "0.4%", "80%", "1/3"]
    assert "100" in talk and "31.6" in talk
    assert speech.t("talk.random_untried") in talk and len(page.talk) <= 9
    bare = summary(Account(verdict={"level": "not tested", "headline": "This dictionary is not tested."}), [], "", speech)
    assert speech.t("talk.no_certificate") in bare.talk and speech.t("next.certify", folder="RUN") in bare.next


def test_a_control_that_has_as_many_is_said_first_of_all_risks() -> None:
    control = {name: value for name, value in certificate(20).items() if name != "features"}
    lost = an_account(control=control, verdict=a_verdict("do not trust", "against"))
    assert "as many of that kind, 6.0 % of all latents beside 3.0 % here" in " ".join(summary(lost, [], "", ENGLISH).talk)
    assert ENGLISH.t("risk.random") in caveats.risks(lost, ENGLISH)
    won = replace(lost, verdict=a_verdict("trust", "for"))
    assert ENGLISH.t("risk.random") not in caveats.risks(won, ENGLISH)
    assert "Read nothing off this dictionary yet." in summary(lost, [], "", ENGLISH).next


@pytest.mark.parametrize(
    ("name", "missing", "there"),
    [
        ("certificate", {"own": None}, {}),
        ("premises", {"premises": None}, {}),
        ("evidence", {"evidence": None}, {"evidence": {"mechanisms": {}}}),
        ("random", {"control": None}, {"control": certificate()}),
        ("baseline", {"baselines": ()}, {"baselines": ["TopK"]}),
        ("pilot", {"pilot": None}, {"pilot": {}}),
        ("goals", {"goals": {}}, {"goals": {"a": {}}}),
    ],
)
def test_what_was_not_tested_is_admitted_and_no_more(name: str, missing: dict[str, Any], there: dict[str, Any]) -> None:
    said = ENGLISH.t(f"untested.{name}")
    assert said in caveats.untested(an_account(**missing), ENGLISH)
    assert said not in caveats.untested(an_account(**there), ENGLISH)


def test_costs_are_added_up_and_the_plan_is_the_pilots() -> None:
    seconds = {"train replicas/0": 60.0, "train replicas/1": 60.0, "train controls/gaussian/gba/0": 30.0, "other": 5.0}
    cost = {"seconds": seconds, "wall_seconds": 7200.0, "disk_bytes": 2.5e9, "cores": 2, "memory_bytes": 8e9}
    plan = {
        "seconds": {"training": 100.0, "check": 0.0},
        "total_seconds": 100.0,
        "memory_bytes": 1e9,
        "disk_bytes": 1e6,
        "price": 1.5,
    }
    account = an_account(cost=cost, pilot={"full": {"plan": plan, "tokens": 10_000, "width": 64}})
    measured = dict(costs.measured_costs(account, ENGLISH))
    assert measured["Training, 2 replicas"] == "2 minutes" and measured["All that was timed"] == "3 minutes"
    assert measured["Disk used by the run"] == "2.5 GB"
    planned = dict(costs.planned_costs(account, JAPANESE))
    assert planned["合計時間"] == "2 分" and planned["金額"] == "1.50 米ドル" and "時間：前提条件の確認" not in planned
    assert costs.planned_costs(an_account(), ENGLISH) == [] and costs.measured_costs(an_account(), ENGLISH) == []


def test_time_is_counted_from_a_command_to_its_last_result() -> None:
    day = "2026-01-01T0{}:00:00+00:00"
    acts = [(0, 2), (3, 4), (5, None)]
    history = [{"began": day.format(b), "ended": None if e is None else day.format(e)} for b, e in acts]
    results = [day.format(hour).replace(":00:00", ":30:00") for hour in (0, 1, 6)]
    assert _wall_seconds(history, results) == 3600 * (1.5 + 0 + 1.5)
    assert _wall_seconds(history, []) == 0


def test_what_a_watch_found_is_said_in_both_languages() -> None:
    turned = watched_stream()["status"]
    at = turned["alarms"]["text"]
    turned["alarms"] |= {"features": {**at, "latents": [3, 17]}, "learnt": {**at, "latents": [5]}}
    quiet = {**turned, "alarms": {}, "certificate": {**turned["certificate"], "state": "valid", "reasons": []}}
    both = [{"name": "requests", "status": turned}, {"name": "<1>", "status": quiet}]
    told = {
        ENGLISH: (
            "text as a whole.",
            "features, above all latents 3, 17.",
            "learnt on the stream",
            "2 January 2026",
            "until 1 June",
        ),
        JAPANESE: ("テキスト全体。", "主に潜在変数 3、17", "監視中に学習した方向", "2026年1月2日", "認証は失効しました"),
    }
    for speech, words in told.items():
        html = render_report(ReportData("t", language=speech.language, watched=both))
        page = Page(html)
        for word in (*words, speech.t("watch.alarm"), speech.t("watch.quiet"), "131"):
            assert word in page.text_of["watch"], word
        assert "&lt;1&gt;" in html and "<1>" not in html.split('id="watch"')[1].split("</section>")[0]
        assert speech.is_english or words_of(html.split('id="watch"')[1].split("</section>")[0]) == []
    assert figures_of(an_account(watched=both))["alarms"] == 3


def test_decision_goals_and_roll_out_are_shown_where_they_are() -> None:
    ground = {"name": "certified", "title": "certified", "stance": "between", "estimate": 0.2, "interval": [0.1, 0.3]}
    ground |= {"go": 0.3, "no_go": 0.05, "facts": {"count": 20, "latents": 100}}
    decision = {"level": "conditional", "decided_by": ["certified"], "grounds": [ground]}
    figure = {"value": 0.9, "interval": [0.8, 0.95]}
    goal = {
        "told": True,
        "figures": {"auc": figure, "precision": figure, "recall": figure},
        "detector": {"features": [{"latent": 7, "tokens": ["<b>", " x"]}]},
        "beside": {"probe": {"auc": {**figure, "value": 0.93}}, "bag of tokens": {"auc": figure}},
        "shuffled": {"range": [0.4, 0.6]},
        "data": {"documents": {"report": 50}},
    }
    step = {"stage": "tenth", "when": "2026-03-04T00:00:00+00:00", "who": "<i>", "gate": {"level": "go"}, "reason": None}
    for speech in (ENGLISH, JAPANESE):
        account = an_account(decision=decision, goals={"kind": goal})
        first = summary(account, [], "", speech)
        html = render_report(
            ReportData(
                "t",
                language=speech.language,
                verdict=account.verdict,
                decision=decision,
                summary=first,
                goals=account.goals,
                rollout=[step, {**step, "stage": "pilot", "gate": None, "reason": "back"}],
            )
        )
        page = Page(html)
        assert first.level == "conditional" and first.detail == speech.said(account.verdict["headline"])
        assert "0.93" in page.text_of["goals"] and "7" in page.text_of["goals"] and "<b>" not in html.split("<table")[-1]
        assert speech.named("stage", "tenth") in page.text_of["rollout"] and speech.t("gate.back") in page.text_of["rollout"]
        assert speech.t("decision.level.conditional") in page.text_of["summary"]
        assert ReportData.from_dict(json.loads(json.dumps(ReportData("t", summary=first).to_dict()))).summary == first


def test_numbers_and_dates_are_written_as_each_language_writes_them() -> None:
    assert (ENGLISH.number(74212), JAPANESE.number(74212)) == ("74\u202f212", "74,212")
    assert (ENGLISH.percent(0.123), JAPANESE.percent(0.123)) == ("12 %", "12%")
    assert (ENGLISH.span([0.1, 0.25]), JAPANESE.span([0.1, 0.25])) == ("0.1–0.25", "0.1〜0.25")
    assert (ENGLISH.date("2026-11-05T01:02:03+00:00"), JAPANESE.date("2026-11-05T01:02:03+00:00")) == (
        "5 November 2026",
        "2026年11月5日",
    )
    assert (ENGLISH.duration(5400), JAPANESE.duration(5400), JAPANESE.duration(60)) == ("1.5 hours", "1.5 時間", "60 秒")
    assert JAPANESE.said("no such sentence 12 %") == "no such sentence 12%" and JAPANESE.date("soon") == "soon"
    with pytest.raises(DataError):
        Speech("de")


GLOSSARY = Path(__file__).parents[2] / "docs" / "guide" / "glossary.md"
CHECKED = (
    "activation|baseline|context|dead|dictionary|direction|feature|latent|null|premises|replica|resonance|row|split|unstable"
)
OTHERWISE = {
    "column.latent", "goal.feature", "ground.baseline.says", "ground.null", "ground.null.says", "ground.structure.says",
    "list.text_found", "measured.constant", "measured.directions", "overview.all_live", "overview.frontier_about",
    "sampling.windows", "talk.certified", "talk.certified_drawn", "term.dense.means", "term.fvu.means", "term.whitened.means",
}  # fmt: skip
"""Where Japanese says it without the word, as a reader of the whole sentence finds natural."""


def test_the_catalogue_keeps_to_the_glossary() -> None:
    rows = (line.strip("| \n").split("|") for line in GLOSSARY.read_text("utf-8").splitlines() if line.startswith("| "))
    terms = {row[0].strip().partition(",")[0]: [t for t in re.split("[、（）]", row[1].strip()) if t] for row in rows}
    for term in CHECKED.split("|"):
        for key, (english, japanese) in STRINGS.items():
            said = re.sub(r"\{\w+\}|`[^`]+`", "", english)
            if key not in OTHERWISE and re.search(rf"\b{term}s?\b", said, re.IGNORECASE):
                assert any(word in japanese for word in terms[term]), f"{key}: {term}"


def test_every_key_that_a_template_names_is_in_the_catalogue() -> None:
    views = Path(__file__).parents[2] / "src" / "kyomei" / "views"
    text = "\n".join(path.read_text("utf-8") for path in [*views.glob("templates/*.j2"), *views.glob("*.py")])
    keys = set(re.findall(r"""\bt\(\s*["']([a-z_.0-9]+[a-z0-9])["']""", text))
    assert len(keys) > 150 and keys <= set(STRINGS)


def has_browser() -> bool:
    try:
        return bool(printing.browser())
    except KyomeiError:
        return False


@pytest.mark.browser
@pytest.mark.skipif(not has_browser(), reason="there is no Chromium")
def test_a_report_prints_on_numbered_a4_pages(reported: Run) -> None:
    with reported.lock():
        printed = print_report(reported)
    assert [path.name for path in printed] == ["report.pdf", "report.ja.pdf"]
    for path in printed:
        pdf = path.read_bytes()
        assert pdf.startswith(b"%PDF-")
        sizes = re.findall(rb"/MediaBox\s*\[0 0 ([\d.]+) ([\d.]+)\]", pdf)
        assert 5 <= len(sizes) <= 20 and all(abs(float(w) - 595) < 2 and abs(float(h) - 842) < 2 for w, h in sizes)
        assert reported.recorded(path)
    date = json.loads(reported.path(FIGURES).read_text("utf-8").splitlines()[-1])["written"][:10].replace("-", "").encode()
    first = [path.read_bytes() for path in printed]
    assert all(pdf.count(b"Date (D:" + date) == 2 for pdf in first), "the document's date is the report's, not the printing's"
    with reported.lock():
        assert [path.read_bytes() for path in print_report(reported)] == first, "the same run prints the same bytes"


def test_without_a_browser_one_line_says_how_to_get_one(reported: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(printing, "PLACES", ())
    monkeypatch.setattr(printing, "absent", lambda extra: ["playwright"])
    said = CliRunner().invoke(app, ["report", str(reported.folder), "--pdf"])
    assert said.exit_code == 2 and "pip install 'kyomei[pdf]'" in said.stderr and "playwright install chromium" in said.stderr
    assert "Traceback" not in said.stderr
    monkeypatch.setenv(printing.BROWSER, "/nowhere/chrome")
    said = CliRunner().invoke(app, ["report", str(reported.folder), "--pdf"])
    assert said.exit_code == 2 and "/nowhere/chrome" in said.stderr


def test_a_browser_that_prints_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    page.write_text("<p>x")
    monkeypatch.setenv(printing.BROWSER, shutil.which("false") or "/bin/false")
    with pytest.raises(KyomeiError, match="printed none"):
        printing.print_pdf(page, "2026-01-02T03:04:05+00:00")
