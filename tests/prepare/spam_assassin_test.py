"""The preparation of the quickstart's data: odd e-mails in, JSONL out, twins on one side of the split."""
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest

SCRIPT = os.path.join(os.path.dirname(__file__), "..", "..", "recipes", "prepare", "spam_assassin.py")
sys.path.insert(0, os.path.dirname(SCRIPT))
import spam_assassin  # noqa: E402


def mail(body, subject="Hello", headers=""):
    return f"From: a@example.com\nX-Spam-Status: Yes\nSubject: {subject}\n{headers}\n{body}"


class TextOfMail(unittest.TestCase):
    def test_keeps_subject_and_body_and_no_other_header(self):
        self.assertEqual(spam_assassin.text_of_mail(mail("one\ntwo  \n")), "Hello\none\ntwo")

    def test_decodes_encoded_words_and_charsets(self):
        text = spam_assassin.text_of_mail(
            mail("caf=E9", "=?iso-8859-1?Q?d=E9j=E0?= =?utf-8?B?dnU=?=",
                 "Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n"))
        self.assertEqual(text, "déjàvu\ncafé")

    def test_survives_unknown_charsets_and_broken_base64(self):
        for charset in ("no-such-charset", "utf-8", "hex", "\udcff"):
            raw = mail("!!!=caf\udce9", "=?x-unknown?B?@@@?=",
                       f"Content-Type: text/plain; charset={charset}\nContent-Transfer-Encoding: base64\n")
            self.assertIsInstance(spam_assassin.text_of_mail(raw), str)

    def test_prefers_the_plain_part_of_a_multipart_mail(self):
        parts = "--b\nContent-Type: text/html\n\n<p>page</p>\n--b\nContent-Type: text/plain\n\nplain\n--b--\n"
        text = spam_assassin.text_of_mail(mail(parts, headers='Content-Type: multipart/alternative; boundary="b"\n'))
        self.assertEqual(text, "Hello\nplain")

    def test_shows_what_a_reader_of_html_sees(self):
        page = "<html><head><title>t</title><style>p{}</style></head><body>a &amp; b<br>c<script>x()</script></body>"
        encoded = base64.b64encode(page.encode()).decode()
        text = spam_assassin.text_of_mail(
            mail(encoded, headers="Content-Type: text/html\nContent-Transfer-Encoding: base64\n"))
        self.assertEqual(text, "Hello\na & b\nc")

    def test_never_reads_an_attachment(self):
        parts = "--b\nContent-Type: text/plain\n\nplain\n--b\nContent-Type: image/png\n\nAAAA\n--b--\n"
        text = spam_assassin.text_of_mail(mail(parts, headers='Content-Type: multipart/mixed; boundary="b"\n'))
        self.assertEqual(text, "Hello\nplain")

    def test_takes_linear_time(self):
        def seconds(size):
            raw = mail("<" * size + "\n \n" * size, headers="Content-Type: text/html\n")
            start = time.process_time()
            spam_assassin.text_of_mail(raw)
            return time.process_time() - start

        self.assertLess(seconds(160_000), 64 * max(seconds(10_000), 0.001))  # quadratic: 256


class Split(unittest.TestCase):
    def test_twins_fall_on_one_side_and_parts_are_near_80_10_10(self):
        counts = {"train": 0, "eval": 0, "test": 0}
        for i in range(5000):
            part = spam_assassin.part_of(f"mail number {i}")
            self.assertEqual(part, spam_assassin.part_of(f" mail\n\nnumber\t{i} "))
            counts[part] += 1
        self.assertAlmostEqual(counts["train"] / 5000, 0.8, delta=0.03)
        self.assertAlmostEqual(counts["eval"] / 5000, 0.1, delta=0.02)

    def test_script_writes_three_files_of_labelled_texts(self):
        with tempfile.TemporaryDirectory() as root:
            for folder in spam_assassin.LABELS:
                os.makedirs(os.path.join(root, "raw", folder))
                for i in range(20):
                    with open(os.path.join(root, "raw", folder, f"{i}.json"), "w") as file:
                        json.dump({"text": mail(f"{folder} {i}")}, file)
            out = os.path.join(root, "out")
            subprocess.run([sys.executable, SCRIPT, "--raw", os.path.join(root, "raw"), "--out", out], check=True,
                           capture_output=True)
            lines = []
            for name in ("train", "eval", "test"):
                with open(os.path.join(out, name + ".jsonl"), encoding="utf-8") as file:
                    lines += map(json.loads, file)
            self.assertEqual(len(lines), 100)
            for line in lines:
                self.assertEqual(line["label"], "spam" if "spam" in line["text"] else "ham")
                self.assertEqual(set(line), {"text", "label"})

    def test_script_names_a_missing_folder(self):
        with tempfile.TemporaryDirectory() as root:
            run = subprocess.run([sys.executable, SCRIPT, "--raw", root, "--out", root], capture_output=True, text=True)
            self.assertEqual(run.returncode, 1)
            self.assertIn("easy-ham-1: no such folder", run.stderr)


if __name__ == "__main__":
    unittest.main()
