"""What a training run must survive: a second signal, closed output, too little memory. Whatever it was, --resume goes on.

    LATHE=build/release/bin/lathe LATHE_FAIL_CALL=.../libfail_call.so python3 tests/apps/robustness.py
"""
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import small_model

LATHE, FAIL_CALL = os.environ["LATHE"], os.environ["LATHE_FAIL_CALL"]
ENDLESS = ["~training.epochs", "training.max_steps=1000000", "training.checkpoint_every_steps=5"]


class RobustnessTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix="lathe-robustness-")
        self.addCleanup(scratch.cleanup)
        self.folder = scratch.name
        small_model.write_small_run(self.folder)
        self.run_directory = os.path.join(self.folder, "run")

    def command(self, *words):
        return [LATHE, "train", os.path.join(self.folder, "recipe.yaml"), *words]

    def wait_for_step(self, step):
        path, deadline = os.path.join(self.run_directory, "metrics.jsonl"), time.monotonic() + 60
        while time.monotonic() < deadline:
            if os.path.exists(path):
                with open(path) as file:
                    if sum(1 for _ in file) > step:
                        return
            time.sleep(0.01)
        self.fail(f"step {step} was not reached")

    def last_checkpoint(self):
        return max(int(name.split("-")[1]) for name in os.listdir(os.path.join(self.run_directory, "checkpoints")) if name[5:].isdigit())

    def assert_resumes(self):
        steps = self.last_checkpoint() + 3
        done = subprocess.run(self.command("~training.epochs", f"training.max_steps={steps}", "training.checkpoint_every_steps=5", "--resume"),
                              capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(os.path.join(self.run_directory, "metrics.jsonl")) as file:
            trained = [line["step"] for line in map(json.loads, file) if "loss" in line]
        self.assertEqual(trained, list(range(1, steps + 1)))

    def test_second_signal_ends_it_at_once_and_harms_nothing(self):
        process = subprocess.Popen(self.command(*ENDLESS), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait_for_step(12)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        self.assertIn(process.wait(60), (128 + signal.SIGINT, 128 + signal.SIGTERM))
        self.assert_resumes()

    def test_nohup_is_respected(self):
        words = self.command("~training.epochs", "training.max_steps=400")
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        self.wait_for_step(5)
        process.send_signal(signal.SIGHUP)
        self.assertEqual(process.wait(60), 0)

    def test_damaged_best_checkpoint_is_told_and_not_published(self):
        best = ["~training.epochs", "training.max_steps=30", "training.eval_every_steps=3", "training.keep_checkpoints=1", "optimizer.lr=0.3",
                "optimizer.schedule=constant", "training.keep_best={measure: eval_loss}"]
        subprocess.run(self.command(*best), check=True, capture_output=True, timeout=120)
        steps = sorted(int(name[5:]) for name in os.listdir(os.path.join(self.run_directory, "checkpoints")))
        self.assertEqual(len(steps), 2, "the best one is not the last: the learning rate is far too high")
        path = os.path.join(self.run_directory, "checkpoints", f"step-{steps[0]}", "trainable.safetensors")
        with open(path, "r+b") as file:
            file.seek(-3, os.SEEK_END)
            byte = file.read(1)[0]
            file.seek(-3, os.SEEK_END)
            file.write(bytes([byte ^ 0x41]))
        shutil.rmtree(os.path.join(self.run_directory, "adapter"))
        done = subprocess.run(self.command(*best, "--resume"), check=True, capture_output=True, text=True, timeout=120)
        self.assertIn("missing or damaged; published are the last weights", done.stderr)

    def test_closed_output_does_not_stop_training(self):
        read_end, write_end = os.pipe()
        os.close(read_end)
        subprocess.run(self.command("output.log_every_steps=1"), stdout=write_end, stderr=write_end, timeout=120)
        os.close(write_end)
        self.assertTrue(os.path.exists(os.path.join(self.run_directory, "adapter", "adapter_model.safetensors")))

    def test_full_output_does_not_stop_training(self):
        with open("/dev/full", "w") as full:
            subprocess.run(self.command("output.log_every_steps=1"), stdout=full, stderr=full, timeout=120)
        self.assertTrue(os.path.exists(os.path.join(self.run_directory, "adapter", "adapter_model.safetensors")))

    def test_failed_allocation_is_one_line_and_loses_nothing(self):
        done = subprocess.run(self.command(*ENDLESS), capture_output=True, text=True, timeout=120,
                              env={**os.environ, "LD_PRELOAD": FAIL_CALL, "LATHE_FAIL_ALLOCATION": "20000"})
        self.assertEqual(done.returncode, 4, done.stderr)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        self.assertEqual(len(errors), 1, done.stderr)
        self.assertIn("not enough memory", errors[0])
        self.assert_resumes()

    def test_a_limit_too_low_for_libtorch_is_one_line(self):
        for kilobytes in (200_000, 600_000):
            done = subprocess.run(["bash", "-c", f'ulimit -v {kilobytes}; exec "$0" "$@"', *self.command()], capture_output=True, text=True, timeout=120)
            self.assertEqual(done.returncode, 4, done.stderr)
            self.assertRegex(done.stderr, r"^error: virtual memory: expected a limit of at least 640.0 MiB for LibTorch alone, got .* \(ulimit -v raises it\)\n$")
        self.assertFalse(os.path.exists(self.run_directory))


if __name__ == "__main__":
    unittest.main()
