#include "practice/question.h"

namespace lathe::app::practice {

extern const Question kQuestion1a;  // mixer_flops.cc
extern const Question kQuestion1b;  // mixer_memory.cc
extern const Question kQuestion1c;  // mixer_length.cc
extern const Question kQuestion2a;  // accumulation_memory.cc
extern const Question kQuestion2b;  // accumulation_loop.cc
extern const Question kQuestion2c;  // checkpointing.cc
extern const Question kQuestion3a;  // experts.cc
extern const Question kQuestion3b;  // routing_collapse.cc
extern const Question kQuestion4a;  // lora_counts.cc
extern const Question kQuestion4b;  // lora_defects.cc
extern const Question kQuestion4c;  // update_precision.cc
extern const Question kQuestion4d;  // lora_start.cc
extern const Question kQuestion4e;  // lora_flops.cc

const std::vector<const Question*>& questions() {
  static const std::vector<const Question*> kQuestions = {
      &kQuestion1a, &kQuestion1b, &kQuestion1c, &kQuestion2a, &kQuestion2b, &kQuestion2c, &kQuestion3a,
      &kQuestion3b, &kQuestion4a, &kQuestion4b, &kQuestion4c, &kQuestion4d, &kQuestion4e};
  return kQuestions;
}

}  // namespace lathe::app::practice
