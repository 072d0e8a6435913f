// The functions of one instruction set, for the choice at run time.
#include "kernels.h"

namespace KERNEL_ISA {

static void any_linear(DType dtype, const LinearArgs& args) {
  auto run = args.format == WeightFormat::kDense ? linear : linear_quantized;
  if (args.x.rows > 0) run(dtype, args);
}

extern const Table table;
const Table table = {panel_width,     panel_depth,    pack_linear, any_linear,
                     pack_quantized,  rms_norm,       rope,        silu_and_mul,
                     paged_attention, rope_and_store, add};

}  // namespace KERNEL_ISA
