#include "lathe/nn/watch.h"

#include <utility>

namespace lathe::nn {
namespace {

thread_local ActivationWatch* innermost_watch = nullptr;

}  // namespace

ActivationWatch::ActivationWatch(See see) : see_(std::move(see)), outer_(innermost_watch) { innermost_watch = this; }

ActivationWatch::~ActivationWatch() { innermost_watch = outer_; }

at::Tensor watched(const char* name, int64_t index, at::Tensor output) {
  if (innermost_watch != nullptr)
    innermost_watch->see_(index < 0 ? name : name + ("." + std::to_string(index)), output);
  return output;
}

}  // namespace lathe::nn
