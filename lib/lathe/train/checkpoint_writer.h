#pragma once

#include <exception>
#include <string>
#include <thread>

#include "lathe/train/run_state.h"

namespace lathe::train {

/// Writes checkpoints on a thread of its own, one at a time; training goes on meanwhile.
class CheckpointWriter {
 public:
  CheckpointWriter(RunDirectory& directory, int64_t keep_checkpoints)
      : directory_(directory), keep_checkpoints_(keep_checkpoints) {}
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Begins to write a snapshot that nothing else changes; then old checkpoints go, but not that of step `spared`.
  /// Requires that wait() was called since the last one.
  void begin(Snapshot snapshot, int64_t spared);
  bool busy() const { return thread_.joinable(); }
  /// Until the snapshot is on disk. Throws what went wrong with it.
  void wait();
  /// Of the threads that have written so far; requires that none writes now.
  double cpu_seconds() const { return cpu_seconds_; }

 private:
  RunDirectory& directory_;
  int64_t keep_checkpoints_;
  std::thread thread_;
  std::exception_ptr problem_;
  double cpu_seconds_ = 0;
};

}  // namespace lathe::train
