"""The words of the explorer's pages and of the report, English and Japanese side by side: one catalogue for both.

What the explorer says by itself stands in strings.json, by key, and what the report says beyond that in strings_report.json.
What is missing, which the server says too, stands here. What runs and errors say stands in sentences.json by its English
sentence, in which {1}, {2} … stand for what differs.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from kyomei.errors import DataError

LANGUAGES = ("en", "ja")

STRINGS: dict[str, tuple[str, str]] = {
    # What is missing, and what that means for the page.
    "state.no_text": (
        "The text was not kept with this run, so tokens are shown by their ids.",
        "この実行ではテキストが保存されていないため、トークンは番号で表示されます。",
    ),
    "state.no_model": (
        "The language model is not here: nothing can be tried live.",
        "言語モデルがないため、その場で試すことはできません。",
    ),
    "state.model_loading": ("The language model is being loaded.", "言語モデルを読み込んでいます。"),
    "state.model_failed": (
        "The language model no longer loads: {found}.",
        "言語モデルを読み込めませんでした：{found}。",
    ),
    "state.no_causal_head": (
        "Predictions cannot be changed here, because {found}. Activations are shown all the same.",
        "ここでは予測を変えられません（{found}）。活性は表示されます。",
    ),
    "state.no_certificate": (
        "Nobody has certified this dictionary: run `kyomei certify` on a run of at least three replicas.",
        "この辞書は認証されていません。三つ以上の反復をもつ実行で `kyomei certify` を実行してください。",
    ),
    "state.expired_certificate": (
        "The certificate has expired: dictionaries or rows have changed since. Run `kyomei certify` again.",
        "認証後に辞書またはデータが変わったため、認証は失効しています。`kyomei certify` をもう一度実行してください。",
    ),
    "state.forgotten_certificate": (
        "The certificate of {name} has expired: on {date} documents were forgotten of what it rests on. "
        "Run `kyomei certify {folder}` again.",
        "{name} の認証は失効しました。{date} に、認証の根拠となった文書の一部が消去されたためです。"
        "`kyomei certify {folder}` をもう一度実行してください。",
    ),
    "state.forgotten_goal": (
        "The goal {name} has expired: on {date} documents were forgotten that it was found with. "
        "Find it again with `kyomei goals {folder}`.",
        "目標「{name}」は失効しました。{date} に、この目標を見つけるのに使った文書の一部が消去されたためです。"
        "`kyomei goals {folder}` でもう一度見つけてください。",
    ),
    "state.no_live_latents": (
        "No latent of this dictionary is active on any of the rows.",
        "この辞書には、どの行でも活性になる潜在変数がありません。",
    ),
    "state.no_replicas": (
        "There is one replica only, so nothing says which features would be found again.",
        "反復が一つしかないため、どの特徴が再現するかは分かりません。",
    ),
    "state.index_missing": (
        "There is no index of this dictionary yet: run `kyomei index`.",
        "この辞書の索引はまだありません。`kyomei index` を実行してください。",
    ),
    "state.index_running": (
        "The index of this dictionary is being made; the page fills when it is done.",
        "この辞書の索引を作成中です。完了するとページに表示されます。",
    ),
    "state.index_broken": (
        "The index cannot be used: {found}. Run `kyomei index` to make it anew.",
        "索引を使用できません：{found}。`kyomei index` で作り直してください。",
    ),
    "state.read_only_folder": (
        "The run's folder cannot be written, so labels cannot be saved.",
        "実行フォルダに書き込めないため、ラベルは保存できません。",
    ),
    "state.read_only": (
        "This explorer was started with --read-only: labels and the live model are off.",
        "--read-only で起動されているため、ラベルの編集とモデルの実行はできません。",
    ),
    "state.redacted": (
        "Texts are redacted: {count} places are masked.",
        "テキストは伏せ字処理済みです（{count} か所）。",
    ),
    "state.not_redacted": ("Texts are shown as they are.", "テキストはそのまま表示されています。"),
    "state.stale_labels": (
        "{count} labels are of an earlier dictionary of this name, and are not shown.",
        "{count} 件のラベルは以前の辞書のものであり、表示されません。",
    ),
}
"""By key, what is said in English and in Japanese; what stands in braces is put in as text, never as markup."""


def _read(name: str) -> Any:
    return json.loads((resources.files("kyomei.views") / name).read_text(encoding="utf-8"))


for _file in ("strings.json", "strings_report.json"):
    STRINGS |= {key: (english, japanese) for key, (english, japanese) in _read(_file).items()}
STRINGS |= {f"said.{english}": (english, japanese) for english, japanese in _read("sentences.json")}


def catalogue(language: str) -> dict[str, str]:
    """Everything that is said, in one language.

    Raises:
        DataError: it is neither English nor Japanese.
    """
    if language not in LANGUAGES:
        raise DataError(f"a language among {', '.join(LANGUAGES)}", repr(language), "choose one of them")
    column = LANGUAGES.index(language)
    return {key: both[column] for key, both in STRINGS.items()}
