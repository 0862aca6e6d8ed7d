"""What is said of a latent."""

from __future__ import annotations

from tests.views.samples import certificate, feature

from kyomei.config.mechanisms import SETTINGS
from kyomei.views.words import dictionary_title, origin_words, why

RULE = certificate()["rule"]


def test_every_status_has_a_reason_with_the_figures_of_the_replica_that_lacks_it() -> None:
    told = {status: why(feature(0, status), RULE) for status in ("certified", "split", "merged", "unstable", "dead")}
    assert told["certified"] == (
        "Every other replica has it: encoder cosine at least 0.80, decoder cosine at least 0.95, correlation of activations at "
        "least 0.97. Asked: 0.70, 0.72, 0.70."
    )
    lacking = (
        "Replica 2 has none that comes near enough: its nearest has encoder cosine 0.80, decoder cosine 0.55, correlation of "
        "activations 0.97."
    )
    assert told["unstable"] == f"{lacking} Asked: 0.70, 0.72, 0.70."
    assert told["split"].startswith(lacking) and "together follow this one at 0.80" in told["split"]
    assert told["merged"].startswith(lacking) and "together at 0.75" in told["merged"]
    assert "none of the rows" in told["dead"]


def test_dense_latents_are_asked_by_themselves() -> None:
    assert "Asked: 0.80, 0.90, 0.70" in why({**feature(0, "certified"), "frequency": 0.4}, RULE)


def test_an_origin_comes_with_its_figures() -> None:
    told = origin_words(feature(0, "certified"))
    assert "tokens that it fires on" in told and "Token: 93 %, place: 0 %." in told
    assert "active on 50 % of the occurrences" in told
    older = {"origin": {"kind": "context-or-unexplained", "r2": {"token": 0.1, "position": 0.2}}}
    assert origin_words(older).endswith("Token: 10 %, place: 20 %.")
    assert origin_words({}).startswith("Unknown.")


def test_every_dictionary_has_a_title() -> None:
    assert [dictionary_title(name) for name in SETTINGS] == [settings.title for settings in SETTINGS.values()]
    assert dictionary_title("topk-from-resonance") == "TopK from resonance"
    assert dictionary_title("baseline l1") == "ℓ1, baseline"
    assert dictionary_title("random weights") == "random weights"
    assert dictionary_title("something else") == "something else"
