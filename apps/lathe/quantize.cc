#include <filesystem>

#include "console.h"
#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/base/text.h"
#include "lathe/models/quantize_directory.h"
#include "quantization.h"
#include "torch_verbs.h"

namespace lathe::app {

void check_blocksize(int64_t blocksize) {
  if (formats::is_four_bit_blocksize(blocksize)) return;
  throw Error(ErrorKind::Config,
              Diagnostic{"--blocksize", 0, 0, "",
                         Diagnostic::expected("32, 64, 128, ..., 4096", std::to_string(blocksize)), ""});
}

int run_quantize(const CommandLine& line) {
  check_blocksize(line.blocksize);
  require_absent(line.out);
  const std::string type = line.quant_type.empty() ? "nf4" : line.quant_type;
  const auto model = formats::ModelDirectory::open(line.model);
  const auto options = nn::NF4LinearOptions()
                           .type(quant::parse_quant_type(type).value())
                           .blocksize(line.blocksize)
                           .double_quant(line.double_quant);
  models::QuantizedDirectory done;
  publish_directory(line.out, [&](const std::filesystem::path& path) {
    done = models::quantize_directory(model, options, line.skip_modules, path);
  });
  std::string text = std::to_string(done.num_weights) + " weights in " + type + ": " + format_bytes(done.bytes_before) +
                     " became " + format_bytes(done.bytes_after) + "\n";
  if (done.num_kept > 0) text += std::to_string(done.num_kept) + " weights were in four bits already: copied\n";
  print_result(text + line.out + "\n");
  return 0;
}

}  // namespace lathe::app
