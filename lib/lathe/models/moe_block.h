#pragma once

#include <string>

#include "lathe/arch/moe.h"
#include "lathe/io/tensors.h"
#include "lathe/nn/moe.h"

namespace lathe::models {

/// The skeleton of a decoder's mixture-of-experts block: hollow parameters under the names of transformers' modules.
/// capacity, balance and dropout come from `options`.
nn::MoELayer build_moe_block(const arch::MoEArch& arch, const nn::MoELayerOptions& options = {});

/// Fills a block from the tensors below `prefix` of a file, in either layout, as float32.
/// Throws Error{Data} as arch::match_moe_block() does.
void load_moe_block(nn::MoELayerImpl& block, const arch::MoEArch& arch, const io::TensorFile& file,
                    const std::string& path, const std::string& prefix);

/// The tensors of a block for a file, names below `prefix`: views of its parameters.
io::NamedTensors moe_block_state(const nn::MoELayerImpl& block, const arch::MoEArch& arch, arch::ExpertLayout layout,
                                 const std::string& prefix);

}  // namespace lathe::models
