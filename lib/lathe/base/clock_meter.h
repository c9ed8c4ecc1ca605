#pragma once

#include <ctime>

namespace lathe {

/// Adds the seconds of a clock that go by during its life to a sum: CLOCK_THREAD_CPUTIME_ID, CLOCK_MONOTONIC, ...
class ClockMeter {
 public:
  ClockMeter(clockid_t clock, double& sum) : clock_(clock), sum_(sum), start_(seconds(clock)) {}
  ~ClockMeter() { sum_ += seconds(clock_) - start_; }
  ClockMeter(const ClockMeter&) = delete;
  ClockMeter& operator=(const ClockMeter&) = delete;

  static double seconds(clockid_t clock) {
    timespec time{};
    ::clock_gettime(clock, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  }

 private:
  clockid_t clock_;
  double& sum_;
  double start_;
};

}  // namespace lathe
