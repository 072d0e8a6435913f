// The functions of one instruction set, for the choice at run time.
#include "kernels.h"

namespace KERNEL_ISA {

extern const Table table;
const Table table = {panel_width,  panel_depth, pack_linear,     linear,         rms_norm, rope,
                     silu_and_mul, paged_attention, rope_and_store, add};

}  // namespace KERNEL_ISA
