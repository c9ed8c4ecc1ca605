// write_events DIR: an event file of known scalars, which tests/interop/tensorboard.py reads back.
#include <cmath>
#include <limits>

#include "lathe/report/event_writer.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  lathe::report::EventWriter writer(argv[1]);
  for (int step = 1; step <= 200; ++step)
    writer.add_scalars(step, 1700000000.0 + 0.25 * step,
                       {{"train/loss", std::sin(0.1 * step)}, {"train/lr", 1e-5 * step}});
  writer.add_scalars(int64_t{1} << 40, 1700000100.0, {{"eval/größe", std::numeric_limits<double>::infinity()}});
  return 0;
}
