#include "lathe/train/checkpoint_writer.h"

#include <utility>

#include "lathe/base/clock_meter.h"

namespace lathe::train {

CheckpointWriter::~CheckpointWriter() {
  if (thread_.joinable()) thread_.join();
}

void CheckpointWriter::begin(Snapshot snapshot, int64_t spared) {
  thread_ = std::thread([this, spared, snapshot = std::move(snapshot)] {
    const ClockMeter meter(CLOCK_THREAD_CPUTIME_ID, cpu_seconds_);
    try {
      directory_.sync_metrics();
      directory_.publish_checkpoint(snapshot.state.step, [&](const auto& path) { snapshot.write(path); });
      directory_.prune_checkpoints(keep_checkpoints_, spared);
    } catch (...) {
      problem_ = std::current_exception();
    }
  });
}

void CheckpointWriter::wait() {
  if (!thread_.joinable()) return;
  thread_.join();
  if (problem_) std::rethrow_exception(std::exchange(problem_, nullptr));
}

}  // namespace lathe::train
