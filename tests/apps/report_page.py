"""The page of `lathe report` in a browser: every chart is drawn, in light and dark, on a desk and on a phone, and nothing is loaded or run beside.

    LATHE=build/release/bin/lathe CHROMIUM=chromium python3 tests/apps/report_page.py [ReportPageTest | RealRunsTest]

RealRunsTest trains: it needs lathe-torch.
"""
import base64
import http.server
import json
import math
import os
import re
import subprocess
import tempfile
import threading
import unittest

import browser
import small_images
import small_model
from browser import DARK, LIGHT, pixels
from small_images import png

LATHE, CHROMIUM = os.environ["LATHE"], os.environ["CHROMIUM"]
CHARTS = ["loss", "lr", "grad_norm", "throughput", "memory", "eval_0", "eval_1", "eval_2"]


def metrics(steps):
    for step in range(1, steps + 1):
        loss = 0.7 * math.exp(-step / 40) + 0.05 * math.sin(step * 1.7) ** 2
        yield dict(step=step, epoch=step / steps, loss=None if step == 17 else loss, lr=2e-3 * (1 - step / steps), grad_norm=1 + math.sin(step),
                   tokens=1900, seconds=0.3, tokens_per_second=6300 + 90 * math.sin(step), peak_rss_bytes=450_000_000 + 40_000 * step)
        if step % 20 == 0:
            yield dict(step=step, epoch=step / steps, eval_loss=0.6 * math.exp(-step / 50), accuracy=1 - 0.4 * math.exp(-step / 50), f1=1 - 0.5 * math.exp(-step / 50))


class PageTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix="lathe-report-")
        self.addCleanup(scratch.cleanup)
        self.folder = scratch.name

    def report(self, *runs):
        out = os.path.join(self.folder, "page.html")
        done = subprocess.run([LATHE, "report", *runs, "--out", out], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (0, out + "\n"), done.stderr)
        return out

    def browse(self, page, *options):
        """Opens a page; returns what it wrote to stdout and the messages of its console."""
        return browser.browse(CHROMIUM, self.folder, page, *options)

    def assert_drawn(self, page, width, scheme):
        dom, console = self.browse(page, "--dump-dom", f"--window-size={width},844", scheme)
        self.assertEqual(console, [])
        figures = re.findall(r'<figure id="chart-(\w+)">(.*?)</figure>', dom, re.S)
        self.assertEqual([name for name, _ in figures], CHARTS)
        for name, content in figures:
            sizes = re.findall(r'<canvas width="(\d+)" height="(\d+)"', content)
            self.assertEqual(len(sizes), 1, name)
            self.assertTrue(100 < int(sizes[0][0]) <= width and int(sizes[0][1]) > 100, f"{name}: {sizes}")
        memory = re.findall(r'<svg class="stack".*?</svg>', dom)
        self.assertEqual([bar.count("<rect") for bar in memory], [5, 1] * (len(memory) // 2))
        self.assertNotIn("<b>second", dom)
        return dom


class ReportPageTest(PageTest):
    def setUp(self):
        super().setUp()
        self.first, self.second = self.run_directory("first", 120), self.run_directory("<b>second & last", 60)

    def run_directory(self, name, steps):
        path = os.path.join(self.folder, name)
        os.mkdir(path)
        with open(os.path.join(path, "metrics.jsonl"), "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in metrics(steps))
        with open(os.path.join(path, "recipe.yaml"), "w", encoding="utf-8") as file:
            file.write(f"optimizer:\n  lr: {1 / steps}\n")
        with open(os.path.join(path, "run.json"), "w", encoding="utf-8") as file:
            json.dump({"environment": {"threads": "2"}, "planned": {"peak_bytes": 460_000_000},
                       "planned_peak": {"weights_bytes": 100_000_000, "optimizer_bytes": 60_000_000, "gradients_bytes": 30_000_000, "activations_bytes": 250_000_000, "temporaries_bytes": 20_000_000},
                       "measured": {"peak_bytes": 455_000_000},
                       "adapter_norms": {f"layer.{i}.query": 0.1 * i for i in range(6)}}, file)
        with open(os.path.join(path, "evaluation.json"), "w", encoding="utf-8") as file:
            json.dump(self.evaluation(steps), file)
        return path

    @staticmethod
    def evaluation(step):
        labels = ["t-shirt", "<b>trouser", "ankle boot"] + [f"class {i}" for i in range(9)]
        magenta = base64.b64encode(png(b"\xff\x00\xff" * 28 * 28, 28, 3)).decode()
        worst = [dict(place=f"images: {i}", picture=magenta, truth=i % 3, predicted=3, truth_probability=0.001 * i, predicted_probability=0.9) for i in range(6)]
        worst.append(dict(place="texts.jsonl:3", text="<b>A text</b> " * 20, truth=0, predicted=1, truth_probability=0.1, predicted_probability=0.9))
        confusion = [[800 if i == j else (7 * i + 3 * j) % 30 for j in range(12)] for i in range(12)]
        return dict(step=step, samples=12000, labels=labels, class_samples=[sum(row) for row in confusion],
                    class_accuracy=[800 / sum(row) for row in confusion], confusion=confusion, worst=worst)

    def test_the_planned_memory_is_a_bar_as_wide_as_its_figure(self):
        page, picture = self.report(self.first), os.path.join(self.folder, "page.png")
        _, console = self.browse(page, "--screenshot=" + picture, "--window-size=1280,5200", LIGHT)
        self.assertEqual(console, [])
        widest = lambda colour: max(row.count(colour) for row in pixels(picture))
        optimizer, gradients = widest((0xD1, 0x58, 0x0A)), widest((0x12, 0x82, 0x62))
        self.assertGreater(gradients, 20)
        self.assertAlmostEqual(optimizer / gradients, 60 / 30, delta=0.1)

    def test_every_chart_is_drawn_wide_and_narrow_light_and_dark(self):
        for page in (self.report(self.first), self.report(self.first, self.second)):
            for width in (1280, 500):  # no window is narrower than 500, only pictures are
                for scheme in (LIGHT, DARK):
                    with self.subTest(page=page, width=width, scheme=scheme):
                        self.assert_drawn(page, width, scheme)

    def test_a_phone_shows_it_all_in_the_colours_of_the_scheme(self):
        page, picture = self.report(self.first, self.second), os.path.join(self.folder, "page.png")
        for scheme, background, curve in ((LIGHT, (0xF6, 0xF7, 0xF9), (0x1F, 0x6F, 0xD1)), (DARK, (0x10, 0x14, 0x1A), (0x6C, 0xAB, 0xFF))):
            with self.subTest(scheme=scheme):
                _, console = self.browse(page, "--screenshot=" + picture, "--window-size=390,1300", scheme)
                self.assertEqual(console, [])
                rows = pixels(picture)
                self.assertEqual(len(rows[0]), 390)
                self.assertEqual({pixel for row in rows for pixel in row[-10:]}, {background})  # the margin: nothing sticks out
                self.assertGreater(sum(row.count(curve) for row in rows), 200)

    def test_mistakes_show_their_pictures(self):
        page, picture = self.report(self.first), os.path.join(self.folder, "page.png")
        dom, console = self.browse(page, "--screenshot=" + picture, "--window-size=1280,4200", LIGHT)
        self.assertEqual(console, [])
        magenta = sum(row.count((255, 0, 255)) for row in pixels(picture))
        self.assertEqual(magenta, 6 * 112 * 112)  # six pictures of 28 x 28, drawn four times as large
        dom, _ = self.browse(page, "--dump-dom")
        self.assertNotIn("<b>", dom)
        self.assertIn("&lt;b&gt;trouser", dom)

    def test_the_policy_stops_what_does_not_belong(self):
        """Markup that had slipped in could neither run nor load."""
        requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append(self.path)
                self.send_error(404)

            def log_message(self, *_):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        url = f"http://127.0.0.1:{server.server_port}"
        page = self.report(self.first)
        with open(page, encoding="utf-8") as file:
            text = file.read()
        smuggled = f"<img src='{url}/image'><link rel=stylesheet href='{url}/style'><script src='{url}/script'></script><script>fetch('{url}/fetch')</script>"
        with open(page, "w", encoding="utf-8") as file:
            file.write(text.replace("</main>", smuggled + "</main>"))
        dom, console = self.browse(page, "--dump-dom")
        self.assertEqual(requests, [])
        self.assertEqual(len(console), 4, console)
        self.assertIn("<canvas", dom)

    def test_a_switch_hides_its_run_in_every_chart(self):
        page = self.report(self.first, self.second)
        with open(page, encoding="utf-8") as file:
            text = re.sub("<meta http-equiv[^>]*>", "", file.read())
        with open(page, "w", encoding="utf-8") as file:
            file.write(text.replace("</body>", "<script>document.querySelector('.runs button').click()</script></body>"))
        dom, console = self.browse(page, "--dump-dom")
        self.assertEqual(console, [])
        self.assertEqual(re.findall(r'<button[^>]* aria-pressed="(\w+)"', dom), ["false", "true"])
        for name, content in re.findall(r'<figure id="chart-(\w+)">(.*?)</figure>', dom, re.S):
            rows = re.findall(r'<tr class="u-series([^"]*)"><th><div class="u-marker"[^>]*></div><div class="u-label">([^<]*)', content)
            self.assertEqual({("u-off" in classes, label.split(",")[0]) for classes, label in rows if label != "step"},
                             {(True, "first"), (False, "&lt;b&gt;second &amp; last")}, name)

    def test_unfinished_runs_have_pages(self):
        for name, content in (("empty", ""), ("one", '{"step":1,"loss":0.5}\n'), ("cut", '{"step":1,"loss":0.5}\n{"step":2,"lo')):
            with self.subTest(name):
                path = os.path.join(self.folder, name)
                os.mkdir(path)
                with open(os.path.join(path, "metrics.jsonl"), "w", encoding="utf-8") as file:
                    file.write(content)
                dom, console = self.browse(self.report(path), "--dump-dom")
                self.assertEqual(console, [])
                self.assertEqual("<canvas" in dom, name != "empty")
                self.assertEqual("damaged line" in dom, name == "cut")

    def test_the_page_goes_beside_the_run_and_mistakes_have_exit_codes(self):
        done = subprocess.run([LATHE, "report", self.first], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (0, os.path.join(self.first, "report.html") + "\n"))
        self.assertIn("warning: ", done.stderr)
        done = subprocess.run([LATHE, "report", self.folder], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (3, ""))
        self.assertRegex(done.stderr, r"^error: .*: not a run directory: no metrics.jsonl")
        self.assertEqual(subprocess.run([LATHE, "report"], capture_output=True).returncode, 2)


class RealRunsTest(PageTest):
    def test_real_runs_of_each_task_have_pages(self):
        runs = {"texts": (small_model.write_small_run, []), "images": (small_images.write_small_images, ["training.max_steps=4", "optimizer.lr=1e-4"])}
        for task, (write_run, overrides) in runs.items():
            with self.subTest(task):
                folder = os.path.join(self.folder, task)
                write_run(folder)
                subprocess.run([LATHE, "train", os.path.join(folder, "recipe.yaml"), "training.eval_every_steps=2", *overrides], check=True, capture_output=True, timeout=120)
                page = self.report(os.path.join(folder, "run"))
                for width in (1280, 500):
                    dom = self.assert_drawn(page, width, DARK)
                    self.assertEqual(dom.count("data:image/png;base64,") > 0, task == "images")  # the worst mistakes: pictures, or texts
                    self.assertRegex(dom, "train.jsonl:[0-9]+" if task == "texts" else "folder/(above|below|left)/")


if __name__ == "__main__":
    unittest.main()
