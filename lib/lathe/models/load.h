#pragma once

#include <string>

#include "lathe/arch/checkpoint.h"
#include "lathe/io/tensors.h"
#include "lathe/nn/linear.h"

namespace lathe::models {

/// Fills a skeleton's hollow parameters from a checkpoint, one tensor at a time; adapters in the slots are left alone.
/// Frozen parameters become views of the mapped file where dtype and alignment allow; parameters that will train are
/// copied to float32. Matrices are stored and multiplied under `precision`; those that train beside an adapter
/// (round_trained false) are plain float32. An NF4Linear's weight is a view of the file if that has it in four bits,
/// and else quantised as it is read: a value that is not finite is refused by tensor and place, and no page of the file
/// stays in memory for it. What the checkpoint lacks is
/// drawn from the seed's counters as the family's own code draws it. Throws Error{Data}, also when a parameter stays
/// hollow: that is, when the model has one that the match does not know.
void load_weights(torch::nn::Module& model, const arch::CheckpointMatch& match, uint64_t seed,
                  nn::Precision precision = {}, bool round_trained = false);

/// Whether a parameter of two or more dimensions is float32 under any precision: a router's weights, which decide in
/// float32, and the experts' biases, which are no matrices.
bool stays_float(const std::string& name);

/// The biases under which routers choose: no parameters, but part of a checkpoint. By name, the tensors themselves.
io::NamedTensors selection_biases(const torch::nn::Module& model);

/// A parameter's name in the checkpoint: without the levels that adapters put in between.
std::string checkpoint_name(std::string parameter_name);

/// Fills `parameter` as `initial` says, drawn by counters from (seed, name).
void initialise(at::Tensor parameter, const arch::Initial& initial, uint64_t seed, const std::string& name);

}  // namespace lathe::models
