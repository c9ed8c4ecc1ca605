#pragma once

#include <ATen/record_function.h>

#include <memory>

#include "lathe/report/profile.h"

namespace lathe::train {

/// Records what this thread does in some optimizer steps: LibTorch's operators (with the bytes and the operations that
/// their shapes imply), own kernels and phases (RECORD_FUNCTION, RECORD_USER_SCOPE), and the products of sgemm on every
/// thread, which count for what runs here meanwhile. Where nothing is recorded all of it costs a thread-local read.
class Profiler {
 public:
  explicit Profiler(int64_t num_steps);
  ~Profiler();

  /// Records while it lives, as an event "step".
  class Recording {
   public:
    Recording(Profiler& profiler, int64_t step);
    ~Recording();
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;

   private:
    at::CallbackHandle callback_;
    std::unique_ptr<at::RecordFunction> step_;
  };

  int64_t num_steps() const { return num_steps_; }
  bool is_done() const { return num_recorded() >= num_steps_; }
  int64_t num_recorded() const;
  /// What was recorded, in the order of time.
  report::Profile take();

  struct State;

 private:
  int64_t num_steps_;
  std::unique_ptr<State> state_;
};

}  // namespace lathe::train
