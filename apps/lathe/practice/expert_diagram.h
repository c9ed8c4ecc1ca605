#pragma once

#include "practice/question.h"

namespace lathe::app::practice {

/// A mixture-of-experts layer with the names of its parts and the shapes between them; of four experts two are chosen.
Diagram expert_diagram();

}  // namespace lathe::app::practice
