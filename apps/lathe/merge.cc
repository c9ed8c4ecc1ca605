#include <ATen/ops/isfinite.h>

#include <array>
#include <cstdio>

#include "console.h"
#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/train/save.h"
#include "quantization.h"
#include "torch_verbs.h"

namespace lathe::app {
namespace {

// The quantisation of the model that the adapter was trained on: none, or what a recipe's section quant said.
recipe::Quant quant_of(const CommandLine& line) {
  recipe::Quant quant;
  if (line.quant_type.empty()) {
    if (line.double_quant || line.blocksize != quant.blocksize)
      throw Error(ErrorKind::Config,
                  Diagnostic{"lathe merge", 0, 0, "", "--blocksize and --double-quant need --type", ""});
    return quant;
  }
  check_blocksize(line.blocksize);
  quant.type = line.quant_type == "fp4" ? recipe::QuantType::Fp4 : recipe::QuantType::Nf4;
  quant.blocksize = line.blocksize;
  quant.double_quant = line.double_quant;
  quant.skip_modules = line.skip_modules;
  return quant;
}

}  // namespace

int run_merge(const CommandLine& line) {
  require_absent(line.out);
  const train::Classifier classifier = train::load_classifier(line.model, line.adapter, recipe::StorageType::Auto,
                                                              recipe::StorageType::Float32, quant_of(line));
  for (const auto& weight : classifier.model->named_parameters()) {
    if (!weight->isfinite().all().item<bool>())
      throw Error(ErrorKind::Numeric,
                  Diagnostic{line.adapter, 0, 0, weight.key(), "has a value that is not finite", ""});
  }
  double lost = 0;
  publish_directory(line.out, [&](const std::filesystem::path& path) {
    if (line.requantize) {
      lost = train::save_requantised(classifier, path.string());
    } else {
      train::save_model(classifier, path.string());
    }
  });
  if (line.requantize) {
    std::array<char, 128> text{};
    std::snprintf(text.data(), text.size(), "in four bits %.1f %% of the adapter's update is lost", 100 * lost);
    print_warning(text.data());
  }
  print_result(line.out + "\n");
  return 0;
}

}  // namespace lathe::app
