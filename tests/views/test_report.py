"""The report as a reader's browser would parse it: complete, escaped, self-contained."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.views.samples import HOSTILE, certificate, premises, verdict

from kyomei.views.charts import (
    FrontierPoint,
    comparison_points,
    consistency_chart,
    frontier_chart,
    frontier_figure,
    spectrum_chart,
    status_bars,
)
from kyomei.views.findings import EvidenceRow
from kyomei.views.numbers import format_number, percent, span
from kyomei.views.report import FeatureCard, Provenance, ReportData, highlighted, render_comparison, render_report, visible

VOID = {"meta", "link", "br", "img", "hr", "input", "wbr"}
SHAPES = {"circle", "rect", "path", "line", "polyline"}


class Page(HTMLParser):
    """Elements in order, the text inside each id, and a check that tags nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.text_of: dict[str, str] = {}
        self._ids: list[str | None] = []
        self.feed(html.replace("\u00a0%", " %"))  # no line ends between them; that is held by a test of its own
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self._ids.append(dict(attrs).get("id"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()
        self._ids.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        for name in filter(None, self._ids):
            self.text_of[name] = self.text_of.get(name, "") + data

    def count(self, tag: str, **wanted: str) -> int:
        return sum(t == tag and all(a.get(k) == v for k, v in wanted.items()) for t, a in self.elements)

    @property
    def ids(self) -> set[str | None]:
        return {attributes.get("id") for _, attributes in self.elements}


def card(index: int, contexts: Any) -> FeatureCard:
    status = "unstable" if index % 3 == 2 else "certified"
    told = {"status": status, "why": f"why {index}", "origin": "token", "origin_words": "Token: 93 %."}
    return FeatureCard(index, 0.9, 0.01, 4.0, 20.0, [" call", "er"], contexts, **told, token_shares=[(" call", 0.61)])


def full(features: int = 30) -> ReportData:
    contexts = [[("def", 0.0), (" call", 2.0), ("ed", 0.5), ("(self):\n", 0.0)]] * 3
    return ReportData(
        title="A report",
        folder="runs/first",
        verdict=verdict(),
        certificates={"gba": certificate(), "baseline topk": certificate(0)},
        certificate_notes=["A note."],
        premises=premises(),
        missing=["No cross-entropy is measured."],
        sentences=["First of all.", "Then this.", "And that."],
        evidence=[
            EvidenceRow("MCS > 0.7", 0.804, 0.012, 0.003, "share of directions"),
            EvidenceRow("FVU", 0.0713, "0.070–0.073", None, "held-out rows"),
        ],
        frontier=[FrontierPoint("GBA", 32, 0.07), FrontierPoint("GBA", 16, 0.09), FrontierPoint("TopK", 32, 0.064)],
        frequencies=[0.001, 0.002, 0.01, 0.1, 0.0],
        mcs=[0.9, 0.8, 0.95, 0.3],
        null_mcs=[0.1, 0.15, 0.2, -0.05],
        null_name="Gaussian surrogate",
        features=[card(i, contexts) for i in range(features)],
        provenance=Provenance(7, {"torch": "2.13"}, "kyomei demo", "embedded", "model.layers.2.mlp", "stdlib"),
    )


def test_everything_given_is_on_the_page() -> None:
    page = Page(render_report(full()))
    sections = {"verdict", "certificate", "premises", "evidence", "figures", "features", "provenance"}
    assert sections | {"consistency", "frontier", "spectrum"} <= page.ids
    assert page.count("article") == 30
    assert page.count("h1") == 1
    text = "".join(page.text)
    for words in ("First of all.", "And that.", "± 0.012", "0.070–0.073", "null: Gaussian surrogate", "model.layers.2.mlp"):
        assert words in text
    assert page.text_of["evidence"].index("0.804") < page.text_of["evidence"].index("0.003")
    assert "Seed7" in re.sub(r"\s", "", page.text_of["provenance"])


def test_every_figure_is_drawn_and_described() -> None:
    page = Page(render_report(full()))
    images = [attributes for tag, attributes in page.elements if tag == "svg" and attributes.get("role") == "img"]
    assert len(images) == 3
    assert all(len(attributes["aria-label"] or "") > 20 for attributes in images)
    assert page.count("rect", **{"class": "real"}) > 3
    assert page.count("rect", **{"class": "null"}) >= 3
    assert page.count("polyline") == 1


def test_nothing_is_loaded_from_elsewhere() -> None:
    html = render_report(full())
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "video", "audio", "use", "image"}
    for _, attributes in page.elements:
        assert not set(attributes) & {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"}
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"https?://|url\(|@import", html)
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def hostile() -> ReportData:
    told = {"why": HOSTILE, "origin": HOSTILE, "origin_words": HOSTILE, "status": HOSTILE}
    return ReportData(
        HOSTILE,
        HOSTILE,
        verdict(HOSTILE),
        [HOSTILE],
        {HOSTILE: certificate(words=HOSTILE), f"baseline {HOSTILE}": certificate(words=HOSTILE)},
        [HOSTILE],
        premises(HOSTILE),
        [EvidenceRow(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)],
        [HOSTILE],
        [FrontierPoint(HOSTILE, 32, 0.07)],
        mcs=[0.9],
        null_mcs=[0.1],
        null_name=HOSTILE,
        features=[
            FeatureCard(1, top_tokens=[HOSTILE], contexts=[[(HOSTILE, 1.0), (HOSTILE, 0.0)]], **told),
            FeatureCard(2, token_shares=[(HOSTILE, 0.5)]),
        ],
        provenance=Provenance(1, {HOSTILE: HOSTILE}, HOSTILE, HOSTILE, HOSTILE, HOSTILE),
    )


def test_text_from_data_is_escaped_everywhere() -> None:
    html = render_report(hostile())
    page = Page(html)
    assert "<script" not in html
    assert "{{ 7*7 }}" in html
    assert page.count("script") == 0
    benign = Page(html.replace(HOSTILE, "x"))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in benign.elements]
    assert "".join(page.text).count('<script>alert("1")</script>&amp;') >= 30


token = st.text(st.characters(), max_size=12)


@given(st.lists(st.tuples(token, st.floats(allow_nan=True, allow_infinity=True)), max_size=8), token)
@settings(max_examples=60, deadline=None)
def test_any_token_renders_to_the_same_structure(context: list[tuple[str, float]], words: str) -> None:
    """Whatever tokens hold, surrogates and control characters included, the page parses and can be written."""
    html = render_report(ReportData("t", sentences=[words], features=[FeatureCard(0, top_tokens=[words], contexts=[context])]))
    html.encode("utf-8")
    page = Page(html)
    plain = Page(
        render_report(ReportData("t", sentences=["x"], features=[FeatureCard(0, contexts=[[("x", 0.0)]], top_tokens=["x"])]))
    )
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements} | {"mark", "span", "code"}
    assert page.count("mark") == sum(math.isfinite(a) and a > 0 for _, a in context)


@pytest.mark.parametrize(
    "data",
    [
        ReportData("nothing"),
        ReportData("no null", mcs=[0.9, 0.8]),
        ReportData("dead", frequencies=[0.0, 0.0]),
        ReportData(
            "not finite", evidence=[EvidenceRow("FVU", math.nan, math.inf)], frontier=[FrontierPoint("GBA", 0.0, math.nan)]
        ),
        ReportData(
            "one of each",
            frontier=[FrontierPoint("GBA", 1.0, 0.0)],
            frequencies=[1.0],
            mcs=[1.0],
            null_mcs=[1.0],
            features=[FeatureCard(3)],
        ),
        ReportData("bare", features=[FeatureCard(0, math.nan, contexts=[[], [("x", math.nan)]])]),
    ],
    ids=lambda data: data.title,
)
def test_empty_and_partial_data_render(data: ReportData) -> None:
    html = render_report(data)
    assert data.title in "".join(Page(html).text)
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", html)


@given(st.sets(st.sampled_from([field.name for field in fields(ReportData)][1:])))
@settings(max_examples=60, deadline=None)
def test_any_subset_of_the_parts_may_be_missing(missing: set[str]) -> None:
    """Every section stays; one without data says so, and what to run."""
    bare, data = ReportData("t"), full(2)
    page = Page(render_report(replace(data, **{name: getattr(bare, name) for name in missing})))
    assert {"verdict", "certificate", "premises", "evidence", "figures", "features"} <= page.ids
    for part, section, verb in (
        ("certificates", "certificate", "certify"),
        ("premises", "premises", "check"),
        ("evidence", "evidence", "measure"),
        ("features", "features", "measure"),
    ):
        folder = "RUN" if "folder" in missing else "runs/first"
        assert (f"kyomei {verb} {folder}" in page.text_of[section]) == (part in missing)


def test_the_verdict_comes_first_and_every_figure_of_the_certificate_has_a_legend() -> None:
    page = Page(render_report(full()))
    text = "".join(page.text)
    order = ["Trust this dictionary in part", "incoherence", "every one of these replicas has it too", "First of all."]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    shown = page.text_of["certificate"]
    for words in (
        "certified",
        "split",
        "merged",
        "unstable",
        "dead",
        "context-or-unexplained",
        "pass on the null",
        "dense latents",
    ):
        assert words in shown
    for words in (
        "10 (10 %)",
        "41 % of explained variance",
        "In another replica several narrower latents",
        "0.4 %",
        "GBA",
        "TopK, baseline",
    ):
        assert words in shown
    assert "→ read them together" in page.text_of["premises"] and "0.318 in 10: 0.28–0.4" in page.text_of["premises"]


def test_cards_say_what_is_certified_and_mark_what_is_not() -> None:
    page = Page(render_report(full(6)))
    certified, unstable = page.text_of["feature-0"], page.text_of["feature-2"]
    assert "why 0" in certified and "Origin: token." in certified and "61 %" in certified and "read nothing" not in certified
    assert "Not certified: read nothing off it. At least one other replica has nothing like it." in " ".join(unstable.split())
    assert "4 of these 6 are certified; the others are marked" in page.text_of["features"]
    unsaid = Page(render_report(ReportData("t", features=[FeatureCard(0)])))
    assert "There is no certificate that says." in unsaid.text_of["feature-0"]


def test_bars_of_status_add_up() -> None:
    bars = status_bars({"gba": certificate()})
    assert [bar.label for bar in bars] == [
        "GBA: latents",
        "GBA: explained variance",
        "Null (Gaussian surrogate): latents that pass",
    ]
    assert [sum(share for _, share, _ in bar.parts) for bar in bars] == pytest.approx([1.0, 1.0, 0.004])
    assert bars[0].parts[0] == ("certified", 0.1, "certified: 10 %")
    assert status_bars({}) == []


def test_consistency_without_its_null_is_not_drawn() -> None:
    page = Page(render_report(ReportData("t", mcs=[0.9, 0.8])))
    assert page.count("svg", role="img") == 0
    assert "there is no null to compare it with" in page.text_of["consistency"]
    assert consistency_chart([], [0.1]) is None


def test_a_report_survives_json() -> None:
    data = full(2)
    again = ReportData.from_dict(json.loads(json.dumps(data.to_dict())))
    assert render_report(again) == render_report(data)


def test_the_same_data_gives_the_same_bytes() -> None:
    assert render_report(full()) == render_report(full())


def test_histogram_heights_are_shares() -> None:
    chart = consistency_chart([0.51, 0.52, 0.91, 0.92], [0.11, 0.12])
    assert chart is not None
    heights = {(bar.kind, round(bar.height, 1)) for bar in chart.bars}
    tallest = max(bar.height for bar in chart.bars)
    assert heights == {("null", round(tallest, 1)), ("real", round(tallest / 2, 1))}
    assert chart.mark is not None
    assert chart.mark.label == "null's 99th percentile 0.12"


def test_spectrum_counts_every_living_feature_and_names_the_dead() -> None:
    chart = spectrum_chart([0.001, 0.0011, 0.05, 1.0, 0.0, 0.0])
    assert chart is not None
    assert sum(int(bar.title.split()[0]) for bar in chart.bars) == 4
    assert chart.note == "2 of 6 are silent and not drawn."
    assert spectrum_chart([]) is None


def test_frontier_joins_points_of_a_label_from_sparse_to_dense() -> None:
    chart = frontier_chart(full().frontier)
    assert chart is not None
    gba, topk = chart.series
    assert (gba.label, topk.label) == ("GBA", "TopK")
    (x16, y16, _), (x32, y32, title) = gba.dots
    assert x16 < x32
    assert y16 < y32, "a higher FVU is drawn higher up"
    assert title == "GBA: L0 32, FVU 0.07"
    assert topk.dots[0][0] == x32


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=50), st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=50))
@example(frequencies=[0.28125], cosines=[0.0])
@example(frequencies=[1.0, 0.75], cosines=[0.0])
@example(frequencies=[0.5, 1.0], cosines=[0.0])
@settings(max_examples=60, deadline=None)
def test_charts_stay_in_their_box(frequencies: list[float], cosines: list[float]) -> None:
    charts = [
        spectrum_chart(frequencies),
        consistency_chart(cosines, cosines[:1]),
        frontier_chart([FrontierPoint("a", f, f) for f in frequencies]),
    ]
    for chart in charts:
        assert chart is not None
        for bar in chart.bars:
            assert bar.x >= 44 and bar.x + bar.width <= 370.1
            assert bar.y >= 19.9 and bar.height >= 0 and bar.y + bar.height <= 200.1
        for x, y, _ in (dot for series in chart.series for dot in series.dots):
            assert 44 <= x <= 370 and 19.9 <= y <= 200.1
        for ticks in (chart.x_ticks, chart.y_ticks):
            assert 2 <= len(ticks) <= 16
            assert len({tick.label for tick in ticks}) == len(ticks)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0, "0"),
        (0.0, "0"),
        (1.0, "1"),
        (0.8041, "0.804"),
        (31.82, "31.8"),
        (412.4, "412"),
        (99.96, "100"),
        (100.4, "100"),
        (74212, "74\u202f212"),
        (1234.5, "1\u202f234"),
        (8e-4, "8 × 10⁻⁴"),
        (1e-4, "10⁻⁴"),
        (-1e-4, "−1 × 10⁻⁴"),
        (0.001, "0.001"),
        (-0.25, "−0.25"),
        ("0.81–0.86", "0.81–0.86"),
    ],
)
def test_numbers_in_three_digits(value: float | str | None, shown: str) -> None:
    assert format_number(value) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.0996, "10 %"),
        (0.0123, "1.2 %"),
        (4e-4, "0.04 %"),
        (1e-6, "< 0.01 %"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_shares_in_percent(share: float | None, shown: str) -> None:
    assert percent(share) == shown


def test_spans_over_replicas() -> None:
    assert (span([1]), span([15, 15]), span([3, 9]), span([0.041, 0.041]), span([0.1, 0.25])) == (
        None,
        "15",
        "3–9",
        "0.041",
        "0.1–0.25",
    )


def test_invisible_characters_are_seen() -> None:
    shown = re.sub(r"<[^>]+>", "", visible("a\n\tb\r\x00\x7f\u202e<"))
    assert shown == "a↵⇥b␍␀␡�&lt;"


def test_shades_follow_activations_and_plain_tokens_merge() -> None:
    runs = highlighted([("a", 0.0), ("b", -1.0), ("c", 1.0), ("d", 4.0), ("e", math.nan), ("f", 0.0)], 4.0)
    assert [run[0] for run in runs] == ["ab", "c", "d", "ef"]
    assert [run[1] for run in runs] == [None, 1.0, 4.0, None]
    assert 0 < runs[1][2] < runs[2][2] == 1.0
    assert [run[3] for run in runs] == [False, False, True, False]


COMPARED = [
    {"run": "one", "site": "a.mlp", "mechanism": "TopK", "width": 64, "l0": 8.0, "fvu": 0.5, "certified": 0.25, "seconds": 3.2},
    {"run": "two", "site": "a.mlp", "mechanism": "TopK", "width": 64, "l0": 16.0, "fvu": 0.4, "certified": None},
    {"run": "<b>three", "mechanism": "GBA"},
]


def test_dictionaries_side_by_side() -> None:
    page = render_comparison("runs/<family>", COMPARED, ["Different sites."], {"one": "members/one/report.html"})
    assert page.count("<tr>") == 4 and page.count('<a href="members/one/report.html">') == 1
    assert "<b>three" not in page and "runs/&lt;family&gt;: a.mlp" in page and "Different sites." in page
    assert "one: L0 8, FVU 0.5" in page and "certified share of the width 0.25" in page
    assert "<script" not in page and not re.search(r"(src|href)=.https?:", page)


def test_a_comparison_of_nothing_measured_says_so() -> None:
    assert "nothing to draw" in render_comparison("none", COMPARED[2:], [], {})
    figure = frontier_figure([])
    assert b"nothing measured yet" in figure and figure == frontier_figure([])


def test_series_of_a_comparison_are_told_by_what_differs() -> None:
    assert [point.label for point in comparison_points(COMPARED)] == ["TopK"] * 2  # the third has no figures
    wide = [COMPARED[0], {**COMPARED[1], "width": 128}]
    assert [point.label for point in comparison_points(wide)] == ["TopK, width 64", "TopK, width 128"]
