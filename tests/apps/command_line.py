"""The command line as a user meets it: every kind of bad input gives one clear line and the right exit code, and loses nothing.

    LATHE=build/release/bin/lathe python3 tests/apps/command_line.py
"""
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import tempfile
import termios
import time
import unittest

import small_model

LATHE = os.environ["LATHE"]
class CommandLineTest(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory(prefix="lathe-command-line-")
        self.addCleanup(self.scratch.cleanup)
        self.recipe = small_model.write_small_run(self.scratch.name)

    def path(self, name):
        return os.path.join(self.scratch.name, name)

    def write(self, name, content):
        return small_model.write(self.scratch.name, name, content)

    def lathe(self, *words, code=0, env=None):
        done = subprocess.run([LATHE, *words], capture_output=True, text=True, timeout=120, env={**os.environ, **(env or {})})
        self.assertEqual(done.returncode, code, f"{words}\n{done.stdout}\n{done.stderr}")
        return done

    def refused(self, code, pattern, *words, lines=1):
        """lathe refuses with `lines` lines on stderr, each beginning with "error: ", one of which matches."""
        done = self.lathe(*words, code=code)
        errors = done.stderr.rstrip("\n").split("\n")
        self.assertEqual(len(errors), lines, done.stderr)
        for line in errors:
            self.assertTrue(line.startswith("error: "), line)
        self.assertRegex(done.stderr, pattern)
        self.assertNotIn("Exception raised from", done.stderr)
        return done

    def recipe_file(self, text):
        return self.write("bad.yaml", text)

    # --- four bits ---

    def test_a_quantised_model_serves_every_verb(self):
        four, out = self.path("four"), self.path("logits.safetensors")
        self.assertIn("13 weights in nf4", self.lathe("quantize", "--model", self.path("model"), "--out", four, "--double-quant").stdout)
        facts = json.loads(self.lathe("inspect", four, "--json").stdout)
        dense = json.loads(self.lathe("inspect", self.path("model"), "--json").stdout)
        self.assertEqual(facts["parameters"], dense["parameters"])
        self.assertEqual(facts["four_bit_weights"], {"nf4, blocks of 64, scales quantised": 13})
        recipe = [self.path("recipe.yaml"), "model.path=" + four]
        self.lathe("validate", *recipe, "--data")
        self.assertTrue(json.loads(self.lathe("plan", *recipe, "--json").stdout)["fits"])
        self.lathe("train", *recipe)
        adapter = self.path("run/adapter")
        self.assertEqual(json.loads(self.lathe("eval", self.path("run"), "--json").stdout)["samples"], 60)
        self.lathe("predict", "--model", four, "--adapter", adapter, "--text", "a b c")
        self.lathe("logits", "--model", four, "--adapter", adapter, "--text", "a b c", "--out", out)

    def test_merge_into_each_kind_of_base(self):
        four, run = self.path("four"), self.path("run")
        self.lathe("quantize", "--model", self.path("model"), "--out", four)
        self.lathe("train", self.path("recipe.yaml"), "model.path=" + four, "output.merged=true")
        merge = ["merge", "--adapter", run + "/adapter", "--model"]
        self.lathe(*merge, four, "--out", self.path("decoded"))
        self.lathe(*merge, self.path("model"), "--type", "nf4", "--out", self.path("quantised"))
        self.lathe(*merge, self.path("model"), "--out", self.path("original"))
        done = self.lathe(*merge, four, "--requantize", "--out", self.path("again"))
        self.assertRegex(done.stderr, r"warning: in four bits [0-9.]+ % of the adapter's update is lost")
        weights = {name: self.read(name + "/model.safetensors") for name in ("run/model", "decoded", "quantised", "original")}
        self.assertEqual(weights["decoded"], weights["run/model"])
        self.assertEqual(weights["quantised"], weights["run/model"])
        self.assertNotEqual(weights["original"], weights["run/model"])
        self.assertEqual(json.loads(self.lathe("inspect", self.path("again"), "--json").stdout)["four_bit_weights"], {"nf4, blocks of 64": 13})
        self.refused(2, r"--requantize: needs a model in four bits", *merge, self.path("model"), "--requantize", "--out", self.path("x"))
        self.refused(2, r"--blocksize and --double-quant need --type", *merge, self.path("model"), "--double-quant", "--out", self.path("x"))
        self.assertFalse(os.path.exists(self.path("x")))

    def read(self, name):
        with open(self.path(name), "rb") as file:
            return file.read()

    def test_quantize_refuses_by_name(self):
        model = ["quantize", "--model", self.path("model")]
        self.refused(2, r"/model: exists already", *model, "--out", self.path("model"))
        self.refused(2, r"--blocksize: expected 32, 64, 128, \.\.\., 4096, got 48", *model, "--out", self.path("four"), "--blocksize", "48")
        self.lathe(*model, "--out", self.path("four"))
        self.refused(3, r"is in four bits already: nf4, blocks of 64 \(ask", "quantize", "--model", self.path("four"), "--out", self.path("x"), "--type", "fp4")
        self.assertFalse(os.path.exists(self.path("x")))

    # --- recipes ---

    def test_unknown_key_names_the_nearest(self):
        self.refused(2, r"override: adapter\.aplha: unknown key \(did you mean alpha\?", "validate", self.path("recipe.yaml"), "adapter.aplha=3")

    def test_several_mistakes_are_reported_at_once(self):
        done = self.lathe("validate", self.path("recipe.yaml"), "adapter.rank=sixteen", "optimizer.lr=-1", "trainig.x=1", code=2)
        self.assertEqual(len(done.stderr.strip().split("\n")), 3, done.stderr)

    def test_of_thousands_of_mistakes_the_first_are_told(self):
        done = self.lathe("validate", self.recipe_file("".join(f"key{i}: 1\n" for i in range(3000))), code=2)
        lines = done.stderr.rstrip("\n").split("\n")
        self.assertEqual(len(lines), 21)
        self.assertRegex(lines[-1], r"^29\d\d more mistakes like these$")

    def test_a_wrong_value_in_a_list_is_told_at_its_place(self):
        self.refused(2, r"optimizer\.betas\[1\]: expected a number, got a list$", "validate", self.path("recipe.yaml"), "optimizer.betas=[0.9, [1]]")
        self.refused(2, r"rank_pattern\.query: expected an integer, got \"x\"$", "validate", self.path("recipe.yaml"), "adapter.rank_pattern={query: x}")
        self.refused(2, "got a list that holds {a: 1}$", "validate", self.path("recipe.yaml"), "adapter.target_modules=[query, {a: 1}]")

    def test_recipe_file_mistakes_have_line_and_column(self):
        text = "model:\n  path: m\n  path: n\n"
        self.refused(2, r"bad\.yaml:3:3: path: duplicate key", "validate", self.recipe_file(text))
        self.refused(2, r"bad\.yaml:1:4: anchors and aliases are not allowed", "validate", self.recipe_file("a: &x [1]\nb: *x\n"))
        bomb = "a: &a [x,x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)},*{chr(97 + i)}]\n" for i in range(20))
        self.refused(2, "anchors and aliases are not allowed", "validate", self.recipe_file(bomb))

    def test_recipe_that_is_no_recipe(self):
        self.refused(2, "expected a YAML file, got a directory", "validate", self.path("model"))
        self.refused(2, "expected UTF-8 text, got binary data", "validate", self.path("model/model.safetensors"))
        self.refused(2, "expected at most 262144 bytes", "validate", self.recipe_file("a: b\n" * 2_000_000))
        self.refused(2, "no such file, and no ready recipe", "train", self.path("none.yaml"))
        self.refused(2, "is empty", "validate", self.recipe_file(""))

    def test_targets_that_match_nothing(self):
        self.refused(2, r'adapter\.target_modules: "qurey" matches no linear layer of the model \(did you mean query\?', "validate", self.path("recipe.yaml"),
                     "adapter.target_modules=[qurey, value]")
        self.refused(2, r'adapter\.rank_pattern: "kye" decides for no adapted layer', "validate", self.path("recipe.yaml"), "adapter.rank_pattern={kye: 2}")

    def test_keys_of_later_families_are_refused_as_not_supported_yet(self):
        for overrides in (["model.task=causal_lm"], ["adapter.type=dora"]):
            self.refused(2, "is not supported yet", "validate", self.path("recipe.yaml"), *overrides)

    def test_experts_that_cannot_be_are_refused_by_name(self):
        recipe, model, out = self.path("recipe.yaml"), self.path("model"), self.path("experts")
        for experts, pattern in (("{num_experts: 4, top_k: 5}", r"model\.moe\.top_k: expected at most num_experts = 4, got 5"),
                                 ("{top_k: 1}", r"model\.moe\.renormalise: with top_k 1 the gate is always 1"),
                                 ("{capacity_factor: -1}", r"model\.moe\.capacity_factor: expected .*>= 0"),
                                 ("{router: noisy, bias_update_rate: 0.01}", r"model\.moe\.bias_update_rate: needs router: softmax or sigmoid"),
                                 ("{router: hash}", r"model\.moe\.router: expected one of softmax, ")):
            self.refused(2, pattern, "validate", recipe, "model.init=random", "model.moe=" + experts)
        self.refused(2, r"model\.moe: needs a checkpoint with experts", "validate", recipe, "model.moe={num_experts: 4}")
        self.refused(2, r"--top-k: expected at most num_experts = 2, got 3", "upcycle", "--model", model, "--experts", "2", "--top-k", "3", "--out", out)
        self.assertIn("experts each, 2 per token\n", self.lathe("upcycle", "--model", model, "--experts", "4", "--out", out).stdout)
        self.refused(3, r"config\.json: has experts already", "upcycle", "--model", out, "--out", out + "-again")
        self.refused(2, r"model\.moe\.num_experts: differs from the checkpoint's", "validate", recipe, "model.path=" + out, "model.moe.num_experts=8")

    def test_a_run_that_does_not_fit_is_planned_and_refused(self):
        recipe, big = self.path("recipe.yaml"), "training.batch_size=1000000000"
        plan = json.loads(self.lathe("plan", recipe, "--json").stdout)
        self.assertTrue(plan["fits"])
        self.assertGreater(plan["memory_bytes"]["peak"], plan["memory_bytes"]["weights"])
        self.assertFalse(json.loads(self.lathe("plan", recipe, big, "--json").stdout)["fits"])
        self.refused(4, r"training\.batch_size: the run needs .* are there \(training\.batch_size=\d+ training\.gradient_accumulation_steps=\d+ needs ", "train", recipe, big, "output.dir=" + self.path("big"))
        self.assertFalse(os.path.exists(self.path("big")))

    def test_overrides_that_mean_nothing(self):
        recipe = self.path("recipe.yaml")
        self.refused(2, r"bad\.yaml:1:1: expected a mapping, got \"hello\"", "validate", self.recipe_file("hello\n"), "optimizer.lr=1")
        self.refused(2, r"override: optimzer: unknown key \(did you mean optimizer\?", "validate", recipe, "~optimzer.lr")
        self.refused(2, r"a part of the key is empty", "validate", recipe, "training.batch_size.=8")
        self.refused(2, r"the bracket \[ is not closed", "validate", recipe, "data.labels=[a")
        self.refused(2, r'adapter\.exclude_modules: "vlaue" matches no linear layer .*did you mean value\?', "validate", recipe, "adapter.exclude_modules=[vlaue]")
        self.refused(2, r'"kye" matches no', "validate", recipe, "adapter.target_modules=[qurey, kye]", lines=2)

    def test_paths_mean_what_the_system_means(self):
        os.makedirs(self.path("real/deep"))
        os.symlink("real/deep", self.path("link"))
        os.rename(self.path("train.jsonl"), self.path("real/x.jsonl"))
        self.lathe("validate", self.path("recipe.yaml"), "data.train=" + self.path("link/../x.jsonl"), "~data.eval", "--data")
        folder = os.path.join(os.fsencode(self.scratch.name), b"caf\xe9")
        os.mkdir(folder)
        os.rename(self.path("recipe.yaml"), os.path.join(folder, b"r.yaml"))
        self.refused(2, r"is in a directory whose name is not UTF-8", "train", os.path.join(folder, b"r.yaml"))

    # --- checkpoints ---

    def test_damaged_weights(self):
        good = small_model.safetensors(list(small_model.parameters()))
        for content, pattern in [
                (good[:-8], "model.safetensors: "), (good[:40], "model.safetensors: "), (b"", "is empty"), (good + b"x", "model.safetensors: "),
                (b"PK\x03\x04" + bytes(200), "holds pickled data"), (b"version https://git-lfs.github.com/spec/v1\noid x\n", "Git LFS pointer"),
                (struct.pack("<Q", 2**63) + b"{}", "model.safetensors: "),
                (small_model.safetensors(list(small_model.parameters()), lambda h: h["bert.pooler.dense.bias"].update(data_offsets=[0, 64])), "overlap|hole|lie"),
                (small_model.safetensors(list(small_model.parameters()), lambda h: h["bert.pooler.dense.bias"].update(shape=[2**40, 2**40])), "overflow"),
        ]:
            with self.subTest(pattern=pattern, size=len(content)):
                self.write("model/model.safetensors", content)
                self.refused(3, pattern, "train", self.path("recipe.yaml"))
                self.assertFalse(os.path.exists(self.path("run")))

    def test_pickled_and_missing_weights(self):
        os.rename(self.path("model/model.safetensors"), self.path("model/pytorch_model.bin"))
        self.refused(3, "pytorch_model.bin: holds pickled weights", "validate", self.path("recipe.yaml"))
        os.remove(self.path("model/pytorch_model.bin"))
        index = {"weight_map": {name: "model-00001-of-00002.safetensors" for name, _ in small_model.parameters()}}
        self.write("model/model.safetensors.index.json", json.dumps(index))
        self.refused(3, "model-00001-of-00002.safetensors: no such file", "validate", self.path("recipe.yaml"))
        index["weight_map"]["bert.pooler.dense.bias"] = "../../secret.safetensors"
        self.write("model/model.safetensors.index.json", json.dumps(index))
        self.refused(3, "expected a plain file name", "validate", self.path("recipe.yaml"))

    def test_limits_of_the_tokenizer(self):
        tokenizer = small_model.tokenizer()
        for change, pattern in [({"type_id": 2}, r"tokenizer\.json: post_processor: expected type ids below the model's 2, got 2"), ({"type_id": 1}, None)]:
            tokenizer["post_processor"]["single"][0] = {"SpecialToken": {"id": "[CLS]", **change}}
            self.write("model/tokenizer.json", json.dumps(tokenizer))
            if pattern:
                self.refused(3, pattern, "validate", self.path("recipe.yaml"), "--data")
            else:
                self.lathe("validate", self.path("recipe.yaml"), "--data")
        tokenizer["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [2] * 63
        self.write("model/tokenizer.json", json.dumps(tokenizer))
        self.refused(3, r"post_processor: expected fewer special tokens than the model's 64 positions, got 64", "validate", self.path("recipe.yaml"), "--data")
        self.write("model/tokenizer.json", json.dumps(small_model.tokenizer()))
        for limit in ('"512"', "0", "-1", "1", "2", "3.5", "true", "[]"):
            self.write("model/tokenizer_config.json", '{"model_max_length": %s}' % limit)
            self.refused(3, r"tokenizer_config\.json: model_max_length: expected an integer >= 3, got ", "validate", self.path("recipe.yaml"))
        for limit in (str(int(1e30)), "1e30", "3", "null"):
            self.write("model/tokenizer_config.json", '{"model_max_length": %s}' % limit)
            self.lathe("validate", self.path("recipe.yaml"), "--data")
        self.refused(2, r"model\.arch: .*max_position_embeddings: expected an integer from 3 to|max_position_embeddings", "validate", self.path("recipe.yaml"), "model.init=random",
                     "model.arch={model_type: bert, vocab_size: 40, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 4, intermediate_size: 8, max_position_embeddings: 2}")

    def test_impossible_config(self):
        for key, value, pattern in [("hidden_size", 0, "hidden_size: expected an integer from 1"), ("hidden_size", 2**62, "hidden_size: expected an integer"),
                                    ("num_attention_heads", 3, "a multiple of num_attention_heads"), ("vocab_size", -5, "vocab_size: expected an integer"),
                                    ("model_type", "gpt99", "is not supported yet"), ("hidden_act", "relu6", "hidden_act"), ("num_hidden_layers", 3.5, "num_hidden_layers")]:
            with self.subTest(key=key, value=value):
                self.write("model/config.json", json.dumps({**small_model.CONFIG, key: value}))
                self.refused(3, pattern, "validate", self.path("recipe.yaml"))

    # --- data ---

    def test_bad_data(self):
        good = '{"text": "a b", "label": "yes"}\n{"text": "c", "label": "no"}\n'
        for content, pattern in [(good + '{"text": "a",\n', r"train\.jsonl:3: bad JSON"), (good + '{"label": "yes"}\n', r"train\.jsonl:3: text: expected a string, got nothing"),
                                 (good + '{"text": "a"}\n', r"train\.jsonl:3: label: expected"), ("", "holds no samples"), ('{"text": "a", "label": "yes"}\n', "at least two labels")]:
            with self.subTest(pattern=pattern):
                self.write("train.jsonl", content)
                self.refused(2 if "two labels" in pattern else 3, pattern, "train", self.path("recipe.yaml"))
                self.assertFalse(os.path.exists(self.path("run")))
        self.write("train.jsonl", good)
        self.refused(3, r'train\.jsonl:1: label: unknown label "yes"', "train", self.path("recipe.yaml"), "data.labels=[yess, no]")
        self.refused(3, "no such file", "train", self.path("recipe.yaml"), "data.train=none.jsonl")

    # --- runs ---

    def test_a_run_and_what_follows(self):
        done = self.lathe("train", self.path("recipe.yaml"))
        self.assertEqual(done.stdout, self.path("run/adapter") + "\n")
        self.refused(2, r"output\.dir: is not empty", "train", self.path("recipe.yaml"))
        self.assertIn("finished", self.lathe("train", self.path("recipe.yaml"), "--resume").stderr)
        result = json.loads(self.lathe("eval", self.path("run"), "--json").stdout)
        self.assertEqual(result["samples"], 60)
        inspected = json.loads(self.lathe("inspect", self.path("run"), "--json").stdout)
        self.assertEqual(inspected["adapter"]["labels"], ["no", "yes"])
        label = json.loads(self.lathe("predict", "--model", self.path("model"), "--adapter", self.path("run/adapter"), "--text", "a b c", "--json").stdout)
        self.assertIn(label["label"], ("no", "yes"))
        self.assertAlmostEqual(sum(label["probabilities"].values()), 1, places=5)
        self.lathe("logits", "--model", self.path("model"), "--adapter", self.path("run/adapter"), "--ids", "2,5,3", "--out", self.path("logits.safetensors"))
        self.assertIn("logits", self.lathe("inspect", self.path("logits.safetensors")).stdout)

    def test_outputs_replace_no_input(self):
        self.lathe("train", self.path("recipe.yaml"))
        words = ["logits", "--model", self.path("model"), "--adapter", self.path("run/adapter"), "--ids", "2,3", "--out"]
        for target in ("model/model.safetensors", "run/adapter/adapter_model.safetensors"):
            before = self.read(target)
            self.refused(2, "is read here", *words, self.path(target))
            self.assertEqual(self.read(target), before)
        for _ in range(2):
            self.lathe(*words, self.path("logits.safetensors"))
            self.lathe("report", self.path("run"), "--out", self.path("run/mine.html"))
        self.refused(2, "is read here", "report", self.path("run"), "--out", self.path("run/metrics.jsonl"))

    def test_outputs_replace_only_their_own_kind(self):
        self.lathe("train", self.path("recipe.yaml"))
        logits = ["logits", "--model", self.path("model"), "--adapter", self.path("run/adapter"), "--text", "", "--out"]
        page = b"<head>\n<meta name=\"generator\" content=\"Lathe\">"
        for words, own, older in ((["report", self.path("run"), "--out"], "page.html", page), (logits, "logits.safetensors", "an older one"),
                                  (["practice", "1a", "--html"], "answer.html", page)):
            self.refused(2, r"thesis\.tex: exists already", *words, self.write("thesis.tex", "years of work"))
            self.assertEqual(self.read("thesis.tex"), b"years of work")
            if words[0] != "practice":
                self.lathe(*words, self.write("empty", ""))
                self.lathe(*words, self.write(own, older))
                self.assertGreater(len(self.read(own)), 100)
            if own.endswith(".html"):
                self.refused(2, r"thesis\.html: exists already", *words, self.write("thesis.html", "<p>years of work</p>"))
                self.assertEqual(self.read("thesis.html"), b"<p>years of work</p>")

    def test_the_empty_text_is_a_text(self):
        self.lathe("train", self.path("recipe.yaml"))
        model = ["--model", self.path("model"), "--adapter", self.path("run/adapter")]
        self.assertIn(json.loads(self.lathe("predict", *model, "--text", "", "--json").stdout)["label"], ("no", "yes"))
        self.refused(2, r"expected --text, --jsonl or --image", "predict", *model)

    def test_overrides_of_a_finished_run(self):
        self.lathe("train", self.path("recipe.yaml"))
        for word in ("optimizer.lr=1", "training.batch_size=4", "output.dir=x", "~model.dropout", "adapter.dropout=0.5"):
            self.refused(2, r'override: "%s" changes nothing in a finished run' % re.escape(word), "eval", self.path("run"), word)
        self.refused(2, r"unknown key \(did you mean optimizer\?", "eval", self.path("run"), "optimzer.lr=1")
        self.lathe("eval", self.path("run"), "data.eval=" + self.path("train.jsonl"), "model.compute=float32", "model.max_length=8")

    def test_the_bar_fits_the_terminal(self):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        process = subprocess.Popen([LATHE, "train", self.path("recipe.yaml")], stderr=slave, stdout=subprocess.DEVNULL)
        os.close(slave)
        shown = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # the other end is closed
                part = b""
            if not part:
                break
            shown += part
        os.close(master)
        self.assertEqual(process.wait(60), 0, shown)
        bars = [line for line in re.split(rb"[\r\n]+", shown.replace(b"\x1b[K", b"")) if line.startswith(b"[")]
        self.assertTrue(bars)
        self.assertEqual({len(line) for line in bars}, {39})

    def test_what_cannot_be_opened_says_why(self):
        os.symlink("loop", self.path("loop"))
        self.refused(3, r"loop: Too many levels", "inspect", self.path("loop"))
        self.refused(3, r"loop: cannot be opened: Too many levels", "validate", self.path("recipe.yaml"), "model.path=" + self.path("loop"))
        self.refused(3, r"loop: cannot be opened: Too many levels", "report", self.path("loop"))
        self.lathe("train", self.path("recipe.yaml"))
        os.mkdir(self.path("closed"))
        os.rename(self.path("model"), self.path("closed/model"))
        os.rename(self.path("run"), self.path("closed/run"))
        os.chmod(self.path("closed"), 0)
        self.addCleanup(os.chmod, self.path("closed"), 0o700)
        denied = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []
        if subprocess.run([*denied, "ls", self.path("closed")], capture_output=True).returncode == 0:
            self.skipTest("nothing is denied to this user")
        for words in (["validate", self.path("recipe.yaml"), "model.path=" + self.path("closed/model")], ["report", self.path("closed/run")]):
            done = subprocess.run([*denied, LATHE, *words], capture_output=True, text=True)
            self.assertEqual(done.returncode, 3, done.stderr)
            self.assertRegex(done.stderr, r"^error: .*cannot be opened: Permission denied\n$")

    def test_weights_that_are_not_finite(self):
        self.lathe("train", self.path("recipe.yaml"))
        path = self.path("run/adapter/adapter_model.safetensors")
        content = bytearray(self.read("run/adapter/adapter_model.safetensors"))
        content[-4:] = struct.pack("<f", float("nan"))
        self.write(path, bytes(content))
        files = ["--model", self.path("model"), "--adapter", self.path("run/adapter")]
        self.refused(5, "has a loss that is not finite", "eval", self.path("run"))
        self.refused(5, "not finite", "logits", *files, "--ids", "2,3", "--out", self.path("x.safetensors"))
        self.refused(5, "not finite", "predict", *files, "--text", "a b")
        self.refused(5, "not finite", "merge", *files, "--out", self.path("merged"))
        self.assertFalse(os.path.exists(self.path("x.safetensors")) or os.path.exists(self.path("merged")))

    def test_adapter_files_with_bad_patterns_are_bad_files(self):
        self.lathe("train", self.path("recipe.yaml"))
        path = self.path("run/adapter/adapter_config.json")
        with open(path) as file:
            config = json.load(file)
        config["rank_pattern"] = {"(": 2}
        self.write(path, json.dumps(config))
        self.refused(3, r"adapter_config\.json: rank_pattern: expected a regular expression", "predict", "--model", self.path("model"),
                     "--adapter", self.path("run/adapter"), "--text", "a")

    def test_a_limit_on_the_size_of_files_is_a_full_disk(self):
        done = subprocess.run(["bash", "-c", f'ulimit -f 1; exec "{LATHE}" quantize --model "{self.path("model")}" --out "{self.path("four")}"'],
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 4, done.stderr)
        self.assertRegex(done.stderr, r"^error: .*cannot write: File too large \(ulimit -f")

    def test_models_without_a_head_cannot_predict(self):
        self.refused(3, "has no classification head", "logits", "--model", self.path("model"), "--text", "a", "--out", self.path("x.safetensors"))
        self.assertFalse(os.path.exists(self.path("x.safetensors")))

    def test_long_texts_are_refused_unless_truncated(self):
        self.lathe("train", self.path("recipe.yaml"), "training.max_steps=1", "~training.epochs")
        words = ["logits", "--model", self.path("model"), "--adapter", self.path("run/adapter"), "--text", "a " * 100, "--out", self.path("x.safetensors")]
        self.refused(3, "longer than the model's 64 tokens", *words)
        self.lathe(*words, "--truncate")

    def test_second_process_on_a_run_is_refused(self):
        words = [LATHE, "train", self.path("recipe.yaml"), "~training.epochs", "training.max_steps=100000"]
        first = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        try:
            while not os.path.exists(self.path("run/metrics.jsonl")):
                time.sleep(0.02)
            self.refused(2, "another process is using this run directory", *words[1:], "--resume")
        finally:
            first.send_signal(signal.SIGINT)
            self.assertEqual(first.wait(60), 75, first.stderr.read()[-500:])
            first.stderr.close()
        self.assertTrue([name for name in os.listdir(self.path("run/checkpoints")) if re.fullmatch(r"step-\d+", name)])

    def test_interrupt_at_any_time_is_never_lost(self):
        words = [LATHE, "train", self.path("recipe.yaml"), "~training.epochs", "training.max_steps=100000"]
        for number, delay in enumerate((0.02, 0.06, 0.15, 0.5)):
            run = self.path(f"run-{number}")
            process = subprocess.Popen([*words, f"output.dir={run}"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
            time.sleep(delay)
            process.send_signal(signal.SIGTERM)
            errors = process.communicate(timeout=60)[1]
            # Before lathe has handed over, the signal ends it with the default action: nothing was begun.
            self.assertIn(process.returncode, (75, -signal.SIGTERM) if delay < 0.05 else (75,), errors[-500:])

    # --- the rest ---

    def test_usage(self):
        self.refused(2, r'unknown verb "trian" \(did you mean train\?', "trian", self.path("recipe.yaml"))
        self.refused(2, "RECIPE: expected a value, got an empty word", "validate", "")
        self.refused(2, "--out: expected a value", "quantize", "--model", self.path("model"), "--out", "")
        self.refused(2, "--experts: .*in range", "upcycle", "--model", self.path("model"), "--out", self.path("x"), "--experts", "0")
        self.refused(2, "see lathe --help", "train")
        self.refused(2, "see lathe --help", "ls", "--oops")
        self.refused(2, "no ready recipe of that name", "show", "quikstart")
        self.assertIn("lathe train", self.lathe("--help").stdout)
        self.assertIn("lathe train", self.lathe().stdout)
        self.assertIn("quickstart", self.lathe("ls").stdout)
        self.assertIn("adapter:", self.lathe("show", "--schema").stdout)
        self.lathe("cp", "quickstart", self.path("mine.yaml"))
        self.refused(2, "exists already", "cp", "quickstart", self.path("mine.yaml"))

    def test_control_characters_never_reach_the_terminal(self):
        done = self.lathe("validate", self.path("\x1b[31mred"), code=2)
        self.assertNotIn("\x1b", done.stderr)

    def test_tokenize_round_trip(self):
        path = self.write("texts.jsonl", '{"text": "A b zz"}\n')
        self.assertEqual(self.lathe("tokenize", "--model", self.path("model"), "--jsonl", path).stdout, "[2,4,5,1,3]\n")
        path = self.write("ids.jsonl", "[4, 5]\n")
        self.assertEqual(self.lathe("tokenize", "--model", self.path("model"), "--jsonl", path, "--decode").stdout, '"a b"\n')
        self.refused(3, "expected an array of ids", "tokenize", "--model", self.path("model"), "--jsonl", self.write("x.jsonl", '{"a": 1}\n'), "--decode")

    def test_doctor_reports_what_a_bug_report_needs(self):
        facts = json.loads(self.lathe("doctor", "--json").stdout)
        self.assertEqual(facts["torch"]["version"].split(".")[0], "2")
        self.assertTrue(facts["torch"]["kernels"])
        self.assertGreater(facts["torch"]["gemm_flops"], 1e9)
        self.assertGreater(facts["memory_bytes"], 0)


if __name__ == "__main__":
    unittest.main(verbosity=1)
