"""An interactive map in a real browser: hovering, searching, zooming, without a network."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("altair", reason="altair, of the extra map, is not installed")
pytest.importorskip("vl_convert", reason="vl-convert, of the extra map, is not installed")

from e5core.maps.chart import save
from e5core.maps.points import map_of_meanings
from e5core.maps.sentences import parallel

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

# Put into the page, it does what a person does, and leaves what it saw in the document.
PERSON = """
<pre id="report"></pre>
<script>
addEventListener("load", async () => {
  const report = {}, wait = time => new Promise(done => setTimeout(done, time));
  try {
    let chart = null;
    for (let i = 0; i < 100 && !chart; i++) {
      chart = document.querySelector("#vis svg.marks");
      await wait(100);
    }
    const points = [...chart.querySelectorAll(".mark-symbol.role-mark path")];
    report.points = points.length;
    report.width = chart.getBoundingClientRect().width / innerWidth;
    report.height = chart.getBoundingClientRect().height / innerHeight;
    const box = points[0].getBoundingClientRect();
    const at = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true};
    points[0].dispatchEvent(new PointerEvent("pointermove", at));
    points[0].dispatchEvent(new MouseEvent("mousemove", at));
    await wait(100);
    report.shown = document.querySelector("#vg-tooltip-element").innerText;
    const faint = () => points.filter(point => +(point.getAttribute("opacity") || 1) < 0.5).length;
    const field = document.querySelector("input[type=search]");
    report.before = faint();
    field.value = "GUTEN TAG"; field.dispatchEvent(new Event("input")); await wait(300);
    report.searched = [...chart.querySelectorAll(".mark-symbol.role-mark path")].filter(
      point => +(point.getAttribute("opacity") || 1) < 0.5).length;
    field.value = ""; field.dispatchEvent(new Event("input")); await wait(300);
    const places = () => chart.querySelector(".mark-symbol.role-mark").innerHTML;
    const first = places();
    const centre = {clientX: 300, clientY: 300, deltaY: -300, bubbles: true};
    points[0].dispatchEvent(new WheelEvent("wheel", {...centre, ...at})); await wait(300);
    report.zoomed = places() !== first;
  } catch (error) { report.error = String(error); }
  document.querySelector("#report").textContent = JSON.stringify(report);
});
</script></body>"""


# What sentences must not do to the page that holds them, nor to what hovering shows.
MARKUP = "</script><script>document.title = 'taken over'</script><b>"
IMAGE = "<img src=x onerror=\"document.title = 'taken over'\">"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_page_in_a_browser(tmp_path: Path) -> None:
    day = f"Good day. {IMAGE}"
    texts = [day, "Where is it?", "Guten Tag.", "Wo ist es?", "Bonjour.", MARKUP]
    languages = ["en", "en", "de", "de", "fr", "fr"]
    sentences = parallel(texts, languages, ["day", "where"] * 3)
    vectors = np.random.default_rng(0).standard_normal((3, 2, 8)).astype(np.float32)
    page = tmp_path / "map.html"
    save(map_of_meanings(sentences, vectors, [0.0, 0.0, 0.0]), page)
    before, _, after = page.read_text(encoding="utf-8").rpartition("</body>")
    (tmp_path / "person.html").write_text(before + PERSON + after, encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [
        "--window-size=1600,900",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=30000",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'person.html'}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="report">(.+?)</pre>', run.stdout, re.DOTALL)
    assert found is not None, run.stderr[-1000:]
    report = json.loads(html.unescape(found[1]))
    assert "error" not in report
    assert report["points"] == 6
    assert "<title>2 sentences in 3 languages</title>" in run.stdout
    # It fills a wide window, and leaves the field that finds in sight.
    assert report["width"] > 0.95
    assert 0.85 < report["height"] < 0.98
    # The first point is the first sentence of the first language.
    shown = " ".join(report["shown"].split())
    assert shown == f"language English sentence {day} translation {day} group {day}"
    assert (report["before"], report["searched"]) == (0, 5)
    assert report["zoomed"]
