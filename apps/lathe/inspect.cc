#include <algorithm>
#include <filesystem>
#include <map>

#include "console.h"
#include "lathe/arch/arch.h"
#include "lathe/base/error.h"
#include "lathe/base/json.h"
#include "lathe/base/text.h"
#include "lathe/formats/adapter_directory.h"
#include "lathe/formats/model_directory.h"
#include "verbs.h"

namespace lathe::app {
namespace {

namespace fs = std::filesystem;

struct Summary {
  std::string kind;
  Json facts = Json::object();
  std::vector<formats::TensorInfo> tensors;
  int64_t num_parameters = 0;
};

int64_t count(const formats::TensorInfo& tensor) {
  int64_t product = 1;
  for (const int64_t size : tensor.shape) product *= size;
  return product;
}

int64_t count(const std::vector<formats::TensorInfo>& tensors) {
  int64_t sum = 0;
  for (const auto& tensor : tensors) sum += count(tensor);
  return sum;
}

Summary inspect_file(const std::string& path) {
  Summary summary{"safetensors file", Json::object(), {}};
  formats::SafetensorsHeader header = formats::read_safetensors_header(path);
  summary.facts["metadata"] = header.metadata;
  summary.tensors = std::move(header.tensors);
  return summary;
}

Summary inspect_adapter(const std::string& path) {
  Summary summary{"adapter", Json::object(),
                  formats::read_safetensors_header(formats::adapter_weights_path(path)).tensors};
  const formats::AdapterConfig config = formats::read_adapter_config(path);
  summary.facts["rank"] = config.r;
  summary.facts["alpha"] = config.lora_alpha;
  summary.facts["scaling"] = config.use_rslora ? "rslora" : "standard";
  summary.facts["base_model"] = config.base_model_name_or_path;
  if (const auto labels = formats::read_labels(path)) summary.facts["labels"] = *labels;
  return summary;
}

Summary inspect_model(const std::string& path) {
  Summary summary{"model", Json::object(), {}};
  const auto model = formats::ModelDirectory::open(path);
  summary.facts["architecture"] = arch::read_model_config(model.config_path()).model_type;
  for (const auto& tensor : model.tensors()) summary.tensors.push_back(tensor.info);
  summary.num_parameters = count(summary.tensors);
  std::map<std::string, int64_t> kinds;
  for (const formats::FourBitWeight& weight : model.four_bit_weights()) {
    for (const formats::TensorLocation* part : weight.parts()) summary.num_parameters -= count(part->info);
    summary.num_parameters += weight.state.num_elements();
    ++kinds[weight.state.quant_type + ", blocks of " + std::to_string(weight.state.blocksize) +
            (weight.state.nested ? ", scales quantised" : "")];
  }
  if (!kinds.empty()) summary.facts["four_bit_weights"] = kinds;
  return summary;
}

Summary inspect_run(const std::string& path) {
  Summary summary{"run", Json::object(), {}};
  std::vector<std::string> checkpoints;
  if (fs::exists(fs::path(path) / "checkpoints")) {
    for (const auto& entry : fs::directory_iterator(fs::path(path) / "checkpoints"))
      checkpoints.push_back(entry.path().filename().string());
  }
  std::sort(checkpoints.begin(), checkpoints.end());
  summary.facts["checkpoints"] = checkpoints;
  if (fs::exists(fs::path(path) / "adapter")) {
    Summary adapter = inspect_adapter((fs::path(path) / "adapter").string());
    summary.facts["adapter"] = adapter.facts;
    summary.tensors = std::move(adapter.tensors);
  }
  return summary;
}

Summary inspect_path(const std::string& path) {
  if (path.starts_with("hf:")) return inspect_model(path);
  if (!fs::exists(path)) throw data_error(path, "no such file or directory");
  if (!fs::is_directory(path)) return inspect_file(path);
  if (fs::exists(fs::path(path) / "adapter_config.json")) return inspect_adapter(path);
  if (fs::exists(fs::path(path) / "recipe.yaml")) return inspect_run(path);
  return inspect_model(path);
}

Summary inspect(const std::string& path) {
  Summary summary = inspect_path(path);
  if (summary.num_parameters == 0) summary.num_parameters = count(summary.tensors);
  return summary;
}

Json to_json(const formats::TensorInfo& tensor) {
  return {{"name", tensor.name}, {"dtype", formats::dtype_name(tensor.dtype)}, {"shape", tensor.shape}};
}

}  // namespace

int run_inspect(const CommandLine& line) {
  const Summary summary = inspect(line.recipe);
  if (line.json) {
    Json json = {{"kind", summary.kind}, {"parameters", summary.num_parameters}};
    json.update(summary.facts);
    json["tensors"] = Json::array();
    for (const auto& tensor : summary.tensors) json["tensors"].push_back(to_json(tensor));
    print_result(json.dump() + "\n");
    return 0;
  }
  std::string out = summary.kind + " " + printable(line.recipe) + "\n";
  for (const auto& [key, value] : summary.facts.items()) out += "  " + key + ": " + printable(value.dump()) + "\n";
  for (const auto& tensor : summary.tensors) {
    out += "  " + printable(tensor.name) + "  " + std::string(formats::dtype_name(tensor.dtype)) + " " +
           Json(tensor.shape).dump() + "\n";
  }
  out +=
      std::to_string(summary.tensors.size()) + " tensors, " + std::to_string(summary.num_parameters) + " parameters\n";
  print_result(out);
  return 0;
}

}  // namespace lathe::app
