"""What several tests share: a browser that draws pages, a look at what it drew, and CUDA graphs that a CPU replays."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lithe.runtimes import cudagraph

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None
)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
QUIET += ["--disable-component-update", "--disable-sync", "--hide-scrollbars"]
# Each window is a frame of its width: a headless window may not be made as narrow as a telephone.
FRAME = '<iframe id="{}" style="border:0;width:{}px;height:1000px;color-scheme:{}" srcdoc="{}"></iframe>'
MEASURE = """<pre id="found"></pre><script>addEventListener("load", () => {
  const found = {}, of = (e) => e.getBoundingClientRect(), named = (e) => `${e.tagName} ${e.textContent.slice(0, 40)}`;
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  const dots = (line) => {  // along a line, in the window's pixels
    const [x, y, x2, y2] = ["x1", "y1", "x2", "y2"].map((end) => line[end].baseVal.value), box = of(line);
    const rises = (x2 - x) * (y2 - y) < 0;
    return Array.from({length: 200}, (_, i) => (i + 0.5) / 200).map((t) => {
      const top = box.top + (rises ? 1 - t : t) * box.height, left = box.left + t * box.width;
      return {left, right: left, top, bottom: top};
    });
  };
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement, wide = root.clientWidth;
    const all = (what, from = page) => [...from.querySelectorAll(what)];
    const outside = all("body *").filter((e) => !e.closest(".scroll")).filter((e) => {
      const box = of(e);
      return box.width && (box.right > wide + 1 || box.left < -1);
    });
    const small = all("text, td, p, figcaption, .step").filter((e) => {
      return of(e).height && parseFloat(getComputedStyle(e).fontSize) < 10.5;
    });
    const covered = [];  // by a name in a scatter: other names, points, lines
    for (const plot of all(".axes > svg").filter((e) => e.querySelector(".roomy"))) {
      const names = all("text.name", plot).filter((e) => of(e).height);
      const lines = all("line:not(.grid)", plot).filter((e) => of(e).height + of(e).width).flatMap(dots);
      const spots = lines.map((d) => ({...d, right: d.left + 2, bottom: d.top + 2}));
      const things = [...all(".mark", plot).map(of), ...spots];
      for (const name of names) {
        const {left, right, top, bottom} = of(name);
        const box = {left: left + 1, right: right - 1, top: top + 2, bottom: bottom - 2};
        const others = names.filter((e) => e !== name).map(of);
        if ([...others, ...things].some((other) => meet(box, other))) covered.push(name.textContent);
      }
    }
    found[frame.id] = {
      overflow: root.scrollWidth - wide,
      outside: outside.map(named),
      small: small.map(named),
      covered,
      names: all(".axes text.name").filter((e) => of(e).height).length,
      listed: all(".legend.tight .who, .legend.medium .who, .legend.roomy .who").filter((e) => of(e).height).length,
      drawings: all("svg.plot").filter((e) => of(e).height > 40).length,
      pictures: [...page.images].filter((e) => e.naturalWidth && of(e).width > 40).length,
      paper: getComputedStyle(root).backgroundColor,
      height: root.scrollHeight,
    };
  }
  document.getElementById("found").textContent = JSON.stringify(found);
})</script>"""


@pytest.fixture
def browser(tmp_path):
    """draw({name: (page, width, scheme)}) -> what a browser made of every page, and a picture of all side by side."""
    if not CHROMIUM and not os.environ.get("CI"):
        pytest.skip("needs chromium: apt-get install chromium")
    assert CHROMIUM, "no chromium on this machine: apt-get install chromium"

    def draw(pages: dict[str, tuple[str, int, str]]) -> tuple[dict, Image.Image]:
        frames = "".join(FRAME.format(name, *rest, html.escape(text)) for name, (text, *rest) in pages.items())
        text = f'<!doctype html><body style="margin:0;white-space:nowrap">{frames}{MEASURE}'
        (tmp_path / "frames.html").write_text(text)
        size = f"--window-size={sum(width for _, width, _ in pages.values()) + 50},1000"
        files = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}"]
        done = subprocess.run(
            [CHROMIUM, *QUIET, size, *files, "--dump-dom", (tmp_path / "frames.html").as_uri()],
            capture_output=True,
            text=True,
            timeout=280,
            check=True,
        )
        found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
        for name, seen in found.items():
            plain = (seen["overflow"], seen["outside"], seen["small"], seen["covered"])
            assert (name, *plain) == (name, 0, [], [], [])
            shown = pages[name][0].count('class="plot"')
            assert seen["drawings"] == shown, "something is not drawn, or the style was refused"
            assert seen["pictures"] == pages[name][0].count("<img")
        return found, Image.open(tmp_path / "page.png").convert("RGB")

    return draw


class Replayed:
    """Stands in for a CUDA graph: replaying calls the function and writes into the outputs of the capture."""

    captures = 0

    def __init__(self, function: Callable[[], Any]):
        self.function, self.outputs = function, function()
        Replayed.captures += 1

    def replay(self) -> None:
        for old, new in zip(tensors(self.outputs), tensors(self.function()), strict=True):
            old.copy_(new)


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    return [t for part in value for t in tensors(part)] if isinstance(value, list | tuple) else []


@pytest.fixture
def graphs_on_cpu(monkeypatch) -> type[Replayed]:
    """Captures and replays with a stand-in for the graphs, and counts them."""
    monkeypatch.setattr(cudagraph.Cudagraph, "devices", ("cpu",))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(cudagraph, "captured", lambda function, pool: (made := Replayed(function), made.outputs))
    monkeypatch.setattr(Replayed, "captures", 0)
    return Replayed
