"""Small files as other libraries write them, and what those libraries compute with them, for tests/dictionary/formats.

    make peers
    .peers/bin/python tools/peer_files.py tests/dictionary/formats/files

Each folder holds what the library itself saved, and `expected.safetensors`: rows x, their code z and reconstruction x_hat there.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

DIM, WIDTH, ROWS, K = 6, 16, 24, 4


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stirred(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The same with parameters of every kind away from zero: biases, thresholds and norms that matter."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(module.named_parameters())):
            values = 0.6 * normal(seed * 100 + number, *parameter.shape)
            parameter.copy_(values.abs() + 0.05 if "threshold" in name and "log" not in name else values)
    return module


def keep(folder: Path, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]) -> None:
    x = 2 * normal(99, ROWS, DIM) + 0.5
    with torch.no_grad():
        z = encode(x)
        save_file({"x": x, "z": z.contiguous(), "x_hat": decode(z).contiguous()}, folder / "expected.safetensors")


def saelens(root: Path) -> None:
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        GatedSAE,
        GatedSAEConfig,
        JumpReLUSAE,
        JumpReLUSAEConfig,
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
        StandardSAE,
        StandardSAEConfig,
        TopKSAE,
        TopKSAEConfig,
        Transcoder,
        TranscoderConfig,
    )
    from sae_lens.saes.sae import SAE, SAEMetadata

    def metadata() -> SAEMetadata:
        facts = {"model_name": "gpt2-small", "hook_name": "blocks.3.hook_resid_post", "context_size": 128, "prepend_bos": True}
        return SAEMetadata(**facts, dataset_path="monology/pile-uncopyrighted")

    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "standard": (StandardSAE, StandardSAEConfig, {}),
        "standard-uncentred": (StandardSAE, StandardSAEConfig, {"apply_b_dec_to_input": False}),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
        "jumprelu-uncentred": (JumpReLUSAE, JumpReLUSAEConfig, {"apply_b_dec_to_input": False}),
        "topk": (TopKSAE, TopKSAEConfig, {"k": K}),
        "topk-rescaled": (TopKSAE, TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
        "gated": (GatedSAE, GatedSAEConfig, {}),
    }
    for number, (name, (model, config, more)) in enumerate(kinds.items()):
        sae = stirred(model(config(d_in=DIM, d_sae=WIDTH, metadata=metadata(), **more)), number)
        sae.save_model(root / f"saelens-{name}")
        keep(root / f"saelens-{name}", sae.encode, sae.decode)
    trained: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {}),
        "matryoshka": (
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
            {"matryoshka_widths": [WIDTH // 2, WIDTH]},
        ),
    }
    for number, (name, (model, config, more)) in enumerate(trained.items()):
        sae = stirred(model(config(d_in=DIM, d_sae=WIDTH, k=float(K), metadata=metadata(), **more)), 20 + number)
        sae.topk_threshold = torch.tensor(0.7, dtype=torch.double)
        sae.save_inference_model(root / f"saelens-{name}")
        loaded = SAE.load_from_disk(root / f"saelens-{name}")
        keep(root / f"saelens-{name}", loaded.encode, loaded.decode)
        # The checkpoint of the same training: its threshold is one number, its norms are not folded yet.
        sae.save_model(root / f"saelens-{name}-checkpoint")
        shutil.copy(root / f"saelens-{name}/expected.safetensors", root / f"saelens-{name}-checkpoint")
    scaled(root, metadata())
    config = TranscoderConfig(d_in=DIM, d_sae=WIDTH, d_out=DIM + 1, apply_b_dec_to_input=False, metadata=metadata())
    stirred(Transcoder(config), 30).save_model(root / "saelens-transcoder")


def scaled(root: Path, metadata: Any) -> None:
    """A checkpoint whose inputs were multiplied by a factor, and what SAELens' trainer makes of it in the end."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import SAE
    from sae_lens.training.activation_scaler import ActivationScaler

    folder, factor = root / "saelens-batchtopk-scaled-checkpoint", 0.25
    options = {"k": float(K), "metadata": metadata, "normalize_activations": "expected_average_only_in"}
    sae = stirred(BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=DIM, d_sae=WIDTH, **options)), 35)
    sae.topk_threshold = torch.tensor(0.7, dtype=torch.double)
    sae.save_model(folder)
    ActivationScaler(factor).save(str(folder / "activation_scaler.json"))
    sae.fold_activation_norm_scaling_factor(factor)
    sae.save_inference_model(root / "folded")
    loaded = SAE.load_from_disk(root / "folded")
    keep(folder, loaded.encode, loaded.decode)
    shutil.rmtree(root / "folded")


def sparsify(root: Path) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    # The training writes what it was told into the folder above.
    run, hookpoint = root / "sparsify", "layers.3"
    sae = stirred(SparseCoder(DIM, SparseCoderConfig(num_latents=WIDTH, k=K)), 40)
    sae.save_to_disk(run / hookpoint)
    (run / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-14m", "dataset": "pile", "ctx_len": 256}))

    def encode(x: Tensor) -> Tensor:
        top, index, _ = sae.encode(x)
        return torch.zeros(len(x), WIDTH).scatter(1, index, top)

    def decode(z: Tensor) -> Tensor:
        return sae.decode(*z.topk(WIDTH))

    keep(run / hookpoint, encode, decode)
    other = SparseCoder(DIM, SparseCoderConfig(num_latents=WIDTH, k=K, transcode=True))
    stirred(other, 41).save_to_disk(root / "sparsify-transcoder")


def dictionary_learning(root: Path) -> None:
    from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK
    from dictionary_learning.utils import load_dictionary

    kinds: dict[str, Callable[[], Any]] = {
        "standard": lambda: AutoEncoder(DIM, WIDTH),
        "new": lambda: AutoEncoderNew(DIM, WIDTH),
        "gated": lambda: GatedAutoEncoder(DIM, WIDTH),
        "jumprelu": lambda: JumpReluAutoEncoder(DIM, WIDTH),
        "topk": lambda: AutoEncoderTopK(DIM, WIDTH, K),
        "batchtopk": lambda: BatchTopKSAE(DIM, WIDTH, K),
        "matryoshka": lambda: MatryoshkaBatchTopKSAE(DIM, WIDTH, K, [WIDTH // 2, WIDTH - WIDTH // 2]),
    }
    for number, (name, make) in enumerate(kinds.items()):
        folder = root / f"dictionary-learning-{name}"
        folder.mkdir(parents=True)
        sae = stirred(make(), 60 + number)
        if name in ("batchtopk", "matryoshka"):
            sae.threshold.fill_(0.7)
        torch.save(sae.state_dict(), folder / "ae.pt")
        sizes = {"activation_dim": DIM, "dict_size": WIDTH, **({"k": K} if hasattr(sae, "k") else {})}
        where = {"lm_name": "EleutherAI/pythia-14m", "layer": 3, "submodule_name": "resid_post_layer_3", "device": "cpu"}
        trainer = {"trainer_class": "ATrainer", "dict_class": type(sae).__name__, **sizes, **where}
        buffer = {"d_submodule": DIM, "io": "out", "ctx_len": 256}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}))
        loaded, _ = load_dictionary(str(folder), "cpu")
        keep(folder, loaded.encode, loaded.decode)


def gemma_scope(root: Path) -> None:
    """To the documented layout, with values of our own; what it computes is what SAELens' converter makes of it."""
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.saes.sae import SAE

    for name in ("layer_20/width_16k/average_l0_71", "embedding/width_4k/average_l0_6"):
        folder = root / "gemma-scope-2b-pt-res" / name
        folder.mkdir(parents=True)
        shapes = {"W_enc": (DIM, WIDTH), "b_enc": (WIDTH,), "W_dec": (WIDTH, DIM), "b_dec": (DIM,), "threshold": (WIDTH,)}
        arrays = {key: 0.6 * normal(80 + n, *shape).numpy() for n, (key, shape) in enumerate(shapes.items())}
        np.savez(folder / "params.npz", **{**arrays, "threshold": abs(arrays["threshold"])})
        loaders.hf_hub_download = lambda repo_id, filename, subfolder, **_: str(
            root / repo_id.split("/")[1] / subfolder / filename
        )
        sizes = {"d_in": DIM, "d_sae": WIDTH, "device": "cpu"}
        config, state, _ = loaders.gemma_2_sae_huggingface_loader("google/gemma-scope-2b-pt-res", name, cfg_overrides=sizes)
        sae = SAE.from_dict(loaders.handle_config_defaulting(config))
        sae.load_state_dict(state)
        keep(folder, sae.encode, sae.decode)


def write_files(root: Path) -> None:
    """Everything, into a folder of its own."""
    shutil.rmtree(root, ignore_errors=True)
    for write in (saelens, sparsify, dictionary_learning, gemma_scope):
        write(root)
    # In one layout, whoever wrote it.
    for path in sorted(root.rglob("*.json")):
        held = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_files(Path(sys.argv[1]))
