"""An example site: real checkpoints ranked, and the published logs of the field beside them.

    python -m tools.example_site SHARED OUT [--limit N] [--screenshots FOLDER]

SHARED holds checkpoints/, data/tofu/, logs/ and reference/uds/. OUT gets runs/ and site/; a second call goes on
with the runs that are there. Screenshots need Debian's packages chromium and chromium-driver, and selenium.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

RETAIN = "ft_epoch5_lr1e-05_llama2-7b_retain90_wd0.01.eval_log_aggregated.json"
LOGS = (
    "ft_epoch5_lr1e-05_llama2-7b_full_wd0.01",
    "ft_epoch5_lr1e-05_llama2-7b_retain90_wd0.01",
    "ft_epoch5_lr2e-05_phi_full_wd0.01",
)
ABOUT = {
    "26": "gradient ascent, 26 steps",
    "39": "gradient ascent, 39 steps",
    "52": "gradient ascent, 52 steps",
    "78": "gradient ascent, 78 steps",
}
INTRO = (
    "Small Llama checkpoints taught TOFU's text, unlearned by gradient ascent and measured here; and, as they were "
    "published, logs of the TOFU and MUSE authors and of the Unlearning Depth Score paper (UDS)."
)
# picture -> (width, height, dark, what is shown: the page from its top, or the first element of a selector)
PICTURES = {
    "desktop": (1300, 1130, False, None),
    "plots": (1300, 800, True, ".plots"),
    "phone": (390, 844, False, None),
}
FIND = "const r = document.querySelector(%r).getBoundingClientRect(); return [r.x, r.y + scrollY, r.width, r.height]"


def command(*arguments: object) -> None:
    print("$ unlearn-metrics", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "unlearn_metrics", *map(str, arguments)], check=True)


def measure(shared: Path, runs: Path, limit: int | None) -> None:
    """Runs of the four checkpoints, and what leaderboard.yaml says of them."""
    plan = {
        "original": str(shared / "checkpoints" / "original"),
        "unlearned": str(shared / "checkpoints" / "ga" / "*"),
        "benchmarks": "tofu_forget05",
        "data": str(shared / "data" / "tofu"),
        "controls": ["mix"],
        "retain_model": str(shared / "checkpoints" / "retain"),
        "batch_size": 16,
    } | ({} if limit is None else {"limit": limit})
    (runs / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    command("sweep", runs / "plan.yaml", "--out", runs / "ga")
    said = {
        f"ga/tofu_forget05/checkpoint-{step}/mix": {"method": method, "submitter": "unlearn-metrics"}
        for step, method in ABOUT.items()
    }
    (runs / "leaderboard.yaml").write_text(yaml.safe_dump(said, sort_keys=False))


def imported(shared: Path, runs: Path) -> None:
    logs = shared / "logs"
    wanted = [
        (
            "tofu",
            logs / f"{name}.eval_log_aggregated.json",
            name,
            ("--benchmark", "tofu_forget10", "--retain-log", logs / RETAIN),
        )
        for name in LOGS
    ]
    for kind, source, name, more in [
        *wanted,
        ("muse", logs / "muse", "muse", ()),
        ("uds", shared / "reference" / "uds" / "method_results.json", "uds", ()),
    ]:
        if not (runs / name).exists():
            command("import", kind, source, *more, "--out", runs / name)


def photographed(page: Path, folder: Path) -> None:
    """The pictures of docs/leaderboard.md."""
    from PIL import Image
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    folder.mkdir(parents=True, exist_ok=True)
    for name, (width, height, dark, part) in PICTURES.items():
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(page.resolve().as_uri())
        box = (0, 0, width, height) if part is None else browser.execute_script(FIND % part)
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"scale": 1}
        taken = browser.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip}
        )
        path = folder / f"leaderboard-{name}.png"
        full = Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")
        picture = full.quantize(255, method=Image.Quantize.MAXCOVERAGE)  # small marks keep their colours
        picture.save(path, optimize=True)
        print(f"wrote {path} ({path.stat().st_size / 1000:.0f} kB)")
    browser.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--limit", type=int, help="the first N documents of each split; 140 are seven of TOFU's authors"
    )
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    runs, site = given.out / "runs", given.out / "site"
    runs.mkdir(parents=True, exist_ok=True)
    imported(given.shared, runs)
    measure(given.shared, runs, given.limit)
    title = "Unlearning, measured again"
    command("leaderboard", runs, "--out", site, "--title", title, "--intro", INTRO)
    if given.screenshots is not None:
        photographed(site / "index.html", given.screenshots)


if __name__ == "__main__":
    main()
