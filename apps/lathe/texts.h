#pragma once

#include <string>
#include <vector>

#include "command_line.h"
#include "lathe/text/tokenizer.h"
#include "lathe/train/classifier.h"

namespace lathe::app {

/// The texts that --text or --jsonl names, encoded for `model`. With `truncate` long ones are cut, otherwise they are
/// refused with Error{Data}.
std::vector<text::Encoding> encode_inputs(const CommandLine& line, const train::Classifier& classifier, bool truncate);

}  // namespace lathe::app
