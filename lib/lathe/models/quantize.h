#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lathe/arch/checkpoint.h"
#include "lathe/io/tensors.h"
#include "lathe/nn/nf4.h"

namespace lathe::models {

/// Puts an NF4Linear, still without a weight, into every slot of a skeleton and in the place of every expert's
/// matrices, but for the modules (and tensors of experts) whose path equals an item of `skip` or ends with "." + item,
/// and what is inside of them. load_weights() then quantises each weight as it is read.
void quantize_slots(torch::nn::Module& model, nn::NF4LinearOptions options, const std::vector<std::string>& skip);

/// Fills a layer from a dense weight of a file, or from that of one expert in a tensor of all, of which no page then
/// stays in memory. Throws Error{Data} when a value is not finite.
void quantize_from_file(nn::NF4LinearImpl& layer, const formats::TensorLocation& location, io::ModelTensors& files,
                        std::optional<int64_t> expert = {});

/// Puts an NF4Linear into the slots whose weights a checkpoint has in four bits, each as it is stored. What is skipped
/// stays dense, and load_weights() decodes it.
void quantize_stored_slots(torch::nn::Module& model, const arch::CheckpointMatch& match,
                           const std::vector<std::string>& skip);

/// A stored weight as views of the mapped files. Throws Error{Data} naming the tensor when a scale or a value of a code
/// book is not finite.
nn::NF4LinearImpl::Stored read_four_bit(const formats::FourBitWeight& weight, io::ModelTensors& files);

/// A layer without bias that holds a stored weight.
nn::NF4Linear stored_layer(const formats::FourBitWeight& weight, io::ModelTensors& files);

/// What quant_state says of a layer's weight.
formats::FourBitState four_bit_state(const nn::NF4LinearImpl& layer);

/// A layer's weight as bitsandbytes stores it, under the name `weight` and those that begin with it.
io::NamedTensors four_bit_tensors(const std::string& weight, const nn::NF4LinearImpl& layer);

}  // namespace lathe::models
