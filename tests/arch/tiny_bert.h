#pragma once

#include <gtest/gtest.h>

#include <string>

#include "golden.h"
#include "lathe/arch/arch.h"
#include "lathe/base/json.h"
#include "temporary_directory.h"

namespace lathe::testing {

/// The tiny BERT of tests/golden/formats/formats.py: {config, linears, parameters} as transformers names them.
inline const Json& tiny_bert() {
  static const Json json = read_json_file(golden("formats/tiny_bert.json"));
  return json;
}

/// Its config.json with some keys replaced.
inline Json tiny_bert_config(const Json& changes = Json::object()) {
  Json config = tiny_bert().at("config");
  config.update(changes);
  return config;
}

inline arch::ModelConfig read_config(const Json& config) {
  const TemporaryDirectory directory;
  return arch::read_model_config(directory.write("config.json", config.dump()));
}

}  // namespace lathe::testing
