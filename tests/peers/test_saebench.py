"""SAEBench's own entry to its core metrics, on our object, the embedded model as TransformerLens runs it, and local text.

The dictionary is the eigenvectors of the site's covariance, so that figures are known beforehand: what it leaves is the rest of
the spectrum. Everything runs without a network; see docs/formats.md for what of SAEBench does not.
"""

from __future__ import annotations

import json
import sysconfig
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kyomei
from kyomei.dictionary.sae import SparseAutoencoder
from kyomei.dictionary.saebench import SAEBenchAdapter
from kyomei.source.model import LanguageModel

pytestmark = pytest.mark.peers
HOOK, LAYER, CONTEXT, PROMPTS, BATCHES = "blocks.2.hook_mlp_out", 2, 64, 4, 2
FOLDER = str(Path(kyomei.__file__).parent / "source" / "embedded" / "model")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.load("embedded")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the library `datasets` opens by itself."""
    folder = tmp_path_factory.mktemp("text")
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("a*.py"))[:12]
    lines = [json.dumps({"text": file.read_text(encoding="utf-8")}) for file in files]
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def rows(model: LanguageModel) -> Tensor:
    """Rows of the site, of other text than SAEBench reads."""
    source = (Path(sysconfig.get_paths()["stdlib"]) / "typing.py").read_text(encoding="utf-8")
    ids = torch.tensor(model.tokenizer(source)["input_ids"][: 64 * CONTEXT]).reshape(-1, CONTEXT)
    return model.capture(ids, [HOOK])[HOOK].reshape(-1, 256)


def of_eigenvectors(rows: Tensor, activation: str) -> SparseAutoencoder:
    """A latent for either sign of every eigenvector: the identity with ReLU, less than that with thresholds or TopK."""
    center = rows.mean(dim=0)
    vectors = torch.linalg.eigh((rows - center).T @ (rows - center)).eigenvectors.T
    both = torch.cat([vectors, -vectors])
    threshold = torch.zeros(len(both))
    if activation == "jumprelu":
        threshold += ((rows - center) @ both.T).quantile(0.8, dim=0).mean()
    parts: dict[str, Any] = {"activation": activation, "k": 96 if activation == "topk" else None}
    # Rows of another length than one, which SAEBench would warn of.
    return SparseAutoencoder(both / 3, both * 3, threshold / 3, center, **parts)


def lens(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same model in TransformerLens, which knows models by name only: here it is given by hand."""
    from transformer_lens import HookedTransformer, loading

    monkeypatch.setattr(loading, "get_official_model_name", lambda name: name)
    options: dict[str, Any] = {"hf_model": model.model, "tokenizer": model.tokenizer, "device": "cpu"}
    return HookedTransformer.from_pretrained_no_processing(FOLDER, **options)


def losses(model: LanguageModel, ids: Tensor) -> Tensor:
    """Cross-entropy of the next token, one figure a place."""
    logits = model.model(input_ids=ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)


@torch.no_grad()
def expected(model: LanguageModel, sae: SparseAutoencoder, batches: list[Tensor]) -> dict[str, float]:
    """What SAEBench calls by these names, as Kyomei computes it; batches: of its reconstruction, then of its other figures."""
    tokenizer = model.tokenizer
    special = [one for one in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) if one is not None]
    first, second = torch.cat(batches[:BATCHES]), batches[BATCHES:]
    kept = ~torch.isin(first, torch.tensor(special))[:, :-1]
    with kyomei.attach(model, HOOK, sae, mode="replace"):
        replaced = losses(model, first)[kept].mean().item()
    x = [model.capture(ids, [HOOK])[HOOK][~torch.isin(ids, torch.tensor(special))] for ids in second]
    z, out = sae.encode(torch.cat(x)), sae(torch.cat(x))
    rows = torch.cat(x)
    return {
        "ce_loss_without_sae": losses(model, first)[kept].mean().item(),
        "ce_loss_with_sae": replaced,
        "l0": (z > 0).sum(dim=-1).float().mean().item(),
        "l1": (z * sae.decoder.norm(dim=1)).sum(dim=-1).mean().item(),
        "l2_norm_in": rows.norm(dim=1).mean().item(),
        "l2_norm_out": out.norm(dim=1).mean().item(),
        # Its mean square is divided by the rows of a batch once more.
        "mse": torch.cat([(part - sae(part)).pow(2).sum(dim=1) / len(part) for part in x]).mean().item(),
        "cossim": torch.cosine_similarity(rows, out).mean().item(),
    }


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_its_core_metrics_are_ours(
    activation: str, model: LanguageModel, rows: Tensor, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_bench.evals.core import main

    hooked = lens(model, monkeypatch)
    monkeypatch.setattr(main.HookedTransformer, "from_pretrained_no_processing", lambda *_, **__: hooked)
    batches: list[Tensor] = []
    take = main.ActivationsStore.get_batch_tokens

    def taken(*arguments: Any) -> Tensor:
        batches.append(take(*arguments))
        return batches[-1]

    monkeypatch.setattr(main.ActivationsStore, "get_batch_tokens", taken)
    sae = of_eigenvectors(rows, activation)
    options: dict[str, Any] = {"eval_batch_size_prompts": PROMPTS, "context_size": CONTEXT, "dataset": str(text)}
    options |= {"n_eval_reconstruction_batches": BATCHES, "n_eval_sparsity_variance_batches": BATCHES, "device": "cpu"}
    options |= {"compute_featurewise_density_statistics": True, "compute_featurewise_weight_based_metrics": True}
    adapter = SAEBenchAdapter(sae, FOLDER, HOOK, LAYER)
    (result,) = main.multiple_evals([("kyomei", adapter)], output_folder=str(tmp_path), **options)

    found = {name: value for group in result["metrics"].values() for name, value in group.items()}
    assert len(batches) == 2 * BATCHES
    for name, value in expected(model, sae, batches).items():
        assert found[name] == pytest.approx(value, rel=1e-3), name
    assert found["frac_alive"] > 0.2 and 0.3 < found["ce_loss_score"] < 1.01 and 0.3 < found["kl_div_score"] < 1.01
    assert activation == "relu" or found["ce_loss_score"] < 0.999
    (file,) = tmp_path.glob("*.json")
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["sae_cfg_dict"]["hook_name"] == HOOK and len(written["eval_result_details"]) == 2 * rows.shape[1]


def test_its_standardisation_takes_our_object() -> None:
    """`load_and_format_sae` warns of decoder rows that are not of unit norm, and fills in the settings that it reads later."""
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae

    generator = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(*torch.randn(2, 12, 5, generator=generator), torch.rand(12, generator=generator), torch.zeros(5))
    adapter = SAEBenchAdapter(sae, "pythia-70m", HOOK, LAYER)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        name, found, sparsity = load_and_format_sae("kyomei", adapter, "cpu")
    assert (name, found, sparsity) == ("custom_sae", adapter, None)
    moved = found.to(device="cpu", dtype=torch.float64)
    assert moved.cfg.architecture_str == "jumprelu" and moved.cfg.metadata.hook_name == HOOK and moved.cfg.metadata.prepend_bos
