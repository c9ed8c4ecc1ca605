// Four-bit files made and read by Lathe, for tests/interop/nf4.py:
//   nf4_run quantize IN.safetensors OUT.safetensors TYPE BLOCKSIZE NESTED     every matrix
//   nf4_run dequantize IN.safetensors OUT.safetensors DTYPE                   every four-bit weight; others are left
//   out
#include <cstdio>
#include <string>

#include "lathe/base/error.h"
#include "lathe/models/quantize.h"

namespace lathe {
namespace {

void quantize(const std::string& in, const std::string& out, const nn::NF4LinearOptions& options) {
  io::NamedTensors written;
  for (const auto& [name, tensor] : io::TensorFile(in).tensors()) {
    nn::NF4Linear layer(tensor.size(1), tensor.size(0), /*bias=*/false, options);
    layer->quantize(tensor, name);
    for (auto& part : models::four_bit_tensors(name, *layer)) written.push_back(std::move(part));
  }
  io::write_safetensors(out, written);
}

void dequantize(const std::string& in, const std::string& out, at::ScalarType dtype) {
  std::vector<formats::TensorLocation> locations;
  const formats::SafetensorsHeader header = formats::read_safetensors_header(in);
  for (const formats::TensorInfo& info : header.tensors) locations.push_back({info, in, header.data_offset});
  io::ModelTensors files;
  io::NamedTensors written;
  for (const formats::FourBitWeight& weight : formats::find_four_bit_weights(locations)) {
    const nn::NF4Linear layer = models::stored_layer(weight, files);
    const at::Tensor values = at::empty(weight.state.shape, dtype);
    layer->decode(0, layer->out_features(), values);
    written.emplace_back(weight.weight.info.name, values);
  }
  io::write_safetensors(out, written);
}

at::ScalarType parse_dtype(const std::string& word) {
  if (word == "bfloat16") return at::kBFloat16;
  return word == "float16" ? at::kHalf : at::kFloat;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  try {
    const std::string verb = argc > 3 ? argv[1] : "";
    if (verb == "quantize" && argc == 7) {
      lathe::quantize(argv[2], argv[3],
                      lathe::nn::NF4LinearOptions()
                          .type(lathe::quant::parse_quant_type(argv[4]).value())
                          .blocksize(std::stoll(argv[5]))
                          .double_quant(std::string(argv[6]) == "1"));
      return 0;
    }
    if (verb == "dequantize" && argc == 5) {
      lathe::dequantize(argv[2], argv[3], lathe::parse_dtype(argv[4]));
      return 0;
    }
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
