"""Image classification as a user meets it: the verbs on a small Mixer, an interrupted run, and every kind of bad input.

    LATHE=build/release/bin/lathe python3 tests/apps/images.py
"""
import json
import os
import re
import signal
import struct
import subprocess
import tempfile
import time
import unittest

import small_images
from small_images import png
from small_model import write

LATHE = os.environ["LATHE"]


class ImagesTest(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory(prefix="lathe-images-")
        self.addCleanup(self.scratch.cleanup)
        small_images.write_small_images(self.scratch.name)
        self.recipe = self.path("recipe.yaml")

    def path(self, name):
        return os.path.join(self.scratch.name, name)

    def write(self, name, content):
        return write(self.scratch.name, name, content)

    def lathe(self, *words, code=0):
        done = subprocess.run([LATHE, *words], capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, code, f"{words}\n{done.stdout}\n{done.stderr}")
        return done

    def refused(self, code, pattern, *words):
        """lathe refuses with one line on stderr that matches."""
        errors = self.lathe(*words, code=code).stderr
        self.assertRegex(errors, pattern)
        self.assertRegex(errors, r"\Aerror: [^\n]*\n\Z")

    def metrics(self, run):
        with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        return [{key: value for key, value in line.items() if key not in ("seconds", "tokens_per_second", "peak_rss_bytes")} for line in lines]

    def weights(self, run):
        with open(os.path.join(run, "model/model.safetensors"), "rb") as file:
            return file.read()

    def test_a_run_and_what_follows(self):
        self.assertIn("30 training samples, 9 evaluation samples", self.lathe("validate", self.recipe, "--data").stdout)
        self.assertTrue(json.loads(self.lathe("plan", self.recipe, "--json").stdout)["fits"])
        self.assertEqual(self.lathe("train", self.recipe).stdout, self.path("run/model") + "\n")
        model = self.path("run/model")
        result = json.loads(self.lathe("eval", self.path("run"), "--json").stdout)
        self.assertEqual(result["accuracy"], 1)
        self.assertEqual(result["confusion"], [[3, 0, 0], [0, 3, 0], [0, 0, 3]])
        self.assertAlmostEqual(result["eval_loss"], self.metrics(self.path("run"))[-1]["eval_loss"], places=6)
        self.assertIn("left: 3 of 3 right", self.lathe("eval", self.path("run")).stdout)
        files = [self.path(f"folder/{label}/{i}.png") for i, label in enumerate(small_images.LABELS)]
        lines = [json.loads(line) for line in self.lathe("predict", "--model", model, "--image", *files, "--json").stdout.splitlines()]
        self.assertEqual([line["label"] for line in lines], small_images.LABELS)
        self.assertAlmostEqual(sum(lines[0]["probabilities"].values()), 1, places=5)
        with open(os.path.join(model, "config.json"), encoding="utf-8") as file:
            self.assertEqual(json.load(file)["pretrained_cfg"]["label_names"], small_images.LABELS)
        self.lathe("logits", "--model", model, "--image", *files, "--out", self.path("a.safetensors"))
        values = [byte / 255 * 2 - 1 for i in range(3) for byte in small_images.pixels(i)]
        self.lathe("logits", "--model", model, "--pixels", self.pixel_file([3, 1, 8, 8], values), "--out", self.path("b.safetensors"))
        a, b = (self.floats(name) for name in ("a.safetensors", "b.safetensors"))
        self.assertEqual(len(a), 9)
        for x, y in zip(a, b):
            self.assertAlmostEqual(x, y, places=5)

    def test_an_adapter_on_a_trained_mixer(self):
        self.lathe("train", self.recipe)
        model, run = self.path("run/model"), self.path("lora")
        done = self.lathe("train", self.recipe, f"model={{path: {model}, task: image_classification}}", "adapter={type: lora, rank: 2, alpha: 4}", f"output.dir={run}")
        self.assertEqual(done.stdout, os.path.join(run, "adapter") + "\n")
        words = ["--model", model, "--adapter", os.path.join(run, "adapter"), "--image", self.path("folder/left/2.png"), "--json"]
        self.assertEqual(json.loads(self.lathe("predict", *words).stdout)["label"], "left")

    def pixel_file(self, shape, values):
        header = json.dumps({"pixel_values": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * len(values)]}}).encode()
        return self.write("pixels.safetensors", struct.pack("<Q", len(header)) + header + struct.pack(f"<{len(values)}f", *values))

    def floats(self, name):
        with open(self.path(name), "rb") as file:
            data = file.read()
        begin = 8 + struct.unpack("<Q", data[:8])[0]
        return struct.unpack(f"<{(len(data) - begin) // 4}f", data[begin:])

    def test_an_interrupted_run_goes_on_bit_for_bit(self):
        words = ["train", self.recipe, "training.max_steps=600", "data.image={augment: [flip, crop, mixup]}", "data.num_workers=2"]
        straight, cut = self.path("straight"), self.path("cut")
        self.lathe(*words, f"output.dir={straight}")
        process = subprocess.Popen([LATHE, *words, f"output.dir={cut}"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        while process.poll() is None and not (os.path.exists(os.path.join(cut, "metrics.jsonl")) and len(self.metrics_so_far(cut)) > 50):
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
        self.assertEqual(process.returncode, 75, errors[-500:])
        self.assertIn("resuming after step", self.lathe(*words, f"output.dir={cut}", "--resume").stderr)
        self.assertEqual(self.metrics(cut), self.metrics(straight))
        self.assertEqual(self.weights(cut), self.weights(straight))

    @staticmethod
    def metrics_so_far(run):
        with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
            return file.read().splitlines()

    # --- bad input ---

    def test_sizes_that_do_not_fit(self):
        self.refused(2, r"image_size: expected a multiple of the patch size 4, got 9", "validate", self.recipe,
                     "model.arch={model_type: mixer, image_size: 9, num_channels: 1, patch_size: 4, num_blocks: 2, hidden_size: 12}")
        self.refused(2, r"data\.image\.size: expected the model's 8 x 8, got \[16, 16\]", "validate", self.recipe, "data.image={size: 16}")
        self.refused(2, r"data\.image\.mean: expected 1 numbers, one per channel", "validate", self.recipe, "data.image={mean: [0.5, 0.5, 0.5]}")

    def test_pictures_of_other_channels(self):
        self.write("folder/left/colour.png", png(bytes(3 * 64), channels=3))
        self.refused(3, r"folder/left/colour\.png: expected a grey picture, for a model of one channel, got a picture in colour", "train", self.recipe)
        self.assertFalse(os.path.exists(self.path("run")))

    def test_damaged_pictures(self):
        good = png(small_images.pixels(0))
        for name, content, pattern in [("x.png", good[:60], "damaged PNG"), ("x.png", b"", "is empty"), ("x.png", good[:40] + bytes([good[40] ^ 255]) + good[41:], "damaged PNG"),
                                       ("x.jpg", b"\xff\xd8\xff\xe0" + bytes(40), "JPEG"), ("x.png", b"GIF89a" + bytes(40), "neither PNG nor JPEG"), ("notes.txt", b"x", "by its name")]:
            with self.subTest(pattern=pattern, content=content[:8]):
                path = self.write(f"folder/left/{name}", content)
                self.refused(3, r"folder/left/" + re.escape(name) + ".*" + pattern, "validate", self.recipe, "--data")
                if name != "notes.txt":
                    self.lathe("validate", self.recipe)  # without --data no picture is read
                os.remove(path)

    def test_damaged_idx_files(self):
        good = small_images.idx([2, 8, 8], bytes(128))
        self.write("x-labels-idx1-ubyte", small_images.idx([2], bytes([0, 1])))
        for content, pattern in [(good[:-1], r"x-images-idx3-ubyte: "), (good[:9], r"x-images-idx3-ubyte: "), (b"\x1f\x8b" + bytes(30), r"x-images-idx3-ubyte: "),
                                 (small_images.idx([2**31, 8, 8], bytes(128)), r"x-images-idx3-ubyte: "), (small_images.idx([3, 8, 8], bytes(192)), r"expected 3 labels")]:
            with self.subTest(content=content[:20]):
                path = self.write("x-images-idx3-ubyte", content)
                self.refused(3, pattern, "train", self.recipe, f"data.train={path}")

    def test_labels_out_of_range_and_empty_classes(self):
        path = self.write("x-images-idx3-ubyte", small_images.idx([2, 8, 8], bytes(128)))
        self.write("x-labels-idx1-ubyte", small_images.idx([2], bytes([0, 7])))
        self.refused(3, r"x-labels-idx1-ubyte: label 1: expected 0 to 2, got 7", "train", self.recipe, f"data.train={path}")
        os.mkdir(self.path("folder/right"))
        self.refused(3, r"folder/right: a class without pictures", "train", self.recipe)
        self.write("folder/right/1.png", png(bytes(64)))
        self.refused(3, r'folder/right/1\.png: label: unknown label "right"', "train", self.recipe)

    def test_checkpoints_of_another_size(self):
        self.lathe("train", self.recipe, "training.max_steps=1")
        config = self.path("run/model/config.json")
        with open(config, encoding="utf-8") as file:
            shape = json.load(file)
        shape["model_args"]["num_blocks"] = 1
        self.write("run/model/config.json", json.dumps(shape))
        done = self.lathe("predict", "--model", self.path("run/model"), "--image", self.path("folder/left/2.png"), code=3)
        self.assertRegex(done.stderr, r"error: .*model\.safetensors: blocks\.1\.")
        self.assertTrue(all(line.startswith("error: ") for line in done.stderr.splitlines()), done.stderr)

    def test_inputs_of_another_kind(self):
        self.lathe("train", self.recipe, "training.max_steps=1")
        model, out = self.path("run/model"), self.path("x.safetensors")
        self.refused(2, "the model sees images: expected --image", "predict", "--model", model, "--text", "a")
        self.refused(2, "expected --text, --jsonl or --image", "predict", "--model", model)
        self.refused(3, "folder/none.png: no such file", "predict", "--model", model, "--image", self.path("folder/none.png"))
        self.refused(3, "pixel_values: expected float32 .N >= 1, 1, 8, 8., as the model sees", "logits", "--model", model, "--pixels", self.pixel_file([1, 1, 4, 4], [0.0] * 16), "--out", out)
        self.refused(3, "has no tensor pixel_values", "logits", "--model", model, "--pixels", os.path.join(model, "model.safetensors"), "--out", out)
        self.assertFalse(os.path.exists(out))


if __name__ == "__main__":
    unittest.main(verbosity=1)
