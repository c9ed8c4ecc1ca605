#include "practice/question.h"

namespace lathe::app::practice {

extern const Question kQuestion3b;  // routing_collapse.cc

const std::vector<const Question*>& questions() {
  static const std::vector<const Question*> kQuestions = {&kQuestion3b};
  return kQuestions;
}

}  // namespace lathe::app::practice
