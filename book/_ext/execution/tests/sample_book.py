"""Write the sample on which speed is measured: 24 pages of four cells in five chapters.

    python sample_book.py FOLDER

writes the pages into FOLDER/book with two configurations: `cached` (the stage fills FOLDER/cache,
Sphinx reads it) and `plain` (MyST-NB runs one kernel after the other). The README says how both
are timed.
"""

from __future__ import annotations

import sys
from pathlib import Path

CHAPTERS = {"numbers": 5, "attention": 5, "memory": 5, "ranks": 5, "sampling": 4}
FRONT = """---
file_format: mystnb
kernelspec: {name: python3, language: python, display_name: Python 3}
---

"""
PAGE = """# Page {number} of {chapter}

A short page that imports torch, computes, draws and ends in a value.

```{{code-cell}} ipython3
import matplotlib.pyplot as plt
import torch
```

```{{code-cell}} ipython3
generator = torch.Generator().manual_seed({number})
weights = torch.randn(64, 64, generator=generator)
print(f"largest weight {{weights.max():.3f}}")
```

```{{code-cell}} ipython3
steps = torch.arange(1, 33)
fig, ax = plt.subplots(figsize=(5, 3))
ax.plot(steps, 1 / steps**0.5)
ax.set_xlabel("step")
ax.set_ylabel("step size");
```

```{{code-cell}} ipython3
round(float((1 / steps**0.5).sum()), 3)
```
"""
CONF = "project = 'sample'\nversion = '1'\nhtml_theme = 'furo'\nextensions = {extensions}\n{rest}\n"
CACHED = "nb_execution_mode = 'cache'\nnb_execution_cache_path = {cache!r}"
PLAIN = "nb_execution_mode = 'force'\nnb_execution_timeout = 120"


def write_sample(folder: Path) -> None:
    """Write pages and both configurations below a folder."""
    book = folder / "book"
    index = ["# Sample", ""]
    for chapter, pages in CHAPTERS.items():
        (book / chapter).mkdir(parents=True, exist_ok=True)
        index += ["```{toctree}", f":caption: {chapter.capitalize()}", ""]
        for number in range(1, pages + 1):
            text = FRONT + PAGE.format(number=number, chapter=chapter)
            (book / chapter / f"page_{number}.md").write_text(text, encoding="utf-8")
            index.append(f"{chapter}/page_{number}")
        index += ["```", ""]
    (book / "index.md").write_text("\n".join(index), encoding="utf-8")
    cache = str((folder / "cache").resolve())
    for name, extensions, rest in (
        ("cached", ["myst_nb", "execution.sphinx_hook"], CACHED.format(cache=cache)),
        ("plain", ["myst_nb"], PLAIN),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        conf = CONF.format(extensions=extensions, rest=rest)
        (folder / name / "conf.py").write_text(conf, encoding="utf-8")


if __name__ == "__main__":
    write_sample(Path(sys.argv[1]))
