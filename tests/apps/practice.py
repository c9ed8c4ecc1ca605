"""The practice exam: every question's short run holds, prints the numbers of its derivation, and all of them make one page that loads nothing.

    LATHE=build/release/bin/lathe [CHROMIUM=chromium] python3 tests/apps/practice.py
"""
import html
import json
import os
import re
import signal
import subprocess
import tempfile
import time
import unittest

import browser

LATHE, CHROMIUM = os.environ["LATHE"], os.environ.get("CHROMIUM")

# The answers, worked out by hand.
NUMBERS = {
    "1a": ["268,435,456", "2,147,483,648", "2,415,919,104", "57,982,058,496", "59,373,627,899,904 FLOPs (59.37 TFLOPs)",
           "178,120,883,699,712 FLOPs (178.1 TFLOPs)", "(237.5 TFLOPs)", "(0.16 %)", "(0.76 %)"],
    "1b": ["1 MB is 10^6 bytes, 1 MiB is 2^20 bytes", "11,811,160,064 B", "(283.5 GB, 264 GiB)", "270,336", "10,739,515,392 B", "(257.7 GB, 240.05 GiB)", "192 GiB", "(23.62 GB, 22 GiB)", "12 u", "10 u"],
    "1c": ["(8 s c^2 + 4 s^2 c) / (4 s c d_s) = (2 x 1,024 + 128) / 512 = 4.25", "4 s^2 c = 4 s c d_s = 4 x 512 x 256 x 512 at s = 512"],
    "2a": ["24 x (20 u + 4 s) x 4 B x 8 = 2,013,659,136 B"],
    "2b": ["(loss / accumulation_steps).backward()", "optimizer.step()", "optimizer.zero_grad()"] + [
        f"\nWrong: {what}\n    {line};\n" for what, line in (("without the division", "loss.backward()"),
                                                          ("zero_grad before every backward pass", "optimizer.zero_grad()"),
                                                          ("step and zero_grad after every micro-batch", "(loss / accumulation_steps).backward()"),
                                                          ("no zero_grad", "(loss / accumulation_steps).backward()"))],
    "2c": ["22 GiB", "26 GiB", "34 GiB", "43 GiB", "62 GiB", "81.5 GiB", "121 GiB", "240.5 GiB", "(1 + 2 + 1) / (1 + 2) = 1.33333", "(1 + 1 + 1) / (1 + 1) = 1.5"],
    "3a": ["46,702,792,704", "12,879,925,248", "router (gate)", "top-k", "weighted combination", "load balancing"],
    "3b": ["auxiliary loss 0.1: cures", "bias 0.01: cures"],
    "4a": ["a multiply-add counts 2 FLOPs", "4,194,304", "32,768", "= 1 / 128", "0.0078125 (0.78 %)", "0.015625 (1.56 %)"],
    "4b": ["0.02^2 x sqrt(256 x 4) = 0.0128", "1,280", "17,664"] + [
        f"\nWrong: {what}\n    ExamLoRA(base_layer, rank, alpha) {{\n" for what in ("(1) B drawn", "(2) not scaled", "(3) base not frozen", "(4) A's scale constant",
                                                                                "the exam's layer, all four")],
    "4c": ["1/512", "16 against 0.516", "1,000 steps", "0 of 4096", "1 / 512", "1 / 256", "4 + 4 + 2 x 4 = 16", "2 + 2 + 4 + 2 x 4 = 16", "0.515869"],
    "4d": ["Gradient norm of A at step 0: exactly 0", "Gradient norm of A at step 2", "Gradient norm of B at step 0"],
    "4e": ["2/3 + 2 x 8 / 4,096 = 0.670573", "0.713265", "0.691717", "= 0.75"],
}

# Before the page's scripts: what canvases write, and how large.
WATCH = """<script>
const drawn = [], fillText = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
  drawn.push([String(text), parseFloat(this.font.match(/([\\d.]+)px/)[1]) * (this.canvas.clientWidth || this.canvas.width) / this.canvas.width]);
  return fillText.call(this, text, ...place);
};
</script>"""
# After them: every visible text with its size on the screen, and the places of the texts in drawings.
MEASURE = """<script>
addEventListener("load", () => setTimeout(() => {
  const texts = [...drawn];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.getClientRects().length) continue;
    const scale = element.ownerSVGElement ? element.getScreenCTM().a : 1;
    texts.push([text, parseFloat(getComputedStyle(element).fontSize) * scale]);
  }
  const place = element => (({left, top, right, bottom}) => [left, top, right, bottom])(element.getBoundingClientRect());
  const drawings = [...document.querySelectorAll(".diagram svg")].map(svg => [place(svg), [...svg.querySelectorAll("text")].map(text => [text.textContent, place(text)])]);
  const scroll = document.documentElement.scrollWidth;
  const wide = [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, pre") && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80));
  parent.postMessage(JSON.stringify({width: innerWidth, scroll, wide, texts, drawings}), "*");
}, 500));
</script>"""


def lathe(*words):
    return subprocess.run([LATHE, "practice", *words], capture_output=True, text=True, timeout=500)


class PracticeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        scratch = tempfile.TemporaryDirectory(prefix="lathe-practice-")
        cls.addClassCleanup(scratch.cleanup)
        cls.folder = scratch.name
        cls.page = os.path.join(cls.folder, "answers.html")
        cls.done = lathe("all", "--html", cls.page)
        parts = re.split(r"^(\d[a-e])  ", cls.done.stdout, flags=re.M)
        cls.answers = dict(zip(parts[1::2], parts[2::2]))

    def test_every_claim_holds(self):
        self.assertEqual(self.done.returncode, 0, "\n".join(re.findall(r"FAILS.*\n.*", self.done.stdout)) + self.done.stderr)
        self.assertNotIn("FAILS", self.done.stdout)
        self.assertEqual(list(self.answers), list(NUMBERS))
        for name, answer in self.answers.items():
            self.assertIn("\n  holds  ", answer, name)
            self.assertRegex(answer, r"\n  In short: \S")

    def test_the_numbers_come_out(self):
        for name, numbers in NUMBERS.items():
            for number in numbers:
                with self.subTest(question=name, number=number):
                    self.assertIn(number, self.answers[name])

    def test_lines_are_no_wider_than_tables_make_them(self):
        for line in self.done.stdout.splitlines():
            self.assertLessEqual(len(line), 200, line)
            self.assertRegex(line, r"^[\x20-\x7e]*$")

    def test_the_page_holds_it_all_and_loads_nothing(self):
        with open(self.page, encoding="utf-8") as file:
            text = file.read()
        for loading in (" src=", "<link", "@import", "url(", " style="):
            self.assertNotIn(loading, text)
        self.assertEqual(text.count('class="holds"'), self.done.stdout.count("\n  holds  "))
        self.assertNotIn('class="fails"', text)
        self.assertEqual(re.findall(r'<section id="(\w+)">', text), list(NUMBERS))
        self.assertEqual(text.count('<a href="#'), len(NUMBERS))
        data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))
        self.assertEqual(re.findall(r'<figure id="chart-(\w+)">', text), [chart["id"] for chart in data["charts"]])
        for chart in data["charts"]:
            self.assertTrue(all(curve["run"] < len(data["runs"]) for curve in chart["curves"]))
        drawing = re.search(r'<figure class="diagram">.*?</figure>', text, re.S).group(0)
        for label in ("router (gate)", "softmax, top-k", "load balancing", "expert 1", "weighted combination"):
            self.assertIn(f">{label}", drawing)

    def test_questions_are_listed_and_others_refused(self):
        done = lathe()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([line[:4] for line in done.stdout.splitlines()], [name + "  " for name in NUMBERS])
        for words, needed in ((["--html", "answers.html"], "--html requires QUESTION"), (["--full"], "--full requires QUESTION")):
            done = lathe(*words)
            self.assertEqual((done.returncode, done.stdout), (2, ""))
            self.assertIn(needed, done.stderr)
        done = lathe("1a", "--full")
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertEqual(done.stderr, 'error: lathe practice: "1a" has no long run (--full) (questions with one: 3b)\n')
        for words, problem in ((("1a", "--variant", "all"), '"1a" has no wrong variant (--variant) (questions with one: 2b, 4b)'),
                               (("all", "--variant", "all"), '"all" has no wrong variant (--variant) (questions with one: 2b, 4b)'),
                               (("4b", "--variant", "x"), 'unknown variant "x" (known: b-drawn, unscaled, unfrozen, constant-scale, all)')):
            done = lathe(*words)
            self.assertEqual((done.returncode, done.stdout, done.stderr), (2, "", f"error: lathe practice: {problem}\n"))
        done = lathe("9z")
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertRegex(done.stderr, r'^error: lathe practice: unknown question "9z" \(known: 1a, .*4e, all\)\n$')

    def test_one_wrong_variant_runs_beside_the_mended_code(self):
        for question, variant, title, others in (("2b", "zero-first", "zero_grad before every backward pass", "without the division"),
                                                 ("4b", "unscaled", "(2) not scaled", "(1) B drawn")):
            done = lathe(question, "--variant", variant)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertIn("\nMended, as it runs", done.stdout)
            self.assertIn(f"\nWrong: {title}\n", done.stdout)
            self.assertIn("Symptom:", done.stdout)
            self.assertNotIn(f"\nWrong: {others}\n", done.stdout)

    def test_a_signal_ends_it_with_one_line(self):
        for number, delay in ((signal.SIGINT, 1), (signal.SIGTERM, 2)):
            process = subprocess.Popen([LATHE, "practice", "3b"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            time.sleep(delay)
            process.send_signal(number)
            self.assertEqual(process.communicate(timeout=60), ("", "error: lathe practice: stopped by a signal, nothing is saved\n"))
            self.assertEqual(process.returncode, 75)

    def test_a_page_that_cannot_be_written_is_refused_before_the_run(self):
        foreign = os.path.join(self.folder, "foreign.html")
        with open(foreign, "w", encoding="utf-8") as file:
            file.write("<!doctype html>\n<p>years of work</p>\n")
        for path, problem in ((self.folder, "is a directory"), (os.path.join(self.folder, "none", "a.html"), "is no directory to write into"),
                              ("/proc/a.html", "cannot be written"), (foreign, "exists already")):
            with self.subTest(problem):
                done = lathe("3b", "--html", path)
                self.assertEqual((done.returncode, done.stdout), (2, ""))
                self.assertIn(problem, done.stderr)

    if CHROMIUM:
        def test_a_browser_draws_every_chart_wide_and_on_a_phone(self):
            with open(self.page, encoding="utf-8") as file:
                charts = re.findall(r'<figure id="chart-(\w+)">', file.read())
            for width in (1280, 500):
                dom, console = browser.browse(CHROMIUM, self.folder, self.page, "--dump-dom", f"--window-size={width},844", browser.LIGHT)
                self.assertEqual(console, [])
                drawn = [name for name, content in re.findall(r'<figure id="chart-(\w+)">(.*?)</figure>', dom, re.S) if content.count("<canvas") == 1]
                self.assertEqual(drawn, charts)
            picture = os.path.join(self.folder, "page.png")
            _, console = browser.browse(CHROMIUM, self.folder, self.page, "--screenshot=" + picture, "--window-size=390,8000", browser.LIGHT)
            self.assertEqual(console, [])
            rows = browser.pixels(picture)
            self.assertEqual(len(rows[0]), 390)
            self.assertEqual({pixel for row in rows for pixel in row[-10:]}, {(0xF6, 0xF7, 0xF9)})  # the margin: nothing sticks out

        def test_all_texts_are_large_enough_on_a_phone(self):
            with open(self.page, encoding="utf-8") as file:
                text = file.read()
            text, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', lambda _: WATCH, text)
            self.assertEqual(policies, 1)
            inner, outer = os.path.join(self.folder, "measured.html"), os.path.join(self.folder, "phone.html")
            with open(inner, "w", encoding="utf-8") as file:
                file.write(text.replace("</body>", MEASURE + "</body>"))
            for width in (320, 390):
                with open(outer, "w", encoding="utf-8") as file:  # a window of Chromium's is at least 500 wide, a frame need not be
                    file.write(f'<iframe src="measured.html" width="{width}" height="844" style="border: 0"></iframe>'
                               "<script>onmessage = event => document.body.textContent = event.data</script>")
                dom, console = browser.browse(CHROMIUM, self.folder, outer, "--dump-dom", browser.LIGHT)
                self.assertEqual(console, [])
                found = json.loads(html.unescape(re.search(r"<body>(.*)</body>", dom, re.S).group(1)))
                self.assertEqual((found["width"], found["scroll"], found["wide"]), (width, width, []))
            self.assertGreater(len(found["texts"]), 1000)
            self.assertEqual([(text, size) for text, size in found["texts"] if size < 11], [])
            for (left, top, right, bottom), texts in found["drawings"]:
                self.assertGreater(len(texts), 10)
                for i, (text, place) in enumerate(texts):
                    self.assertTrue(left <= place[0] and place[2] <= right and top <= place[1] and place[3] <= bottom, text)
                    for other, (x1, y1, x2, y2) in texts[:i]:
                        self.assertTrue(x2 <= place[0] or place[2] <= x1 or y2 <= place[1] or place[3] <= y1, (text, other))


if __name__ == "__main__":
    unittest.main()
