"""Inverted and turned clockwise: checked pixel by pixel."""
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../recipes/prepare"))
import shift_pictures


class ShiftTest(unittest.TestCase):
    def test_each_picture_is_inverted_and_turned(self):
        side, count = 3, 2
        header = bytes([0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, side, 0, 0, 0, side])
        pixels = bytes(range(20, 20 + count * side * side))
        shifted = shift_pictures.shift(header + pixels)
        self.assertEqual(shifted[:16], header)
        for i in range(count):
            for row in range(side):
                for column in range(side):
                    # Clockwise: what stood in the lower left corner comes to the upper left.
                    source = pixels[i * 9 + (side - 1 - column) * side + row]
                    self.assertEqual(shifted[16 + i * 9 + row * side + column], 255 - source)

    def test_other_files_are_refused(self):
        for data in (bytes(16), bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(6)):
            with self.assertRaises(SystemExit):
                shift_pictures.shift(data)


if __name__ == "__main__":
    unittest.main()
