#include "lathe/models/upcycle.h"

#include <filesystem>

#include "console.h"
#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "torch_verbs.h"

namespace lathe::app {

int run_upcycle(const CommandLine& line) {
  arch::MlpExperts experts;
  experts.num_experts = line.experts;
  experts.top_k = line.top_k;
  // One expert per token cannot have gates that sum to 1 and a router that learns.
  for (const arch::ExpertsMistake& mistake : arch::check_mlp_experts(experts)) {
    const std::string flag = mistake.key == "num_experts" ? "--experts" : "--top-k";
    throw Error(ErrorKind::Config, Diagnostic{flag, 0, 0, "", mistake.problem, ""});
  }
  require_absent(line.out);
  const auto model = formats::ModelDirectory::open(line.model);
  int64_t num_mlps = 0;
  publish_directory(line.out,
                    [&](const std::filesystem::path& path) { num_mlps = models::upcycle(model, experts, 0, path); });
  print_result(std::to_string(num_mlps) + " MLPs became " + std::to_string(experts.num_experts) + " experts each, " +
               std::to_string(experts.top_k) + " per token\n" + line.out + "\n");
  return 0;
}

}  // namespace lathe::app
