#include "inference.h"

#include <ATen/ops/isfinite.h>

#include "lathe/base/error.h"

namespace lathe::app {

void require_inputs_for(const CommandLine& line, const train::Classifier& classifier) {
  const bool images = !line.images.empty() || !line.pixels.empty();
  if (images == classifier.image.has_value()) return;
  throw Error(ErrorKind::Config, Diagnostic{"lathe " + line.verb, 0, 0, "",
                                            images ? "the model sees text: expected --text or --jsonl"
                                                   : "the model sees images: expected --image",
                                            ""});
}

at::Tensor finite_logits(const CommandLine& line, at::Tensor logits) {
  if (logits.isfinite().all().item<bool>()) return logits;
  throw Error(ErrorKind::Numeric,
              Diagnostic{line.adapter.empty() ? line.model : line.adapter, 0, 0, "", "gives logits that are not finite",
                         "lathe inspect shows its tensors; was the training stable?"});
}

}  // namespace lathe::app
