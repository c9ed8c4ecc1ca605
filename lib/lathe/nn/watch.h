#pragma once

#include <ATen/core/TensorBody.h>

#include <functional>
#include <string>

namespace lathe::nn {

/// Sees the named outputs of a model's layers in the forward passes of this thread, while it lives: for the search of
/// the first bad one. The innermost watch sees them.
class ActivationWatch {
 public:
  using See = std::function<void(const std::string& layer, const at::Tensor& output)>;
  explicit ActivationWatch(See see);
  ~ActivationWatch();
  ActivationWatch(const ActivationWatch&) = delete;
  ActivationWatch& operator=(const ActivationWatch&) = delete;

 private:
  See see_;
  ActivationWatch* outer_;
  friend at::Tensor watched(const char*, int64_t, at::Tensor);
};

/// `output` itself, shown to the watch, if there is one, as "name" or "name.index".
at::Tensor watched(const char* name, int64_t index, at::Tensor output);
inline at::Tensor watched(const char* name, at::Tensor output) { return watched(name, -1, std::move(output)); }

}  // namespace lathe::nn
