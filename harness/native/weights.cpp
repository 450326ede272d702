// The weights that the two branches of a step compute with, derived from the trained ones by a few operations over all
// layers at once. Layer by layer, a bfloat16 step would launch seven small kernels for each convolution.

#include "shared.h"

#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdint>
#include <vector>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Tensors = std::vector<at::Tensor>;

// Copies of `tensors` in another type, of the memory layouts of `like`.
Tensors cast(const Tensors &tensors, const Tensors &like, at::ScalarType kind) {
  Tensors copies;
  copies.reserve(tensors.size());
  for (const auto &tensor : like)
    copies.push_back(at::empty_like(tensor, tensor.options().dtype(kind)));
  at::_foreach_copy_(copies, tensors);
  return copies;
}

struct Working : torch::autograd::Function<Working> {
  // In: weights, and masks or none. Out: the weights as bfloat16 if asked for, then those behind the masks.
  static variable_list forward(AutogradContext *context, at::TensorList weights, at::TensorList masks, bool bf16) {
    auto trained = weights.vec();
    variable_list copies;
    if (bf16)
      copies = cast(trained, trained, at::kBFloat16);
    if (!masks.empty()) {
      auto kept = at::_foreach_mul(weights, masks);
      if (bf16)
        kept = cast(kept, trained, at::kBFloat16);
      copies.insert(copies.end(), kept.begin(), kept.end());
    }
    context->saved_data["masks"] = masks.vec();
    context->saved_data["bf16"] = bf16;
    context->save_for_backward(trained);
    return copies;
  }

  static variable_list backward(AutogradContext *context, variable_list gradients) {
    auto masks = context->saved_data["masks"].toTensorVector();
    bool bf16 = context->saved_data["bf16"].toBool();
    auto trained = context->get_saved_variables();
    size_t count = trained.size();
    // The part of one branch, in the type of the weights.
    auto part = [&](size_t start) {
      Tensors taken(gradients.begin() + start, gradients.begin() + start + count);
      return bf16 ? cast(taken, trained, trained[0].scalar_type()) : taken;
    };
    Tensors total;
    if (!masks.empty())
      total = at::_foreach_mul(part(bf16 ? count : 0), masks);
    if (bf16) {
      auto dense = part(0);
      if (total.empty())
        total = dense;
      else
        at::_foreach_add_(total, dense);
    }
    // Nothing for masks and switch.
    total.resize(count + masks.size() + 1);
    return total;
  }
};

} // namespace

// Writes as many new tensors as there are weights and, after them, masks (none, or one for each weight); without bf16 those
// of the masks alone.
extern "C" char *sdclr_working_weights(void **weights, size_t count, void **masks, size_t mask_count, bool bf16,
                                       void **out) {
  return guarded([&] {
    auto trained = tensors(weights, count), kept = tensors(masks, mask_count);
    for (auto &copy : Working::apply(at::TensorList(trained), at::TensorList(kept), bf16))
      *out++ = new at::Tensor(copy);
  });
}
