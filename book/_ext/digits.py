"""`nox -s digits`: which printed digits change with the processor's instructions or the number of threads.

Each page is executed once for each setting, in caches of their own; every number that it prints (in outputs, in
labels of figures, in prose) must be the same in all. One that is not travels badly: print fewer digits of it.
The settings name what PyTorch, MKL, oneDNN and OpenBLAS choose from: a reader's processor may know no better.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from printed import Difference, differences, executed, texts

ROOT = Path(__file__).resolve().parents[2]
PATIENT = ("--cpu-slack", "12", "--wall-slack", "40")  # older instructions are slower
SETTINGS = {
    "as built": {},
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_CBWR": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "OPENBLAS_CORETYPE": "SkylakeX",
    },
    # Passive: threads that wait would use up the budget of a page where cores are fewer than threads.
    "2 threads": {"EXECUTION_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
}


def known(setting: str, flags: str) -> bool:
    """Whether a processor with these flags has a setting's instructions.

    >>> known("avx512", "sse4_2 avx2"), known("avx2", "sse4_2 avx2"), known("2 threads", "")
    (False, True, True)
    """
    needed = {"avx2": "avx2", "avx512": "avx512f"}.get(setting, "")
    return needed in flags


def run_stage(
    cache: Path, stage: list[str], pages: list[str], environment: dict[str, str]
) -> dict[str, str]:
    """Execute pages into a cache of their own; the failures by page."""
    command = [
        sys.executable,
        "-m",
        "execution",
        "book",
        "--cache",
        str(cache),
        *PATIENT,
        *stage,
        *pages,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    summary = cache / "summary.json"
    if not summary.exists():
        raise SystemExit(f"the stage failed:\n{done.stdout}{done.stderr}")
    print(done.stdout.strip().splitlines()[-1], flush=True)
    failed: list[str] = json.loads(summary.read_bytes())["failed"]
    return {page: line for line in failed for page in pages_in(line)}


def pages_in(failure: str) -> list[str]:
    """The page that a failure of the stage names.

    >>> pages_in("book/training/zero.md:12: cell 4, line 2: ValueError: x")
    ['training/zero']
    """
    return [failure.partition(".md:")[0].removeprefix("book/")] if ".md:" in failure else []


def moving(
    cache: Path, other: Path, setting: str, failed: dict[str, str]
) -> dict[str, list[Difference]]:
    """The printed numbers of each page that differ between two caches; where a page failed, its failure."""
    found: dict[str, list[Difference]] = {}
    for record in sorted((cache / "pages").rglob("*.json")):
        page = record.relative_to(cache / "pages").with_suffix("").as_posix()
        if page in failed:
            found[page] = [Difference(f"{setting}: does not run", failed[page], "")]
        else:
            ours, theirs = texts(executed(cache, page)), texts(executed(other, page))
            found[page] = list(differences(ours, theirs))
    return found


def main(stage: list[str], pages: list[str]) -> int:
    """Execute under each setting and name what moves; 1 if anything does."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text(encoding="utf8") if cpu.exists() else "avx2"
    found: dict[str, dict[str, list[Difference]]] = {}
    with tempfile.TemporaryDirectory(prefix="digits-") as folder:
        first = Path(folder, "as built")
        for setting, environment in SETTINGS.items():
            if not known(setting, flags):
                print(f"{setting}: this processor has no such instructions, so nothing is compared")
                continue
            print(f"{setting}: ", end="", flush=True)
            failed = run_stage(Path(folder, setting), stage, pages, environment)
            if setting == "as built" and failed:
                raise SystemExit("\n".join(failed.values()))
            for page, moved in moving(first, Path(folder, setting), setting, failed).items():
                for difference in moved:
                    found.setdefault(page, {}).setdefault(setting, []).append(difference)
    for page, by_setting in found.items():
        print(f"\n{page}")
        for setting, moved in by_setting.items():
            for difference in moved:
                print(f"  [{setting}] " + str(difference).replace("\n", "\n  "))
    print(
        f"\n{len(found)} pages print digits that do not travel" if found else "every digit travels"
    )
    return 1 if found else 0


if __name__ == "__main__":
    words = sys.argv[1:]
    split = words.index("--")
    sys.exit(main(words[:split], words[split + 1 :]))
