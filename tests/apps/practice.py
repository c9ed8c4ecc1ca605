"""The practice exam's questions: the short run of each holds, prints its verdict and writes one page that loads nothing.

    LATHE=build/release/bin/lathe python3 tests/apps/practice.py
"""
import json
import os
import re
import subprocess
import tempfile
import unittest

LATHE = os.environ["LATHE"]


def lathe(*words):
    return subprocess.run([LATHE, "practice", *words], capture_output=True, text=True, timeout=500)


class PracticeTest(unittest.TestCase):
    def test_questions_are_listed_and_others_refused(self):
        done = lathe()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("3b  Routing collapse\n", done.stdout)
        done = lathe("9z")
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertRegex(done.stderr, r'^error: lathe practice: unknown question "9z" \(known: .*3b.*all\)\n$')

    def test_every_answer_holds_and_has_a_page(self):
        with tempfile.TemporaryDirectory(prefix="lathe-practice-") as folder:
            page = os.path.join(folder, "answers.html")
            done = lathe("all", "--html", page)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertNotIn("FAILS", done.stdout)
            with open(page, encoding="utf-8") as file:
                text = file.read()
        for loading in (" src=", "<link", "@import", "url(", " style="):
            self.assertNotIn(loading, text)
        self.assertEqual(text.count('class="holds"'), done.stdout.count("\n  holds  "))
        self.assertNotIn('class="fails"', text)
        data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))
        self.assertEqual(set(re.findall(r'<figure id="chart-(\w+)">', text)), {chart["id"] for chart in data["charts"]})
        for chart in data["charts"]:
            self.assertTrue(all(curve["run"] < len(data["runs"]) for curve in chart["curves"]))


if __name__ == "__main__":
    unittest.main()
