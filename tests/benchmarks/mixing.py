"""Memory and throughput of `control mix` on a checkpoint of gigabytes, against a naive average and a plain copy.

    python tests/benchmarks/mixing.py --gigabytes 2.4

Random checkpoints are made in a temporary folder (four times the size is needed there) and removed. Peak resident
memory is /usr/bin/time's. "idle" imports what mixing imports, opens and aligns the checkpoints, and stops.
All files are in the page cache, for the copy (cp) as for the mix, and what is written stays there, synced by neither.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_metrics.control.checkpoints import MAX_SHARD
from unlearn_metrics.control.tensors import LazyTensor, write_safetensors

OPEN = """
import sys, time
from pathlib import Path
from unlearn_metrics.control.checkpoints import open_checkpoint
from unlearn_metrics.control.mixing import write_mix
from unlearn_metrics.control.pairs import align
folder = Path(sys.argv[1])
o, u = align(open_checkpoint(str(folder / "o")), open_checkpoint(str(folder / "u")))
"""
IDLE = OPEN + "print(0)"
MIX = OPEN + "start = time.perf_counter(); write_mix(o, u, 0.5, folder / 'm'); print(time.perf_counter() - start)"
NAIVE = """
import sys, time, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
folder = Path(sys.argv[1])
start = time.perf_counter()
o, u = (load_file(folder / name / "model.safetensors") for name in "ou")
save_file({n: torch.lerp(o[n].float(), u[n].float(), 0.5).to(u[n].dtype) for n in u}, folder / "m.safetensors")
print(time.perf_counter() - start)
"""


def make(folder: Path, config: LlamaConfig, seed: int) -> None:
    """A checkpoint of random bfloat16 numbers, made part by part."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1 << 24, generator=generator).mul(0.02).bfloat16()

    def tensor(shape: tuple[int, ...]) -> LazyTensor:
        width = shape[-1] if len(shape) > 1 else 1

        def rows(start: int, stop: int) -> torch.Tensor:
            count = (stop - start) * width
            first = start * width * 7919 % (len(noise) - count)
            return noise[first : first + count].view(stop - start, width)

        return LazyTensor(shape, torch.bfloat16, rows)

    folder.mkdir()
    config.save_pretrained(folder)
    write_safetensors(folder / "model.safetensors", {name: tensor(shape) for name, shape in shapes.items()})


def timed(*command: str) -> tuple[float, float, str]:
    """(wall seconds, peak resident MiB, stdout) by /usr/bin/time -v."""
    start = time.perf_counter()
    done = subprocess.run(["/usr/bin/time", "-v", *command], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    found = re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
    assert found is not None
    return seconds, int(found[1]) / 1024, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=2.4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="make the temporary folder here")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        hidden, vocabulary = 2048, 32000
        layer = 4 * hidden * hidden + 3 * hidden * 4 * hidden
        layers = max(1, round((given.gigabytes * 1e9 / 2 - 2 * vocabulary * hidden) / layer))
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=16,
            tie_word_embeddings=False,
        )
        for name, seed in (("o", 0), ("u", 1)):
            make(folder / name, config, seed)
        size = (folder / "u" / "model.safetensors").stat().st_size
        largest = vocabulary * hidden * 2
        print(
            f"checkpoint {size / 1e9:.2f} GB, largest tensor {largest / 2**20:.0f} MiB, shards of {MAX_SHARD} at most"
        )
        python = (sys.executable, "-c")
        _, idle, _ = timed(*python, IDLE, str(folder))
        print(f"idle: {idle:.0f} MiB")
        rates: dict[str, list[float]] = {"copy": [], "mix": [], "naive": []}
        for _ in range(given.repeat):
            os.sync()  # or the system slows down whoever writes while the last one's pages go to disk
            start = time.perf_counter()
            subprocess.run(["cp", folder / "u" / "model.safetensors", folder / "copy"], check=True)
            rates["copy"].append(size / (time.perf_counter() - start))
            (folder / "copy").unlink()
            for name, code, written in (("mix", MIX, "m"), ("naive", NAIVE, "m.safetensors")):
                os.sync()
                _, peak, out = timed(*python, code, str(folder))
                rates[name].append(size / float(out))
                print(f"{name}: {float(out):.2f} s, peak {peak:.0f} MiB, {peak - idle:.0f} above idle")
                path = folder / written
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        middle = {name: statistics.median(values) for name, values in rates.items()}
        for name, rate in middle.items():
            print(f"{name}: {rate / 1e9:.2f} GB/s of output, {rate / middle['copy']:.2f} of copying it (median)")
        base = ["--original", str(folder / "o"), "--unlearned", str(folder / "u"), "--alpha", "0.5"]
        command = [sys.executable, "-m", "unlearn_metrics.cli", "control", "mix", *base, "--out", str(folder / "m")]
        seconds, peak, _ = timed(*command)
        print(f"unlearn-metrics control mix, checks included: {seconds:.1f} s, peak {peak:.0f} MiB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
