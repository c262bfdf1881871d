"""Memory and throughput of `control mix` on a checkpoint of gigabytes, against a naive average and a plain copy.

    python -m tools.bench_mixing --gigabytes 2.4

Random checkpoints are made in a temporary folder (four times the size is needed there) and removed. Peak resident
memory is /usr/bin/time's. "idle" imports what mixing imports, opens and aligns the checkpoints, and stops.
All files are in the page cache, for the copies as for the mix, and what is written stays there, synced by none.
Before each measurement a file of the same size is written and removed: on a virtual machine, memory that it has not
used for a while comes from its host page by page, which takes longer than what is measured, whoever writes first.

"copy" is cp of one of the checkpoints: it reads once and writes once what a mix reads twice and writes once. "traffic"
is cp of one and a read of the other (dd to /dev/null): the same bytes read and written as by the mix.
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

from unlearn_metrics.checkpoints.files import MAX_SHARD
from unlearn_metrics.checkpoints.tensors import LazyTensor, write_safetensors

OPEN = """
import subprocess, sys, time
from pathlib import Path
from unlearn_metrics.control.checkpoints import open_checkpoint
from unlearn_metrics.control.mixing import write_mix
from unlearn_metrics.control.pairs import align
folder = Path(sys.argv[1])
o, u = align(open_checkpoint(str(folder / "o")), open_checkpoint(str(folder / "u")))
"""
IDLE = OPEN + "print(0)"
WARM = """
subprocess.run(["cp", folder / "u" / "model.safetensors", folder / "warm"], check=True)
(folder / "warm").unlink()
start = time.perf_counter()
"""
MIX = OPEN + WARM + "write_mix(o, u, 0.5, folder / 'm'); print(time.perf_counter() - start)"
COPY = (
    "from pathlib import Path; import subprocess, sys, time; folder = Path(sys.argv[1])"
    + WARM
    + """
subprocess.run(["cp", folder / "u" / "model.safetensors", folder / "m.safetensors"], check=True)
copied = time.perf_counter() - start
subprocess.run(["dd", f"if={folder}/o/model.safetensors", "of=/dev/null", "bs=1M", "status=none"], check=True)
print(copied, time.perf_counter() - start)
"""
)
NAIVE = (
    """
import subprocess, sys, time, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
folder = Path(sys.argv[1])
"""
    + WARM
    + """
o, u = (load_file(folder / name / "model.safetensors") for name in "ou")
save_file({n: torch.lerp(o[n].float(), u[n].float(), 0.5).to(u[n].dtype) for n in u}, folder / "m.safetensors")
print(time.perf_counter() - start)
"""
)


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
    parser.add_argument("--no-naive", action="store_true", help="leave out the naive average")
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
        seconds: dict[str, list[float]] = {"copy": [], "traffic": [], "mix": [], "naive": []}
        programs = {"copy": COPY, "mix": MIX} | ({} if given.no_naive else {"naive": NAIVE})
        for _ in range(given.repeat):
            for name, code in programs.items():
                os.sync()  # or the system slows down whoever writes while the last one's pages go to disk
                _, peak, out = timed(*python, code, str(folder))
                for what, found in zip((name, "traffic"), out.split(), strict=False):
                    seconds[what].append(float(found))
                print(f"{name}: {out.strip()} s, peak {peak:.0f} MiB, {peak - idle:.0f} above idle", flush=True)
                for path in (folder / "m", folder / "m.safetensors"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        middle = {name: statistics.median(found) for name, found in seconds.items() if found}
        for name, found in middle.items():
            print(
                f"{name}: {found:.2f} s (median), {size / found / 1e9:.2f} GB/s of output, "
                f"{middle['copy'] / found:.2f} of copying it, {middle['traffic'] / found:.2f} of the same traffic"
            )
        base = ["--original", str(folder / "o"), "--unlearned", str(folder / "u"), "--alpha", "0.5"]
        command = [sys.executable, "-m", "unlearn_metrics", "control", "mix", *base, "--out", str(folder / "m")]
        wall, peak, _ = timed(*command)
        print(f"unlearn-metrics control mix, checks included: {wall:.1f} s, peak {peak:.0f} MiB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
