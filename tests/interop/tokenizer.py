"""Token ids equal those of Hugging Face's tokenizers on every e-mail, untruncated, on 10,000 made strings, and with added tokens."""
import json
import os
import random
import sys
import unicodedata

import common
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " \t\n\r\u00a0\u3000\u2003", ".,;:!?'\"()[]{}<>@#$%^&*-_=+/\\|~`",
    "àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿßŁłŐőŞşİıĞğ", "中文字符漢字日本語かなカナ", "한국어조선말가각갂", "привет мир ЁёЪъ", "αβγδεζΣςσΩώ", "العربية فارسی אבגד",
    "😀😃👍🏽👨‍👩‍👧❤️🇩🇪", "\u0300\u0301\u0302\u0327\u0345\u0591\u064b\u0e31\u302e", "\u0000\u0001\u0007\u001b\u007f\u0085\u200b\u200d\u200e\u202e\ufeff\ufffd\ue000",
    "ﬁﬂ①②ⅣＡＢＣ豈更車", "हिन्दी தமிழ் ไทย", "\U00011938\U0001d400\U00010d50\U0001e900", "«»“”‘’…–—‚„¿¡§¶",
]
SPECIAL = ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]", "[cls]", "x" * 101, "y" * 100, "pneumonoultramicroscopicsilicovolcanoconiosis" * 3]


def made_strings(count):
    rng = random.Random(20261124)
    for i in range(count):
        parts = []
        for _ in range(rng.randint(0, 12)):
            if rng.random() < 0.08:
                parts.append(rng.choice(SPECIAL))
            elif rng.random() < 0.1:  # any code point at all
                parts.append("".join(chr(c) for c in (rng.randrange(0x110000) for _ in range(3)) if not 0xD800 <= c < 0xE000))
            else:
                alphabet = rng.choice(ALPHABETS)
                parts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 14))))
            if rng.random() < 0.7:
                parts.append(" ")
        yield "".join(parts)


# Tokens that a user adds: normalized and not, with accents, spaces and Chinese characters, whole words only, taking the space beside them.
ADDED = [AddedToken("COVID19"), AddedToken("Müller"), AddedToken("San Jose"), AddedToken("漢字"), AddedToken("vid"), AddedToken("RAW", normalized=False), AddedToken("ﬁne"),
         AddedToken("foo", single_word=True), AddedToken("oo", single_word=True), AddedToken("<left>", lstrip=True, normalized=False),
         AddedToken("<both>", lstrip=True, rstrip=True, normalized=False), AddedToken("[mail]", special=True, normalized=True), AddedToken("covid")]


def strings_with_added(count):
    rng = random.Random(20261125)
    words = [token.content for token in ADDED]
    for code in [*range(1, 0x500), *range(0x900, 0x980), *range(0x2000, 0x2500), *range(0x3000, 0x3100)]:  # beside a whole word
        yield f"a {chr(code)}foo foo{chr(code)} oo"
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 9)):
            word = rng.choice(words) if rng.random() < 0.6 else "".join(rng.choice(rng.choice(ALPHABETS)) for _ in range(rng.randint(1, 5)))
            parts.append(rng.choice((str, str.upper, str.lower, lambda w: unicodedata.normalize("NFD", w)))(word))
            parts.append(rng.choice(("", "", " ", "  ", "\n", "\u00a0", "\u3000", "-", "_", "×")))
        # U+10D50 is a letter since Unicode 16, which the system's utf8proc may not know
        yield "".join(parts).replace("\U00010d50", "") * rng.choice((1, 1, 1, 40))


def compare(name, texts, peer, model=common.MODEL):
    with common.scratch() as folder:
        path = common.write_jsonl(os.path.join(folder, "texts.jsonl"), [{"text": text} for text in texts])
        ours = [json.loads(line) for line in common.lathe("tokenize", "--model", model, "--jsonl", path).splitlines()]
    if len(ours) != len(texts):
        sys.exit(f"FAILED {name}: {len(ours)} lines for {len(texts)} texts")
    for text, ids in zip(texts, ours):
        expected = peer.encode(text).ids
        if ids != expected:
            at = next((i for i, pair in enumerate(zip(ids, expected)) if pair[0] != pair[1]), min(len(ids), len(expected)))
            sys.exit(f"FAILED {name}: {text[:200]!a}: token {at}: {ids[at:at + 5]} against {expected[at:at + 5]}")
    print(f"{name}: {len(texts)} texts, {sum(map(len, ours))} ids equal")


tokenizer = Tokenizer.from_file(os.path.join(common.MODEL, "tokenizer.json"))
tokenizer.no_truncation()
tokenizer.no_padding()
compare("e-mails", [row["text"] for part in ("train", "eval", "test") for row in common.mails(part)], tokenizer)
compare("made strings", list(made_strings(10_000)), tokenizer)
with common.scratch() as folder:
    extended = AutoTokenizer.from_pretrained(common.MODEL)
    extended.add_tokens(ADDED)
    extended.save_pretrained(folder)
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    compare("added tokens", list(strings_with_added(4_000)), tokenizer, folder)
