"""What stands between a report's figures and the world: samples and approximations, risks, and what was not tested."""

from __future__ import annotations

from kyomei.views.account import Account
from kyomei.views.speech import Speech

NOT_STATED = "not stated"
"""What a licence is called that nobody has stated."""
WORTH_SAYING = 0.05
"""Share from which a risk is named."""


def sampling(account: Account, speech: Speech) -> list[str]:
    """What was drawn, left out or approximated, in sentences.

    Args:
        account: what the run has come to.
        speech: the language.
    """
    t, source, lines = speech.t, account.source, []
    if source:
        lines += _text_read(account, speech)
    own, statistics = account.own, (account.premises or {}).get("statistics") or {}
    if own is not None:
        evidence_rows = (account.evidence or {}).get("rows")
        if evidence_rows:
            lines.append(t("sampling.compared", rows=f"{own['num_rows']:,}", all=f"{evidence_rows:,}"))
        if own.get("sampled") is not None:
            lines.append(t("sampling.latents", drawn=f"{own['sampled']:,}", width=f"{own['width']:,}"))
        lines.append(t("sampling.null", name=speech.said(own["null"]["name"])))
    if "sampled_rows" in statistics:
        rows = {"sampled": f"{statistics['sampled_rows']:,}", "rows": f"{statistics['num_rows']:,}"}
        lines.append(t("sampling.premises", **rows))
    for values in list(((account.evidence or {}).get("cross_entropy") or {}).values())[:1]:
        lines.append(t("sampling.cross_entropy", tokens=f"{values['num_tokens']:,}"))
    return [*lines, *([t("sampling.certified_rows")] if own is not None else [])]


def _text_read(account: Account, speech: Speech) -> list[str]:
    t, source = speech.t, account.source
    tokens, documents = f"{source['num_tokens']:,}", source.get("documents")
    if documents:
        lines = [t("sampling.tokens", tokens=tokens, documents=f"{documents:,}")]
    else:
        lines = [t("sampling.tokens_only", tokens=tokens)]
    lines.append(t("sampling.split", replicas=source["replicas"], share=speech.percent(source["evidence_share"])))
    lines.append(t("sampling.windows", context=source["context"]))
    if source["drop_special"]:
        bound = source["norm_bound"]
        lines.append(t("sampling.dropped", norm=t("sampling.dropped.norm", bound=f"{bound:g}") if bound else ""))
    lines.append(t("sampling.dtype", dtype=source["dtype"], training=source["training_dtype"]))
    return lines


def risks(account: Account, speech: Speech) -> list[str]:
    """What may go wrong for someone who relies on this dictionary, in sentences; those that its figures show come first.

    Args:
        account: what the run has come to.
        speech: the language.
    """
    t, own, lines = speech.t, account.own, []
    if own is not None:
        uncertified = 1 - (account.certified_share or 0.0)
        if uncertified >= WORTH_SAYING:
            lines.append(t("risk.most_uncertified", share=speech.percent(uncertified)))
        by_token = account.origin_share("token")
        if by_token is not None and by_token >= WORTH_SAYING:
            lines.append(t("risk.token", share=speech.percent(by_token)))
        if account.control is not None and account.side("random weights") == "against":
            lines.append(t("risk.random"))
        if own["null"]["false_positive_rate"] and account.count:
            by_chance = min(1.0, own["null"]["false_positive_rate"] / (account.certified_share or 1.0))
            lines.append(t("risk.chance", count=speech.number(round(100 * by_chance, 1))))
        if own["fidelity"]["fvu"] >= WORTH_SAYING:
            lines.append(t("risk.unexplained", share=speech.percent(own["fidelity"]["fvu"])))
    for values in list(((account.evidence or {}).get("cross_entropy") or {}).values())[:1]:
        if values["recovered"] is not None and 1 - values["recovered"] >= WORTH_SAYING:
            lines.append(t("risk.behaviour", share=speech.percent(1 - values["recovered"])))
    for premise in account.unmet:
        words = {"name": speech.named("premise", premise["name"]), "meaning": speech.said(premise["meaning"])}
        lines.append(t("risk.premise", **words))
    if own is not None:
        lines += [t("risk.names"), t("risk.absence")]
    return lines


def untested(account: Account, speech: Speech) -> list[str]:
    """What nobody has looked at, in sentences.

    Args:
        account: what the run has come to.
        speech: the language.
    """
    absent = {
        "certificate": account.own is None,
        "premises": account.premises is None,
        "evidence": account.evidence is None,
        "random": account.control is None and not account.imported,
        "baseline": not account.baselines,
        "pilot": account.pilot is None,
        "goals": not account.goals,
        **{name: account.source.get(name) == NOT_STATED for name in ("model_licence", "text_licence")},
    }
    lines = [speech.t(f"untested.{name}") for name, missing in absent.items() if missing]
    for premise in (account.premises or {}).get("premises", ()):
        if premise["status"] == "unknown":
            lines.append(speech.t("untested.premise", name=speech.named("premise", premise["name"])))
    documents = account.source.get("documents")
    if documents:
        lines.append(speech.t("untested.other_text", documents=f"{documents:,}"))
    if account.site:
        lines.append(speech.t("untested.other_sites", site=account.site))
    return [*lines, speech.t("untested.intervention")]
