"""Split many public architectures and check every result against the unsplit network.

Run by hand, group by group; each model runs in a process of its own under a time-out, and models with a result already
in the results file are skipped, so an interrupted run goes on where it stopped:

    python benchmarks/stages.py torchvision segmentation transformers smp timm --timeout 120
    python benchmarks/stages.py --table

Networks have random weights; nothing is downloaded. A model counts as split if the staged network gives the network's
outputs in evaluation mode: bit by bit when traced by torch.fx, within 1e-5 of the largest output when exported.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

RESULTS = Path(__file__).parent / "results" / "stages.json"
TABLE = RESULTS.with_suffix(".md")
Maker = Callable[[], tuple[nn.Module, Any]]


def torchvision_models() -> Iterator[tuple[str, Maker]]:
    from torchvision import models

    for name in models.list_models(module=models):
        yield name, lambda name=name: (_torchvision(name), torch.randn(1, 3, *_torchvision_size(name)))


def segmentation_models() -> Iterator[tuple[str, Maker]]:
    from torchvision import models

    for name in models.list_models(module=models.segmentation):
        yield name, lambda name=name: (models.get_model(name, weights_backbone=None), torch.randn(1, 3, 96, 96))


def _torchvision(name: str) -> nn.Module:
    from torchvision import models

    extra = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    return models.get_model(name, **extra)


def _torchvision_size(name: str) -> tuple[int, int]:
    fixed = name.startswith(("vit_", "maxvit")) or name in {"inception_v3"}
    size = {"inception_v3": 299, "vit_h_14": 224}.get(name, 224 if fixed else 96)
    return size, size


def transformers_models() -> Iterator[tuple[str, Maker]]:
    small = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    image = {**small, "image_size": 64, "patch_size": 16}
    for kind in ("bert", "roberta", "deberta-v2", "albert", "electra", "mpnet"):
        extra = {"embedding_size": 16} if kind == "albert" else {}
        yield kind, lambda kind=kind, extra=extra: (_pretrained(kind, vocab_size=100, **small, **extra), _text())
    yield "distilbert", lambda: (_pretrained("distilbert", vocab_size=100, dim=32, n_layers=4, n_heads=2), _text())
    yield "t5 encoder", lambda: (_t5_encoder(), _text())
    yield (
        "gpt2",
        lambda: (_pretrained("gpt2", vocab_size=100, n_embd=32, n_layer=4, n_head=2, use_cache=False), _text()),
    )
    for kind in ("llama", "mistral", "qwen2"):
        extra = {"num_key_value_heads": 2}
        yield (
            kind,
            lambda kind=kind, extra=extra: (
                _pretrained(kind, vocab_size=100, use_cache=False, **small, **extra),
                _text(),
            ),
        )
    for kind in ("vit", "dinov2", "deit", "beit", "ijepa", "clip_vision_model", "siglip_vision_model"):
        yield kind, lambda kind=kind: (_pretrained(kind, **image), torch.randn(1, 3, 64, 64))
    hierarchical = {
        "swin": {"image_size": 64, "patch_size": 4, "embed_dim": 16, "num_heads": [1, 2, 4, 8], "window_size": 2},
        "convnext": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1]},
        "convnextv2": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1]},
        "segformer": {"hidden_sizes": [8, 16, 32, 64], "num_attention_heads": [1, 2, 4, 8]},
        "mobilevit": {"image_size": 64},
        "resnet": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1], "embedding_size": 8},
    }
    for kind, settings in hierarchical.items():
        yield kind, lambda kind=kind, s=settings: (_pretrained(kind, **s), torch.randn(1, 3, 64, 64))
    audio = {**small, "conv_dim": [16] * 3, "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3]}
    wav2vec = {**audio, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    yield "wav2vec2", lambda: (_pretrained("wav2vec2", **wav2vec), torch.randn(2, 4000))
    yield "whisper encoder", lambda: (_whisper_encoder(), torch.randn(1, 80, 64))


def _pretrained(kind: str, **settings: Any) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    return AutoModel.from_config(AutoConfig.for_model(kind, **settings))


def _text() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(2, 100, (2, 12)), "attention_mask": torch.ones(2, 12, dtype=torch.long)}


def _t5_encoder() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=100, d_model=32, d_kv=16, d_ff=64, num_layers=4, num_heads=2))


def _whisper_encoder() -> nn.Module:
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig(
        vocab_size=100, d_model=32, encoder_layers=4, encoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64, max_source_positions=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return WhisperModel(config).encoder


ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0", "timm-regnetx_002", "mit_b0")
DECODERS = ("Unet", "FPN", "Segformer")


def smp_models() -> Iterator[tuple[str, Maker]]:
    """Two entries per encoder: decoders that are split together and must share the whole encoder.

    DeepLabV3+ dilates the encoder's last layers, so it is split with a second DeepLabV3+ and a DeepLabV3 of its own
    stride; MiT encoders cannot be dilated.
    """
    for encoder in ENCODERS:
        yield encoder, lambda encoder=encoder: (_decoders(encoder), torch.randn(2, 3, 64, 64))
        if encoder != "mit_b0":
            yield f"{encoder} dilated", lambda encoder=encoder: (_dilated(encoder), torch.randn(2, 3, 64, 64))


def _decoders(encoder: str) -> nn.ModuleDict:
    import segmentation_models_pytorch as smp

    return nn.ModuleDict({kind: getattr(smp, kind)(encoder, encoder_weights=None, classes=3) for kind in DECODERS})


def _dilated(encoder: str) -> nn.ModuleDict:
    import segmentation_models_pytorch as smp

    settings = {"encoder_weights": None, "encoder_output_stride": 16}
    return nn.ModuleDict(
        {
            "DeepLabV3Plus": smp.DeepLabV3Plus(encoder, classes=3, **settings),
            "DeepLabV3Plus, 7 classes": smp.DeepLabV3Plus(encoder, classes=7, **settings),
            "DeepLabV3": smp.DeepLabV3(encoder, classes=3, **settings),
        }
    )


def timm_models() -> Iterator[tuple[str, Maker]]:
    import timm

    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(timm.models._registry._model_to_module[name], []).append(name)
    chosen = [min(names, key=_size_by_name) for _, names in sorted(families.items())]
    others = sorted(set(timm.list_models()) - set(chosen))
    random.Random(0).shuffle(others)
    for name in (*chosen, *others[:200]):
        yield name, lambda name=name: _timm(name)


def _size_by_name(name: str) -> tuple[int, int, str]:
    words = ("test", "atto", "femto", "pico", "nano", "tiny", "xxs", "xs", "_s", "small", "18", "b0", "26", "34", "50")
    rank = next((k for k, word in enumerate(words) if word in name), 20)
    large = sum(word in name for word in ("large", "huge", "giant", "384", "448", "512", "101", "152", "_xl"))
    return rank + 10 * large, len(name), name


_MOST_BYTES = 2 << 30


def _timm(name: str) -> tuple[nn.Module, Any]:
    import timm

    with suppress(Exception), torch.device("meta"):  # some cannot be made without values
        large = timm.create_model(name)
        if _bytes(large) > _MOST_BYTES:
            return large, None
    network = timm.create_model(name).eval()
    size = network.default_cfg["input_size"]
    small = torch.randn(1, size[0], 96, 96)
    if _any_size(network) and _runs_on(network, small):
        return network, small
    return network, torch.randn(1, *size)


def _bytes(network: nn.Module) -> int:
    return 4 * sum(p.numel() for p in network.parameters())


def _runs_on(network: nn.Module, example: Tensor) -> bool:
    try:
        with torch.no_grad():
            network(example)
    except Exception:
        return False
    return True


def _any_size(network: nn.Module) -> bool:
    """Whether a smaller image may be used, to save time: convolutional networks without tables per position."""
    return not any(
        re.search(r"pos_embed|rel_pos|relative|attn|token|rope", name) for name, _ in network.named_modules()
    )


GROUPS: dict[str, Callable[[], Iterator[tuple[str, Maker]]]] = {
    "torchvision": torchvision_models,
    "segmentation": segmentation_models,
    "transformers": transformers_models,
    "smp": smp_models,
    "timm": timm_models,
}


def measure(group: str, name: str, make: Maker) -> dict[str, Any]:
    """Split one model and compare it with the unsplit network on another input."""
    torch.manual_seed(0)
    network, example = make()
    params = sum(p.numel() for p in network.parameters())
    if group == "timm" and _bytes(network) > _MOST_BYTES:
        return {"skipped": f"{params / 1e6:.0f} M parameters"}
    network.eval()
    result = _measure_decoders(network, example) if isinstance(network, nn.ModuleDict) else _measure(network, example)
    if group == "timm":
        result["features_only"] = _features_only(name)
    return {"params": params, **result}


def reason(eval_only: str | None) -> str:
    """Why a network can only be evaluated, without the folder in which this machine keeps its packages."""
    return re.sub(r"/\S*/site-packages/", "", eval_only or "")[:300]


def _from_constants(staged: Iterable[nn.Module]) -> list[str]:
    """The buffers from which alone something is computed at every call: what a trace of values would freeze."""
    found: set[str] = set()
    for network in staged:
        for stage in (*network.stages, network.head):
            parameters = dict(stage.named_parameters())
            read: dict[fx.Node, set[str]] = {}  # of the nodes that depend on buffers alone, on which
            for node in stage.graph.nodes:
                if node.op == "get_attr" and node.target not in parameters:
                    read[node] = {str(node.target)}
                elif (
                    node.op.startswith("call_")
                    and node.all_input_nodes
                    and all(n in read for n in node.all_input_nodes)
                ):
                    read[node] = set().union(*(read[n] for n in node.all_input_nodes))
                    found |= read[node]
    return sorted(found)


def _measure(network: nn.Module, example: Any) -> dict[str, Any]:
    from branchnet.stages import call, split

    start = time.perf_counter()
    staged = split(network, example)
    seconds = time.perf_counter() - start
    other = staged.interface.random(seed=1)
    with torch.no_grad():
        difference = _difference(call(network, other), call(staged, other))
    return {
        "ok": difference <= (0.0 if staged.traced_by == "fx" else 1e-5),
        "difference": difference,
        "traced_by": staged.traced_by,
        "trainable": staged.trainable,
        "eval_only": reason(staged.eval_only),
        "locations": list(staged.locations),
        "cut": [len(cut) for cut in staged.cuts],
        "from_constants": _from_constants([staged]),
        "seconds": round(seconds, 2),
    }


def _measure_decoders(networks: nn.ModuleDict, example: Tensor) -> dict[str, Any]:
    from branchnet.stages import split_all

    start = time.perf_counter()
    staged = split_all(dict(networks.items()), example)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        difference = max(_difference(net(example), staged[task](example)) for task, net in networks.items())
    shared = {task: sum(p.numel() for p in network.stages.parameters()) for task, network in staged.items()}
    encoders = {task: _used_encoder_size(networks[task], network) for task, network in staged.items()}
    first = next(iter(staged.values()))
    return {
        "ok": difference <= (0.0 if first.traced_by == "fx" else 1e-5) and shared == encoders,
        "difference": difference,
        "traced_by": first.traced_by,
        "trainable": first.trainable,
        "eval_only": reason(first.eval_only),
        "locations": list(first.locations),
        "cut": [len(cut) for cut in first.cuts],
        "from_constants": _from_constants(staged.values()),
        "shared_share_of_encoder": {task: round(shared[task] / encoders[task], 4) for task in shared},
        "seconds": round(seconds, 2),
    }


def _used_encoder_size(network: nn.Module, staged: nn.Module) -> int:
    """Parameters of the encoder, without those that no run reaches (a classifier's last convolution, say)."""
    unused = {id(p) for p in staged.unused.parameters()}
    return sum(p.numel() for p in network.encoder.parameters() if id(p) not in unused)


def _difference(wanted: Any, found: Any) -> float:
    pairs = zip(tree_leaves(wanted), tree_leaves(found), strict=True)
    worst = 0.0
    for a, b in pairs:
        if isinstance(a, Tensor) and not torch.allclose(a, b, 0.0, 0.0, equal_nan=True):
            worst = max(worst, float((a - b).abs().max() / a.abs().max()))
    return worst


def _features_only(name: str) -> bool:
    import timm

    try:
        timm.create_model(name, features_only=True)
    except Exception:
        return False
    return True


def _work(group: str, name: str, make: Maker, connection: Any) -> None:
    torch.set_num_threads(1)
    try:
        connection.send(measure(group, name, make))
    except BaseException as error:
        connection.send({"ok": False, "reason": f"{type(error).__name__}: {str(error)[:600]}"})


def run_one(group: str, name: str, make: Maker, timeout: float) -> dict[str, Any]:
    """Measure one model in a forked process."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(group, name, make, there))
    process.start()
    there.close()
    try:
        if not here.poll(timeout):
            return {"ok": False, "reason": f"no result within {timeout:.0f} s"}
        return here.recv()  # type: ignore[no-any-return]
    except EOFError:
        return {"ok": False, "reason": "the process died"}
    finally:
        process.kill()
        process.join()


def write_table(results: dict[str, dict[str, Any]]) -> str:
    """The results as markdown: a line per group, then every failure with its reason."""
    lines = ["# Splitting public architectures", "", f"torch {torch.__version__}, CPU, random weights.", ""]
    lines += ["| group | models | split and exact | bit by bit | fx | export | trainable | 3 locations or more |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for group, entries in results.items():
        ran = {name: entry for name, entry in entries.items() if "skipped" not in entry}
        good = [entry for entry in ran.values() if entry["ok"]]
        ways = Counter(entry["traced_by"] for entry in good)
        exact = sum(entry["difference"] == 0 for entry in good)
        trainable = sum(entry["trainable"] for entry in good)
        three = sum(len(entry["locations"]) >= 3 for entry in good)
        lines.append(
            f"| {group} | {len(ran)} | {len(good)} | {exact} | {ways['fx']} | {ways['export']} "
            f"| {trainable} | {three} |"
        )
    if "timm" in results:
        ran = [entry for entry in results["timm"].values() if "features_only" in entry]
        share = sum(entry["features_only"] for entry in ran)
        lines += ["", f"timm's own `features_only=True` can be made for {share} of the {len(ran)} models split here."]
    lines += ["", "## Networks that compute from their buffers alone", ""]
    lines += [
        "A trace of values would keep these results of the first call for ever; here each call computes them.",
        "",
    ]
    for group, entries in results.items():
        reading = {name: entry["from_constants"] for name, entry in entries.items() if entry.get("from_constants")}
        shown = ", ".join(f"{name} ({len(buffers)})" for name, buffers in reading.items())
        lines.append(f"- {group}, {len(reading)}, with the number of buffers: {shown or 'none'}")
    failed = [(g, n, e) for g, es in results.items() for n, e in es.items() if not e.get("ok", True)]
    lines += ["", "## Failures", ""] + ([] if failed else ["none"])
    for group, name, entry in failed:
        reason = entry.get("reason") or f"difference {entry['difference']:.2g}, {entry.get('shared_share_of_encoder')}"
        lines.append(f"- {group} {name}: {' '.join(reason.split())}")
    skipped = [f"{name} ({e['skipped']})" for es in results.values() for name, e in es.items() if "skipped" in e]
    lines += ["", "## Not run for their size", "", ", ".join(skipped) or "none", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], help="which models")
    parser.add_argument("--timeout", type=float, default=180, help="seconds per model")
    parser.add_argument("--only", help="a regular expression for names")
    parser.add_argument("--again", action="store_true", help="run failures again")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    from branchnet.utils.files import write_text
    from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators

    define_torchvision_operators()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for group in arguments.groups:
        entries = results.setdefault(group, {})
        for name, make in GROUPS[group]():
            done = name in entries and not (arguments.again and not entries[name].get("ok", True))
            if done or (arguments.only and not re.search(arguments.only, name)):
                continue
            entries[name] = run_one(group, name, make, arguments.timeout)
            print(group, name, entries[name], flush=True)
            write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    write_text(TABLE, write_table(results))
    print(write_table(results))


if __name__ == "__main__":
    main()
